package blob

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"sync"
)

// table is an extent table that is open.
type table struct {
	f     file
	head  tableHead
	index []int64 // offset in data of the first extent of each page
}

// openTable reads header and index. What they say wrong is ErrUnusable, a file that cannot be read is not.
func openTable(f file, id [32]byte) (*table, error) {
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	if size < pageBytes {
		return nil, fmt.Errorf("%d bytes are no extent table: %w", size, ErrUnusable)
	}
	b := make([]byte, pageBytes)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	head, err := parseTableHead(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrUnusable)
	}
	if head.id != id {
		return nil, fmt.Errorf("made for instance %x: %w", head.id, ErrUnusable)
	}
	if size != head.fileBytes() {
		return nil, fmt.Errorf("%d bytes, want %d: %w", size, head.fileBytes(), ErrUnusable)
	}
	t := &table{f: f, head: head}
	return t, t.readIndex()
}

func (t *table) readIndex() error {
	b := make([]byte, 8*t.head.pages())
	if _, err := t.f.ReadAt(b, pageBytes*int64(1+t.head.pages())); err != nil {
		return err
	}
	if checksum(0, b) != t.head.indexSum {
		return fmt.Errorf("index: wrong checksum: %w", ErrUnusable)
	}
	t.index = make([]int64, t.head.pages())
	after := int64(-1)
	for i := range t.index {
		t.index[i] = int64(binary.LittleEndian.Uint64(b[8*i:]))
		if t.index[i] <= after || t.index[i] >= t.head.dataBytes {
			return fmt.Errorf("index: page %d begins at %d: %w", i, t.index[i], ErrUnusable)
		}
		after = t.index[i]
	}
	return nil
}

// recordHead is the header of the record that belongs to the table.
func (t *table) recordHead() recordHead {
	return recordHead{id: t.head.id, dataBytes: t.head.dataBytes, count: t.head.count, tableSum: t.head.pagesSum}
}

// page is a page of entries that was checked. It goes back to where it came from with release.
type page struct {
	b *[pageBytes]byte
	n int // how many entries it has
}

var pages = sync.Pool{New: func() any { return new([pageBytes]byte) }}

func (p page) release() { pages.Put(p.b) }

func (p page) extent(i int) Extent { return getExtent(p.b[i*entryBytes:]) }

// find returns the first entry of which is says true, which it says of all after that too, or n.
func (p page) find(is func(offset, end int64) bool) int {
	return sort.Search(p.n, func(i int) bool {
		offset, length := getPlace(p.b[i*entryBytes:])
		return is(offset, offset+int64(length))
	})
}

// load reads page n.
func (t *table) load(n int) (_ page, err error) {
	p := page{pages.Get().(*[pageBytes]byte), min(pageEntries, t.head.count-n*pageEntries)}
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	if _, err := t.f.ReadAt(p.b[:], pageBytes*int64(1+n)); err != nil {
		return page{}, fmt.Errorf("page %d: %w", n, err)
	}
	if err := t.checkPage(p, n); err != nil {
		return page{}, fmt.Errorf("page %d: %w: %w", n, err, ErrUnusable)
	}
	return p, nil
}

// checkPage finds out whether p is page n as it was written. That is enough to look something up in it: see checkEntries.
func (t *table) checkPage(p page, n int) error {
	if checksum(seed(t.head.id), p.b[:pageSum]) != binary.LittleEndian.Uint32(p.b[pageSum:]) {
		return errors.New("wrong checksum")
	}
	if got := binary.LittleEndian.Uint32(p.b[pageNumber:]); got != uint32(n) {
		return fmt.Errorf("it is page %d", got)
	}
	if first, _ := getPlace(p.b[:]); first != t.index[n] {
		return fmt.Errorf("it begins at %d, the index says %d", first, t.index[n])
	}
	return nil
}

// checkEntries checks the entries of page n from first up to, and without, end, which are to be used.
func (t *table) checkEntries(p page, n, first, end int) error {
	after, limit := t.index[n], t.head.dataBytes
	if n+1 < len(t.index) {
		limit = t.index[n+1]
	}
	for i := first; i < end; i++ {
		e := p.extent(i)
		if err := e.check(after, limit); err != nil {
			return fmt.Errorf("page %d: entry %d: %w: %w", n, i, err, ErrUnusable)
		}
		after = e.End()
	}
	return nil
}

// covering returns the extents that overlap the bytes from up to, and without, to.
func (t *table) covering(from, to int64) (first, end int, err error) {
	last := sort.Search(len(t.index), func(n int) bool { return t.index[n] >= to }) - 1
	if from >= to || last < 0 {
		return 0, 0, nil
	}
	// A range that begins before all extents begins on page 0 too.
	start := max(0, sort.Search(len(t.index), func(n int) bool { return t.index[n] > from })-1)
	p, err := t.load(start)
	if err != nil {
		return 0, 0, err
	}
	defer func() { p.release() }()
	first = start*pageEntries + p.find(func(_, end int64) bool { return end > from })
	if last != start {
		next, err := t.load(last)
		if err != nil {
			return 0, 0, err
		}
		p.release()
		p = next
	}
	end = last*pageEntries + p.find(func(offset, _ int64) bool { return offset >= to })
	return first, max(first, end), nil
}

// extents returns those from first up to, and without, end.
func (t *table) extents(first, end int) ([]Extent, error) {
	if first < 0 || end > t.head.count || first > end {
		return nil, fmt.Errorf("extents %d to %d of %d", first, end, t.head.count)
	}
	list := make([]Extent, 0, end-first)
	for first < end {
		n := first / pageEntries
		p, err := t.load(n)
		if err != nil {
			return nil, err
		}
		from := first - n*pageEntries
		to := min(p.n, end-n*pageEntries)
		if err := t.checkEntries(p, n, from, to); err != nil {
			p.release()
			return nil, err
		}
		for i := from; i < to; i++ {
			list = append(list, p.extent(i))
		}
		p.release()
		first = n*pageEntries + to
	}
	return list, nil
}

// check reads all pages.
func (t *table) check() error {
	var sum uint32
	var bytes int64
	for n := range t.index {
		p, err := t.load(n)
		if err != nil {
			return err
		}
		sum = checksum(sum, p.b[:])
		err = t.checkEntries(p, n, 0, p.n)
		for i := range p.n {
			bytes += int64(p.extent(i).Length)
		}
		p.release()
		if err != nil {
			return err
		}
	}
	if sum != t.head.pagesSum {
		return fmt.Errorf("pages: wrong checksum: %w", ErrUnusable)
	}
	if bytes != t.head.extentBytes {
		return fmt.Errorf("extents of %d bytes, the header says %d: %w", bytes, t.head.extentBytes, ErrUnusable)
	}
	return nil
}
