package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A journal is a memfd of one page, version 1, in the machine's byte order: it never outlives a boot.
//
//	 0:8   magic "FANJRNL\n"    8:12  version    12:16  number of slots    16:24  inode number of the data    24:64  zero
//	64:..  slots of 64 bytes:
//	        0:48  an event as read(2) of the group put it there, or zeros
//	       48:52  state: 0 free, 1 taken; an event in a free slot was answered
//	       52:64  zero
const (
	journalMagic   = "FANJRNL\n"
	journalVersion = 1
	journalBytes   = 4096
	slotBytes      = 64
	// slots is how many events of a blob are answered at the same time. More readers wait in the kernel's queue.
	slots = journalBytes/slotBytes - 1

	stateFree, stateTaken = 0, 1
	stateOffset           = eventBytes
)

type journal struct {
	file *os.File
	own  *os.File // the same, opened for the lock
	page []byte   // shared
}

// newJournal makes the journal of the blob with the given inode number.
func newJournal(ino uint64) (*journal, error) {
	fd, err := unix.MemfdCreate("fanotify journal", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fanotify journal")
	if err := f.Truncate(journalBytes); err != nil {
		f.Close()
		return nil, err
	}
	// Cut off by somebody, the page would be a fault for whoever touches it.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal: %w", err)
	}
	j, err := mapJournal(f)
	if err != nil {
		return nil, err
	}
	copy(j.page, journalHeader(ino))
	return j, nil
}

// openJournal opens a predecessor's journal. It owns f, also if there is an error.
func openJournal(f *os.File, ino uint64) (*journal, error) {
	if err := checkSize(f); err != nil {
		f.Close()
		return nil, err
	}
	j, err := mapJournal(f)
	if err != nil {
		return nil, err
	}
	if err := checkPage(j.page, ino); err != nil {
		j.close()
		return nil, err
	}
	return j, nil
}

func checkSize(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != journalBytes {
		return fmt.Errorf("%d bytes, want %d", info.Size(), journalBytes)
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return errors.New("not a sealed memfd")
	}
	return nil
}

// mapJournal owns f, also if there is an error.
func mapJournal(f *os.File) (*journal, error) {
	own, err := openLock(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, journalBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		own.Close()
		f.Close()
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return &journal{file: f, own: own, page: page}, nil
}

func (j *journal) close() error {
	return errors.Join(unix.Munmap(j.page), j.own.Close(), j.file.Close())
}

func journalHeader(ino uint64) []byte {
	h := make([]byte, slotBytes)
	copy(h, journalMagic)
	binary.NativeEndian.PutUint32(h[8:], journalVersion)
	binary.NativeEndian.PutUint32(h[12:], slots)
	binary.NativeEndian.PutUint64(h[16:], ino)
	return h
}

// checkPage says whether a page is a journal that this version understands, of the blob with the given inode number.
func checkPage(page []byte, ino uint64) error {
	if len(page) != journalBytes || string(page[:8]) != journalMagic {
		return errors.New("not a journal")
	}
	head, want := page[:slotBytes], journalHeader(ino)
	if version := binary.NativeEndian.Uint32(head[8:]); version != journalVersion {
		return fmt.Errorf("version %d, want %d: made by another release", version, journalVersion)
	}
	if of := binary.NativeEndian.Uint64(head[16:]); of != ino {
		return fmt.Errorf("it is of inode %d, not %d", of, ino)
	}
	if string(head) != string(want) {
		return errors.New("damaged header")
	}
	for i := range slots {
		if _, _, err := parseSlot(page, i, 0); err != nil {
			return fmt.Errorf("slot %d: %w", i, err)
		}
	}
	return nil
}

// parseSlot returns the event that waits for its answer in slot i, if there is one.
func parseSlot(page []byte, i int, size int64) (event, bool, error) {
	slot := slotOf(page, i)
	switch s := binary.NativeEndian.Uint32(slot[stateOffset:]); s {
	case stateFree:
		return event{}, false, nil
	case stateTaken:
	default:
		return event{}, false, fmt.Errorf("unknown state %d", s)
	}
	e, ok, err := parseEvent(slot[:eventBytes], size)
	e.slot = i
	return e, ok, err
}

func slotOf(page []byte, i int) []byte { return page[(i+1)*slotBytes:][:slotBytes:slotBytes] }

// take empties slot i for an event, and returns the memory to read it into. It also sees to it that the page is there when the kernel
// writes to it: a copy that has to wait for a page from swap fails if the process is killed meanwhile, and the kernel refuses the read.
func (j *journal) take(i int) []byte {
	slot := slotOf(j.page, i)[:eventBytes:eventBytes]
	clear(slot)
	j.state(i).Store(stateTaken)
	return slot
}

// free says that the event in slot i has got its answer.
func (j *journal) free(i int) { j.state(i).Store(stateFree) }

func (j *journal) state(i int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&slotOf(j.page, i)[stateOffset]))
}
