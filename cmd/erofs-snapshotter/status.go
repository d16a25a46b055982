package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin/render"
)

// minInterval keeps --watch from taking the daemon's time: an answer of 1,000 layers costs it about a millisecond.
const minInterval = 100 * time.Millisecond

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show layers, pulls and what the daemon is doing",
		Description: "Asks the running daemon over its admin socket. Needs the rights of the user that it runs as, which is root.\n\n" +
			"--watch goes on until ctrl-C, also while the daemon restarts. On a terminal it shows each layer of each pull with a bar,\n" +
			"otherwise it writes a line when something has changed; with --json one object a line.\n\n" +
			"--map draws which parts of a layer are there. LAYER is a digest, with or without sha256:, or the name of an instance;\n" +
			"a beginning of one is enough.\n\n" +
			"Example:\n\n   erofs-snapshotter status\n   erofs-snapshotter status --watch\n   erofs-snapshotter status --map 4e6753 --out map.svg\n" +
			"   erofs-snapshotter status --json | jq '.layers[] | select(.references == 0)'\n\n" +
			"Exit status: 0 success, 1 the daemon does not answer or has no such layer, 2 wrong usage",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON; its fields: docs/monitoring.md"},
			&cli.BoolFlag{Name: "watch", Usage: "follow what changes"},
			&cli.StringFlag{Name: "map", Usage: "draw which parts of `LAYER` are there"},
			&cli.StringFlag{Name: "out", Usage: "write the picture of --map into `FILE`, .svg or .png"},
			&cli.DurationFlag{Name: "interval", Usage: "`TIME` between two looks of --watch", Value: time.Second},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			interval := c.Duration("interval")
			if interval < minInterval {
				return usageError{fmt.Errorf("--interval %s is below %s", interval, minInterval)}
			}
			if err := checkMapFlags(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			client, out := admin.NewClient(cfg.AdminAddress()), c.Root().Writer
			if c.IsSet("map") {
				return layerMap{client: client, layer: c.String("map"), file: c.String("out"), json: c.Bool("json"), out: out}.show(ctx)
			}
			if c.Bool("watch") {
				ctx, ignoreSignals := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
				defer ignoreSignals()
				return render.Watch{
					Ask: client.Status, Interval: interval, Out: out, TerminalSize: terminalSize(out), JSON: c.Bool("json"),
				}.Run(ctx)
			}
			s, err := client.Status(ctx)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(out, s)
			}
			return render.Table(out, s)
		},
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// terminalSize returns the function that asks for the size of the terminal w, nil if it is none that can draw.
func terminalSize(w io.Writer) func() (columns, rows int, err error) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	return func() (int, int, error) { return term.GetSize(int(f.Fd())) }
}
