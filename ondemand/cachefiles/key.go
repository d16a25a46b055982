package cachefiles

import (
	"fmt"
	"strconv"
	"strings"
)

// Key is what a cache file of a layer instance is called, as fsid or as device. It says all that is needed to answer an OPEN, so that whoever
// answers needs no list of what is mounted: also a process that knows nothing of instances.
//
//	d.<instance>.<size>          the data blob, shared by all mounts of a domain
//	m<mount>.<instance>.<size>   the meta image of one mount: the kernel wants an fsid to be unique in its domain
//
// Numbers are in lower-case hexadecimal without leading zeros. What is unique stands first, because kernels since 6.10 cut what they list:
// see Listed.
type Key struct {
	Instance string // its id in hex
	Size     int64  // bytes
	// Mount is a number that no other mount has had, for a meta image; 0 says that it is the data blob's.
	Mount uint64
}

// idDigits is the length of an instance id in hex.
const idDigits = 64

// String is how the kernel is told.
func (k Key) String() string {
	if k.Mount == 0 {
		return fmt.Sprintf("d.%s.%x", k.Instance, k.Size)
	}
	return fmt.Sprintf("m%x.%s.%x", k.Mount, k.Instance, k.Size)
}

// ParseKey understands what String makes, and nothing else.
func ParseKey(s string) (Key, error) {
	bad := fmt.Errorf("%q is no key of a layer instance", s)
	kind, rest, _ := strings.Cut(s, ".")
	id, size, _ := strings.Cut(rest, ".")
	if len(id) != idDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return Key{}, bad
	}
	k := Key{Instance: id}
	var err error
	if mount, isMeta := strings.CutPrefix(kind, "m"); isMeta {
		if k.Mount, err = strconv.ParseUint(mount, 16, 64); err != nil {
			return Key{}, bad
		}
	}
	if k.Size, err = strconv.ParseInt(size, 16, 64); err != nil || k.Size < 0 || k.String() != s {
		return Key{}, bad
	}
	return k, nil
}

// listedMost is how much of a name kernels since 6.10 show in /sys/fs/erofs. Of two superblocks with the same beginning the second cannot be
// mounted there (EEXIST).
const listedMost = 36

// DomainMost is how long a domain_id may be, so that what is listed has every mount number and at least eight digits of the instance.
const DomainMost = listedMost - len(",m0123456789abcdef.01234567")

// Listed understands the name of an entry in /sys/fs/erofs, which is "<domain_id>,<fsid>", or the first 36 bytes of that. It returns the
// instance that is mounted there, or the beginning of its id; ok is false if the entry is not one of the domain with a Key.
func Listed(entry, domain string) (instance string, ok bool) {
	fsid, ok := strings.CutPrefix(entry, domain+",m")
	if !ok {
		return "", false
	}
	mount, rest, ok := strings.Cut(fsid, ".")
	if _, err := strconv.ParseUint(mount, 16, 64); err != nil || !ok {
		return "", false
	}
	instance, _, _ = strings.Cut(rest, ".")
	return instance, true
}
