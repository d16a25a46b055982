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
	chunkBits := sparseChunkBits(size)
	index, err := w.copyChunks(size, segments, chunkBits, r)
	if err != nil {
		return nil, err
	}
	n := diskInode{attr: &a, layout: layoutChunk, size: uint64(size), u: uint32(chunkBits-blockBits) | chunkFormatIndexes}
	// The chunk map begins at the next multiple of 8 behind the attributes; inodes begin at a multiple of 32.
	pad := -(inodeBytes + len(xattrs.bytes)) & 7
	return w.add(n, xattrs, pad+chunkIndexBytes*len(index), func(b []byte) error {
		for i, block := range index {
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

// copyChunks copies the segments into chunks of the data blob and returns the first block of each chunk.
func (w *Writer) copyChunks(size int64, segments []Segment, chunkBits int, r io.Reader) ([]uint32, error) {
	chunkBytes := int64(1) << chunkBits
	index := make([]uint32, (size+chunkBytes-1)>>chunkBits)
	for i := range index {
		index[i] = nullBlock
	}
	for _, s := range segments {
		for off, end := s.Offset, s.Offset+s.Length; off < end; {
			c := off >> chunkBits
			chunkStart := c << chunkBits
			if index[c] == nullBlock {
				length := min(chunkBytes, size-chunkStart) // the last chunk ends with the file
				first, err := w.data.reserve(alignUp(length, BlockBytes) / BlockBytes)
				if err != nil {
					return nil, err
				}
				index[c] = uint32(first)
			}
			n := min(end, chunkStart+chunkBytes) - off
			if err := w.data.copyAt(r, int64(index[c])*BlockBytes+off-chunkStart, n); err != nil {
				return nil, fmt.Errorf("segment at %d: %w", s.Offset, err)
			}
			off += n
		}
	}
	return index, nil
}
