package integration

import (
	"context"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// daemonStatus is what tests read of the daemon's answer; docs/monitoring.md describes all of it.
type daemonStatus struct {
	Layers []struct {
		Instance, Digest, Kind, State, Source string
		DiskBytes                             int64
		References                            int
		Lazy                                  *struct {
			Bytes, PresentBytes, Faults, Failed int64
			Verified                            string
			Poisoned                            bool
			Users                               []string
		}
	}
	Pulls []struct {
		Image  string
		Layers []struct{ Digest, State string }
	}
	Fallbacks, LazyFallbacks map[string]struct {
		Count        int
		Image, Cause string
	}
}

// status asks the daemon over its admin socket.
func (s *story) status() (status daemonStatus, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second*testenv.Slow)
	defer cancel()
	err = s.Status(ctx, &status)
	return status, err
}
