package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// carries imports the extents of in that are present here into the instance with the same bytes there, after change has changed them, and counts.
func (d *daemon) carries(in *instance, there *daemon, change func(i int, bytes []byte)) map[Imported]int {
	t := d.w.t
	t.Helper()
	r, err := d.Reader(in.name)
	must(t, err)
	defer r.Close()
	list, err := r.Extents(0, r.Count())
	must(t, err)
	counts := map[Imported]int{}
	for i, x := range list {
		if !r.Present(i) {
			continue
		}
		bytes := make([]byte, x.Length)
		must(t, r.Read(x, bytes))
		change(i, bytes)
		became, err := there.Import(in.name, x.Offset, x.Length, func() ([]byte, error) { return bytes, nil })
		must(t, err)
		counts[became]++
	}
	must(t, there.Flush(in.name))
	return counts
}

func unchanged(int, []byte) {}

// endless is a check that goes on for as long as the instance is open, so that one with all its data stays open.
func endless(ctx context.Context, _ ondemand.Pace, _ func(int, []byte) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestTransfer: what was read of a layer on one machine is read on another without asking for it; the rest is asked for.
func TestTransfer(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	da, db := a.daemon(), b.daemon()
	from, to := a.usual(1), b.usual(1)
	da.open(from)
	db.open(to)
	readA := func(root string) error {
		_, err := os.ReadFile(filepath.Join(root, "a"))
		return err
	}
	rootA, rootB := da.mount(from), db.mount(to)
	must(t, readA(rootA))
	eventually(t, "nothing more comes", func() bool { return da.report(from).Fill.Pending == 0 })
	events := da.report(from).Requests.Events
	counts := da.carries(from, db, unchanged)
	if n := da.report(from).Progress.PresentExtents; counts[Written] != n || n == 0 || len(counts) != 1 {
		t.Errorf("%d extents here, there %v", n, counts)
	}
	if now := da.report(from).Requests.Events; now != events {
		t.Errorf("%d events for the export", now-events)
	}
	if p := db.report(to).Progress; p.DurableExtents != counts[Written] {
		t.Errorf("%+v", p)
	}
	must(t, readA(rootB))
	if n := to.requests(); n != 0 {
		t.Errorf("%d requests for what was imported", n)
	}
	if again := da.carries(from, db, unchanged); again[Present] != counts[Written] || len(again) != 1 {
		t.Errorf("again: %v", again)
	}
	to.reads(rootB)
	if to.requests() == 0 {
		t.Error("the rest was not asked for")
	}
}

// TestTransferCompletes: a layer that was imported as a whole needs nobody any more.
func TestTransferCompletes(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	da, db := a.daemon(), b.daemon()
	from, to := a.usual(1), b.usual(1)
	from.check = endless // it stays open
	da.open(from)
	db.open(to)
	rootB := db.mount(to)
	from.reads(da.mount(from))
	if counts := da.carries(from, db, unchanged); counts[Wrong] > 0 {
		t.Errorf("%v", counts)
	}
	eventually(t, "it is closed", func() bool { return db.Idle() })
	if to.completed() != 1 || to.requests() > 0 {
		t.Errorf("completed %d times, %d requests", to.completed(), to.requests())
	}
	to.reads(rootB)
	if _, err := db.Import(to.name, 0, 1, nil); !errors.Is(err, ErrNotOpen) {
		t.Errorf("into a complete one: %v", err)
	}
	if _, err := db.Reader(to.name); !errors.Is(err, ErrNotOpen) {
		t.Errorf("from a complete one: %v", err)
	}
	must(t, db.Flush(to.name))
}

// TestTransferOfWrongBytes: what is wrong is not written, and is fetched when it is read.
func TestTransferOfWrongBytes(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	da, db := a.daemon(), b.daemon()
	from, to := a.usual(1), b.usual(1)
	from.check = endless
	da.open(from)
	db.open(to)
	from.reads(da.mount(from))
	counts := da.carries(from, db, func(i int, bytes []byte) {
		if i%2 == 1 {
			bytes[len(bytes)/2] ^= 4
		}
	})
	if counts[Wrong] == 0 || counts[Written] < counts[Wrong] || counts[Present] > 0 {
		t.Errorf("%v", counts)
	}
	if p := db.report(to).Progress; p.PresentExtents != counts[Written] {
		t.Errorf("%d of %d extents are present", p.PresentExtents, counts[Written])
	}
	r, err := da.Reader(from.name)
	must(t, err)
	defer r.Close()
	list, err := r.Extents(1, 2)
	must(t, err)
	unread := func() ([]byte, error) {
		t.Error("bytes were read that belong nowhere")
		return nil, nil
	}
	for _, x := range []blob.Extent{{Offset: list[0].Offset, Length: list[0].Length - 1}, {Offset: list[0].Offset + 1, Length: list[0].Length}, {Offset: 1 << 40, Length: 1}} {
		if became, err := db.Import(to.name, x.Offset, x.Length, unread); became != Wrong || err != nil {
			t.Errorf("%d bytes at %d: %v, %v", x.Length, x.Offset, became, err)
		}
	}
	cut := errors.New("cut off")
	if _, err := db.Import(to.name, list[0].Offset, list[0].Length, func() ([]byte, error) { return nil, cut }); !errors.Is(err, cut) {
		t.Errorf("no bytes: %v", err)
	}
	to.reads(db.mount(to))
}

// TestTransferOfOrphan: what has left the store is not exported and nothing is imported into it.
func TestTransferOfOrphan(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	d.mount(in)
	d.orphan(in)
	if _, err := d.Reader(in.name); !errors.Is(err, ErrNotOpen) {
		t.Errorf("export: %v", err)
	}
	if _, err := d.Import(in.name, 0, 1, nil); !errors.Is(err, ErrNotOpen) {
		t.Errorf("import: %v", err)
	}
}
