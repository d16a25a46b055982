package treediff

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sparseBytes is the size from which the holes of a file are skipped: reading a terabyte of zeros would take minutes.
const sparseBytes = 256 << 20

// pageBytes is the unit in which a large file's zeros are left out of its digest.
const pageBytes = 64 << 10

// zeros is a page without data.
var zeros [pageBytes]byte

// openFile is a file whose digest is wanted, and where it goes.
type openFile struct {
	file   *os.File
	record *Record
}

// hasher computes digests one after the other with one buffer.
type hasher struct{ page [pageBytes]byte }

// fill completes the record of f and closes the file.
func (h *hasher) fill(ctx context.Context, f openFile) error {
	defer f.file.Close()
	if ctx.Err() != nil {
		return nil // the scan has failed already, only the descriptor matters
	}
	digest, err := h.digest(ctx, f.file, f.record.Size)
	if err != nil {
		return fmt.Errorf("read %q: %w", f.record.Path, err)
	}
	f.record.Content = digest
	return nil
}

// digest returns the SHA-256 of a file's contents. That of a file of sparseBytes or more covers the offset and the bytes of those
// 64 KiB pages that are not all zeros; it depends on the contents alone too, not on where the filesystem keeps holes.
func (h *hasher) digest(ctx context.Context, f *os.File, size int64) (string, error) {
	sum := sha256.New()
	for offset := int64(0); offset < size; offset += pageBytes {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if size >= sparseBytes {
			data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				break // only a hole is left
			}
			if err != nil {
				return "", fmt.Errorf("seek for data at %d: %w", offset, err)
			}
			offset = data / pageBytes * pageBytes
		}
		page := h.page[:min(pageBytes, size-offset)]
		if n, err := f.ReadAt(page, offset); n < len(page) {
			return "", fmt.Errorf("got %d bytes of %d at %d: %w", n, len(page), offset, err)
		}
		if size >= sparseBytes {
			if bytes.Equal(page, zeros[:len(page)]) {
				continue
			}
			sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(offset)))
		}
		sum.Write(page)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
