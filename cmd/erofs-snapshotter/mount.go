package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/progress"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/source"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// mountRoot is the default root of mount and unmount. It is not the daemon's: see package imagemount.
const mountRoot = "/var/lib/erofs-snapshotter"

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount an image on a directory, without containerd and without the daemon",
		ArgsUsage: "IMAGE DIR",
		Description: "IMAGE is one of\n\n" +
			"   nginx:1.29, ghcr.io/org/app@sha256:...     an image in a registry; also registry:REF and docker://REF\n" +
			"   ./image.tar, /images/layout                a path, with / or . in front: an archive or an OCI layout, which its contents tell\n" +
			"   oci:DIR, oci-archive:FILE, docker-archive:FILE\n\n" +
			"After a path, :NAME chooses one of several images.\n" +
			"DIR is an empty directory, or a name for a new one. No part of it may be a symbolic link, and nobody but root and the caller may write\n" +
			"in the directories above it: /mnt and /run are good places, /tmp is not.\n\n" +
			"Example:\n\n" +
			"   erofs-snapshotter mount alpine:3.22 /mnt/alpine\n" +
			"   erofs-snapshotter mount --rw --platform linux/arm64 ./app.tar:app:v2 /mnt/app\n" +
			"   erofs-snapshotter unmount /mnt/alpine",
		Flags: append(append(rootFlags(), registryFlags()...),
			&cli.BoolFlag{Name: "rw", Usage: "mount with a writable layer, which is kept until unmount --discard"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` to choose of an image for several", Value: platforms.DefaultString()},
			&cli.StringSliceFlag{
				Name: "options", Aliases: []string{"o"},
				Usage: "mount `OPTIONS`: suid, dev let set-id programs and devices of the image take effect; ro, rw, nosuid, nodev",
			},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress and no result"},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP, without encryption, to the image's registry"},
		),
		Action: func(ctx context.Context, c *cli.Command) error {
			if c.Args().Len() != 2 {
				return usageError{fmt.Errorf("%s takes an image and a directory, got %d arguments", c.FullName(), c.Args().Len())}
			}
			req, err := mountRequest(c)
			if err != nil {
				return usageError{err}
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return mountImage(ctx, c, cfg, req)
		},
	}
}

// rootFlags are those of both commands.
func rootFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", Usage: "`DIR` in which layers and writable layers are kept", Value: mountRoot},
		&cli.DurationFlag{Name: "wait", Usage: "how long to wait for another mount or unmount command on the same root", Value: 10 * time.Minute},
		&cli.BoolFlag{Name: "debug", Usage: "log each step"},
	}
}

// mountRequest reads the command line, but opens nothing.
func mountRequest(c *cli.Command) (imagemount.Request, error) {
	name, err := source.Parse(c.Args().Get(0))
	if err != nil {
		return imagemount.Request{}, err
	}
	platform, err := platforms.Parse(c.String("platform"))
	if err != nil {
		return imagemount.Request{}, fmt.Errorf("--platform %q: %w", c.String("platform"), err)
	}
	req := imagemount.Request{Image: name, Target: c.Args().Get(1), Platform: platform, Writable: c.Bool("rw")}
	for _, option := range c.StringSlice("options") {
		switch option {
		case "suid":
			req.AllowSetID = true
		case "dev":
			req.AllowDevices = true
		case "rw":
			req.Writable = true
		case "nosuid":
			req.AllowSetID = false
		case "nodev":
			req.AllowDevices = false
		case "ro":
			req.Writable = false
		default:
			return imagemount.Request{}, fmt.Errorf("mount option %q is not known: suid, nosuid, dev, nodev, rw and ro are", option)
		}
	}
	return req, nil
}

func mountImage(ctx context.Context, c *cli.Command, cfg config.Config, req imagemount.Request) error {
	start := time.Now()
	stderr := c.Root().ErrWriter
	quiet := c.Bool("quiet")
	req.Progress = progress.None{}
	endProgress := func() {}
	if !quiet {
		p := progress.New(stderr)
		req.Progress, endProgress = p, p.End
		req.Source.Decompressing = func(path string, bytes int64) {
			fmt.Fprintf(stderr, "decompressing %s (%s) into %s first: layers are read at their places in it\n",
				path, units.HumanSize(float64(bytes)), c.String("root"))
		}
	}
	if c.Bool("plain-http") && req.Image.Kind == source.InRegistry {
		if err := notePlainHTTP(c.String("root"), req.Image.Reference); err != nil {
			return err
		}
	}
	var res imagemount.Result
	err := withMountRoot(ctx, c, cfg, func(ctx context.Context, r *imagemount.Root, client *registry.Client) (err error) {
		defer endProgress()
		req.Source.Registry = client
		res, err = r.Mount(ctx, req)
		return err
	})
	if err != nil || quiet {
		return err
	}
	return printMounted(c.Root().Writer, req, res, time.Since(start))
}

func printMounted(w io.Writer, req imagemount.Request, res imagemount.Result, took time.Duration) error {
	mode := "read-only"
	if req.Writable {
		mode = "writable"
	}
	what := fmt.Sprintf("%d layers, %d fetched", res.Layers, res.Fetched)
	if res.BroughtBack {
		what = "brought back with its changes"
	}
	_, err := fmt.Fprintf(w, "%s mounted on %s, %s: %s, %s on disk, %s\n  manifest %s\n  unmount with: erofs-snapshotter unmount %s\n",
		req.Image, res.Target, mode, what, units.HumanSize(float64(res.DiskBytes)), took.Round(time.Millisecond), res.Manifest, unmountArguments(req, res))
	return err
}

func unmountArguments(req imagemount.Request, res imagemount.Result) string {
	if req.Writable {
		return "[--discard] " + res.Target
	}
	return res.Target
}

// withMountRoot calls do with the root directory, which is cleaned up afterwards, also when a signal ends do. A second signal ends the
// process at once; the next command repairs what that leaves.
func withMountRoot(ctx context.Context, c *cli.Command, cfg config.Config, do func(context.Context, *imagemount.Root, *registry.Client) error) (err error) {
	ctx, ignoreSignals := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer ignoreSignals()
	context.AfterFunc(ctx, ignoreSignals)
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root, for mounts", c.Name)
	}
	log := mountLogger(c)
	if err := adoptLibraries(log); err != nil {
		return err
	}
	stderr := c.Root().ErrWriter
	client := mountRegistry(c, cfg)
	defer client.Close()
	onDemand := newMountDemand(c, cfg, client, log)
	r, err := imagemount.Open(ctx, imagemount.Options{
		Path:    c.String("root"),
		Backend: file.New(file.Options{Mode: mountModes[cfg.Mount.Mode], Direct: directIO[cfg.Mount.DirectIO]}),
		Wait:    c.Duration("wait"),
		Waiting: func() {
			fmt.Fprintf(stderr, "waiting for another mount or unmount command, for %v at most\n", c.Duration("wait"))
		},
		Log:      log,
		Lazy:     onDemand.loader,
		OnDemand: answers{onDemand.watcher},
		Locked:   onDemand.locked,
		Closing:  onDemand.closing,
		Layers: layerstore.Options{
			Limits: limits(cfg.Limits), Parallel: cfg.Conversion.Parallel, Memory: cfg.Conversion.Memory.Bytes, Left: onDemand.left,
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	onDemand.resume(served{r.Snapshotter().Layers(), r.Snapshotter()})
	if err := do(ctx, r, client); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted by a signal")
		}
		return err
	}
	return noteUnfinished(ctx, r, stderr)
}

// mountLogger logs what needs attention; with --debug each step, and what was repaired.
func mountLogger(c *cli.Command) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(c.Root().ErrWriter, &slog.HandlerOptions{Level: level}))
}

// plainHTTPFile lists the registries of a root to which HTTP is spoken, one on a line: what is mounted may have to be read later.
const plainHTTPFile = "plain-http"

// notePlainHTTP adds the registry of an image to them.
func notePlainHTTP(root, reference string) error {
	host, _, _ := strings.Cut(reference, "/")
	if slices.Contains(plainHTTPHosts(root), host) {
		return nil
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, plainHTTPFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, host)
	return errors.Join(err, f.Close())
}

func plainHTTPHosts(root string) []string {
	b, _ := os.ReadFile(filepath.Join(root, plainHTTPFile))
	return strings.Fields(string(b))
}

// registryFlags are those of the commands that read registries.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "hosts-dir", Usage: "`DIR` with a hosts.toml for each registry, as containerd has; without it that of the configuration"},
	}
}

// mountRegistry is the client for the images of a root. Unlike the daemon, which serves others, it has the credentials of the caller's docker.
func mountRegistry(c *cli.Command, cfg config.Config) *registry.Client {
	opts := registryOptions(cfg.Registry, credentials.DockerConfig(""), mountLogger(c))
	if c.IsSet("hosts-dir") {
		opts.HostsDir = c.String("hosts-dir")
	}
	plain := plainHTTPHosts(c.String("root"))
	opts.PlainHTTP = func(host string) bool { return slices.Contains(plain, host) }
	return registry.New(opts)
}

// noteUnfinished reminds of changes that wait for somebody.
func noteUnfinished(ctx context.Context, r *imagemount.Root, w io.Writer) error {
	kept, err := r.Unfinished(ctx)
	for _, m := range kept {
		fmt.Fprintf(w, "note: the writable mount of %s on %s is gone, its changes are kept\n  bring it back:  erofs-snapshotter mount --rw %s %s\n"+
			"  give them up:  erofs-snapshotter unmount --discard %s\n", m.Image, m.Target, m.Image, m.Target, m.Target)
	}
	return err
}
