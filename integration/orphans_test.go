package integration

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"go.etcd.io/bbolt"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// metadata is what metadata.db says, see records.go of package snapshotter.
type metadata struct {
	names      map[string]bool   // containerd's names of all snapshots
	writable   map[string]bool   // ids of snapshots that have a directory
	numbers    map[string]string // from the name of a mountpoint to the instance
	referenced map[string]bool   // instances
}

// readMetadata reads a copy of metadata.db, which a running daemon has locked. If the daemon is just writing, the copy may be useless.
func (s *story) readMetadata() (_ metadata, err error) {
	b, err := os.ReadFile(filepath.Join(s.SnapshotterRoot(), "metadata.db"))
	if err != nil {
		return metadata{}, err
	}
	copied := filepath.Join(s.Dir, "tmp", "metadata.db")
	if err := os.WriteFile(copied, b, 0o600); err != nil {
		return metadata{}, err
	}
	store, err := storage.NewMetaStore(copied, func(o *bbolt.Options) error {
		o.ReadOnly, o.Timeout = true, time.Second
		return nil
	})
	if err != nil {
		return metadata{}, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ctx, t, err := store.TransactionContext(s.ctx, false)
	if err != nil {
		return metadata{}, err
	}
	defer t.Rollback()
	m := metadata{names: map[string]bool{}, writable: map[string]bool{}, numbers: map[string]string{}, referenced: map[string]bool{}}
	err = storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
		m.names[info.Name] = true
		if info.Kind == snapshots.KindActive || info.Kind == snapshots.KindView && info.Parent == "" {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			m.writable[id] = true
			return err
		}
		return nil
	})
	if err != nil {
		return metadata{}, err
	}
	ours := t.(*bbolt.Tx).Bucket([]byte("erofs-snapshotter"))
	return m, errors.Join(
		ours.Bucket([]byte("instances")).ForEach(func(k, v []byte) error {
			m.numbers[strconv.FormatUint(binary.BigEndian.Uint64(v), 36)] = hex.EncodeToString(k)
			return nil
		}),
		ours.Bucket([]byte("refs")).ForEach(func(k, _ []byte) error {
			m.referenced[hex.EncodeToString(k[:32])] = true
			return nil
		}))
}

// orphans is an error that names what exists in only one of: containerd's metadata, ours, files, mounts.
func (s *story) orphans() error {
	m, err := s.readMetadata()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	err = s.Client().SnapshotService(lab.Snapshotter).Walk(s.ctx, func(_ context.Context, info snapshots.Info) error {
		wanted[info.Name] = true
		return nil
	})
	// containerd calls a snapshot NAMESPACE/NUMBER/NAME when it speaks to us.
	known := map[string]bool{}
	for name := range m.names {
		if f := strings.SplitN(name, "/", 3); len(f) == 3 && f[0] == s.Namespace {
			name = f[2]
		}
		known[name] = true
	}
	numbered := map[string]bool{}
	for _, id := range m.numbers {
		numbered[id] = true
	}
	mounted := map[string]bool{}
	for _, point := range s.layerMounts() {
		mounted[filepath.Base(point)] = true
	}
	return errors.Join(err,
		equal("snapshots of containerd and ours", wanted, known),
		equal("writable snapshots and their directories", m.writable, s.files("snapshots")),
		equal("referenced layers and their files", m.referenced, s.files("layers")),
		equal("referenced and numbered layers", m.referenced, numbered),
		equal("mountpoints and mounts", s.files("m"), mounted),
		equal("mounts and their layers", mounted, among(mounted, m.numbers)))
}

func equal(what string, a, b map[string]bool) error {
	if maps.Equal(a, b) {
		return nil
	}
	return fmt.Errorf("%s differ: %q and %q", what, slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
}

func among(names map[string]bool, in map[string]string) map[string]bool {
	found := map[string]bool{}
	for name := range names {
		if _, ok := in[name]; ok {
			found[name] = true
		}
	}
	return found
}

// files returns what is in a directory of the daemon's root.
func (s *story) files(dir string) map[string]bool {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.SnapshotterRoot(), dir))
	s.must(err)
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names
}
