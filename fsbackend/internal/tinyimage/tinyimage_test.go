package tinyimage

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestSizes(t *testing.T) {
	for size, ok := range map[int]bool{0: false, 100: false, 4096: false, 4097: true, 8191: false, 4096 + tailBytes: true, 4097 + tailBytes: false} {
		meta, data, err := Build(make([]byte, size))
		if ok != (err == nil) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if ok && (len(meta) != 4096 || len(data) != 4096) {
			t.Errorf("%d bytes: %d bytes of metadata, %d of data", size, len(meta), len(data))
		}
	}
}

// TestFsck checks the metadata with the filesystem's own tool. The contents are checked by mounting: erofs-utils (1.9.4) does not
// follow unified addresses to the device.
func TestFsck(t *testing.T) {
	testenv.Need(t, testenv.Tool("fsck.erofs"))
	meta, data, err := Build(bytes.Repeat([]byte("0123456789"), 1000))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, d := filepath.Join(dir, "meta"), filepath.Join(dir, "data")
	for path, b := range map[string][]byte{m: meta, d: data} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := exec.CommandContext(t.Context(), "fsck.erofs", "--device="+d, m).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, b)
	}
}
