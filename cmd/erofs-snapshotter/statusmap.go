package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin/render"
)

// plainColumns is the width of a map for a file or pipe.
const plainColumns = 80

// layerMap is status --map.
type layerMap struct {
	client *admin.Client
	layer  string // as the user names it
	file   string // for a picture; empty: text for out
	json   bool
	out    io.Writer
}

// checkMapFlags refuses what does not go together, before anybody is asked.
func checkMapFlags(c *cli.Command) error {
	asked := c.IsSet("map")
	switch {
	case asked && c.String("map") == "":
		return usageError{errors.New("--map needs the digest or instance of a layer")}
	case asked && c.Bool("watch"):
		return usageError{errors.New("--map and --watch do not go together")}
	case c.IsSet("out") && !asked:
		return usageError{errors.New("--out is for --map")}
	case c.IsSet("out") && c.Bool("json"):
		return usageError{errors.New("--out and --json do not go together")}
	case c.IsSet("out"):
		if _, err := render.PictureFor(c.String("out")); err != nil {
			return usageError{fmt.Errorf("--out %w", err)}
		}
	}
	return nil
}

// show draws the map.
func (m layerMap) show(ctx context.Context) error {
	s, err := m.client.Status(ctx)
	if err != nil {
		return err
	}
	l, err := render.FindLayer(s, m.layer)
	if err != nil {
		return err
	}
	if err := render.Mappable(l); err != nil {
		return err
	}
	if m.file != "" {
		return m.writePicture(ctx, l)
	}
	columns := plainColumns
	if size := terminalSize(m.out); size != nil {
		if n, _, err := size(); err == nil && n > 0 {
			columns = n
		}
	}
	cells, err := m.cells(ctx, l, render.TextCells(l, columns))
	if err != nil {
		return err
	}
	if m.json {
		return printJSON(m.out, admin.Map{Instance: l.Instance, Cells: cells})
	}
	return render.Map(m.out, l, cells, columns)
}

// fullMap is the map of a layer that has everything.
func fullMap(cells int) []float64 { return slices.Repeat([]float64{1}, cells) }

// cells asks for those of a layer. One that was never lazy has everything.
func (m layerMap) cells(ctx context.Context, l admin.Layer, n int) ([]float64, error) {
	if l.Lazy == nil {
		return fullMap(n), nil
	}
	answer, err := m.client.Map(ctx, l.Instance, n)
	return answer.Cells, err
}

func (m layerMap) writePicture(ctx context.Context, l admin.Layer) error {
	picture, err := render.PictureFor(m.file)
	if err != nil {
		return err
	}
	cells, err := m.cells(ctx, l, render.PictureCells(l))
	if err != nil {
		return err
	}
	if err := replaceFile(m.file, func(w io.Writer) error { return picture(w, l, cells) }); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	return nil
}

// replaceFile writes a file anew. Whoever reads it sees all of the old one or all of the new one.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".erofs-snapshotter-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = write(f)
	if err == nil {
		// A picture is no secret, and CreateTemp makes files for their owner only. Without the sync, a power cut could leave an empty file.
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
