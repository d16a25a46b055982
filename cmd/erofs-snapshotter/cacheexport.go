package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin/render"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/warm"
)

// cacheExport is cache export.
type cacheExport struct {
	client *admin.Client
	json   bool
	root   *cli.Command
}

func (e cacheExport) export(ctx context.Context, output string, images, layers []string) error {
	if output == standardName && isTerminal(e.root.Writer) {
		return usageError{errors.New("an export is nothing for a terminal: give --output FILE, or pipe it")}
	}
	choice := admin.Choice{Images: images}
	if len(layers) > 0 {
		s, err := e.client.Status(ctx)
		if err != nil {
			return err
		}
		for _, name := range layers {
			l, err := render.FindLayer(s, name)
			if err != nil {
				return err
			}
			choice.Instances = append(choice.Instances, l.Instance)
		}
	}
	var done admin.Exported
	write := func(w io.Writer) error {
		return e.client.Export(ctx, choice, func(stream io.Reader) (err error) {
			done, err = exported(stream, w)
			return err
		})
	}
	report := e.root.Writer
	var err error
	if output == standardName {
		report = e.root.ErrWriter
		err = write(e.root.Writer)
	} else {
		err = replacePrivateFile(output, write)
	}
	if err != nil {
		return err
	}
	if e.json {
		err = printJSON(report, done)
	} else {
		err = render.Exported(report, done)
	}
	if err == nil && done.DamagedExtents > 0 {
		return errReported
	}
	return err
}

// replacePrivateFile writes a file anew, for its owner only. It is there when all of it is on stable storage. What is no plain file is
// written as it is.
func replacePrivateFile(path string, write func(io.Writer) error) (err error) {
	if fi, statErr := os.Stat(path); statErr == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".erofs-snapshotter-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// exported copies an export, and says what is in it. A stream that is cut off is an error.
func exported(stream io.Reader, out io.Writer) (e admin.Exported, err error) {
	e.Layers = []admin.ExportedLayer{}
	written := &sink{w: out}
	copied := io.TeeReader(stream, written)
	r := warm.NewReader(copied)
	for {
		x, begins, err := r.Next()
		switch {
		case written.err != nil:
			return e, fmt.Errorf("write the export: %w", written.err)
		case err == io.EOF:
			e.DamagedExtents = r.Sum().Damaged
			_, err := io.Copy(io.Discard, copied) // what stands behind the end
			return e, err
		case err != nil:
			return e, fmt.Errorf("read what the daemon sends: %w", err)
		case begins:
			e.Layers = append(e.Layers, admin.ExportedLayer{Instance: r.Layer().Instance, Digest: string(r.Layer().Digest)})
		default:
			e.Layers[len(e.Layers)-1].Add(x.Length)
		}
	}
}

// sink remembers why it took no more.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (n int, err error) {
	n, err = s.w.Write(b)
	s.err = err
	return n, err
}
