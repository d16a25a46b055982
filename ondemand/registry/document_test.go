package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestResolve(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2}`)
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	noHead := func(code int) fault {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			return r.Method == http.MethodHead && status(code)(w, r, n)
		}
	}
	noDigest := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest+"; charset=utf-8")
		w.Write(manifest)
		return true
	}
	for name, test := range map[string]struct {
		object string
		fault  fault
		is     func(error) bool
	}{
		"tag":                    {object: ":1"},
		"digest":                 {object: "@" + want.Digest.String()},
		"tag and digest":         {object: ":gone@" + want.Digest.String()},
		"HEAD refused":           {object: ":1", fault: noHead(403)},
		"HEAD not implemented":   {object: ":1", fault: noHead(405)},
		"no digest in headers":   {object: ":1", fault: noDigest},
		"fails twice":            {object: ":1", fault: first(2, status(503))},
		"unknown tag":            {object: ":2", is: errdefs.IsNotFound},
		"no tag":                 {object: "", is: errdefs.IsInvalidArgument},
		"bad digest":             {object: "@sha256:12", is: errdefs.IsInvalidArgument},
		"another digest":         {object: "@" + digest.FromString("other").String(), fault: noDigest, is: errdefs.IsDataLoss},
		"denied":                 {object: ":1", fault: status(403), is: errdefs.IsPermissionDenied},
		"throttled for too long": {object: ":1", fault: status(429), is: errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f := newRegistry(t, nil, httptest.NewServer)
			f.fail("manifests", test.fault)
			c := newClient(t, Options{})
			desc, err := c.Resolve(t.Context(), f.host()+"/library/app"+test.object)
			switch {
			case test.is != nil && !test.is(err):
				t.Errorf("got %v", err)
			case test.is == nil && (err != nil || desc.Digest != want.Digest || desc.Size != want.Size || desc.MediaType != want.MediaType):
				t.Errorf("got %+v, %v", desc, err)
			}
		})
	}
}

// A mirror without the capability is not trusted with a tag.
func TestResolveCapability(t *testing.T) {
	mirror, origin := newRegistry(t, nil, httptest.NewServer), newRegistry(t, nil, httptest.NewServer)
	dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n", origin.URL, mirror.URL))
	c := newClient(t, Options{HostsDir: dir})
	desc, err := c.Resolve(t.Context(), upstream+"/library/app:1")
	if err != nil || len(mirror.seen()) > 0 {
		t.Errorf("%v, the mirror was asked %d times", err, len(mirror.seen()))
	}
	if _, err := c.Document(t.Context(), upstream+"/library/app:1", desc); err != nil || len(mirror.seen()) != 1 {
		t.Errorf("%v, the mirror was asked %d times", err, len(mirror.seen()))
	}
}

func TestDocument(t *testing.T) {
	content := []byte(`{"architecture":"amd64"}`)
	desc := describes(content)
	huge := desc
	huge.Size = maxDocument + 1
	same := []byte(`{"architecture":"arm64"}`)
	for name, test := range map[string]struct {
		desc  ocispec.Descriptor
		fault fault
		is    func(error) bool
	}{
		"good": {desc: desc},
		"broken once": {desc: desc, fault: first(1, func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Length", "24")
			w.Write(content[:5])
			hangUp(w, r)
			return true
		})},
		"other content":     {desc: desc, fault: wholeBlob(same), is: errdefs.IsDataLoss},
		"other size":        {desc: desc, fault: wholeBlob(content[:3]), is: errdefs.IsFailedPrecondition},
		"encoded":           {desc: desc, fault: status(200, "Content-Encoding", "gzip"), is: errdefs.IsFailedPrecondition},
		"too large":         {desc: huge, is: errdefs.IsFailedPrecondition},
		"missing":           {desc: describes(same), is: errdefs.IsNotFound},
		"invalid digest":    {desc: ocispec.Descriptor{Digest: "sha256:../..", Size: 3}, is: errdefs.IsInvalidArgument},
		"a size below zero": {desc: ocispec.Descriptor{Digest: desc.Digest, Size: -1}, is: errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			f := newRegistry(t, content, httptest.NewServer)
			f.fail("blobs", test.fault)
			got, err := newClient(t, Options{}).Document(t.Context(), f.image(), test.desc)
			if test.is == nil && (err != nil || string(got) != string(content)) || test.is != nil && !test.is(err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestErrorShowsTheRegistrysMessage(t *testing.T) {
	f := newRegistry(t, nil, httptest.NewServer)
	f.fail("manifests", func(w http.ResponseWriter, r *http.Request, _ int) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"see https://u:hunter2@x/y?token=hunter2\nplease"}]}`)
		return true
	})
	_, err := newClient(t, Options{}).Resolve(t.Context(), f.image())
	if text := err.Error(); !strings.Contains(text, "DENIED: see https://x/y please") || strings.Contains(text, "hunter2") {
		t.Error(text)
	}
}
