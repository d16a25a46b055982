package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

// LazyLayoutVersion is LayoutVersion for instances that are made from an index.
const LazyLayoutVersion = 2

// Lazy is what FromIndex found out.
type Lazy struct {
	// Result says nothing of the layer's stream, which nobody has read: Blob to DiffBytes are zero.
	Result
	// Prefetch is how many bytes from the beginning of the layer's blob the image's author wants fetched first, 0 if that is not known.
	Prefetch int64
	// Extents are what belongs into the data blob, in order and without overlaps. The rest of its DataBytes must read as zeros.
	Extents []DataExtent
}

// DataExtent is an extent of a file with its place in the data blob. It is no hole.
type DataExtent struct {
	// At is the position in the data blob, of Length bytes.
	At int64
	index.Extent
}

// dataExtentBytes is what a DataExtent takes of memory.
const dataExtentBytes = 96

// FromIndex makes the meta image of a layer, and the plan of its data blob, from an index of the layer, without the layer. The tree is the
// one that FromTar makes of a tar that the index describes, to the extent that the index knows the tar.
//
// Every file begins in a block of its own, also one that FromTar would put into the meta image; holes that the index knows stay holes.
// The index must have been verified; that it describes the layer's tar is known only after CheckTar.
func FromIndex(ctx context.Context, idx *index.Index, meta erofs.File, id [32]byte, l Limits) (_ Lazy, err error) {
	defer contain(&err)
	records, err := idx.Records()
	if err != nil {
		return Lazy{}, fmt.Errorf("%s: %w", idx.Format, err)
	}
	b := &indexBuild{build: newBuild(Target{ID: id, Meta: meta}, l)}
	if err := b.records(ctx, records); err != nil {
		return Lazy{}, fmt.Errorf("%s: %w", idx.Format, err)
	}
	result, err := b.finish()
	return Lazy{Result: result, Prefetch: records.Prefetch(), Extents: b.extents}, err
}

// indexBuild is the build of a layer from its index.
type indexBuild struct {
	*build
	extents []DataExtent
}

func (b *indexBuild) records(ctx context.Context, records index.Reader) error {
	ctx, stop := context.WithCancel(ctx)
	batches := make(chan []*index.Record, recordBatches)
	var readErr error
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(batches)
		readErr = readRecords(ctx, records, batches)
	})
	defer reading.Wait()
	defer stop()
	for batch := range batches {
		for _, r := range batch {
			if err := b.add(&r.Header, func(a erofs.Attr) (*node, error) { return b.file(a, r) }); err != nil {
				return &EntryError{Name: r.Name, Offset: r.Header.Offset, Err: err}
			}
		}
	}
	return readErr
}

// Records come in batches: parsing an index takes about twice as long as writing the image, and goes on meanwhile.
const (
	recordBatch   = 256
	recordBatches = 4
)

// readRecords sends all records, also those before an error. One of them is that ctx has ended.
func readRecords(ctx context.Context, records index.Reader, to chan<- []*index.Record) (err error) {
	defer contain(&err)
	for err == nil {
		// Below, a select of two that are ready takes either: an index of one batch would pass after the end of ctx.
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		batch := make([]*index.Record, 0, recordBatch)
		for len(batch) < recordBatch && err == nil {
			var r *index.Record
			if r, err = records.Next(); err == nil {
				batch = append(batch, r)
			}
		}
		select {
		case to <- batch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// file gives a regular file its blocks in the data blob.
func (b *indexBuild) file(a erofs.Attr, r *index.Record) (*node, error) {
	if err := b.admitFile(r.Size); err != nil {
		return nil, err
	}
	if err := b.keep(len(r.Extents) * dataExtentBytes); err != nil {
		return nil, err
	}
	data, err := dataExtents(r)
	if err != nil {
		return nil, err
	}
	if !isSparse(r.Size, data) {
		n, at, err := b.image.Reserve(a, r.Size)
		for _, x := range data {
			b.extents = append(b.extents, DataExtent{At: at + x.Offset, Extent: x})
		}
		return &node{inode: n}, err
	}
	segments := make([]erofs.Segment, len(data))
	for i, x := range data {
		segments[i] = erofs.Segment{Offset: x.Offset, Length: x.Length}
	}
	n, at, err := b.image.ReserveSparse(a, r.Size, segments)
	for i := range at {
		b.extents = append(b.extents, DataExtent{At: at[i], Extent: data[i]})
	}
	return &node{inode: n}, err
}

// dataExtents returns the extents of a record that are no holes.
func dataExtents(r *index.Record) ([]index.Extent, error) {
	var data []index.Extent
	var end int64
	for _, x := range r.Extents {
		if x.Offset != end || x.Length <= 0 || x.Length > r.Size-end {
			return nil, fmt.Errorf("extent of %d bytes at %d, in a file of %d after an extent up to %d", x.Length, x.Offset, r.Size, end)
		}
		if end += x.Length; !x.Hole {
			data = append(data, x)
		}
	}
	if end != r.Size {
		return nil, errors.New("extents do not reach the end of the file")
	}
	return data, nil
}

// sparseHoleBytes is from where on the holes of a file get no addresses in the data blob. Below, they do: what they take of the address space,
// of which there are 16 TiB, is less than a chunk map costs, which is up to 32 KiB of the meta image and a look-up for each access.
const sparseHoleBytes = 64 << 20

// isSparse says whether a file is large and mostly holes.
func isSparse(size int64, data []index.Extent) bool {
	holes := size
	for _, x := range data {
		holes -= x.Length
	}
	return holes >= sparseHoleBytes && holes > size/2
}
