package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

const (
	pieceBytes = 4 << 10
	// randomFiles of 4 MiB are an extent each. The first presentFiles are read before, the others stay missing.
	randomFiles, presentFiles = 64, 32
	// warmReads are all pages of the files that are present. coldReads are enough for a second on a disk with 4,000 reads per second.
	warmReads = presentFiles * 4 << 20 / pieceBytes
	coldReads = 4000
)

var (
	randomContents = []contents{{files: randomFiles, fileBytes: 4 << 20, fill: packed}}
	// The same contents, of which one is lazy and the other is not.
	randomLazy  = layout{name: "randread", form: "estargz", layers: randomContents}
	randomEager = layout{name: "randread", form: "gzip", layers: randomContents}
)

// phase is a state of the lazy layer, with the configuration that brings it about.
type phase struct {
	name, config, state string
}

var phases = []phase{
	{"incomplete", "[lazy]\nbackground = false\n", partial},
	{"completed", "[lazy]\nbackground_delay = \"100ms\"\n", complete},
}

// randomCase is one measurement apart from the layer it is of.
type randomCase struct {
	phase   string
	cold    bool
	readers int
}

func (c randomCase) String() string {
	memory := "warm"
	if c.cold {
		memory = "cold"
	}
	return fmt.Sprintf("%s:%s:%d", c.phase, memory, c.readers)
}

// randomRow is one measurement.
type randomRow struct {
	randomCase
	round int
	lazy  bool // the layer
	reads int
	took  time.Duration
}

// perRead is in microseconds.
func (r randomRow) perRead() float64 { return float64(r.took.Microseconds()) / float64(r.reads) }

var randomHeader = []string{"round", "case", "lazy", "reads", "s", "us_per_read"}

func (r randomRow) fields() []string {
	return []string{strconv.Itoa(r.round), r.String(), strconv.FormatBool(r.lazy), strconv.Itoa(r.reads), benchkit.Seconds(r.took),
		strconv.FormatFloat(r.perRead(), 'f', 3, 64)}
}

func (b *bench) random(ctx context.Context, csvPath string, w io.Writer) (err error) {
	raw, err := benchkit.NewTable(csvPath, randomHeader)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	var rows []randomRow
	err = b.withRegistry(ctx, []layout{randomLazy, randomEager}, func(registry *lab.Lab) error {
		for _, p := range phases {
			err := b.withNode(ctx, registry, p.config, func(n *node) error {
				return b.measurePhase(ctx, n, p, func(r randomRow) error {
					rows = append(rows, r)
					benchkit.Progress("round %d %s lazy=%v %.2f us", r.round, r, r.lazy, r.perRead())
					return raw.Write(r.fields())
				})
			})
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		return nil
	})
	writeRandom(w, rows)
	return err
}

// measurePhase mounts both layers and measures all rounds of a phase.
func (b *bench) measurePhase(ctx context.Context, n *node, p phase, row func(randomRow) error) error {
	var sets [2]fileSet
	for i, l := range []layout{randomLazy, randomEager} {
		if err := n.pull(ctx, l); err != nil {
			return err
		}
		dir, err := n.view(ctx, l)
		if err != nil {
			return err
		}
		if sets[i], err = openFiles(dir); err != nil {
			return err
		}
		defer sets[i].close()
	}
	lazy, eager := sets[0], sets[1]
	a, err := lazy.sum()
	if err != nil {
		return err
	}
	if b, err := eager.sum(); err != nil || !bytes.Equal(a, b) {
		return fmt.Errorf("the layers have different contents, error %w", err)
	}
	if err := n.wait(ctx, 1, p.state); err != nil {
		return err
	}
	for round := range b.Rounds {
		for _, cold := range []bool{false, true} {
			for _, readers := range []int{1, 4} {
				for _, of := range benchkit.Rotated([]bool{true, false}, round) {
					r := randomRow{randomCase: randomCase{p.name, cold, readers}, round: round + 1, lazy: of}
					set := eager
					if of {
						set = lazy
					}
					if err := r.measure(set); err != nil {
						return err
					}
					if err := row(r); err != nil {
						return err
					}
				}
			}
		}
	}
	return n.wait(ctx, 1, p.state) // it still is what was measured
}

func (r *randomRow) measure(set fileSet) error {
	r.reads = warmReads
	if r.cold {
		r.reads = coldReads
	}
	if err := set.prepare(r.cold); err != nil {
		return err
	}
	begin := time.Now()
	err := set.read(r.reads, r.readers)
	r.took = time.Since(begin)
	return err
}

// fileSet are the files of a mounted layer whose data are present.
type fileSet []*os.File

func openFiles(dir string) (set fileSet, err error) {
	for i := range presentFiles {
		f, err := os.Open(filepath.Join(dir, fileName(0, i)))
		if err == nil {
			set = append(set, f)
			// The kernel reads what is asked for and nothing around it.
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
		}
		if err != nil {
			set.close()
			return nil, err
		}
	}
	return set, nil
}

func (s fileSet) close() {
	for _, f := range s {
		f.Close()
	}
}

// sum reads everything, which makes it present.
func (s fileSet) sum() ([]byte, error) {
	h := sha256.New()
	for _, f := range s {
		if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}

// prepare leaves no page of the mounted files in memory. Cold, there is none of the files below them either; otherwise they were read just
// now, and are there if the mount lets the kernel keep them.
func (s fileSet) prepare(cold bool) error {
	if cold {
		return benchkit.ColdCache()
	}
	if _, err := s.sum(); err != nil {
		return err
	}
	for _, f := range s {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
	}
	return nil
}

// read reads pieces at random places, none twice, the same ones each time.
func (s fileSet) read(count, readers int) error {
	const perFile = 4 << 20 / pieceBytes
	places := rand.New(rand.NewPCG(1, 2)).Perm(len(s) * perFile)[:count]
	errs := make([]error, readers)
	var all sync.WaitGroup
	for i := range readers {
		all.Go(func() {
			buf := make([]byte, pieceBytes)
			for at := i; at < count && errs[i] == nil; at += readers {
				p := places[at]
				_, errs[i] = s[p/perFile].ReadAt(buf, int64(p%perFile)*pieceBytes)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
