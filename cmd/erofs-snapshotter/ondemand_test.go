package main

import (
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
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
