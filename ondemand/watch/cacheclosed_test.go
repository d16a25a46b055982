package watch

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestCacheObjectOfClosing: who reads while a layer that has become complete is being closed gets its data, and no error.
func TestCacheObjectOfClosing(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	o := d.dataOf(t, in)
	d.Watcher.mu.Lock()
	e := d.current[in.name]
	d.Watcher.mu.Unlock()
	wantAll(t, in, o)
	eventually(t, "it is complete and closed", func() bool { return d.report(in) == nil })
	d.Watcher.mu.Lock()
	d.current[in.name] = e // as it is until it is forgotten
	d.Watcher.mu.Unlock()
	defer d.forget(e)
	wantAll(t, in, o)
	wantAll(t, in, d.dataOf(t, in))
}

// TestCacheObjectOfWatched: a data blob that is watched by fanotify, too, because the mode was changed, is read through the file that was open
// before: reads through any other would have to wait for an answer of this process, which nobody gives when it ends.
func TestCacheObjectOfWatched(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	defer in.block()()
	d.open(in)
	d.mount(in)
	d.Watcher.mu.Lock()
	e := d.current[in.name]
	d.Watcher.mu.Unlock()
	if from, err := d.dataOf(t, in).(*dataObject).find(); err != nil || from.by != e || from.file != e.data {
		t.Errorf("it is read from %+v, %v", from, err)
	}
}

// TestCacheObjectOfReplaced: what is described as complete, and was replaced by files that miss data before they are opened, is not read.
func TestCacheObjectOfReplaced(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	wantAll(t, in, d.dataOf(t, in))
	eventually(t, "it is complete and closed", func() bool { return d.report(in) == nil })
	o := d.dataOf(t, in)
	describe := d.o.Describe
	d.o.Describe = func(dir string) (Layer, error) {
		layer, err := describe(dir)
		must(t, os.Rename(in.dir, filepath.Join(w.root, "orphans", "1")))
		in.make(in.dir)
		return layer, err
	}
	p := make([]byte, 4096)
	if _, err := o.ReadAt(p, 0); err == nil && bytes.Equal(p, make([]byte, 4096)) {
		t.Error("what is missing was read")
	}
}
