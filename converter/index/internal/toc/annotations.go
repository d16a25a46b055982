package toc

import (
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// The annotations of a layer that bind a table of contents to its manifest.
const (
	// DigestAnnotation is the digest of the JSON. eStargz has only this one, stargz's zstd:chunked has it besides its own.
	DigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"
	// StargzChecksum and PodmanChecksum are the digest of the JSON as it is compressed in the blob, in the dialects of zstd:chunked.
	StargzChecksum = "io.containers.zstd-chunked.manifest-checksum"
	PodmanChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	// StargzPosition and PodmanPosition say where that is.
	StargzPosition = "io.containers.zstd-chunked.manifest-position"
	PodmanPosition = "io.github.containers.zstd-chunked.manifest-position"
)

// AnnotatedDigest returns the SHA-256 digest that an annotation has.
func AnnotatedDigest(annotations map[string]string, key string) (digest.Digest, error) {
	d, err := digest.Parse(annotations[key])
	if err == nil && d.Algorithm() != digest.SHA256 {
		err = digest.ErrDigestUnsupported
	}
	if err != nil {
		return "", fmt.Errorf("annotation %s=%s: %w, want sha256:<hex>", key, quote(annotations[key]), err)
	}
	return d, nil
}

// Verify compares JSON with the digest of it that the manifest has.
func Verify(json io.Reader, want digest.Digest) error {
	v := want.Verifier()
	if _, err := io.Copy(v, json); err != nil {
		return fmt.Errorf("table of contents: %w", err)
	}
	if !v.Verified() {
		return fmt.Errorf("table of contents is not the one of the manifest, annotation %s=%s", DigestAnnotation, want)
	}
	return nil
}
