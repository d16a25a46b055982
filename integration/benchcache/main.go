// Command benchcache measures what the kernel keeps in memory of mounted layers: the pages of the mounted files, and again those of
// the files meta.erofs and data that they are read from. It needs root and the layers of `make images`. docs/page-cache.md says what
// the cases and variants are and has results.
//
//	go run ./integration/benchcache                                           about two minutes for each of 5 rounds
//	go run ./integration/benchcache -quick -variants buffered,direct -cases seq,exec
//
// The layers lie in an ext4 on a loop device with direct I/O, so that the only page caches are those of the ext4 and of EROFS. Every
// measurement mounts anew. A round measures everything once, and each round begins with another variant.
package main

import (
	"context"
	"flag"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

func main() { benchkit.Main("benchcache", run) }

func run(ctx context.Context, args []string) error {
	var s benchkit.Flags
	fs := flag.NewFlagSet("benchcache", flag.ContinueOnError)
	variantList := fs.String("variants", benchkit.Names(variants, variantName), "ways to mount")
	caseList := fs.String("cases", benchkit.Names(cases, caseName), "ways to read")
	if err := s.Parse(fs, args); err != nil {
		return err
	}
	vs, err := benchkit.Choose(*variantList, variants, variantName)
	if err != nil {
		return err
	}
	cs, err := benchkit.Choose(*caseList, cases, caseName)
	if err != nil {
		return err
	}
	return s.Run(ctx, nil, nil, func(work *benchkit.Workshop, _ string, w io.Writer) error {
		return work.WithFreshDisk(ctx, func(dir string) error {
			b := &bench{dir: dir, listed: map[string][]regular{}}
			if err := b.convertLayers(ctx, cs); err != nil {
				return err
			}
			results, err := b.rounds(ctx, s.Rounds, cs, vs)
			report(w, results)
			return err
		})
	})
}

func variantName(v variant) string { return v.name }
func caseName(c testCase) string   { return c.name }
