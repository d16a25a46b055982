package integration

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/slowproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// TestMirrorDies: of two mirrors one dies in the middle of a layer; the pull goes on from the other at the same byte.
func TestMirrorDies(t *testing.T) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{Images: []string{"nginx-gzip"}}))
	var mirrors [2]*netproxy.Proxy
	for i := range mirrors {
		m, err := s.Mirror()
		s.must(err)
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
	s.neverFellBack()
	s.runsNginx(ref)
}

// TestMirrorOfDockerHub: an image without a host in its name comes from the mirror that hosts.toml names for docker.io.
func TestMirrorOfDockerHub(t *testing.T) {
	s := newStory(t, storyTime, remoteCRIOptions(lab.Options{}))
	s.must(s.Push(s.ctx, lab.Layout("node-zstd"), s.Host+"/library/app:v1"))
	s.must(s.WriteHosts("docker.io", fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", s.RegistryURL())))
	k := newKubelet(s)
	k.pulls("app:v1", nil)
	k.cameFromDaemon("node-zstd")
	k.runsPod("app:v1", k.executes)
	k.removesAllImages()
	s.released()
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
// its own over them. Nobody is contacted on their account, and the image is what containerd unpacks. Nor is anybody contacted, or anything
// made, for a manifest that containerd has from elsewhere.
func TestForgedLabels(t *testing.T) {
	foreign, err := netproxy.New("http://127.0.0.1:1", netproxy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	s := newStory(t, storyTime, lab.Options{Announce: lab.AnnounceNothing})
	l := s.newLayer("file", 1<<20)
	l.Annotations = map[string]string{
		snapshotters.TargetRefLabel:            foreign.Addr() + "/app:1",
		snapshotters.TargetManifestDigestLabel: l.Digest.String(),
		snapshotters.TargetLayerDigestLabel:    l.Digest.String(),
		snapshotters.TargetImageLayersLabel:    l.Digest.String(),
	}
	ref := s.compose("forged-v1", l)
	s.must(s.transfer(s.ctx, ref))
	s.shows(s.ctx, ref, "file", "nothing")
	status, err := s.status()
	s.must(err)
	if f := status.Fallbacks["no-manifest"]; f.Count != 1 || !strings.Contains(f.Image, foreign.Addr()) {
		t.Errorf("fallbacks: %+v, want one for the labels that name %s", status.Fallbacks, foreign.Addr())
	}

	wanted := s.newLayer("wanted", 1<<20)
	ref = s.compose("wanted-v1", wanted)
	s.ctr("content", "fetch", "--plain-http", ref)
	s.must(s.Client().ContentStore().Delete(s.ctx, wanted.Digest))
	img, err := s.Client().GetImage(s.ctx, ref)
	s.must(err)
	_, err = s.Client().SnapshotService(s.Plugin()).Prepare(s.ctx, "forged", "", snapshots.WithLabels(map[string]string{
		remote.TargetLabel:                     wanted.diffID.String(),
		snapshotters.TargetRefLabel:            foreign.Addr() + "/app:1",
		snapshotters.TargetManifestDigestLabel: img.Target().Digest.String(),
		snapshotters.TargetLayerDigestLabel:    wanted.Digest.String(),
	}))
	s.must(err)
	if status, err = s.status(); err != nil || status.Fallbacks["no-source"].Count != 1 || len(s.instances()) != 1 {
		t.Errorf("error %v, fallbacks %+v, layers %v, want one for the source and the layer of the first image", err, status.Fallbacks, s.instances())
	}
	if requests := foreign.Requests(); len(requests) > 0 {
		t.Errorf("the foreign host was asked: %+v", requests)
	}
}
