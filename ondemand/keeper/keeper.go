// Package keeper is a small process that holds what must outlive the daemon, and the daemon's side of talking to it.
//
// While a lazy layer's data blob is incomplete, the kernel asks a fanotify group before it reads from it. When the last descriptor of that
// group closes, the kernel stops asking: holes read as zeros, and the zeros stay in the page cache. So a second process, the keeper, holds
// for each incomplete blob a duplicate of
//
//	group    the fanotify group
//	data     the data blob, opened for writing before it was marked
//	journal  a memfd with the events that were read and may not be answered yet
//
// from before the first mount, and hands them to the next daemon. It also holds a sealed memfd with the credentials that the daemon has
// learned, and, where layers are mounted over the kernel's cache, the open /dev/cachefiles: when its last descriptor closes, reads of all such
// mounts fail for good. Descriptors of the cache's objects it does not hold. It opens no files, knows no layers, and reads no event while
// a daemon is there.
//
// # Who may answer
//
// Only one process may read a group, or the device. That right, the role, belongs to one daemon at a time, and the keeper decides:
//
//	        Dial                   connection ends              Patience is over
//	none ────────► served by one ─────────────────► away ─────────────────────► denying: the keeper answers EIO
//	                 ▲    ▲                           │                            │
//	                 │    └───────── Dial ────────────┘                            │
//	                 └────────────── Dial: ends the denying first ─────────────────┘
//
// A process that had the role is gone only when it has exited, or has said that it stopped reading (Client.Release). Before the role goes
// to anybody else, the keeper itself included, the former daemon is told (its connection ends, Client.Done), gets a short grace, and is then
// killed by its pidfd. A kill is safe at any time: the journals tell its successor what it had in work. A process that dials again keeps
// the role it had; nobody is killed.
//
// The device is handed out when a daemon asks for it (Client.Device), so one of a version that knows nothing of it, or that has no use for it,
// never sees it. Until a daemon asks, the keeper treats the device as if no daemon was there: after Patience it answers. Then it opens
// what is opened, with the size that is in the name, and fails each READ (cachefiles.Deny); when nothing has come for a moment, and when
// a daemon asks or dials, it has closed the descriptors of objects again. In an upgrade the device goes to the successor, and one of a version
// that does not ask for it is refused.
//
// # What survives what
//
//   - Death of the daemon: everything. Readers of missing data wait, at most Patience; then they get EIO until a daemon is back.
//   - Death of the keeper: everything, if the daemon lives: it dials again and holds everything anew.
//   - Replacement of the keeper (Options.Replace): everything. The successor gets the descriptors, the socket and the lock from its
//     predecessor, which answers nothing from then on. The daemon's connection ends; it dials again.
//   - Death of both: nothing. Mounts of incomplete blobs have to be treated as poisoned; those of the kernel's cache fail all reads of missing data.
//
// The keeper never closes a group or the device on its own, but by Client.Drop and Client.DropDevice; a signal does not end it while it holds
// one: see Serve.
package keeper

import (
	"errors"
	"log/slog"
	"os"
	"time"
)

const (
	// DefaultAddress is where the keeper listens if nothing else is said.
	DefaultAddress = "/run/erofs-snapshotter/keeper.sock"
	// DefaultPatience is how long readers of missing data wait for a daemon. A restart or an upgrade takes seconds.
	DefaultPatience = 30 * time.Second
)

// Limits of what one keeper holds.
const (
	MaxNameBytes = 255
	MaxNoteBytes = 4 << 10
	// MaxHeld is 64 times the number of lazy layers that a node is expected to have.
	MaxHeld = 1 << 16
)

// Held is what the keeper holds for one incomplete data blob. The three descriptors belong together, and all must be there.
type Held struct {
	// Name is unique: what names the layer instance. 1 to MaxNameBytes graphic ASCII characters.
	Name string
	// Note is for the next daemon, at most MaxNoteBytes; the keeper does not look at it.
	Note                 []byte
	Group, Data, Journal *os.File
}

// Close closes the descriptors of h that there are.
func (h Held) Close() error {
	var errs []error
	for _, f := range []*os.File{h.Group, h.Data, h.Journal} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// State is who answers the kernel.
type State string

// The states.
const (
	// Served: a daemon is connected.
	Served State = "served"
	// Away: no daemon is connected; readers of missing data wait.
	Away State = "away"
	// Denying: the daemon is away for too long; readers of missing data get EIO.
	Denying State = "denying"
)

// Report is what a keeper tells observers.
type Report struct {
	PID     int    `json:"pid"`
	Version string `json:"version"` // of the keeper's program
	State   State  `json:"state"`
	// DaemonPID is the process that has the role, or had it last and is not known to be gone; 0 if there is none.
	DaemonPID int `json:"daemon_pid,omitempty"`
	// Away is for how long no daemon has been connected.
	Away     time.Duration `json:"away,omitempty"`
	Patience time.Duration `json:"patience"`
	// Denied is how many requests of the kernel this process has answered with EIO.
	Denied int64 `json:"denied"`
	// Ending says that the keeper was told to end, and does when it holds nothing any more.
	Ending bool `json:"ending,omitempty"`
	Secret bool `json:"secret"` // learned credentials are held
	// Devices says that this keeper can hold /dev/cachefiles; keepers of former versions cannot.
	Devices bool `json:"devices,omitempty"`
	// Device is who answers for the device that is held; "" if none is held. It is Away or Denying also while a daemon is served that has not
	// asked for it.
	Device State `json:"device,omitempty"`
	// Names are those of everything that is held, sorted.
	Names []string `json:"-"`
}

// Options of Serve.
type Options struct {
	Address  string        // of the socket; "" is DefaultAddress
	Patience time.Duration // 0 is DefaultPatience
	// Replace makes Serve take over from the keeper that listens on Address, if there is one.
	Replace bool
	// Version is told to observers.
	Version string
	// Ready is called once, when the keeper listens and has everything of its predecessor.
	Ready func()
	Log   *slog.Logger // nil is slog.Default
}

func (o Options) withDefaults() Options {
	if o.Address == "" {
		o.Address = DefaultAddress
	}
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}
