package blob

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
)

// The record of present extents, version 1. Little endian. A header page, then two slots of a page each for every group of 32576 extents.
//
//	header  0:8   magic "EROFSPRS"     8:12  version           12:16 flags, unknown bits are an error
//	       16:48  instance id         48:56  length of data    56:60 number of extents   60:64 CRC of the table's entry pages
//	       64:4092 zero             4092:4096 CRC of the bytes before
//	slot    0:8   sequence number      8:16  sum of the lengths of the extents that are set
//	       16:4088 a bit for each extent of the group, the lowest of a byte first
//	     4088:4092 number of the group 4092:4096 CRC of the bytes before, begun with the instance id
//
// The valid slot with the higher sequence number counts. The other one is what the next batch overwrites, so a write that a power cut
// tears, or loses, costs that batch only. All blocks of the file are written when it is made, so that recording needs no space, except on
// filesystems that never write in place.
const (
	recordMagic   = "EROFSPRS"
	recordVersion = 1

	slotBits    = 16
	slotGroup   = 4088
	groupWords  = (slotGroup - slotBits) / 8
	groupLength = groupWords * 64 // extents
)

// recordHead is the header of a record: what it belongs to.
type recordHead struct {
	id        [32]byte
	dataBytes int64
	count     int
	tableSum  uint32
}

func (h recordHead) groups() int { return (h.count + groupLength - 1) / groupLength }

func (h recordHead) fileBytes() int64 { return pageBytes * int64(1+2*h.groups()) }

// groupCount is how many extents group g has.
func (h recordHead) groupCount(g int) int { return min(groupLength, h.count-g*groupLength) }

func (h recordHead) encode() []byte {
	b := make([]byte, pageBytes)
	copy(b, recordMagic)
	binary.LittleEndian.PutUint32(b[8:], recordVersion)
	copy(b[16:], h.id[:])
	binary.LittleEndian.PutUint64(b[48:], uint64(h.dataBytes))
	binary.LittleEndian.PutUint32(b[56:], uint32(h.count))
	binary.LittleEndian.PutUint32(b[60:], h.tableSum)
	binary.LittleEndian.PutUint32(b[pageSum:], checksum(0, b[:pageSum]))
	return b
}

func parseRecordHead(b []byte) (recordHead, error) {
	if err := checkHead(b, recordMagic, recordVersion); err != nil {
		return recordHead{}, err
	}
	return recordHead{
		id:        [32]byte(b[16:48]),
		dataBytes: int64(binary.LittleEndian.Uint64(b[48:])),
		count:     int(binary.LittleEndian.Uint32(b[56:])),
		tableSum:  binary.LittleEndian.Uint32(b[60:]),
	}, nil
}

// group is what the newest valid slot of a group says.
type group struct {
	slot     int // which of the two it is, or noSlot
	sequence uint64
	bytes    int64
	bits     []byte // of the slot; only until load
}

// noSlot is the slot of a group that has no valid one.
const noSlot = -1

// other is the slot to overwrite.
func (s group) other() int {
	if s.slot == 0 {
		return 1
	}
	return 0
}

func (s group) word(w int) uint64 { return binary.LittleEndian.Uint64(s.bits[8*w:]) }

// wordMask has the lowest n bits set: none, some, or all.
func wordMask(n int) uint64 {
	if n >= 64 {
		return ^uint64(0)
	}
	return 1<<max(n, 0) - 1
}

// encodeSlot makes the page of group g. The words of the bitmap are those of the group.
func encodeSlot(h recordHead, g int, sequence uint64, bytes int64, words []uint64) []byte {
	b := make([]byte, pageBytes)
	binary.LittleEndian.PutUint64(b[0:], sequence)
	binary.LittleEndian.PutUint64(b[8:], uint64(bytes))
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[slotBits+8*i:], w)
	}
	binary.LittleEndian.PutUint32(b[slotGroup:], uint32(g))
	binary.LittleEndian.PutUint32(b[pageSum:], checksum(seed(h.id), b[:pageSum]))
	return b
}

// parseSlot returns what a page says if it is a slot of group g.
func parseSlot(h recordHead, g int, b []byte) (group, error) {
	if checksum(seed(h.id), b[:pageSum]) != binary.LittleEndian.Uint32(b[pageSum:]) {
		return group{}, errors.New("wrong checksum")
	}
	if got := binary.LittleEndian.Uint32(b[slotGroup:]); got != uint32(g) {
		return group{}, fmt.Errorf("it is of group %d", got)
	}
	s := group{
		sequence: binary.LittleEndian.Uint64(b[0:]),
		bytes:    int64(binary.LittleEndian.Uint64(b[8:])),
		bits:     b[slotBits:slotGroup],
	}
	if s.bytes < 0 || s.bytes > h.dataBytes {
		return group{}, fmt.Errorf("%d bytes are present, of %d", s.bytes, h.dataBytes)
	}
	for w := range groupWords {
		if extra := s.word(w) &^ wordMask(h.groupCount(g)-64*w); extra != 0 {
			return group{}, fmt.Errorf("extent %d is present, the group has %d", 64*w+bits.TrailingZeros64(extra), h.groupCount(g))
		}
	}
	return s, nil
}

// record is a record that is open. It is not safe for concurrent use.
type record struct {
	f      file
	head   recordHead
	groups []group
	// settled says that the slots that count are durable; see settle.
	settled bool
}

// openRecord opens the record that head describes. With no record and no error it is of no use as a whole, and lost says why; a record
// with lost has lost some groups.
func openRecord(dir directory, head recordHead) (_ *record, lost, err error) {
	f, err := dir.open(PresentName, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err, nil
	}
	if err != nil {
		return nil, nil, err
	}
	r := &record{f: f, head: head}
	if err := r.checkHead(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", PresentName, err), f.Close()), nil
	}
	for g := range head.groups() {
		s, err := r.readGroup(g)
		if err != nil {
			lost = errors.Join(lost, fmt.Errorf("%s: group %d: %w", PresentName, g, err))
		}
		r.groups = append(r.groups, s)
	}
	return r, lost, nil
}

func (r *record) checkHead() error {
	size, err := r.f.size()
	if err != nil {
		return err
	}
	if size != r.head.fileBytes() {
		return fmt.Errorf("%d bytes, want %d", size, r.head.fileBytes())
	}
	b := make([]byte, pageBytes)
	if _, err := r.f.ReadAt(b, 0); err != nil {
		return err
	}
	got, err := parseRecordHead(b)
	if err != nil {
		return err
	}
	if got != r.head {
		return fmt.Errorf("it belongs to instance %x with %d bytes, %d extents, table %08x", got.id, got.dataBytes, got.count, got.tableSum)
	}
	return nil
}

// readGroup returns the newest valid slot of group g, or an empty group and why there is none.
func (r *record) readGroup(g int) (group, error) {
	newest := group{slot: noSlot}
	b := make([]byte, 2*pageBytes)
	if _, err := r.f.ReadAt(b, slotOffset(g, 0)); err != nil {
		return newest, err
	}
	var errs []error
	for slot := range 2 {
		s, err := parseSlot(r.head, g, b[slot*pageBytes:][:pageBytes])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if s.slot = slot; newest.slot == noSlot || s.sequence > newest.sequence {
			newest = s
		}
	}
	if newest.slot == noSlot {
		return newest, errors.Join(errs...)
	}
	return newest, nil
}

func slotOffset(g, slot int) int64 { return pageBytes * int64(1+2*g+slot) }

// load puts what the record says into the set, and returns how many extents that are. It may be called once.
func (r *record) load(set bitmap) (count int) {
	for g, s := range r.groups {
		r.groups[g].bits = nil
		if s.bits == nil {
			continue // lost, or new
		}
		for w := range (r.head.groupCount(g) + 63) / 64 {
			set[g*groupWords+w].Store(s.word(w))
			count += bits.OnesCount64(s.word(w))
		}
	}
	return count
}

// settle makes durable what the record was read as, which is recorded. It may have come from the page cache, where a process left it that
// ended before its sync, or whose sync failed, and overwriting the other slots would leave nothing to fall back on. The same bytes are
// written to the same place, so that a power cut here harms nothing and the kernel does not take the pages for written.
func (r *record) settle(recorded bitmap) error {
	if r.settled {
		return nil
	}
	if _, err := r.f.WriteAt(r.head.encode(), 0); err != nil {
		return err
	}
	for g, s := range r.groups {
		if s.slot == noSlot {
			continue
		}
		if err := r.write(g, s, r.wordsOf(recorded, g)); err != nil {
			return err
		}
	}
	if err := r.f.datasync(); err != nil {
		return err
	}
	r.settled = true
	return nil
}

func (r *record) write(g int, s group, words []uint64) error {
	_, err := r.f.WriteAt(encodeSlot(r.head, g, s.sequence, s.bytes, words), slotOffset(g, s.slot))
	return err
}

// add records a batch on top of what is recorded, durably or not at all: after an error the old slots count, and the next call writes
// where this one did. It sorts the batch.
func (r *record) add(recorded bitmap, batch []written) error {
	if err := r.settle(recorded); err != nil {
		return err
	}
	slices.SortFunc(batch, func(a, b written) int { return a.extent - b.extent })
	next := slices.Clone(r.groups)
	for len(batch) > 0 {
		g := batch[0].extent / groupLength
		s := group{slot: next[g].other(), sequence: next[g].sequence + 1, bytes: next[g].bytes}
		words := r.wordsOf(recorded, g)
		for len(batch) > 0 && batch[0].extent/groupLength == g {
			i := batch[0].extent % groupLength
			words[i/64] |= 1 << (i % 64)
			s.bytes += batch[0].bytes
			batch = batch[1:]
		}
		if err := r.write(g, s, words); err != nil {
			return err
		}
		next[g] = s
	}
	if err := r.f.datasync(); err != nil {
		return err
	}
	r.groups = next
	return nil
}

// wordsOf copies the part of the set that is group g.
func (r *record) wordsOf(set bitmap, g int) []uint64 {
	words := make([]uint64, (r.head.groupCount(g)+63)/64)
	for i := range words {
		words[i] = set[g*groupWords+i].Load()
	}
	return words
}

// createRecord fills a new file with an empty record.
func createRecord(f file, head recordHead) error {
	if err := writeEmptySlots(f, head); err != nil {
		return err
	}
	if _, err := f.WriteAt(head.encode(), 0); err != nil {
		return err
	}
	return f.datasync()
}

func writeEmptySlots(f file, head recordHead) error {
	for g := range head.groups() {
		for slot := range 2 {
			page := encodeSlot(head, g, uint64(1-slot), 0, nil)
			if _, err := f.WriteAt(page, slotOffset(g, slot)); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceRecord makes an empty record of one that is of no use. The header is written when all else is durable, the name too: whoever
// finds a good header can rely on it.
func replaceRecord(dir directory, head recordHead) (*record, error) {
	f, err := dir.open(PresentName, true)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = dir.create(PresentName)
	}
	if err != nil {
		return nil, err
	}
	if err := emptyRecord(dir, f, head); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r := &record{f: f, head: head, groups: make([]group, head.groups()), settled: true}
	for g := range r.groups {
		r.groups[g].sequence = 1 // in slot 0, as writeEmptySlots has it
	}
	return r, nil
}

func emptyRecord(dir directory, f file, head recordHead) error {
	if err := f.truncate(head.fileBytes()); err != nil {
		return err
	}
	if err := writeEmptySlots(f, head); err != nil {
		return err
	}
	if err := errors.Join(f.datasync(), dir.sync()); err != nil {
		return err
	}
	if _, err := f.WriteAt(head.encode(), 0); err != nil {
		return err
	}
	return f.datasync()
}
