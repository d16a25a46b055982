package erofs

import (
	"fmt"
	"math/bits"
)

// segmentBlocks is how many blocks of inodes are filled side by side before they are written with one write: 1 MiB. With that
// many to choose from, best fit leaves few per cent of the space unused.
const segmentBlocks = 256

// packer places inodes, each with its extended attributes and its inline data, into the blocks of the meta image from block 1
// on. Inline data may not cross a block boundary, so an item that fits a block is kept within one; the block with the least
// sufficient room is taken.
type packer struct {
	out      File
	segments []*segment // the last one is being filled; more than one only while holding
	// hold keeps full segments in memory, for items whose bytes become known only after their place.
	hold bool
}

// segment is a run of blocks.
type segment struct {
	start int64 // position of the first block in the file
	data  []byte
	used  int // blocks handed out
	// free[n] lists blocks with room for n slots of 32 bytes; room has a bit for each n with such blocks.
	free [BlockBytes/slotBytes + 1][]uint16
	room [3]uint64
}

func newPacker(out File) *packer {
	p := &packer{out: out}
	p.segments = []*segment{{start: BlockBytes, data: make([]byte, segmentBlocks*BlockBytes)}}
	return p
}

// place reserves n bytes and returns their position, a multiple of 32, and the memory that holds them until they are written:
// valid until the next call of place, or of flush when the packer holds.
func (p *packer) place(n int) (int64, []byte, error) {
	s := p.segments[len(p.segments)-1]
	at, ok := s.take(n)
	if !ok {
		next, err := p.nextSegment()
		if err != nil {
			return 0, nil, err
		}
		s = next
		if at, ok = s.take(n); !ok {
			return 0, nil, fmt.Errorf("%w: %d bytes of metadata for one inode", ErrTooLarge, n)
		}
	}
	return s.start + int64(at), s.data[at : at+n : at+n], nil
}

// block places a whole block of data and returns its address.
func (p *packer) block(b []byte) (uint32, error) {
	at, memory, err := p.place(BlockBytes)
	copy(memory, b)
	return uint32(at / BlockBytes), err
}

// nextSegment starts a new segment behind the current one, which is written unless the packer holds.
func (p *packer) nextSegment() (*segment, error) {
	cur := p.segments[len(p.segments)-1]
	next := &segment{start: cur.end()}
	if p.hold {
		next.data = make([]byte, segmentBlocks*BlockBytes)
		p.segments = append(p.segments, next)
		return next, nil
	}
	if err := cur.write(p.out); err != nil {
		return nil, err
	}
	next.data = cur.data
	clear(next.data)
	p.segments[0] = next
	return next, nil
}

// flush writes what is left and returns the position behind the last block.
func (p *packer) flush() (int64, error) {
	for _, s := range p.segments {
		if err := s.write(p.out); err != nil {
			return 0, err
		}
	}
	return p.segments[len(p.segments)-1].end(), nil
}

func (s *segment) end() int64 { return s.start + int64(s.used)*BlockBytes }

func (s *segment) write(out File) error {
	if s.used == 0 {
		return nil
	}
	if _, err := out.WriteAt(s.data[:s.used*BlockBytes], s.start); err != nil {
		return fmt.Errorf("write meta image at %d: %w", s.start, err)
	}
	return nil
}

// take reserves n bytes: in the fullest block that has room, or in fresh blocks.
func (s *segment) take(n int) (at int, ok bool) {
	slots := alignUp(n, slotBytes) / slotBytes
	if slots <= BlockBytes/slotBytes {
		if have, found := s.leastRoom(slots); found {
			list := s.free[have]
			block := list[len(list)-1]
			s.free[have] = list[:len(list)-1]
			if len(s.free[have]) == 0 {
				s.room[have/64] &^= 1 << (have % 64)
			}
			s.give(block, have-slots)
			return (int(block)+1)*BlockBytes - have*slotBytes, true
		}
	}
	blocks := alignUp(n, BlockBytes) / BlockBytes
	if s.used+blocks > segmentBlocks {
		return 0, false
	}
	at = s.used * BlockBytes
	s.used += blocks
	s.give(uint16(s.used-1), blocks*BlockBytes/slotBytes-slots)
	return at, true
}

// give records that block has room for slots more.
func (s *segment) give(block uint16, slots int) {
	if slots == 0 {
		return
	}
	s.free[slots] = append(s.free[slots], block)
	s.room[slots/64] |= 1 << (slots % 64)
}

// leastRoom returns the smallest room of at least slots that some block has.
func (s *segment) leastRoom(slots int) (int, bool) {
	for w := slots / 64; w < len(s.room); w++ {
		word := s.room[w]
		if w == slots/64 {
			word &= ^uint64(0) << (slots % 64)
		}
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word), true
		}
	}
	return 0, false
}
