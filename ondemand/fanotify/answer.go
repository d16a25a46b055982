package fanotify

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// verdict is what the kernel is told about an event.
type verdict uint32

const (
	allow verdict = unix.FAN_ALLOW
	// refuse has the read fail with an I/O error. A reader of EROFS sees EIO whatever the number is.
	refuse verdict = unix.FAN_DENY | verdict(unix.EIO)<<unix.FAN_ERRNO_SHIFT
)

// respond answers the event with the given number, the oldest if there are several. waited says whether there was one.
func respond(group int, number int32, v verdict) (waited bool, err error) {
	err = writeResponse(group, number, v)
	if errors.Is(err, unix.EINVAL) && v == refuse {
		err = writeResponse(group, number, unix.FAN_DENY) // a kernel without error numbers in answers
	}
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

func writeResponse(group int, number int32, v verdict) error {
	var b [8]byte // struct fanotify_response
	binary.NativeEndian.PutUint32(b[:], uint32(number))
	binary.NativeEndian.PutUint32(b[4:], uint32(v))
	for {
		if err := rawWrite(group, &b); err != unix.EINTR {
			return err
		}
	}
}
