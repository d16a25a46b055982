package lazytorture

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
)

const pageBytes = 4096

// layer is an eStargz layer with files that readers can compute, and programs.
type layer struct {
	stargzlayer.Layer
	seed uint64
	path string // of the blob
}

// What a layer has: about 12 MiB, which half a hundred lives make present.
const (
	files    = 60
	programs = 3
)

// chunks are the sizes of chunks of the layers, one each: less than what is fetched at a time, and more than a reader asks for.
var chunks = []int{16 << 10, 200_000}

// newLayers makes the layers that a round has, which differ in contents and in the size of chunks, or as many. onDemand is how they can be loaded.
func newLayers(t *testing.T, onDemand testenv.Feature, n int) []layer {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS, onDemand, testenv.Tool("busybox"))
	dir := t.TempDir()
	var layers []layer
	for i, chunk := range chunks[:n] {
		l := layer{seed: uint64(i + 1), path: filepath.Join(dir, fmt.Sprintf("layer%d", i))}
		l.Layer = stargzlayer.Pack(t, archive(l.seed), estargz.WithChunkSize(chunk), estargz.WithCompressionLevel(gzip.BestSpeed))
		must(t, os.WriteFile(l.path, l.Blob, 0o600))
		l.Blob = nil
		layers = append(layers, l)
	}
	return layers
}

// archive mixes files and programs.
func archive(seed uint64) []byte {
	entries := []tartest.File{{Name: "files/", Type: '5', Mode: 0o755}, {Name: "bin/", Type: '5', Mode: 0o755}}
	for i := range files {
		entries = append(entries, tartest.File{Name: fileName(i), Type: '0', Mode: 0o644, Data: contents(seed, i)})
		if i%(files/programs) == 0 {
			entries = append(entries, tartest.File{Name: programName(i / (files / programs)), Type: '0', Mode: 0o755, Data: program()})
		}
	}
	return tartest.Pack(entries)
}

func fileName(i int) string    { return fmt.Sprintf("files/%03d", i) }
func programName(i int) string { return fmt.Sprintf("bin/busybox%d", i) }

// fileBytes is the length of a file: half of them have less than 3 KiB, the largest 2 MiB.
func fileBytes(seed uint64, i int) int {
	random := rand.New(rand.NewPCG(seed, uint64(i)))
	return 1 + random.IntN(2<<random.IntN(21))
}

// page fills p with a page of a file. None is zeros, and no two are equal.
func page(seed uint64, file, n int, p []byte) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(file))
	binary.LittleEndian.PutUint64(key[16:], uint64(n))
	random := rand.NewChaCha8(key)
	if file%4 != 0 {
		random.Read(p) // never fails
		return
	}
	unit := p[:min(len(p), 512)] // what can be compressed
	random.Read(unit)
	for at := len(unit); at < len(p); at += len(unit) {
		copy(p[at:], unit)
	}
}

func contents(seed uint64, file int) []byte {
	b := make([]byte, fileBytes(seed, file))
	for n := 0; n*pageBytes < len(b); n++ {
		page(seed, file, n, b[n*pageBytes:min((n+1)*pageBytes, len(b))])
	}
	return b
}

// place is a page of a file.
type place struct{ file, page int }

// pageOf puts what a page has into p, and returns how many bytes that are.
func pageOf(seed uint64, at place, p *[pageBytes]byte) int {
	n := min(pageBytes, fileBytes(seed, at.file)-at.page*pageBytes)
	page(seed, at.file, at.page, p[:n])
	return n
}
