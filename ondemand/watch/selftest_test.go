package watch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// TestSelfTest: a mount whose reads raise no events is found out, each time.
func TestSelfTest(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	data := filepath.Join(in.dir, blob.DataName)
	b, err := os.ReadFile(data)
	must(t, err)
	unwatched := filepath.Join(w.root, "copy")
	must(t, os.WriteFile(unwatched, b, 0o600))
	for range 2 {
		how, err := d.Mount(t.Context(), in.name)
		must(t, err)
		root, err := w.mountFiles(filepath.Join(in.dir, metaName), unwatched)
		must(t, err)
		if err := how.Check(root); err == nil || !strings.Contains(err.Error(), "zeros") {
			t.Errorf("got %v", err)
		}
	}
	in.reads(d.mount(in))
	// From now on it is known to work, and others read: nothing is refused. What the test has refused is no failure.
	if n := d.Totals().Requests.Failed; n > 0 {
		t.Errorf("%d requests have failed", n)
	}
}

// TestSelfTestOfWhatIsThere: a page that is here already, or that is a hole of its file, proves nothing bad.
func TestSelfTestOfWhatIsThere(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	present := w.usual(1)
	b, err := blob.Open(present.dir, present.id, blob.Options{})
	must(t, err)
	must(t, b.Write(0, present.files["a"]))
	must(t, b.Close())
	const hole = 65 << 20 // takes no place in the data blob
	other := tartest.File{Name: "b", Type: '0', Mode: 0o644, Data: []byte("b")}
	for _, in := range []*instance{
		present,
		w.layer(2, tartest.File{Name: "a", Type: '0', Mode: 0o644, Data: append(make([]byte, hole), "end"...)}),
		w.layer(3, tartest.File{Name: "a", Type: '0', Mode: 0o644, Data: make([]byte, hole)}, other),
		w.layer(4, tartest.File{Name: "empty", Type: '0', Mode: 0o644}),
	} {
		d.open(in)
		in.reads(d.mount(in))
	}
}
