package erofs

import (
	"fmt"
	"io"
	"math/bits"
)

// maxChunks bounds the chunk map of one sparse file: 32 KiB. Larger files get larger chunks; what a chunk holds beside data is
// a hole in the data blob and costs no space.
const maxChunks = 4096

// Sparse adds a regular file of size bytes that has data only in the given segments, which are sorted, not empty, do not
// overlap and lie within size. r delivers their contents one after the other.
func (w *Writer) Sparse(a Attr, size int64, segments []Segment, r io.Reader) (*Inode, error) {
	if size == 0 || len(segments) == 1 && segments[0] == (Segment{0, size}) {
		return w.Regular(a, size, r)
	}
	xattrs, err := encodeXattrs(a.Xattrs)
	if err != nil {
		return nil, err
	}
	m := newChunkMap(w.data, size)
	for _, s := range segments {
		at, err := m.place(s)
		if err != nil {
			return nil, err
		}
		if err := w.data.copyAt(r, at, s.Length); err != nil {
			return nil, fmt.Errorf("segment at %d: %w", s.Offset, err)
		}
	}
	return w.addChunks(a, xattrs, m)
}

// addChunks places the inode of a sparse file.
func (w *Writer) addChunks(a Attr, xattrs xattrBody, m *chunkMap) (*Inode, error) {
	n := diskInode{attr: &a, layout: layoutChunk, size: uint64(m.size), u: uint32(m.bits-blockBits) | chunkFormatIndexes}
	// The chunk map begins at the next multiple of 8 behind the attributes; inodes begin at a multiple of 32.
	pad := -(inodeBytes + len(xattrs.bytes)) & 7
	return w.add(n, xattrs, pad+chunkIndexBytes*len(m.index), func(b []byte) error {
		for i, block := range m.index {
			encodeChunk(b[pad+chunkIndexBytes*i:], block)
		}
		return nil
	})
}

// sparseChunkBits returns the smallest chunk size, as a power of two, that needs no more than maxChunks chunks.
func sparseChunkBits(size int64) int {
	perChunk := (size + maxChunks - 1) / maxChunks
	return max(blockBits, bits.Len64(uint64(perChunk-1)))
}

// encodeChunk writes struct erofs_inode_chunk_index.
func encodeChunk(b []byte, block uint32) {
	if block == nullBlock {
		le.PutUint32(b[4:], nullBlock)
		return
	}
	le.PutUint16(b[2:], 1) // the first device
	le.PutUint32(b[4:], block)
}

// chunkMap gives the chunks of a sparse file their blocks in the data blob.
type chunkMap struct {
	data  *dataBlob
	size  int64
	bits  int
	index []uint32 // the first block of each chunk
}

func newChunkMap(data *dataBlob, size int64) *chunkMap {
	m := &chunkMap{data: data, size: size, bits: sparseChunkBits(size)}
	m.index = make([]uint32, (size+1<<m.bits-1)>>m.bits)
	for i := range m.index {
		m.index[i] = nullBlock
	}
	return m
}

// maxChunkBits is what the inode has room for.
const maxChunkBits = blockBits + 31

// wholeChunk describes a file without holes, from block first of the data blob on, as one chunk, or more from 8 TiB on. It says no more than a flat inode does,
// but in a file-backed mount Linux up to 7.2 at least reads a flat inode of another device page by page (fs/erofs/fileio.c compares
// where a read ends on the device with an address of the image), and a chunk in requests of up to 16 folios. Each is an event of fanotify.
func wholeChunk(size, first int64) *chunkMap {
	m := &chunkMap{size: size, bits: min(max(blockBits, bits.Len64(uint64(size-1))), maxChunkBits)}
	for at := int64(0); at < size; at += 1 << m.bits {
		m.index = append(m.index, uint32(first+at/BlockBytes))
	}
	return m
}

// place returns the position of a segment in the data blob. Segments come in order and none overlaps the one before, so chunks that one
// segment touches lie there one behind the other.
func (m *chunkMap) place(s Segment) (int64, error) {
	for c := s.Offset >> m.bits; c<<m.bits < s.Offset+s.Length; c++ {
		if m.index[c] != nullBlock {
			continue
		}
		length := min(int64(1)<<m.bits, m.size-c<<m.bits) // the last chunk ends with the file
		first, err := m.data.reserve(alignUp(length, BlockBytes) / BlockBytes)
		if err != nil {
			return 0, err
		}
		m.index[c] = uint32(first)
	}
	c := s.Offset >> m.bits
	return int64(m.index[c])*BlockBytes + s.Offset - c<<m.bits, nil
}
