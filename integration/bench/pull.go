package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

const (
	pullTimeout   = 10 * time.Minute
	answerTimeout = 2 * time.Minute
)

// peer is a snapshotter that is compared.
type peer struct {
	name        string
	snapshotter string // containerd's name for it
	form        string // of the images that it pulls
	config      string // of our daemon
	announce    lab.Announce
}

func (p peer) ours() bool { return p.snapshotter == lab.Snapshotter }

// layout is the image in the peer's form, in the lab's cache.
func (p peer) layout(img image) string { return img.name + "-" + p.form }

func peerName(p peer) string { return p.name }

// Names in tables and ratios.
const (
	overlayfs = "overlayfs"
	ctrdErofs = "ctrd-erofs"
	stargz    = "stargz"
	eager     = "eager"
	// eagerLocal is eager without remote pulls: containerd fetches the layers.
	eagerLocal = "eager-local"
	// eagerAfter is eager with conversion.sync = "after".
	eagerAfter = "eager-sync-after"
	// lazy pulls the image that stargz pulls, with the default configuration.
	lazy = "lazy"
	// lazyZstd pulls podman's zstd:chunked.
	lazyZstd = "lazy-zstd"
)

var peers = []peer{
	{name: overlayfs, snapshotter: "overlayfs", form: "gzip"},
	{name: ctrdErofs, snapshotter: "erofs", form: "gzip"}, // with its differ, mkfs.erofs --tar
	{name: stargz, snapshotter: lab.Stargz, form: "estargz"},
	{name: eager, snapshotter: lab.Snapshotter, form: "gzip", announce: lab.AnnounceTransfer},
	{name: eagerLocal, snapshotter: lab.Snapshotter, form: "gzip"},
	{name: eagerAfter, snapshotter: lab.Snapshotter, form: "gzip", announce: lab.AnnounceTransfer, config: "[conversion]\nsync = \"after\"\n"},
	{name: lazy, snapshotter: lab.Snapshotter, form: "estargz", announce: lab.AnnounceTransfer},
	{name: lazyZstd, snapshotter: lab.Snapshotter, form: "zstdchunked", announce: lab.AnnounceTransfer},
}

// pullRow is one measurement.
type pullRow struct {
	begin       time.Time
	round       int
	network     network
	image, peer string

	// sync is the time of a syncfs after the pull, pause all of the time between pull and run. They are not part of sum.
	pull, sync, pause, run time.Duration
	// snapshots is allocated disk space of the roots without containerd's content store; content is the latter.
	snapshots, content int64
	// registry is what the registry sent by requests that ended between the beginning of the pull and the answer.
	registry int64
	// linkPull and link are what had come over a slow link at the end of the pull and at the answer.
	linkPull, link int64
	load           float64 // of the machine at the beginning
	answer         string
}

func (r pullRow) sum() time.Duration { return r.pull + r.run }

var pullHeader = []string{"time", "round", "network", "image", "peer", "pull_s", "sync_s", "pause_s", "run_s", "sum_s",
	"snapshots_bytes", "content_bytes", "registry_bytes", "link_pull_bytes", "link_bytes", "load1", "answer"}

func (r pullRow) fields() []string {
	return []string{r.begin.Format(time.RFC3339), strconv.Itoa(r.round), r.network.name, r.image, r.peer,
		benchkit.Seconds(r.pull), benchkit.Seconds(r.sync), benchkit.Seconds(r.pause), benchkit.Seconds(r.run), benchkit.Seconds(r.sum()),
		strconv.FormatInt(r.snapshots, 10), strconv.FormatInt(r.content, 10), strconv.FormatInt(r.registry, 10),
		strconv.FormatInt(r.linkPull, 10), strconv.FormatInt(r.link, 10), strconv.FormatFloat(r.load, 'f', 2, 64), r.answer}
}

// pullCase is what one measurement is of.
type pullCase struct {
	round   int
	network network
	image   image
	peer    peer
}

// cases are all measurements, in their order.
func (s settings) cases() iter.Seq[pullCase] {
	return func(yield func(pullCase) bool) {
		for round := range s.Rounds {
			for _, n := range s.networks {
				for _, img := range s.images {
					for _, p := range benchkit.Rotated(s.peers, round) {
						if !yield(pullCase{round, n, img, p}) {
							return
						}
					}
				}
			}
		}
	}
}

// measurePulls returns the rows that could be measured, and the errors of the others.
func measurePulls(ctx context.Context, w *benchkit.Workshop, s settings, csvPath string) (rows []pullRow, err error) {
	raw, err := benchkit.NewTable(csvPath, pullHeader)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	reg, err := startRegistry(ctx, w, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reg.close()) }()

	var errs []error
	for c := range s.cases() {
		if ctx.Err() != nil {
			return rows, errors.Join(append(errs, ctx.Err())...)
		}
		row := pullRow{begin: time.Now(), round: c.round + 1, network: c.network, image: c.image.name, peer: c.peer.name, load: benchkit.LoadAverage()}
		if err := row.measure(ctx, w, reg, c.image, c.peer); err != nil {
			errs = append(errs, fmt.Errorf("round %d, %s over %s with %s: %w", row.round, row.image, row.network.name, row.peer, err))
			benchkit.Progress("%v", errs[len(errs)-1])
			continue
		}
		rows = append(rows, row)
		errs = append(errs, raw.Write(row.fields()))
		benchkit.Progress("round %d %-8s %-6s %-10s pull %.2f sync %.2f run %.2f: %.40s", row.round, row.network.name, row.image, row.peer,
			row.pull.Seconds(), row.sync.Seconds(), row.run.Seconds(), row.answer)
	}
	return rows, errors.Join(errs...)
}

// measure starts a containerd that has never seen anything, pulls and runs. What is done in between is short: a lazy peer fetches meanwhile.
func (r *pullRow) measure(ctx context.Context, w *benchkit.Workshop, reg *registry, img image, p peer) error {
	return w.WithFreshDisk(ctx, func(dir string) (err error) {
		l, err := lab.Start(ctx, lab.Options{
			Dir: dir, NoDaemon: !p.ours(), BuiltinErofs: true, Stargz: p.name == stargz, DaemonConfig: p.config, Announce: p.announce,
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		if err := benchkit.ColdCache(); err != nil {
			return err
		}
		reg.mark()
		before := reg.received(r.network)
		link := func() int64 { return reg.received(r.network) - before }
		c := container{lab: l, peer: p, ref: reg.ref(p.layout(img), r.network)}
		if err := r.measurePull(ctx, c); err != nil {
			return err
		}
		pulled := time.Now()
		r.linkPull = link()
		if r.sync, err = benchkit.SyncDisk(dir); err != nil {
			return err
		}
		if err := benchkit.ColdCache(); err != nil {
			return err
		}
		r.pause = time.Since(pulled)
		a, err := c.run(ctx, img, link)
		if err != nil {
			return err
		}
		r.run, r.answer, r.link = a.took, a.text, a.link
		if r.registry, err = reg.sent(img); err != nil {
			return err
		}
		return r.measureDisk(l)
	})
}

func (r *pullRow) measurePull(ctx context.Context, c container) error {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	begin := time.Now()
	_, err := c.lab.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", c.peer.snapshotter, c.ref)
	r.pull = time.Since(begin)
	return err
}

func (r *pullRow) measureDisk(l *lab.Lab) (err error) {
	store := filepath.Join(l.ContainerdRoot(), "io.containerd.content.v1.content")
	if _, err := os.Stat(store); err != nil {
		return err
	}
	if r.content, err = benchkit.Allocated("", store); err != nil {
		return err
	}
	r.snapshots, err = benchkit.Allocated(store, l.ContainerdRoot(), l.SnapshotterRoot(), l.StargzRoot())
	return err
}
