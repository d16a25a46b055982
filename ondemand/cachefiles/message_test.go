package cachefiles

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
	"unsafe"
)

// The structs of include/uapi/linux/cachefiles.h.
type (
	uapiMsg  struct{ msgID, opcode, len, objectID uint32 }
	uapiOpen struct{ volumeKeySize, cookieKeySize, fd, flags uint32 }
	uapiRead struct{ off, len uint64 }
)

func TestLayout(t *testing.T) {
	for name, c := range map[string]struct{ got, want uintptr }{
		"head": {headBytes, unsafe.Sizeof(uapiMsg{})},
		"open": {openBytes, unsafe.Sizeof(uapiOpen{})},
		"read": {readBytes, unsafe.Sizeof(uapiRead{})},
		// _IOW(0x98, 1, int): direction 1 from bit 30, size from bit 16, type from bit 8, number.
		"ioctl": {readComplete, 1<<30 | unsafe.Sizeof(int32(0))<<16 | 0x98<<8 | 1},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", name, c.got, c.want)
		}
	}

	open := struct {
		uapiMsg
		uapiOpen
		keys [16]byte
	}{uapiMsg{7, 0, 48, 9}, uapiOpen{8, 8, 11, 0}, [16]byte([]byte("erofs,d\x00cookie-k"))}
	want := message{id: 7, opcode: opOpen, object: 9, volume: "erofs,d", cookie: "cookie-k", fd: 11}
	checkMessage(t, unsafe.Slice((*byte)(unsafe.Pointer(&open)), unsafe.Sizeof(open)), want)

	read := struct {
		uapiMsg
		uapiRead
	}{uapiMsg{1 << 31, 2, 32, 3}, uapiRead{1 << 40, 128 << 10}}
	want = message{id: 1 << 31, opcode: opRead, object: 3, off: 1 << 40, n: 128 << 10, fd: noFile}
	checkMessage(t, unsafe.Slice((*byte)(unsafe.Pointer(&read)), unsafe.Sizeof(read)), want)

	gone := uapiMsg{5, 1, 16, 6}
	checkMessage(t, unsafe.Slice((*byte)(unsafe.Pointer(&gone)), unsafe.Sizeof(gone)), message{id: 5, opcode: opClose, object: 6, fd: noFile})
}

func checkMessage(t *testing.T, b []byte, want message) {
	t.Helper()
	if got, err := parse(b); err != nil || got != want {
		t.Errorf("parsed %+v, %v, want %+v", got, err, want)
	}
	if got := want.encode(); string(got) != string(b) {
		t.Errorf("encoded %x, want %x", got, b)
	}
}

// The longest that the kernel can send fits.
func TestLongestMessage(t *testing.T) {
	m := message{opcode: opOpen, volume: strings.Repeat("v", 254), cookie: strings.Repeat("\x00", 255), fd: math.MaxInt32}
	b := m.encode()
	if len(b) > messageMost {
		t.Errorf("%d bytes", len(b))
	}
	checkMessage(t, b, m)
}

func TestGarbledMessages(t *testing.T) {
	open := message{id: 1, opcode: opOpen, object: 2, volume: "v", cookie: "c", fd: 3}.encode()
	with := func(b []byte, at int, v uint32) []byte {
		b = append([]byte(nil), b...)
		binary.NativeEndian.PutUint32(b[at:], v)
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
		fd   int
	}{
		"empty":                  {nil, errHeadless, noFile},
		"short header":           {open[:15], errHeadless, noFile},
		"OPEN, header only":      {open[:16], errGarbled, noFile},
		"OPEN, no flags":         {open[:28], errGarbled, 3},
		"OPEN, no keys":          {open[:32], errGarbled, 3},
		"OPEN, cut":              {open[:len(open)-1], errGarbled, 3},
		"OPEN, no NUL":           {with(open, 16, 3), errGarbled, 3},
		"OPEN, NUL too early":    {with(with(open, 16, 3), 20, 0), errGarbled, 3},
		"OPEN, no volume":        {with(with(open, 16, 0), 20, 3), errGarbled, 3},
		"OPEN, keys overflow":    {with(with(open, 16, math.MaxUint32), 20, 4), errGarbled, 3},
		"OPEN, fd below 0":       {with(open, 24, math.MaxUint32), errGarbled, noFile},
		"OPEN, says it is long":  {with(open, 8, math.MaxUint32), errGarbled, 3},
		"OPEN, says it is short": {with(open, 8, 0), errGarbled, 3},
		"CLOSE with data":        {with(open, 4, opClose), errGarbled, noFile},
		"READ of other size":     {with(open, 4, opRead), errGarbled, noFile},
		"opcode 3":               {with(open, 4, 3), errOpcode, noFile},
	} {
		m, err := parse(c.b)
		if !errors.Is(err, c.want) || m.fd != c.fd {
			t.Errorf("%s: descriptor %d, error %v; want %d, %v", name, m.fd, err, c.fd, c.want)
		}
		if len(c.b) >= headBytes && (m.id != 1 || m.object != 2) {
			t.Errorf("%s: message %d of object %d", name, m.id, m.object)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message{id: 1, opcode: opOpen, object: 2, volume: "erofs,d", cookie: "c", fd: 3}.encode())
	f.Add(message{id: 1, opcode: opClose, object: 2}.encode())
	f.Add(message{id: 1, opcode: opRead, object: 2, off: 4096, n: 1 << 17}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if m.opcode == opOpen {
			copy(b[28:32], []byte{0, 0, 0, 0}) // flags, which are not looked at
		}
		if again := m.encode(); string(again) != string(b) {
			t.Errorf("%x is %+v, which is %x", b, m, again)
		}
	})
}
