package lazy

import (
	"errors"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

// Reason is why a layer was pulled as a whole.
type Reason string

// Reasons. They are names of metrics, too: do not change them.
const (
	NoIndex     Reason = "no-index"     // the manifest names no index, or one by which not all data can be verified
	Small       Reason = "small"        // the layer is smaller than lazy.min_layer_size
	Untrusted   Reason = "untrusted"    // the repository is not in lazy.trust
	NoSource    Reason = "no-source"    // it is not known where the layer can be fetched from
	NotReady    Reason = "not-ready"    // nobody can answer the kernel: no keeper, or the kernel or filesystem cannot do it
	Unavailable Reason = "unavailable"  // the registry gave no index
	BrokenIndex Reason = "broken-index" // the index is not what the manifest says, or makes no sense
	Mismatch    Reason = "mismatch"     // the layer was found to be another one than its image says
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{NoIndex, Small, Untrusted, NoSource, NotReady, Unavailable, BrokenIndex, Mismatch}
}

// reasonError is an error that knows its reason.
type reasonError struct {
	reason Reason
	error
}

func (e reasonError) Unwrap() error { return e.error }

func reasonOf(err error) Reason {
	var known reasonError
	switch {
	case errors.As(err, &known):
		return known.reason
	case errors.Is(err, index.ErrNotLazy):
		return NoIndex
	}
	return BrokenIndex
}
