package benchkit

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTable: what was written must be on disk before the table is closed.
func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw.csv")
	table, err := NewTable(path, []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if err := table.Write([]string{"1", `ready, "set"`}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if want := "a,b\n1,\"ready, \"\"set\"\"\"\n"; err != nil || string(b) != want {
		t.Errorf("file holds %q, error %v, want %q", b, err, want)
	}
}
