package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoDevices says that the keeper is of a version that cannot hold a device.
var ErrNoDevices = errors.New("the keeper is of a former version, which cannot hold /dev/cachefiles\n  replace it: erofs-snapshotter-keeper --replace")

// HeldDevice is the open /dev/cachefiles that the keeper holds: the host has one.
type HeldDevice struct {
	// Note is for the next daemon, at most MaxNoteBytes; the keeper does not look at it.
	Note []byte
	File *os.File
}

// HoldDevice has the keeper hold a duplicate of h's device, which stays the caller's. After nil it is held; after an error it may be. To hold
// it again replaces the note. ErrNoDevices says that this keeper cannot: whoever goes on without one, loses all mounts of the cache when the
// process ends.
func (c *Client) HoldDevice(ctx context.Context, h HeldDevice) error {
	if err := c.holdDevice(ctx, h); err != nil {
		return fmt.Errorf("have the keeper hold the device of the cache: %w", err)
	}
	return nil
}

func (c *Client) holdDevice(ctx context.Context, h HeldDevice) error {
	if !c.devices {
		return ErrNoDevices
	}
	fd, err := numberOf(h.File)
	if err != nil {
		return err
	}
	return c.call(ctx, message{kind: device, body: h.Note, files: []int{fd}})
}

// CanHoldDevice returns ErrNoDevices if HoldDevice would.
func (c *Client) CanHoldDevice() error {
	if !c.devices {
		return ErrNoDevices
	}
	return nil
}

// DropDevice has the keeper close the device. It is no error if it holds none.
func (c *Client) DropDevice(ctx context.Context) error {
	if !c.devices {
		return nil
	}
	if err := c.call(ctx, message{kind: device}); err != nil {
		return fmt.Errorf("have the keeper drop the device of the cache: %w", err)
	}
	return nil
}

// Device returns a duplicate of the device that the keeper holds, or nil if it holds none. From then on this process is the one that serves it:
// nobody else does when Device returns, and nobody has a descriptor of an object. A daemon that has not asked for the device within the
// keeper's patience does not know it, and the keeper fails reads of missing data while that daemon serves the groups.
func (c *Client) Device(ctx context.Context) (*HeldDevice, error) {
	if !c.devices {
		return nil, nil
	}
	m, err := c.ask(ctx, message{kind: fetch})
	if err == nil && m.kind != device {
		err = fmt.Errorf("a message of kind %d instead of it", m.kind)
	}
	if err != nil {
		closeAll(m.files)
		return nil, fmt.Errorf("get the device of the cache from the keeper: %w", err)
	}
	if len(m.files) == 0 {
		return nil, nil
	}
	return &HeldDevice{Note: m.body, File: os.NewFile(uintptr(m.files[0]), "device of the cache")}, nil
}

// deviceEntry is what is held of a device.
type deviceEntry struct {
	note []byte
	fd   int // -1 if there is none
}

var noDevice = deviceEntry{fd: -1}

// deviceOf takes over what comes with a message.
func deviceOf(m message) deviceEntry {
	if len(m.files) == 0 {
		return noDevice
	}
	return deviceEntry{note: m.body, fd: m.files[0]}
}

// message is how the other side is told.
func (e deviceEntry) message(id uint32) message {
	m := message{kind: device, id: id, body: e.note}
	if e.held() {
		m.files = []int{e.fd}
	}
	return m
}

func (e deviceEntry) held() bool { return e.fd >= 0 }

func (e deviceEntry) files() []int {
	if !e.held() {
		return nil
	}
	return []int{e.fd}
}

// is tells whether both are the same device. The kernel lets only one process open it, so while it is held, no other open file of it exists.
func (e deviceEntry) is(other deviceEntry) bool {
	var a, b unix.Stat_t
	return unix.Fstat(e.fd, &a) == nil && unix.Fstat(other.fd, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// changeDevice holds a device, or with a message that has none drops it, and returns the descriptors that have to be closed.
func (s *server) changeDevice(ss *session, m message) (put []int, err error) {
	s.deviceTurn.Lock()
	defer s.deviceTurn.Unlock()
	if !s.isTenant(ss) {
		return m.files, errSuperseded
	}
	s.endDenial(&s.deviceDenial)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || s.last.session != ss {
		return m.files, errSuperseded
	}
	e, old := deviceOf(m), s.device
	switch {
	case e.held() && s.over:
		return m.files, errors.New("the keeper is ending")
	case e.held() && old.held() && !old.is(e):
		return m.files, errors.New("another device is held\n  drop it first, if nothing is mounted that it serves")
	}
	s.device, s.last.device = e, true
	return old.files(), nil
}

// giveDevice answers fetch. From now on nobody but the daemon answers what is asked of the device.
func (s *server) giveDevice(ss *session, id uint32) (message, error) {
	s.deviceTurn.Lock()
	defer s.deviceTurn.Unlock()
	if !s.isTenant(ss) {
		return message{}, errSuperseded
	}
	s.endDenial(&s.deviceDenial)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || s.last.session != ss {
		return message{}, errSuperseded
	}
	s.last.device = true
	return s.device.message(id), nil
}

// handOverDevice gives the device to a successor that asks for it, until that has everything. One of a former version does not ask, and may
// not take over: what it does not get would be closed.
func (s *server) handOverDevice(ctx context.Context, ss *session) error {
	interrupt := context.AfterFunc(ctx, ss.interrupt)
	defer interrupt()
	s.mu.Lock()
	e := s.device
	s.mu.Unlock()
	m, err := ss.expectNow(ctx, fetch, taken)
	if err != nil {
		return err
	}
	if m.kind == taken {
		if e.held() {
			return errors.New("it is of a former version, and cannot hold /dev/cachefiles, which this keeper holds: reads of mounts would fail")
		}
		return nil
	}
	if err := ss.send(e.message(m.id), time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	_, err = ss.expectNow(ctx, taken)
	return err
}

// fetchDevice asks a predecessor for the device.
func (c *conn) fetchDevice(ctx context.Context) (deviceEntry, error) {
	interrupt := context.AfterFunc(ctx, c.interrupt)
	defer interrupt()
	if err := c.sendNow(ctx, message{kind: fetch}); err != nil {
		return noDevice, err
	}
	m, err := c.expectNow(ctx, device)
	if err != nil {
		return noDevice, err
	}
	return deviceOf(m), nil
}
