package layerstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// Lazy is what is kept about an instance that was made from a layer's index: where its data come from, and how far that has gone. It is a
// part of layer.json; see Instance.
type Lazy struct {
	// Partial says that data are missing: the instance may be mounted only while somebody answers for them.
	Partial bool `json:"partial,omitempty"`
	// Images are references to images in whose repositories the layer is, the one that brought it first in front.
	Images []string `json:"images"`
	// MediaType, Size and Annotations are those of the layer in a manifest; of the annotations only what names the index.
	MediaType   string            `json:"mediaType"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	// DiffID is what an image's configuration says; it is not checked before Verified.
	DiffID digest.Digest `json:"diffID"`
	// Format and Index are those of the index that the instance was made from.
	Format string        `json:"format"`
	Index  digest.Digest `json:"index"`
	// Prefetch is how many bytes from the beginning of the layer's blob the image's author wants fetched first.
	Prefetch int64 `json:"prefetch,omitempty"`
	// FinalBytes is about what the instance will take on disk.
	FinalBytes int64 `json:"finalBytes"`
	// Verified is when the whole layer was read and was found to be what the manifest, the configuration and the index say.
	Verified time.Time `json:"verified,omitzero"`
	// Mismatch says what was found instead. The instance must not be used for new containers.
	Mismatch string `json:"mismatch,omitempty"`
	// Hopeless says that the whole layer is not what the image says either: nothing can take the place of the instance.
	Hopeless bool `json:"hopeless,omitempty"`
}

// maxImages is how many references are kept for one layer.
const maxImages = 8

// Partial says whether data of the instance are missing.
func (inst Instance) Partial() bool { return inst.Lazy != nil && inst.Lazy.Partial }

// Indexed is a layer whose index was opened.
type Indexed struct {
	// Index is what the instance is made from, Lazy what is to be kept about it: all fields above Format.
	Index *index.Index
	Lazy  Lazy
}

// LazyID is the id of the instance that is made from the index of a layer which the annotations name. They bind the index to its
// manifest: other annotations may mean another tree, so two manifests share an instance only if these are equal.
func LazyID(layer digest.Digest, annotations map[string]string) ID {
	h := sha256.New()
	fields := []string{"erofs-snapshotter instance", layer.String(), strconv.Itoa(converter.LazyLayoutVersion), "lazy"}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		fields = append(fields, key, annotations[key])
	}
	for _, field := range fields {
		fmt.Fprintf(h, "%d:%s\x00", len(field), field)
	}
	return ID(hex.EncodeToString(h.Sum(nil)))
}

// ImportLazy makes the instance of a layer from its index, unless it is there, and pins it. Its data are missing then. Like Import it runs once
// for an id, whoever asks; what was made is on stable storage.
func (s *Store) ImportLazy(ctx context.Context, id ID, layer digest.Digest, open func(context.Context) (Indexed, error)) (Instance, Pin, error) {
	if err := checkDigest(layer); err != nil {
		return Instance{}, Pin{}, err
	}
	return s.importAs(ctx, id, layer, func(ctx context.Context, _ *build) (Instance, func(), error) {
		from, err := open(ctx)
		if err != nil {
			return Instance{}, nil, sourceError{err}
		}
		var inst Instance
		err = s.inWork(ctx, id, func(work string) (err error) {
			inst, err = s.makeLazy(ctx, work, id, layer, from)
			return err
		})
		return inst, nil, err
	})
}

// makeLazy makes an instance from an index in the directory work, and puts it in its place.
func (s *Store) makeLazy(ctx context.Context, work string, id ID, layer digest.Digest, from Indexed) (Instance, error) {
	started := time.Now()
	meta, err := createWriteBehind(filepath.Join(work, metaName))
	if err != nil {
		return Instance{}, err
	}
	defer meta.Close()
	made, err := converter.FromIndex(ctx, from.Index, meta, id.Bytes(), s.limits)
	if err != nil {
		return Instance{}, err
	}
	if err := meta.Sync(); err != nil {
		return Instance{}, err
	}
	if err := blob.Create(work, id.Bytes(), made.DataBytes, extentsOf(made.Extents, from.Index.Codec)); err != nil {
		return Instance{}, err
	}
	inst := fromResult(made.Result)
	inst.ID, inst.Kind, inst.Layer, inst.Created = id, EROFS, layer, time.Now().UTC()
	lazy := from.Lazy
	lazy.Partial = len(made.Extents) > 0
	lazy.Format, lazy.Index, lazy.Prefetch = from.Index.Format, from.Index.Digest, made.Prefetch
	lazy.FinalBytes = made.MetaBytes + finalBytes(made.Extents)
	inst.Lazy = &lazy
	if err := s.putInPlace(work, inst); err != nil {
		return Instance{}, err
	}
	s.log.Info("layer made from its index", "layer", layer, "instance", id, "format", lazy.Format, "inodes", inst.Inodes,
		"meta_bytes", inst.MetaBytes, "extents", len(made.Extents), "took", time.Since(started))
	return inst, nil
}

// putInPlace puts the instance in the directory work, whose other files are synced, where it belongs.
func (s *Store) putInPlace(work string, inst Instance) error {
	if err := writeRecord(filepath.Join(work, recordName), inst, true); err != nil {
		return err
	}
	if err := syncDir(work); err != nil {
		return err
	}
	step.Reached("layerstore/build/written")
	if err := os.Rename(work, s.path(inst.ID)); err != nil {
		return err
	}
	step.Reached("layerstore/build/renamed")
	if err := syncDir(s.dir); err != nil {
		return errors.Join(err, os.Rename(s.path(inst.ID), work))
	}
	return nil
}

// extentsOf is the extent table of a data blob.
func extentsOf(extents []converter.DataExtent, codec index.Codec) func(yield func(blob.Extent) bool) {
	return func(yield func(blob.Extent) bool) {
		for _, x := range extents {
			if !yield(blob.Extent{
				Offset: x.At, Length: uint32(x.Length),
				BlobOffset: x.Blob.Start, BlobLength: uint32(x.Blob.Bytes()), InnerOffset: x.Skip,
				Kind: uint8(codec), Digest: x.Digest,
			}) {
				return
			}
		}
	}
}

// Decoder decodes the extents of lazy instances as their tables have them: it is the other side of extentsOf, and an ondemand.of.
type Decoder struct{ of index.Decoder }

// Open takes the compressed bytes of a range of the layer's blob.
func (d *Decoder) Open(kind uint8, off int64, compressed []byte, more func(int) int) error {
	return d.of.Open(index.Codec(kind), index.Range{Start: off, End: off + int64(len(compressed))}, compressed, more)
}

// Decode fills dst with an extent of the range and compares its digest.
func (d *Decoder) Decode(x blob.Extent, dst []byte) error {
	return d.of.Decode(index.Extent{
		Length: int64(x.Length), Skip: x.InnerOffset, Digest: x.Digest,
		Blob: index.Range{Start: x.BlobOffset, End: x.BlobOffset + int64(x.BlobLength)},
	}, dst)
}

const blockBytes = 4096

// wholeBlocks is what a file of n bytes may take on disk.
func wholeBlocks(n int64) int64 { return (n + blockBytes - 1) / blockBytes * blockBytes }

// finalBytes is what the extents will take on disk: whole blocks, none twice.
func finalBytes(extents []converter.DataExtent) (sum int64) {
	end := int64(0)
	for _, x := range extents {
		start := max(end, x.At/blockBytes*blockBytes)
		if end = wholeBlocks(x.At + x.Length); end > start {
			sum += end - start
		}
	}
	return sum
}

// Dir is the directory of an EROFS instance.
func (s *Store) Dir(id ID) string { return s.path(id) }

// ReadInstance reads the layer.json in the directory of an EROFS instance, wherever that is.
func ReadInstance(dir string) (Instance, error) { return readRecord(dir) }

// AddImage notes another image that has the layer of a lazy instance.
func (s *Store) AddImage(id ID, image string) error {
	return s.changeLazy(id, func(inst *Instance) bool {
		if checkImage(image) != nil || len(inst.Lazy.Images) >= maxImages || slices.Contains(inst.Lazy.Images, image) {
			return false
		}
		inst.Lazy.Images = append(inst.Lazy.Images, image)
		return true
	})
}

// SetComplete notes that no data of a lazy instance are missing any more, and that they are on stable storage. An instance that has left the
// store is no error, also if one with the same id was made since.
func (s *Store) SetComplete(done Instance) error {
	return s.changeLazy(done.ID, func(inst *Instance) bool {
		if !inst.Created.Equal(done.Created) {
			return false
		}
		changed := inst.Lazy.Partial
		inst.Lazy.Partial = false
		return changed
	})
}

// SetVerified notes that the whole layer of a lazy instance was read and checked. That is true of another one with the same id, too.
func (s *Store) SetVerified(id ID, diffID digest.Digest, diffBytes int64) error {
	return s.changeLazy(id, func(inst *Instance) bool {
		inst.DiffID, inst.DiffBytes = diffID, diffBytes
		inst.Lazy.Verified, inst.Lazy.Mismatch = time.Now().UTC(), ""
		return true
	})
}

// SetMismatch notes that a lazy instance is not what its image says.
func (s *Store) SetMismatch(id ID, mismatch error) error {
	return s.changeLazy(id, func(inst *Instance) bool {
		inst.Lazy.Mismatch = shortened(mismatch.Error())
		return true
	})
}

// SetHopeless notes that the whole layer of a lazy instance is not what its image says either.
func (s *Store) SetHopeless(id ID) error {
	return s.changeLazy(id, func(inst *Instance) bool {
		inst.Lazy.Hopeless = true
		return true
	})
}

// changeLazy changes what is kept about a lazy instance, if change says that it did.
func (s *Store) changeLazy(id ID, change func(*Instance) bool) error {
	s.recording.Lock()
	defer s.recording.Unlock()
	was, err := s.Get(id)
	if err != nil || was.Lazy == nil {
		return nil
	}
	now, lazy := was, *was.Lazy
	lazy.Images = slices.Clone(lazy.Images)
	now.Lazy = &lazy
	if !change(&now) {
		return nil
	}
	if err := s.changeRecord(was, now); err != nil {
		return fmt.Errorf("layer instance %s: %w", id, err)
	}
	return nil
}

// changeRecord puts another layer.json in the place of that of a lazy instance, unless that is not there any more. One with the same id may
// have been made meanwhile, in the same place: nothing is true of it because it was true of the other.
func (s *Store) changeRecord(was, now Instance) error {
	dir := s.path(was.ID)
	next := filepath.Join(dir, nextRecordName)
	// A crash or a full disk may have left one.
	if err := removeIfThere(next); err != nil {
		return err
	}
	err := writeRecord(next, now, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // just discarded
	}
	if err != nil {
		return err
	}
	step.Reached("layerstore/lazy/changing")
	s.mu.Lock()
	if s.instances[was.ID].Lazy != was.Lazy {
		defer s.mu.Unlock()
		return removeIfThere(next)
	}
	if err = os.Rename(next, filepath.Join(dir, recordName)); err == nil {
		s.instances[was.ID] = now
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("replace %s: %w", recordName, err)
	}
	if err := syncDir(dir); !errors.Is(err, fs.ErrNotExist) { // discarded since
		return err
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// HasAll says whether the data of the instance whose files are in dir are all on stable storage, whatever its record says.
func HasAll(dir string, id ID) bool {
	b, err := blob.Open(dir, id.Bytes(), blob.Options{})
	if err != nil {
		return false
	}
	p := b.Progress()
	return b.Close() == nil && p.DurableExtents == p.Extents
}
