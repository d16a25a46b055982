// Package zstdchunked reads the index of a zstd:chunked layer, in both dialects.
//
// Such a blob is a tar.zst of many zstd frames: the contents of each file, or of each chunk of a file, start a frame of their own. A table
// of contents follows in a frame that zstd decoders skip.
//
//	... │ chunk │ chunk │ tar header │ ... │ 50 2a 4d 18, length, zstd{JSON} │ podman: tar-split │ footer
//	    └ zstd frame: an extent's range    └ skippable frame
//
// The footer is not read: the manifest's annotations say where the table is and what its digest is, which saves a round trip and is what
// the trust is built on.
//
//	dialect                           annotations                                    digest of
//	podman (also buildah, skopeo)     io.github.containers.zstd-chunked.manifest-*   compressed JSON
//	stargz (nerdctl, ctr-remote)      io.containers.zstd-chunked.manifest-*          compressed JSON
//	                                  containerd.io/snapshot/stargz/toc.digest       JSON, may be missing
//
// Podman's first releases, those of Debian 12 among them, wrote stargz's annotations. Their table is read by stargz's rules, which hold for
// it too; holes are data then.
//
// A layer with the annotations of more than one format is refused, as containers/storage does: different tools would see different files.
//
// Podman's table knows times to the nanosecond, stargz's to the second. Neither knows ACLs that the tar has in text form. Podman does not
// promise that its table has the order of the tar, but has always written it so; where a hard link came before its target, the layer could
// not be loaded on demand.
package zstdchunked

import (
	"bytes"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/internal/toc"
)

// dialect is what differs.
type dialect struct {
	name               string
	toc                toc.Dialect
	checksum, position string // annotations
}

var (
	podman = dialect{"zstd:chunked/podman", toc.Podman, toc.PodmanChecksum, toc.PodmanPosition}
	stargz = dialect{"zstd:chunked/stargz", toc.Stargz, toc.StargzChecksum, toc.StargzPosition}
)

// Open reads the table of contents of a layer with one read of its blob.
func Open(l index.Layer, blob io.ReaderAt, limits index.Limits) (*index.Index, error) {
	d, err := dialectOf(l.Annotations)
	if err != nil {
		return nil, fmt.Errorf("zstd:chunked: %w", err)
	}
	x, err := d.open(l, blob, limits.WithDefaults())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	return x, nil
}

func dialectOf(annotations map[string]string) (dialect, error) {
	_, isPodman := annotations[podman.checksum]
	_, isStargz := annotations[stargz.checksum]
	_, isEStargz := annotations[toc.DigestAnnotation]
	switch {
	case isPodman && (isStargz || isEStargz):
		return dialect{}, fmt.Errorf("annotations of more than one format, %s among them", podman.checksum)
	case isPodman:
		return podman, nil
	case isStargz:
		return stargz, nil
	}
	return dialect{}, fmt.Errorf("%w: no annotation %s or %s", index.ErrNotLazy, podman.checksum, stargz.checksum)
}

func (d dialect) open(l index.Layer, blob io.ReaderAt, limits index.Limits) (*index.Index, error) {
	want, err := toc.AnnotatedDigest(l.Annotations, d.checksum)
	if err != nil {
		return nil, err
	}
	p, err := parsePosition(l.Annotations[d.position], l.Size)
	if err != nil {
		return nil, fmt.Errorf("annotation %s=%.100q: %w", d.position, l.Annotations[d.position], err)
	}
	if err := p.check(limits); err != nil {
		return nil, err
	}
	packed, err := index.ReadRange(blob, p.packed)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(packed); got != want {
		return nil, fmt.Errorf("compressed table of contents has digest %s, annotation %s=%s", got, d.checksum, want)
	}
	if err := verify(packed, p.bytes, l.Annotations); err != nil {
		return nil, err
	}
	return &index.Index{
		Format: d.name, Digest: want, Codec: index.Zstd, Hidden: d.toc.Hidden(),
		Records: func() (index.Reader, error) {
			json, err := unpack(packed, p.bytes)
			if err != nil {
				return nil, err
			}
			return toc.NewReader(json, d.toc, p.packed.Start-frameHeaderBytes, limits)
		},
	}, nil
}

// verify compares the JSON with the digest that stargz's dialect has of it besides.
func verify(packed []byte, size int64, annotations map[string]string) error {
	if _, ok := annotations[toc.DigestAnnotation]; !ok {
		return nil
	}
	want, err := toc.AnnotatedDigest(annotations, toc.DigestAnnotation)
	if err != nil {
		return err
	}
	json, err := unpack(packed, size)
	if err != nil {
		return err
	}
	return toc.Verify(json, want)
}

// unpack returns the JSON of a table of contents, of which size bytes are read and no more.
func unpack(packed []byte, size int64) (io.Reader, error) {
	z, err := index.NewZstdReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	return io.LimitReader(z, size), nil
}
