package cachefiles

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// object is a cache file that the kernel has in use, from OPEN to the close of its descriptor.
type object struct {
	s              *session
	id             uint32 // unique while fd is open
	fd             int
	volume, cookie string
	source         Object
	size           int64

	// Guarded by the session's mu.
	reads  map[uint32]*read // that have no answer, by number
	queue  []*read          // of those, the ones that no goroutine has begun with
	active int              // goroutines that use fd and source
	gone   bool             // the kernel has closed it
	failed map[int64]failed // READs that were slow to fail, by offset
	said   time.Time        // when an error was logged last
	silent int              // errors since then
}

// open answers an OPEN.
func (s *session) open(m message) {
	source, err := s.d.o.Lookup(m.volume, m.cookie)
	if err != nil {
		s.notFound(m, err)
		return
	}
	o := &object{s: s, id: m.object, fd: m.fd, volume: m.volume, cookie: m.cookie, source: source, size: source.Size(), reads: map[uint32]*read{}}
	if o.size < 0 || o.size > math.MaxInt64-int64(pageBytes) {
		err = fmt.Errorf("its size is %d", o.size)
	} else {
		err = s.add(o)
	}
	if err != nil {
		o.closeSource()
		s.openFailed(m, unix.EIO, err)
		return
	}
	if err := s.d.port.write([]byte(copen(m.id, o.size))); err != nil {
		// The mount is gone, or has been answered: nothing will be asked of this object.
		s.mu.Lock()
		delete(s.objects, o.id)
		s.mu.Unlock()
		o.release()
		s.d.counts.openFailed.Add(1)
		s.logOpen(m, fmt.Errorf("the kernel does not take the answer: %w", err))
	}
}

const (
	// The kernel asks once more for what has failed, before the reader gets EIO. A READ that took slowFailure or longer has the next one at
	// its offset fail at once, if that comes within repeatedWithin: so a reader waits for one deadline and not for two.
	slowFailure    = 500 * time.Millisecond
	repeatedWithin = 2 * time.Second
	// failedMost is how many of them an object remembers.
	failedMost = 64
)

// failed is why a READ failed, and when.
type failed struct {
	err error
	at  time.Time
}

// failedAt returns why a READ at an offset has just failed, once. It is called with mu held.
func (o *object) failedAt(off int64) error {
	f, ok := o.failed[off]
	delete(o.failed, off)
	if !ok || time.Since(f.at) > repeatedWithin {
		return nil
	}
	return f.err
}

// remember notes that a READ has failed. It is called with mu held.
func (o *object) remember(r *read, err error) {
	if time.Since(r.since) < slowFailure {
		return
	}
	if o.failed == nil || len(o.failed) >= failedMost {
		o.failed = map[int64]failed{}
	}
	o.failed[r.off] = failed{err, time.Now()}
}

// keys name an object.
type keys struct{ volume, cookie string }

// unknown is about keys that Lookup does not know.
type unknown struct {
	asked time.Time // when the last OPEN came
	said  time.Time // when that was logged last
}

const (
	// Who asks again within askedAgain for what is not known gets the answer after knownPause.
	askedAgain = time.Second
	knownPause = 100 * time.Millisecond
	// unknownMost is how many keys are remembered for that.
	unknownMost = 1000
)

// notFound answers an OPEN of what is not known. After a takeover the kernel opens an object because of a READ that waits, and when that
// fails, at once again: for ever, with a processor of its own, if it is not slowed down.
func (s *session) notFound(m message, err error) {
	k := keys{m.volume, m.cookie}
	now := time.Now()
	u := s.unknown[k]
	soon := now.Sub(u.asked) < askedAgain
	if len(s.unknown) >= unknownMost {
		clear(s.unknown)
	}
	u.asked = now
	say := now.Sub(u.said) >= sayPause
	if say {
		u.said = now
	}
	s.unknown[k] = u
	if !soon {
		s.refuse(m, unix.ENOENT, err, say)
		return
	}
	s.work.Go(func() {
		s.sleep(knownPause)
		s.refuse(m, unix.ENOENT, err, say)
		s.d.port.kick()
	})
}

// add makes an object known. Its number and descriptor are its own, but for a kernel that is out of its mind.
func (s *session) add(o *object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[o.id]; ok {
		return fmt.Errorf("object %d is open already", o.id)
	}
	s.objects[o.id] = o
	return nil
}

// openFailed answers an OPEN with an error, and then closes its descriptor.
func (s *session) openFailed(m message, errno unix.Errno, err error) { s.refuse(m, errno, err, true) }

// refuse is openFailed that need not say so.
func (s *session) refuse(m message, errno unix.Errno, err error, say bool) {
	if errors.Is(err, ErrUnknown) {
		s.d.counts.unknown.Add(1)
	} else {
		s.d.counts.openFailed.Add(1)
	}
	if e := s.d.port.write([]byte(copen(m.id, -int64(errno)))); e != nil {
		err = fmt.Errorf("%w (and the kernel does not take the answer: %w)", err, e)
	}
	if m.fd != noFile {
		s.d.port.closeFile(m.fd)
	}
	if say {
		s.logOpen(m, err)
	}
}

func (s *session) logOpen(m message, err error) {
	s.d.o.Log.Warn("cannot open an object", "volume", m.volume, "cookie", m.cookie, "error", err)
}

// closed forgets an object that the kernel has closed. READs that it still has in flight have failed in the kernel; they get an answer
// nevertheless. It is called with mu held.
func (s *session) closed(m message) func() {
	o := s.objects[m.object]
	if o == nil || o.gone {
		return nothing
	}
	o.gone, o.queue = true, nil
	var then []func()
	for _, r := range o.reads {
		then = append(then, s.settle(r, errClosed))
	}
	if o.active == 0 { // else the last one releases it
		delete(s.objects, o.id)
		then = append(then, o.release)
	}
	return func() {
		for _, do := range then {
			do()
		}
	}
}

// release closes the object when nobody uses it any more, and nobody can find it.
func (o *object) release() {
	o.s.d.port.closeFile(o.fd)
	o.closeSource()
}

func (o *object) closeSource() {
	if c, ok := o.source.(io.Closer); ok {
		if err := c.Close(); err != nil {
			o.log().Warn("cannot close an object", "error", err)
		}
	}
}

func (o *object) log() *slog.Logger {
	return o.s.d.o.Log.With("volume", o.volume, "cookie", o.cookie)
}

// sayPause is between two messages about READs of an object that fail: readers try again and again.
const sayPause = 10 * time.Second

// mayLog says whether an error about the object may be logged now, and how many were not since the last. It is called with mu held.
func (o *object) mayLog() (more int, ok bool) {
	if now := time.Now(); now.Sub(o.said) >= sayPause {
		more, o.silent, o.said = o.silent, 0, now
		return more, true
	}
	o.silent++
	return 0, false
}
