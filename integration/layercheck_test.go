package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// layerCheck knows what the layers of a story look like when they are whole. Conversion is deterministic, so every later one must give
// the same.
type layerCheck struct {
	s *story
	// deterministic says that the ids of instances mean their bytes. That of an upper directory is random, and so is that of the image
	// that becomes of it: then only what layer.json says is checked.
	deterministic bool
	sums          map[string]string // of instances
	seen          map[fileID]bool   // files that were found right
}

type fileID struct{ inode, size, mtime int64 }

func newLayerCheck(s *story, deterministic bool) *layerCheck {
	return &layerCheck{s: s, deterministic: deterministic, sums: map[string]string{}, seen: map[fileID]bool{}}
}

// learn takes what is in the layer store now as right.
func (c *layerCheck) learn() error {
	if !c.deterministic {
		return nil
	}
	for _, id := range c.s.instances() {
		sum, err := c.sum(id)
		if err != nil {
			return err
		}
		c.sums[id] = sum
	}
	return nil
}

// check looks at a root on which the daemon does nothing at the moment. Every instance that has its final name is whole, and what is mounted
// for a snapshot is such an instance.
func (c *layerCheck) check() error {
	m, err := c.s.readMetadata()
	if err != nil {
		return err
	}
	visible := map[string]bool{}
	for _, id := range c.s.instances() {
		if strings.HasPrefix(id, ".") {
			continue
		}
		visible[id] = true
		check := c.complete
		if c.deterministic {
			check = c.whole
		}
		if err := check(id); err != nil {
			return err
		}
	}
	for _, point := range c.s.layerMounts() {
		if id := m.numbers[filepath.Base(point)]; m.referenced[id] && !visible[id] {
			return fmt.Errorf("%s is the mount of instance %s, which is not there", point, id)
		}
	}
	for id := range m.referenced {
		if !visible[id] {
			return fmt.Errorf("instance %s is referenced and not there", id)
		}
	}
	return nil
}

// whole compares an instance with what was learned, unless its files were compared already.
func (c *layerCheck) whole(id string) error {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.s.SnapshotterRoot(), "layers", id, "data"), &st); err != nil {
		return fmt.Errorf("instance %s: %w", id, err)
	}
	file := fileID{int64(st.Ino), st.Size, st.Mtim.Nano()}
	if c.seen[file] {
		return nil
	}
	sum, err := c.sum(id)
	if err != nil {
		return err
	}
	if want, ok := c.sums[id]; !ok || sum != want {
		return fmt.Errorf("instance %s: its files have the digest %s, want %q", id, sum, want)
	}
	c.seen[file] = true
	return nil
}

// complete compares the files of an image with its layer.json. An upper directory has none.
func (c *layerCheck) complete(id string) error {
	dir := filepath.Join(c.s.SnapshotterRoot(), "layers", id)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() == "meta.erofs" || f.Name() == "layer.json" }) {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if err != nil {
		return err
	}
	var inst layerstore.Instance
	if err := json.Unmarshal(b, &inst); err != nil {
		return fmt.Errorf("instance %s: layer.json: %w", id, err)
	}
	for name, want := range map[string]int64{"meta.erofs": inst.MetaBytes, "data": inst.DataBytes} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("instance %s: %w", id, err)
		}
		if fi.Size() != want || want == 0 {
			return fmt.Errorf("instance %s: %s has %d bytes, want %d", id, name, fi.Size(), want)
		}
	}
	return nil
}

func (c *layerCheck) sum(id string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"meta.erofs", "data"} {
		f, err := os.Open(filepath.Join(c.s.SnapshotterRoot(), "layers", id, name))
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
