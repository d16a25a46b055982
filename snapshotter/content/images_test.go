package content

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// manifests is a content service with manifests as containerd labels them.
type manifests struct {
	contentapi.UnimplementedContentServer
	infos []*contentapi.Info
	blobs map[string][]byte
}

// add makes a manifest of layers with these contents. labelled is how many of them have their label yet.
func (m *manifests) add(t *testing.T, updated int64, labelled int, layers ...string) *contentapi.Info {
	t.Helper()
	var manifest ocispec.Manifest
	info := &contentapi.Info{Labels: map[string]string{}, UpdatedAt: timestamppb.New(time.Unix(updated, 0))}
	for i, l := range layers {
		dgst := digest.FromString(l)
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: dgst, Size: int64(len(l))})
		if i < labelled {
			info.Labels[layerLabel+strconv.Itoa(i)] = dgst.String()
		}
	}
	b, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	info.Digest, info.Size = digest.FromBytes(b).String(), int64(len(b))
	if m.blobs == nil {
		m.blobs = map[string][]byte{}
	}
	m.blobs[info.Digest] = b
	m.infos = append(m.infos, info)
	return info
}

func (m *manifests) List(req *contentapi.ListContentRequest, stream contentapi.Content_ListServer) error {
	if !slices.Equal(req.Filters, []string{`labels."containerd.io/gc.ref.content.l.0"`}) {
		return io.ErrUnexpectedEOF
	}
	return stream.Send(&contentapi.ListContentResponse{Info: m.infos})
}

func (m *manifests) Info(_ context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.Digest, Size: int64(len(m.blobs[req.Digest]))}}, nil
}

func (m *manifests) Read(req *contentapi.ReadContentRequest, session contentapi.Content_ReadServer) error {
	return session.Send(&contentapi.ReadContentResponse{Offset: req.Offset, Data: m.blobs[req.Digest][req.Offset:]})
}

func TestAbove(t *testing.T) {
	m := &manifests{}
	m.add(t, 3, 3, "base", "a", "b")
	m.add(t, 9, 3, "base", "c", "d")
	m.add(t, 5, 3, "base", "a", "e")
	m.add(t, 99, 1, "other", "b")
	s := newStore(t, serve(t, m), 0)
	for _, c := range []struct {
		layer string
		want  []string
	}{
		{"base", []string{"c", "d"}}, // of the image changed last
		{"a", []string{"e"}},
		{"d", nil},
		{"unknown", nil},
		{"b", nil},
	} {
		above, err := s.Above(inNamespace(t), digest.FromString(c.layer))
		if err != nil {
			t.Fatal(err)
		}
		var want []ocispec.Descriptor
		for _, l := range c.want {
			want = append(want, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(l), Size: int64(len(l))})
		}
		if !slices.EqualFunc(above, want, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest && a.Size == b.Size }) {
			t.Errorf("above %s: %v, want %v", c.layer, above, want)
		}
	}
}

// TestAboveRefuses: a manifest that is too large, or no manifest, is an error and costs nothing.
func TestAboveRefuses(t *testing.T) {
	for name, change := range map[string]func(*manifests, *contentapi.Info){
		"too large":   func(_ *manifests, i *contentapi.Info) { i.Size = maxManifestBytes + 1 },
		"no manifest": func(m *manifests, i *contentapi.Info) { m.blobs[i.Digest] = []byte("["); i.Size = 1 },
	} {
		m := &manifests{}
		change(m, m.add(t, 1, 2, "a", "b"))
		if above, err := newStore(t, serve(t, m), 0).Above(inNamespace(t), digest.FromString("a")); err == nil {
			t.Errorf("%s: %v", name, above)
		}
	}
}
