// Command ministargz serves the stargz snapshotter to containerd, with its default configuration, so that benchmarks can compare with it.
//
//	ministargz -root DIR -address SOCKET
//	ministargz -version
//
// The project's own daemon cannot be installed with "go install", because its module has replacements; its library can be used. It is a
// module of its own: nothing of it comes near the product. Registries on loopback are reached without TLS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	root := flag.String("root", "", "directory of snapshots and caches")
	address := flag.String("address", "", "socket to serve on")
	version := flag.Bool("version", false, "print the version of the snapshotter")
	flag.Parse()
	if *version {
		fmt.Println(library())
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root, *address); err != nil {
		fmt.Fprintln(os.Stderr, "ministargz:", err)
		os.Exit(1)
	}
}

// library is the module that does the work, with its version.
func library() string {
	const path = "github.com/containerd/stargz-snapshotter"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return path + " " + m.Version
			}
		}
	}
	return path + " of an unknown version"
}

// run serves until ctx ends, and unmounts everything.
func run(ctx context.Context, root, address string) (err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := service.Supported(root); err != nil {
		return err
	}
	config := &service.Config{}
	config.NoPrometheus = true
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snapshotter.Close()) }()
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	defer context.AfterFunc(ctx, server.GracefulStop)()
	return server.Serve(listener)
}
