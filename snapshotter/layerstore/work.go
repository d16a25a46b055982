package layerstore

import (
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// Sourced is a blob that says where its bytes come from, in words: "registry.example/app", "containerd's content store". An Opener's
// blob may be one; the words are kept with the instance, and hold no secrets.
type Sourced interface{ Source() string }

// Work is a conversion that goes on or waits for a place.
type Work struct {
	ID    ID
	Layer digest.Digest
	// Started is when the blob was opened; zero for one that waits.
	Started time.Time
	// Read is how many bytes of the blob were taken so far.
	Read int64
	// Source is where they come from, if that is known.
	Source string
	// Waiters is how many callers wait for it. None: it is ahead of its Import.
	Waiters int
}

// Working returns the conversions of layers that go on or wait, ordered by id.
func (s *Store) Working() []Work {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Work, 0, len(s.builds))
	for id, b := range s.builds {
		w := Work{ID: id, Layer: b.layer, Waiters: b.waiters}
		if m := b.meter.Load(); m != nil {
			w.Started, w.Source, w.Read = m.started, m.source, m.read.Load()
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b Work) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return all
}

// Stats counts what was converted since the store was opened. Nothing of it goes back.
type Stats struct {
	Layers, Failed      int64
	BlobBytes, TarBytes int64
	ImageBytes          int64
	Took                time.Duration // sum over conversions, including the time that they waited for bytes
}

// Stats returns the counts so far.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// meter is a blob whose bytes are counted while they are read.
type meter struct {
	io.ReadCloser
	started time.Time
	source  string
	read    atomic.Int64
	failed  atomic.Bool
}

func newMeter(blob io.ReadCloser) *meter {
	m := &meter{ReadCloser: blob, started: time.Now()}
	if s, ok := blob.(Sourced); ok {
		m.source = s.Source()
	}
	return m
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.read.Add(int64(n))
	if err != nil && err != io.EOF {
		m.failed.Store(true)
	}
	return n, err
}
