// Package lazytorture kills the process that serves lazy layers, again and again, while programs read from them. It stands without
// containerd and registry, so that a life of the process takes a tenth of a second and holes can be wherever somebody reads.
//
//	test ──starts──► keeper                      one for each filesystem; holds groups and journals, or the device of the kernel's cache
//	     ──starts──► lives, one after another    package watch, as the daemon has it; killed 10 to 50 ms after its first answer
//	     ──starts──► readers                     random, mmap, sequential, exec; each on all of a fresh layer: a pass
//
// All of them are the test binary. What must not happen is a wrong byte, an I/O error, or a read that never ends. See round for what
// else is done to the layers meanwhile.
package lazytorture

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// roleEnv says what a process that was started from the test binary is to be.
const roleEnv = "LAZYTORTURE_ROLE"

var roles = map[string]func() error{"keeper": keep, "life": live, "reader": read}

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleEnv)]; ok {
		if err := role(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testenv.Main(m))
}

// preContent says that layers can be loaded on demand here.
var preContent = testenv.Feature{Name: "pre-content", Missing: func() error { return fanotify.Probe(os.TempDir()) }}

// patient bounds what has no reason to take long.
var patient = time.Minute * testenv.Slow

// inheritedShare is how many events each kill leaves on average, at least: with fewer, too little was tested.
const inheritedShare = 0.2

// times is how often something is done in the short form and in the long one. On a slow machine it is less.
func times(short, long int) int {
	n := short
	if os.Getenv("EROFS_TEST_LONG") != "" {
		n = long
	}
	return max(n/int(testenv.Slow), min(n, 10))
}

// TestKills: readers notice nothing but the time.
func TestKills(t *testing.T) {
	t.Parallel()
	layers := newLayers(t, preContent, len(chunks))
	for _, filesystem := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(filesystem, func(t *testing.T) {
			t.Parallel()
			torture(t, filesystem, layers, options{
				kills: times(150, 3400), passes: 3,
				habits: habits{oneIsLong: times(40, 60), long: 2 * time.Second, idle: 300 * time.Millisecond},
			})
		})
	}
}

// TestKillsAndFaults: the registry fails, stalls and sends wrong bytes, too. Readers get an error only after the deadline.
func TestKillsAndFaults(t *testing.T) {
	t.Parallel()
	layers := newLayers(t, preContent, len(chunks))
	torture(t, "ext4", layers, options{
		kills: times(20, 1000), passes: times(1, 3),
		habits:   habits{oneIsLong: 4, long: 2 * time.Second, idle: 3 * time.Second},
		registry: newRegistry(t, layers), deadline: time.Second,
	})
}

// torture goes on until there were enough kills and passes.
func torture(t *testing.T, filesystem string, layers []layer, o options) {
	w := newWorld(t, filesystem, layers, o)
	w.startLives()
	began := time.Now()
	for n := 0; (n < o.passes || w.lives.kills() < o.kills) && !t.Failed(); n++ {
		w.round()
		t.Logf("%s: %d kills after %v", filesystem, w.lives.kills(), time.Since(began).Round(time.Second))
	}
	w.report(time.Since(began))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within waits until try succeeds.
func within(t testing.TB, limit time.Duration, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
