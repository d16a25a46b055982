package layerstore

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestWriteBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	w, err := createWriteBehind(path)
	must(t, err)
	var want []byte
	for i := range 5 {
		piece := bytes.Repeat([]byte{byte('a' + i)}, behindBytes/2+i)
		_, err := w.WriteAt(piece, int64(len(want)))
		must(t, err)
		want = append(want, piece...)
	}
	_, err = w.WriteAt([]byte("front"), 0) // what comes late goes to the disk with the sync
	must(t, err)
	copy(want, "front")
	must(t, w.Sync())
	must(t, w.Close())
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, error %v, want %d", len(got), err, len(want))
	}
}

// TestWriteBehindEnds: the goroutine ends with the file, however soon that is closed.
func TestWriteBehindEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	for i := range 500 {
		w, err := createWriteBehind(filepath.Join(dir, fmt.Sprint(i)))
		must(t, err)
		must(t, w.Close())
		if err := w.Close(); err == nil {
			t.Fatal("closed twice")
		}
	}
	// The last one may be about to return.
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
	}
}
