package cachefiles

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// What read(2) of the device returns for one message, in the machine's byte order (include/uapi/linux/cachefiles.h):
//
//	struct cachefiles_msg    0:4  msg_id             4:8  opcode              8:12  len, all of it    12:16  object_id
//	struct cachefiles_open  16:20 volume_key_size   20:24 cookie_key_size    24:28  fd               28:32  flags, 0
//	                        32:.. volume key with its NUL, then cookie key without one
//	struct cachefiles_read  16:24 off               24:32 len
//
// A CLOSE has nothing behind the first part.
const (
	messageMost = 1024 // CACHEFILES_MSG_MAX_SIZE
	headBytes   = 16
	openBytes   = 16
	readBytes   = 16

	opOpen  = 0 // CACHEFILES_OP_OPEN
	opClose = 1 // CACHEFILES_OP_CLOSE
	opRead  = 2 // CACHEFILES_OP_READ

	// readComplete is CACHEFILES_IOC_READ_COMPLETE, _IOW(0x98, 1, int). Its argument is the number of the message, not a pointer to it.
	readComplete = 0x40049801
)

// noFile stands for the descriptor of a message that has none.
const noFile = -1

// message is a request of the kernel.
type message struct {
	id     uint32 // the kernel's name for it while it has no answer
	opcode uint32
	object uint32 // the kernel's name for the object while its descriptor is open

	volume, cookie string // of an OPEN
	fd             int    // of an OPEN, or noFile
	off, n         uint64 // of a READ
}

var (
	// errHeadless says that not even the number of a message can be told, so it cannot be answered.
	errHeadless = errors.New("message without a header")
	// errGarbled says that a message has another form than the kernel interface promises.
	errGarbled = errors.New("message of another form")
	// errOpcode says that a message is of a kind that this package does not know.
	errOpcode = errors.New("message of an unknown kind")
)

// parse reads a message. It returns as much of it as can be told, also if there is an error: enough for an answer, and the
// descriptor that came with it.
func parse(b []byte) (message, error) {
	if len(b) < headBytes {
		return message{fd: noFile}, fmt.Errorf("%w: %d bytes", errHeadless, len(b))
	}
	ne := binary.NativeEndian
	m := message{id: ne.Uint32(b), opcode: ne.Uint32(b[4:]), object: ne.Uint32(b[12:]), fd: noFile}
	length, data := ne.Uint32(b[8:]), b[headBytes:]
	var err error
	switch m.opcode {
	case opOpen:
		err = m.parseOpen(data)
	case opRead:
		err = m.parseRead(data)
	case opClose:
		if len(data) != 0 {
			err = fmt.Errorf("%w: CLOSE with %d bytes of data", errGarbled, len(data))
		}
	default:
		err = fmt.Errorf("%w: opcode %d", errOpcode, m.opcode)
	}
	if err == nil && uint64(length) != uint64(len(b)) {
		err = fmt.Errorf("%w: it says %d bytes, and is %d", errGarbled, length, len(b))
	}
	return m, err
}

func (m *message) parseOpen(data []byte) error {
	ne := binary.NativeEndian
	if len(data) >= 12 {
		fd := ne.Uint32(data[8:])
		if fd > math.MaxInt32 {
			return fmt.Errorf("%w: OPEN with descriptor %d", errGarbled, fd)
		}
		m.fd = int(fd)
	}
	if len(data) < openBytes {
		return fmt.Errorf("%w: OPEN with %d bytes of data", errGarbled, len(data))
	}
	volume, cookie := uint64(ne.Uint32(data)), uint64(ne.Uint32(data[4:]))
	keys := data[openBytes:]
	if volume+cookie != uint64(len(keys)) {
		return fmt.Errorf("%w: OPEN with keys of %d and %d bytes, and %d bytes of keys", errGarbled, volume, cookie, len(keys))
	}
	name, ok := bytes.CutSuffix(keys[:volume], []byte{0})
	if !ok || bytes.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: OPEN with volume %q", errGarbled, keys[:volume])
	}
	m.volume, m.cookie = string(name), string(keys[volume:])
	return nil
}

func (m *message) parseRead(data []byte) error {
	if len(data) != readBytes {
		return fmt.Errorf("%w: READ with %d bytes of data", errGarbled, len(data))
	}
	m.off, m.n = binary.NativeEndian.Uint64(data), binary.NativeEndian.Uint64(data[8:])
	return nil
}

// encode is the reverse of parse: what the kernel would send.
func (m message) encode() []byte {
	ne := binary.NativeEndian
	b := make([]byte, headBytes, messageMost)
	switch m.opcode {
	case opOpen:
		b = ne.AppendUint32(b, uint32(len(m.volume)+1))
		b = ne.AppendUint32(b, uint32(len(m.cookie)))
		b = ne.AppendUint32(b, uint32(m.fd))
		b = ne.AppendUint32(b, 0)
		b = append(append(append(b, m.volume...), 0), m.cookie...)
	case opRead:
		b = ne.AppendUint64(ne.AppendUint64(b, m.off), m.n)
	}
	ne.PutUint32(b, m.id)
	ne.PutUint32(b[4:], m.opcode)
	ne.PutUint32(b[8:], uint32(len(b)))
	ne.PutUint32(b[12:], m.object)
	return b
}
