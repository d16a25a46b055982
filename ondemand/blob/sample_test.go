package blob

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write the sample files anew, for a new version of a format")

// TestSample: the files of a blob of version 1 are still read as what they were made of, and still written so.
func TestSample(t *testing.T) {
	sample := filepath.Join("testdata", "v1")
	b, extents, dir := newBlob(t, pageEntries+2, 9000)
	fill(t, b, extents, 3, pageEntries)
	must(t, b.Close())
	if *update {
		must(t, os.MkdirAll(sample, 0o755))
	}
	restored := t.TempDir()
	for _, name := range []string{ExtentsName, PresentName} {
		made, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if *update {
			must(t, os.WriteFile(filepath.Join(sample, name), made, 0o644))
		}
		want, err := os.ReadFile(filepath.Join(sample, name))
		must(t, err)
		if !bytes.Equal(made, want) {
			t.Errorf("%s is not written as the sample", name)
		}
		must(t, os.WriteFile(filepath.Join(restored, name), want, 0o600))
	}
	must(t, os.WriteFile(filepath.Join(restored, DataName), nil, 0o600))
	must(t, os.Truncate(filepath.Join(restored, DataName), b.Size()))

	b = reopen(t, restored)
	must(t, b.CheckTable())
	got, err := b.Extents(0, b.Count())
	must(t, err)
	if !slices.Equal(got, extents) {
		t.Error("other extents than the sample was made of")
	}
	for i := range extents {
		if want := i == 3 || i == pageEntries; b.Present(i) != want {
			t.Errorf("extent %d: present %t", i, b.Present(i))
		}
	}
}
