package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
)

func unmountCommand() *cli.Command {
	return &cli.Command{
		Name:      "unmount",
		Aliases:   []string{"umount"},
		Usage:     "unmount what mount has mounted, and delete the layers that no other mount needs",
		ArgsUsage: "DIR",
		Description: "Also cleans up after a mount that is gone: unmounted by umount, or lost in a reboot. The directory stays.\n\n" +
			"Example:\n\n   erofs-snapshotter unmount /mnt/alpine",
		Flags: append(append(rootFlags(), registryFlags()...), &cli.BoolFlag{Name: "discard", Usage: "give up the changes in a writable mount"}),
		Action: func(ctx context.Context, c *cli.Command) error {
			if c.Args().Len() != 1 {
				return usageError{fmt.Errorf("%s takes one directory, got %d arguments", c.FullName(), c.Args().Len())}
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return withMountRoot(ctx, c, cfg, func(ctx context.Context, r *imagemount.Root, _ *registry.Client) error {
				m, err := r.Unmount(ctx, c.Args().First(), c.Bool("discard"))
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.Root().Writer, "%s unmounted from %s\n", m.Image, m.Target)
				return err
			})
		},
	}
}
