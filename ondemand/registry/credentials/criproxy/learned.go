package criproxy

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

const (
	// maxRepositories bounds what is remembered: a node has images of some hundred repositories.
	maxRepositories = 1024
	// maxLogins is how many credentials of one repository are kept: pods of several namespaces may each have their own.
	maxLogins = 4
	// usesTold is how often the use of a credential is a change within the time after which it is dropped: who imports what was exported
	// last drops it too early by one part in that many at most.
	usesTold = 24
)

// learned holds credentials by what they are good for. The zero value is not ready.
type learned struct {
	max     int
	keep    time.Duration
	changed func() // called without mu
	tried   login.Memory

	mu     sync.Mutex
	byUse  *list.List // of *repository, the last used first
	known  map[login.Target]*list.Element
	expiry *time.Timer // set while there is anything to expire
	closed bool
}

// repository is what is known for one target.
type repository struct {
	target login.Target
	logins []login.Login // the newest first
	used   time.Time
	told   time.Time // what used was when changed was called for it last
}

// newLearned calls changed, if it is not nil, after each change but close.
func newLearned(maxTargets int, keep time.Duration, changed func()) *learned {
	if changed == nil {
		changed = func() {}
	}
	return &learned{max: maxTargets, keep: keep, changed: changed, byUse: list.New(), known: make(map[login.Target]*list.Element)}
}

// put makes l the first credential to try for t.
func (s *learned) put(t login.Target, l login.Login) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	e, _ := s.use(t)
	if e == nil {
		now := time.Now()
		e = s.byUse.PushFront(&repository{target: t, used: now, told: now})
		s.known[t] = e
	}
	r := e.Value.(*repository)
	r.logins = firstOf(append([]login.Login{l}, r.logins...))
	s.bound()
	s.mu.Unlock()
	s.changed()
}

// firstOf returns the first few credentials, each once.
func firstOf(logins []login.Login) []login.Login {
	var first []login.Login
	for _, l := range logins {
		if len(first) < maxLogins && !slices.Contains(first, l) {
			first = append(first, l)
		}
	}
	return first
}

// bound drops what is too much, and sees to it that the rest expires. It is called with mu held.
func (s *learned) bound() {
	for s.byUse.Len() > s.max {
		s.drop(s.byUse.Back())
	}
	if s.expiry == nil && s.byUse.Len() > 0 {
		s.expiry = time.AfterFunc(s.keep, s.expire)
	}
}

// get returns the newest credential for t that was not refused.
func (s *learned) get(t login.Target, refused bool) login.Login {
	s.mu.Lock()
	var logins []login.Login
	e, tell := s.use(t)
	if e != nil {
		logins = e.Value.(*repository).logins // replaced, never changed
	}
	s.mu.Unlock()
	if tell {
		s.changed()
	}
	return s.tried.Choose(t, refused, len(logins), func(i int, _ bool) login.Login { return logins[i] })
}

// use marks what is known for t as used now, and returns it, and whether the last use that was told is long ago. The caller holds mu.
func (s *learned) use(t login.Target) (e *list.Element, tell bool) {
	if e = s.known[t]; e == nil {
		return nil, false
	}
	r := e.Value.(*repository)
	r.used = time.Now()
	s.byUse.MoveToFront(e)
	if tell = r.used.Sub(r.told) >= s.keep/usesTold; tell {
		r.told = r.used
	}
	return e, tell
}

// expire drops what was not used for too long, and comes again when the next one may have expired.
func (s *learned) expire() {
	s.mu.Lock()
	dropped := s.dropUnused()
	s.mu.Unlock()
	if dropped {
		s.changed()
	}
}

// dropUnused is called with mu held.
func (s *learned) dropUnused() (dropped bool) {
	for e := s.byUse.Back(); e != nil; e = s.byUse.Back() {
		if left := s.keep - time.Since(e.Value.(*repository).used); left > 0 {
			s.expiry.Reset(left)
			return dropped
		}
		s.drop(e)
		dropped = true
	}
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	return dropped
}

func (s *learned) drop(e *list.Element) {
	delete(s.known, e.Value.(*repository).target)
	s.byUse.Remove(e)
}

// close forgets everything, and what is put from now on.
func (s *learned) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	clear(s.known)
	s.byUse.Init()
	if s.expiry != nil {
		s.expiry.Stop()
	}
}
