// Command erofs-snapshotter-keeper holds what keeps missing data of lazy layers from being read as zeros, while the daemon is restarted,
// upgraded or dead. It is a program of its own because it has to be small: package keeper says what it does.
//
// Exit status: 0 success, 1 failure, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// version is set by the linker for a release: -ldflags "-X main.version=v1.2.3".
var version = "devel"

const usage = `usage: erofs-snapshotter-keeper [options]

Holds the fanotify groups, data blobs and journals of incomplete layers, the open /dev/cachefiles, and learned credentials, for
erofs-snapshotter. When the daemon is away for too long, it answers readers of missing data with I/O errors. SIGTERM does not end it while it
holds anything. Needs root.

  --address PATH       unix socket to listen on (%s)
  --patience DURATION  how long readers of missing data wait for a daemon (%s)
  --replace            take over from the keeper that runs, if there is one: for upgrades
  --detach             run in the background; return when ready; the keeper's messages go to standard output
  --log-format FORMAT  text or json (text)
  --version            print the version

Example: upgrade a keeper that systemd does not run

  erofs-snapshotter-keeper --replace --detach

Exit status: 0 success, 1 failure, 2 wrong usage
`

// gcPercent has the garbage collector work more than it does by default: there is little to do, and memory is what counts.
const gcPercent = 50

type options struct {
	keeper.Options
	detach    bool
	readyFD   int
	logFormat string
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, usage, keeper.DefaultAddress, keeper.DefaultPatience)
		return 0
	case errors.Is(err, errVersion):
		fmt.Fprintf(stdout, "erofs-snapshotter-keeper %s\n", version)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "erofs-snapshotter-keeper: %v\n  try erofs-snapshotter-keeper --help\n", err)
		return 2
	}
	if o.detach {
		err = keeper.Detach(context.Background(), o.args())
	} else {
		err = serve(o, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "erofs-snapshotter-keeper: %v\n", err)
		return 1
	}
	return 0
}

// errVersion says that only the version is wanted.
var errVersion = errors.New("version")

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.Address, "address", keeper.DefaultAddress, "")
	flags.DurationVar(&o.Patience, "patience", keeper.DefaultPatience, "")
	flags.BoolVar(&o.Replace, "replace", false, "")
	flags.BoolVar(&o.detach, "detach", false, "")
	flags.StringVar(&o.logFormat, "log-format", "text", "")
	flags.IntVar(&o.readyFD, "ready-fd", 0, "") // from Detach
	wantVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.Version = version
	switch {
	case *wantVersion:
		return o, errVersion
	case flags.NArg() > 0:
		return o, fmt.Errorf("takes no arguments, got %q", flags.Arg(0))
	case o.Patience <= 0:
		return o, fmt.Errorf("--patience %s: has to be longer than nothing", o.Patience)
	case o.logFormat != "text" && o.logFormat != "json":
		return o, fmt.Errorf("--log-format %q: text or json", o.logFormat)
	}
	o.Address, err = filepath.Abs(o.Address)
	return o, err
}

// args are those for the process in the background.
func (o options) args() []string {
	return []string{
		"--address", o.Address, "--patience", o.Patience.String(), "--log-format", o.logFormat, fmt.Sprintf("--replace=%t", o.Replace),
	}
}

func serve(o options, stderr io.Writer) error {
	debug.SetGCPercent(gcPercent)
	// Standard error may be a pipe to a process that has ended.
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	output := newLossyWriter(stderr)
	defer output.drain(time.Second)
	o.Log = newLogger(output, o.logFormat)
	ready := false
	o.Ready = func() {
		ready = true
		if err := keeper.ReportReady(o.readyFD, nil); err != nil {
			o.Log.Warn("could not say that the keeper is ready", "cause", err)
		}
	}
	raiseFileLimit(o.Log)
	err := keeper.Serve(ctx, o.Options)
	if err != nil && !ready {
		err = errors.Join(err, keeper.ReportReady(o.readyFD, err))
	}
	return err
}

func newLogger(w io.Writer, format string) *slog.Logger {
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// files is enough for the keeper's own limit on what it holds.
const files = 4 * keeper.MaxHeld

// raiseFileLimit makes room for descriptors. Without the right to, the limit stays as it is.
func raiseFileLimit(log *slog.Logger) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err == nil && limit.Cur < files {
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: max(files, limit.Max)})
	}
	if err != nil {
		log.Warn("the limit of open files is low", "limit", limit.Cur, "wanted", files, "cause", err)
	}
}
