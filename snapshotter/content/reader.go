package content

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
)

// requestBytes is what one request asks for. containerd's server sends messages of 1 MiB, so this is one message, and one
// request for each MiB costs far less than decompressing it.
const requestBytes = 1 << 20

// reader reads a blob from its front to its end. Not safe for concurrent use.
type reader struct {
	name  string
	stall time.Duration
	// ctx is that of Open: containerd's proxy ties all requests of a blob to one context.
	ctx    context.Context
	cancel context.CancelCauseFunc

	blob   content.ReaderAt
	offset int64
	buffer []byte // what was received and not yet read
	chunk  []byte // the memory of buffer
}

// Source implements layerstore.Sourced.
func (r *reader) Source() string { return sourceName }

// Read implements io.Reader. A blob that ends before its size is an error.
func (r *reader) Read(p []byte) (int, error) {
	if len(r.buffer) == 0 {
		if r.offset >= r.blob.Size() {
			return 0, io.EOF
		}
		if err := r.fill(); err != nil {
			return 0, fmt.Errorf("read %s at offset %d of %d: %w", r.name, r.offset, r.blob.Size(), err)
		}
	}
	n := copy(p, r.buffer)
	r.buffer = r.buffer[n:]
	return n, nil
}

func (r *reader) fill() error {
	want := min(requestBytes, r.blob.Size()-r.offset)
	if r.chunk == nil {
		r.chunk = make([]byte, want)
	}
	var n int
	err := r.bounded(func() (err error) {
		n, err = r.blob.ReadAt(r.chunk[:want], r.offset)
		return err
	})
	if int64(n) == want {
		err = nil // io.ReaderAt may return io.EOF with the last bytes
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	r.buffer = r.chunk[:n]
	r.offset += int64(n)
	return nil
}

// bounded calls containerd and cancels the call when it takes longer than the stall timeout.
func (r *reader) bounded(call func() error) error {
	timer := time.AfterFunc(r.stall, func() { r.cancel(errStalled) })
	defer timer.Stop()
	err := call()
	if err != nil && context.Cause(r.ctx) == errStalled {
		return fmt.Errorf("%w for %s", errStalled, r.stall)
	}
	return err
}

// Close gives up what is not read. It never fails.
func (r *reader) Close() error {
	r.cancel(nil)
	return r.blob.Close()
}
