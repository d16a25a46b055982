package blob

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
)

// The extent table, version 1. Little endian. A header page, pages of entries, and an index of the pages; pages have 4096 bytes.
//
//	header   0:8   magic "EROFSEXT"     8:12  version        12:16 flags, unknown bits are an error
//	        16:48  instance id         48:56  length of data 56:64 sum of the lengths of all extents
//	        64:68  number of extents   68:72  CRC of index   72:76 CRC of all entry pages
//	        76:4092 zero             4092:4096 CRC of the bytes before
//	entries  63 x { 0:8 offset in data, 8:16 offset in the layer's blob, 16:23 offset in what is decompressed, 23 kind, 24:28 length in
//	        data, 28:32 length in the layer's blob, 32:64 SHA-256 of the data }, in the order of offsets, all pages full but the last,
//	        whose rest is zero; 4032:4088 zero, 4088:4092 number of the page, 4092:4096 CRC of the bytes before
//	index    for every page of entries: u64 offset in data of its first extent
//
// Opening a blob reads header and index, 8 bytes in memory for 63 extents; a page of entries is read, and checked, when it is needed. So a
// thousand tables cost a few MiB, and no mapped file can end the process with SIGBUS.
const (
	tableMagic   = "EROFSEXT"
	tableVersion = 1

	pageBytes   = 4096
	entryBytes  = 64
	pageEntries = 63
	pageNumber  = 4088
	pageSum     = 4092
)

// Limits. Whoever makes a table from a layer index refuses what is beyond them, and pulls that layer whole.
const (
	// MaxExtents makes a table of 256 MiB. Chunks of 64 KiB, as small as any tool makes them, are then 256 GiB.
	MaxExtents = 1 << 22
	// MaxExtentBytes is the most that has to be in memory to be verified.
	MaxExtentBytes = 256 << 20
	// MaxDataBytes is what EROFS can address: 2^32 blocks of 4 KiB.
	MaxDataBytes = 1 << 44
	// maxBlobOffset and maxInnerOffset are what fits an entry, and what no layer reaches.
	maxBlobOffset  = 1 << 56
	maxInnerOffset = 1 << 56
)

// Extent is a range of a data blob that is fetched, verified and written as a whole, and where it comes from.
type Extent struct {
	// Offset and Length are its place in the data blob, in bytes.
	Offset int64
	Length uint32
	// BlobOffset and BlobLength are the bytes of the layer's blob to fetch: from where decompression starts to where it surely has
	// produced the extent.
	BlobOffset int64
	BlobLength uint32
	// InnerOffset is where the extent starts in what they decompress to.
	InnerOffset int64
	// Kind says how to decompress them. Its meaning belongs to whoever makes the table and fetches.
	Kind uint8
	// Digest is the SHA-256 of the extent's bytes.
	Digest [32]byte
}

// End is the offset in the data blob after the extent.
func (e Extent) End() int64 { return e.Offset + int64(e.Length) }

func (e Extent) check(after, dataBytes int64) error {
	switch {
	case e.Offset < after:
		return fmt.Errorf("it begins at %d, the one before ends at %d", e.Offset, after)
	case e.Length == 0 || e.Length > MaxExtentBytes:
		return fmt.Errorf("it has %d bytes, want 1 to %d", e.Length, MaxExtentBytes)
	case e.Offset > dataBytes || e.End() > dataBytes:
		return fmt.Errorf("%d bytes at %d do not fit %d bytes of data", e.Length, e.Offset, dataBytes)
	case e.BlobOffset < 0 || e.BlobOffset >= maxBlobOffset:
		return fmt.Errorf("it is at %d of the layer's blob, want less than %d", e.BlobOffset, int64(maxBlobOffset))
	case e.InnerOffset < 0 || e.InnerOffset >= maxInnerOffset:
		return fmt.Errorf("it is at %d of what is decompressed, want less than %d", e.InnerOffset, int64(maxInnerOffset))
	}
	return nil
}

func (e Extent) put(b []byte) {
	binary.LittleEndian.PutUint64(b[0:], uint64(e.Offset))
	binary.LittleEndian.PutUint64(b[8:], uint64(e.BlobOffset))
	binary.LittleEndian.PutUint64(b[16:], uint64(e.InnerOffset)|uint64(e.Kind)<<56)
	binary.LittleEndian.PutUint32(b[24:], e.Length)
	binary.LittleEndian.PutUint32(b[28:], e.BlobLength)
	copy(b[32:], e.Digest[:])
}

// getPlace returns where an entry's extent is in the data blob.
func getPlace(b []byte) (offset int64, length uint32) {
	return int64(binary.LittleEndian.Uint64(b[0:])), binary.LittleEndian.Uint32(b[24:])
}

func getExtent(b []byte) Extent {
	inner := binary.LittleEndian.Uint64(b[16:])
	offset, length := getPlace(b)
	return Extent{
		Offset:      offset,
		BlobOffset:  int64(binary.LittleEndian.Uint64(b[8:])),
		InnerOffset: int64(inner & (maxInnerOffset - 1)),
		Kind:        uint8(inner >> 56),
		Length:      length,
		BlobLength:  binary.LittleEndian.Uint32(b[28:]),
		Digest:      [32]byte(b[32:64]),
	}
}

// tableHead is the header of a table.
type tableHead struct {
	id          [32]byte
	dataBytes   int64
	extentBytes int64
	count       int
	indexSum    uint32
	pagesSum    uint32
}

func (h tableHead) pages() int { return (h.count + pageEntries - 1) / pageEntries }

func (h tableHead) fileBytes() int64 { return pageBytes + int64(h.pages())*(pageBytes+8) }

func (h tableHead) encode() []byte {
	b := make([]byte, pageBytes)
	copy(b, tableMagic)
	binary.LittleEndian.PutUint32(b[8:], tableVersion)
	copy(b[16:], h.id[:])
	binary.LittleEndian.PutUint64(b[48:], uint64(h.dataBytes))
	binary.LittleEndian.PutUint64(b[56:], uint64(h.extentBytes))
	binary.LittleEndian.PutUint32(b[64:], uint32(h.count))
	binary.LittleEndian.PutUint32(b[68:], h.indexSum)
	binary.LittleEndian.PutUint32(b[72:], h.pagesSum)
	binary.LittleEndian.PutUint32(b[pageSum:], checksum(0, b[:pageSum]))
	return b
}

func parseTableHead(b []byte) (tableHead, error) {
	if err := checkHead(b, tableMagic, tableVersion); err != nil {
		return tableHead{}, err
	}
	h := tableHead{
		id:          [32]byte(b[16:48]),
		dataBytes:   int64(binary.LittleEndian.Uint64(b[48:])),
		extentBytes: int64(binary.LittleEndian.Uint64(b[56:])),
		count:       int(binary.LittleEndian.Uint32(b[64:])),
		indexSum:    binary.LittleEndian.Uint32(b[68:]),
		pagesSum:    binary.LittleEndian.Uint32(b[72:]),
	}
	return h, h.check()
}

func (h tableHead) check() error {
	switch {
	case h.count > MaxExtents:
		return fmt.Errorf("%d extents, the limit is %d", h.count, MaxExtents)
	case h.dataBytes < 0 || h.dataBytes > MaxDataBytes:
		return fmt.Errorf("%d bytes of data, the limit is %d", h.dataBytes, int64(MaxDataBytes))
	case h.extentBytes < 0 || h.extentBytes > h.dataBytes:
		return fmt.Errorf("extents of %d bytes in %d bytes of data", h.extentBytes, h.dataBytes)
	}
	return nil
}

// checkHead checks what the headers of both formats have in common.
func checkHead(b []byte, magic string, version uint32) error {
	if string(b[:8]) != magic {
		return errors.New("not such a file: wrong magic")
	}
	if got := binary.LittleEndian.Uint32(b[8:]); got != version {
		return fmt.Errorf("version %d, this program knows %d only", got, version)
	}
	if flags := binary.LittleEndian.Uint32(b[12:]); flags != 0 {
		return fmt.Errorf("unknown flags %#x", flags)
	}
	if checksum(0, b[:pageSum]) != binary.LittleEndian.Uint32(b[pageSum:]) {
		return errors.New("header: wrong checksum")
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum continues a CRC-32C. Damage by accident is what it finds; the files belong to root.
func checksum(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// seed is where the checksums of an instance's pages begin, so that a page of another one is none of ours.
func seed(id [32]byte) uint32 { return checksum(0, id[:]) }

// writeTable writes a table from its extents, which must be in the order of their offsets.
func writeTable(f io.WriterAt, id [32]byte, dataBytes int64, extents iter.Seq[Extent]) (tableHead, error) {
	w := tableWriter{f: f, head: tableHead{id: id, dataBytes: dataBytes}}
	var after int64
	for e := range extents {
		if err := e.check(after, dataBytes); err != nil {
			return tableHead{}, fmt.Errorf("extent %d: %w", w.head.count, err)
		}
		if err := w.add(e); err != nil {
			return tableHead{}, err
		}
		after = e.End()
	}
	return w.finish()
}

// tableWriter writes one page of entries after the other.
type tableWriter struct {
	f     io.WriterAt
	head  tableHead
	page  [pageBytes]byte
	index []byte
}

func (w *tableWriter) add(e Extent) error {
	if w.head.count == MaxExtents {
		return fmt.Errorf("more than %d extents", MaxExtents)
	}
	at := w.head.count % pageEntries
	if at == 0 {
		w.index = binary.LittleEndian.AppendUint64(w.index, uint64(e.Offset))
	}
	e.put(w.page[at*entryBytes:])
	w.head.count++
	w.head.extentBytes += int64(e.Length)
	if at == pageEntries-1 {
		return w.flush()
	}
	return nil
}

func (w *tableWriter) flush() error {
	n := w.head.pages() - 1
	binary.LittleEndian.PutUint32(w.page[pageNumber:], uint32(n))
	binary.LittleEndian.PutUint32(w.page[pageSum:], checksum(seed(w.head.id), w.page[:pageSum]))
	w.head.pagesSum = checksum(w.head.pagesSum, w.page[:])
	_, err := w.f.WriteAt(w.page[:], pageBytes*int64(1+n))
	clear(w.page[:])
	return err
}

func (w *tableWriter) finish() (tableHead, error) {
	if w.head.count%pageEntries != 0 {
		if err := w.flush(); err != nil {
			return tableHead{}, err
		}
	}
	w.head.indexSum = checksum(0, w.index)
	if err := w.head.check(); err != nil {
		return tableHead{}, err
	}
	if _, err := w.f.WriteAt(w.index, pageBytes*int64(1+w.head.pages())); err != nil {
		return tableHead{}, err
	}
	_, err := w.f.WriteAt(w.head.encode(), 0)
	return w.head, err
}
