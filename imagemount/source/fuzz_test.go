package source

import (
	"bytes"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/internal/imagetest"
)

// Whatever a tar holds, its table has sections that lie inside of it.
func FuzzArchiveTable(f *testing.F) {
	f.Add(imagetest.Tar(imagetest.File{Name: "a/", Content: ""}, imagetest.File{Name: "a/b", Content: "content"}))
	f.Add(imagetest.Tar(imagetest.DockerFiles("app:v1", layer)...))
	f.Add(bytes.Repeat([]byte{0}, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := readTable(t.Context(), bytes.NewReader(b))
		if err != nil {
			return
		}
		a := &archive{entries: entries}
		for name, e := range entries {
			if e.link == "" && (e.offset < 0 || e.size < 0 || e.offset+e.size > int64(len(b))) {
				t.Errorf("%q: section %d+%d of %d bytes", name, e.offset, e.size, len(b))
			}
			_, _ = a.find(name) // ends, also for links in a circle
		}
	})
}

func FuzzIndex(f *testing.F) {
	blobs := imagetest.Blobs{}
	for _, file := range blobs.Files(imagetest.Named(blobs.Image(layer), "one:two")) {
		f.Add([]byte(file.Content), "one")
	}
	f.Fuzz(func(t *testing.T, b []byte, tag string) {
		_ = checkLayoutVersion(b)
		all, err := parseIndex(b)
		if err != nil {
			return
		}
		chosen, err := choose(all, tag)
		if err == nil && len(chosen) == 0 {
			t.Error("nothing was chosen, without an error")
		}
		for _, desc := range chosen {
			if tag != "" && !answersTo(desc, tag) {
				t.Errorf("%v was chosen for %q", desc, tag)
			}
			if name, err := blobName(desc.Digest); err == nil && len(name) > 200 {
				t.Errorf("blob name %q", name)
			}
		}
	})
}

func FuzzDockerManifest(f *testing.F) {
	files := imagetest.DockerFiles("app:v1", layer)
	f.Add([]byte(files[len(files)-1].Content), "app:v1")
	f.Add([]byte(`[{"RepoTags":null},{"Layers":["../x"]}]`), "")
	f.Fuzz(func(t *testing.T, b []byte, tag string) {
		all, err := parseDockerManifest(b)
		if err != nil {
			return
		}
		if one, err := chooseDocker(all, tag); err == nil && len(one.Layers) > maxDockerLayers {
			t.Errorf("%d layers", len(one.Layers))
		}
	})
}
