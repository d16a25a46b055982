package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
)

func configCommand() *cli.Command {
	return &cli.Command{
		Name:        "config",
		Usage:       "print the default configuration, or check a file",
		Description: "Example:\n\n   erofs-snapshotter config default\n   erofs-snapshotter config check " + config.DefaultPath,
		Commands: []*cli.Command{
			{
				Name:        "default",
				Usage:       "print a commented file that sets every key to its default",
				Description: "Example:\n\n   erofs-snapshotter config default > " + config.DefaultPath,
				Action: func(_ context.Context, c *cli.Command) error {
					if err := noArguments(c); err != nil {
						return err
					}
					_, err := io.WriteString(c.Root().Writer, config.DefaultText)
					return err
				},
			},
			{
				Name:        "check",
				Usage:       "check a file without starting anything",
				ArgsUsage:   "FILE",
				Description: "Example:\n\n   erofs-snapshotter config check " + config.DefaultPath + "\n\nExit status: 0 valid, 1 not valid, 2 wrong usage",
				Action: func(_ context.Context, c *cli.Command) error {
					if c.NArg() != 1 {
						return usageError{errors.New("config check takes one argument, the FILE")}
					}
					path := c.Args().First()
					if _, err := config.Load(path); err != nil {
						return err
					}
					_, err := fmt.Fprintf(c.Root().Writer, "%s: valid\n", path)
					return err
				},
			},
		},
	}
}
