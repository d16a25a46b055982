package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// A layer whose data were all there when the former process ended is completed as soon as the keeper has handed it over. If the store cannot be
// opened then, what waits for it must not keep the process from ending.
func TestDemandEndsWithoutInstances(t *testing.T) {
	d := newDemand(config.Default(), sources{}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	layer, err := d.describe(layerstore.Instance{ID: layerstore.EagerID(digest.FromString("layer")), Lazy: &layerstore.Lazy{}}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- layer.Complete() }()
	if err := d.close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("complete, but nowhere noted")
		}
	case <-time.After(patience):
		t.Fatal("still waits")
	}
	if err := d.close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// A command takes the layers of a root from the attendant first. When it then fails, there has to be an attendant again.
func TestFailedCommandLeavesAnAttendant(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"layers/one", "layers/two"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m := &mountDemand{
		demand: newDemand(mountConfig(config.Default(), root), sources{}, slog.New(slog.NewTextHandler(t.Output(), nil))),
		attend: []string{"-test.run=^$"}, // this test binary, which says at once that it passes
	}
	said := func() string {
		b, _ := os.ReadFile(filepath.Join(root, "attendant.log")) // it may not have come so far
		return string(b)
	}
	if err := m.closing(t.Context()); err != nil || said() != "" {
		t.Fatalf("without a lazy layer: %v, an attendant said %q", err, said())
	}
	if err := os.WriteFile(filepath.Join(root, "layers/two", blob.PresentName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.closing(t.Context()); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); !strings.Contains(said(), "PASS"); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatalf("no attendant was started; it said %q", said())
		}
	}
}
