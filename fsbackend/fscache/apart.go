package fscache

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// Who mounts waits in the kernel for the daemon, and not even SIGKILL ends that: a process that is killed meanwhile stays, with all its descriptors.
// If that was the daemon, its lock, its connection to the keeper and the device would stay open, and nobody could ever take its place and answer
// what it waits for. So each mount is made by a process of its own, which has nothing of ours and hands the mount over when it is made.

const (
	// apartName is what such a process is called; it is this very program.
	apartName = "erofs-snapshotter-mount"
	// apartSocket is where it answers.
	apartSocket = 3
	// answerMost bounds what it says.
	answerMost = 64 << 10
)

// init is the life of such a process: whatever program uses this package needs no command for it.
func init() {
	if len(os.Args) == 4 && os.Args[0] == apartName {
		os.Exit(mountForAnother(fsbackend.Cookies{Domain: os.Args[1], Meta: os.Args[2], Data: os.Args[3]}))
	}
}

// answer is what it says, with the mount if there is no error.
type answer struct {
	Error     string     `json:"error,omitempty"`
	Errno     unix.Errno `json:"errno,omitempty"`
	NoFscache bool       `json:"noFscache,omitempty"`
}

func mountForAnother(c fsbackend.Cookies) int {
	var a answer
	var rights []byte
	m, err := mountapi.EROFSFscache(c.Meta, c.Domain, c.Meta, c.Data)
	if err != nil {
		a = answer{Error: err.Error(), NoFscache: errors.Is(err, mountapi.ErrNoFscache)}
		_ = errors.As(err, &a.Errno)
	} else {
		rights = unix.UnixRights(m.Descriptor())
	}
	b, err := json.Marshal(a)
	if err == nil {
		err = unix.Sendmsg(apartSocket, b, rights, nil, unix.MSG_NOSIGNAL) // nobody is there any more if the daemon was killed
	}
	if err != nil {
		return 1
	}
	return 0
}

// apartError is an error of another process.
type apartError struct {
	text   string
	causes []error
}

func (e apartError) Error() string   { return e.text }
func (e apartError) Unwrap() []error { return e.causes }

// mountApart makes a mount, in a process of its own.
func mountApart(c fsbackend.Cookies) (*mountapi.Mount, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	cmd := exec.Command("/proc/self/exe", c.Domain, c.Meta, c.Data)
	cmd.Args[0] = apartName
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start the process that mounts: %w", err)
	}
	m, err := receiveMount(pair[0])
	if waitErr := cmd.Wait(); waitErr != nil && m == nil && err == nil {
		err = waitErr
	}
	return m, err
}

func receiveMount(socket int) (*mountapi.Mount, error) {
	b, oob := make([]byte, answerMost), make([]byte, unix.CmsgSpace(4))
	n, oobn, err := receive(socket, b, oob)
	if err != nil {
		return nil, err
	}
	var a answer
	if err := json.Unmarshal(b[:n], &a); err != nil {
		return nil, fmt.Errorf("the process that mounts has ended without a result: %w", err)
	}
	if a.Error != "" {
		e := apartError{text: a.Error}
		if a.Errno != 0 {
			e.causes = append(e.causes, a.Errno)
		}
		if a.NoFscache {
			e.causes = append(e.causes, mountapi.ErrNoFscache)
		}
		return nil, e
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("the process that mounts has sent no mount: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("the process that mounts has sent %d mounts: %w", len(fds), err)
	}
	return mountapi.Received(fds[0]), nil
}

func receive(socket int, b, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(socket, b, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			return n, oobn, err
		}
	}
}
