package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// TestUnlikeStandard shows where we differ from compress/gzip on purpose. FuzzGzip finds no other difference.
func TestUnlikeStandard(t *testing.T) {
	plain := gzipped(t, []byte("hello"), 6)
	flags := func(f byte, header ...byte) []byte {
		return slices.Concat(plain[:3], []byte{f}, plain[4:10], header, plain[10:])
	}
	for _, c := range []struct {
		name      string
		in        []byte
		std, ours error
	}{
		// RFC 1952, 2.3.1.2: a decompressor "must give an error indication if any reserved bit is non-zero", for that could mean
		// another field behind the header.
		{"reserved flag", flags(0x20), nil, ErrCorrupt},
		{"reserved flag of a later member", append(bytes.Clone(plain), flags(0x80)...), nil, ErrCorrupt},
		// The format knows no longest name; compress/gzip keeps it in a buffer of 512 bytes.
		{"name of 511 bytes", flags(flagName, append([]byte(strings.Repeat("n", 511)), 0)...), nil, nil},
		{"name of 512 bytes", flags(flagName, append([]byte(strings.Repeat("n", 512)), 0)...), gzip.ErrHeader, nil},
		{"comment of 512 bytes", flags(flagComment, append([]byte(strings.Repeat("n", 512)), 0)...), gzip.ErrHeader, nil},
		// A layer of no bytes is one that was cut; the error says so.
		{"empty", nil, io.EOF, io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			std, err := gzip.NewReader(bytes.NewReader(c.in))
			if err == nil {
				_, err = io.ReadAll(std)
			}
			if !errors.Is(err, c.std) {
				t.Errorf("compress/gzip: %v, want %v", err, c.std)
			}
			if _, err := io.ReadAll(NewReader(bytes.NewReader(c.in))); !errors.Is(err, c.ours) {
				t.Errorf("we: %v, want %v", err, c.ours)
			}
		})
	}
}

// FuzzGzip compares whole gzip streams with the standard library: the same bytes, or both refuse, except for what TestUnlikeStandard
// lists. With repair, the checksums and lengths of all members are made right first: otherwise nearly no change of the input leads
// anywhere.
func FuzzGzip(f *testing.F) {
	add := func(in []byte) {
		f.Add(in, true, uint16(300), uint8(1))
		f.Add(in, false, uint16(0), uint8(131))
	}
	short := gzipped(f, []byte("hello"), 6)
	header := func(flags byte, fields string) []byte {
		return slices.Concat(short[:3], []byte{flags}, short[4:10], []byte(fields), short[10:])
	}
	add(header(flagHeaderSum|flagExtra|flagName|flagComment, "\x03\x00abcname\x00comment\x00\x00\x00"))
	add(header(flagHeaderSum, "\x00\x00"))
	add(slices.Concat(short, header(flagName, "\xff\x00"), gzipped(f, nil, 0), gzipped(f, sample(2000), 1)))
	add(append(bytes.Clone(short), "garbage behind the end"...))
	add(append(bytes.Clone(short), 0))
	add(header(0x40, ""))
	add(header(flagExtra, "\x2c\x01"+strings.Repeat("x", 300)))
	for _, fromEnd := range []int{8, 5, 4, 1} { // checksum and length
		bad := bytes.Clone(short)
		bad[len(bad)-fromEnd] ^= 1
		add(bad)
	}
	// a match that reaches into the member before
	first := sample(1000)
	second := deflate(f, func(w *flate.Writer) { w.Write(first) }, first)
	add(slices.Concat(gzipped(f, first, 6), short[:10], second, gzipped(f, first, 0)[len(gzipped(f, first, 0))-8:]))
	std := new(gzip.Reader)
	var d fuzzDecoder
	var want bytes.Buffer
	f.Fuzz(func(t *testing.T, in []byte, repair bool, outBytes uint16, inBytes uint8) {
		in, unlike := walkMembers(in, repair)
		want.Reset()
		wantErr := std.Reset(bytes.NewReader(in))
		if wantErr == nil {
			_, wantErr = io.Copy(&want, io.LimitReader(std, fuzzBytes+1))
		}
		if want.Len() > fuzzBytes {
			return
		}
		var src io.Reader = bytes.NewReader(in)
		if inBytes&0x80 != 0 {
			src = iotest.DataErrReader(iotest.OneByteReader(src))
		}
		got, gotErr := d.members(src, int(outBytes), int(inBytes&0x7f))
		switch {
		case gotErr != nil && !errors.Is(gotErr, ErrCorrupt) && !errors.Is(gotErr, io.ErrUnexpectedEOF):
			t.Fatal(gotErr)
		case unlike.reserved && gotErr == nil:
			t.Fatal("reserved flags are accepted")
		case unlike.reserved, unlike.longName:
			wantErr = io.ErrUnexpectedEOF // one stops at that header, so only the bytes before it compare
		case (wantErr == nil) != (gotErr == nil):
			t.Fatalf("standard library: %v, we: %v", wantErr, gotErr)
		}
		if !sameOutput(got, want.Bytes(), wantErr) {
			t.Fatalf("%d bytes, want %d, errors %v and %v", len(got), want.Len(), gotErr, wantErr)
		}
	})
}

// members decodes a whole gzip stream with Fill, into buffers that are small, up to a bit more than fuzzBytes.
func (d *fuzzDecoder) members(src io.Reader, outBytes, inBytes int) ([]byte, error) {
	d.reset(src, Checkpoint{}, outBytes, inBytes)
	d.phase, d.unchecked = atMember, false
	var err error
	for err == nil && len(d.got) <= 2*fuzzBytes {
		if d.at > WindowBytes {
			d.at = copy(d.buf[:], d.buf[d.at-WindowBytes:d.at])
		}
		from := d.at
		d.at, err = d.Fill(d.buf[:min(from+d.room, len(d.buf))], from)
		d.got = append(d.got, d.buf[from:d.at]...)
	}
	if err == io.EOF {
		err = nil
	}
	return d.got, err
}

// difference says which headers of TestUnlikeStandard a stream has.
type difference struct{ reserved, longName bool }

// walkMembers looks at the headers of all members up to the first that is no member, and with repair returns a copy of the stream in which
// their sums and lengths are right. It reads RFC 1952 anew, and no deflate stream that becomes longer than fuzzBytes.
func walkMembers(in []byte, repair bool) (out []byte, found difference) {
	if repair {
		in = bytes.Clone(in)
	}
	for at := 0; len(in)-at >= 10 && bytes.HasPrefix(in[at:], []byte{0x1f, 0x8b, 8}); {
		var unlike difference
		at, unlike = walkHeader(in, at, repair)
		found.reserved, found.longName = found.reserved || unlike.reserved, found.longName || unlike.longName
		if at > len(in) {
			break
		}
		rest := bytes.NewReader(in[at:])
		body, err := io.ReadAll(io.LimitReader(flate.NewReader(rest), fuzzBytes+1))
		if at = len(in) - rest.Len(); err != nil || len(body) > fuzzBytes || len(in)-at < 8 {
			break
		}
		if repair {
			binary.LittleEndian.PutUint32(in[at:], crc32.ChecksumIEEE(body))
			binary.LittleEndian.PutUint32(in[at+4:], uint32(len(body)))
		}
		at += 8
	}
	return in, found
}

// walkHeader returns where the header at a position ends: behind in if that ends before.
func walkHeader(in []byte, start int, repair bool) (at int, found difference) {
	flags := in[start+3]
	found.reserved = flags&flagsReserved != 0
	beyond := len(in) + 1
	if at = start + 10; flags&flagExtra != 0 {
		if len(in)-at < 2 {
			return beyond, found
		}
		at += 2 + int(binary.LittleEndian.Uint16(in[at:]))
	}
	for _, f := range []byte{flagName, flagComment} {
		if flags&f == 0 {
			continue
		}
		n := bytes.IndexByte(in[min(at, len(in)):], 0)
		if n < 0 {
			return beyond, found
		}
		found.longName = found.longName || n >= 512
		at += n + 1
	}
	if flags&flagHeaderSum == 0 {
		return at, found
	}
	if repair && at+2 <= len(in) {
		binary.LittleEndian.PutUint16(in[at:], uint16(crc32.ChecksumIEEE(in[start:at])))
	}
	return at + 2, found
}
