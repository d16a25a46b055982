package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// What read(2) of a group returns for one event, in the machine's byte order (struct fanotify_event_metadata, then struct
// fanotify_event_info_range):
//
//	 0:4   length of all of it      4     version, 3      6:8   length of the first part, 24     8:16  mask
//	16:20  descriptor of the file  20:24  thread id
//	24     kind of the second part, 6    26:28  its length, 24    32:40  offset    40:48  count
const (
	eventBytes    = 48
	metadataBytes = unix.FAN_EVENT_METADATA_LEN
	rangeBytes    = 24
)

// event is a read that the kernel holds.
type event struct {
	slot   int   // of the journal
	number int32 // the kernel's name for it, which is the descriptor it made in the process that read it
	off, n int64 // what is read, within the blob
	since  time.Time
	// own says that the descriptor is this process's.
	own bool
	// twins are the events with the same number, if there may be any.
	twins *twins
}

// errForeign says that an event has another form than this kernel interface promises.
var errForeign = errors.New("not an event of this kind")

// parseEvent reads an event of a blob of the given size. ok is false if b holds nothing that can be answered: a slot that the kernel has
// not written to, or a notice.
func parseEvent(b []byte, size int64) (e event, ok bool, err error) {
	le := binary.NativeEndian
	length := le.Uint32(b)
	if length == 0 {
		return event{}, false, nil
	}
	if vers, meta := b[4], le.Uint16(b[6:]); vers != unix.FANOTIFY_METADATA_VERSION || meta != metadataBytes {
		return event{}, false, fmt.Errorf("%w: version %d with %d bytes of metadata, want %d and %d",
			errForeign, vers, meta, unix.FANOTIFY_METADATA_VERSION, metadataBytes)
	}
	if length < metadataBytes || length > eventBytes {
		return event{}, false, fmt.Errorf("%w: %d bytes, want %d to %d", errForeign, length, metadataBytes, eventBytes)
	}
	number := int32(le.Uint32(b[16:]))
	if le.Uint64(b[8:])&unix.FAN_PRE_ACCESS == 0 || number < 0 {
		return event{}, false, nil
	}
	e = event{number: number, n: size}
	if length == metadataBytes {
		return e, true, nil // of no range in particular: everything
	}
	if kind, n := b[24], le.Uint16(b[26:]); kind != unix.FAN_EVENT_INFO_TYPE_RANGE || n != rangeBytes || length != eventBytes {
		return event{}, false, fmt.Errorf("%w: %d bytes with information of kind %d and length %d, want a range",
			errForeign, length, kind, n)
	}
	e.off, e.n = clamp(le.Uint64(b[32:]), le.Uint64(b[40:]), size)
	return e, true, nil
}

// clamp cuts a range off at the end of the blob: the kernel rounds to pages and may ask for what is behind it.
func clamp(off, count uint64, size int64) (int64, int64) {
	if off >= uint64(size) {
		return size, 0
	}
	return int64(off), int64(min(count, uint64(size)-off, math.MaxInt64))
}
