package snapshotter

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"go.etcd.io/bbolt"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Our bucket in metadata.db, beside containerd's own "v1", and written in the same transactions. Version 1.
// Integers are 64 bits, big endian, so that keys sort by number; <instance> is an instance id in binary, 32 bytes;
// <snapshot> is the number that containerd's storage gave a snapshot, which it keeps from Prepare on through Commit.
//
//	erofs-snapshotter/
//	  version                          1
//	  instances/<instance>             mount number n: the instance is mounted on m/<n in base 36>; from the sequence of this bucket
//	  snapshots/<snapshot>             JSON, see record
//	  sources/<instance>               JSON, see source: where the layer of the instance is, for making it again
//	  refs/<instance><snapshot>        'c' if the committed snapshot is this instance, 'l' if it is a frozen lower of the snapshot
//	                                   or bound to it. Follows from snapshots/, and New compares the two.
//
// An instance has a key in instances/, and in sources/ if it was made from a layer, from the first time a snapshot refers to it until it is
// collected, or kept for reuse.
var (
	bucketRoot      = []byte("erofs-snapshotter")
	bucketInstances = []byte("instances")
	bucketSnapshots = []byte("snapshots")
	bucketSources   = []byte("sources")
	bucketRefs      = []byte("refs")
	keyVersion      = []byte("version")
)

const recordsVersion = 1

const (
	refCommitted = 'c'
	refLower     = 'l'
)

// record is what we keep about a snapshot.
type record struct {
	// Instance is what a committed snapshot consists of.
	Instance layerstore.ID `json:"instance,omitempty"`
	// Adopted says that Instance is the snapshot's own upper directory. After a power cut it may not have been renamed yet.
	Adopted bool `json:"adopted,omitempty"`
	// Bound is the instance that Commit of this active snapshot will take.
	Bound layerstore.ID `json:"bound,omitempty"`
	// Lowers are the instances below an active snapshot or view, top first; no instance twice.
	Lowers []layerstore.ID `json:"lowers,omitempty"`
}

// refs returns the instances the record refers to, and how.
func (rec record) refs() map[layerstore.ID]byte {
	refs := make(map[layerstore.ID]byte, len(rec.Lowers)+1)
	for _, id := range rec.Lowers {
		refs[id] = refLower
	}
	if rec.Bound != "" {
		refs[rec.Bound] = refLower
	}
	if rec.Instance != "" {
		refs[rec.Instance] = refCommitted
	}
	return refs
}

func parseRecord(b []byte) (record, error) {
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return record{}, err
	}
	for id := range rec.refs() {
		if _, err := layerstore.ParseID(string(id)); err != nil {
			return record{}, err
		}
	}
	return rec, nil
}

// records is our bucket in one transaction.
type records struct {
	tx                                  *bbolt.Tx
	instances, snapshots, sources, refs *bbolt.Bucket
}

// update runs fn in a write transaction, which is committed if fn returns nil and ctx has not ended: who has given up does not
// expect a change any more. The context that fn gets is for package storage.
func (s *Snapshotter) update(ctx context.Context, fn func(context.Context, *records) error) (err error) {
	defer func() { err = layerstore.Full(err) }()
	txCtx, tx, err := s.meta.TransactionContext(ctx, true)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after a commit; also when fn panics
	s.reserve()
	r, err := openRecords(tx)
	if err != nil {
		return err
	}
	if err := fn(txCtx, r); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return tx.Commit()
}

// view runs fn in a read transaction. fn must not call anything that begins another one.
func (s *Snapshotter) view(ctx context.Context, fn func(context.Context, *records) error) error {
	txCtx, tx, err := s.meta.TransactionContext(ctx, false)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	r, err := openRecords(tx)
	if err != nil {
		return err
	}
	return fn(txCtx, r)
}

func openRecords(t storage.Transactor) (*records, error) {
	tx, ok := t.(*bbolt.Tx)
	if !ok {
		return nil, fmt.Errorf("containerd's snapshot storage gave a %T instead of a bolt transaction", t)
	}
	r := &records{tx: tx}
	if root := tx.Bucket(bucketRoot); root != nil {
		r.instances, r.snapshots = root.Bucket(bucketInstances), root.Bucket(bucketSnapshots)
		r.sources, r.refs = root.Bucket(bucketSources), root.Bucket(bucketRefs)
	}
	return r, nil
}

// init makes the buckets, or checks that they are of our version.
func (r *records) init() error {
	root, err := r.tx.CreateBucketIfNotExists(bucketRoot)
	if err != nil {
		return err
	}
	want := []byte(strconv.Itoa(recordsVersion))
	if got := root.Get(keyVersion); got == nil {
		if err := root.Put(keyVersion, want); err != nil {
			return err
		}
	} else if !bytes.Equal(got, want) {
		return fmt.Errorf("bucket %s has version %q, this program knows %s only\n  start the version of the program that wrote it", bucketRoot, got, want)
	}
	for _, name := range [][]byte{bucketInstances, bucketSnapshots, bucketSources, bucketRefs} {
		if _, err := root.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func instanceKey(id layerstore.ID) []byte { b := id.Bytes(); return b[:] }

func refKey(id layerstore.ID, snapshot uint64) []byte {
	return append(instanceKey(id), number(snapshot)...)
}

// parseRefKey is the reverse of refKey.
func parseRefKey(k []byte) (id layerstore.ID, snapshot uint64) {
	return layerstore.ID(fmt.Sprintf("%x", k[:32])), binary.BigEndian.Uint64(k[32:])
}

// get returns the record of a snapshot, or an error that is errdefs.ErrNotFound.
func (r *records) get(snapshot uint64) (record, error) {
	b := r.snapshots.Get(number(snapshot))
	if b == nil {
		return record{}, fmt.Errorf("layers of snapshot %d: %w", snapshot, errdefs.ErrNotFound)
	}
	rec, err := parseRecord(b)
	if err != nil {
		return record{}, fmt.Errorf("layers of snapshot %d: %w", snapshot, err)
	}
	return rec, nil
}

// put stores the record of a snapshot, gives its instances mount numbers, and brings its references up to date.
func (r *records) put(snapshot uint64, rec record) error {
	old, err := r.get(snapshot)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := r.snapshots.Put(number(snapshot), b); err != nil {
		return err
	}
	return r.setRefs(snapshot, old.refs(), rec.refs())
}

// remove deletes the record of a snapshot and its references. A snapshot without a record is no error.
func (r *records) remove(snapshot uint64) error {
	old, err := r.get(snapshot)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(r.snapshots.Delete(number(snapshot)), r.setRefs(snapshot, old.refs(), nil))
}

func (r *records) setRefs(snapshot uint64, old, now map[layerstore.ID]byte) error {
	for id := range old {
		if _, stays := now[id]; !stays {
			if err := r.refs.Delete(refKey(id, snapshot)); err != nil {
				return err
			}
		}
	}
	for id, how := range now {
		if err := r.refs.Put(refKey(id, snapshot), []byte{how}); err != nil {
			return err
		}
		if err := r.assignNumber(id); err != nil {
			return err
		}
	}
	return nil
}

// assignNumber gives an instance a mount number, unless it has one.
func (r *records) assignNumber(id layerstore.ID) error {
	key := instanceKey(id)
	if r.instances.Get(key) != nil {
		return nil
	}
	n, err := r.instances.NextSequence()
	if err != nil {
		return err
	}
	return r.instances.Put(key, number(n))
}

// mountNumber returns the mount number of an instance, and whether it has one.
func (r *records) mountNumber(id layerstore.ID) (uint64, bool) {
	b := r.instances.Get(instanceKey(id))
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}

// mountNumbers returns the mount numbers of all instances.
func (r *records) mountNumbers() map[uint64]layerstore.ID {
	all := map[uint64]layerstore.ID{}
	for k, v := range bucketItems(r.instances) {
		all[binary.BigEndian.Uint64(v)] = layerstore.ID(fmt.Sprintf("%x", k))
	}
	return all
}

// forget deletes what is kept about an instance that has no references.
func (r *records) forget(id layerstore.ID) error {
	return errors.Join(r.instances.Delete(instanceKey(id)), r.sources.Delete(instanceKey(id)))
}

func (r *records) referenced(id layerstore.ID) bool {
	prefix := instanceKey(id)
	k, _ := r.refs.Cursor().Seek(prefix)
	return bytes.HasPrefix(k, prefix)
}

// committed returns the committed snapshots that consist of an instance, oldest first.
func (r *records) committed(id layerstore.ID) []uint64 {
	prefix := instanceKey(id)
	var all []uint64
	c := r.refs.Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(v) == 1 && v[0] == refCommitted {
			_, snapshot := parseRefKey(k)
			all = append(all, snapshot)
		}
	}
	return all
}

// all returns the records of all snapshots.
func (r *records) all() (map[uint64]record, error) {
	all := map[uint64]record{}
	for k := range bucketItems(r.snapshots) {
		id := binary.BigEndian.Uint64(k)
		rec, err := r.get(id)
		if err != nil {
			return nil, err
		}
		all[id] = rec
	}
	return all, nil
}

// replaceRefs makes refs/ consist of the given keys and values.
func (r *records) replaceRefs(refs map[string]byte) error {
	root := r.tx.Bucket(bucketRoot)
	if err := root.DeleteBucket(bucketRefs); err != nil {
		return err
	}
	var err error
	if r.refs, err = root.CreateBucket(bucketRefs); err != nil {
		return err
	}
	for k, how := range refs {
		if err := r.refs.Put([]byte(k), []byte{how}); err != nil {
			return err
		}
	}
	return nil
}

// bucketItems iterates over the keys and values of a bucket that has no buckets in it.
func bucketItems(b *bbolt.Bucket) func(yield func(k, v []byte) bool) {
	return func(yield func(k, v []byte) bool) {
		c := b.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if !yield(k, v) {
				return
			}
		}
	}
}
