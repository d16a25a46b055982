package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// The programs of the product, which belong into one directory.
const (
	daemonName = "erofs-snapshotter"
	keeperName = "erofs-snapshotter-keeper"
)

// daemon is the program of our daemon: that of the options, or one that is built from the checkout.
func (l *Lab) daemon() (string, error) {
	if l.opts.Daemon != "" {
		return filepath.Abs(l.opts.Daemon)
	}
	dir, err := product()
	return filepath.Join(dir, daemonName), err
}

// keeperProgram is the program beside that of the daemon.
func (l *Lab) keeperProgram() (string, error) {
	daemon, err := l.daemon()
	return filepath.Join(filepath.Dir(daemon), keeperName), err
}

// product is the directory of the programs: EROFS_TEST_PRODUCT, where they cannot be built.
func product() (string, error) {
	if dir := os.Getenv("EROFS_TEST_PRODUCT"); dir != "" {
		return dir, nil
	}
	return buildProduct()
}

// buildProduct builds the programs once per process, so that tests never run one that is older than the sources, and returns their
// directory.
var buildProduct = sync.OnceValues(func() (_ string, err error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(Cache(), "product")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	part, err := os.MkdirTemp(dir, "part-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(part)) }()
	cmd := exec.Command("go", "build", "-trimpath", "-o", part+"/", "./cmd/"+daemonName, "./cmd/"+keeperName)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	// Renamed into place: another process may be running those that are there.
	for _, name := range []string{daemonName, keeperName} {
		if err := os.Rename(filepath.Join(part, name), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
})

// moduleRoot is the directory of the checkout's go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod at or above %s", dir)
		}
	}
}
