package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// serve puts a content service on a unix socket and returns its address.
func serve(t *testing.T, service contentapi.ContentServer) string {
	t.Helper()
	return serveWith(t, service, introspectionapi.UnimplementedIntrospectionServer{})
}

func serveWith(t *testing.T, service contentapi.ContentServer, plugins introspectionapi.IntrospectionServer) string {
	t.Helper()
	address := filepath.Join(t.TempDir(), "containerd.sock")
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, service)
	introspectionapi.RegisterIntrospectionServer(server, plugins)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return address
}

func newStore(t *testing.T, address string, stall time.Duration) *Store {
	t.Helper()
	s, err := New(address, stall)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func inNamespace(t *testing.T) context.Context {
	return namespaces.WithNamespace(t.Context(), "default")
}

func randomBlob(n int) []byte {
	var seed [32]byte
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func describe(blob []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
}

func localStore(t *testing.T, blobs ...[]byte) content.Store {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		desc := describe(b)
		if err := content.WriteBlob(inNamespace(t), store, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

func TestReadsBlobsOfAllSizes(t *testing.T) {
	blobs := [][]byte{
		randomBlob(1), randomBlob(requestBytes - 1), randomBlob(requestBytes), randomBlob(requestBytes + 1), randomBlob(3*requestBytes + 7),
	}
	s := newStore(t, serve(t, contentserver.New(localStore(t, blobs...))), 0)
	for _, blob := range blobs {
		r, err := s.Open(inNamespace(t), describe(blob))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%d bytes: %v", len(blob), err)
		}
		if !bytes.Equal(got, blob) {
			t.Errorf("%d bytes came back different", len(blob))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAbsentBlob(t *testing.T) {
	address := serve(t, contentserver.New(localStore(t)))
	desc := describe([]byte("absent"))
	_, err := newStore(t, address, 0).Open(inNamespace(t), desc)
	if !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	want := "layer " + desc.Digest.String() + " is not in containerd's content store (namespace default, address " + address + ")"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got  %v\nwant %s…", err, want)
	}
}

func TestNamespaceIsRequired(t *testing.T) {
	s := newStore(t, "/nowhere", 0)
	if _, err := s.Open(t.Context(), describe([]byte("x"))); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want ErrFailedPrecondition", err)
	}
}

func TestDescriptorWithAnotherSize(t *testing.T) {
	blob := randomBlob(100)
	s := newStore(t, serve(t, contentserver.New(localStore(t, blob))), 0)
	desc := describe(blob)
	desc.Size = 99
	if _, err := s.Open(inNamespace(t), desc); err == nil || !strings.Contains(err.Error(), "has 100 bytes, its descriptor says 99") {
		t.Errorf("got %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	address := filepath.Join(t.TempDir(), "absent.sock")
	_, err := newStore(t, address, 0).Open(inNamespace(t), describe([]byte("x")))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), address) {
		t.Errorf("got %v, want ErrUnavailable that names %s", err, address)
	}
}

// TestContainerdComesLater: a request that found nobody does not keep the next one from finding containerd.
func TestContainerdComesLater(t *testing.T) {
	blob := randomBlob(10)
	address := serve(t, contentserver.New(localStore(t, blob)))
	late := filepath.Join(t.TempDir(), "late.sock")
	s := newStore(t, late, 0)
	for range 2 {
		if _, err := s.Open(inNamespace(t), describe(blob)); !errdefs.IsUnavailable(err) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
	}
	if err := os.Symlink(address, late); err != nil {
		t.Fatal(err)
	}
	r, err := s.Open(inNamespace(t), describe(blob))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// faulty answers Info for a blob of two requests and answers reads as told.
type faulty struct {
	contentapi.UnimplementedContentServer
	hangInfo bool
	read     func(req *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error
}

func (f *faulty) Info(ctx context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	if f.hangInfo {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.Digest, Size: 2 * requestBytes}}, nil
}

func (f *faulty) Read(req *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error {
	if req.Offset == 0 {
		return session.Send(&contentapi.ReadContentResponse{Data: make([]byte, req.Size)})
	}
	return f.read(req, session)
}

// hang is a server that takes a request and never answers.
func hang(_ *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error {
	<-session.Context().Done()
	return session.Context().Err()
}

func readAll(t *testing.T, s *Store) error {
	t.Helper()
	r, err := s.Open(inNamespace(t), ocispec.Descriptor{Digest: digest.FromString("any")})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	_, err = io.Copy(io.Discard, r)
	return err
}

func TestStalledServerIsAnError(t *testing.T) {
	for name, service := range map[string]*faulty{"info": {hangInfo: true}, "read": {read: hang}} {
		t.Run(name, func(t *testing.T) {
			err := readAll(t, newStore(t, serve(t, service), 50*time.Millisecond))
			if !errors.Is(err, errStalled) || !strings.Contains(err.Error(), "no answer for 50ms") {
				t.Errorf("got %v, want errStalled", err)
			}
		})
	}
}

func TestBlobThatEndsEarlyIsAnError(t *testing.T) {
	short := func(_ *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error {
		return session.Send(&contentapi.ReadContentResponse{Data: []byte("short")})
	}
	err := readAll(t, newStore(t, serve(t, &faulty{read: short}), 0))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want io.ErrUnexpectedEOF", err)
	}
}

func TestCancelledRequestEndsTheRead(t *testing.T) {
	ctx, cancel := context.WithCancel(inNamespace(t))
	s := newStore(t, serve(t, &faulty{read: func(req *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error {
		cancel()
		return hang(req, session)
	}}), time.Hour)
	r, err := s.Open(ctx, ocispec.Descriptor{Digest: digest.FromString("any")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := io.Copy(io.Discard, r); !errdefs.IsCanceled(err) {
		t.Errorf("got %v, want a cancelled read", err)
	}
}
