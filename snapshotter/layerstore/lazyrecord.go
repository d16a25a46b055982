package layerstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
)

// What the lazy part of a layer.json says decides where bytes are fetched from and what they are compared with. So all of it is checked when it
// is read, and before it is written: what was made can be opened again.

// Bounds of a layer.json. What can be in an image is less.
const (
	maxBytes           = 1 << 56 // of anything, as in a table of extents: the sum of a few is no overflow
	maxImageBytes      = 1024
	maxMediaTypeBytes  = 255      // RFC 6838
	maxAnnotations     = 8        // three are in use for one index
	maxAnnotationBytes = 256      // of a key, and of a value
	maxMismatchBytes   = 2048     // that is written
	maxMismatchRead    = 64 << 10 // an earlier version wrote all of it, and read records of this length
)

// indexFormats are what index.Index.Format may be.
var indexFormats = []string{"estargz", "zstd:chunked/podman", "zstd:chunked/stargz"}

// fieldError is an error about a field of layer.json.
func fieldError(field string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", field, err)
}

// validate checks the fields of layer.json, and names the first that cannot be right.
func (inst Instance) validate() error {
	_, err := ParseID(string(inst.ID))
	if err == nil && inst.Kind != EROFS {
		return fmt.Errorf("kind: %q is not known", inst.Kind)
	}
	return cmp.Or(
		fieldError("id", err),
		fieldError("layer", checkOptionalDigest(inst.Layer)),
		fieldError("diffID", checkOptionalDigest(inst.DiffID)),
		fieldError("diffBytes", checkRange(inst.DiffBytes, 0, maxBytes)),
		fieldError("metaBytes", checkRange(inst.MetaBytes, 0, maxBytes)),
		fieldError("dataBytes", checkRange(inst.DataBytes, 0, maxBytes)),
		fieldError("diskBytes", checkRange(inst.DiskBytes, 0, maxBytes)),
		fieldError("inodes", checkRange(inst.Inodes, 0, maxBytes)),
		inst.validateLazy(),
	)
}

// validateLazy checks what is kept about a lazy instance.
func (inst Instance) validateLazy() error {
	l := inst.Lazy
	if l == nil {
		return nil
	}
	if inst.Layer == "" {
		return errors.New("layer: missing, of a lazy instance")
	}
	if !slices.Contains(indexFormats, l.Format) {
		return fmt.Errorf("lazy.format: %.100q is not known", l.Format)
	}
	if !l.Verified.IsZero() && inst.DiffID != l.DiffID {
		return fmt.Errorf("diffID: %q, but %q was verified", inst.DiffID, l.DiffID)
	}
	return cmp.Or(
		fieldError("lazy.images", checkImages(l.Images)),
		fieldError("lazy.mediaType", checkText(l.MediaType, maxMediaTypeBytes)),
		fieldError("lazy.size", checkRange(l.Size, 1, maxBytes)),
		fieldError("lazy.annotations", checkAnnotations(l.Annotations)),
		fieldError("lazy.diffID", checkOneDigest(l.DiffID)),
		fieldError("lazy.index", checkOneDigest(l.Index)),
		fieldError("lazy.prefetch", checkRange(l.Prefetch, 0, l.Size)),
		fieldError("lazy.finalBytes", checkRange(l.FinalBytes, 0, inst.MetaBytes+wholeBlocks(inst.DataBytes))),
		fieldError("lazy.mismatch", checkLength(l.Mismatch, maxMismatchRead)),
	)
}

func checkRange(n, least, most int64) error {
	if n < least || n > most {
		return fmt.Errorf("%d is not in %d to %d", n, least, most)
	}
	return nil
}

func checkOneDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w", d, err)
	}
	return nil
}

func checkOptionalDigest(d digest.Digest) error {
	if d == "" {
		return nil
	}
	return checkOneDigest(d)
}

func checkLength(s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%d bytes, more than %d", len(s), most)
	}
	return nil
}

// checkText accepts a line of text, which may be empty.
func checkText(s string, most int) error {
	if err := checkLength(s, most); err != nil {
		return err
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%.100q is not a line of text", s)
	}
	return nil
}

func checkImages(images []string) error {
	if len(images) < 1 || len(images) > maxImages {
		return fmt.Errorf("%d references, not 1 to %d", len(images), maxImages)
	}
	for _, image := range images {
		if err := checkImage(image); err != nil {
			return err
		}
	}
	return nil
}

func checkImage(image string) error {
	if image == "" {
		return errors.New("an empty reference")
	}
	return checkText(image, maxImageBytes)
}

func checkAnnotations(annotations map[string]string) error {
	if len(annotations) < 1 || len(annotations) > maxAnnotations {
		return fmt.Errorf("%d annotations, not 1 to %d", len(annotations), maxAnnotations)
	}
	for key, value := range annotations {
		if err := cmp.Or(checkText(key, maxAnnotationBytes), checkText(value, maxAnnotationBytes)); err != nil {
			return fmt.Errorf("%.100q: %w", key, err)
		}
	}
	return nil
}

// shortened is a text as lazy.mismatch may hold it.
func shortened(text string) string {
	if len(text) <= maxMismatchBytes {
		return text
	}
	const ellipsis = "…"
	return strings.ToValidUTF8(text[:maxMismatchBytes-len(ellipsis)], "") + ellipsis
}
