package inflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"testing"
)

// FuzzInflate compares with the standard library: the same bytes, or both refuse. The input arrives through a buffer of a few bytes
// and the output leaves through one of a few hundred, so that their ends fall everywhere. From one of the block boundaries
// it decodes a second time.
func FuzzInflate(f *testing.F) {
	for _, level := range []int{flate.HuffmanOnly, 0, 1, 6} {
		f.Add(uint16(300), uint8(level), uint8(1), gzipped(f, sample(5000), level)[10:])
	}
	f.Add(uint16(1), uint8(0), uint8(3), deflate(f, func(w *flate.Writer) {
		for range 5 {
			w.Write(make([]byte, 1000))
			w.Flush()
		}
	}, nil))
	std := flate.NewReader(nil)
	var d fuzzDecoder
	var want bytes.Buffer
	f.Fuzz(func(t *testing.T, outBytes uint16, inBytes, resumeAt uint8, in []byte) {
		if err := std.(flate.Resetter).Reset(bytes.NewReader(in), nil); err != nil {
			t.Fatal(err)
		}
		want.Reset()
		n, wantErr := io.Copy(&want, io.LimitReader(std, fuzzBytes+1))
		if n > fuzzBytes {
			return
		}
		var points []Checkpoint
		d.reset(bytes.NewReader(in), Checkpoint{}, int(outBytes), int(inBytes))
		d.OnCheckpoint(0, func(c Checkpoint) {
			c.Window = bytes.Clone(c.Window)
			points = append(points, c)
		})
		got, gotErr := d.decode()
		if (wantErr == nil) != (gotErr == nil) || gotErr != nil && !errors.Is(gotErr, ErrCorrupt) && !errors.Is(gotErr, io.ErrUnexpectedEOF) {
			t.Fatalf("standard library: %v, we: %v", wantErr, gotErr)
		}
		if !sameOutput(got, want.Bytes(), wantErr) {
			t.Fatalf("%d bytes, want %d, error %v", len(got), want.Len(), gotErr)
		}
		if len(points) == 0 {
			return
		}
		c := points[int(resumeAt)%len(points)]
		rest := bytes.Clone(got[c.Out:])
		d.reset(bytes.NewReader(in[c.In/8:]), c, int(outBytes), int(inBytes))
		if got, err := d.decode(); (err == nil) != (gotErr == nil) || !sameOutput(got, rest, err) {
			t.Fatalf("resumed at %d: %d bytes, want %d, error %v, before %v", c.Out, len(got), len(rest), err, gotErr)
		}
	})
}

// sameOutput compares what two decoders got out of the same input. Before an error one may have got further than the other.
func sameOutput(a, b []byte, err error) bool {
	if err == nil {
		return bytes.Equal(a, b)
	}
	return bytes.HasPrefix(a, b) || bytes.HasPrefix(b, a)
}

const fuzzBytes = 64 << 10

// fuzzDecoder is a Reader without a gzip header and trailer, whose memory is used again.
type fuzzDecoder struct {
	Reader
	src    input
	memory [256 + 2*fastInput]byte
	buf    [WindowBytes + 1<<16]byte
	at     int
	room   int
	got    []byte
}

// reset is Resume, with buffers that are small and hold outBytes and inBytes.
func (d *fuzzDecoder) reset(src io.Reader, c Checkpoint, outBytes, inBytes int) {
	d.src = input{src: src, start: c.In / 8, memory: d.memory[:2*fastInput+inBytes]}
	d.Reader = Reader{in: &d.src, phase: inMember, unchecked: true, out: c.Out, last: c.Out, memberOut: int64(len(c.Window))}
	d.Reader.decoder.reset(d.in)
	d.err = nil
	if _, err := d.in.take(uint(c.In % 8)); err != nil {
		d.err = err
	}
	d.at, d.room, d.got = copy(d.buf[:], c.Window), 1+outBytes, d.got[:0]
}

// decode decodes up to the end of the deflate stream.
func (d *fuzzDecoder) decode() ([]byte, error) {
	for d.err == nil && d.phase == inMember {
		if d.at > WindowBytes {
			d.at = copy(d.buf[:], d.buf[d.at-WindowBytes:d.at])
		}
		for end := min(d.at+d.room, len(d.buf)); d.err == nil && d.phase == inMember && d.at < end; {
			from := d.at
			d.at, d.err = d.body(d.buf[:end], from)
			d.got = append(d.got, d.buf[from:d.at]...)
		}
	}
	return d.got, d.err
}
