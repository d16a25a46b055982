package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// upgradePatience is how long readers wait for a daemon in a story with upgrades: longer than one may take, on a busy machine too.
const upgradePatience = time.Minute

// TestLazyUpgrade: daemon and keeper are replaced by other builds, in both orders. Who reads missing data meanwhile, and who reads in a loop what
// the kernel has to ask for, notices nothing but time.
func TestLazyUpgrade(t *testing.T) {
	const image = "nginx-estargz"
	testenv.Need(t, testenv.Tool("go"))
	programs := t.TempDir()
	install(t, programs, "v1")
	s := newLazyStory(t, 2*storyTime, lab.Options{
		Images: []string{image}, Daemon: filepath.Join(programs, "erofs-snapshotter"), KeeperPatience: upgradePatience,
	})
	s.versions("v1", "v1")
	ref := s.pull(image)
	s.startIdle(ref, "box")

	install(t, programs, "v2")
	s.must(s.StopSnapshotter())
	read := make(chan error, 1)
	go func() { read <- s.tryRead("box") }() // nearly everything is missing
	time.Sleep(200 * time.Millisecond)
	if len(read) > 0 {
		t.Errorf("missing data were read without a daemon: %v", <-read)
	}
	s.must(s.StartSnapshotter(s.ctx))
	s.must(<-read)
	s.versions("v2", "v1")
	s.startReader(ref, "reader")
	s.readsOn("reader")
	s.replaceKeeper(programs)
	s.versions("v2", "v2")
	s.readsOn("reader")

	install(t, programs, "v3")
	s.replaceKeeper(programs)
	s.versions("v2", "v3")
	s.readsOn("reader")
	s.must(s.StopSnapshotter())
	s.must(s.StartSnapshotter(s.ctx))
	s.versions("v3", "v3")
	s.readsOn("reader")
	s.readsRight("box")

	if r := s.keeper(); r.Denied > 0 {
		t.Errorf("%d reads were refused", r.Denied)
	}
	s.end("reader")
	s.end("box")
	s.removeImages(ref)
	s.released()
}

// install builds the programs as another version and puts them into a directory, where those may be running that it replaces.
func install(t *testing.T, dir, version string) {
	t.Helper()
	built := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version="+version, "-o", built+"/",
		"../cmd/erofs-snapshotter", "../cmd/erofs-snapshotter-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	for _, name := range []string{"erofs-snapshotter", "erofs-snapshotter-keeper"} {
		path := filepath.Join(dir, name)
		if err := os.Rename(filepath.Join(built, name), path); err != nil {
			t.Fatal(err)
		}
		argument := map[string]string{"erofs-snapshotter": "version", "erofs-snapshotter-keeper": "--version"}[name]
		if out, err := exec.Command(path, argument).Output(); err != nil || !strings.HasPrefix(string(out), name+" "+version) {
			t.Fatalf("%s %s: %q, %v", name, argument, out, err)
		}
	}
}

// replaceKeeper has the installed keeper take over from the one that runs, as its unit's reload does.
func (s *story) replaceKeeper(programs string) {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.Dir, "log", "keeper.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	s.must(err)
	defer log.Close()
	before := s.keeper()
	if len(before.Names) == 0 {
		s.t.Fatal("the keeper holds nothing: nothing would be seen of its loss")
	}
	cmd := exec.CommandContext(s.ctx, filepath.Join(programs, "erofs-snapshotter-keeper"), "--replace", "--detach",
		"--address", s.KeeperAddress(), "--patience", upgradePatience.String())
	cmd.Stdout, cmd.Stderr = log, log
	s.must(cmd.Run())
	s.within(10*time.Second, "the daemon has found the other keeper", func() error {
		now := s.keeper()
		if now.PID == before.PID || now.State != keeper.Served || len(now.Names) != len(before.Names) {
			return fmt.Errorf("%+v, before %+v", now, before)
		}
		return nil
	})
}

// keeper is what the keeper says of itself.
func (s *story) keeper() keeper.Report {
	s.t.Helper()
	r, err := keeper.Status(s.ctx, s.KeeperAddress())
	s.must(err)
	return r
}

// versions expects that daemon and keeper are of these versions.
func (s *story) versions(daemon, keeper string) {
	s.t.Helper()
	var status struct{ Version string }
	s.must(s.Status(s.ctx, &status))
	if r := s.keeper(); status.Version != daemon || r.Version != keeper {
		s.t.Errorf("daemon %s, keeper %s run; want %s, %s", status.Version, r.Version, daemon, keeper)
	}
}
