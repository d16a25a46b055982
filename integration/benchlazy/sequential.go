package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// fileMiB is the size of the files of a layer that is read as a whole.
const fileMiB = 64

// sequentialLayouts are the layers, by name of their contents.
func (s settings) sequentialLayouts() []layout {
	one := func(name string, fill func(*rand.ChaCha8, []byte)) layout {
		c := contents{files: s.mib / fileMiB, fileBytes: fileMiB << 20, fill: fill}
		return layout{name: fmt.Sprintf("%s%dm", name, s.mib), form: "estargz", layers: []contents{c}}
	}
	return []layout{one("random", random), one("packed", packed)}
}

// Ways to get the layer.
const (
	lazyRead   = "lazy"
	curlFile   = "curl-file"
	curlNull   = "curl-null"
	curlUnpack = "curl-igzip" // into a file, unpacked
)

// curls are those that we are compared with.
var curls = []string{curlFile, curlNull, curlUnpack}

// sequentialRow is one measurement.
type sequentialRow struct {
	round     int
	layer     string
	way       string
	blobBytes int64
	took      time.Duration
}

// speed is bytes of the blob per second.
func (r sequentialRow) speed() float64 { return float64(r.blobBytes) / r.took.Seconds() }

var sequentialHeader = []string{"round", "layer", "way", "blob_bytes", "s"}

func (r sequentialRow) fields() []string {
	return []string{strconv.Itoa(r.round), r.layer, r.way, strconv.FormatInt(r.blobBytes, 10), benchkit.Seconds(r.took)}
}

func (b *bench) sequential(ctx context.Context, csvPath string, w io.Writer) (err error) {
	raw, err := benchkit.NewTable(csvPath, sequentialHeader)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	var rows []sequentialRow
	layouts := b.sequentialLayouts()
	err = b.withRegistry(ctx, layouts, func(registry *lab.Lab) error {
		for round := range b.Rounds {
			for _, l := range layouts {
				for _, way := range benchkit.Rotated(append([]string{lazyRead}, curls...), round) {
					r := sequentialRow{round: round + 1, layer: l.name, way: way}
					if err := b.measureSequential(ctx, registry, l, &r); err != nil {
						return fmt.Errorf("round %d, %s by %s: %w", r.round, r.layer, way, err)
					}
					rows = append(rows, r)
					benchkit.Progress("round %d %s %s %.2f s", r.round, r.layer, way, r.took.Seconds())
					if err := raw.Write(r.fields()); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	writeSequential(w, rows)
	return err
}

func (b *bench) measureSequential(ctx context.Context, registry *lab.Lab, l layout, r *sequentialRow) error {
	blob, err := l.onlyLayer()
	if err != nil {
		return err
	}
	r.blobBytes = blob.Size
	url := fmt.Sprintf("%s/v2/%s/blobs/%s", registry.RegistryURL(), l.name, blob.Digest)
	switch r.way {
	case curlNull:
		return r.shell(ctx, url, "/dev/null", curl)
	case curlFile, curlUnpack:
		return b.work.WithFreshDisk(ctx, func(dir string) error {
			command := curl
			if r.way == curlUnpack {
				command += " | igzip -dc"
			}
			return r.shell(ctx, url, filepath.Join(dir, "out"), command)
		})
	}
	return b.withNode(ctx, registry, "", func(n *node) error { return r.read(ctx, n, l, b.mib) })
}

// read reads a layer that was pulled, of which nothing is there.
func (r *sequentialRow) read(ctx context.Context, n *node, l layout, mib int) error {
	if err := n.pull(ctx, l); err != nil {
		return err
	}
	dir, err := n.view(ctx, l)
	if err != nil {
		return err
	}
	// It is lazy, and the background has not begun.
	layers, err := n.lazyLayers(ctx)
	if err != nil || len(layers) != 1 || layers[0].State != partial || layers[0].Lazy.PresentBytes*10 > layers[0].Lazy.Bytes {
		return fmt.Errorf("lazy layers before the first read %+v, error %w, want one that is nearly empty", layers, err)
	}
	if err := benchkit.TouchMemory(); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	var total int64
	begin := time.Now()
	for i := range l.layers[0].files {
		n, err := readWhole(filepath.Join(dir, fileName(0, i)), buf)
		if total += n; err != nil {
			return err
		}
	}
	r.took = time.Since(begin)
	if total != int64(mib)<<20 {
		return fmt.Errorf("read %d bytes, want %d MiB", total, mib)
	}
	return nil
}

const curl = `curl --silent --show-error --fail "$URL"`

// shell runs a command that downloads.
func (r *sequentialRow) shell(ctx context.Context, url, to, command string) error {
	if err := benchkit.ColdCache(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", command+` >"$OUT"`)
	cmd.Env = append(os.Environ(), "URL="+url, "OUT="+to)
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	r.took = time.Since(begin)
	if err != nil {
		return fmt.Errorf("%s from %s: %w: %s", command, url, err, out)
	}
	return nil
}

// onlyLayer is the descriptor of a layout's layer.
func (l layout) onlyLayer() (ocispec.Descriptor, error) {
	var index ocispec.Index
	var manifest ocispec.Manifest
	if err := readJSON(filepath.Join(l.path(), "index.json"), &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	digest := index.Manifests[0].Digest
	if err := readJSON(filepath.Join(l.path(), "blobs", digest.Algorithm().String(), digest.Encoded()), &manifest); err != nil {
		return ocispec.Descriptor{}, err
	}
	return manifest.Layers[0], nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
