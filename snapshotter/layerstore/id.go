package layerstore

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
)

// ID names an instance: 64 hex digits in lower case. An EROFS instance made from a layer has an id computed from what
// determines its bytes; one made from a directory, and the directory itself, have random ones.
type ID string

// EagerID is the id of the instance that is made from the whole of a layer's tar stream.
func EagerID(layer digest.Digest) ID {
	h := sha256.New()
	// Every field ends with a zero byte, which none of them can contain, so that no two lists of fields give one input.
	for _, field := range []string{
		"erofs-snapshotter instance",
		layer.String(),
		strconv.Itoa(converter.LayoutVersion),
		"eager",
		"", // digest of the layer index, for lazy instances
		"", // writer parameters: there are none yet
	} {
		h.Write([]byte(field))
		h.Write([]byte{0})
	}
	return ID(hex.EncodeToString(h.Sum(nil)))
}

// ParseID checks the form of an instance id.
func ParseID(s string) (ID, error) {
	if len(s) != 64 {
		return "", fmt.Errorf("instance id %q: want 64 hex digits", s)
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("instance id %q: want hex digits in lower case", s)
		}
	}
	return ID(s), nil
}

// Bytes returns the id in binary. It panics on an ID that ParseID would refuse.
func (id ID) Bytes() [32]byte {
	b, err := hex.DecodeString(string(id))
	if err != nil {
		panic(err)
	}
	return [32]byte(b)
}

func randomID() ID {
	var b [32]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return ID(hex.EncodeToString(b[:]))
}
