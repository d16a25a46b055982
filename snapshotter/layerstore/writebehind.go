package layerstore

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// behindBytes is how much of a file is written before the disk is set to work on it. Large enough for the filesystem to allocate in
// one piece.
const behindBytes = 8 << 20

// writeBytes is the largest write. Filesystems with large folios take one as a piece of contiguous memory, and large pieces are slow to
// get, at worst from the host of a virtual machine.
const writeBytes = 128 << 10

// writeBehind is a file that the disk writes while more of it is produced, so that the sync at the end waits for the last part only.
// For one writer, from the front to the back for the most part.
type writeBehind struct {
	*os.File
	from, to int64 // written, and not yet handed to the disk; what is written again before from waits for the sync
	ready    chan span
	ended    sync.WaitGroup
}

// span is a part of a file.
type span struct{ offset, length int64 }

// createWriteBehind makes a file, which must not exist. Its goroutine ends with Sync or Close.
func createWriteBehind(path string) (*writeBehind, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	ready := make(chan span, 1)
	w := &writeBehind{File: f, ready: ready}
	w.ended.Go(func() {
		for s := range ready {
			// Only a beginning: an error comes back from the sync, and a filesystem that cannot do it loses nothing but time.
			_ = unix.SyncFileRange(int(f.Fd()), s.offset, s.length, unix.SYNC_FILE_RANGE_WRITE)
		}
	})
	return w, nil
}

// WriteAt implements io.WriterAt.
func (w *writeBehind) WriteAt(b []byte, at int64) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = w.File.WriteAt(b[n:min(n+writeBytes, len(b))], at+int64(n))
		n += m
	}
	w.to = max(w.to, at+int64(n))
	if w.to-w.from >= behindBytes {
		select {
		case w.ready <- span{w.from, w.to - w.from}:
			w.from = w.to
		default: // the disk is busy with the part before; the next one will be larger
		}
	}
	return n, err
}

// Sync writes what is left, and the file's length and blocks.
func (w *writeBehind) Sync() error {
	w.stop()
	return w.File.Sync()
}

// Close ends the goroutine and closes the file. It may be called again.
func (w *writeBehind) Close() error {
	w.stop()
	return w.File.Close()
}

func (w *writeBehind) stop() {
	if w.ready != nil {
		close(w.ready)
		w.ready = nil
	}
	w.ended.Wait()
}
