package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// asProgram makes the test binary behave as the program itself.
const asProgram = "EROFS_SNAPSHOTTER_TEST_AS_PROGRAM"

// patience bounds every wait. It is long because a failure may be slow, not because success is.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || slices.Equal(os.Args[1:], []string{"startup"}) { // that one is given no environment
		main()
	}
	os.Exit(testenv.Main(m))
}

// site is where a daemon works.
type site struct{ root, address, config string }

func newSite(t *testing.T) site {
	t.Helper()
	dir := t.TempDir()
	s := site{root: filepath.Join(dir, "root"), address: filepath.Join(dir, "run", "s.sock"), config: filepath.Join(dir, "config.toml")}
	s.write(t, fmt.Sprintf("root = %q\naddress = %q\n[log]\nlevel = \"debug\"\n", s.root, s.address))
	return s
}

func (s site) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// program is the command line of this program, not started.
func program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	return cmd
}

// daemonProcess is a running daemon.
type daemonProcess struct {
	cmd    *exec.Cmd
	log    *bytes.Buffer
	notify *net.UnixConn
	// ended is closed when the process has ended, with err.
	ended chan struct{}
	err   error
}

// start runs a daemon and waits until it tells systemd that it is ready.
func start(t *testing.T, s site) *daemonProcess {
	t.Helper()
	return startCommand(t, func(ctx context.Context) *exec.Cmd { return program(ctx, "--config", s.config, "serve") })
}

func startCommand(t *testing.T, command func(context.Context) *exec.Cmd) *daemonProcess {
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = notify.Close() })
	d := &daemonProcess{cmd: command(context.Background()), log: &bytes.Buffer{}, notify: notify, ended: make(chan struct{})}
	d.cmd.Env = append(d.cmd.Env, "NOTIFY_SOCKET="+notify.LocalAddr().String())
	d.cmd.Stderr = d.log
	_ = notify.SetReadDeadline(time.Now().Add(patience))
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		_ = d.notify.SetReadDeadline(time.Now()) // nobody will write any more
		close(d.ended)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.ended
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", d.log)
		}
	})
	if state := d.waitNotify(t); state != "READY=1" {
		t.Fatalf("the daemon said %q, want READY=1", state)
	}
	return d
}

// waitNotify returns what the daemon tells systemd next. After its end it returns what is left to read.
func (d *daemonProcess) waitNotify(t *testing.T) string {
	t.Helper()
	select {
	case <-d.ended:
		_ = d.notify.SetReadDeadline(time.Now().Add(time.Second))
	default:
	}
	b := make([]byte, 256)
	n, err := d.notify.Read(b)
	if err != nil {
		t.Fatalf("no word from the daemon: %v", err)
	}
	return string(b[:n])
}

// stop asks the daemon to end and returns how it did.
func (d *daemonProcess) stop(t *testing.T, signal syscall.Signal) error {
	t.Helper()
	if err := d.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = d.cmd.Process.Kill() })
	defer timer.Stop()
	<-d.ended
	return d.err
}

func connect(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// use makes and removes a snapshot.
func use(t *testing.T, s site, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connect(t, s.address)), "erofs-snapshotter")
	mounts, err := sn.Prepare(ctx, key, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 || !strings.HasPrefix(mounts[0].Source, s.root) {
		t.Errorf("mounts are %v, want one below %s", mounts, s.root)
	}
	if info, err := sn.Stat(ctx, key); err != nil || info.Kind != snapshots.KindActive {
		t.Errorf("stat: %+v, %v", info, err)
	}
	if err := sn.Remove(ctx, key); err != nil {
		t.Fatal(err)
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode().Perm()
}

func TestServeUntilSignal(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			s := newSite(t)
			d := start(t, s)
			use(t, s, "a")
			for path, want := range map[string]fs.FileMode{s.address: 0o600, filepath.Dir(s.address): 0o700, s.root: 0o700} {
				if got := mode(t, path); got != want {
					t.Errorf("%s has mode %o, want %o", path, got, want)
				}
			}
			if err := d.stop(t, signal); err != nil {
				t.Errorf("ended with %v", err)
			}
			if state := d.waitNotify(t); state != "STOPPING=1" {
				t.Errorf("the daemon said %q, want STOPPING=1", state)
			}
			if _, err := os.Lstat(s.address); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

func TestServedServices(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	s := newSite(t)
	start(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := connect(t, s.address)
	resp, err := healthapi.NewHealthClient(conn).Check(ctx, &healthapi.HealthCheckRequest{})
	if err != nil || resp.Status != healthapi.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer)
	if _, err := differ.Compare(ctx, nil, nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("compare: %v, want ErrNotImplemented", err)
	}
}

func TestRestartAfterKill(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	s := newSite(t)
	if err := start(t, s).stop(t, syscall.SIGKILL); err == nil {
		t.Fatal("the killed daemon ended without an error")
	}
	if _, err := os.Lstat(s.address); err != nil {
		t.Fatalf("the killed daemon should have left its socket: %v", err)
	}
	start(t, s)
	use(t, s, "a")
}

func TestSecondDaemonIsRefused(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	first := newSite(t)
	d := start(t, first)
	for name, test := range map[string]struct {
		root, address, want string
	}{
		"same root":    {first.root, filepath.Join(t.TempDir(), "other.sock"), fmt.Sprintf("is in use by the daemon with pid %d", d.cmd.Process.Pid)},
		"same address": {filepath.Join(t.TempDir(), "other"), first.address, "another process listens on it"},
	} {
		t.Run(name, func(t *testing.T) {
			second := newSite(t)
			second.write(t, fmt.Sprintf("root = %q\naddress = %q\n", test.root, test.address))
			if got := refusal(t, second); !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q in it", got, test.want)
			}
		})
	}
	use(t, first, "a")
}

// refusal starts a daemon that must not come up and returns what it says.
func refusal(t *testing.T, s site) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := program(ctx, "--config", s.config, "serve").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("ended with %v, want exit status 1; output:\n%s", err, out)
	}
	return string(out)
}

func TestFileInPlaceOfTheSocket(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	s := newSite(t)
	if err := os.MkdirAll(filepath.Dir(s.address), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.address, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := refusal(t, s); !strings.Contains(got, "not a socket") {
		t.Errorf("got %q", got)
	}
	if b, err := os.ReadFile(s.address); err != nil || string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	s := newSite(t)
	s.write(t, "rot = \"/data\"\n")
	if got, want := refusal(t, s), s.config+`:1: unknown key "rot", did you mean "root"?`; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q in it", got, want)
	}
	s.config += ".absent"
	if got := refusal(t, s); !strings.Contains(got, "no such file") {
		t.Errorf("a file that is named and absent: %q", got)
	}
}

func TestFileLimitIsRaised(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	s := newSite(t)
	d := startCommand(t, func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "sh", "-c", `ulimit -Sn 256; ulimit -Hn 4000; exec "$@"`, "sh", os.Args[0], "--config", s.config, "serve")
		cmd.Env = append(os.Environ(), asProgram+"=1")
		return cmd
	})
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			// Go raises it, to one below the hard limit.
			if soft := strings.Fields(rest)[0]; soft != "4000" && soft != "3999" {
				t.Errorf("soft limit %s, want the hard limit 4000", soft)
			}
		}
	}
}
