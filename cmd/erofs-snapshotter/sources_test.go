package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
)

// TestCorruptIsAskedOfAnotherHost: the mirror and the registry behind it take turns.
func TestCorruptIsAskedOfAnotherHost(t *testing.T) {
	const upstream = "registry.example"
	host := func(content string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader([]byte(content)))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	cfg := config.Registry{HostsDir: t.TempDir()}
	text := fmt.Sprintf("server = %q\n[host.%q]\n", host("the registry"), host("the mirror's"))
	if err := os.MkdirAll(filepath.Join(cfg.HostsDir, upstream), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.HostsDir, upstream, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client := registry.New(registryOptions(cfg, nil, slog.New(slog.DiscardHandler)))
	defer client.Close()
	layer := ocispec.Descriptor{Digest: digest.FromString("the registry"), Size: 12}
	for attempt, want := range []string{"the mirror's", "the registry", "the mirror's"} {
		got := make([]byte, layer.Size)
		if err := (paced{client}).ReadAt(t.Context(), upstream+"/app:1", layer, got, 0, attempt); err != nil || string(got) != want {
			t.Errorf("attempt %d: %q, %v; want %q", attempt, got, err, want)
		}
	}
}
