package layerstore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// otherBoot is as long as a boot id.
const otherBoot = "00000000-0000-4000-8000-000000000000"

func openAfter(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(root, Options{SyncAfter: true})
	must(t, err)
	return s
}

// unsynced makes an instance whose process ends before it is synced.
func unsynced(t *testing.T, root string) (Instance, []byte, digest.Digest) {
	t.Helper()
	s := openAfter(t, root)
	b, dgst := layer(t, "content that is not synced")
	// While it is somewhere else it cannot be marked as synced.
	held := s.path(EagerID(dgst)) + ".held"
	defer func() { step.Hook = nil }()
	step.Hook = func(name string) {
		if name == "layerstore/settle/synced" {
			must(t, os.Rename(s.path(EagerID(dgst)), held))
		}
	}
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, s.Close())
	must(t, os.Rename(held, s.path(inst.ID)))
	return inst, b, dgst
}

// TestSyncAfter: an instance is there before it is synced, says so, and is synced at once.
func TestSyncAfter(t *testing.T) {
	root := t.TempDir()
	s := openAfter(t, root)
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
	if inst.Unsynced != s.boot || !bytes.Contains(record, []byte(s.boot)) {
		t.Errorf("not marked: %+v, on disk %s", inst, record)
	}
	if !reached["layerstore/settle/recorded"] {
		t.Error("not synced")
	}
	settled, err := s.Get(inst.ID)
	must(t, err)
	reopened, err := open(t, root).Get(inst.ID)
	must(t, err)
	if settled.Unsynced != "" || reopened != settled {
		t.Errorf("afterwards %+v, after a restart %+v", settled, reopened)
	}
	if _, err := os.Stat(filepath.Join(root, "layers", string(inst.ID), nextRecordName)); err == nil {
		t.Error("the next record is still there")
	}
}

// TestSettleAfterACrash: what the process that made an instance did not sync, the next one of the same boot does.
func TestSettleAfterACrash(t *testing.T) {
	root := t.TempDir()
	inst, _, _ := unsynced(t, root)
	s := open(t, root) // no matter how it is configured now
	if got, err := s.Get(inst.ID); err != nil || got.Unsynced == "" {
		t.Fatalf("after a restart: %+v, %v", got, err)
	}
	must(t, os.WriteFile(filepath.Join(s.path(inst.ID), nextRecordName), []byte("cut short"), 0o600))
	s.Settle(t.Context())
	if got, err := open(t, root).Get(inst.ID); err != nil || got.Unsynced != "" {
		t.Errorf("after Settle: %+v, %v", got, err)
	}
}

// TestUnsyncedInAnotherBoot: after the machine went down nothing of it is believed, and it can be imported anew.
func TestUnsyncedInAnotherBoot(t *testing.T) {
	root := t.TempDir()
	inst, b, dgst := unsynced(t, root)
	s := open(t, root)
	rewriteRecord(t, s, inst.ID, s.boot, otherBoot)
	s = open(t, root)
	if got, err := s.Get(inst.ID); err == nil {
		t.Fatalf("still there: %+v", got)
	}
	again, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	if again.ID != inst.ID || again.Unsynced != "" {
		t.Errorf("imported anew: %+v", again)
	}
	must(t, s.Discard(again.ID))
	must(t, s.DeleteDiscarded())
	wantEmpty(t, root)
}

// TestSettleOfWhatIsDiscarded: an instance that goes before it is synced is no error, and nothing of it comes back.
func TestSettleOfWhatIsDiscarded(t *testing.T) {
	root := t.TempDir()
	inst, _, _ := unsynced(t, root)
	s := open(t, root)
	must(t, s.Discard(inst.ID))
	s.settle(inst)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Settle(ctx)
	must(t, s.DeleteDiscarded())
	wantEmpty(t, root)
}
