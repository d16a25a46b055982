package warm

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
)

// Writer writes a stream. After an error it is of no use any more.
type Writer struct {
	tar   *tar.Writer
	begun bool
	layer Layer
	last  Extent
	sum   Sum
}

// NewWriter returns a Writer that writes to w, in small pieces.
func NewWriter(w io.Writer) *Writer { return &Writer{tar: tar.NewWriter(w)} }

// Layer begins a layer. No layer may be begun twice.
func (w *Writer) Layer(l Layer) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	w.layer, w.last = l, Extent{}
	return w.entry(l.Instance+"/"+layerName, document(description{l.Digest}))
}

// Extent writes an extent of the layer that was begun last. Extents come in the order of their offsets.
func (w *Writer) Extent(offset int64, bytes []byte) error {
	x := Extent{offset, uint32(len(bytes))}
	if w.layer.Instance == "" {
		return errors.New("an extent before any layer")
	}
	if err := x.check(w.last); err != nil {
		return err
	}
	w.last = x
	w.sum.add(x)
	return w.entry(fmt.Sprintf("%s/%0*x", w.layer.Instance, offsetDigits, offset), bytes)
}

// Damaged says that an extent of the layer is left out because the disk has other bytes than it should.
func (w *Writer) Damaged() { w.sum.Damaged++ }

// Close writes the end, without which a stream is known to be cut off.
func (w *Writer) Close() error {
	if err := w.begin(); err != nil {
		return err
	}
	return errors.Join(w.entry(endName, document(w.sum)), w.tar.Close())
}

func (w *Writer) begin() error {
	if w.begun {
		return nil
	}
	w.begun = true
	return w.entry(beginName, document(beginning{Format}))
}

func (w *Writer) entry(name string, bytes []byte) error {
	if err := w.tar.WriteHeader(header(name, int64(len(bytes)))); err != nil {
		return err
	}
	_, err := w.tar.Write(bytes)
	return err
}
