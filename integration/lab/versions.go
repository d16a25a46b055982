package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// Release lines of containerd.
const (
	Containerd17 = "1.7"
	Containerd21 = "2.1"
	Containerd24 = "2.4"
)

// Containerd is a containerd of a release line.
func Containerd(line string) testenv.Feature {
	return testenv.Feature{Name: "containerd:" + line, Missing: func() error {
		for _, name := range containerdPrograms {
			if _, err := os.Stat(containerdProgram(line, name)); err != nil {
				return fmt.Errorf("%w (make tools)", err)
			}
		}
		return nil
	}}
}

// containerdPrograms come with each containerd, and belong together.
var containerdPrograms = []string{"containerd", "ctr", "containerd-shim-runc-v2"}

// containerdDir is the directory of a line's programs.
func containerdDir(line string) string {
	if line == Containerd24 {
		return filepath.Join(Cache(), "bin")
	}
	return filepath.Join(Cache(), "containerd-"+line, "bin")
}

func containerdProgram(line, name string) string { return filepath.Join(containerdDir(line), name) }

// Announce is how containerd tells our snapshotter which image and which layer it pulls, so that we can pull the layer ourselves.
type Announce string

const (
	// AnnounceNothing: containerd fetches all layers and lets our differ unpack them.
	AnnounceNothing Announce = ""
	// AnnounceTransfer is the export enable_remote_snapshot_annotations of the proxy plugin: pulls by the transfer service, which are
	// those of ctr and of CRI, are announced. 1.7 does not have it.
	AnnounceTransfer Announce = "transfer"
	// AnnounceLocal is CRI's disable_snapshot_annotations = false. CRI pulls without the transfer service then; ctr announces nothing.
	AnnounceLocal Announce = "local"
)

// check finds what cannot be before containerd fails in its own words.
func (o Options) check() error {
	switch o.Containerd {
	case Containerd17, Containerd21, Containerd24:
	default:
		return fmt.Errorf("containerd %q: there are %s, %s and %s", o.Containerd, Containerd17, Containerd21, Containerd24)
	}
	if o.PluginName == "erofs" && o.Containerd != Containerd17 {
		return fmt.Errorf("plugin name erofs: containerd %s has a snapshotter of that name and panics when there are two", o.Containerd)
	}
	if o.Stargz && o.Containerd == Containerd17 {
		return errors.New("the configuration for containerd 1.7 has no stargz snapshotter")
	}
	switch o.Announce {
	case AnnounceNothing, AnnounceTransfer, AnnounceLocal:
	default:
		return fmt.Errorf("announce %q: there are %q and %q", o.Announce, AnnounceTransfer, AnnounceLocal)
	}
	return nil
}
