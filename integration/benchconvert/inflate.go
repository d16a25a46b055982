package main

import (
	"bufio"
	stdgzip "compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/gzip"
	kzstd "github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

// fillBytes is the buffer that the converter inflates into, see tarPieceBytes there.
const fillBytes = inflate.WindowBytes + 512<<10

// inflateLayer decodes with our decoder to nowhere, and keeps checkpoints that are at least spacing apart; 0 is none.
func inflateLayer(spacing int64) func(context.Context, job, *report) error {
	return func(_ context.Context, j job, r *report) error {
		f, err := os.Open(j.input)
		if err != nil {
			return err
		}
		defer f.Close()
		d := inflate.NewReader(f)
		var windows [][]byte
		if spacing > 0 {
			d.OnCheckpoint(spacing, func(c inflate.Checkpoint) { windows = append(windows, slices.Clone(c.Window)) })
			r.after = func(r *report) (err error) {
				r.Remark, err = describeWindows(windows)
				return err
			}
		}
		return fillAll(d)
	}
}

func fillAll(d *inflate.Reader) error {
	buf := make([]byte, fillBytes)
	for at := 0; ; {
		n, err := d.Fill(buf, at)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		at = copy(buf, buf[n-min(n, inflate.WindowBytes):n])
	}
}

// describeWindows says how many bytes checkpoints take. Each is compressed alone, so that one can be read without the others.
func describeWindows(windows [][]byte) (string, error) {
	e, err := kzstd.NewWriter(nil, kzstd.WithEncoderConcurrency(1))
	if err != nil {
		return "", err
	}
	defer e.Close()
	var raw, compressed int
	for _, w := range windows {
		raw += len(w)
		compressed += len(e.EncodeAll(w, nil))
	}
	return fmt.Sprintf("%d checkpoints, %d bytes raw, %d bytes zstd", len(windows), raw, compressed), nil
}

func klauspostLayer(_ context.Context, j job, _ *report) error {
	return discard(j.input, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) })
}

func stdlibLayer(_ context.Context, j job, _ *report) error {
	return discard(j.input, func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) })
}

// discard reads a file through a decoder to its end.
func discard(path string, decoder func(io.Reader) (io.Reader, error)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// Buffers as large as ours has. By itself the decoder would bring one of 4 KiB, and io.Discard one of 8.
	d, err := decoder(bufio.NewReaderSize(f, 256<<10))
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, d, make([]byte, fillBytes))
	return err
}
