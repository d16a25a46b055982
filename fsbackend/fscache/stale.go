package fscache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

// superblocks is where EROFS lists its superblocks; those over fscache as <domain_id>,<fsid>.
const superblocks = "/sys/fs/erofs"

// listedMost is how much of that name kernels since 6.10 show. A second superblock with the same beginning cannot be mounted there.
const listedMost = 36

// Stale returns the mountpoints below dir of EROFS over fscache whose superblock does not belong to the domain, as those of a cache that has
// ended. Paths begin as dir does. The domain itself may have ended: Stale only compares.
func Stale(dir, domain string) ([]string, error) {
	points, err := stale(mountinfo.Self, superblocks, dir, domain)
	if err != nil {
		return nil, fmt.Errorf("stale mounts below %s: %w", dir, err)
	}
	return points, nil
}

func stale(table, superblocks, dir, domain string) ([]string, error) {
	real, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// The mount table knows no symbolic links.
	if real, err = filepath.EvalSymlinks(real); err != nil {
		return nil, err
	}
	entries, err := mountinfo.Read(table)
	if err != nil {
		return nil, err
	}
	listed, err := names(superblocks)
	if err != nil {
		return nil, err
	}
	prefix := strings.TrimSuffix(real, "/") + "/"
	var points []string
	for _, e := range entries {
		rest, below := strings.CutPrefix(e.Point, prefix)
		id := fsid(e)
		if below && rest != "" && id != "" && !isListed(listed, domain+","+id) {
			points = append(points, filepath.Join(dir, rest))
		}
	}
	slices.Sort(points)
	return points, nil
}

// fsid is that of a mount of EROFS over fscache, and empty for others. Not all kernels show the domain.
func fsid(e mountinfo.Entry) string {
	if e.FSType != "erofs" {
		return ""
	}
	for _, o := range e.Options() {
		if o.Key == "fsid" {
			return o.Value
		}
	}
	return ""
}

func names(dir string) (map[string]bool, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) { // no EROFS
		err = nil
	}
	set := map[string]bool{}
	for _, e := range list {
		set[e.Name()] = true
	}
	return set, err
}

func isListed(listed map[string]bool, name string) bool {
	return listed[name] || len(name) > listedMost && listed[name[:listedMost]]
}
