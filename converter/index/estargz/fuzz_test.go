package estargz

import (
	"bytes"
	"io"
	"testing"

	builder "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/internal/toc"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// FuzzOpen gives the digest that the blob has, so that what follows is reached.
func FuzzOpen(f *testing.F) {
	archive := tartest.Pack([]tartest.File{{Name: "f", Type: '0', Data: []byte("data")}})
	b, err := builder.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))))
	if err != nil {
		f.Fatal(err)
	}
	defer b.Close()
	blob, err := io.ReadAll(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob)
	limits := index.Limits{Bytes: 1 << 20}
	f.Fuzz(func(t *testing.T, blob []byte) {
		l := index.Layer{Annotations: map[string]string{toc.DigestAnnotation: ownDigest(blob, limits.Bytes).String()}, Size: int64(len(blob))}
		x, err := Open(l, bytes.NewReader(blob), limits)
		if err != nil {
			return
		}
		r, err := x.Records()
		for err == nil {
			_, err = r.Next()
		}
	})
}

// ownDigest is the digest of the table of contents that a blob has.
func ownDigest(blob []byte, most int64) digest.Digest {
	packed, _, err := fetch(int64(len(blob)), bytes.NewReader(blob), int64(len(blob)))
	if err != nil {
		return digest.FromString("")
	}
	json, err := unpack(packed, most)
	if err != nil {
		return digest.FromString("")
	}
	text, _ := io.ReadAll(json) // what comes before an error has a digest too
	return digest.FromBytes(text)
}
