package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/warm"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// transfers export the data of lazy layers that are here, and import those of other machines: cache export and cache import. Nothing that is imported
// is believed: which extents a layer has, and which bytes belong there, is what its own index has said here.
type transfers struct {
	layers  layers
	watcher *watch.Watcher
	log     *slog.Logger
}

// layers is what a transfer needs of a layerstore.Store.
type layers interface {
	List() []layerstore.Instance
	Get(id layerstore.ID) (layerstore.Instance, error)
	Dir(id layerstore.ID) string
}

// export chooses layers and returns what writes them.
func (t transfers) export(choice admin.Choice) (write func(context.Context, io.Writer) error, err error) {
	chosen, err := t.choose(choice)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, out io.Writer) error {
		w := warm.NewWriter(out)
		for _, inst := range chosen {
			r, err := t.reader(inst.ID)
			if err != nil && choice.All() { // such as one that was removed meanwhile
				t.log.Warn("layer is not exported", "layer", inst.Layer, "instance", inst.ID, "cause", err)
				continue
			}
			if err == nil {
				err = errors.Join(t.exportLayer(ctx, inst, r, w), r.Close())
			}
			if err != nil {
				return fmt.Errorf("layer %s: %w", inst.Layer, err)
			}
		}
		return w.Close()
	}, nil
}

// choose returns lazy instances. Those that are not what their images say are not passed on.
func (t transfers) choose(choice admin.Choice) (chosen []layerstore.Instance, err error) {
	var lazy []layerstore.Instance
	for _, inst := range t.layers.List() {
		if inst.Lazy != nil && inst.Lazy.Mismatch == "" {
			lazy = append(lazy, inst)
		}
	}
	slices.SortFunc(lazy, func(a, b layerstore.Instance) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if choice.All() {
		return lazy, nil
	}
	wanted := map[layerstore.ID]bool{}
	for _, name := range choice.Instances {
		if !slices.ContainsFunc(lazy, func(inst layerstore.Instance) bool { return inst.ID == layerstore.ID(name) }) {
			return nil, fmt.Errorf("instance %.100q is not lazy: %w", name, admin.ErrNoLayer)
		}
		wanted[layerstore.ID(name)] = true
	}
	for _, image := range choice.Images {
		found := false
		for _, inst := range lazy {
			if slices.ContainsFunc(inst.Lazy.Images, func(of string) bool { return sameImage(of, image) }) {
				found, wanted[inst.ID] = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("no lazy layer was pulled by the name %.200q: %w", image, admin.ErrNoLayer)
		}
	}
	return slices.DeleteFunc(lazy, func(inst layerstore.Instance) bool { return !wanted[inst.ID] }), nil
}

// sameImage says whether two references name one image: nginx is docker.io/library/nginx:latest.
func sameImage(a, b string) bool { return fullReference(a) == fullReference(b) }

func fullReference(s string) string {
	if named, err := reference.ParseDockerRef(s); err == nil {
		return named.String()
	}
	return s
}

// exportLayer writes the extents of an instance that are present.
func (t transfers) exportLayer(ctx context.Context, inst layerstore.Instance, r *blob.Reader, w *warm.Writer) error {
	if err := w.Layer(warm.Layer{Instance: string(inst.ID), Digest: inst.Layer}); err != nil {
		return err
	}
	damaged := 0
	defer func() {
		if damaged > 0 {
			t.log.Error("data of a layer are damaged on the disk and are not exported", "layer", inst.Layer, "instance", inst.ID, "extents", damaged)
		}
	}()
	var buf []byte
	for first := 0; first < r.Count(); first += extentsAtOnce {
		list, err := r.Extents(first, min(first+extentsAtOnce, r.Count()))
		if err != nil {
			return err
		}
		for i, x := range list {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !r.Present(first + i) {
				continue
			}
			buf = sized(buf, x.Length)
			err := r.Read(x, buf)
			switch {
			case errors.Is(err, blob.ErrDamaged) && !r.Present(first+i):
				// The disk has just lost it, which is known.
			case errors.Is(err, blob.ErrDamaged):
				damaged++
				w.Damaged()
			case err != nil:
				return err
			default:
				if err := w.Extent(x.Offset, buf); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const (
	// extentsAtOnce are read from a table at a time.
	extentsAtOnce = 1024
	// keptBuffer is the largest that stays for the next extent: the chunks of most tools have 4 MiB.
	keptBuffer = 4 << 20
)

// sized returns a buffer of n bytes, buf if that is of use.
func sized(buf []byte, n uint32) []byte {
	if cap(buf) < int(n) || cap(buf) > keptBuffer {
		return make([]byte, n)
	}
	return buf[:n]
}

// reader opens what is here of an instance.
func (t transfers) reader(id layerstore.ID) (*blob.Reader, error) {
	r, err := t.watcher.Reader(string(id))
	if errors.Is(err, watch.ErrNotOpen) {
		return t.complete(id)
	}
	return r, err
}

// complete opens an instance that is not open because it has everything.
func (t transfers) complete(id layerstore.ID) (*blob.Reader, error) {
	inst, err := t.layers.Get(id)
	switch {
	case err != nil:
		return nil, err
	case inst.Lazy == nil:
		return nil, errors.New("it was pulled as a whole")
	case inst.Partial() || t.watcher.Marked(string(id)) || t.watcher.Unsure() != nil:
		return nil, errors.New("its data are not served now")
	}
	return blob.OpenReader(t.layers.Dir(id), id.Bytes())
}

// imports reads an export and puts what is in it into the layers that are here.
func (t transfers) imports(_ context.Context, in io.Reader) (report admin.ImportReport) {
	r := warm.NewReader(in)
	var to *importing
	finish := func() {
		if to != nil {
			report.Layers = append(report.Layers, to.finish())
		}
	}
	var buf []byte
	for {
		x, begins, err := r.Next()
		if err == nil && begins {
			finish()
			to = t.importing(r.Layer())
			continue
		}
		if err == nil {
			err = to.extent(x, func() ([]byte, error) {
				buf = sized(buf, x.Length)
				return buf, r.Read(buf)
			})
		}
		if err != nil {
			finish()
			if err != io.EOF {
				report.Error = streamError(err).Error()
			}
			return report
		}
	}
}

// streamError says what it means that a stream cannot be read on.
func streamError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, warm.ErrFormat) {
		return errors.New("the export is cut off")
	}
	return err
}

// importing is a layer that is being imported.
type importing struct {
	t        transfers
	id       layerstore.ID
	complete *blob.Reader // set if it has everything and is not open
	report   admin.ImportedLayer
}

func (t transfers) importing(l warm.Layer) *importing {
	i := &importing{t: t, id: layerstore.ID(l.Instance), report: admin.ImportedLayer{Instance: l.Instance, Digest: string(l.Digest), Result: admin.Imported}}
	if _, err := t.layers.Get(i.id); err != nil {
		i.report.Result = admin.Unknown
		if t.isWhole(l.Digest) {
			i.report.Result = admin.Whole
		}
	}
	return i
}

// isWhole says whether a layer was pulled as a whole.
func (t transfers) isWhole(layer digest.Digest) bool {
	return slices.ContainsFunc(t.layers.List(), func(inst layerstore.Instance) bool { return inst.Layer == layer && inst.Lazy == nil })
}

// extent imports one. An error is that of read: of the stream.
func (i *importing) extent(x warm.Extent, read func() ([]byte, error)) error {
	i.report.Offered.Add(x.Length)
	if i.report.Result != admin.Imported {
		return nil
	}
	var readErr error
	became, err := i.put(x, func() (b []byte, err error) {
		b, readErr = read()
		return b, readErr
	})
	switch {
	case readErr != nil:
		return readErr
	case err != nil:
		i.refuse(err)
	case became == watch.Written:
		i.report.New.Add(x.Length)
	case became == watch.Present:
		i.report.Present.Add(x.Length)
	default:
		i.report.Wrong.Add(x.Length)
	}
	return nil
}

// put imports an extent into an instance that may become complete meanwhile.
func (i *importing) put(x warm.Extent, read func() ([]byte, error)) (watch.Imported, error) {
	if i.complete == nil {
		became, err := i.t.watcher.Import(string(i.id), x.Offset, x.Length, read)
		if !errors.Is(err, watch.ErrNotOpen) {
			return became, err
		}
		if i.complete, err = i.t.complete(i.id); err != nil {
			return 0, err
		}
	}
	if n, err := i.complete.At(x.Offset, x.Length); err != nil {
		return 0, err
	} else if n < 0 {
		return watch.Wrong, nil
	}
	return watch.Present, nil
}

// refuse says that nothing more is imported into the layer.
func (i *importing) refuse(cause error) {
	i.report.Result, i.report.Cause = admin.Refused, cause.Error()
	i.t.log.Error("data of a layer not imported", "layer", i.report.Digest, "instance", i.id, "cause", cause)
}

// finish puts what was imported on stable storage.
func (i *importing) finish() admin.ImportedLayer {
	if i.complete != nil {
		i.complete.Close() // it was only read
	}
	if i.report.New.Extents > 0 {
		if err := i.t.watcher.Flush(string(i.id)); err != nil {
			i.refuse(err)
		}
	}
	if n := i.report.Wrong.Extents; n > 0 {
		i.t.log.Warn("what was to be imported into a layer is not of it", "layer", i.report.Digest, "instance", i.id, "wrong_extents", n)
	}
	if n := i.report.New; n.Extents > 0 {
		i.t.log.Info("data of a layer imported", "layer", i.report.Digest, "instance", i.id, "extents", n.Extents, "bytes", n.Bytes)
	}
	return i.report
}
