package imagemount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/target"
)

// Labels of snapshots.
const (
	labelPrefix = "erofs-snapshotter/"
	// of the snapshot of a mount
	labelImage    = labelPrefix + "image"    // as source.Name writes it
	labelManifest = labelPrefix + "manifest" // digest
	labelWritable = labelPrefix + "writable" // "true", or absent
	// added before the mount is attached
	labelBoot      = labelPrefix + "boot"       // the kernel's boot id
	labelNamespace = labelPrefix + "namespace"  // mount namespace, "mnt:[4026531841]"
	labelMount     = labelPrefix + "mount"      // number of the mount
	labelUpper     = labelPrefix + "upper"      // upper directory of a writable mount
	labelUpperRoot = labelPrefix + "upper-root" // its mode and owner at first, see rootState
	// of the committed snapshot of a layer
	labelLayer    = labelPrefix + "layer"    // digest of its blob
	labelInstance = labelPrefix + "instance" // id of its instance; absent: the one made from the whole blob
)

// Record is one mount, or what is left of it.
type Record struct {
	// Target is the directory, Image what was asked for, Manifest what that meant.
	Target, Image, Manifest string
	Writable                bool

	at    place
	mount uint64 // number of the mount; 0: it was never attached
	upper string // of a writable mount that was attached once
	root  string // rootState of upper at first
}

// place is where and when a mount can be seen.
type place struct{ boot, namespace string }

func hereAndNow() (place, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return place{}, err
	}
	namespace, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return place{}, err
	}
	return place{strings.TrimSpace(string(boot)), namespace}, nil
}

func (m Record) labels() map[string]string {
	labels := map[string]string{labelImage: m.Image, labelManifest: m.Manifest}
	if m.Writable {
		labels[labelWritable] = "true"
	}
	if m.mount != 0 {
		labels[labelBoot], labels[labelNamespace] = m.at.boot, m.at.namespace
		labels[labelMount] = strconv.FormatUint(m.mount, 10)
	}
	if m.upper != "" {
		labels[labelUpper], labels[labelUpperRoot] = m.upper, m.root
	}
	return labels
}

// recordOf returns false for a snapshot that is no mount.
func recordOf(info snapshots.Info) (Record, bool) {
	path, ok := strings.CutPrefix(info.Name, mountPrefix)
	if !ok {
		return Record{}, false
	}
	l := info.Labels
	number, err := strconv.ParseUint(l[labelMount], 10, 64)
	if err != nil {
		number = 0 // never attached
	}
	return Record{
		Target: path, Image: l[labelImage], Manifest: l[labelManifest], Writable: l[labelWritable] == "true",
		at: place{l[labelBoot], l[labelNamespace]}, mount: number, upper: l[labelUpper], root: l[labelUpperRoot],
	}, true
}

// mounts returns all records.
func (r *Root) mounts(ctx context.Context) ([]Record, error) {
	var all []Record
	err := r.sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if m, ok := recordOf(info); ok {
			all = append(all, m)
		}
		return nil
	})
	return all, err
}

// find returns the record of the mount on path, which is clean.
func (r *Root) find(ctx context.Context, path string) (Record, bool, error) {
	all, err := r.mounts(ctx)
	for _, m := range all {
		if m.Target == path {
			return m, true, err
		}
	}
	return Record{}, false, err
}

// vanished says whether the mount of a record is certainly gone: never attached, before a reboot, or nothing is mounted on its target.
// What is mounted in another namespace cannot be seen from here.
func (r *Root) vanished(m Record) (bool, error) {
	if m.mount == 0 || m.at.boot != r.here.boot {
		return true, nil
	}
	if m.at.namespace != r.here.namespace {
		return false, nil
	}
	_, mounted, err := target.Mounted(m.Target)
	return !mounted, err
}

// changed says whether a writable mount has changes. The upper directory of one without is empty: overlayfs keeps its own files in the
// work directory.
func (m Record) changed() (bool, error) {
	if m.upper == "" {
		return false, nil
	}
	d, err := os.Open(m.upper)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if err == nil {
		return true, nil
	}
	if err != io.EOF {
		return false, err
	}
	now, err := rootState(m.upper)
	return now != m.root, err
}

// rootState is what a change of the root directory of a writable mount changes in the upper directory.
func rootState(upper string) (string, error) {
	fi, err := os.Lstat(upper)
	if err != nil {
		return "", err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("%s: no file status", upper)
	}
	return fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid), nil
}
