package cachefiles

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What processes do that mount and read, on the other side of the kernel.

func (k *kernel) file(volume, cookie string) *cacheFile {
	return &cacheFile{volume: volume, cookie: cookie, pages: map[int64][]byte{}}
}

// ask has the daemon asked, without waiting.
func (k *kernel) ask(r *request) *request {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.opcode == opOpen {
		r.file.state = fileOpening
	}
	return k.enqueue(r)
}

// patience is how long a test waits for what should happen at once.
const patience = 20 * time.Second

func (k *kernel) await(r *request) error {
	select {
	case <-r.done:
		return r.err
	case <-time.After(patience):
		k.t.Errorf("request %d of kind %d has no answer", r.id, r.opcode)
		return context.DeadlineExceeded
	}
}

// open is a mount.
func (k *kernel) open(volume, cookie string) (*cacheFile, error) {
	f := k.file(volume, cookie)
	return f, k.await(k.ask(&request{opcode: opOpen, file: f}))
}

// withdraw is an umount: what is waited for fails, but for old kernels.
func (k *kernel) withdraw(f *cacheFile) error {
	k.mu.Lock()
	for _, r := range k.requests {
		if r.file == f && !k.old {
			k.finish(r, unix.EIO)
		}
	}
	if f.state != fileOpen {
		k.mu.Unlock()
		return nil
	}
	r := k.enqueue(&request{opcode: opClose, file: f})
	k.mu.Unlock()
	return k.await(r)
}

// readAt is a read of a file of the mount: pages that are holes are asked for, and once more if they still are.
func (k *kernel) readAt(f *cacheFile, off, n int64) ([]byte, error) {
	var b []byte
	for tries := 0; int64(len(b)) < n; {
		at := off + int64(len(b))
		k.mu.Lock()
		page, ok := f.pages[at]
		k.mu.Unlock()
		if ok {
			b = append(b, page...)
			tries = 0
			continue
		}
		if tries++; tries > 2 {
			return b, unix.EIO
		}
		if err := k.await(k.ask(&request{opcode: opRead, file: f, off: uint64(at), n: uint64(k.hole(f, at, off+n) - at)})); err != nil {
			return b, err
		}
	}
	return b[:n], nil
}

// hole returns where the hole at off ends, which may be at most.
func (k *kernel) hole(f *cacheFile, off, most int64) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	for ; off < most; off += int64(pageBytes) {
		if f.pages[off] != nil {
			break
		}
	}
	return min(off, most)
}

func (k *kernel) waiting() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.requests)
}

func (k *kernel) send(b []byte) {
	k.mu.Lock()
	k.raw = append(k.raw, b)
	k.mu.Unlock()
	k.wakeUp()
}

// openFiles counts the descriptors of the process.
func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
