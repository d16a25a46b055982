package main

import (
	"io"
	"time"
)

// lossyWriter writes lines without ever waiting for whoever reads them: a keeper that waits for its log answers nobody. What does not fit
// into its queue is lost.
type lossyWriter struct {
	lines chan []byte
	done  chan struct{}
}

// queuedLines is more than the keeper says in a minute.
const queuedLines = 64

// newLossyWriter starts a goroutine that writes to w until drain.
func newLossyWriter(w io.Writer) *lossyWriter {
	l := &lossyWriter{lines: make(chan []byte, queuedLines), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for line := range l.lines {
			_, _ = w.Write(line) // there is nobody else to tell
		}
	}()
	return l
}

// Write queues a line.
func (l *lossyWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), line...):
	default:
	}
	return len(line), nil
}

// drain writes what is queued, for some time at most. Nothing may be written from then on.
func (l *lossyWriter) drain(atMost time.Duration) {
	close(l.lines)
	select {
	case <-l.done:
	case <-time.After(atMost):
	}
}
