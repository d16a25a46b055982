package layerstore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// unsynced makes an instance that is in use and not synced, and its files.
func unsynced(t *testing.T, s *Store) (Instance, *imageFiles, []byte, digest.Digest) {
	t.Helper()
	b, dgst := layer(t, "content that is not synced")
	inst, files, err := s.makeUnsynced(t.Context(), EagerID(dgst), func(ctx context.Context, target converter.Target) (Instance, error) {
		return s.convertLayer(ctx, &build{layer: dgst}, opener(b), target)
	})
	must(t, err)
	s.instances[inst.ID] = inst
	return inst, files, b, dgst
}

// TestSyncAfter: an instance is there before it is synced, says so, and is synced at once.
func TestSyncAfter(t *testing.T) {
	root := t.TempDir()
	s, err := Open(root, Options{SyncAfter: true})
	must(t, err)
	b, dgst := layer(t, "content")
	reached := map[string]bool{}
	var record []byte
	step.Hook = func(name string) {
		reached[name] = true
		if name == "layerstore/settle/synced" {
			record, _ = os.ReadFile(recordPath(s, EagerID(dgst)))
		}
	}
	defer func() { step.Hook = nil }()
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, s.Close()) // waits for the sync
	if !inst.Unsynced || !bytes.Contains(record, []byte(`"unsynced": true`)) {
		t.Errorf("not marked: %+v, on disk %s", inst, record)
	}
	if !reached["layerstore/settle/recorded"] {
		t.Error("not synced")
	}
	settled, err := s.Get(inst.ID)
	must(t, err)
	reopened, err := open(t, root).Get(inst.ID)
	must(t, err)
	if settled.Unsynced || reopened != settled {
		t.Errorf("afterwards %+v, after a restart %+v", settled, reopened)
	}
	if _, err := os.Stat(filepath.Join(root, "layers", string(inst.ID), nextRecordName)); err == nil {
		t.Error("the next record is still there")
	}
}

// TestUnsyncedIsDropped: what was not synced when the process ended is not believed, whatever is left of its record, and can be
// imported anew.
func TestUnsyncedIsDropped(t *testing.T) {
	for name, crash := range map[string]func(record string) error{
		"marked":        func(string) error { return nil },
		"empty record":  func(record string) error { return os.Truncate(record, 0) },
		"zeros":         func(record string) error { return os.WriteFile(record, make([]byte, 300), 0o600) },
		"next was made": func(record string) error { return os.WriteFile(record+".next", []byte("cut sh"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			inst, files, b, dgst := unsynced(t, s)
			files.close()
			must(t, crash(recordPath(s, inst.ID)))
			s = open(t, root)
			if got, err := s.Get(inst.ID); err == nil {
				t.Fatalf("still there: %+v", got)
			}
			again, pin, err := s.Import(t.Context(), dgst, opener(b))
			must(t, err)
			pin.Release()
			if again.ID != inst.ID || again.Unsynced {
				t.Errorf("imported anew: %+v", again)
			}
			must(t, s.Discard(again.ID))
			must(t, s.DeleteDiscarded())
			wantEmpty(t, root)
		})
	}
}

// TestSettleFails: an instance that the disk does not take is damaged, and goes.
func TestSettleFails(t *testing.T) {
	root := t.TempDir()
	var lost []ID
	s, err := Open(root, Options{Lost: func(id ID) { lost = append(lost, id) }})
	must(t, err)
	inst, files, b, dgst := unsynced(t, s)
	must(t, files.data.File.Close())
	s.settle(inst, files)
	if _, err := s.Get(inst.ID); !errdefs.IsNotFound(err) {
		t.Errorf("still there: %v", err)
	}
	if len(lost) != 1 || lost[0] != inst.ID {
		t.Errorf("told of %v", lost)
	}
	_, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, s.Discard(inst.ID))
	must(t, s.DeleteDiscarded())
	wantEmpty(t, root)
}

// TestSettleCannotRecord: the instance is good, and is only not known to be after a restart.
func TestSettleCannotRecord(t *testing.T) {
	s := open(t, t.TempDir())
	inst, files, _, _ := unsynced(t, s)
	must(t, os.Mkdir(filepath.Join(s.path(inst.ID), nextRecordName), 0o700))
	s.settle(inst, files)
	if got, err := s.Get(inst.ID); err != nil || !got.Unsynced {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSettleOfWhatIsDiscarded: an instance that goes before it is synced is no error, and nothing of it comes back.
func TestSettleOfWhatIsDiscarded(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	inst, files, _, _ := unsynced(t, s)
	must(t, s.Discard(inst.ID))
	s.settle(inst, files)
	must(t, s.DeleteDiscarded())
	wantEmpty(t, root)
}
