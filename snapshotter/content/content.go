// Package content reads layers from containerd's content store, over containerd's own socket.
//
// A layer that containerd has fetched lies in its content store under its digest, and is visible in the namespaces that have
// pulled it. Store reads such blobs for the namespace of the request in hand; it never writes, lists or deletes anything.
//
// The connection is made with the first read, so containerd and the daemon may start in any order, and it is made again after
// containerd was restarted. Bytes are not verified here: whoever reads a blob to its end compares the digest.
//
// A containerd that accepts a request and then says nothing must not hold a pull for ever: every wait for it is bounded by the
// stall timeout, which starts anew with every answer.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// DefaultStallTimeout is used when New is given none. Blobs lie on containerd's local disk: a disk under heavy load answers
// within seconds.
const DefaultStallTimeout = 30 * time.Second

// Store is containerd's content store. Safe for concurrent use.
type Store struct {
	address string
	stall   time.Duration
	conn    *grpc.ClientConn
	blobs   content.Store
	files   *directory
}

// New returns the store of the containerd that listens on the unix socket at address. It does not connect.
// A stall timeout of zero is DefaultStallTimeout.
func New(address string, stall time.Duration) (*Store, error) {
	if stall <= 0 {
		stall = DefaultStallTimeout
	}
	// containerd is back within seconds of a restart; gRPC's own backoff would go on refusing for up to two minutes.
	retry := backoff.DefaultConfig
	retry.MaxDelay = 3 * time.Second
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: 3 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return &Store{address: address, stall: stall, conn: conn, blobs: proxy.NewContentStore(conn), files: newDirectory(conn)}, nil
}

// Close closes the connection. Readers that are still open fail.
func (s *Store) Close() error { return s.conn.Close() }

// Open returns a reader of the whole blob. ctx bounds the reading too, and names the namespace. The error is
// errdefs.ErrNotFound when the namespace does not have the blob.
func (s *Store) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	r := &reader{
		name:  fmt.Sprintf("layer %s in containerd's content store (namespace %s, address %s)", desc.Digest, namespace, s.address),
		stall: min(answerTime, s.stall),
	}
	// A request that came in over gRPC carries the namespace in its incoming metadata only.
	ctx = namespaces.WithNamespace(ctx, namespace)
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	open := func() (err error) {
		r.blob, err = s.blobs.ReaderAt(r.ctx, desc)
		return err
	}
	if err = r.bounded(open); errdefs.IsUnavailable(err) && s.reconnect(r.ctx) {
		err = r.bounded(open)
	}
	if err == nil && desc.Size > 0 && r.blob.Size() != desc.Size {
		err = fmt.Errorf("has %d bytes, its descriptor says %d: %w", r.blob.Size(), desc.Size, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		r.cancel(nil)
		if errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("layer %s is not in containerd's content store (namespace %s, address %s): %w",
				desc.Digest, namespace, s.address, errdefs.ErrNotFound)
		}
		return nil, fmt.Errorf("open %s: %w", r.name, err)
	}
	r.stall = s.stall
	if f := s.file(r, desc.Digest); f != nil {
		_ = r.Close() // never fails
		return file{f}, nil
	}
	return r, nil
}

// reconnectTime is how long a connection to a socket on this machine may take.
const reconnectTime = time.Second

// reconnect has a connection that failed tried again at once: what it failed on may have been a containerd that was not there yet, and
// gRPC would say so for seconds after it has come. It returns whether it is worth asking again.
func (s *Store) reconnect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, reconnectTime)
	defer cancel()
	s.conn.ResetConnectBackoff()
	return s.conn.WaitForStateChange(ctx, connectivity.TransientFailure)
}

// file opens the blob of r as a file, if there is a way to it. The question must not cost r its context.
func (s *Store) file(r *reader, blob digest.Digest) *os.File {
	ctx, cancel := context.WithTimeout(r.ctx, min(answerTime, s.stall))
	defer cancel()
	return s.files.open(ctx, blob, r.blob.Size())
}

// errStalled is the cause of a context that the stall timer cancelled.
var errStalled = errors.New("no answer")
