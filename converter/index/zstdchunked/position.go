package zstdchunked

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

const (
	frameHeaderBytes = 8 // of the skippable frame around the table of contents
	manifestType     = 1 // a table of contents like that of CRFS; no other is in use
)

// position says where a table of contents is.
type position struct {
	packed index.Range // of the blob
	bytes  int64       // after decompression
}

// parsePosition parses the value of a position annotation, "offset:length:uncompressed length:type", for a blob of a size.
func parsePosition(value string, size int64) (p position, err error) {
	var numbers [4]int64
	rest := value
	for i := range numbers {
		field, after, more := strings.Cut(rest, ":")
		if more != (i < len(numbers)-1) {
			return p, errors.New("want four numbers, offset:length:uncompressed length:type")
		}
		n, err := strconv.ParseUint(field, 10, 62) // 62 bits: the sum of two fits
		if err != nil {
			return p, err
		}
		numbers[i], rest = int64(n), after
	}
	p = position{packed: index.Range{Start: numbers[0], End: numbers[0] + numbers[1]}, bytes: numbers[2]}
	if numbers[3] != manifestType {
		return p, fmt.Errorf("table of contents of type %d, only %d is known", numbers[3], manifestType)
	}
	if !p.packed.Within(size) || p.packed.Start < frameHeaderBytes {
		return p, fmt.Errorf("table of contents in %s of a blob of %d", p.packed, size)
	}
	return p, nil
}

func (p position) check(l index.Limits) error {
	if n := p.packed.Bytes(); n > l.CompressedBytes {
		return fmt.Errorf("%w: compressed table of contents of %d bytes, allowed are %d", index.ErrLimit, n, l.CompressedBytes)
	}
	if p.bytes > l.Bytes {
		return fmt.Errorf("%w: table of contents of %d bytes, allowed are %d", index.ErrLimit, p.bytes, l.Bytes)
	}
	return nil
}
