// Command benchconvert measures how fast a layer becomes EROFS, against decompressors, unpackers and other makers of EROFS. It prints
// one table (Markdown) and lines `ratio NAME VALUE`.
//
//	make bench-convert                                       everything, 5 rounds
//	make bench-convert BENCHFLAGS="-quick -layers debian"    one round of one layer
//	go run ./integration/benchconvert -methods import,igzip -n 10
//
// # Conditions, the same for everybody
//
//   - Every measurement is a process of its own: this program again for what is written in Go, bash for a pipeline of programs. Time
//     begins when that process is ready: containerd and our daemon do not start anew for a layer, but both would start programs,
//     whose start counts. Processor time is that of all processes; peak memory is that of the largest one.
//   - The input is in the page cache. What is written goes to an ext4 on a loop device with direct I/O, made anew for it.
//   - One round measures every method once before the next begins, and each round begins with another method.
//   - What is called durable has synced its output when its time ends: import, cat-fsync, ctrd-erofs-fsync, gnu-tar, ctrd-apply.
//
// It needs root, the packages and erofs-utils of tools.sh, and the images scipy and node-modules of images.sh. Raw values go to a CSV
// file below -out. Everything else is below -dir and is removed at the end; compressed copies of the layers stay in the lab's cache.
//
// `benchconvert -method NAME INPUT OUTPUT DIGEST` runs a method that is written in Go, and is what a measurement starts.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

var programs = []benchkit.Program{
	{Path: lab.Program("mkfs.erofs"), Version: "1.9.4"},
	{Path: "igzip"},
	{Path: "unpigz"},
	{Path: "zstd"},
	{Path: "tar"},
	{Path: "time"},
}

// settings are the command line.
type settings struct {
	benchkit.Flags
	layers  []layer
	methods []method
}

func main() { benchkit.Main("benchconvert", run) }

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == methodFlag {
		return runMethod(ctx, args[1:])
	}
	s, err := parse(args)
	if err != nil {
		return err
	}
	return s.Run(ctx, programs, nil, func(work *benchkit.Workshop, stamp string, w io.Writer) error {
		rows, err := measure(ctx, work, s, stamp+"-convert.csv")
		write(w, rows)
		return err
	})
}

func parse(args []string) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("benchconvert", flag.ContinueOnError)
	layerList := fs.String("layers", benchkit.Names(layers, layerName), "layers")
	methodList := fs.String("methods", benchkit.Names(methods, methodName), "methods")
	err := s.Parse(fs, args)
	if err != nil {
		return settings{}, err
	}
	if s.layers, err = benchkit.Choose(*layerList, layers, layerName); err != nil {
		return settings{}, fmt.Errorf("-layers: %w", err)
	}
	if s.methods, err = benchkit.Choose(*methodList, methods, methodName); err != nil {
		return settings{}, fmt.Errorf("-methods: %w", err)
	}
	return s, nil
}
