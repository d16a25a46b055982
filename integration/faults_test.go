package integration

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/slowproxy"
)

// TestMirrorDies: of two mirrors one dies in the middle of a layer; the pull goes on from the other at the same byte.
func TestMirrorDies(t *testing.T) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{Images: []string{"nginx-gzip"}}))
	var mirrors [2]*netproxy.Proxy
	for i := range mirrors {
		m, err := netproxy.New(s.RegistryURL(), netproxy.Options{})
		s.must(err)
		t.Cleanup(func() { _ = m.Close() })
		mirrors[i] = m
	}
	const upstream = "registry.example"
	s.must(s.WriteHosts(upstream, fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n",
		mirrors[1].URL(), mirrors[0].URL(), mirrors[1].URL())))
	mirrors[0].KillAfter(20 << 20)
	ref := s.RefAt(upstream, "nginx-gzip")
	s.pullRemote(ref)
	select {
	case <-mirrors[0].Killed():
	default:
		t.Error("the first mirror still lives: nothing was shown")
	}
	var sent [2]int64
	for i, m := range mirrors {
		for _, r := range m.Requests() {
			if strings.Contains(r.Path, "/blobs/") && strings.HasPrefix(r.UserAgent, "erofs-snapshotter/") {
				sent[i] += r.Bytes
			}
		}
	}
	var size int64
	for _, l := range s.cachedLayers("nginx-gzip") {
		size += l.Size
	}
	t.Logf("layers of %d bytes: the mirrors sent %d and %d", size, sent[0], sent[1])
	if sent[0] == 0 || sent[1] == 0 || sent[0]+sent[1] < size {
		t.Errorf("the mirrors sent %d and %d bytes of %d", sent[0], sent[1], size)
	}
	if log := s.daemonLog(); strings.Contains(log, "containerd fetches") {
		t.Errorf("the daemon fell back:\n%s", log)
	}
	s.start(ref, "web", "sleep", "1000")
	if out := s.exec("web", "nginx -v 2>&1"); !strings.Contains(out, "nginx version") {
		t.Errorf("nginx -v: %q", out)
	}
	s.end("web")
}

// TestTokensExpire: a pull that takes longer than the tokens of the registry are valid, several times. The long form is one of 60 s.
func TestTokensExpire(t *testing.T) {
	link := slowproxy.Options{RoundTrip: 10 * time.Millisecond, BitsPerSecond: 26_000_000} // 15 s for the image
	if long() {
		link.BitsPerSecond = 6_500_000
	}
	s := newStory(t, storyTime, remoteOptions(lab.Options{
		Images:   []string{"nginx-gzip"},
		Registry: lab.Registry{Auth: lab.AuthToken, TokenLifetime: 5 * time.Second},
	}))
	slow, err := slowproxy.New(s.Host, link)
	s.must(err)
	t.Cleanup(func() { _ = slow.Close() })
	// The daemon reads the file again, since it has changed.
	secret := base64.StdEncoding.EncodeToString([]byte(credentials.Username + ":" + credentials.Password))
	s.must(os.WriteFile(s.DockerConfig(), fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, slow.Addr(), secret), 0o600))
	before := s.TokensIssued()
	start := time.Now()
	s.pullRemote(s.RefAt(slow.Addr(), "nginx-gzip"))
	t.Logf("pulled in %v with %d tokens, %d bytes over the slow link", time.Since(start).Round(time.Second), s.TokensIssued()-before, slow.Downstream())
	s.cameFromDaemon("nginx-gzip")
	if n := s.TokensIssued() - before; n < 4 {
		t.Errorf("%d tokens: they did not expire in the middle of the pull", n)
	}
}

// TestForgedLabels: an image whose manifest itself has the labels by which containerd announces layers, pulled where containerd does not write
// its own over them. Nobody is contacted on their account, and the image is what containerd unpacks.
func TestForgedLabels(t *testing.T) {
	foreign, err := netproxy.New("http://127.0.0.1:1", netproxy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	s := newStory(t, storyTime, lab.Options{Announce: lab.AnnounceNothing})
	l := s.newLayer("file", 1<<20)
	l.Annotations = map[string]string{
		"containerd.io/snapshot/cri.image-ref":       foreign.Addr() + "/app:1",
		"containerd.io/snapshot/cri.manifest-digest": l.Digest.String(),
		"containerd.io/snapshot/cri.layer-digest":    l.Digest.String(),
		"containerd.io/snapshot/cri.image-layers":    l.Digest.String(),
	}
	ref := s.compose("forged-v1", l)
	s.must(s.pullInto(s.Namespace, ref))
	if requests := foreign.Requests(); len(requests) > 0 {
		t.Errorf("the foreign host was asked: %+v", requests)
	}
	s.shows(s.Namespace, ref, "file", "nothing")
	status, err := s.status()
	s.must(err)
	if f := status.Fallbacks["no-manifest"]; f.Count != 1 || !strings.Contains(f.Image, foreign.Addr()) {
		t.Errorf("fallbacks: %+v, want one for the labels that name %s", status.Fallbacks, foreign.Addr())
	}
}
