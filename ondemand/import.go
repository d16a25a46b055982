package ondemand

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// ErrWrongBytes says that bytes which were given are not those of the extent.
var ErrWrongBytes = errors.New("the bytes are not those of the extent")

// Import writes extent i, if it is absent and the bytes, which may come from anywhere, have the digest that the table names. It wakes those who wait
// for the extent.
func (l *Layer) Import(i int, bytes []byte) error {
	if !l.enter() {
		return fmt.Errorf("layer %s: extent %d: %w", l.o.Name, i, ErrClosed)
	}
	defer l.users.Done()
	list, err := l.blob.Extents(i, i+1)
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.o.Name, err)
	}
	if len(bytes) != int(list[0].Length) || sha256.Sum256(bytes) != list[0].Digest {
		return fmt.Errorf("layer %s: extent %d: %w", l.o.Name, i, ErrWrongBytes)
	}
	if err := l.blob.Write(i, bytes); err != nil {
		return fmt.Errorf("layer %s: %w", l.o.Name, err)
	}
	l.arrived(i)
	return nil
}
