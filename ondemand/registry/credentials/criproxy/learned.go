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
)

// learned holds credentials by what they are good for. The zero value is not ready.
type learned struct {
	max   int
	keep  time.Duration
	tried login.Memory

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
}

func newLearned(maxTargets int, keep time.Duration) *learned {
	return &learned{max: maxTargets, keep: keep, byUse: list.New(), known: make(map[login.Target]*list.Element)}
}

// put makes l the first credential to try for t.
func (s *learned) put(t login.Target, l login.Login) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	e := s.use(t)
	if e == nil {
		e = s.byUse.PushFront(&repository{target: t, used: time.Now()})
		s.known[t] = e
	}
	r := e.Value.(*repository)
	others := slices.DeleteFunc(slices.Clone(r.logins), func(have login.Login) bool { return have == l })
	r.logins = append([]login.Login{l}, others[:min(len(others), maxLogins-1)]...)
	for s.byUse.Len() > s.max {
		s.drop(s.byUse.Back())
	}
	if s.expiry == nil {
		s.expiry = time.AfterFunc(s.keep, s.expire)
	}
}

// get returns the newest credential for t that was not refused.
func (s *learned) get(t login.Target, refused bool) login.Login {
	s.mu.Lock()
	var logins []login.Login
	if e := s.use(t); e != nil {
		logins = e.Value.(*repository).logins // replaced, never changed
	}
	s.mu.Unlock()
	return s.tried.Choose(t, refused, len(logins), func(i int, _ bool) login.Login { return logins[i] })
}

// use marks what is known for t as used now, and returns it. The caller holds mu.
func (s *learned) use(t login.Target) *list.Element {
	e := s.known[t]
	if e != nil {
		e.Value.(*repository).used = time.Now()
		s.byUse.MoveToFront(e)
	}
	return e
}

// expire drops what was not used for too long, and comes again when the next one may have expired.
func (s *learned) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.byUse.Back(); e != nil; e = s.byUse.Back() {
		if left := s.keep - time.Since(e.Value.(*repository).used); left > 0 {
			s.expiry.Reset(left)
			return
		}
		s.drop(e)
	}
	s.expiry = nil
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
