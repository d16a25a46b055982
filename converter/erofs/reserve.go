package erofs

// The methods here add files whose contents are not at hand: somebody else writes them to the data blob, at the places that are returned,
// before or while the image is mounted. Whatever nobody writes there must read as zeros, as a hole does.

// Reserve adds a regular file of size bytes and returns the position of its contents in the data blob, a multiple of BlockBytes. An
// empty file has none.
func (w *Writer) Reserve(a Attr, size int64) (n *Inode, at int64, err error) {
	xattrs, err := encodeXattrs(a.Xattrs)
	if err != nil {
		return nil, 0, err
	}
	first, err := w.data.reserve(alignUp(size, BlockBytes) / BlockBytes)
	if err != nil {
		return nil, 0, err
	}
	if size > BlockBytes {
		n, err = w.addChunks(a, xattrs, wholeChunk(size, first))
		return n, first * BlockBytes, err
	}
	d := diskInode{attr: &a, layout: layoutPlain, size: uint64(size)}
	if size > 0 {
		d.u = deviceAddress + uint32(first)
	}
	n, err = w.add(d, xattrs, 0, nil)
	return n, first * BlockBytes, err
}

// ReserveSparse is like Reserve for a file, not empty, that has data only in the given segments, which are as for Sparse. It returns
// the position of each: they are in order, too. What lies between them takes less of the data blob the longer it is.
func (w *Writer) ReserveSparse(a Attr, size int64, segments []Segment) (n *Inode, at []int64, err error) {
	xattrs, err := encodeXattrs(a.Xattrs)
	if err != nil {
		return nil, nil, err
	}
	m := newChunkMap(w.data, size)
	at = make([]int64, len(segments))
	for i, s := range segments {
		if at[i], err = m.place(s); err != nil {
			return nil, nil, err
		}
	}
	n, err = w.addChunks(a, xattrs, m)
	return n, at, err
}
