package ondemand

import (
	"context"
	"errors"
	"testing"
)

// TestImport: bytes from outside are written only if they are those of the extent, and wake who waits for it.
func TestImport(t *testing.T) {
	completed := make(chan struct{})
	m := add(t, run(t, Options{}), LayerOptions{Completed: func() { close(completed) }}, 0, 5000, 5000, 100)
	hang := make(chan struct{})
	m.source.set(func(ctx context.Context, _ asked, _ []byte) error {
		close(hang)
		<-ctx.Done()
		return ctx.Err()
	})
	wrong := append([]byte{m.content(0)[0] ^ 1}, m.content(0)[1:]...)
	for _, bytes := range [][]byte{nil, wrong, m.content(1), m.content(0)[1:]} {
		if err := m.Import(0, bytes); !errors.Is(err, ErrWrongBytes) {
			t.Errorf("%d bytes: %v", len(bytes), err)
		}
	}
	for _, i := range []int{-1, 3} {
		if err := m.Import(i, nil); err == nil {
			t.Errorf("extent %d", i)
		}
	}
	if n := m.check(t); n != 0 {
		t.Fatalf("%d extents are present", n)
	}
	read := make(chan error, 1)
	go func() { read <- m.Fill(t.Context(), 0, 5000) }()
	<-hang
	must(t, m.Import(0, m.content(0)))
	must(t, <-read)
	must(t, m.Import(0, m.content(0))) // again is no error
	must(t, m.Import(1, m.content(1)))
	must(t, m.Import(2, m.content(2)))
	<-completed
	if n := m.check(t); n != 3 {
		t.Errorf("%d extents are present", n)
	}
	if s := m.Stats(); s.BackgroundBytes != 0 || s.FilledBytes != 0 {
		t.Errorf("counted as fetched: %+v", s)
	}
	m.Close()
	if err := m.Import(0, m.content(0)); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
