package lazy

import "strings"

// trusts says whether an image is in one of the repositories that patterns describe. A pattern is a repository as it stands in a
// reference, with its host ("registry.example/team/app"); all repositories below a path ("registry.example/team/*"); or all ("*"). Any other
// pattern means nothing.
func trusts(patterns []string, image string) bool {
	repository := repositoryOf(image)
	for _, p := range patterns {
		below, all := strings.CutSuffix(p, "*")
		all = all && (below == "" || strings.HasSuffix(below, "/"))
		if p == repository || all && strings.HasPrefix(repository, below) {
			return true
		}
	}
	return false
}

// repositoryOf is a reference without tag and digest.
func repositoryOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	return image
}
