package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/guest"
)

// module is where the packages below it are found, whatever the current directory.
const module = "github.com/erofs-snapshotter/erofs-snapshotter/"

// programs are the packages whose tests run in the virtual machine.
var programs = []string{
	"integration/vm/guest", "integration/vm/fscache", "fsbackend", "fsbackend/file", "fsbackend/fscache", "fsbackend/probe", "ondemand/cachefiles",
	"snapshotter",
}

// program is the name of a package's tests.
func program(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }

// guestProgram is the one that has the plan.
var guestProgram = program("integration/vm/guest")

// buildTests compiles the tests of the packages.
func buildTests(ctx context.Context, dir string, packages ...string) error {
	for _, p := range packages {
		if err := goStatic(ctx, "test", "-c", "-o", filepath.Join(dir, program(p)), module+p); err != nil {
			return err
		}
	}
	return nil
}

// goStatic runs the go command so that programs are linked statically: the virtual machine has no libraries.
func goStatic(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// prepare converts the layers to images below dir, records what this machine's kernel shows of them and of their stacks, and writes
// the plan.
func prepare(ctx context.Context, dir string, layers []layer, stacks []guest.Stack) (guest.Plan, error) {
	var p guest.Plan
	for _, l := range layers {
		img, err := image(ctx, dir, l)
		if err != nil {
			return guest.Plan{}, fmt.Errorf("image %s: %w", l.name, err)
		}
		p.Images = append(p.Images, img)
	}
	for _, s := range stacks {
		if err := recordStack(ctx, dir, &s); err != nil {
			return guest.Plan{}, fmt.Errorf("stack %s: %w", s.Name, err)
		}
		p.Stacks = append(p.Stacks, s)
	}
	return p, p.Save(dir)
}

func image(ctx context.Context, dir string, l layer) (guest.Image, error) {
	if err := convert(ctx, dir, l); err != nil {
		return guest.Image{}, err
	}
	img := guest.Image{Name: l.name, Spots: l.spots}
	err := guest.WithImage(ctx, file.Auto, guest.Files(dir, l.name), func(root string) (err error) {
		if l.spots == nil {
			img.Tree, err = treediff.Scan(ctx, root)
			return err
		}
		for i := range img.Spots {
			if img.Spots[i].Data, err = img.Spots[i].Read(root); err != nil {
				return err
			}
		}
		return nil
	})
	return img, err
}

func convert(ctx context.Context, dir string, l layer) (err error) {
	tar, err := l.open()
	if err != nil {
		return err
	}
	defer tar.Close()
	paths := guest.Files(dir, l.name)
	if err := os.MkdirAll(filepath.Dir(paths.Meta), 0o700); err != nil {
		return err
	}
	meta, err := os.Create(paths.Meta)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, meta.Close()) }()
	data, err := os.Create(paths.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	_, err = converter.FromTar(ctx, tar, converter.Target{ID: sha256.Sum256([]byte(l.name)), Meta: meta, Data: data}, converter.Limits{})
	return err
}

// recordStack fills in what the stack shows.
func recordStack(ctx context.Context, dir string, s *guest.Stack) error {
	return guest.WithStack(ctx, dir, s.Layers, func(root string) (err error) {
		if s.Merged, err = treediff.Scan(ctx, root); err != nil {
			return err
		}
		s.Log = guest.Change(root)
		s.Changed, err = treediff.Scan(ctx, root)
		return err
	})
}
