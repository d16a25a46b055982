package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// pulled is an image that was pulled just now.
type pulled struct {
	name    string // of its top snapshot
	image   string
	program startup.Program
}

const (
	// startsAtOnce is of how many images what they start is read at a time.
	startsAtOnce = 2
	// maxPulled is how many more may wait. What comes later is read when its container starts.
	maxPulled = 16
)

// startLater has what an image starts read in the background, if part of it is not here. It does not wait.
func (s *Snapshotter) startLater(p pulled) {
	if s.startup == nil {
		return
	}
	select {
	case s.pulled <- p:
	default:
		s.log.Debug("what the image starts is not read before it is run: too many pulls at once", "image", p.image)
	}
}

// readPulled does that until ctx ends.
func (s *Snapshotter) readPulled(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-s.pulled:
			s.readStartup(ctx, p)
		}
	}
}

func (s *Snapshotter) readStartup(ctx context.Context, p pulled) {
	began := time.Now()
	root, err := s.openTree(ctx, p.name)
	if err == nil && root == nil {
		return // all of it is here
	}
	var report startup.Report
	if err == nil {
		report, err = s.startup(ctx, root, p.program)
		root.Close()
	}
	s.log.Debug("read what the image starts", "image", p.image, "program", p.program.Args[0],
		"files", report.Files, "bytes", report.Bytes, "bound_reached", report.Full, "duration", time.Since(began).Round(time.Millisecond), "cause", err)
}

// openTree opens the root directory of a committed snapshot, or returns nil when no data of it are missing. The directory is of no mount that
// anybody else sees, or its mount may go: until it is closed it is to the kernel what a running container is. So nothing refers to it, and
// collection need not wait for it.
func (s *Snapshotter) openTree(ctx context.Context, name string) (*os.File, error) {
	st, pins, err := s.pinTree(ctx, name)
	defer func() {
		for _, pin := range pins {
			pin.Release()
		}
	}()
	if err != nil || !s.anyPartial(st) {
		return nil, err
	}
	if _, err := s.provide(ctx, st); err != nil {
		return nil, err
	}
	dirs := make([]string, len(st.lowers))
	for i, l := range st.lowers {
		dirs[i] = s.mountDir(l.n)
	}
	if len(dirs) == 1 {
		return os.Open(dirs[0])
	}
	return fsbackend.OpenOverlay(dirs, s.overlay)
}

// pinTree returns what a committed snapshot consists of now. While the pins are held, what was mounted of it stays mounted.
func (s *Snapshotter) pinTree(ctx context.Context, name string) (st stack, pins []layerstore.Pin, err error) {
	err = s.view(ctx, func(ctx context.Context, r *records) error {
		var ids []string
		for key := name; key != ""; {
			id, info, _, err := storage.GetInfo(ctx, key)
			if err != nil {
				return err
			}
			ids, key = append(ids, id), info.Parent
		}
		lowers, err := s.freeze(r, ids)
		if err != nil {
			return err
		}
		for _, id := range lowers {
			pin, err := s.layers.Pin(id)
			if err != nil {
				return err
			}
			pins = append(pins, pin)
		}
		st, err = s.stackOf(r, 0, snapshots.KindView, record{Lowers: lowers})
		return err
	})
	if err == nil && len(st.lowers) == 0 {
		err = errors.New("it has no layers")
	}
	if err != nil {
		err = fmt.Errorf("tree of snapshot %q: %w", name, err)
	}
	return st, pins, err
}

func (s *Snapshotter) anyPartial(st stack) bool {
	for _, l := range st.lowers {
		if s.isPartial(l.id) {
			return true
		}
	}
	return false
}
