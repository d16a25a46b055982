package erofs

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// memFile is a File in memory.
type memFile struct{ b []byte }

func (m *memFile) WriteAt(b []byte, off int64) (int, error) {
	if need := int(off) + len(b); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], b), nil
}

func (m *memFile) Truncate(n int64) error {
	m.b = append(m.b, make([]byte, max(0, int(n)-len(m.b)))...)[:n]
	return nil
}

// TestPacker places items of all sizes and looks whether each kept its bytes, its alignment and its block.
func TestPacker(t *testing.T) {
	for _, hold := range []bool{false, true} {
		var out memFile
		p := newPacker(&out)
		p.hold = hold
		type item struct {
			at   int64
			n    int
			fill byte
		}
		var items []item
		rng := rand.New(rand.NewPCG(1, 2))
		total := 0
		for i := range 20000 {
			n := 64 + rng.IntN(4033)
			if i%1000 == 7 {
				n = 4097 + rng.IntN(200000)
			}
			at, b, err := p.place(n)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) != n || !bytes.Equal(b, make([]byte, n)) {
				t.Fatalf("item %d: memory of %d bytes, zero: %v", i, len(b), bytes.Equal(b, make([]byte, n)))
			}
			for j := range b {
				b[j] = byte(i) | 1
			}
			items = append(items, item{at, n, byte(i) | 1})
			total += n
		}
		end, err := p.flush()
		if err != nil {
			t.Fatal(err)
		}
		if end != int64(len(out.b)) {
			t.Errorf("end %d, file has %d bytes", end, len(out.b))
		}
		for i, it := range items {
			if it.at%slotBytes != 0 || it.at < BlockBytes {
				t.Fatalf("item %d at %d", i, it.at)
			}
			if it.n <= BlockBytes && it.at/BlockBytes != (it.at+int64(it.n)-1)/BlockBytes {
				t.Fatalf("item %d: %d bytes at %d cross a block boundary", i, it.n, it.at)
			}
			if !bytes.Equal(out.b[it.at:it.at+int64(it.n)], bytes.Repeat([]byte{it.fill}, it.n)) {
				t.Fatalf("item %d was overwritten", i)
			}
		}
		if used := float64(total) / float64(end); used < 0.80 {
			t.Errorf("only %.0f%% of the blocks are used", 100*used)
		}
	}
}

func TestPackerTooLarge(t *testing.T) {
	p := newPacker(&memFile{})
	if _, _, err := p.place(segmentBlocks*BlockBytes + 1); err == nil {
		t.Error("no error")
	}
}
