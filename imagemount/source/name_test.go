package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"image.tar", "with:colon"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"layout", "nginx"} {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("layout/oci-layout", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	sum := strings.Repeat("0", 64)
	for arg, want := range map[string]string{
		"alpine":                              "docker.io/library/alpine:latest",
		"registry:alpine":                     "docker.io/library/alpine:latest",
		"docker:image.tar":                    "docker.io/library/image.tar:latest",
		"docker://alpine:3":                   "docker.io/library/alpine:3",
		"localhost:5000/a/b:c":                "localhost:5000/a/b:c",
		"ghcr.io/a/b:t@sha256:" + sum:         "ghcr.io/a/b@sha256:" + sum,
		"nginx:1.29":                          "docker.io/library/nginx:1.29", // the directory is no layout
		"./image.tar":                         in("image.tar"),
		in("image.tar"):                       in("image.tar"),
		"./image.tar:app:v2":                  in("image.tar") + ":app:v2",
		"./with:colon":                        in("with:colon"),
		"./with:colon:tag":                    in("with:colon") + ":tag",
		".":                                   dir,
		"oci:layout":                          "oci:" + in("layout"),
		"oci:layout:v1":                       "oci:" + in("layout") + ":v1",
		"docker-archive:image.tar":            "docker-archive:" + in("image.tar"),
		"oci-archive:./image.tar:ghcr.io/x:y": "oci-archive:" + in("image.tar") + ":ghcr.io/x:y",
		"./missing:tag":                       in("missing:tag"),
	} {
		got, err := Parse(arg)
		if err != nil || got.String() != want {
			t.Errorf("%q: got %q, %v, want %q", arg, got, err, want)
		}
	}
	for arg, want := range map[string]string{
		"image.tar":     "./image.tar for the file",
		"image.tar:tag": "or an image in a registry",
		"layout":        "write ./layout",
		"":              "invalid reference",
		"UPPER":         "must be lowercase",
		"oci:":          "no path",
		"registry:":     "invalid reference",
	} {
		if got, err := Parse(arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %q", arg, got, err, want)
		}
	}
}

// What a name is printed as means the same image, wherever it is typed.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine", "oci:/x:y", "docker://a/b:c", "/etc/hostname:x", "./a:b:c", "registry:a@sha256:" + strings.Repeat("0", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := Parse(s)
		if err != nil || name.Kind == InRegistry && name.Reference == "" {
			return
		}
		again, err := Parse(name.String())
		if err != nil && name.Kind != InRegistry {
			t.Fatalf("%q means %q, which is refused: %v", s, name, err)
		}
		if err == nil && again.String() != name.String() {
			t.Fatalf("%q means %q, which means %q", s, name, again)
		}
	})
}
