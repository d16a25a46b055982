package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
)

// sample is n bytes that compress like real files: words, runs, zeros and noise.
func sample(n int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	words := make([][]byte, 500)
	for i := range words {
		words[i] = make([]byte, 1+rng.IntN(12))
		for j := range words[i] {
			words[i][j] = byte('a' + rng.IntN(26))
		}
	}
	var b []byte
	for len(b) < n {
		switch rng.IntN(40) {
		case 0:
			b = append(b, bytes.Repeat([]byte{byte(rng.IntN(256))}, rng.IntN(3000))...)
		case 1:
			for range rng.IntN(2000) {
				b = append(b, byte(rng.IntN(256)))
			}
		case 2:
			from := rng.IntN(len(b) + 1)
			b = append(b, b[from:min(len(b), from+rng.IntN(40000))]...)
		default:
			for range rng.IntN(50) {
				b = append(append(b, words[rng.IntN(len(words))]...), ' ')
			}
		}
	}
	return b[:n]
}

func gzipped(t testing.TB, b []byte, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestLevels(t *testing.T) {
	for _, n := range []int{0, 1, 100, 65535, 65536, 3 << 20} {
		want := sample(n)
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 6, 9} {
			gz := gzipped(t, want, level)
			for name, src := range map[string]io.Reader{
				"whole": bytes.NewReader(gz), "halves": iotest.HalfReader(bytes.NewReader(gz)),
				"data with error": iotest.DataErrReader(bytes.NewReader(gz)),
			} {
				got, err := io.ReadAll(NewReader(src))
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, level %d, %s: %d bytes, equal %v, error %v", n, level, name, len(got), bytes.Equal(got, want), err)
				}
			}
		}
	}
}

// TestFill decodes into buffers of all sizes, so that every kind of symbol meets the end of a buffer.
func TestFill(t *testing.T) {
	want := sample(300000)
	gz := gzipped(t, want, 6)
	for _, size := range []int{1, 2, 257, 258, 259, 275, 276, 277, 278, 1000, 4099} {
		r := NewReader(bytes.NewReader(gz))
		buf := make([]byte, WindowBytes+size)
		var got []byte
		for at := 0; ; {
			n, err := r.Fill(buf[:min(at+size, len(buf))], at)
			got = append(got, buf[at:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if at = n; at > WindowBytes {
				at = copy(buf, buf[at-WindowBytes:at])
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("buffers of %d bytes: wrong bytes", size)
		}
	}
}

func TestMembers(t *testing.T) {
	a, b := sample(100000), sample(50000)
	gz := slices.Concat(gzipped(t, a, 6), gzipped(t, nil, 6), gzipped(t, b, 1))
	got, err := io.ReadAll(NewReader(bytes.NewReader(gz)))
	if err != nil || !bytes.Equal(got, slices.Concat(a, b)) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// A match must not reach into the member before.
	far := deflate(t, func(w *flate.Writer) { w.Write(a[:1000]) }, a[:1000])
	second := slices.Concat(gz[:10], far, make([]byte, 8))
	if _, err := io.ReadAll(NewReader(bytes.NewReader(slices.Concat(gzipped(t, a[:1000], 6), second)))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("match into the member before: %v", err)
	}
}

// TestReset: one Reader for many streams in memory, whatever state the one before left it in.
func TestReset(t *testing.T) {
	var r Reader
	large := sample(3 * readBytes)
	for i, c := range []struct {
		in   []byte
		read int
		want error
	}{
		{gzipped(t, large, 6), 1000, nil},
		{gzipped(t, large, 1), len(large), nil},
		{append(gzipped(t, large[:9], 6), gzipped(t, large[9:50000], 0)...), 50000, nil},
		{gzipped(t, large, 6)[:5000], len(large), io.ErrUnexpectedEOF},
		{[]byte("no gzip at all"), 1, ErrCorrupt},
		{nil, 1, io.ErrUnexpectedEOF},
		{gzipped(t, nil, 6), 1, io.EOF},
		{gzipped(t, large, 6), len(large), nil},
	} {
		r.Reset(c.in)
		got := make([]byte, c.read)
		n, err := io.ReadFull(&r, got)
		if !errors.Is(err, c.want) || !bytes.Equal(got[:n], large[:n]) {
			t.Errorf("stream %d: %d bytes, %v, want %v", i, n, err, c.want)
		}
	}
}

// deflate returns a raw stream with a preset dictionary.
func deflate(t testing.TB, write func(*flate.Writer), dictionary []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriterDict(&out, 9, dictionary)
	if err != nil {
		t.Fatal(err)
	}
	write(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestCutReads ends a read of the stream at every byte. Stored blocks make the decoder go on with whole bytes, of which the fast
// loop has loaded some ahead.
func TestCutReads(t *testing.T) {
	var want []byte
	gz := gzipped(t, nil, 6)[:10]
	body := deflate(t, func(w *flate.Writer) {
		for i := range 12 {
			b := bytes.Repeat([]byte{byte(i)}, 3000+i)
			w.Write(b)
			w.Flush()
			want = append(want, b...)
		}
	}, nil)
	gz = slices.Concat(gz, body, binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(want)), binary.LittleEndian.AppendUint32(nil, uint32(len(want))))
	for cut := range gz {
		got, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(gz[:cut]), bytes.NewReader(gz[cut:]))))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("cut at %d: %d bytes, equal %v, error %v", cut, len(got), bytes.Equal(got, want), err)
		}
	}
}

func TestHeader(t *testing.T) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	w.Write([]byte("hello"))
	w.Close()
	got, err := io.ReadAll(NewReader(&out))
	if err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestCorrupt(t *testing.T) {
	gz := gzipped(t, sample(100000), 6)
	change := func(at int) []byte {
		b := bytes.Clone(gz)
		b[(at+len(b))%len(b)] ^= 0x55
		return b
	}
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"empty":     {nil, io.ErrUnexpectedEOF},
		"magic":     {change(0), ErrCorrupt},
		"method":    {change(2), ErrCorrupt},
		"flags":     {append([]byte{0x1f, 0x8b, 8, 0x80}, gz[4:]...), ErrCorrupt},
		"checksum":  {change(-8), ErrCorrupt},
		"length":    {change(-1), ErrCorrupt},
		"middle":    {change(len(gz) / 2), ErrCorrupt},
		"garbage":   {append(bytes.Clone(gz), 0), io.ErrUnexpectedEOF},
		"garbage 4": {append(bytes.Clone(gz), 0, 0, 0, 0), ErrCorrupt},
	} {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(c.in))); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
	for n := 0; n < len(gz); n += 1 + n/64 {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(gz[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestCheckpoints(t *testing.T) {
	want := sample(8 << 20)
	for _, gz := range [][]byte{
		gzipped(t, want, 6), gzipped(t, want, 0), gzipped(t, want, gzip.HuffmanOnly),
		slices.Concat(gzipped(t, want[:5<<20], 6), gzipped(t, want[5<<20:], 1)),
	} {
		for _, spacing := range []int64{0, 1 << 20, 4 << 20} {
			var points []Checkpoint
			r := NewReader(bytes.NewReader(gz))
			r.OnCheckpoint(spacing, func(c Checkpoint) {
				c.Window = bytes.Clone(c.Window)
				points = append(points, c)
			})
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
			if len(points) == 0 {
				t.Fatalf("spacing %d: no checkpoints", spacing)
			}
			for i, c := range points {
				if spacing == 0 && i%20 != 0 {
					continue
				}
				if i > 0 && c.Out-points[i-1].Out < spacing {
					t.Errorf("checkpoints at %d and %d", points[i-1].Out, c.Out)
				}
				r, err := Resume(bytes.NewReader(gz[c.In/8:]), c)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, want[c.Out:]) {
					t.Fatalf("resume at %d: %d bytes of %d, equal %v, error %v", c.Out, len(got), len(want)-int(c.Out), bytes.Equal(got, want[c.Out:]), err)
				}
			}
		}
	}
}
