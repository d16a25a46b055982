package cachefiles

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is a port whose other side is scripted: it does what fs/cachefiles does, as far as a daemon can tell, and notes what a daemon must
// not do. Descriptors of objects are real, of files without a name.
type kernel struct {
	t       testing.TB
	old     bool // has no restore, answers any request by its number, and uses a number again at once
	wake    chan struct{}
	onWrite func(command string) error // of a test, before anything else; nil: nothing

	mu            sync.Mutex
	blocks, files Limits
	dir, tag      string
	ready         bool
	commands      []string
	requests      map[uint32]*request
	last          uint32 // number of a request
	lastObject    uint32
	raw           [][]byte // messages that are read before any other
	byFD          map[int]*cacheFile
	noFiles       error                               // why no descriptor can be made
	refuse        func(off int64, n int) (int, error) // of pwrite: how many bytes it says were taken, and an error
	reads         int
	faults        []string
}

// request is what a process waits for in the kernel.
type request struct {
	id, opcode uint32
	file       *cacheFile
	off, n     uint64
	fresh      bool // not read, or restored
	err        error
	done       chan struct{}
}

type fileState int

const (
	fileClosed fileState = iota
	fileOpening
	fileReopening
	fileOpen
)

// cacheFile is a cache file, and the object that is made for it.
type cacheFile struct {
	volume, cookie string
	state          fileState
	id             uint32
	fd             int
	size           int64
	pages          map[int64][]byte // that are data and not holes
}

func newKernel(t testing.TB) *kernel {
	return &kernel{
		t: t, wake: make(chan struct{}, 1), blocks: kernelLimits, files: kernelLimits,
		requests: map[uint32]*request{}, byFD: map[int]*cacheFile{},
	}
}

// newBound is a kernel that has a cache.
func newBound(t testing.TB) *kernel {
	k := newKernel(t)
	k.ready = true
	return k
}

func (k *kernel) fault(format string, args ...any) {
	k.faults = append(k.faults, fmt.Sprintf(format, args...))
}

// check reports what the daemon did wrong.
func (k *kernel) check() {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.faults {
		k.t.Error(f)
	}
}

func (k *kernel) wakeUp() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *kernel) kick() { k.wakeUp() }

// wait wakes up when something changes that the kernel tells, and never else, as the runtime's poller does.
func (k *kernel) wait(ctx context.Context, drain func()) error {
	for {
		drain()
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		}
	}
}

func (k *kernel) read(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reads++
	if len(k.raw) > 0 {
		n := copy(p, k.raw[0])
		k.raw = k.raw[1:]
		return n, nil
	}
	if !k.ready {
		return 0, nil
	}
	r := k.selectRequest()
	if r == nil {
		return 0, nil
	}
	r.fresh = false
	f := r.file
	m := message{id: r.id, opcode: r.opcode, fd: noFile, off: r.off, n: r.n}
	if r.opcode == opOpen {
		if err := k.makeFD(f); err != nil {
			f.state = fileClosed
			k.finish(r, err)
			return 0, err
		}
		m.volume, m.cookie, m.fd = f.volume, f.cookie, f.fd
	}
	m.object = f.id
	n := copy(p, m.encode())
	if r.opcode == opClose {
		k.finish(r, nil)
	}
	return n, nil
}

// selectRequest returns the next message to show. What is asked of an object without a descriptor has it opened first.
func (k *kernel) selectRequest() *request {
	for _, id := range slices.Sorted(maps.Keys(k.requests)) {
		r := k.requests[id]
		switch {
		case !r.fresh:
		case r.opcode != opRead || r.file.state == fileOpen:
			return r
		case k.old:
			k.finish(r, unix.EIO)
		case r.file.state == fileClosed:
			r.file.state = fileReopening
			k.enqueue(&request{opcode: opOpen, file: r.file})
		}
	}
	return nil
}

func (k *kernel) makeFD(f *cacheFile) error {
	if f.fd != 0 {
		return unix.EEXIST
	}
	if k.noFiles != nil {
		return k.noFiles
	}
	fd, err := unix.MemfdCreate("cachefiles", 0)
	if err != nil {
		return err
	}
	k.lastObject++
	f.fd, f.id = fd, k.lastObject
	k.byFD[fd] = f
	return nil
}

// finish answers a request. It is called with mu held, as all that follows.
func (k *kernel) finish(r *request, err error) {
	delete(k.requests, r.id)
	r.err = err
	close(r.done)
}

func (k *kernel) enqueue(r *request) *request {
	r.done, r.fresh = make(chan struct{}), true
	if k.old {
		for r.id = 0; k.requests[r.id] != nil; r.id++ {
		}
	} else {
		r.id = k.last
		k.last++
	}
	k.requests[r.id] = r
	k.wakeUp()
	return r
}

func (k *kernel) write(b []byte) error {
	command, args, _ := strings.Cut(string(b), " ")
	if k.onWrite != nil {
		if err := k.onWrite(string(b)); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.commands = append(k.commands, string(b))
	switch command {
	case "dir":
		k.dir = args
	case "tag":
		k.tag = args
	case "bind":
		if args != "ondemand" || k.dir == "" {
			return unix.EINVAL
		}
		if k.ready {
			return unix.EBUSY
		}
		k.ready = true
	case "copen":
		return k.copen(args)
	case "restore":
		if k.old || !k.ready {
			return unix.EOPNOTSUPP
		}
		for _, r := range k.requests {
			r.fresh = true
		}
		k.wakeUp()
	case "cull", "inuse":
		return nil
	default:
		return k.limit(command, args)
	}
	return nil
}

func (k *kernel) limit(command, args string) error {
	l := &k.blocks
	if command[0] == 'f' {
		l = &k.files
	}
	percent, ok := strings.CutSuffix(args, "%")
	n, err := strconv.Atoi(percent)
	if !ok || err != nil {
		return unix.EINVAL
	}
	to := *l
	switch command[1:] {
	case "run":
		to.Run = n
	case "cull":
		to.Cull = n
	case "stop":
		to.Stop = n
	default:
		return unix.EOPNOTSUPP
	}
	if to.check() != nil {
		return unix.EINVAL
	}
	*l = to
	return nil
}

func (k *kernel) copen(args string) error {
	var id uint32
	var size int64
	if _, err := fmt.Sscanf(args, "%d,%d", &id, &size); err != nil {
		return unix.EINVAL
	}
	r := k.requests[id]
	if r == nil || !k.old && (r.opcode != opOpen || r.file.fd == 0) {
		return unix.EINVAL
	}
	if size < 0 {
		if r.opcode == opOpen {
			r.file.state = fileClosed
		}
		k.finish(r, unix.Errno(-size))
		return nil
	}
	r.file.size, r.file.state = size, fileOpen
	k.finish(r, nil)
	k.wakeUp()
	return nil
}

func (k *kernel) isObject(fd int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.byFD[fd] != nil
}

func (k *kernel) hide(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	return err
}

func (k *kernel) pwrite(fd int, p []byte, off int64) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.byFD[fd]
	switch page := int64(pageBytes); {
	case f == nil || f.state != fileOpen:
		k.fault("write to descriptor %d, which is of no open object", fd)
		return 0, unix.EBADF
	case off%page != 0, int64(len(p))%page != 0, uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(page) != 0, len(p) == 0:
		k.fault("write of %d bytes at %d from %p", len(p), off, p)
		return 0, unix.EINVAL
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		k.fault("descriptor %d is not close-on-exec: %v", fd, err)
	}
	n := len(p)
	var err error
	if k.refuse != nil {
		n, err = k.refuse(off, n)
	}
	for at := 0; at+pageBytes <= min(n, len(p)); at += pageBytes {
		f.pages[off+int64(at)] = slices.Clone(p[at : at+pageBytes])
	}
	if err != nil {
		return -1, err
	}
	return n, nil
}

func (k *kernel) complete(fd int, id uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, r := k.byFD[fd], k.requests[id]
	if f == nil {
		k.fault("READ answered by descriptor %d, which is of no object", fd)
		return unix.EBADF
	}
	if r == nil || !k.old && (r.opcode != opRead || r.file != f) {
		return unix.EINVAL
	}
	if r.fresh && k.old {
		k.fault("request %d answered before it was read", id)
	}
	k.finish(r, nil)
	return nil
}

func (k *kernel) closeFile(fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.byFD[fd]
	if f == nil {
		k.fault("descriptor %d closed, which is of no object", fd)
		return unix.EBADF
	}
	delete(k.byFD, fd)
	f.fd, f.state = 0, fileClosed
	for _, r := range k.requests {
		switch {
		case r.file != f || r.fresh && !k.old:
		case r.opcode == opOpen && !r.fresh:
			k.fault("descriptor closed before OPEN %d was answered", r.id)
			k.finish(r, unix.EBADF)
		case r.opcode == opRead && k.old:
			k.finish(r, unix.EIO)
		}
	}
	return unix.Close(fd)
}
