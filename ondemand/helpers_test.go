package ondemand

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

var testID = sha256.Sum256([]byte("an instance"))

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plain is a Decoder of extents that are not compressed. It compares the digest.
type plain struct {
	off   int64
	bytes []byte
}

func newPlain() Decoder { return &plain{} }

func (p *plain) Open(_ uint8, off int64, compressed []byte, more func(int) int) error {
	for have := 0; more != nil && have < len(compressed); {
		n := more(have)
		if n <= have {
			return io.ErrUnexpectedEOF
		}
		have = n
	}
	p.off, p.bytes = off, compressed
	return nil
}

var errDigest = errors.New("wrong digest")

func (p *plain) Decode(x blob.Extent, dst []byte) error {
	if p.off != x.BlobOffset || len(p.bytes) != int(x.BlobLength) {
		return errors.New("another range is open")
	}
	copy(dst, p.bytes[x.InnerOffset:])
	if sha256.Sum256(dst) != x.Digest {
		return errDigest
	}
	return nil
}

// asked is a call of a source.
type asked struct {
	off     int64
	n       int
	attempt int
}

func (a asked) end() int64 { return a.off + int64(a.n) }

// source has the bytes of a layer's blob, and may do anything else before it gives them.
type source struct {
	bytes []byte

	mu     sync.Mutex
	calls  []asked
	before func(ctx context.Context, a asked, p []byte) error // may be nil; errDone: p was filled
}

var errDone = errors.New("filled")

func (s *source) ReadAt(ctx context.Context, p []byte, off int64, attempt int, came func(int)) error {
	a := asked{off, len(p), attempt}
	s.mu.Lock()
	s.calls = append(s.calls, a)
	before := s.before
	s.mu.Unlock()
	if before != nil {
		if err := before(ctx, a, p); err == errDone {
			return nil
		} else if err != nil {
			return err
		}
	}
	if off < 0 || a.end() > int64(len(s.bytes)) {
		return fmt.Errorf("%+v of %d bytes", a, len(s.bytes))
	}
	copy(p, s.bytes[off:])
	came(len(p) / 2)
	came(len(p))
	return nil
}

func (s *source) set(before func(context.Context, asked, []byte) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = before
}

func (s *source) seen() []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// made is a layer with what it was made of.
type made struct {
	*Layer
	source  *source
	extents []blob.Extent
	blob    *blob.Blob
}

// layout places extents of the given lengths one after the other, with gap bytes before each in the layer's blob and 4 KiB between them in
// the data at most.
func layout(gap int64, lengths ...int) (list []blob.Extent, layer []byte, dataBytes int64) {
	random := rand.NewChaCha8(testID)
	for _, n := range lengths {
		layer = append(layer, make([]byte, gap)...)
		x := blob.Extent{Offset: dataBytes, Length: uint32(n), BlobOffset: int64(len(layer)), BlobLength: uint32(n)}
		content := make([]byte, n)
		random.Read(content)
		x.Digest = sha256.Sum256(content)
		layer = append(layer, content...)
		list = append(list, x)
		dataBytes = (dataBytes + int64(n) + 4095) &^ 4095
	}
	return list, layer, dataBytes
}

func repeat(n, count int) []int { return slices.Repeat([]int{n}, count) }

// newBlob makes a blob of extents in a directory of the test.
func newBlob(t testing.TB, list []blob.Extent, dataBytes int64) *blob.Blob {
	t.Helper()
	dir := t.TempDir()
	must(t, blob.Create(dir, testID, dataBytes, slices.Values(list)))
	b, err := blob.Open(dir, testID, blob.Options{})
	must(t, err)
	t.Cleanup(func() { b.Close() })
	return b
}

// run runs an engine until the test ends.
func run(t testing.TB, o Options) *Engine {
	t.Helper()
	if o.NewDecoder == nil {
		o.NewDecoder = newPlain
	}
	e := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return e
}

// add adds a layer of extents of the given lengths.
func add(t testing.TB, e *Engine, o LayerOptions, gap int64, lengths ...int) made {
	t.Helper()
	list, bytes, dataBytes := layout(gap, lengths...)
	m := made{source: &source{bytes: bytes}, extents: list, blob: newBlob(t, list, dataBytes)}
	if o.Source == nil {
		o.Source = m.source
	}
	if o.Name == "" {
		o.Name = "sha256:layer"
	}
	m.Layer = e.Add(m.blob, o)
	t.Cleanup(m.Layer.Close)
	return m
}

// content is what extent i of the layer has.
func (m made) content(i int) []byte {
	x := m.extents[i]
	return m.source.bytes[x.BlobOffset:][:x.Length]
}

// check compares all extents that are present, and returns how many there are.
func (m made) check(t testing.TB) (present int) {
	t.Helper()
	for i, x := range m.extents {
		if !m.blob.Present(i) {
			continue
		}
		present++
		got := make([]byte, x.Length)
		_, err := m.blob.File().ReadAt(got, x.Offset)
		must(t, err)
		if !bytes.Equal(got, m.content(i)) {
			t.Fatalf("extent %d is present and has other bytes", i)
		}
	}
	return present
}

// fillExtent faults for extent i.
func (m made) fillExtent(t testing.TB, i int) error {
	t.Helper()
	x := m.extents[i]
	err := m.Fill(t.Context(), x.Offset, int64(x.Length))
	if err == nil && !m.blob.Present(i) {
		t.Fatalf("extent %d is absent after its fault", i)
	}
	return err
}

// eventually waits for something to become true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
