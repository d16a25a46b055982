package criproxy

import (
	"bytes"
	"container/list"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

const (
	// exportVersion is of the format. A process that finds another one starts with nothing, and learns.
	exportVersion = 1
	// maxExportBytes is how much is handed to the next process: a thousand repositories with tokens of 4 KiB.
	maxExportBytes = 4 << 20
	// maxFieldBytes bounds names and credentials of what is imported. Tokens of cloud registries have some KiB.
	maxFieldBytes = 64 << 10
)

// exported is the format: JSON.
type exported struct {
	Version int `json:"version"`
	// Repositories are ordered by their last use, the newest first.
	Repositories []exportedRepository `json:"repositories"`
}

type exportedRepository struct {
	Host       string          `json:"host"`
	Repository string          `json:"repository"`
	Used       int64           `json:"used"`   // seconds since 1970
	Logins     []exportedLogin `json:"logins"` // the newest first
}

// exportedLogin has bytes, because not all passwords are UTF-8.
type exportedLogin struct {
	User   []byte `json:"user,omitempty"`
	Secret []byte `json:"secret"`
}

// Export returns everything that was learned, for Import in the next process. It contains secrets, and must not get onto a disk. If that is
// more than 4 MiB, what was used last is exported.
func (p *Proxy) Export() ([]byte, error) { return p.learned.export(maxExportBytes) }

// Import adds what another process has exported. What this one has learned itself is tried first. What would have been dropped by now for
// want of use is left out.
func (p *Proxy) Import(b []byte) error {
	if err := p.learned.insert(b); err != nil {
		return fmt.Errorf("import learned credentials: %w", err)
	}
	return nil
}

func (s *learned) export(maxBytes int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const head, tail = `{"version":%d,"repositories":[`, `]}`
	b := fmt.Appendf(nil, head, exportVersion)
	for e := s.byUse.Front(); e != nil; e = e.Next() {
		x := e.Value.(*repository).exported()
		if !x.valid() { // longer than any that works
			continue
		}
		one, err := json.Marshal(x)
		if err != nil {
			return nil, errors.New("export learned credentials: they have no form in JSON") // the cause might show them
		}
		if len(b)+1+len(one)+len(tail) > maxBytes {
			break
		}
		b = append(append(b, one...), ',')
	}
	return append(bytes.TrimSuffix(b, []byte(",")), tail...), nil
}

func (r *repository) exported() exportedRepository {
	x := exportedRepository{Host: r.target.Host, Repository: r.target.Repository, Used: r.used.Unix()}
	for _, l := range r.logins {
		x.Logins = append(x.Logins, exportedLogin{User: []byte(l.User), Secret: []byte(l.Secret)})
	}
	return x
}

// insert adds what was exported. That is no change to tell: whoever has it has given it.
func (s *learned) insert(b []byte) error {
	x, err := parseExported(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	now := time.Now()
	for _, one := range x.Repositories {
		s.insertOne(one, now)
	}
	s.bound()
	if s.expiry != nil {
		s.dropUnused()
	}
	return nil
}

// insertOne is called with mu held.
func (s *learned) insertOne(x exportedRepository, now time.Time) {
	t := login.Target{Host: x.Host, Repository: x.Repository}
	used := time.Unix(x.Used, 0)
	if used.After(now) { // the clock was set back
		used = now
	}
	var logins []login.Login
	for _, l := range x.Logins {
		logins = append(logins, login.Login{User: string(l.User), Secret: string(l.Secret)})
	}
	if e := s.known[t]; e != nil {
		r := e.Value.(*repository)
		r.logins = firstOf(append(r.logins[:len(r.logins):len(r.logins)], logins...))
		return // known here means used here, which is later
	}
	r := &repository{target: t, logins: firstOf(logins), used: used, told: used}
	before := s.byUse.Back()
	for before != nil && before.Value.(*repository).used.Before(used) {
		before = before.Prev()
	}
	s.known[t] = insertAfter(s.byUse, r, before)
}

// insertAfter inserts at the front if mark is nil.
func insertAfter(l *list.List, r *repository, mark *list.Element) *list.Element {
	if mark == nil {
		return l.PushFront(r)
	}
	return l.InsertAfter(r, mark)
}

func parseExported(b []byte) (x exported, err error) {
	if len(b) > maxExportBytes {
		return x, fmt.Errorf("%d bytes are more than %d", len(b), maxExportBytes)
	}
	if json.Unmarshal(b, &x) != nil { // whose error might show a part of it
		return x, errors.New("not what was exported")
	}
	if x.Version != exportVersion {
		return x, fmt.Errorf("version %d of the format, want %d", x.Version, exportVersion)
	}
	if len(x.Repositories) > maxRepositories {
		return x, fmt.Errorf("%d repositories are more than %d", len(x.Repositories), maxRepositories)
	}
	for i, r := range x.Repositories {
		if !r.valid() {
			return x, fmt.Errorf("repository %d is none that was exported", i)
		}
	}
	return x, nil
}

func (r exportedRepository) valid() bool {
	ok := r.Host != "" && r.Repository != "" && len(r.Host)+len(r.Repository) <= maxFieldBytes &&
		len(r.Logins) > 0 && len(r.Logins) <= maxLogins
	for _, l := range r.Logins {
		ok = ok && len(l.User)+len(l.Secret) > 0 && len(l.User)+len(l.Secret) <= maxFieldBytes
	}
	return ok
}
