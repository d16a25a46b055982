// Package cachefiles holds every read of a cache file of the kernel until its data is there. The kernel asks through /dev/cachefiles, which is
// how EROFS over fscache loads on demand (Linux 5.19 to 7.1, where it is configured); Serve answers. It knows neither EROFS nor a network:
// what a cache file holds is an Object's business.
//
//	Open ──► mount ──► OPEN: Lookup ──► READ: Fill, ReadAt, written to the cache file, answered ... CLOSE ──► Close
//	           │                ▲
//	           └── the kernel ──┘ in a worker; the mount waits for it
//
// A Device is the host's one cache: the kernel lets one process open it. It has an object for each cache file in use, which OPEN brings with
// a descriptor that data is written through, READs ask for ranges of, and CLOSE takes away.
//
// # Where the data comes from
//
// The kernel reads its own cache file and nothing else, so data that is present somewhere must be copied into it. An Object has it made
// available (Fill) and then hands it over (ReadAt), whether it lies in a file or in memory. ReadAt returns verified bytes or an error;
// nothing else is ever written. What has been written is the kernel's: it tells data from holes by the cache file itself, across restarts,
// and asks for holes only. So this package keeps no record of what is there.
//
// Just the pages that a READ asks for are written, of a long one the first megabyte: the kernel looks again and asks for what is missing. The
// end of the object is padded with zeros to a page.
//
// # Every message has an answer
//
// OPEN is answered by the goroutine that reads the device, with the size or an error, before anything else is read; so no READ of an object
// comes before its OPEN is answered. READs have goroutines of their own, up to 64 for each object, so an object whose data does not come
// does not hold up another one. A READ that fails, or whose time is over, is answered without data, which is how the kernel is told of an
// error: it asks once more, and then the reader gets EIO. When the first time took long, the second fails at once. That is also all that a
// full disk does. A message that cannot be understood is answered with an error as far as its number can be told.
//
// A READ of an object that this process does not have cannot be answered by a process without its descriptor, but for old kernels. It has
// been read from under a predecessor that had not ended; so the kernel is asked to show it again until it can be answered.
//
// # Takeover
//
// While any process holds the device open, requests wait in the kernel. When the last descriptor is closed, all of them, and all later ones,
// fail with EIO or ENOBUFS, also of data that is cached; it takes a new mount, in a new domain, to read again. So a keeper holds a copy of File.
// Nothing else survives: the descriptors of objects end with the process, and must, for the kernel gives out a new one only when the old one is closed. After
// Adopt the kernel shows everything again that had no answer: an OPEN with a new descriptor, and for a READ first another OPEN. A successor
// knows objects by the keys in their OPEN.
//
// Adopt must be called after the predecessor has ended, and not only closed its connections: while its descriptors are open an OPEN that
// it had read fails with EEXIST, and with it a mount.
//
// Kernels before 6.8 (6.1 and 6.6 without later updates) have no restore: ErrNoRestore. There, what a predecessor had read fails with EIO, and
// so does every READ of an object that was open, until it is closed and mounted anew; cached data stays readable while the device is
// held. New objects work.
//
// # What a caller must know
//
//   - Lookup, Fill and ReadAt must not need anything that reads a mount of this cache. Nor may this process start a program from such a
//     mount: until it has started the device is not read. The kernel's wait for OPEN cannot be ended, not even by a signal.
//   - The descriptors of objects must not get into another process: they keep the device busy, and half alive, after this one has ended. They
//     are never duplicated, and no program is started between the arrival of one and its close-on-exec flag.
//   - A Device that is open and not served makes every mount of its cache hang.
//   - When Serve ends, what has no answer is left to a successor. End it before what its Objects need, or readers get EIO.
package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const devicePath = "/dev/cachefiles"

// pageBytes is what all offsets and lengths are multiples of.
var pageBytes = os.Getpagesize()

// Object is what a cache file is to hold. It is used by several goroutines. One that is an io.Closer is closed after the last use of
// it for one OPEN.
type Object interface {
	// Size is how long it is. It never changes for the same keys: the kernel discards a cache file of another size, and takes one of the
	// same size for the same.
	Size() int64
	// Fill returns nil when all n bytes at off can be read by ReadAt. It gives up after a deadline of its own, and at once when ctx ends.
	Fill(ctx context.Context, off, n int64) error
	// ReadAt fills p with verified bytes that Fill has made available, or returns an error. It does not wait for a network.
	ReadAt(p []byte, off int64) (int, error)
}

// ErrUnknown is returned by a Lookup for keys that it does not know. Other errors are logged, too.
var ErrUnknown = errors.New("unknown object")

// Lookup returns the object of a cache file, by the keys that the filesystem has given it: for EROFS "erofs," with the domain_id or the
// fsid, and the fsid or the tag of a device. It is called by the goroutine that reads the device, so it is quick and waits for nothing:
// all mounts of the cache wait meanwhile.
//
// After a takeover it must know everything that is mounted, also what cannot be served any more: of that it returns an Object of the same size
// whose Fill fails. A reader that waits for an object that cannot be opened again waits until it can, because the kernel tries again and again.
// What is refused the first time, which for a device may come after the mount has returned, is lost to all mounts that use it then (ENOBUFS),
// until the last of them is unmounted.
type Lookup func(volume, cookie string) (Object, error)

// defaultDeadline is longer than the engine's, whose error says more.
const defaultDeadline = 75 * time.Second

// Options configure a Device. Adopt needs Lookup, and Dir for Sweep, and not what the kernel is told once.
type Options struct {
	// Dir is where the kernel keeps the cache. It exists, and belongs to this cache alone.
	Dir string
	// Tag names the cache in the kernel's messages; empty is "CacheFiles".
	Tag string
	// Limits are about free space.
	Limits Limits
	Lookup Lookup
	// Deadline is how long a READ may take before it fails, whatever Fill does; 0 is 75 s.
	Deadline time.Duration
	// Log gets what no caller is told: requests that fail, and why; nil discards.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Deadline <= 0 {
		o.Deadline = defaultDeadline
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Device is an open /dev/cachefiles with a cache. It is safe for concurrent use.
type Device struct {
	o       Options
	port    port
	device  *device // of a port that is one
	counts  counters
	buffers buffers

	mu      sync.Mutex
	current *session // of the running Serve
	served  bool     // Serve was called
	closed  bool
}

// Open makes the cache of this host. An error says what is in the way: see ErrNotSupported, ErrBusy and ErrUnfit.
func Open(o Options) (*Device, error) {
	d, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open the cache of %s: %w", devicePath, err)
	}
	return d, nil
}

func open(o Options) (*Device, error) {
	if _, err := bringUp(o); err != nil {
		return nil, err
	}
	if err := CheckDir(o.Dir); err != nil {
		return nil, err
	}
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, explainOpen(err)
	}
	p, err := newDevice(fd)
	if err != nil {
		return nil, err
	}
	d := newOn(p, o)
	if err := d.bind(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func newOn(p port, o Options) *Device {
	d := &Device{o: o.withDefaults(), port: p, buffers: newBuffers()}
	d.device, _ = p.(*device)
	return d
}

// bind makes a cache of an open device.
func (d *Device) bind() error {
	commands, err := bringUp(d.o)
	if err != nil {
		return err
	}
	last := len(commands) - 1
	for _, c := range commands[:last] {
		if err := d.command(c); err != nil {
			return fmt.Errorf("command %q: %w", c, err)
		}
	}
	if err := d.command(commands[last]); err != nil {
		return fmt.Errorf("command %q: %w", commands[last], explainBind(d.o.Dir, err))
	}
	return nil
}

// Adopt takes over a device from a keeper, after the process that served it has ended. The Device owns file from now on, also if there is an
// error, which closes it.
//
// If the error is ErrNoRestore there is a Device nevertheless. It serves new objects, and cached data of old ones can be read while it is
// open; see the package's documentation.
func Adopt(file *os.File, o Options) (*Device, error) {
	defer file.Close()
	d, err := adopt(file, o)
	if err != nil {
		return d, fmt.Errorf("adopt %s: %w", devicePath, err)
	}
	return d, nil
}

func adopt(file *os.File, o Options) (*Device, error) {
	// A copy, because only what is non-blocking when os.NewFile sees it can be waited for without a thread.
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy the descriptor: %w", err)
	}
	p, err := newDevice(fd)
	if err != nil {
		return nil, err
	}
	return takeOver(newOn(p, o))
}

// takeOver has the kernel show again what a predecessor has not answered.
func takeOver(d *Device) (*Device, error) {
	err := d.restore()
	if err != nil && !errors.Is(err, ErrNoRestore) {
		d.Close()
		return nil, err
	}
	return d, err
}

func (d *Device) restore() error {
	if err := d.command("restore"); err != nil {
		return fmt.Errorf("command %q: %w", "restore", explainRestore(err))
	}
	return nil
}

// command gives the kernel a command.
func (d *Device) command(c string) error {
	if err := checkCommand(c); err != nil {
		return err
	}
	return d.port.write([]byte(c))
}

// File returns the device, for a keeper to hold a copy. It stays the Device's. A copy must not be read, written to, or polled for reading.
func (d *Device) File() *os.File { return d.device.file }

// WantsCulling says whether less space is free than Limits.Run, after it was less than Limits.Cull. The kernel looks when data is written.
func (d *Device) WantsCulling() (bool, error) { return d.device.wantsCulling() }

// Close ends Serve, if it runs, and gives the device up. If nobody has a copy of it, the cache ends: requests that wait fail with EIO,
// and so does every later read of its mounts.
func (d *Device) Close() error {
	d.mu.Lock()
	s := d.current
	again := d.closed
	d.closed = true
	d.mu.Unlock()
	if s != nil {
		s.stop()
		<-s.ended
	}
	if again || d.device == nil {
		return nil
	}
	return d.device.file.Close()
}
