package fanotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const probeTime = 2 * time.Second

// Probe tries the whole thing with a nameless file in dir: a read of missing data has to wait, then get what was filled in meanwhile, and
// another one has to fail. It needs root, takes a few milliseconds, and two seconds at most. It has three answers:
//
//	nil                     it works
//	wraps ErrNotSupported   it does not, and the message says why
//	any other error         could not tell
//
// Linux 7.2 and later set a taint flag with the first mark of this kind, so do not ask without need.
func Probe(dir string) error {
	if err := probe(dir); err != nil {
		return fmt.Errorf("hold reads of files in %s: %w", dir, err)
	}
	return nil
}

func probe(dir string) (err error) {
	data, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("files without a name %w by the filesystem, which is none of ext4, xfs and btrfs: %w", ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	defer data.Close()
	pageBytes := int64(os.Getpagesize())
	if err := data.Truncate(2 * pageBytes); err != nil {
		return err
	}
	g, err := newGroup(data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	watched, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", data.Fd()))
	if err != nil {
		return err
	}
	return probeReads(g, watched, &probeFiller{data: data, page: bytes.Repeat([]byte("held"), int(pageBytes)/4)})
}

// probeReads reads while the group is served, and closes the file that is read.
func probeReads(g *Group, watched *os.File, f *probeFiller) error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, f) }()
	answer := make(chan error, 1)
	go func() {
		// A read that is held keeps its thread, which is nobody else's: the runtime starts others for those who answer.
		answer <- f.check(int(watched.Fd()))
		watched.Close()
	}()
	select {
	case err := <-answer:
		cancel()
		return errors.Join(err, <-served)
	case <-ctx.Done():
		err := errors.Join(<-served, g.Close()) // which lets the read go
		<-answer
		return errors.Join(fmt.Errorf("could not tell: no answer within %v", probeTime), err)
	}
}

// probeFiller can supply the first page of a file.
type probeFiller struct {
	data *os.File
	page []byte
}

var errProbe = errors.New("refused on purpose")

func (f *probeFiller) Ready(int64, int64) bool { return false }

func (f *probeFiller) Fill(_ context.Context, off, _ int64) error {
	if off > 0 {
		return errProbe
	}
	_, err := f.data.WriteAt(f.page, 0)
	return err
}

// check reads the two pages.
func (f *probeFiller) check(fd int) error {
	got := make([]byte, len(f.page))
	if _, err := unix.Pread(fd, got, 0); err != nil {
		return fmt.Errorf("read what was filled: %w", err)
	}
	if !bytes.Equal(got, f.page) {
		return fmt.Errorf("%w: a read returned before the data was there", ErrNotSupported)
	}
	if _, err := unix.Pread(fd, got, int64(len(got))); !errors.Is(err, unix.EIO) {
		return fmt.Errorf("%w: a read that was refused returned %v, want %w", ErrNotSupported, err, unix.EIO)
	}
	return nil
}
