package erofs

import (
	"fmt"
	"io"
)

// dataBufferBytes is how much is collected before it is written: many small files end up in one write. Larger writes are slower: the
// buffer no longer stays in the processor's cache, and filesystems with large folios look for as much contiguous memory, which a
// virtual machine may have to get back from its host (1 MiB took twice as long on ext4 of Linux 6.18).
const dataBufferBytes = 128 << 10

// dataBlob is the data blob while it is written: from the front to the back, with holes where nothing was written.
type dataBlob struct {
	out  File  // nil: nothing is written
	next int64 // first block that is not handed out
	buf  []byte
	at   int64 // position of buf in the file
}

func newDataBlob(out File) *dataBlob {
	return &dataBlob{out: out, buf: make([]byte, 0, dataBufferBytes)}
}

// reserve hands out blocks and returns the first.
func (d *dataBlob) reserve(blocks int64) (int64, error) {
	if blocks > maxDataBlocks-d.next {
		return 0, fmt.Errorf("%w: data blob of more than %d blocks", ErrTooLarge, int64(maxDataBlocks))
	}
	first := d.next
	d.next += blocks
	return first, nil
}

// copyBlocks appends size bytes of r, padded with zeros to padded bytes, a multiple of the block size.
func (d *dataBlob) copyBlocks(r io.Reader, size, padded int64) error {
	first, err := d.reserve(padded / BlockBytes)
	if err != nil {
		return err
	}
	return d.copyAt(r, first*BlockBytes, size)
}

// block appends one block.
func (d *dataBlob) block(b []byte) (uint32, error) {
	first, err := d.reserve(1)
	if err != nil {
		return 0, err
	}
	if err := d.seek(first * BlockBytes); err != nil {
		return 0, err
	}
	if err := d.room(); err != nil {
		return 0, err
	}
	d.buf = append(d.buf, b...)
	return uint32(first), nil
}

// copyAt copies n bytes of r to position at, which is not before anything that was written.
func (d *dataBlob) copyAt(r io.Reader, at, n int64) error {
	if err := d.seek(at); err != nil {
		return err
	}
	for n > 0 {
		if err := d.room(); err != nil {
			return err
		}
		free := d.buf[len(d.buf):cap(d.buf)]
		if int64(len(free)) > n {
			free = free[:n]
		}
		if _, err := io.ReadFull(r, free); err != nil {
			return unexpected(err)
		}
		d.buf = d.buf[:len(d.buf)+len(free)]
		n -= int64(len(free))
	}
	return nil
}

// room makes sure that the buffer has room for a block at least.
func (d *dataBlob) room() error {
	if cap(d.buf)-len(d.buf) >= BlockBytes {
		return nil
	}
	return d.flush()
}

// seek moves to position at. A short way is filled with zeros in the buffer, a long one becomes a hole.
func (d *dataBlob) seek(at int64) error {
	gap := at - d.at - int64(len(d.buf))
	if gap < BlockBytes && gap < int64(cap(d.buf)-len(d.buf)) {
		old := len(d.buf)
		d.buf = d.buf[:old+int(gap)]
		clear(d.buf[old:])
		return nil
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.at = at
	return nil
}

func (d *dataBlob) flush() error {
	if len(d.buf) > 0 {
		if _, err := d.out.WriteAt(d.buf, d.at); err != nil {
			return fmt.Errorf("write data blob at %d: %w", d.at, err)
		}
	}
	d.at += int64(len(d.buf))
	d.buf = d.buf[:0]
	return nil
}

// finish writes what is left and sets the length: all blocks handed out, and at least one, so that the file can always stand
// behind a loop device.
func (d *dataBlob) finish() error {
	if err := d.flush(); err != nil {
		return err
	}
	d.next = max(d.next, 1)
	if d.out == nil {
		return nil
	}
	if err := d.out.Truncate(d.next * BlockBytes); err != nil {
		return fmt.Errorf("set length of data blob to %d: %w", d.next*BlockBytes, err)
	}
	return nil
}
