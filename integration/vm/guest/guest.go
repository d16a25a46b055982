// Package guest says what a kernel must show of the converter's images, and its tests hold the running kernel to it.
//
// The tests are meant for the virtual machine of integration/vm, which prepares a directory with a Plan and images and names it in
// EROFS_VM_DIR. Without that variable they do nothing. Everything here that a test of the guest does with a kernel is also what made
// the plan on the host, so that the two differ in nothing but the kernel.
package guest

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// Environment variables of the tests.
const (
	// DirVariable names the directory with the plan.
	DirVariable = "EROFS_VM_DIR"
	// AnswersVariable lists what fsbackend/probe must find on this kernel, separated by commas; it must answer no to the rest.
	// Where it is not set, the answers are not looked at.
	AnswersVariable = "EROFS_VM_ANSWERS"
)

// Plan is what there is to test.
type Plan struct {
	Images []Image
	Stacks []Stack
}

// Image is one converted layer and what another kernel showed of it.
type Image struct {
	Name string
	// Tree is a scan of the mounted image. Without it only the Spots are compared.
	Tree []treediff.Record
	// Spots are parts of files that are too large to be read as a whole.
	Spots []Spot
}

// Spot is a part of a file, and Data what stands there. It may end behind the file.
type Spot struct {
	Path           string
	Offset, Length int64
	Data           []byte
}

// Read returns what a mounted image has at the spot.
func (s Spot) Read(root string) ([]byte, error) {
	f, err := os.Open(filepath.Join(root, s.Path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, s.Offset, s.Length))
}

// Stack is an overlay mount of several images, as a container has it.
type Stack struct {
	Name string
	// Layers are names of images, the uppermost first.
	Layers []string
	// Merged is a scan of the mount, Changed another one after Change, and Log what Change returned.
	Merged, Changed []treediff.Record
	Log             []string
}

const planName = "plan.gob"

// Save writes the plan to dir. It is not JSON, which cannot carry names and attributes that are no UTF-8.
func (p Plan) Save(dir string) error {
	f, err := os.Create(filepath.Join(dir, planName))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := gob.NewEncoder(f).Encode(p); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return f.Close()
}

// Load reads the plan from dir.
func Load(dir string) (Plan, error) {
	f, err := os.Open(filepath.Join(dir, planName))
	if err != nil {
		return Plan{}, err
	}
	defer f.Close()
	var p Plan
	if err := gob.NewDecoder(f).Decode(&p); err != nil {
		return Plan{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return p, nil
}

// Files are the two files of the image with this name, where dir is the directory of the plan.
func Files(dir, name string) fsbackend.Image {
	return fsbackend.Image{Meta: filepath.Join(dir, "images", name, "meta.erofs"), Data: filepath.Join(dir, "images", name, "data")}
}

// WithImage mounts an image for as long as f runs.
func WithImage(ctx context.Context, mode file.Mode, img fsbackend.Image, f func(root string) error) (err error) {
	target, err := os.MkdirTemp("", "image-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(target)) }()
	backend := file.New(file.Options{Mode: mode})
	if err := backend.Mount(ctx, img, target); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Unmount(ctx, target)) }()
	return f(target)
}

// WithStack mounts the layers of a stack, and an overlay over them with the options of our snapshots, for as long as f runs.
func WithStack(ctx context.Context, dir string, layers []string, f func(root string) error) error {
	return withLowers(ctx, dir, layers, nil, f)
}

// withLowers mounts the first layer after those that are mounted at lowers, and calls itself for the rest.
func withLowers(ctx context.Context, dir string, layers, lowers []string, f func(root string) error) error {
	if len(layers) == 0 {
		return withOverlay(lowers, f)
	}
	return WithImage(ctx, file.Auto, Files(dir, layers[0]), func(root string) error {
		return withLowers(ctx, dir, layers[1:], append(lowers, root), f)
	})
}

func withOverlay(lowers []string, f func(root string) error) (err error) {
	snapshot, err := os.MkdirTemp("", "snapshot-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(snapshot)) }()
	upper, work, merged := filepath.Join(snapshot, "upper"), filepath.Join(snapshot, "work"), filepath.Join(snapshot, "merged")
	for _, d := range []string{upper, work, merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// The root of the mount has the times of the upper directory.
	if err := os.Chtimes(upper, time.Time{}, time.Unix(1_600_000_000, 0)); err != nil {
		return err
	}
	options := fmt.Sprintf("index=off,redirect_dir=nofollow,metacopy=off,lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lowers, ":"), upper, work)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay with %s: %w", options, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(merged, 0)) }()
	return f(merged)
}
