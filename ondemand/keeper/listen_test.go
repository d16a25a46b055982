package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestSocketIsForThisUserAlone(t *testing.T) {
	at := address(t)
	l, err := listen(at)
	must(t, err)
	defer l.close()
	for path, want := range map[string]os.FileMode{at: 0o600 | os.ModeSocket, filepath.Dir(at): 0o700 | os.ModeDir, at + ".lock": 0o600} {
		fi, err := os.Lstat(path)
		must(t, err)
		if fi.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, fi.Mode(), want)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	open := address(t)
	must(t, os.MkdirAll(filepath.Dir(open), 0o777))
	must(t, os.Chmod(filepath.Dir(open), 0o777))
	taken := address(t)
	must(t, os.MkdirAll(filepath.Dir(taken), 0o700))
	must(t, os.WriteFile(taken, []byte("precious"), 0o600))
	used := address(t)
	first, err := listen(used)
	must(t, err)
	defer first.close()
	linked := address(t)
	must(t, os.MkdirAll(filepath.Dir(linked), 0o700))
	must(t, os.Symlink(taken, linked+".lock"))
	for what, at := range map[string]string{
		"a directory of all": open, "a file in the way": taken, "a living keeper": used, "a link for the lock": linked,
	} {
		if l, err := listen(at); err == nil {
			l.close()
			t.Errorf("%s: listens", what)
		}
	}
	if b, err := os.ReadFile(taken); err != nil || string(b) != "precious" {
		t.Errorf("the file in the way: %q, %v", b, err)
	}
}

// A process of another user is refused even if it can open the socket.
func TestAnotherUserIsRefused(t *testing.T) {
	testenv.Need(t, testenv.Root)
	at := address(t)
	keep(t, Options{Address: at})
	dir := filepath.Dir(at)
	for _, path := range []string{filepath.Dir(dir), dir, at} {
		must(t, os.Chmod(path, 0o777))
	}
	status(t, at)
	errs := make(chan error, 1)
	go func() {
		// The thread becomes another user, and is not used again: it stays locked when the goroutine ends.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			errs <- errno
			return
		}
		_, err := Status(timeout(t), at)
		errs <- err
	}()
	var refused *refusal
	if err := <-errs; !errors.As(err, &refused) {
		t.Errorf("got %v, want a refusal", err)
	}
}
