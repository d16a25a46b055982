package lazy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

func atOnce(context.Context, int) error { return nil }

func nowhere(int, []byte) error { return nil }

// TestCheck: a check of a right layer gives its digests, and all extents of its data blob.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	l := sample(t)
	inst := w.lazily(l)
	data, err := blob.Open(w.store.Dir(inst.ID), inst.ID.Bytes(), blob.Options{})
	must(t, err)
	defer data.Close()
	waited := 0
	sums, err := w.Check(t.Context(), inst, converter.Limits{}, func(_ context.Context, n int) error { waited += n; return nil }, func(i int, b []byte) error {
		x, err := data.Extents(i, i+1)
		if err == nil && x[0].Digest != sha256.Sum256(b) {
			t.Errorf("extent %d is of other bytes", i)
		}
		return errors.Join(err, data.Write(i, b))
	})
	must(t, err)
	if sums.Blob != l.Digest || sums.DiffID != l.DiffID || sums.BlobBytes != l.Size {
		t.Errorf("sums %+v, want %s, %s, %d", sums, l.Digest, l.DiffID, l.Size)
	}
	if p := data.Progress(); p.PresentExtents != p.Extents || p.Extents < 20 {
		t.Errorf("%+v", p)
	}
	if int64(waited) < l.Size {
		t.Errorf("waited for %d bytes of %d", waited, l.Size)
	}
}

// TestCheckFindsLies: a layer whose own digest is right, and that is not what its image says.
func TestCheckFindsLies(t *testing.T) {
	for name, c := range map[string]struct {
		layer func(w *world) layerstore.Instance
		cause string
	}{
		"other contents": {func(w *world) layerstore.Instance { return w.lazily(sample(t).Swapped(t, "dir/one", "dir/two")) }, "dir/one"},
		"other mode": {func(w *world) layerstore.Instance {
			return w.lazily(sample(t).WithTOC(t, func(toc *estargz.JTOC) { toc.Entries[1].Mode = 0o4755 }))
		}, "mode"},
		"a file more": {func(w *world) layerstore.Instance {
			return w.lazily(sample(t).WithTOC(t, func(toc *estargz.JTOC) {
				toc.Entries = append(toc.Entries, &estargz.TOCEntry{Name: "more", Type: "symlink", LinkName: "x"})
			}))
		}, "more"},
		"a file less": {func(w *world) layerstore.Instance {
			return w.lazily(sample(t).WithTOC(t, func(toc *estargz.JTOC) { toc.Entries = toc.Entries[:2] }))
		}, "no more entries"},
		"diffID": {func(w *world) layerstore.Instance {
			l := sample(t)
			l.DiffID = digest.FromString("another image's layer")
			return w.lazily(l)
		}, digest.FromString("another image's layer").String()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			inst := c.layer(w)
			_, err := w.Check(t.Context(), inst, converter.Limits{}, atOnce, nowhere)
			if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.cause) || !strings.Contains(err.Error(), inst.Layer.String()) {
				t.Errorf("got %v, want ErrMismatch about %s", err, c.cause)
			}
		})
	}
}

// TestCheckOfWrongBytes: what is wrong because it came wrong says nothing about the layer, wherever it is, and however much it looks like a lie.
func TestCheckOfWrongBytes(t *testing.T) {
	l := sample(t)
	other := sample(t).Swapped(t, "dir/one", "dir/two")
	wrong := map[string][]byte{"cut": l.Blob[:len(l.Blob)/2], "nothing": nil, "too long": append(bytes.Clone(l.Blob), "more"...), "other layer": other.Blob}
	for i := range 40 {
		at := i * (len(l.Blob) - 1) / 39
		wrong[fmt.Sprint("byte ", at)] = flipped(l.Blob, at)
	}
	w := newWorld(t)
	inst := w.lazily(l)
	for name, b := range wrong {
		// The index comes as it should.
		c := New(Options{Registry: twoFaced{registryOf{w}, b}, Log: w.o.Log})
		_, err := c.Check(t.Context(), inst, converter.Limits{}, atOnce, nowhere)
		if err == nil || errors.Is(err, ErrMismatch) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x40
	return b
}

// twoFaced is a registry that sends other bytes to who wants the whole.
type twoFaced struct {
	registryOf
	whole []byte
}

func (r twoFaced) Open(context.Context, string, ocispec.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(r.whole)), nil
}

// TestCheckElsewhere: the first image whose registry answers is read.
func TestCheckElsewhere(t *testing.T) {
	w := newWorld(t)
	l := sample(t)
	inst := w.lazily(l)
	inst = w.layer("mirror.example/app:1", l, true)
	inst, err := w.store.Get(inst.ID)
	must(t, err)
	w.refuse = func(from string) error {
		if from == image {
			return errdefs.ErrUnavailable
		}
		return nil
	}
	if _, err := w.Check(t.Context(), inst, converter.Limits{}, atOnce, nowhere); err != nil {
		t.Error(err)
	}
	w.refuse = func(string) error { return errdefs.ErrUnavailable }
	if _, err := w.Check(t.Context(), inst, converter.Limits{}, atOnce, nowhere); !errdefs.IsUnavailable(err) || errors.Is(err, ErrMismatch) {
		t.Errorf("nobody answers: %v", err)
	}
	inst.Lazy.Images = nil
	if _, err := w.Check(t.Context(), inst, converter.Limits{}, atOnce, nowhere); err == nil || errors.Is(err, ErrMismatch) {
		t.Errorf("nobody to ask: %v", err)
	}
}

// TestCheckEnds: a check ends where it waits, and with what takes its extents, and says nothing about the layer then.
func TestCheckEnds(t *testing.T) {
	w := newWorld(t)
	inst := w.lazily(sample(t).Swapped(t, "dir/one", "dir/two"))
	ctx, cancel := context.WithCancelCause(t.Context())
	pause := func(ctx context.Context, _ int) error {
		cancel(errTest)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if _, err := w.Check(ctx, inst, converter.Limits{}, pause, nowhere); !errors.Is(err, errTest) || errors.Is(err, ErrMismatch) {
		t.Errorf("cancelled: %v", err)
	}
	honest := w.lazily(sample(t))
	if _, err := w.Check(t.Context(), honest, converter.Limits{}, atOnce, func(int, []byte) error { return errTest }); !errors.Is(err, errTest) ||
		errors.Is(err, ErrMismatch) {
		t.Errorf("nowhere to put: %v", err)
	}
}
