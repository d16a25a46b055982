package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "say what this host can do, which mount mode the daemon would use, and whether layers can be loaded on demand",
		Description: "Asks the kernel by trying, on the filesystem of the configured root. Changes nothing that stays. Needs root.\n\n" +
			"Example:\n\n   erofs-snapshotter check\n   erofs-snapshotter --config ./config.toml check --json\n\n" +
			"Exit status: 0 the daemon can work here, with or without loading on demand, 1 it cannot or that could not be found out, 2 wrong usage",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print one JSON object"}},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			report, err := checkHost(cfg)
			if err != nil {
				return err
			}
			if err := report.checkOnDemand(ctx, cfg); err != nil {
				return err
			}
			write := report.writeText
			if c.Bool("json") {
				write = report.writeJSON
			}
			if err := write(c.Root().Writer); err != nil {
				return err
			}
			if !report.Usable {
				return errReported
			}
			return nil
		},
	}
}

// hostReport is what check found. It is the JSON output.
type hostReport struct {
	Root       string `json:"root"`
	Filesystem string `json:"filesystem"`
	// Mode is the mount mode that would be used, empty when none can be.
	Mode     string    `json:"mode"`
	Usable   bool      `json:"usable"`
	Features []feature `json:"features"`
	// OnDemand is null where layers cannot be loaded on demand.
	OnDemand *onDemandReport `json:"onDemand"`
	// Advice says what to change, most important first.
	Advice []string `json:"advice"`
}

// feature is one answer of the kernel: "yes", "no" or "unknown", with the reason if it is not yes.
type feature struct {
	Name   string `json:"name"`
	Answer string `json:"answer"`
	Reason string `json:"reason,omitempty"`
}

// Names of features, as they are printed.
const (
	featureFile    = "EROFS straight from files"
	featureLoop    = "EROFS over loop devices"
	featureOverlay = "overlay on EROFS"
	// The daemon works without this one.
	featureOnDemand = "loading on demand"
)

// checkHost asks for what the daemon cannot do without.
func checkHost(cfg config.Config) (hostReport, error) {
	dir, err := existingDir(cfg.Root)
	if err != nil {
		return hostReport{}, err
	}
	filesystem, err := probe.DataDirFilesystem(dir)
	if err != nil {
		return hostReport{}, err
	}
	r := hostReport{Root: cfg.Root, Filesystem: filesystem}
	r.Features = []feature{
		newFeature(featureFile, probe.HaveFileBacked(dir)),
		newFeature(featureLoop, probe.HaveLoop(dir)),
		newFeature(featureOverlay, probe.HaveOverlay(dir)),
	}
	r.assess(cfg.Mount.Mode)
	return r, nil
}

// existingDir is path or the nearest directory above it: that filesystem is what a root that is not there yet will lie on.
func existingDir(path string) (string, error) {
	for {
		fi, err := os.Stat(path)
		switch {
		case err == nil && fi.IsDir():
			return path, nil
		case err == nil:
			return "", fmt.Errorf("root: %s is not a directory", path)
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("root: %w", err)
		}
		path = filepath.Dir(path)
	}
}

func newFeature(name string, err error) feature {
	switch {
	case err == nil:
		return feature{Name: name, Answer: "yes"}
	case errors.Is(err, probe.ErrNotSupported):
		return feature{name, "no", err.Error()}
	}
	return feature{name, "unknown", err.Error()}
}

// assess derives from the features which mode the configured one means, and what to change.
func (r *hostReport) assess(configured string) {
	r.Advice = []string{} // an empty list in JSON, not null
	var candidates []string
	switch configured {
	case "auto":
		candidates = []string{"file", "loop"}
	default:
		candidates = []string{configured}
	}
	for _, mode := range candidates {
		if r.Mode == "" && r.has(modeFeature[mode]) {
			r.Mode = mode
		}
	}
	r.Usable = r.Mode != "" && r.has(featureOverlay)
	switch {
	case r.unknown():
		r.Advice = append(r.Advice, "some answers are unknown: run as root, on a filesystem with free space")
	case r.Mode == "" && configured != "auto" && (r.has(featureFile) || r.has(featureLoop)):
		r.Advice = append(r.Advice, fmt.Sprintf("mount.mode %q is not possible here: set mount.mode = \"auto\"", configured))
	case r.Mode == "":
		r.Advice = append(r.Advice, "load the erofs module (modprobe erofs), or use a kernel with CONFIG_EROFS_FS")
	case r.Mode == "loop" && configured == "auto":
		r.Advice = append(r.Advice, "Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE, and root on a disk filesystem such as ext4 or xfs, mounts without loop devices")
	}
	if r.Mode != "" && r.answer(featureOverlay) == "no" {
		r.Advice = append(r.Advice, "put root on a filesystem that overlayfs takes as upper directory, such as ext4, xfs or btrfs")
	}
	if r.Filesystem == "tmpfs" || r.Filesystem == "ramfs" {
		r.Advice = append(r.Advice, "root is in memory and is lost at reboot, while containerd goes on expecting its images: use a disk")
	}
}

var modeFeature = map[string]string{"file": featureFile, "loop": featureLoop}

func (r *hostReport) has(name string) bool { return r.answer(name) == "yes" }

func (r *hostReport) answer(name string) string {
	for _, f := range r.Features {
		if f.Name == name {
			return f.Answer
		}
	}
	return ""
}

func (r *hostReport) unknown() bool {
	for _, f := range r.Features {
		if f.Answer == "unknown" {
			return true
		}
	}
	return false
}

func (r *hostReport) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func (r *hostReport) writeText(w io.Writer) error {
	p := printer{w: w}
	p.line("root   %s (%s)", r.Root, r.Filesystem)
	for _, f := range r.Features {
		p.line("%-28s %s", f.Name, f.Answer)
		if f.Reason != "" {
			p.line("  %s", f.Reason)
		}
	}
	if r.Mode != "" {
		p.line("mount mode that would be used: %s", r.Mode)
	} else {
		p.line("no mount mode can be used")
	}
	if r.OnDemand != nil {
		r.OnDemand.writeText(&p)
	}
	for _, a := range r.Advice {
		p.line("hint: %s", a)
	}
	switch {
	case !r.Usable:
		p.line("not usable")
	case r.OnDemand != nil && r.OnDemand.Keeper.Answers:
		p.line("usable: images are converted when they are pulled; layers with an index are mounted before their data are here")
	default:
		p.line("usable: images are converted when they are pulled")
	}
	return p.err
}

// printer keeps the first error of many writes.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
