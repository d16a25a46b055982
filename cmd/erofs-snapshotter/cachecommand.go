package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin/render"
)

// standardName is what names standard input or output in place of a file.
const standardName = "-"

func cacheCommand() *cli.Command {
	return &cli.Command{
		Name:  "cache",
		Usage: "carry the data of layers that are loaded on demand to another machine",
		Description: "What one machine has fetched of its layers, others need not fetch: an image starts there as it does here. Both commands\n" +
			"ask the running daemon over its admin socket, and need the rights of the user that it runs as, which is root.\n\n" +
			"Example:\n\n   erofs-snapshotter cache export --image registry.example/app:v1 | ssh other erofs-snapshotter cache import -",
		Commands: []*cli.Command{cacheExportCommand(), cacheImportCommand()},
	}
}

func cacheExportCommand() *cli.Command {
	return &cli.Command{
		Name:  "export",
		Usage: "write what is here of lazy layers into a file",
		Description: "Without --image and --layer of all of them. The file is a tar archive, which is not compressed; zstd compresses it well.\n" +
			"It holds contents of images: who may read the file may read them.\n\n" +
			"Example:\n\n   erofs-snapshotter cache export --output cache.tar\n   erofs-snapshotter cache export --image registry.example/app:v1 | zstd >app.tar.zst\n\n" +
			"Exit status: 0 success, 1 failure, 2 wrong usage",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "image", Usage: "the layers of the image that was pulled by the name `REF`; may be repeated"},
			&cli.StringSliceFlag{Name: "layer", Usage: "the layer `DIGEST`, or instance, or a beginning of one; may be repeated"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, which is replaced; - is standard output", Value: standardName},
			&cli.BoolFlag{Name: "json", Usage: "say in JSON what was exported"},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			if c.String("output") == "" {
				return usageError{errors.New("--output needs a file, or - for standard output")}
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			e := cacheExport{client: admin.NewClient(cfg.AdminAddress()), json: c.Bool("json"), root: c.Root()}
			ctx, ignoreSignals := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
			defer ignoreSignals()
			return e.export(ctx, c.String("output"), c.StringSlice("image"), c.StringSlice("layer"))
		},
	}
}

func cacheImportCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "take what export has written on another machine",
		ArgsUsage: "FILE",
		Description: "FILE - is standard input. The images must have been pulled here: what belongs into their layers is what the indexes say that their\n" +
			"manifests name. Nothing in the file is trusted: each piece is compared before it is written, so the file may come from anywhere.\n" +
			"Layers that are not here are passed over.\n\n" +
			"Example:\n\n   erofs-snapshotter cache import cache.tar\n   zstd -dc app.tar.zst | erofs-snapshotter cache import -\n\n" +
			"Exit status: 0 success, 1 something was wrong and not imported, or failure, 2 wrong usage",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "say in JSON what became of it"}},
		Action: func(ctx context.Context, c *cli.Command) error {
			if c.Args().Len() != 1 {
				return usageError{fmt.Errorf("%s takes one file, got %d arguments", c.FullName(), c.Args().Len())}
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			in, err := openInput(c.Root(), c.Args().First())
			if err != nil {
				return err
			}
			defer in.Close()
			stream := bufio.NewReaderSize(in, importBuffer)
			if err := refuseCompressed(stream); err != nil {
				return err
			}
			r, err := admin.NewClient(cfg.AdminAddress()).Import(ctx, stream)
			if err != nil {
				return err
			}
			return reportImport(c.Root().Writer, r, c.Bool("json"))
		},
	}
}

// importBuffer is what is read at a time.
const importBuffer = 256 << 10

// openInput opens a file, or standard input.
func openInput(root *cli.Command, name string) (io.ReadCloser, error) {
	if name != standardName {
		return os.Open(name)
	}
	if isTerminal(root.Reader) {
		return nil, usageError{errors.New("nobody types an export: give a FILE, or pipe it")}
	}
	return io.NopCloser(root.Reader), nil
}

// compressions are what compressed files begin with, and what decompresses them.
var compressions = []struct{ magic, program string }{{"\x28\xb5\x2f\xfd", "zstd -dc"}, {"\x1f\x8b", "gzip -dc"}, {"\xfd7zXZ\x00", "xz -dc"}}

// refuseCompressed refuses what was compressed for the way, before the daemon is sent all of it.
func refuseCompressed(stream *bufio.Reader) error {
	begin, _ := stream.Peek(8) // whoever reads on gets the error
	for _, c := range compressions {
		if bytes.HasPrefix(begin, []byte(c.magic)) {
			return fmt.Errorf("the export is compressed\n  %s FILE | erofs-snapshotter cache import -", c.program)
		}
	}
	return nil
}

// reportImport says what became of an import, and is an error if not all was right.
func reportImport(out io.Writer, r admin.ImportReport, asJSON bool) (err error) {
	if asJSON {
		err = printJSON(out, r)
	} else {
		err = render.Imported(out, r)
	}
	if problem := render.ImportProblem(r); err == nil && problem != "" {
		return errors.New(problem)
	}
	return err
}

// isTerminal says whether something that is read or written is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
