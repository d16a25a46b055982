package lazytorture

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readerEnv has what a reader reads.
const readerEnv = "LAZYTORTURE_READER"

// reader is a process that reads all of a mounted layer once, in its own way. It says how long its threads have waited for what they
// wait for now, "waits MILLISECONDS READS", again and again; which reads took long or failed, "slow BEGIN END FAILED"; what is "wrong"; and
// "done READS" in the end.
type reader struct {
	root string
	seed uint64

	threads []thread
	reads   atomic.Int64
}

// thread is one that reads.
type thread struct{ since atomic.Int64 } // when its read began, in nanoseconds; 0: it does not read

// ways are how readers read. All but alone are ways to read beside others. open reads metadata only.
var ways = map[string]struct {
	threads int
	read    func(*reader)
}{
	"random":     {4, (*reader).random},
	"mmap":       {2, (*reader).mmap},
	"sequential": {2, (*reader).sequential},
	"alone":      {2, (*reader).alone},
	"exec":       {2, (*reader).exec},
	"open":       {1, func(r *reader) { r.openAll(unix.FADV_RANDOM) }},
}

const (
	sayEvery = 500 * time.Millisecond
	// slow is a read that says how long it took.
	slow = 500 * time.Millisecond
)

func read() error {
	r := &reader{}
	var way string
	if _, err := fmt.Sscan(os.Getenv(readerEnv), &way, &r.root, &r.seed); err != nil {
		return err
	}
	// A thread that waits in a page fault keeps its processor, and cannot be stopped for a collection of garbage.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
	runtime.GOMAXPROCS(16)
	r.threads = make([]thread, ways[way].threads)
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(sayEvery):
				fmt.Println("waits", r.waits().Milliseconds(), r.reads.Load())
			}
		}
	}()
	ways[way].read(r)
	close(ended)
	fmt.Println("done", r.reads.Load())
	return nil
}

// waits is for how long the read that began first has waited.
func (r *reader) waits() (longest time.Duration) {
	for i := range r.threads {
		if since := r.threads[i].since.Load(); since > 0 {
			longest = max(longest, time.Since(time.Unix(0, since)))
		}
	}
	return longest
}

// timed does a read in a thread, and counts its errors. what names it.
func (r *reader) timed(i int, what string, off int64, do func() error) {
	began := time.Now()
	r.threads[i].since.Store(began.UnixNano())
	err := do()
	r.threads[i].since.Store(0)
	r.reads.Add(1)
	failed := isFailure(err)
	if failed || time.Since(began) >= slow {
		fmt.Println("slow", began.UnixMilli(), time.Now().UnixMilli(), failed, what, off)
	}
	if err != nil && !failed {
		fmt.Println("wrong", what, off, err)
	}
}

// isFailure says that the kernel cannot have what is read. Of a cache that was lost it says ENOBUFS at times.
func isFailure(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOBUFS) }

// inThreads has n things done by all threads, in the order in which they are.
func (r *reader) inThreads(n int, do func(thread, i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for t := range r.threads {
		all.Go(func() {
			runtime.LockOSThread()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(t, i)
			}
		})
	}
	all.Wait()
}

// shuffled are all pages of all files.
func (r *reader) shuffled() (places []place) {
	for file := range files {
		for n := 0; n*pageBytes < fileBytes(r.seed, file); n++ {
			places = append(places, place{file, n})
		}
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	return places
}

func (r *reader) openAll(advice int) []*os.File {
	all := make([]*os.File, files)
	for i := range all {
		f, err := os.Open(filepath.Join(r.root, fileName(i)))
		if err != nil {
			fmt.Println("wrong", fileName(i), 0, err)
			os.Exit(1)
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, advice) // advice
		all[i] = f
	}
	return all
}

// random reads pages in any order. It drops half of them from the page cache, so that they are asked for again, and reads some of those again.
func (r *reader) random() {
	open := r.openAll(unix.FADV_RANDOM)
	places := r.shuffled()
	r.inThreads(len(places), func(t, i int) {
		at := places[i]
		for {
			r.readPage(t, open[at.file], at)
			if rand.IntN(2) == 0 {
				return
			}
			_ = unix.Fadvise(int(open[at.file].Fd()), int64(at.page*pageBytes), pageBytes, unix.FADV_DONTNEED)
			if rand.IntN(4) != 0 {
				return
			}
		}
	})
}

func (r *reader) readPage(t int, f *os.File, at place) {
	var p, want [pageBytes]byte
	off := int64(at.page * pageBytes)
	r.timed(t, fileName(at.file), off, func() error {
		n, err := readAt(f, p[:], off)
		if err == nil {
			err = same(p[:n], want[:pageOf(r.seed, at, &want)])
		}
		return err
	})
}

// readAt reads up to the end of p, or of the file. A read that fails after its first pages returns those, and only the next one fails.
func readAt(f *os.File, p []byte, off int64) (n int, err error) {
	n, err = f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// mmap touches pages in any order.
func (r *reader) mmap() {
	open := r.openAll(unix.FADV_NORMAL)
	maps := make([][]byte, files)
	for i, f := range open {
		m, err := unix.Mmap(int(f.Fd()), 0, fileBytes(r.seed, i), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			fmt.Println("wrong", fileName(i), 0, err)
			os.Exit(1)
		}
		maps[i] = m
	}
	places := r.shuffled()
	r.inThreads(len(places), func(t, i int) {
		at := places[i]
		var want [pageBytes]byte
		off, n := at.page*pageBytes, pageOf(r.seed, at, &want)
		m := maps[at.file][off : off+n]
		r.timed(t, fileName(at.file), int64(off), func() error {
			return mapped(func() error { return same(m, want[:n]) })
		})
		if rand.IntN(2) == 0 {
			_ = unix.Madvise(m, unix.MADV_DONTNEED)
			_ = unix.Fadvise(int(open[at.file].Fd()), int64(off), pageBytes, unix.FADV_DONTNEED)
		}
	})
}

// mapped does something with mapped pages. The kernel answers with a signal if it cannot have one.
func mapped(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = unix.EIO
		}
	}()
	return do()
}

// sequential reads file after file from beginning to end, programs too, without what can be dropped from the page cache.
func (r *reader) sequential() {
	r.inOrder(func(f *os.File, _ int) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) })
}

// alone does so while nobody else reads: then everything can be dropped, and what is read was asked for.
func (r *reader) alone() { r.inOrder(uncache) }

// uncache drops a file from the page cache. The kernel may look at one of the pages just now, and keeps it then.
func uncache(f *os.File, size int) error {
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(m)
	resident := make([]byte, (size+pageBytes-1)/pageBytes)
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size), uintptr(unsafe.Pointer(&resident[0]))); e != 0 {
			return os.NewSyscallError("mincore", e)
		}
		n := bytes.Count(resident, []byte{1})
		if n == 0 {
			return nil
		}
		if time.Since(began) > patient/4 {
			return fmt.Errorf("%d pages stay in the page cache", n)
		}
	}
}

// inOrder reads everything, after each file was dropped.
func (r *reader) inOrder(drop func(f *os.File, size int) error) {
	r.inThreads(files+programs, func(t, i int) {
		name, want := "", program()
		if i < files {
			name, want = fileName(i), contents(r.seed, i)
		} else {
			name = programName(i - files)
		}
		f, err := os.Open(filepath.Join(r.root, name))
		if err != nil {
			r.timed(t, name, 0, func() error { return err })
			return
		}
		defer f.Close()
		r.timed(t, name, 0, func() error { return drop(f, len(want)) })
		p := make([]byte, 128<<10)
		for off := 0; off < len(want); off += len(p) {
			r.timed(t, name, int64(off), func() error {
				n, err := readAt(f, p, int64(off))
				if err == nil {
					err = same(p[:n], want[off:min(off+len(p), len(want))])
				}
				return err
			})
		}
	})
}

// same is an error unless both are equal.
func same(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("%d bytes, want %d; they differ from the %dth on; %d are zero, want %d",
		len(got), len(want), at, bytes.Count(got, []byte{0}), bytes.Count(want, []byte{0}))
}

// exec runs programs of the layer, which read files of the layer and themselves, and knows what they should say.
func (r *reader) exec() {
	r.inThreads(2*programs, func(t, i int) {
		path := filepath.Join(r.root, programName(i%programs))
		file := rand.IntN(files)
		want := fmt.Sprintf("%x", sha256.Sum256(contents(r.seed, file)))
		r.timed(t, programName(i%programs), 0, func() error { return runs(want, path, "sha256sum", filepath.Join(r.root, fileName(file))) })
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		r.timed(t, programName(i%programs), 1, func() error { return runs(want, path, "sha256sum", filepath.Join(r.root, fileName(file))) })
	})
}

// program is the machine's own busybox, from which the layers' were made.
var program = sync.OnceValue(func() []byte {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil
	}
	b, _ := os.ReadFile(path) // what is missing will differ
	return b
})

// startFailed tells why a program got a SIGSEGV. That is what the kernel does when it cannot read a page of one that it is just starting, to
// clear the rest of it; but wrong bytes would do it, too, and those are still in memory.
func startFailed(path string) error {
	got, err := os.ReadFile(path)
	if err == nil {
		err = same(got, program())
	}
	return cmp.Or(err, error(unix.EIO))
}

// runs runs a program, which should say want.
func runs(want string, command ...string) error {
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case isFailure(err), strings.Contains(string(out), "Input/output error"), strings.Contains(string(out), "No buffer space"):
		return unix.EIO
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGBUS:
		return unix.EIO // of a page of the program
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGSEGV:
		return startFailed(command[0])
	case err != nil:
		return fmt.Errorf("%v: %s", err, out)
	case !strings.HasPrefix(string(out), want):
		return fmt.Errorf("%q, want %s", out, want)
	}
	return nil
}
