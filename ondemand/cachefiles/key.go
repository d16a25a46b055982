package cachefiles

import (
	"fmt"
	"strconv"
	"strings"
)

// Key is what a cache file of a layer instance is called, as fsid or as device. It says all that is needed to answer an OPEN, so that whoever
// answers needs no list of what is mounted: also a process that knows nothing of instances.
//
//	<instance>.d<size>           the data blob, shared by all mounts of a domain
//	<instance>.m<size>.<mount>   the meta image of one mount: the kernel wants an fsid to be unique in its domain
//
// Numbers are in lower-case hexadecimal without leading zeros.
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
		return fmt.Sprintf("%s.d%x", k.Instance, k.Size)
	}
	return fmt.Sprintf("%s.m%x.%x", k.Instance, k.Size, k.Mount)
}

// ParseKey understands what String makes, and nothing else.
func ParseKey(s string) (Key, error) {
	bad := fmt.Errorf("%q is no key of a layer instance", s)
	id, rest, _ := strings.Cut(s, ".")
	if len(id) != idDigits || strings.Trim(id, "0123456789abcdef") != "" || rest == "" {
		return Key{}, bad
	}
	k := Key{Instance: id}
	size, mount, isMeta := strings.Cut(rest[1:], ".")
	var err error
	if isMeta {
		if k.Mount, err = strconv.ParseUint(mount, 16, 64); err != nil {
			return Key{}, bad
		}
	}
	if k.Size, err = strconv.ParseInt(size, 16, 64); err != nil || k.Size < 0 || k.String() != s {
		return Key{}, bad
	}
	return k, nil
}
