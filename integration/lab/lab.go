// Package lab runs the real parts that erofs-snapshotter lives among, for tests, the demo and benchmarks: containerd with runc, a
// registry on loopback, and our daemon, all in one private directory, beside whatever else the machine runs.
//
//	l := lab.New(t, lab.Options{Images: []string{"nginx-gzip"}})
//	ref := l.Ref("nginx-gzip")
//	_, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", lab.Snapshotter, ref)
//
// The programs come from tools.sh and the images from images.sh, both beside this file; `make tools images` runs them. The daemon is
// built from the checkout unless Options.Daemon names one.
//
// A Lab owns the processes it started and ends them by handle. Its containers run in a containerd namespace of its own, so runc's
// state and the cgroups, which are shared by the whole machine, do not collide either. Close undoes everything: containers, shims,
// mounts, files. What a test process that was killed left behind is cleared by the next Start.
package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// Names of our proxy plugins in the generated containerd configuration.
const (
	Snapshotter = "erofs-snapshotter"
	Differ      = "erofs-differ"
)

// Options say what runs. The zero value is containerd without CRI, with our snapshotter and differ, and an empty registry.
type Options struct {
	// Images are layouts in the cache, such as "nginx-gzip", that are pushed to the registry at the start.
	Images []string
	// Dir is where the private directory is made. Default: the directory for temporary files. Socket paths must fit: at most 22
	// characters.
	Dir string
	// Resume is the directory of a lab whose machine has lost its power. What is on the disk is used again, also the images in the registry, which
	// must have had a Registry.Address. Default: a new directory.
	Resume string
	// Daemon is the program to run as our daemon; the keeper is beside it. Default: both are built from the checkout.
	Daemon string
	// DaemonConfig is TOML that is appended to the configuration of our daemon; it begins with top-level keys, if any. The lab
	// itself sets root, address and the table containerd. It is a template that is executed with the Lab, for paths and addresses that
	// are known only then: hosts_dir = "{{.HostsDir}}".
	DaemonConfig string
	// NoDaemon leaves our daemon out; containerd is configured for it all the same. StartSnapshotter may start it later.
	NoDaemon bool
	// KeeperPatience lets the lab start a keeper before the daemon, with this patience, as a service manager does. Default: the daemon starts
	// one, as the table keeper of DaemonConfig says.
	KeeperPatience time.Duration
	// Containerd is the release line of containerd. Default: Containerd24.
	Containerd string
	// PluginName is what containerd calls our snapshotter. Default: Snapshotter.
	PluginName string
	// Announce says which pulls are announced to our snapshotter. Default: none.
	Announce Announce
	// Registry says how the registry is reached. Default: plain HTTP, by everybody.
	Registry Registry
	// Differ unpacks layers for our snapshotter. Default: ours; "walking" is containerd's own, and the only one of Containerd17.
	Differ string
	// BuiltinErofs configures containerd's own erofs snapshotter and differ too. 1.7 has none.
	BuiltinErofs bool
	// Stargz runs the stargz snapshotter and configures containerd for it. Not with Containerd17.
	Stargz bool
	// CRI turns on the CRI plugin, with our snapshotter as its default. It implies the image pause-gzip.
	CRI bool
	// CNI gives pods that are not on the host network a bridge. Without it only pods on the host network start.
	CNI bool
}

// Lab is a running set of parts.
type Lab struct {
	// Dir is the private directory; everything is below it.
	Dir string
	// Namespace is the containerd namespace that Ctr and Client use.
	Namespace string
	// Host is the address of the registry, 127.0.0.1:PORT. With Registry.Record, that of the proxy in front of it.
	Host string

	opts        Options
	lock        *os.File // locked for as long as the lab lives
	registry    registry
	containerd  *process
	snapshotter *process
	keeper      *process // only if it is the lab that started it
	stargz      *process
	client      *containerd.Client
}

// Start starts everything and returns when it answers. The context bounds the start only; Close ends what was started.
func Start(ctx context.Context, opts Options) (_ *Lab, err error) {
	opts.Differ = cmp.Or(opts.Differ, Differ)
	opts.Containerd = cmp.Or(opts.Containerd, Containerd24)
	opts.PluginName = cmp.Or(opts.PluginName, Snapshotter)
	opts.Registry.setDefaults()
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.CRI {
		opts.Images = append([]string{pauseImage}, opts.Images...)
	}
	if opts.Dir == "" {
		opts.Dir = os.TempDir()
	}
	dir, lock, err := opts.directory()
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir, Namespace: filepath.Base(dir), opts: opts, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w%s", err, l.logTails()), l.Close())
		}
	}()
	for _, d := range []string{"log", "tmp", "etc", "registry", "containerd"} {
		if err := os.MkdirAll(l.path(d), 0o700); err != nil {
			return nil, err
		}
	}
	if err := l.startRegistry(ctx); err != nil {
		return nil, err
	}
	for _, image := range opts.Images {
		if opts.Resume != "" {
			break
		}
		if err := l.Push(ctx, Layout(image), l.Ref(image)); err != nil {
			return nil, err
		}
	}
	if opts.KeeperPatience > 0 {
		if err := l.StartKeeper(ctx); err != nil {
			return nil, err
		}
	}
	if opts.Stargz {
		if err := l.startStargz(ctx); err != nil {
			return nil, err
		}
	}
	if !opts.NoDaemon {
		if err := l.StartSnapshotter(ctx); err != nil {
			return nil, err
		}
	}
	return l, l.StartContainerd(ctx)
}

// directory makes or takes over the lab's directory, and clears those that were abandoned.
func (o Options) directory() (dir string, lock *os.File, err error) {
	if o.Resume != "" {
		lock, err := lockOwner(o.Resume)
		return o.Resume, lock, err
	}
	clearAbandoned(o.Dir)
	return makeDir(o.Dir)
}

// New is Start for a test: it skips the test when the machine lacks something, fails it when the start fails, closes the lab when
// the test ends, and shows the ends of the logs when the test failed.
func New(t testing.TB, opts Options) *Lab {
	t.Helper()
	testenv.Need(t, testenv.Root, Tools, Containerd(cmp.Or(opts.Containerd, Containerd24)))
	for _, image := range opts.Images {
		testenv.Need(t, Image(image))
	}
	if opts.Stargz {
		testenv.Need(t, ToolProgram(stargzProgram))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute*testenv.Slow)
	defer cancel()
	l, err := Start(ctx, opts)
	if err != nil {
		t.Fatalf("start lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.logTails())
		}
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

// Close ends all containers and processes, unmounts and deletes everything. Closing twice is not an error.
func (l *Lab) Close() error {
	errs := []error{l.endTasks()}
	if l.client != nil {
		errs = append(errs, l.client.Close())
		l.client = nil
	}
	errs = append(errs, l.StopContainerd())
	endShims(l.Dir)
	errs = append(errs, l.StopSnapshotter(), l.KillKeeper(), l.stargz.stop(), l.StopRegistry(), removeTraces(l.Dir))
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
		l.lock = nil
	}
	return errors.Join(errs...)
}

// Context returns ctx with the lab's containerd namespace.
func (l *Lab) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, l.Namespace)
}

// SnapshotterRoot is the root directory of our daemon.
func (l *Lab) SnapshotterRoot() string { return l.path("snapshotter") }

// SnapshotterAddress is the socket of our daemon.
func (l *Lab) SnapshotterAddress() string { return l.path("snapshotter.sock") }

// ContainerdAddress is the socket of containerd, also that of CRI.
func (l *Lab) ContainerdAddress() string { return l.path("containerd/containerd.sock") }

// ContainerdRoot is the root directory of containerd; its own snapshotters keep their snapshots below it.
func (l *Lab) ContainerdRoot() string { return l.path("containerd/root") }

// Log returns everything that "registry", "containerd" or "snapshotter" has written so far, over all of its restarts. A keeper that the daemon
// started writes to the daemon's log, one of Options.KeeperPatience to "keeper".
func (l *Lab) Log(name string) (string, error) {
	b, err := os.ReadFile(l.logPath(name))
	return string(b), err
}

func (l *Lab) path(rel string) string     { return filepath.Join(l.Dir, rel) }
func (l *Lab) logPath(name string) string { return l.path("log/" + name + ".log") }
