package credentials

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// waitFor calls done until it is true, or fails the test with it.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for: %s", what)
		}
	}
}

func waitForFile(t *testing.T, path string) {
	t.Helper()
	waitFor(t, path, func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// waitForEnd waits until the process is gone, or is only waiting for a parent that reaps it.
func waitForEnd(t *testing.T, pid string) {
	t.Helper()
	waitFor(t, "the end of process "+pid, func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
		return err != nil || bytes.Contains(stat, []byte(") Z "))
	})
}
