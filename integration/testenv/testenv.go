// Package testenv says what a test needs of the machine, so that a test that cannot run says why, and one that was promised
// (EROFS_TEST_REQUIRE) fails instead.
//
//	testenv.Need(t, testenv.Root, testenv.FileBacked)
//
// EROFS_TEST_REQUIRE is a comma separated list of feature names, or "all". Packages whose tests call Need have a TestMain that
// ends with testenv.Main, which prints a line for each feature that was missing.
package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
)

// Feature is something a test may need. Missing returns nil when it is there, and otherwise the reason.
type Feature struct {
	Name    string
	Missing func() error
}

// Root is the right to mount.
var Root = Feature{"root", func() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("not running as root")
	}
	return nil
}}

// EROFS is a kernel with EROFS, built in or loaded.
var EROFS = Feature{"erofs", func() error {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), "\terofs\n") {
		return fmt.Errorf("no erofs in /proc/filesystems (try modprobe erofs)")
	}
	return nil
}}

// IPv6 is a loopback address of that kind.
var IPv6 = Feature{"ipv6", func() error {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return err
	}
	return l.Close()
}}

// Tool is a program in PATH.
func Tool(name string) Feature {
	return Feature{"tool:" + name, func() error {
		_, err := exec.LookPath(name)
		return err
	}}
}

var (
	mu      sync.Mutex
	skipped = map[string]int{}
)

// Need skips the test when a feature is missing, or fails it when EROFS_TEST_REQUIRE promised the feature.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	required := strings.Split(os.Getenv("EROFS_TEST_REQUIRE"), ",")
	for _, f := range features {
		err := f.Missing()
		if err == nil {
			continue
		}
		if slices.Contains(required, "all") || slices.Contains(required, f.Name) {
			t.Fatalf("needs %s, which EROFS_TEST_REQUIRE promises: %v", f.Name, err)
		}
		mu.Lock()
		skipped[f.Name]++
		mu.Unlock()
		t.Skipf("needs %s: %v", f.Name, err)
	}
}

// Main runs the tests of a package and prints what was skipped for which missing feature. It is the body of a TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	names := make([]string, 0, len(skipped))
	for n := range skipped {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		fmt.Printf("skipped: %s %d\n", n, skipped[n])
	}
	return code
}
