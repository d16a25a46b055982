// Command erofs-snapshotter is a containerd snapshotter that serves images as EROFS.
//
// Exit status of every command: 0 success, 1 failure, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// usageError is a command line that makes no sense.
type usageError struct{ error }

func run(args []string, stdout, stderr io.Writer) int {
	err := newCommand(stdout, stderr).Run(context.Background(), args)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "erofs-snapshotter: %v\n  try erofs-snapshotter --help\n", err)
		return 2
	case errors.Is(err, errReported):
		return 1
	}
	fmt.Fprintf(stderr, "erofs-snapshotter: %v\n", err)
	return 1
}

// errReported is a failure whose description the command has already printed.
var errReported = errors.New("reported")

func newCommand(stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:  "erofs-snapshotter",
		Usage: "a containerd snapshotter that serves images as EROFS",
		Description: "Example: see what this host can do, then start the daemon\n\n" +
			"   erofs-snapshotter check\n" +
			"   erofs-snapshotter serve\n\n" +
			"Exit status: 0 success, 1 failure, 2 wrong usage",
		Writer:      stdout,
		ErrWriter:   stderr,
		HideVersion: true,
		Flags: []cli.Flag{&cli.StringFlag{
			Name:  "config",
			Usage: "configuration `FILE`; the default one need not exist",
			Value: config.DefaultPath,
		}},
		Commands: []*cli.Command{
			serveCommand(), statusCommand(), cacheCommand(), mountCommand(), unmountCommand(), attendCommand(), startupCommand(), checkCommand(), configCommand(), versionCommand(),
		},
	}
	prepare(root)
	return root
}

// prepare gives all commands what the library does not inherit: wrong usage is our error, and errors are printed by run alone.
func prepare(c *cli.Command) {
	c.HideHelpCommand = true
	c.ExitErrHandler = func(context.Context, *cli.Command, error) {}
	c.OnUsageError = func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usageError{err} }
	if c.Action == nil {
		c.Action = func(_ context.Context, c *cli.Command) error {
			if name := c.Args().First(); name != "" {
				return usageError{fmt.Errorf("%s has no command %q", c.FullName(), name)}
			}
			return cli.ShowSubcommandHelp(c)
		}
	}
	for _, sub := range c.Commands {
		prepare(sub)
	}
}

// noArguments is an error when a command that takes none was given some.
func noArguments(c *cli.Command) error {
	if c.Args().Present() {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", c.FullName(), c.Args().First())}
	}
	return nil
}

// loadConfig reads the file that --config names.
func loadConfig(c *cli.Command) (config.Config, error) {
	if c.IsSet("config") {
		return config.Load(c.String("config"))
	}
	return config.LoadDefault()
}
