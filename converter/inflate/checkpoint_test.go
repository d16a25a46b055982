package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// bitWriter writes DEFLATE blocks that no library would choose.
type bitWriter struct {
	out   []byte
	bits  uint64
	count uint
}

func (w *bitWriter) put(v uint64, n uint) {
	w.bits |= v << w.count
	for w.count += n; w.count >= 8; w.count -= 8 {
		w.out = append(w.out, byte(w.bits))
		w.bits >>= 8
	}
}

// align fills up the last byte.
func (w *bitWriter) align() { w.put(0, -w.count&7) }

// fixed writes a block of literals in the fixed code (RFC 1951, 3.2.6), which may end at any bit.
func (w *bitWriter) fixed(b []byte, final uint64) {
	w.put(final|1<<1, 3)
	for _, c := range b {
		if c < 144 {
			w.put(uint64(bits.Reverse8(0x30+c)), 8)
		} else {
			w.put(uint64(bits.Reverse16(0x190+uint16(c-144))>>7), 9)
		}
	}
	w.put(0, 7)
}

func (w *bitWriter) stored(b []byte) {
	w.put(0, 3)
	w.align()
	w.put(uint64(len(b))|uint64(^uint16(len(b)))<<16, 32)
	w.out = append(w.out, b...)
}

// mixed is a gzip stream of members in which runs of stored, fixed and dynamic blocks follow each other.
func mixed(t *testing.T, members ...[]byte) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	var w bitWriter
	run := 0
	for _, m := range members {
		w.out = append(w.out, gzipped(t, nil, 6)[:10]...)
		for rest := m; len(rest) > 0; run++ {
			part := rest[:min(len(rest), 500_000+rng.IntN(300_000))]
			rest = rest[len(part):]
			if run%3 == 2 {
				w.stored(nil) // ends at a byte, where the library's blocks can follow
				w.out = append(w.out, deflate(t, func(f *flate.Writer) { f.Write(part); f.Flush() }, nil)...)
				w.out = w.out[:len(w.out)-5] // the final block of Close
				continue
			}
			for len(part) > 0 {
				n := min(len(part), 1+rng.IntN(min(60_000, len(m)/3+1)))
				if run%3 == 0 {
					w.stored(part[:n])
				} else {
					w.fixed(part[:n], 0)
				}
				part = part[n:]
			}
		}
		w.fixed(nil, 1)
		w.align()
		w.out = binary.LittleEndian.AppendUint32(w.out, crc32.ChecksumIEEE(m))
		w.out = binary.LittleEndian.AppendUint32(w.out, uint32(len(m)))
	}
	return w.out
}

// checkpoints decodes gz and returns all checkpoints.
func checkpoints(t *testing.T, r *Reader, spacing int64) []Checkpoint {
	t.Helper()
	var points []Checkpoint
	r.OnCheckpoint(spacing, func(c Checkpoint) {
		c.Window = bytes.Clone(c.Window)
		points = append(points, c)
	})
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	return points
}

// TestReadFromCheckpoints reads ranges as somebody does who has an index of the stream: from the last checkpoint before them. The stream has
// several members and all kinds of blocks, and checkpoints lie in front of each kind.
func TestReadFromCheckpoints(t *testing.T) {
	want := sample(24 << 20)
	ends := []int{0, 7<<20 + 11, 7<<20 + 11, 8 << 20, 18<<20 + 1}
	for range 100 { // so that checkpoints lie near the beginning of a member
		ends = append(ends, ends[len(ends)-1]+50_000)
	}
	ends = append(ends, len(want))
	var members [][]byte
	for i := range len(ends) - 1 {
		members = append(members, want[ends[i]:ends[i+1]])
	}
	gz := mixed(t, members...)
	std, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(std); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the standard library reads %d bytes, %v", len(got), err)
	}
	for _, spacing := range []int64{1 << 20, 4 << 20} {
		t.Run(fmt.Sprint(spacing), func(t *testing.T) {
			points := checkpoints(t, NewReader(bytes.NewReader(gz)), spacing)
			if n := int64(len(want)) / (spacing + 1<<20); int64(len(points)) < n {
				t.Errorf("%d checkpoints, want %d or more", len(points), n)
			}
			kinds := make(map[int]int)
			for i, c := range points {
				kinds[blockKind(gz, c.In)]++
				checkWindow(t, c, want, ends)
				readRanges(t, gz, c, want, spacing)
				r, err := Resume(bytes.NewReader(gz[c.In/8:]), c)
				if err != nil {
					t.Fatal(err)
				}
				if got := checkpoints(t, r, spacing); !samePoints(got, points[i+1:]) {
					t.Errorf("resumed at %d: other checkpoints behind it", c.Out)
				}
			}
			if spacing == 1<<20 && (kinds[0] == 0 || kinds[1] == 0 || kinds[2] == 0) {
				t.Errorf("checkpoints before stored, fixed and dynamic blocks: %v", kinds)
			}
		})
	}
}

// blockKind returns the type of the block at a bit of the stream.
func blockKind(gz []byte, at int64) int {
	return int(binary.LittleEndian.Uint16(gz[at/8:])>>(at%8)>>1) & 3
}

// checkWindow compares a checkpoint's window with the output before it: all that a match may refer to, and nothing of the member before.
func checkWindow(t *testing.T, c Checkpoint, want []byte, ends []int) {
	t.Helper()
	begin := 0
	for _, end := range ends {
		if int64(end) < c.Out { // at the end of a member it is a block without bytes that comes
			begin = end
		}
	}
	if w := want[max(begin, int(c.Out)-WindowBytes):c.Out]; !bytes.Equal(c.Window, w) {
		t.Errorf("checkpoint at %d: window of %d bytes, want %d, equal %v", c.Out, len(c.Window), len(w), bytes.Equal(c.Window, w))
	}
}

func samePoints(a, b []Checkpoint) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].In != b[i].In || a[i].Out != b[i].Out || !bytes.Equal(a[i].Window, b[i].Window) {
			return false
		}
	}
	return true
}

// readRanges reads a few ranges behind c. The source begins where it must and gives its bytes in odd pieces.
func readRanges(t *testing.T, gz []byte, c Checkpoint, want []byte, spacing int64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, uint64(c.Out)))
	for _, offset := range []int64{0, 1, rng.Int64N(spacing), spacing + rng.Int64N(spacing)} {
		from := min(c.Out+offset, int64(len(want)))
		to := min(from+1+rng.Int64N(200_000), int64(len(want)))
		r, err := Resume(iotest.HalfReader(bytes.NewReader(gz[c.In/8:])), c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, from-c.Out); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, to-from)
		for at := 0; at < len(got); {
			n, err := r.Read(got[at:min(len(got), at+1+rng.IntN(70_000))])
			if at += n; err != nil {
				t.Fatalf("from %d: %d bytes of %d at %d: %v", c.Out, at, len(got), from, err)
			}
		}
		if !bytes.Equal(got, want[from:to]) {
			t.Fatalf("from %d: wrong bytes from %d to %d", c.Out, from, to)
		}
	}
}

// TestResumeChecks: who resumes within a member does not notice that its checksum is wrong, but notices it of the next.
func TestResumeChecks(t *testing.T) {
	want := sample(3 << 20)
	gz := mixed(t, want[:2<<20], want[2<<20:])
	points := checkpoints(t, NewReader(bytes.NewReader(gz)), 1<<20)
	if len(points) == 0 || points[0].Out >= 2<<20 {
		t.Fatalf("%d checkpoints", len(points))
	}
	c := points[0]
	firstTrailer := len(mixed(t, want[:2<<20])) - 8
	for _, damage := range []struct {
		at   int
		want error
	}{{firstTrailer, nil}, {firstTrailer + 4, nil}, {len(gz) - 8, ErrCorrupt}, {len(gz) - 4, ErrCorrupt}} {
		bad := bytes.Clone(gz)
		bad[damage.at] ^= 1
		r, err := Resume(bytes.NewReader(bad[c.In/8:]), c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); !errors.Is(err, damage.want) || !bytes.Equal(got, want[c.Out:]) {
			t.Errorf("damage at %d: %d bytes, error %v, want %v", damage.at, len(got), err, damage.want)
		}
	}
}
