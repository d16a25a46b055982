// Command benchlazy measures layers that are loaded on demand, at the level of files, and prints tables (Markdown) and lines
// `ratio NAME VALUE`. Pulls with a first answer are measured by bench.
//
//	make bench-lazy                                     everything, 5 rounds
//	go run ./integration/benchlazy -parts random -n 3
//
// # Parts
//
//   - random: reads of 4 KiB at random places, of 1 and 4 readers, of data that are present. The layer is incomplete, which makes the kernel
//     ask for each read, or complete; it is compared with the same contents in a layer that never was lazy, in the same daemon. No page of
//     the layers' mounts is in memory; "warm" means that the pages of the files below them are, "cold" that they are read from the disk.
//   - sequential: all files of a layer of 1 GiB, none of which is there, from their fronts to their backs, and downloads of that layer's blob
//     with one curl: into a file, to nowhere, and unpacked by igzip into a file. "packed" contents are compressible, "random" ones are not. The
//     registry is on loopback.
//   - many: 1,000 layers that are mounted and incomplete: memory of the daemon and of the keeper, the time until the daemon is ready again
//     after SIGKILL, and until it has then answered a first read of missing data; and the keeper's memory while it refuses reads.
//
// Ratios of random reads are our time divided by that of the layer that never was lazy. Those of sequential reads are speeds, ours divided by
// that of curl. Those of many layers are memory, and time, divided by what they may be.
//
// Every measurement, or in random every phase, has an ext4 of its own on a loop device with direct I/O, where the roots of containerd and
// of the daemon are; the registry keeps its blobs in memory. The daemon has the default configuration, apart from what the parts' sources
// say. Layers are made once and kept in the lab's cache. It needs root and what `make tools images` installs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// dirLimit is the longest path of the work directory: the sockets of labs lie in it.
const dirLimit = 10

var programs = []benchkit.Program{
	{Path: lab.Program("containerd"), Version: "2.4.2"},
	{Path: "curl"},
	{Path: "igzip"},
}

// part measures one thing. It returns what could be measured also with an error.
type part struct {
	name    string
	measure func(b *bench, ctx context.Context, csvPath string, w io.Writer) error
}

var parts = []part{
	{"random", (*bench).random},
	{"sequential", (*bench).sequential},
	{"many", (*bench).many},
}

func partName(p part) string { return p.name }

// settings are the command line.
type settings struct {
	benchkit.Flags
	parts  []part
	mib    int
	layers int
}

// bench is what all parts use.
type bench struct {
	settings
	work *benchkit.Workshop
}

func main() { benchkit.Main("benchlazy", run) }

func run(ctx context.Context, args []string) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	if err := lab.Tools.Missing(); err != nil {
		return err
	}
	return s.Run(ctx, programs, clearLab, func(work *benchkit.Workshop, stamp string, w io.Writer) error {
		b := &bench{settings: s, work: work}
		var errs []error
		for _, p := range s.parts {
			if err := p.measure(b, ctx, stamp+"-"+p.name+".csv", w); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
				benchkit.Progress("%v", errs[len(errs)-1])
			}
		}
		return errors.Join(errs...)
	})
}

func parse(args []string) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("benchlazy", flag.ContinueOnError)
	partList := fs.String("parts", benchkit.Names(parts, partName), "parts")
	fs.IntVar(&s.mib, "mib", 1024, "size of a layer that is read as a whole, in MiB")
	fs.IntVar(&s.layers, "layers", 1000, "number of layers that are mounted at once, a multiple of 10")
	err := s.Parse(fs, args)
	if err != nil {
		return settings{}, err
	}
	switch {
	case len(s.Dir) > dirLimit:
		return settings{}, fmt.Errorf("-dir %s is longer than %d characters: unix sockets below it would not fit", s.Dir, dirLimit)
	case s.mib < fileMiB || s.mib%fileMiB != 0:
		return settings{}, fmt.Errorf("-mib %d: want a multiple of %d", s.mib, fileMiB)
	case s.layers < layersOfImage || s.layers%layersOfImage != 0:
		return settings{}, fmt.Errorf("-layers %d: want a multiple of %d", s.layers, layersOfImage)
	}
	if s.parts, err = benchkit.Choose(*partList, parts, partName); err != nil {
		return settings{}, fmt.Errorf("-parts: %w", err)
	}
	return s, nil
}

// clearLab: a lab that starts clears abandoned ones beside it, with their processes.
func clearLab(ctx context.Context, dir string) error {
	l, err := lab.Start(ctx, lab.Options{Dir: dir, NoDaemon: true})
	if err != nil {
		return err
	}
	return l.Close()
}
