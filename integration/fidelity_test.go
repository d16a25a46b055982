package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff/gnutar"
)

// TestFidelity is the promise of the converter on real layers: what the kernel shows is what GNU tar extracts, but for the rules
// of docs/conversion.md, and every other way to the image and to read it gives the same.
func TestFidelity(t *testing.T) {
	layers := []struct {
		name       string
		compressed bool // convert it from gzip and zstd as well
		diskUse    bool // must not be larger than the tar
	}{
		{name: "base", compressed: true},
		{name: "node-modules", diskUse: true},
		{name: "scipy"},
		{name: "jdk"},
	}
	for _, l := range layers {
		t.Run(l.name, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.EROFS, testenv.Tool("tar"), testenv.Tool("mkfs.ext4"), lab.ToolProgram("fsck.erofs"), lab.LayerTar(l.name))
			f := newFidelity(t, lab.Layer(l.name))
			f.kernelEqualsTar(t)
			t.Run("fsck", f.fsck)
			t.Run("go-erofs", f.goErofs)
			t.Run("deterministic", f.deterministic)
			t.Run("directory", f.directory)
			if l.compressed {
				t.Run("gzip", func(t *testing.T) { f.compressed(t, "gzip", "-1") })
				t.Run("zstd", func(t *testing.T) { f.compressed(t, "zstd", "-1") })
			}
			if l.diskUse {
				t.Run("disk use", f.diskUse)
			}
		})
	}
}

// fidelity is one layer in all its forms, on an ext4 of its own.
type fidelity struct {
	tar       string
	disk      string
	image     instance
	extracted string // in overlayfs form
	want      []treediff.Record
}

func newFidelity(t *testing.T, tar string) *fidelity {
	st, err := os.Stat(tar)
	if err != nil {
		t.Fatal(err)
	}
	disk := gnutar.Ext4(t, 6*st.Size()+4<<30)
	f := &fidelity{tar: tar, disk: disk, extracted: filepath.Join(disk, "extracted")}
	f.image = newInstance(t, disk, "image")
	f.image.fromTar(t, openFile(t, tar))
	start := time.Now()
	if err := gnutar.Extract(t.Context(), tar, f.extracted); err != nil {
		t.Fatal(err)
	}
	if err := gnutar.OverlayForm(tar, f.extracted); err != nil {
		t.Fatal(err)
	}
	t.Logf("extracted in %v", time.Since(start))
	f.want = scan(t, f.extracted)
	return f
}

func (f *fidelity) kernelEqualsTar(t *testing.T) {
	same(t, f.want, scan(t, f.image.mount(t)))
	r := f.image.result
	if want := sha256File(t, f.tar); r.DiffID.Encoded() != want || r.Blob != r.DiffID {
		t.Errorf("diffID %s and blob digest %s, want %s for both", r.DiffID, r.Blob, want)
	}
	t.Logf("%d paths, %d inodes; meta %d, data %d, tar %d bytes", len(f.want), r.Inodes, r.MetaBytes, r.DataBytes, r.DiffBytes)
}

// deterministic converts the tar again.
func (f *fidelity) deterministic(t *testing.T) {
	again := newInstance(t, f.disk, "again")
	again.fromTar(t, openFile(t, f.tar))
	f.image.sameBytes(t, again)
}

// compressed converts what a compressor makes of the tar, and expects the same image.
func (f *fidelity) compressed(t *testing.T, name string, args ...string) {
	testenv.Need(t, testenv.Tool(name))
	out, err := os.Create(filepath.Join(f.disk, "layer."+name))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(t.Context(), name, append(args, "--stdout", f.tar)...)
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v", name, cmd.Args, err)
	}
	i := newInstance(t, f.disk, name)
	i.fromTar(t, openFile(t, out.Name()))
	f.image.sameBytes(t, i)
	if want := sha256File(t, out.Name()); i.result.Blob.Encoded() != want || i.result.DiffID != f.image.result.DiffID {
		t.Errorf("blob digest %s and diffID %s, want %s and %s", i.result.Blob, i.result.DiffID, want, f.image.result.DiffID)
	}
}

// directory converts the extracted tree as if it were an upper directory.
func (f *fidelity) directory(t *testing.T) {
	i := newInstance(t, f.disk, "directory")
	result, err := converter.FromDir(t.Context(), f.extracted, i.target(), converter.Limits{})
	i.finish(t, result, err)
	same(t, f.want, scan(t, i.mount(t)))
}

// fsck lets fsck.erofs check the image and extract it.
func (f *fidelity) fsck(t *testing.T) {
	meta, data := f.image.meta.Name(), "--device="+f.image.data.Name()
	if out, err := exec.CommandContext(t.Context(), lab.Program("fsck.erofs"), data, meta).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
	flat, dir := filepath.Join(f.disk, "flat"), filepath.Join(f.disk, "fsck")
	defer os.RemoveAll(dir)
	defer os.Remove(flat)
	f.image.flatten(t, flat)
	out, err := exec.CommandContext(t.Context(), lab.Program("fsck.erofs"), data, "--no-sbcrc", "--extract="+dir, "--preserve", "--xattrs", flat).CombinedOutput()
	if err != nil {
		t.Fatalf("fsck.erofs --extract: %v\n%s", err, out)
	}
	addLastHoles(t, f.want, dir)
	same(t, withoutLostXattrs(f.want), scan(t, dir))
}

// withoutLostXattrs leaves out what fsck.erofs cannot extract: it sets no attribute with an empty value, and it sets the owner after the
// attributes, by which a file loses its capabilities.
func withoutLostXattrs(records []treediff.Record) []treediff.Record {
	records = slices.Clone(records)
	for i := range records {
		records[i].Xattrs = maps.Clone(records[i].Xattrs)
		maps.DeleteFunc(records[i].Xattrs, func(name, value string) bool { return value == "" || name == "security.capability" })
	}
	return records
}

// addLastHoles gives the files that fsck.erofs extracted their length: it leaves a hole at the end out.
func addLastHoles(t *testing.T, want []treediff.Record, dir string) {
	t.Helper()
	for _, r := range want {
		if r.Type != treediff.File || r.Size == 0 {
			continue
		}
		at := filepath.Join(dir, r.Path)
		st, err := os.Stat(at)
		if err != nil || st.Size() >= r.Size {
			continue // same reports what is wrong
		}
		if err := errors.Join(os.Truncate(at, r.Size), os.Chtimes(at, time.Time{}, st.ModTime())); err != nil {
			t.Fatal(err)
		}
	}
}

// flatten makes a meta image that has the data blob at its address in the same file. fsck.erofs 1.9.4 needs that to read contents:
// it finds out where in the device an address lies, and then reads there in the meta image. The device stays for chunk maps, but
// its address in the device slot becomes 0, which means none.
func (i *instance) flatten(t *testing.T, name string) {
	t.Helper()
	const uniaddrAt, deviceAddress, blockBytes = 1024 + 128 + 68, 1 << 26, 4096
	flat, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer flat.Close()
	for _, part := range []struct {
		from   *os.File
		offset int64
	}{{i.meta, 0}, {i.data, deviceAddress * blockBytes}} {
		if _, err := io.Copy(io.NewOffsetWriter(flat, part.offset), io.NewSectionReader(part.from, 0, 1<<62)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := flat.WriteAt(make([]byte, 4), uniaddrAt); err != nil {
		t.Fatal(err)
	}
}

// diskUse compares what the image costs with the tar.
func (f *fidelity) diskUse(t *testing.T) {
	used := allocated(t, f.image.meta.Name()) + allocated(t, f.image.data.Name())
	tar := f.image.result.DiffBytes
	t.Logf("disk use: %d bytes, %.3f x the tar", used, float64(used)/float64(tar))
	if used > tar {
		t.Errorf("the image takes %d bytes of disk, its tar has %d", used, tar)
	}
}

// instance is a converted layer.
type instance struct {
	dir        string
	meta, data *os.File
	result     converter.Result
}

func newInstance(t *testing.T, disk, name string) instance {
	t.Helper()
	i := instance{dir: filepath.Join(disk, name)}
	if err := os.Mkdir(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if i.meta, err = os.Create(filepath.Join(i.dir, "meta.erofs")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.meta.Close() })
	if i.data, err = os.Create(filepath.Join(i.dir, "data")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.data.Close() })
	return i
}

func (i *instance) target() converter.Target {
	return converter.Target{ID: sha256.Sum256([]byte("fidelity")), Meta: i.meta, Data: i.data}
}

func (i *instance) fromTar(t *testing.T, r io.Reader) {
	t.Helper()
	start := time.Now()
	result, err := converter.FromTar(t.Context(), r, i.target(), converter.Limits{})
	t.Logf("converted in %v", time.Since(start))
	i.finish(t, result, err)
}

func (i *instance) finish(t *testing.T, result converter.Result, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	i.result = result
	for f, want := range map[*os.File]int64{i.meta: result.MetaBytes, i.data: result.DataBytes} {
		if st, err := f.Stat(); err != nil || st.Size() != want || want%4096 != 0 {
			t.Errorf("%s: %v bytes, the converter says %d (%v)", f.Name(), st.Size(), want, err)
		}
	}
}

// mount mounts the image for the duration of the test.
func (i *instance) mount(t *testing.T) string {
	t.Helper()
	target := filepath.Join(i.dir, "mnt")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	backend := file.New(file.Options{Mode: file.File})
	if err := backend.Mount(t.Context(), fsbackend.Image{Meta: i.meta.Name(), Data: i.data.Name()}, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := backend.Unmount(context.Background(), target); err != nil {
			t.Error(err)
		}
	})
	return target
}

// sameBytes expects both files of two instances to be the same.
func (i *instance) sameBytes(t *testing.T, other instance) {
	t.Helper()
	for _, name := range []string{"meta.erofs", "data"} {
		if a, b := sha256File(t, filepath.Join(i.dir, name)), sha256File(t, filepath.Join(other.dir, name)); a != b {
			t.Errorf("%s differs: %s and %s", name, a, b)
		}
	}
}

// same reports every difference between two trees.
func same(t *testing.T, want, got []treediff.Record, ignore ...treediff.Field) {
	t.Helper()
	const most = 40
	differences := treediff.Compare(want, got, ignore...)
	for i, d := range differences {
		if i == most {
			t.Errorf("and %d more differences", len(differences)-most)
			return
		}
		t.Error(d)
	}
}

func scan(t *testing.T, root string) []treediff.Record {
	t.Helper()
	start := time.Now()
	records, err := treediff.Scan(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("scanned %s in %v", filepath.Base(root), time.Since(start))
	return records
}

func openFile(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func sha256File(t *testing.T, name string) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, openFile(t, name)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
