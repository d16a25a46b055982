package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// node is what transfers have of a machine. There is no registry and no kernel: data come by imports only.
type node struct {
	transfers
	t    *testing.T
	root string
	list []layerstore.Instance
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, root: t.TempDir()}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	w := watch.New(watch.Options{Engine: ondemand.New(ondemand.Options{}), Log: log})
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	n.transfers = transfers{layers: n, watcher: w, log: log}
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) List() []layerstore.Instance { return slices.Clone(n.list) }

func (n *node) Get(id layerstore.ID) (layerstore.Instance, error) {
	for _, inst := range n.list {
		if inst.ID == id {
			return inst, nil
		}
	}
	return layerstore.Instance{}, errdefs.ErrNotFound
}

func (n *node) Dir(id layerstore.ID) string { return filepath.Join(n.root, string(id)) }

const extentsOfLayer = 100

// contentOf is extent i of a layer.
func contentOf(layer, i int) []byte {
	var seed [32]byte
	seed[0], seed[1] = byte(layer), byte(i)
	b := make([]byte, 1+i*50)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func idOf(layer int) (id [32]byte, name layerstore.ID) {
	id = sha256.Sum256(fmt.Append(nil, layer))
	return id, layerstore.ID(hex.EncodeToString(id[:]))
}

// pull makes a lazy layer of which the extents are present that a function names.
func (n *node) pull(layer int, present func(i int) bool) layerstore.ID {
	n.t.Helper()
	id, name := idOf(layer)
	dir := n.Dir(name)
	n.must(os.Mkdir(dir, 0o700))
	n.must(os.WriteFile(filepath.Join(dir, "meta.erofs"), nil, 0o600))
	var list []blob.Extent
	for i := range extentsOfLayer {
		content := contentOf(layer, i)
		list = append(list, blob.Extent{Offset: int64(i) * 8192, Length: uint32(len(content)), BlobLength: 1, Digest: sha256.Sum256(content)})
	}
	n.must(blob.Create(dir, id, extentsOfLayer*8192, slices.Values(list)))
	inst := layerstore.Instance{ID: name, Kind: layerstore.EROFS, Layer: digest.FromString(fmt.Sprint(layer)), Lazy: &layerstore.Lazy{
		Partial: true, Images: []string{fmt.Sprintf("docker.io/library/image%d:latest", layer), "r.example/all:1"},
	}}
	n.list = append(n.list, inst)
	n.must(n.watcher.Open(watch.Layer{Name: string(name), ID: id, Dir: dir, Digest: string(inst.Layer)}))
	for i, x := range list {
		if present(i) {
			_, err := n.watcher.Import(string(name), x.Offset, x.Length, func() ([]byte, error) { return contentOf(layer, i), nil })
			n.must(err)
		}
	}
	return name
}

// completes has a complete layer closed.
func (n *node) completes(layer int) {
	_, name := idOf(layer)
	n.watcher.Left(string(name), "/nonexistent") // it is not open any more
	for i := range n.list {
		if n.list[i].ID == name {
			lazy := *n.list[i].Lazy
			lazy.Partial = false
			n.list[i].Lazy = &lazy
		}
	}
}

// exports returns the stream of some layers.
func (n *node) exports(choice admin.Choice) []byte {
	n.t.Helper()
	write, err := n.export(choice)
	n.must(err)
	var b bytes.Buffer
	n.must(write(n.t.Context(), &b))
	return b.Bytes()
}

// takes imports a stream.
func (n *node) takes(stream []byte) admin.ImportReport {
	return n.imports(n.t.Context(), bytes.NewReader(stream))
}

// has expects that extents of a layer are present, with the right bytes, and returns how many.
func (n *node) has(layer int) (count int64) {
	n.t.Helper()
	_, name := idOf(layer)
	r, err := n.watcher.Reader(string(name))
	n.must(err)
	defer r.Close()
	list, err := r.Extents(0, r.Count())
	n.must(err)
	for i, x := range list {
		if r.Present(i) {
			count++
			b := make([]byte, x.Length)
			if err := r.Read(x, b); err != nil || !bytes.Equal(b, contentOf(layer, i)) {
				n.t.Errorf("extent %d of layer %d: other bytes, %v", i, layer, err)
			}
		}
	}
	return count
}

func all(int) bool     { return true }
func none(int) bool    { return false }
func even(i int) bool  { return i%2 == 0 }
func third(i int) bool { return i%3 == 0 }

// TestTransfer: partial and complete layers go to a machine that knows them, in part, or not, or as a whole.
func TestTransfer(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.pull(1, even)
	a.pull(2, all)
	a.completes(2)
	a.pull(3, even)
	a.pull(4, even)
	a.pull(5, even)
	a.pull(6, none)
	stream := a.exports(admin.Choice{})

	b.pull(1, third)
	b.pull(2, none)
	b.pull(3, all)
	b.completes(3)
	b.list = append(b.list, layerstore.Instance{ID: "other", Layer: digest.FromString("4")})
	b.pull(6, all)
	got := map[string]admin.ImportedLayer{}
	report := b.takes(stream)
	for _, l := range report.Layers {
		got[l.Digest] = l
	}
	if report.Error != "" || len(got) != 6 {
		t.Errorf("%+v", report)
	}
	for layer, want := range map[int]struct {
		result                        string
		offered, fresh, present, hole int64
	}{
		1: {admin.Imported, 50, 33, 17, 0}, 2: {admin.Imported, 100, 100, 0, 0}, 3: {admin.Imported, 50, 0, 50, 0},
		4: {admin.Whole, 50, 0, 0, 0}, 5: {admin.Unknown, 50, 0, 0, 0}, 6: {admin.Imported, 0, 0, 0, 0},
	} {
		l := got[string(digest.FromString(fmt.Sprint(layer)))]
		if l.Result != want.result || l.Offered.Extents != want.offered || l.New.Extents != want.fresh || l.Present.Extents != want.present || l.Wrong.Extents != 0 {
			t.Errorf("layer %d: %+v", layer, l)
		}
	}
	if n := b.has(1); n != 34+33 {
		t.Errorf("layer 1 has %d extents", n)
	}
	if n := b.has(2); n != extentsOfLayer {
		t.Errorf("layer 2 has %d extents", n)
	}
	if err := reportImport(io.Discard, report, true); err != nil {
		t.Error(err)
	}
}

// TestTransferChoice: images and layers are chosen by name, and what is not there is said before anything is written.
func TestTransferChoice(t *testing.T) {
	n := newNode(t)
	one, two := n.pull(1, even), n.pull(2, even)
	three := n.pull(3, even)
	n.list[2].Lazy.Mismatch = "it lies"
	n.list = append(n.list, layerstore.Instance{ID: "whole", Layer: digest.FromString("4")})
	for _, test := range []struct {
		choice admin.Choice
		want   []layerstore.ID // nil: an error
	}{
		{admin.Choice{}, []layerstore.ID{one, two}},
		{admin.Choice{Images: []string{"image1"}}, []layerstore.ID{one}},
		{admin.Choice{Images: []string{"docker.io/library/image1:latest", "r.example/all:1"}}, []layerstore.ID{one, two}},
		{admin.Choice{Images: []string{"image1"}, Instances: []string{string(two)}}, []layerstore.ID{one, two}},
		{admin.Choice{Images: []string{"image1:2"}}, nil},
		{admin.Choice{Images: []string{"image1", "IMAGE"}}, nil},
		{admin.Choice{Instances: []string{"whole"}}, nil},
		{admin.Choice{Instances: []string{string(three)}}, nil},
	} {
		chosen, err := n.choose(test.choice)
		var got []layerstore.ID
		for _, inst := range chosen {
			got = append(got, inst.ID)
		}
		slices.Sort(test.want)
		if !reflect.DeepEqual(got, test.want) || errors.Is(err, admin.ErrNoLayer) != (test.want == nil) {
			t.Errorf("%+v: %q, error %v", test.choice, got, err)
		}
	}
}

// TestTransferNotServed: a layer whose data nobody may touch now is passed over, unless it was chosen.
func TestTransferNotServed(t *testing.T) {
	a := newNode(t)
	name := a.pull(1, even)
	a.pull(2, even)
	stream := a.exports(admin.Choice{})
	a.watcher.Left(string(name), "/nonexistent") // it is not open, and partial
	write, err := a.export(admin.Choice{Instances: []string{string(name)}})
	a.must(err)
	if err := write(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "not served now") {
		t.Errorf("error %v", err)
	}
	b := newNode(t)
	b.pull(2, none)
	if r := b.takes(a.exports(admin.Choice{})); len(r.Layers) != 1 || r.Layers[0].New.Extents != 50 {
		t.Errorf("%+v", r)
	}
	for _, l := range a.takes(stream).Layers {
		if refused := l.Result == admin.Refused; refused != (l.Instance == string(name)) || refused && l.Cause == "" {
			t.Errorf("%+v", l)
		}
	}
}

// TestTransferDamaged: wherever bits are flipped, and wherever the stream is cut off, nothing wrong is imported and something is said; what is good
// before that is imported.
func TestTransferDamaged(t *testing.T) {
	a := newNode(t)
	a.pull(1, func(i int) bool { return i < 10 })
	stream := a.exports(admin.Choice{})
	whole := int64(10)
	r := rand.New(rand.NewPCG(1, 2))
	said := 0
	for range 30 {
		damaged := slices.Clone(stream)
		if r.IntN(3) == 0 {
			damaged = damaged[:r.IntN(len(damaged)-1024)]
		} else {
			damaged[r.IntN(len(damaged)-1024)] ^= 1 << r.IntN(8)
		}
		b := newNode(t)
		b.pull(1, none)
		report := b.takes(damaged)
		n := b.has(1)
		err := reportImport(io.Discard, report, false)
		if n < whole && err == nil {
			t.Errorf("%d extents came, and nothing was said: %+v", n, report)
		}
		if err != nil {
			said++
		}
	}
	if said < 20 {
		t.Errorf("something was said %d times", said)
	}
}

// TestExportOfDamagedDisk: what the disk has lost is left out, and counted.
func TestExportOfDamagedDisk(t *testing.T) {
	a, b := newNode(t), newNode(t)
	name := a.pull(1, even)
	data, err := os.OpenFile(filepath.Join(a.Dir(name), blob.DataName), os.O_WRONLY, 0)
	a.must(err)
	_, err = data.WriteAt([]byte{contentOf(1, 4)[0] ^ 1}, 4*8192)
	a.must(errors.Join(err, data.Close()))
	b.pull(1, none)
	if report := b.takes(a.exports(admin.Choice{})); report.Error != "" || report.Layers[0].New.Extents != 49 || report.Layers[0].Wrong.Extents != 0 {
		t.Errorf("%+v", report)
	}
}
