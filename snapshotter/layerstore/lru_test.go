package layerstore

import (
	"os"
	"slices"
	"testing"
	"time"
)

// importOne imports a layer with one file.
func importOne(t *testing.T, s *Store, content string) ID {
	t.Helper()
	b, dgst := layer(t, content)
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	return inst.ID
}

// TestOrderOfUse: whatever the clock does and through restarts, what was used later is later.
func TestOrderOfUse(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	var ids []ID
	for _, content := range []string{"a", "b", "c", "d"} {
		ids = append(ids, importOne(t, s, content))
	}
	a, b, c, d := ids[0], ids[1], ids[2], ids[3]
	must(t, s.MarkUsed([]ID{d}))
	// The clock was a century ahead when c was used, and was then set right.
	century := time.Now().AddDate(100, 0, 0)
	must(t, os.Chtimes(s.path(c), time.Time{}, century))
	must(t, s.MarkUsed([]ID{b}))
	s = open(t, root)
	must(t, s.MarkUsed([]ID{a, randomID()})) // one that has gone meanwhile
	slices.SortFunc(ids, func(x, y ID) int { return s.LastUsed(x).Compare(s.LastUsed(y)) })
	if want := []ID{d, c, b, a}; !slices.Equal(ids, want) {
		t.Errorf("from the first used to the last: %v, want %v", ids, want)
	}
	if got := s.LastUsed(randomID()); !got.IsZero() {
		t.Errorf("an instance that is not there was used at %v", got)
	}
}
