package fanotify

import (
	"fmt"
	"time"
)

// What a predecessor left in the journal is answered while new events are read: otherwise one slow fill would hold up every reader of
// the blob after a restart. But the kernel tells events apart by nothing but their numbers, which are descriptors. Those of the dead
// process mean nothing here, so a new event may get the number of an old one that still waits. An answer then goes to the older of the
// two, or, if that one had its answer just before the process died, to the new one, whose data may be missing.
//
// So events with equal numbers, twins, are answered together:
//
//   - none of them is answered before the data of all is there, for an answer may reach any of them;
//   - then there is one answer for each; one too many does nothing;
//   - if the data of one cannot be had, all are refused;
//   - no event is read between the counting of the twins and their answers.
//
// The descriptor of a new twin stays open until then, so no third event gets its number. A process that dies meanwhile leaves all of them
// to its successor, where they are twins again.

// twins are the events with one number.
type twins struct {
	number  int32
	events  []event
	waiting int // for data
	verdict verdict
}

// inherit takes over what the journal holds, and finds the free slots.
func (s *session) inherit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i := range slots {
		e, ok, err := parseSlot(s.g.journal.page, i, s.g.size)
		if err != nil {
			return fmt.Errorf("slot %d of the journal: %w", i, err)
		}
		if !ok {
			s.free <- i
			continue
		}
		t := s.twins[e.number]
		if t == nil {
			t = &twins{number: e.number, verdict: allow}
			s.twins[e.number] = t
		}
		e.since = now
		s.inherited.Add(1)
		s.add(t, &e)
	}
	s.g.counts.inherited.Add(uint64(s.inherited.Load()))
	return nil
}

// join makes an event that was just read a twin of the old ones with its number. It is called with mu held.
func (s *session) join(e *event) {
	if t := s.twins[e.number]; t != nil {
		s.add(t, e)
	}
}

func (s *session) add(t *twins, e *event) {
	e.twins = t
	t.events = append(t.events, *e)
	t.waiting++
	s.open[e.slot] = *e
}

// legacy are the inherited events.
func (s *session) legacy() (list []event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.open {
		list = append(list, e)
	}
	return list
}

// settleTwin notes the verdict about one of the twins, and answers them all when it was the last.
func (s *session) settleTwin(t *twins, v verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v != allow {
		t.verdict = v
	}
	if t.waiting--; t.waiting > 0 {
		return
	}
	for range t.events {
		if err := s.respond(t.number, t.verdict); err != nil {
			s.fail("answer an event", err)
			return
		}
	}
	for _, e := range t.events {
		s.g.journal.free(e.slot)
	}
	delete(s.twins, t.number)
	for _, e := range t.events {
		if e.own {
			rawClose(e.number)
		} else {
			s.inherited.Add(-1)
		}
		s.release(e)
	}
}
