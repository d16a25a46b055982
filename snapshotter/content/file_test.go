package content

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
)

// plugins is a containerd that says where its content store is.
type plugins struct {
	introspectionapi.UnimplementedIntrospectionServer
	root string
}

func (p plugins) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{{Exports: map[string]string{"root": p.root}}}}, nil
}

// TestReadsTheFile: the bytes come from the file when it can be the blob's, and over the socket otherwise.
func TestReadsTheFile(t *testing.T) {
	blob := randomBlob(3 * requestBytes)
	desc := describe(blob)
	for name, c := range map[string]struct {
		make     func(t *testing.T, path string)
		wantFile bool
	}{
		"there":        {func(t *testing.T, path string) { write(t, path, blob) }, true},
		"absent":       {func(*testing.T, string) {}, false},
		"another size": {func(t *testing.T, path string) { write(t, path, blob[1:]) }, false},
		"a directory":  {func(t *testing.T, path string) { mkdir(t, path) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "blobs", "sha256", desc.Digest.Encoded())
			mkdir(t, filepath.Dir(path))
			c.make(t, path)
			s := newStore(t, serveWith(t, contentserver.New(localStore(t, blob)), plugins{root: root}), 0)
			r, err := s.Open(inNamespace(t), desc)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			if _, isFile := r.(file); isFile != c.wantFile {
				t.Errorf("a file: %v, want %v", isFile, c.wantFile)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("%d bytes, error %v", len(got), err)
			}
		})
	}
}

// TestFileOfAnotherNamespace: a blob that the namespace does not have is absent, whether or not its file is there.
func TestFileOfAnotherNamespace(t *testing.T) {
	blob := randomBlob(10)
	root := t.TempDir()
	path := filepath.Join(root, "blobs", "sha256", describe(blob).Digest.Encoded())
	mkdir(t, filepath.Dir(path))
	write(t, path, blob)
	s := newStore(t, serveWith(t, contentserver.New(localStore(t)), plugins{root: root}), 0)
	if r, err := s.Open(inNamespace(t), describe(blob)); err == nil {
		_ = r.Close()
		t.Error("opened")
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
}
