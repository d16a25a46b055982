package fscache

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/tinyimage"
)

// trialContent is that of the one file of the trial image: blocks on the device, of which the last ones are read by themselves, and a tail.
var trialContent = bytes.Repeat([]byte("erofs-snapshotter trial over fscache. "), 1000)[:9*4096+100]

// TrialImage returns the two files of an image for Try.
func TrialImage() (meta, data []byte) {
	meta, data, err := tinyimage.Build(trialContent)
	if err != nil {
		panic(err) // it is always the same
	}
	return meta, data
}

// Try mounts the trial image, which the daemon has to serve under these names, without attaching it anywhere, and reads it.
func Try(ctx context.Context, c fsbackend.Cookies) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, err := mountApart(c)
	if err != nil {
		return explain(err)
	}
	defer m.Close()
	f, err := m.Open(tinyimage.FileName, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, trialContent) {
		return fmt.Errorf("%w: a file was read with other bytes than were given to the kernel", fsbackend.ErrNotSupported)
	}
	return nil
}
