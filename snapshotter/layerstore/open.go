package layerstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// errNoTree says that a directory instance has no tree: its adoption was cut short before the upper directory was renamed.
var errNoTree = errors.New("adoption did not take place")

// Open opens the store in <root>/layers, which it makes if needed, and repairs what a crash left there.
func Open(root string, opts Options) (*Store, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		dir:       filepath.Join(root, "layers"),
		removing:  filepath.Join(root, "removing"),
		orphans:   filepath.Join(root, "orphans"),
		log:       opts.Log,
		limits:    opts.Limits,
		syncAfter: opts.SyncAfter,
		lost:      opts.Lost,
		left:      opts.Left,
		makeRoom:  opts.MakeRoom,
		places:    newPlaces(opts.parallel()),
		parallel:  opts.parallel(),
		fromTar:   converter.FromTar,
		fromDir:   converter.FromDir,
		instances: map[ID]Instance{},
		pins:      map[ID]int{},
		builds:    map[ID]*build{},
		ahead:     map[ID]*heldPin{},
		dirUsage:  map[ID]Usage{},
	}
	for _, dir := range []string{s.dir, s.removing, s.orphans} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open layer store: %w", err)
		}
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", s.dir, err)
	}
	return s, nil
}

// load reads what is on disk. Nothing is changed before everything was read, so that a store of a newer program stays as it is.
func (s *Store) load() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	broken := map[ID]error{}
	var leftovers []string
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, buildingPrefix) {
			leftovers = append(leftovers, name)
			continue
		}
		id, err := ParseID(name)
		if err != nil {
			if !strings.HasPrefix(name, brokenPrefix) {
				s.log.Warn("unknown file in the layer store", "path", filepath.Join(s.dir, name))
			}
			continue
		}
		inst, err := s.check(id)
		var version versionError
		switch {
		case errors.As(err, &version):
			return fmt.Errorf("instance %s: %w\n  start the version of the program that wrote it", id, err)
		case errors.Is(err, errNoTree):
			leftovers = append(leftovers, name)
		case errors.Is(err, errUnsynced):
			s.log.Warn("layer instance dropped", "instance", id, "cause", err)
			leftovers = append(leftovers, name)
		case err != nil:
			broken[id] = err
		default:
			s.instances[id] = inst
		}
	}
	for id, cause := range broken {
		if err := s.quarantine(id, cause); err != nil {
			return err
		}
	}
	for _, name := range leftovers {
		if err := s.DiscardDir(filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// check reads the instance id and compares what is there with what its layer.json says.
func (s *Store) check(id ID) (Instance, error) {
	inst, err := readRecord(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.MetaPath(id)); errors.Is(err, fs.ErrNotExist) {
			return s.readDirectory(id)
		}
	}
	if err != nil {
		return Instance{}, err
	}
	if inst.ID != id {
		return Instance{}, fmt.Errorf("%s is of instance %s", recordName, inst.ID)
	}
	if inst.Unsynced {
		return Instance{}, errUnsynced
	}
	if _, err := os.Lstat(filepath.Join(s.path(id), blob.ExtentsName)); err == nil && inst.Lazy == nil {
		return Instance{}, fmt.Errorf("%s: lazy: missing, of an instance that has %s", recordName, blob.ExtentsName)
	}
	for _, file := range []struct {
		path string
		want int64
	}{{s.MetaPath(id), inst.MetaBytes}, {s.DataPath(id), inst.DataBytes}} {
		fi, err := os.Lstat(file.path)
		if err != nil {
			return Instance{}, err
		}
		if !fi.Mode().IsRegular() || fi.Size() != file.want {
			return Instance{}, fmt.Errorf("%s: want a regular file of %d bytes, have %s of %d", filepath.Base(file.path), file.want, fi.Mode().Type(), fi.Size())
		}
	}
	return inst, nil
}

// quarantine puts a damaged instance out of the way. An earlier one of the same id makes room.
func (s *Store) quarantine(id ID, cause error) error {
	to := filepath.Join(s.dir, brokenPrefix+string(id))
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.Rename(s.path(id), to); err != nil {
		return err
	}
	s.log.Error("layer instance is damaged and was put aside; delete it when it is of no more interest", "instance", id, "path", to, "cause", cause)
	return nil
}
