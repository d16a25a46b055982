package fsbackend

import (
	"path/filepath"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

// place is a directory as its filesystem calls it, which is the same in every mount namespace.
type place struct{ device, path string }

// bindIndex finds the given paths that a bind mount shows.
type bindIndex struct {
	paths map[place][]string
	// own are the mountpoints among the paths: what is mounted on them, and copies of that in other namespaces, are no users.
	own map[place]bool
}

func indexPlaces(paths []string) (bindIndex, error) {
	entries, err := mountinfo.Read(mountinfo.Self)
	if err != nil {
		return bindIndex{}, err
	}
	ix := bindIndex{paths: map[place][]string{}, own: map[place]bool{}}
	mounts := byID(entries)
	for _, p := range paths {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			continue // a directory that is not there is shown by nobody
		}
		e, ok := mountOf(entries, real)
		if !ok {
			continue
		}
		if e.Point == real {
			ix.own[mountpoint(e, mounts)] = true
		}
		at := place{e.Device, filepath.Join(e.Root, strings.TrimPrefix(real, e.Point))}
		ix.paths[at] = append(ix.paths[at], p)
	}
	return ix, nil
}

// shown returns the paths that mounts of the table show, whole or in part.
func (ix bindIndex) shown(entries []mountinfo.Entry) (found []string) {
	mounts := byID(entries)
	for _, e := range entries {
		for dir := e.Root; ; dir = filepath.Dir(dir) {
			if paths := ix.paths[place{e.Device, dir}]; len(paths) > 0 && !ix.own[mountpoint(e, mounts)] {
				found = append(found, paths...)
			}
			if len(dir) <= 1 || dir[0] != '/' { // "/", or a name that is no path, such as "net:[4026531840]"
				break
			}
		}
	}
	return found
}

// mountOf returns the mount that shows path: of those above it the innermost, and the last one mounted there.
func mountOf(entries []mountinfo.Entry, path string) (found mountinfo.Entry, ok bool) {
	for _, e := range entries {
		prefix := strings.TrimSuffix(e.Point, "/") + "/"
		if strings.HasPrefix(path+"/", prefix) && len(e.Point) >= len(found.Point) {
			found, ok = e, true
		}
	}
	return found, ok
}

// mountpoint is the directory on which e is mounted. The zero place if the table does not tell.
func mountpoint(e mountinfo.Entry, mounts map[int]mountinfo.Entry) place {
	parent, ok := mounts[e.Parent]
	if !ok {
		return place{}
	}
	return place{parent.Device, filepath.Join(parent.Root, strings.TrimPrefix(e.Point, parent.Point))}
}

func byID(entries []mountinfo.Entry) map[int]mountinfo.Entry {
	mounts := make(map[int]mountinfo.Entry, len(entries))
	for _, e := range entries {
		mounts[e.ID] = e
	}
	return mounts
}
