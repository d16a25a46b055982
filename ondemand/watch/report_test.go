package watch

import (
	"os"
	"reflect"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// TestTotals: every count of what the kernel asked for is part of the sum.
func TestTotals(t *testing.T) {
	var r Report
	requests := reflect.ValueOf(&r.Requests).Elem()
	counts := 0
	for i := range requests.NumField() {
		if f := requests.Field(i); f.Kind() == reflect.Uint64 {
			f.SetUint(uint64(i + 1))
			counts++
		}
	}
	if counts < 7 {
		t.Fatalf("%d counts", counts)
	}
	var sum Totals
	sum.add(r)
	sum.add(r)
	got := reflect.ValueOf(sum.Requests)
	for i := range got.NumField() {
		if f := got.Field(i); f.Kind() == reflect.Uint64 && f.Uint() != 2*uint64(i+1) {
			t.Errorf("%s: %d, want %d", got.Type().Field(i).Name, f.Uint(), 2*(i+1))
		}
	}
}

// TestFilesOfALayer: a layer that is watched has no more files open than the limit was raised for.
func TestFilesOfALayer(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	first, second := w.usual(1), w.usual(2)
	d.open(first)
	d.mount(first) // so that what all layers share is open
	before := openFiles(t)
	d.open(second)
	d.mount(second)
	eventually(t, "there is room for an event besides the files of a layer", func() bool { // one of the self-test may just be closed
		n := openFiles(t) - before
		return n > 0 && n < fanotify.FilesPerGroup
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}
