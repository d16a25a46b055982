package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/loop"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/ownthread"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/tinyimage"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// questions are all that are about a directory.
var questions = map[string]func(dir string) error{
	"file-backed": HaveFileBacked,
	"loop":        HaveLoop,
	"overlay":     func(dir string) error { return HaveOverlay(dir) },
	"index":       func(dir string) error { return HaveOverlay(dir, "index=off") },
	"redirect":    func(dir string) error { return HaveOverlay(dir, "redirect_dir=nofollow") },
	"metacopy":    func(dir string) error { return HaveOverlay(dir, "metacopy=off") },
	"pre-content": HavePreContent,
}

// TestAnswers asks everything. What this kernel can do is not known, but each answer must be a clear one, and leave nothing.
func TestAnswers(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	dir := t.TempDir()
	for name, ask := range questions {
		err := ask(dir)
		t.Logf("%s: %v", name, err)
		if err != nil && !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: could not tell: %v", name, err)
		}
		mustBeEmpty(t, dir)
	}
	if err := HaveEROFS(); err != nil {
		t.Errorf("erofs is in /proc/filesystems, but: %v", err)
	}
	if err := HaveFscache(); err != nil && !errors.Is(err, ErrNotSupported) {
		t.Errorf("fscache: could not tell: %v", err)
	}
}

func mustBeEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount was left behind below %s (%v)", dir, err)
	}
}

func TestNo(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	err := HaveOverlay(t.TempDir(), "nosuchoption=off")
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "nosuchoption") {
		t.Errorf("an option that no kernel knows: %v", err)
	}
	// tmpfs has neither what file-backed mounts need nor pre-content events.
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for _, name := range []string{"file-backed", "pre-content"} {
		if err := questions[name](dir); !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s on tmpfs: %v", name, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Whoever has no right to ask, or asks about no directory, gets no "no".
func TestCouldNotTell(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	missing := filepath.Join(t.TempDir(), "missing")
	for name, ask := range questions {
		if err := ask(missing); err == nil || errors.Is(err, ErrNotSupported) {
			t.Errorf("%s in a missing directory: %v", name, err)
		}
	}
	dir := t.TempDir()
	answers := map[string]error{}
	asNobody(t, func() {
		answers["erofs"], answers["fscache"] = HaveEROFS(), HaveFscache()
		for name, ask := range questions {
			answers[name] = ask(dir)
		}
	})
	for name, err := range answers {
		if err == nil || errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "needs root") {
			t.Errorf("%s without root: %v", name, err)
		}
	}
}

// asNobody runs f on a thread that has given up its rights, and ends with it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	ownthread.Run(func() {
		const nobody = 65534
		// The raw call changes this thread only.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			t.Error(errno)
			return
		}
		f()
	})
}

func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		err      error
		no, root bool
	}{
		{unix.EINVAL, true, false}, {unix.ENODEV, true, false}, {unix.EOPNOTSUPP, true, false}, {unix.ENOTBLK, true, false}, {unix.ENOSYS, true, false},
		{mountapi.ErrIgnored, true, false}, {loop.ErrNone, true, false}, {fmt.Errorf("%w: reason", ErrNotSupported), true, false},
		{unix.EPERM, false, true}, {unix.EACCES, false, true},
		{unix.ENOSPC, false, false}, {unix.EMFILE, false, false}, {unix.EIO, false, false},
	} {
		got := answer("thing", "needs more", fmt.Errorf("attempt: %w", c.err))
		if errors.Is(got, ErrNotSupported) != c.no || !errors.Is(got, c.err) || strings.Contains(got.Error(), "needs root") != c.root {
			t.Errorf("%v became %v", c.err, got)
		}
	}
	if answer("thing", "", nil) != nil {
		t.Error("success became an error")
	}
}

// A process that was killed while it asked leaves its directory and a mount. The next question removes them, but not the directory
// of a question that is still being asked.
func TestStaleScratch(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	dir := t.TempDir()
	busy, err := newScratch(dir)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := newScratch(dir)
	if err != nil {
		t.Fatal(err)
	}
	lower := stale.join(lowerName)
	if err := os.Mkdir(lower, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := withTrialFiles(stale, func(meta, data *os.File) error {
		m, err := trialMount(meta, data)
		if err != nil {
			return err
		}
		defer m.Close()
		return m.Attach(lower)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(lower, tinyimage.FileName)); err != nil {
		t.Fatal(err)
	}
	stale.lock.Close() // as the kernel does for the dead

	if err := HaveOverlay(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stale directory is still there: %v", err)
	}
	if _, err := os.Stat(busy.path); err != nil {
		t.Errorf("the directory in use: %v", err)
	}
	busy.close()
	mustBeEmpty(t, dir)
}

func TestConcurrentQuestions(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := HaveOverlay(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mustBeEmpty(t, dir)
}

func TestDataDirFilesystem(t *testing.T) {
	if got, err := DataDirFilesystem("/proc/self"); err != nil || got != "proc" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := DataDirFilesystem(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
}

// BenchmarkAll is what `check` costs.
func BenchmarkAll(b *testing.B) {
	testenv.Need(b, testenv.Root, testenv.EROFS)
	dir := b.TempDir()
	for b.Loop() {
		for _, ask := range questions {
			if err := ask(dir); err != nil && !errors.Is(err, ErrNotSupported) {
				b.Fatal(err)
			}
		}
	}
}
