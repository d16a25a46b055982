package fsbackend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

// Users reports which of the given directories are in use: as a layer (lower, upper or work directory) of an overlay mount, or
// because a bind mount shows them or something below them. What is mounted on one of the directories itself is no use of it. Every
// mount namespace counts that a process on this host lives in.
//
// An overlay goes on using a directory after it was renamed, and still names it as it was called when it was mounted, so a path
// need not exist.
//
// When in doubt a directory is in use. containerd shortens long options to names relative to some directory that the kernel does
// not tell; such a name stands for every path that ends with it.
//
// It does not see a mount that is in no mount namespace any more: unmounted lazily, and alive only because a process has a file
// open in it. Processes in other pid namespaces are seen from the host's pid namespace only.
func Users(paths []string) (map[string]bool, error) {
	used := make(map[string]bool)
	if len(paths) == 0 {
		return used, nil
	}
	names := indexPaths(paths)
	places, err := indexPlaces(paths)
	if err != nil {
		return nil, fmt.Errorf("look for users of directories: %w", err)
	}
	err = eachMountTable(func(entries []mountinfo.Entry) {
		found := places.shown(entries)
		for _, e := range entries {
			if e.FSType != "overlay" {
				continue
			}
			for _, layer := range overlayLayers(e) {
				found = append(found, names.matches(layer)...)
			}
		}
		for _, p := range found {
			used[p] = true
		}
	})
	if err != nil {
		return nil, fmt.Errorf("look for users of directories: %w", err)
	}
	return used, nil
}

// overlayLayers returns the directories an overlay mount is made of, as the mounter called them.
func overlayLayers(e mountinfo.Entry) []string {
	var layers []string
	for _, o := range e.Options() {
		switch o.Key {
		case "lowerdir":
			layers = append(layers, splitLayers(o.Value)...)
		case "lowerdir+", "datadir+", "upperdir", "workdir":
			// Some kernels keep these with overlayfs's own escapes, some without: take both.
			layers = append(append(layers, o.Value), splitLayers(o.Value)...)
		}
	}
	return layers
}

// splitLayers splits at colons. overlayfs has an escape of its own: a backslash takes the next byte as it is.
func splitLayers(list string) []string {
	var layers []string
	var b strings.Builder
	flush := func() {
		if b.Len() > 0 {
			layers = append(layers, b.String())
		}
		b.Reset()
	}
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] == '\\' && i+1 < len(list):
			i++
			b.WriteByte(list[i])
		case list[i] == ':':
			flush()
		default:
			b.WriteByte(list[i])
		}
	}
	flush()
	return layers
}

// pathIndex finds the given paths that an overlay's layer may mean.
type pathIndex struct {
	byPath map[string][]string // cleaned path, as given and with symbolic links resolved
	byBase map[string][]string // last component
}

func indexPaths(paths []string) pathIndex {
	ix := pathIndex{byPath: map[string][]string{}, byBase: map[string][]string{}}
	for _, p := range paths {
		clean := filepath.Clean(p)
		ix.byPath[clean] = append(ix.byPath[clean], p)
		if r := resolve(clean); r != clean {
			ix.byPath[r] = append(ix.byPath[r], p)
		}
		ix.byBase[filepath.Base(clean)] = append(ix.byBase[filepath.Base(clean)], p)
	}
	return ix
}

func (ix pathIndex) matches(layer string) []string {
	layer = filepath.Clean(layer)
	if !filepath.IsAbs(layer) {
		for strings.HasPrefix(layer, "../") {
			layer = layer[len("../"):]
		}
		return ix.endingWith(layer)
	}
	found := ix.byPath[layer]
	// Resolving costs system calls, so only names that can match are resolved.
	if len(found) == 0 && len(ix.byBase[filepath.Base(layer)]) > 0 {
		found = ix.byPath[resolve(layer)]
	}
	return found
}

// endingWith returns the paths that a relative name may mean. "." and ".." may mean any.
func (ix pathIndex) endingWith(name string) []string {
	var found []string
	if name == "." || name == ".." {
		for _, paths := range ix.byBase {
			found = append(found, paths...)
		}
		return found
	}
	for _, p := range ix.byBase[filepath.Base(name)] {
		if strings.HasSuffix("/"+filepath.Clean(p), "/"+name) {
			found = append(found, p)
		}
	}
	return found
}

// resolve follows the symbolic links of as much of the path as exists.
func resolve(path string) string {
	for dir, rest := path, ""; ; dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest) {
		if r, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(r, rest)
		}
		if dir == filepath.Dir(dir) {
			return path
		}
	}
}

// view is what decides which mounts a task can see: its mount namespace, and its root directory in it.
type view struct {
	namespace string
	root      string
	device    uint64
	inode     uint64
}

// eachMountTable calls f with the mount table of every distinct view on this host. Threads count: one may have left the namespace
// of its process.
func eachMountTable(f func([]mountinfo.Entry)) error {
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return err
	}
	if len(tasks) == 0 {
		return errors.New("no processes in /proc")
	}
	seen := make(map[view]bool)
	for _, task := range tasks {
		entries, v, err := mountTable(task, seen)
		if ended(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !seen[v] {
			seen[v] = true
			f(entries)
		}
	}
	return nil
}

// mountTable reads the table of one task, unless its view was seen already.
func mountTable(task string, seen map[view]bool) ([]mountinfo.Entry, view, error) {
	v, err := viewOf(task)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		// The table needs less rights than the links. Without them every task counts as a view of its own.
		v = view{namespace: task}
	} else if err != nil {
		return nil, v, err
	}
	if seen[v] {
		return nil, v, nil
	}
	entries, err := mountinfo.Read(task + "/mountinfo")
	return entries, v, err
}

func viewOf(task string) (v view, err error) {
	if v.namespace, err = os.Readlink(task + "/ns/mnt"); err != nil {
		return v, err
	}
	if v.root, err = os.Readlink(task + "/root"); err != nil {
		return v, err
	}
	var st unix.Stat_t
	if err := unix.Stat(task+"/root", &st); err != nil {
		return v, err
	}
	v.device, v.inode = st.Dev, st.Ino
	return v, nil
}

// ended says that the task is gone or going: its namespace lives on in other tasks, or not at all.
func ended(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}
