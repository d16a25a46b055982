package layerstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// formatVersion is the version of layer.json that this program writes, and the only one it reads.
const formatVersion = 1

// maxRecordBytes is the length of the largest layer.json; a real one has about 1 KiB.
const maxRecordBytes = 128 << 10

// Kind says what an instance consists of.
type Kind string

const (
	// EROFS is a meta image and a data blob.
	EROFS Kind = "erofs"
	// Directory is a tree in overlayfs form.
	Directory Kind = "directory"
)

// Instance describes an instance. It is what layer.json of an EROFS instance holds, besides the format version:
//
//	{"version": 1, "id": "<64 hex digits>", "kind": "erofs", ...}
//
// A field that is not known is ignored, so a field may be added without a new version if it can be missing.
type Instance struct {
	ID   ID   `json:"id"`
	Kind Kind `json:"kind"`
	// Layer is the digest of the layer's blob as a manifest lists it, DiffID that of the uncompressed tar, both checked.
	// Empty for what came from a directory.
	Layer     digest.Digest `json:"layer,omitempty"`
	DiffID    digest.Digest `json:"diffID,omitempty"`
	DiffBytes int64         `json:"diffBytes,omitempty"`
	// MetaBytes and DataBytes are the lengths of the two files, DiskBytes what both take on disk, Inodes the inodes of the
	// image. Zero for a directory: see Store.Usage.
	MetaBytes int64 `json:"metaBytes,omitempty"`
	DataBytes int64 `json:"dataBytes,omitempty"`
	DiskBytes int64 `json:"diskBytes,omitempty"`
	Inodes    int64 `json:"inodes,omitempty"`
	// OpaqueRoot says that everything below this layer is hidden. Overlayfs does not look for the mark on the root of a
	// layer, so whoever mounts must leave the lower layers out.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// Origin is where the instance came from if that was not a layer: of a directory the snapshot id whose upper directory it
	// was, of an EROFS instance the id of the directory instance.
	Origin string `json:"origin,omitempty"`
	// Source is where the bytes of the layer came from, in words: a registry and repository, containerd's content store.
	Source  string    `json:"source,omitempty"`
	Created time.Time `json:"created"`
	// Lazy is set for an instance that was made from a layer's index. Its DiffID is empty until the whole layer was read and checked.
	Lazy *Lazy `json:"lazy,omitempty"`
	// Unsynced says that the instance is not known to be on stable storage. It is so for the process that made it only.
	Unsynced bool `json:"unsynced,omitempty"`
}

// versionError says that layer.json was written by another version of the program.
type versionError struct{ got int }

func (e versionError) Error() string {
	return fmt.Sprintf("%s has format version %d, this program knows %d only", recordName, e.got, formatVersion)
}

type record struct {
	Version int `json:"version"`
	Instance
}

func encodeRecord(inst Instance) ([]byte, error) {
	b, err := json.MarshalIndent(record{formatVersion, inst}, "", "  ")
	return append(b, '\n'), err
}

func parseRecord(b []byte) (Instance, error) {
	// The version comes first: another version may give the other fields another type.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return Instance{}, err
	}
	if v.Version != formatVersion {
		return Instance{}, versionError{v.Version}
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return Instance{}, err
	}
	return r.Instance, r.Instance.validate()
}

// readRecord reads the layer.json of the instance directory dir.
func readRecord(dir string) (Instance, error) {
	f, err := os.Open(filepath.Join(dir, recordName))
	if err != nil {
		return Instance{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return Instance{}, err
	}
	if len(b) > maxRecordBytes {
		return Instance{}, fmt.Errorf("%s: more than %d bytes", recordName, maxRecordBytes)
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return Instance{}, errUnsynced // the contents of a file that was not synced are what a power cut takes first
	}
	inst, err := parseRecord(b)
	if err != nil {
		return Instance{}, fmt.Errorf("%s: %w", recordName, err)
	}
	return inst, nil
}

// writeRecord writes a layer.json, which must not exist, and syncs it if durable. What could not be read again is not written.
func writeRecord(path string, inst Instance, durable bool) error {
	if err := inst.validate(); err != nil {
		return fmt.Errorf("%s: %w", recordName, err)
	}
	b, err := encodeRecord(inst)
	if err == nil && len(b) > maxRecordBytes {
		err = fmt.Errorf("%s: %d bytes, more than %d", recordName, len(b), maxRecordBytes)
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil && durable {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
