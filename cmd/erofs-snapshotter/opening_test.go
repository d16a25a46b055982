package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// oneInstance is a store of one instance. What a test does not need is nil.
type oneInstance struct {
	instances
	inst layerstore.Instance
	dir  string
}

func (o oneInstance) List() []layerstore.Instance         { return []layerstore.Instance{o.inst} }
func (o oneInstance) Dir(layerstore.ID) string            { return o.dir }
func (o oneInstance) Lose(layerstore.ID)                  {}
func (o oneInstance) RenewPoisoned(context.Context) error { return nil }

// TestPoisonedIsNotFilled: a mounted layer for which nobody has answered is not opened by who cannot poison it, and none before it is decided.
func TestPoisonedIsNotFilled(t *testing.T) {
	testenv.Need(t, testenv.Root) // for leases
	dgst := digest.FromString("layer")
	inst := layerstore.Instance{ID: layerstore.LazyID(dgst, nil), Kind: layerstore.EROFS, Layer: dgst, Lazy: &layerstore.Lazy{Partial: true, Images: []string{"registry.example/app"}}}
	all := oneInstance{inst: inst, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(all.dir, "meta.erofs"), []byte("meta"), 0o600); err != nil {
		t.Fatal(err)
	}
	extent := blob.Extent{Length: 4096, BlobLength: 4096, Digest: sha256.Sum256(nil)}
	if err := blob.Create(all.dir, inst.ID.Bytes(), 4096, slices.Values([]blob.Extent{extent})); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cfg := config.Default()
	cfg.Root = t.TempDir()
	d := newDemand(cfg, sources{}, slog.New(slog.NewTextHandler(&log, nil)))
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	superblock, err := os.Open(filepath.Join(all.dir, "meta.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	d.resume(all)
	if !d.watcher.Idle() || !strings.Contains(log.String(), "nobody has answered") {
		t.Errorf("it was opened; log:\n%s", &log)
	}
	d.unsettled.Store(true)
	if err := d.made(inst, all.dir); err == nil || !d.watcher.Idle() {
		t.Errorf("it was opened before it was decided: %v", err)
	}
	superblock.Close()
	if err := d.settled(t.Context()); err != nil || d.watcher.Idle() {
		t.Errorf("it was not opened: %v; log:\n%s", err, &log)
	}
}
