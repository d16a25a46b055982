package watch

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// TestServe: what is read of a mount is fetched, and no more than that.
func TestServe(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	d.open(in) // again is no error
	if d.Watches(in.name) || len(w.holds()) > 0 {
		t.Errorf("watched before it is mounted; held %q", w.holds())
	}
	root := d.mount(in)
	if !d.Watches(in.name) || len(w.holds()) != 1 || d.Idle() {
		t.Errorf("watched: %v, held %q", d.Watches(in.name), w.holds())
	}
	if n := in.requests(); n > 0 {
		t.Errorf("%d requests for a mount", n)
	}
	if got, err := os.ReadFile(filepath.Join(root, "a")); err != nil || !bytes.Equal(got, in.files["a"]) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	r := d.report(in)
	if r == nil || r.Progress.PresentBytes < 5000 || r.Progress.PresentBytes > 600_000 || r.Requests.Events == 0 || r.Fill.FetchedBytes == 0 || r.Orphan != "" {
		t.Errorf("%+v", r)
	}
	cells, err := d.Map(in.name, 10)
	if err != nil || len(cells) != 10 || cells[0] == 0 || cells[9] != 0 {
		t.Errorf("map %v, %v", cells, err)
	}
	second := d.mount(in) // another superblock
	f, err := os.Open(filepath.Join(second, "large"))
	must(t, err)
	defer f.Close()
	p := make([]byte, 4096)
	if _, err := f.ReadAt(p, 900_000); err != nil || !bytes.Equal(p, in.files["large"][900_000:904_096]) {
		t.Errorf("other bytes, %v", err)
	}
	if connected, since := d.Keeper(); !connected || since.IsZero() {
		t.Errorf("keeper: %v since %v", connected, since)
	}
}

// TestComplete: when all data are here nobody is needed any more, and nothing is kept but the counts.
func TestComplete(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	root := d.mount(in)
	in.reads(root)
	eventually(t, "it is closed", func() bool { return d.Idle() })
	if in.completed() != 1 || len(w.holds()) > 0 || d.Watches(in.name) {
		t.Errorf("completed %d times, held %q", in.completed(), w.holds())
	}
	total := d.Totals()
	if total.Requests.Events == 0 || total.Fill.FilledBytes != 1<<20+5000 {
		t.Errorf("%+v", total)
	}
	d.stop()
	w.killKeeper()
	in.reads(root)
	again, err := w.mountFiles(filepath.Join(in.dir, metaName), filepath.Join(in.dir, blob.DataName))
	must(t, err)
	in.reads(again)
}

// TestCompleteBeforeItIsChecked: an instance whose data are here and that is not checked yet stays open, and mounts need nobody.
func TestCompleteBeforeItIsChecked(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	checked := make(chan error)
	in.check = func(ctx context.Context, _ ondemand.Pace, _ func(int, []byte) error) error {
		select {
		case err := <-checked:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.open(in)
	root := d.mount(in)
	in.reads(root)
	eventually(t, "it is complete", func() bool { return len(w.holds()) == 0 && in.completed() == 1 })
	if d.report(in) == nil {
		t.Fatal("it is closed")
	}
	if how, err := d.Mount(t.Context(), in.name); how != nil || err != nil || d.Watches(in.name) {
		t.Errorf("a mount needs somebody: %v, %v; watched %v", how, err, d.Watches(in.name))
	}
	checked <- nil
	eventually(t, "it is closed", func() bool { return d.Idle() })
}

// TestCheckCompletes: the check of the whole layer brings what nobody has read.
func TestCheckCompletes(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	in.check = func(ctx context.Context, _ ondemand.Pace, put func(int, []byte) error) error {
		_, err := converter.CheckTar(ctx, bytes.NewReader(in.data), in.index, converter.Limits{}, put)
		return err
	}
	d.open(in)
	eventually(t, "it is closed", func() bool { return d.Idle() })
	if total := d.Totals().Fill; in.completed() != 1 || total.BackgroundBytes != 1<<20+5000 || in.requests() > 0 {
		t.Errorf("completed %d times, %+v", in.completed(), total)
	}
}

// TestClosed: a daemon that stops opens nothing.
func TestClosed(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	if _, err := d.Mount(t.Context(), in.name); err == nil || !strings.Contains(err.Error(), in.name) {
		t.Errorf("mount of what is not open: %v", err)
	}
	if _, err := d.Map(in.name, 3); err == nil {
		t.Error("map of what is not open")
	}
	d.stop()
	if err := d.Open(in.in(in.dir)); err == nil {
		t.Error("opened")
	}
	must(t, d.Close()) // again
}

// TestOpenNothing: a directory without the files of an instance.
func TestOpenNothing(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	must(t, os.Truncate(filepath.Join(in.dir, blob.ExtentsName), 10))
	if err := d.Open(in.in(in.dir)); !errors.Is(err, blob.ErrUnusable) || !strings.Contains(err.Error(), in.name) {
		t.Errorf("got %v", err)
	}
	must(t, os.Remove(filepath.Join(in.dir, blob.DataName)))
	if err := d.Open(in.in(in.dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if !d.Idle() {
		t.Errorf("%+v", d.Reports())
	}
}

// TestOpenOfOtherFiles: an instance that is made anew has other files, which are served, whatever has become of the first.
func TestOpenOfOtherFiles(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	root := d.mount(in)
	must(t, os.Rename(in.dir, filepath.Join(w.root, "orphans", "lost")))
	in.make(filepath.Join(w.root, "layers", in.name))
	if err := d.Open(in.in(in.dir)); err != nil {
		t.Fatal(err)
	}
	again := d.mount(in)
	in.reads(again)
	in.reads(root)
}
