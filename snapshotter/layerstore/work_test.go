package layerstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"testing"
)

// named is a blob that says where it is from, and that stops after its first half until it is released.
type named struct {
	io.Reader     // of the first half, and then of the second
	second        io.Reader
	half, release chan struct{}
}

func (n *named) Source() string { return "a place" }
func (n *named) Close() error   { return nil }

func (n *named) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if err != io.EOF {
		return k, err
	}
	if n.second == nil {
		return 0, io.EOF
	}
	close(n.half)
	<-n.release
	n.Reader, n.second = n.second, nil
	return n.Reader.Read(p)
}

// TestWorking: a conversion is seen while it goes on, with what it has read, and counted when it has ended; the instance says where it is from.
func TestWorking(t *testing.T) {
	s := open(t, t.TempDir())
	b, dgst := layer(t, "content")
	blob := &named{Reader: bytes.NewReader(b[:512]), second: bytes.NewReader(b[512:]), half: make(chan struct{}), release: make(chan struct{})}
	type result struct {
		inst Instance
		err  error
	}
	done := make(chan result)
	go func() {
		inst, pin, err := s.Import(t.Context(), dgst, func(context.Context) (io.ReadCloser, error) { return blob, nil })
		pin.Release()
		done <- result{inst, err}
	}()
	<-blob.half
	work := s.Working()
	if len(work) != 1 || work[0].Layer != dgst || work[0].Read != 512 || work[0].Source != "a place" || work[0].Waiters != 1 || work[0].Started.IsZero() {
		t.Errorf("working: %+v", work)
	}
	close(blob.release)
	r := <-done
	must(t, r.err)
	if r.inst.Source != "a place" {
		t.Errorf("source %q", r.inst.Source)
	}
	failing := errors.New("no blob")
	_, other := layer(t, "other")
	if _, _, err := s.Import(t.Context(), other, func(context.Context) (io.ReadCloser, error) { return nil, failing }); !errors.Is(err, failing) {
		t.Errorf("got %v", err)
	}
	stats := s.Stats()
	if len(s.Working()) > 0 || stats.Layers != 1 || stats.Failed != 1 || stats.BlobBytes != int64(len(b)) || stats.TarBytes != int64(len(b)) || stats.Took <= 0 {
		t.Errorf("working %+v, stats %+v", s.Working(), stats)
	}
}

// TestFailingSourceOfAnother: a caller who waits for another's blob tries its own when that fails while it is read.
func TestFailingSourceOfAnother(t *testing.T) {
	s := open(t, t.TempDir())
	b, dgst := layer(t, "content")
	begun, release := make(chan struct{}), make(chan struct{})
	failing := errors.New("connection lost")
	first := make(chan error, 1)
	go func() {
		_, _, err := s.Import(t.Context(), dgst, func(context.Context) (io.ReadCloser, error) {
			close(begun)
			<-release
			return io.NopCloser(io.MultiReader(bytes.NewReader(b[:512]), errorReader{failing})), nil
		})
		first <- err
	}()
	<-begun
	second := make(chan error, 1)
	go func() {
		_, pin, err := s.Import(t.Context(), dgst, opener(b))
		pin.Release()
		second <- err
	}()
	for waiters(s, EagerID(dgst)) < 2 {
		runtime.Gosched()
	}
	close(release)
	if err := <-first; !errors.Is(err, failing) {
		t.Errorf("the first got %v", err)
	}
	must(t, <-second)
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

// TestTogether: a caller who waits for a blob of its own kind does not try again when that fails.
func TestTogether(t *testing.T) {
	s := open(t, t.TempDir())
	_, dgst := layer(t, "content")
	begun, release := make(chan struct{}), make(chan struct{})
	failing := errors.New("connection lost")
	errs := make(chan error, 2)
	ctx := Together(t.Context(), "pull")
	go func() {
		_, _, err := s.Import(ctx, dgst, func(context.Context) (io.ReadCloser, error) {
			close(begun)
			<-release
			return nil, failing
		})
		errs <- err
	}()
	<-begun
	go func() {
		_, _, err := s.Import(ctx, dgst, never)
		errs <- err
	}()
	for waiters(s, EagerID(dgst)) < 2 {
		runtime.Gosched()
	}
	close(release)
	for range 2 {
		if err := <-errs; !errors.Is(err, failing) {
			t.Errorf("got %v", err)
		}
	}
}
