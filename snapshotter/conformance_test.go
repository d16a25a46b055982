package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// The suite knows by name which snapshotters are made of overlayfs and cannot rename directories of a lower layer.
const suiteName = "erofs"

func TestConformance(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	var work backgroundWork
	t.Cleanup(func() { work.check(t) })
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return startForSuite(t, root, &work)
	})
}

func TestConformanceOverGRPC(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	var work backgroundWork
	t.Cleanup(func() { work.check(t) })
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, stop, err := startForSuite(t, root, &work)
		if err != nil {
			return nil, nil, err
		}
		client, disconnect, err := serveForSuite(s, filepath.Join(root, "sock"))
		if err != nil {
			return nil, nil, errors.Join(err, stop())
		}
		return client, func() error { return errors.Join(disconnect(), stop()) }, nil
	})
}

// startForSuite starts a snapshotter with a short grace and with Run, so that the suite's layers are converted and collected
// while it goes on.
func startForSuite(t *testing.T, root string, work *backgroundWork) (*Snapshotter, func() error, error) {
	s, err := New(context.Background(), Options{Root: root, Backend: file.New(file.Options{}), Grace: 50 * time.Millisecond, Log: slog.New(work)})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() error {
		cancel()
		err := errors.Join(<-done, s.Close())
		unmountBelow(t, root)
		return err
	}, nil
}

func serveForSuite(s snapshots.Snapshotter, socket string) (snapshots.Snapshotter, func() error, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		server.Stop()
		return nil, nil, errors.Join(err, <-done)
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), suiteName), func() error {
		err := conn.Close()
		server.Stop()
		return errors.Join(err, <-done)
	}, nil
}

// backgroundWork is a log that counts conversions and collections: a suite that ran without any has not shown much.
type backgroundWork struct {
	slog.Handler
	converted, collected atomic.Int64
}

func (w *backgroundWork) Enabled(context.Context, slog.Level) bool { return true }

func (w *backgroundWork) Handle(_ context.Context, r slog.Record) error {
	switch r.Message {
	case "directory instance converted":
		w.converted.Add(1)
	case "layer instance collected":
		w.collected.Add(1)
	}
	return nil
}

func (w *backgroundWork) check(t *testing.T) {
	t.Logf("%d directories converted, %d instances collected", w.converted.Load(), w.collected.Load())
	if w.converted.Load() == 0 || w.collected.Load() == 0 {
		t.Error("no work in the background during the suite")
	}
}
