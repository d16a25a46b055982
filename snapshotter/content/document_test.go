package content

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// labelled is a content service whose blobs have labels.
type labelled struct {
	content.Store
	labels map[string]string
}

func (l labelled) Info(ctx context.Context, name digest.Digest) (content.Info, error) {
	info, err := l.Store.Info(ctx, name)
	info.Labels = l.labels
	return info, err
}

func TestDocument(t *testing.T) {
	blob := []byte(`{"schemaVersion": 2}`)
	const key = "containerd.io/distribution.source.registry.example"
	s := newStore(t, serve(t, contentserver.New(labelled{localStore(t, blob), map[string]string{key: "app"}})), 0)
	got, labels, err := s.Document(inNamespace(t), digest.FromBytes(blob))
	if err != nil || !bytes.Equal(got, blob) || labels[key] != "app" {
		t.Errorf("got %q with labels %v, error %v", got, labels, err)
	}
	if _, _, err := s.Document(inNamespace(t), digest.FromString("absent")); !errdefs.IsNotFound(err) {
		t.Errorf("absent: got %v, want ErrNotFound", err)
	}
	if _, _, err := s.Document(t.Context(), digest.FromBytes(blob)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: got %v, want ErrFailedPrecondition", err)
	}
	if _, _, err := s.Document(inNamespace(t), "sha256:no"); err == nil {
		t.Error("no error for what is not a digest")
	}
}

// lying is a content service that has for every digest the same blob, of a size that it makes up.
type lying struct {
	contentapi.UnimplementedContentServer
	size int64
}

func (l lying) Info(_ context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.Digest, Size: l.size}}, nil
}

func (l lying) Read(_ *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error {
	return session.Send(&contentapi.ReadContentResponse{Data: make([]byte, l.size)})
}

func TestDocumentThatIsAnother(t *testing.T) {
	for _, c := range []struct {
		size int64
		want string
	}{
		{10, "another digest"},
		{maxManifestBytes + 1, "more than"},
	} {
		_, _, err := newStore(t, serve(t, lying{size: c.size}), 0).Document(inNamespace(t), digest.FromString("x"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes: got %v, want %q", c.size, err, c.want)
		}
	}
}

func TestDocumentIsBounded(t *testing.T) {
	s := newStore(t, serve(t, &faulty{hangInfo: true}), 50*time.Millisecond)
	if _, _, err := s.Document(inNamespace(t), digest.FromString("x")); err == nil {
		t.Error("no error from a server that does not answer")
	}
}
