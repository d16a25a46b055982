package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Messages are packets on a unix socket of type SOCK_SEQPACKET, little endian:
//
//	0    kind
//	1    length of the name
//	2:4  zero
//	4:8  id: of a request, and of the ack for it
//	8:   name, then the body
//
// Descriptors travel with the packet. A connection begins with hello, whose role decides what follows:
//
//	observer   ──hello──►  ◄── welcome, named ..., end; the keeper hangs up
//	daemon     ──hello──►  ◄── welcome, held ..., secret, end
//	returning  ──hello──►  ◄── welcome, named ..., end, or leave
//	either     ──hold, drop, secret──►  ◄── ack, each
//	           ──released──►  the keeper hangs up
//	           ──device──►  ◄── ack;  ──fetch──►  ◄── device
//	           ◄── leave; the keeper hangs up, and waits for released or the end of the process
//	successor  ──hello──►  ◄── welcome, listening, held ..., secret, former, end
//	           ──fetch──►  ◄── device, if the keeper's report says that it holds one
//	           ──taken──►  ◄── yours; the keeper ends
//
// Instead of welcome the keeper may send an ack with an error, and hang up. Each side is as careful with the other as with a stranger:
// what is not understood ends the connection.
//
// The version in hello changes when an older keeper could not serve a newer daemon any more. A keeper has to understand all versions that
// were ever released, because the one that runs is replaced after the daemon, or not at all.
//
// A device is only sent to who asks for it, and who asks has seen in the report that the keeper understands that: so a daemon or keeper of
// a version that knows nothing of devices meets no message that it does not know.
const protocolVersion = 1

// magic begins the body of hello: magic, u32 version, u8 role.
const magic = "EROFSKPR"

type kind uint8

const (
	hello     kind = iota + 1
	welcome        // body: Report as JSON
	held           // name, body: note; group, data, journal
	named          // name of what is held
	secret         // none or one descriptor: a sealed memfd
	former         // body: u32 pid; pidfd of the last daemon
	listening      // socket, lock
	end            // that was all
	hold           // name, body: note; group, data, journal
	drop           // name
	ack            // body: what went wrong, or empty
	released       // this process does not read any group any more
	leave          // another daemon takes over
	taken          // the successor has everything
	yours          // and it is the keeper now
	device         // body: note; the device, or no descriptor: there is none, or it is to be dropped
	fetch          // the device is wanted
	lastKind  = fetch
)

// filesOf is how many descriptors come with a message.
var filesOf = [lastKind + 1]struct{ min, max int }{
	held: {3, 3}, secret: {0, 1}, former: {1, 1}, listening: {2, 2}, hold: {3, 3}, device: {0, 1},
}

type role uint8

const (
	observer role = iota + 1
	daemon
	successor
	returning // a daemon that has had the role, and everything that is held
	lastRole  = returning
)

const (
	headerBytes = 8
	// maxBodyBytes is for a note, a Report or the text of an error, whichever is the longest.
	maxBodyBytes   = MaxNoteBytes
	maxPacketBytes = headerBytes + MaxNameBytes + maxBodyBytes
	// maxFiles is the most that come with one message.
	maxFiles = 3
)

// message is one packet. The descriptors are owned by whoever received it.
type message struct {
	kind  kind
	id    uint32
	name  string
	body  []byte
	files []int
}

// append adds the packet to b.
func (m message) append(b []byte) []byte {
	b = append(b, byte(m.kind), byte(len(m.name)), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, m.id)
	b = append(b, m.name...)
	return append(b, m.body...)
}

// parse reads a packet. The message does not refer to b.
func parse(b []byte) (message, error) {
	if len(b) < headerBytes || len(b) > maxPacketBytes {
		return message{}, fmt.Errorf("a packet of %d bytes", len(b))
	}
	m := message{kind: kind(b[0]), id: binary.LittleEndian.Uint32(b[4:])}
	nameLen, zero, rest := int(b[1]), binary.LittleEndian.Uint16(b[2:]), b[headerBytes:]
	switch {
	case m.kind == 0 || m.kind > lastKind:
		return message{}, fmt.Errorf("a message of unknown kind %d", m.kind)
	case zero != 0 || nameLen > len(rest) || len(rest)-nameLen > maxBodyBytes:
		return message{}, fmt.Errorf("a message of kind %d with a wrong header", m.kind)
	}
	m.name = string(rest[:nameLen])
	m.body = append([]byte(nil), rest[nameLen:]...)
	wantName := m.kind == hold || m.kind == held || m.kind == named || m.kind == drop
	if wantName != (nameLen > 0) || wantName && !validName(m.name) {
		return message{}, fmt.Errorf("a message of kind %d with name %q", m.kind, m.name)
	}
	return m, nil
}

// checkSendable tells whether the other side would understand the message.
func (m message) checkSendable() error {
	switch {
	case (m.kind == hold || m.kind == drop) && !validName(m.name):
		return fmt.Errorf("a name has 1 to %d graphic ASCII characters", MaxNameBytes)
	case len(m.body) > MaxNoteBytes:
		return fmt.Errorf("a note of %d bytes is longer than %d", len(m.body), MaxNoteBytes)
	}
	return nil
}

// checkFiles tells whether the message came with the descriptors that belong to it.
func (m message) checkFiles() error {
	n, want := len(m.files), filesOf[m.kind]
	if n < want.min || n > want.max {
		return fmt.Errorf("a message of kind %d with %d descriptors", m.kind, n)
	}
	return nil
}

// validName: names are in logs and in what status shows.
func validName(name string) bool {
	if len(name) == 0 || len(name) > MaxNameBytes {
		return false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}

// ackOf answers a request.
func ackOf(id uint32, err error) message {
	m := message{kind: ack, id: id}
	if err != nil {
		text := err.Error()
		m.body = []byte(text[:min(len(text), maxBodyBytes)])
	}
	return m
}

func formerOf(p process) message {
	return message{kind: former, body: binary.LittleEndian.AppendUint32(nil, uint32(p.pid)), files: []int{p.pidfd}}
}

func pidOf(body []byte) int { return int(int32(binary.LittleEndian.Uint32(body))) }

func helloOf(r role) message {
	body := binary.LittleEndian.AppendUint32([]byte(magic), protocolVersion)
	return message{kind: hello, body: append(body, byte(r))}
}

// parseHello returns what the other side wants to be.
func parseHello(m message) (role, error) {
	const length = len(magic) + 4 + 1
	if m.kind != hello || len(m.body) < length || string(m.body[:len(magic)]) != magic {
		return 0, errors.New("not a hello")
	}
	if v := binary.LittleEndian.Uint32(m.body[len(magic):]); v != protocolVersion {
		return 0, fmt.Errorf("protocol version %d is wanted, and this keeper speaks %d\n  replace it: erofs-snapshotter-keeper --replace",
			v, protocolVersion)
	}
	r := role(m.body[len(magic)+4])
	if len(m.body) != length || r < observer || r > lastRole {
		return 0, errors.New("a hello with an unknown role")
	}
	return r, nil
}
