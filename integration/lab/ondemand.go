package lab

import (
	"fmt"
	"os"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// LazyMode is the way of loading on demand that was asked for, EROFS_TEST_LAZY_MODE: lazy.mode in the configuration of every daemon of a lab.
// Empty means that nobody has asked, so that the daemon chooses.
func LazyMode() string { return os.Getenv("EROFS_TEST_LAZY_MODE") }

// OnDemand says that layers can be loaded on demand here, in the mode that was asked for.
func OnDemand() testenv.Feature {
	events := func() error { return fanotify.Probe(os.TempDir()) }
	switch LazyMode() {
	case "fscache":
		return testenv.Feature{Name: "fscache", Missing: probe.HaveFscache}
	case "fanotify":
		return testenv.Feature{Name: "pre-content", Missing: events}
	}
	return testenv.Feature{Name: "pre-content", Missing: func() error {
		err := events()
		if err != nil && probe.HaveFscache() == nil {
			return nil
		}
		return err
	}}
}

// inLazyMode adds the mode to the table lazy of a configuration, which is made if it is not there.
func inLazyMode(config, mode string) string {
	if mode == "" {
		return config
	}
	const table = "[lazy]\n"
	setting := fmt.Sprintf("mode = %q\n", mode)
	if before, after, ok := strings.Cut("\n"+config, "\n"+table); ok {
		return strings.TrimPrefix(before+"\n"+table+setting+after, "\n")
	}
	return config + "\n" + table + setting
}
