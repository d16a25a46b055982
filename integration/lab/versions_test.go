package lab

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestVersions starts each containerd with our plugins, pulls with ctr and with CRI, and runs a container from our snapshotter.
func TestVersions(t *testing.T) {
	testenv.Need(t, testenv.EROFS)
	for _, opts := range []Options{
		{Containerd: Containerd17},
		{Containerd: Containerd17, PluginName: "erofs", Announce: AnnounceLocal},
		{Containerd: Containerd21},
		{Containerd: Containerd21, Announce: AnnounceLocal},
		{Containerd: Containerd21, Announce: AnnounceTransfer},
		{Containerd: Containerd24, Announce: AnnounceLocal},
		{Containerd: Containerd24, Announce: AnnounceTransfer},
	} {
		t.Run(strings.Join(strings.Fields(opts.Containerd+" "+opts.PluginName+" "+string(opts.Announce)), " "), func(t *testing.T) {
			opts.CRI, opts.Images = true, []string{"busybox-gzip", "busybox-zstd"}
			l := New(t, opts)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			version, err := l.Client().Version(l.Context(ctx))
			if err != nil || !strings.HasPrefix(strings.TrimPrefix(version.Version, "v"), opts.Containerd+".") {
				t.Errorf("version %q, error %v, want %s", version.Version, err, opts.Containerd)
			}
			checkPluginList(t, ctx, l)
			for _, snapshotter := range []string{"overlayfs", l.Plugin()} {
				if _, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", snapshotter, l.Ref("busybox-gzip")); err != nil {
					t.Fatal(err)
				}
				out, err := l.Ctr(ctx, "run", "--rm", "--snapshotter", snapshotter, l.Ref("busybox-gzip"), "c-"+snapshotter, "/bin/echo", "hello")
				if err != nil || out != "hello\n" {
					t.Errorf("with %s the container printed %q, error %v, want hello", snapshotter, out, err)
				}
			}
			pullByCRI(t, ctx, l, l.Ref("busybox-zstd"))
		})
	}
}

// checkPluginList asks ctr, which is that of the lab's containerd.
func checkPluginList(t *testing.T, ctx context.Context, l *Lab) {
	t.Helper()
	list, err := l.Ctr(ctx, "plugins", "ls")
	if err != nil {
		t.Fatal(err)
	}
	plugins := []string{l.Plugin()}
	if l.opts.Containerd != Containerd17 {
		plugins = append(plugins, Differ)
	}
	for _, id := range plugins {
		var loaded bool
		for line := range strings.Lines(list) {
			f := strings.Fields(line)
			loaded = loaded || len(f) > 3 && f[1] == id && f[len(f)-1] == "ok"
		}
		if !loaded {
			t.Errorf("plugin %s is not ok in\n%s", id, list)
		}
	}
}

// pullByCRI pulls with the snapshotter that CRI is configured for, and expects that to be ours.
func pullByCRI(t *testing.T, ctx context.Context, l *Lab, ref string) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+l.ContainerdAddress(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pull := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}
	if _, err := cri.NewImageServiceClient(conn).PullImage(ctx, pull); err != nil {
		t.Fatal(err)
	}
	snapshots, err := l.Ctr(ctx, "--namespace", "k8s.io", "snapshots", "--snapshotter", l.Plugin(), "ls")
	if err != nil || strings.Count(snapshots, "Committed") != 1 {
		t.Errorf("snapshots of a pull by CRI, error %v, want 1:\n%s", err, snapshots)
	}
}

// TestCheck refuses what the parts would refuse in a way that is hard to understand.
func TestCheck(t *testing.T) {
	testenv.Need(t, testenv.Root, Tools)
	for want, opts := range map[string]Options{
		"1.6":                  {NoDaemon: true, Containerd: "1.6"},
		"panics":               {NoDaemon: true, PluginName: "erofs"},
		"radio":                {NoDaemon: true, Announce: "radio"},
		"stargz":               {NoDaemon: true, Containerd: Containerd17, Stargz: true},
		"handshake":            {NoDaemon: true, Registry: Registry{Auth: "handshake"}},
		"Options.DaemonConfig": {Daemon: "/bin/false", DaemonConfig: "{{"},
	} {
		l, err := Start(t.Context(), opts)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %q", err, want)
		}
		if err == nil {
			l.Close()
		}
	}
}
