package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

const (
	layersOfImage = 10
	// What is wanted of 1,000 layers.
	daemonLimit = 100 << 20
	keeperLimit = 15 << 20
	readyLimit  = 1500 * time.Millisecond
	// rest is how long the daemon has nothing to do before its memory is measured.
	rest = 15 * time.Second
)

// manyConfig makes small layers lazy and leaves them incomplete. The keeper waits longer for a daemon than one takes to start, and not much.
const manyConfig = "[lazy]\nmin_layer_size = \"0B\"\nbackground = false\n[keeper]\npatience = \"10s\"\n"

// manyLayouts are images of layers of 64 small files.
func (s settings) manyLayouts() []layout {
	var all []layout
	for i := range s.layers / layersOfImage {
		l := layout{name: fmt.Sprintf("many%d", i), form: "estargz"}
		for range layersOfImage {
			l.layers = append(l.layers, contents{files: 64, fileBytes: 8 << 10, fill: random})
		}
		all = append(all, l)
	}
	return all
}

// manyRow is one measurement.
type manyRow struct {
	round, layers int
	pull, mount   time.Duration // of all
	// daemon and keeper are resident memory: after a rest, and once more after the restart.
	daemon, keeper, daemonAfter, keeperAfter int64
	// ready is how long it took from the start of a daemon, after SIGKILL of the one before, to its socket; firstRead how long a first read of
	// missing data took then.
	ready, firstRead time.Duration
	// keeperDenying is the keeper's memory when no daemon has come, and it has refused a read of each layer.
	keeperDenying int64
}

var manyHeader = []string{"round", "layers", "pull_s", "mount_s", "daemon_bytes", "keeper_bytes", "daemon_after_bytes", "keeper_after_bytes",
	"ready_s", "first_read_s", "keeper_denying_bytes"}

func (r manyRow) fields() []string {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	return []string{strconv.Itoa(r.round), strconv.Itoa(r.layers), benchkit.Seconds(r.pull), benchkit.Seconds(r.mount), n(r.daemon), n(r.keeper),
		n(r.daemonAfter), n(r.keeperAfter), benchkit.Seconds(r.ready), benchkit.Seconds(r.firstRead), n(r.keeperDenying)}
}

func (b *bench) many(ctx context.Context, csvPath string, w io.Writer) (err error) {
	raw, err := benchkit.NewTable(csvPath, manyHeader)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	var rows []manyRow
	layouts := b.manyLayouts()
	err = b.withRegistry(ctx, layouts, func(registry *lab.Lab) error {
		for round := range b.Rounds {
			r := manyRow{round: round + 1, layers: b.layers}
			err := b.withNode(ctx, registry, manyConfig, func(n *node) error {
				if err := r.measure(ctx, n, layouts); err != nil {
					return err
				}
				rows = append(rows, r)
				benchkit.Progress("round %d %q", r.round, r.fields())
				return raw.Write(r.fields())
			})
			if err != nil {
				return fmt.Errorf("round %d: %w", r.round, err)
			}
		}
		return nil
	})
	writeMany(w, rows)
	return err
}

func (r *manyRow) measure(ctx context.Context, n *node, layouts []layout) error {
	begin := time.Now()
	for _, l := range layouts {
		if err := n.pull(ctx, l); err != nil {
			return err
		}
	}
	r.pull = time.Since(begin)
	begin = time.Now()
	var views []string
	for _, l := range layouts {
		dir, err := n.view(ctx, l)
		if err != nil {
			return err
		}
		views = append(views, dir)
	}
	r.mount = time.Since(begin)
	if err := n.wait(ctx, r.layers, partial); err != nil {
		return err
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	var err error
	if r.daemon, r.keeper, err = n.memory(); err != nil {
		return err
	}
	if err := n.KillSnapshotter(); err != nil {
		return err
	}
	begin = time.Now()
	if err := n.StartSnapshotter(ctx); err != nil {
		return err
	}
	r.ready = time.Since(begin)
	begin = time.Now()
	if _, err := readWhole(filepath.Join(views[0], fileName(0, 0)), make([]byte, 64<<10)); err != nil {
		return err
	}
	r.firstRead = time.Since(begin)
	if err := n.wait(ctx, r.layers, partial); err != nil {
		return err
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	if r.daemonAfter, r.keeperAfter, err = n.memory(); err != nil {
		return err
	}
	return r.deny(ctx, n, views)
}

// deny measures the keeper while it answers for all layers, and starts the daemon again.
func (r *manyRow) deny(ctx context.Context, n *node, views []string) error {
	if err := n.KillSnapshotter(); err != nil {
		return err
	}
	if err := n.waitKeeper(ctx, keeper.Denying); err != nil {
		return err
	}
	for _, dir := range views {
		for layer := range layersOfImage {
			path := filepath.Join(dir, fileName(layer, 1))
			if _, err := readWhole(path, make([]byte, 64<<10)); !errors.Is(err, unix.EIO) {
				return fmt.Errorf("read %s, whose data are missing, without a daemon: %w, want an I/O error", path, err)
			}
		}
	}
	pid, err := n.KeeperPID()
	if err != nil {
		return err
	}
	if r.keeperDenying, err = resident(pid); err != nil {
		return err
	}
	return n.StartSnapshotter(ctx)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// memory is what daemon and keeper have in memory.
func (n *node) memory() (daemon, keeper int64, err error) {
	pid, err := n.KeeperPID()
	if err == nil && pid == 0 {
		err = errors.New("no keeper runs")
	}
	if err != nil {
		return 0, 0, err
	}
	if daemon, err = resident(n.SnapshotterPID()); err != nil {
		return 0, 0, err
	}
	keeper, err = resident(pid)
	return daemon, keeper, err
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// resident is the resident memory of a process, with the pages of its program.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	m := residentLine.FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("process %d has no resident memory", pid)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	return kib << 10, err
}
