// Package fanotify holds every read of a sparse data blob until its data is there. It makes the kernel ask (fanotify pre-content events,
// FAN_PRE_ACCESS), has a Filler supply what was asked for, and answers. It knows neither EROFS nor a network: whatever reads the blob, a
// filesystem mounted on it or a program, is held. Linux 6.14 or later with the blob on ext4, xfs or btrfs; Probe tells.
//
// A Group is a fanotify group that watches one blob. The kernel names the file of an event only by a descriptor, which dies with the
// process that read the event; with one group for each blob the group itself is the name.
//
// # Order of things
//
//	open data ──► New ──► keeper has copies of Files ──► mount ──► Serve ... Finish
//
// The kernel looks for watchers when a file is opened, and never again for a file that had none. So the descriptor that the data is
// written through is opened before New: nothing done with it raises an event. And what is to be held is opened, or mounted, after New:
// opened before, it reads holes as zeros.
//
// # Who answers
//
// When the last descriptor of a group is closed, the kernel lets every read pass, and holes are read as zeros that stay in the page
// cache. So another process, the keeper, holds a copy of each group, and reads wait while nobody answers. Serve answers by a Filler; Deny
// and DenyWaiting, which is for a keeper whose daemon does not come back, answer with an I/O error; Finish ends the watch when the data is
// complete. They exclude each other, in one process and between processes: a lock on the journal is held while they run, and goes with
// its process.
//
// # The journal
//
// A read(2) of a group hands an event out, and from then on the kernel waits for an answer that names it. A process that dies between
// the two leaves a reader waiting for ever, unless its successor knows the event. The journal, a page of memory shared through a
// memfd, tells it. It has a slot for each event that is being answered, and read(2) of the group is made directly into the slot: the
// kernel writes the event there before it counts as handed out. The order is
//
//	slot taken ──► event read into it ──► data filled ──► answered ──► slot free ──► the event's descriptor closed
//
// so at any moment every event that was handed out and not answered is in a slot. At worst a successor answers twice, which does nothing.
// Serve, Deny and Finish begin with what a predecessor left in the journal. See settle.go for what makes that safe.
//
// # What a caller must know
//
//   - A Filler must not read the blob through a file that was opened after New, nor a filesystem mounted on it, nor truncate it: the
//     kernel would ask this process, which waits for itself. The same holds for a thread that reads a mounted blob while it keeps
//     others of this process from running.
//   - An event whose descriptor cannot be opened (RLIMIT_NOFILE) is refused by the kernel itself; see RaiseLimits and Stats.Refused.
//   - Descriptors of a group that are not being read should not be in a poller: the keeper would wake up with every event.
package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotSupported is wrapped by errors that say that this kernel, or the filesystem of the blob, cannot hold reads.
var ErrNotSupported = errors.New("not supported")

// ErrSelfTest is returned by a Filler for a request that was made to see whether requests are made. Its answer is an I/O error as any other is,
// but does not count as a failure.
var ErrSelfTest = errors.New("refused by a self-test")

// Filler makes data present. It is called from several goroutines.
type Filler interface {
	// Ready says whether all n bytes at off can be read now. It is quick: it is asked before every answer, and others wait meanwhile.
	Ready(off, n int64) bool
	// Fill returns nil when all n bytes at off can be read. It gives up after a deadline of its own, and at once when ctx ends.
	Fill(ctx context.Context, off, n int64) error
}

// Group watches one data blob. It is safe for concurrent use.
type Group struct {
	data    *os.File
	group   *os.File
	fd      int // of group
	journal *journal
	size    int64 // of data
	watched bool  // data has the mark
	counts  counters

	ending sync.Mutex // held by Finish and Close; taken before mu
	closed bool       // guarded by ending

	mu      sync.Mutex
	current *session // of the running Serve, Deny or Finish
	retired bool     // Serve and Deny begin no more
}

const (
	groupFlags = unix.FAN_CLASS_PRE_CONTENT | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK |
		unix.FAN_UNLIMITED_QUEUE | // a full queue lets reads pass
		unix.FAN_UNLIMITED_MARKS
	// eventFlags open the descriptor that comes with an event. It is not written through: where the blob was opened through a
	// read-only mount, as overlayfs does, the kernel could not open it for writing and would refuse the read.
	eventFlags = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC
)

// New makes a group that watches data: the blob, at its final length, open for reading and writing since before any group watched it. It
// stays the caller's, and must stay open until the group is finished or closed. Nothing is answered before Serve.
func New(data *os.File) (*Group, error) {
	g, err := newGroup(data)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", data.Name(), err)
	}
	return g, nil
}

func newGroup(data *os.File) (_ *Group, err error) {
	st, err := stat(data)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FanotifyInit(groupFlags, eventFlags)
	if err != nil {
		return nil, explain("fanotify_init", err)
	}
	g := &Group{data: data, group: os.NewFile(uintptr(fd), "fanotify group"), fd: fd, size: st.Size, watched: true}
	defer func() {
		if err != nil {
			g.closeFiles()
		}
	}()
	if g.journal, err = newJournal(st.Ino); err != nil {
		return nil, fmt.Errorf("make a journal: %w", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, int(data.Fd()), ""); err != nil {
		return nil, explain("fanotify_mark", err)
	}
	return g, nil
}

// Adopt takes over a group from a keeper: what Files of a predecessor's Group returned, and the data that it watches. The Group owns
// group and journal from now on, also if there is an error, which closes them. An error means that they do not belong together, or that
// the journal is of another version.
func Adopt(group, journal, data *os.File) (*Group, error) {
	g, err := adopt(group, journal, data)
	if err != nil {
		return nil, fmt.Errorf("adopt the group that watches %s: %w", data.Name(), err)
	}
	return g, nil
}

func adopt(group, journal, data *os.File) (_ *Group, err error) {
	defer group.Close()
	st, err := stat(data)
	if err != nil {
		journal.Close()
		return nil, err
	}
	g := &Group{data: data, size: st.Size}
	defer func() {
		if err != nil {
			g.closeFiles()
		}
	}()
	if g.journal, err = openJournal(journal, st.Ino); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if g.watched, err = watches(group, st.Ino); err != nil {
		return nil, err
	}
	// A copy, because only what is non-blocking when os.NewFile sees it can be waited for without a thread.
	if g.fd, err = unix.FcntlInt(group.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("copy the group's descriptor: %w", err)
	}
	if err := unix.SetNonblock(g.fd, true); err != nil {
		unix.Close(g.fd)
		return nil, fmt.Errorf("group: %w", err)
	}
	g.group = os.NewFile(uintptr(g.fd), "fanotify group")
	return g, nil
}

// Files returns the group and its journal, for a keeper to hold copies. They stay the Group's.
func (g *Group) Files() (group, journal *os.File) { return g.group, g.journal.file }

func stat(data *os.File) (st unix.Stat_t, err error) {
	if err := unix.Fstat(int(data.Fd()), &st); err != nil {
		return st, fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return st, errors.New("not a regular file")
	}
	return st, nil
}
