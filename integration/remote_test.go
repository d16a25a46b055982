package integration

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// What follows is pulled straight from the registry: the access log shows ranged reads of the daemon for the layers, and nothing but manifests
// and configurations for containerd.

// remoteOptions completes those of a story whose daemon reads the registry itself.
func remoteOptions(o lab.Options) lab.Options {
	if o.Announce == lab.AnnounceNothing {
		o.Announce = lab.AnnounceTransfer
	}
	o.Registry.Record = true
	o.DaemonConfig += "\n[registry]\nhosts_dir = \"{{.HostsDir}}\"\n[credentials]\ndocker_config = \"{{.DockerConfig}}\"\n"
	return o
}

// credentials are what the lab's registries ask for.
var credentials = cri.AuthConfig{Username: "puller", Password: "secret"}

// pullRemote pulls an image with ctr, by containerd's transfer service.
func (s *story) pullRemote(ref string) {
	s.t.Helper()
	s.ctr("image", "pull", "--hosts-dir", s.HostsDir(), "--user", credentials.Username+":"+credentials.Password, "--snapshotter", s.Plugin(), ref)
	s.noteSuperblocks()
}

// cameFromDaemon expects that the daemon has fetched each layer once, by ranges, and containerd none.
func (s *story) cameFromDaemon(image string) {
	s.t.Helper()
	fetched := s.fetchedBy(image)
	for _, l := range s.cachedLayers(image) {
		if f := fetched[l.Digest.String()]; f.daemon != l.Size || f.containerd > 0 {
			s.t.Errorf("layer %s of %d bytes: the daemon fetched %d, containerd %d", l.Digest, l.Size, f.daemon, f.containerd)
		}
	}
	s.neverFellBack()
}

// neverFellBack expects that the daemon has left no layer to containerd.
func (s *story) neverFellBack() {
	s.t.Helper()
	if log := s.daemonLog(); strings.Contains(log, "containerd fetches") {
		s.t.Errorf("the daemon fell back:\n%s", log)
	}
}

// cameFromContainerd expects that containerd has fetched each layer.
func (s *story) cameFromContainerd(image string) {
	s.t.Helper()
	fetched := s.fetchedBy(image)
	for _, l := range s.cachedLayers(image) {
		if f := fetched[l.Digest.String()]; f.containerd < l.Size || f.daemon > 0 {
			s.t.Errorf("layer %s of %d bytes: the daemon fetched %d, containerd %d", l.Digest, l.Size, f.daemon, f.containerd)
		}
	}
}

// fetched is how many bytes of a blob were sent to whom.
type fetched struct{ daemon, containerd int64 }

// fetchedBy reads the registry's access log. A request of the daemon for a layer that is not ranged is an error.
func (s *story) fetchedBy(image string) map[string]fetched {
	s.t.Helper()
	layers := map[string]bool{}
	for _, l := range s.cachedLayers(image) {
		layers[l.Digest.String()] = true
	}
	all := map[string]fetched{}
	for _, r := range s.RegistryRequests() {
		_, blob, ok := strings.Cut(r.Path, "/blobs/")
		if !ok || r.Method != http.MethodGet || !layers[blob] || r.Status >= 300 {
			continue
		}
		f := all[blob]
		if strings.HasPrefix(r.UserAgent, "erofs-snapshotter/") {
			if r.Status != http.StatusPartialContent || r.Range == "" {
				s.t.Errorf("request of the daemon without a range: %+v", r)
			}
			f.daemon += r.Bytes
		} else {
			f.containerd += r.Bytes
		}
		all[blob] = f
	}
	return all
}

func (s *story) daemonLog() string {
	s.t.Helper()
	log, err := s.Log("snapshotter")
	s.must(err)
	return log
}

// TestRemoteCtr: containerd 2.4 by its transfer service, with TLS and token authentication.
func TestRemoteCtr(t *testing.T) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{
		Images: []string{"nginx-gzip"}, Registry: lab.Registry{TLS: true, Auth: lab.AuthToken},
	}))
	ref := s.Ref("nginx-gzip")
	s.pullRemote(ref)
	s.cameFromDaemon("nginx-gzip")
	s.runsNginx(ref)
	s.removeImages(ref)
	s.released()
}

// TestRemoteCRITransfer: containerd 2.4 for a kubelet, by its transfer service, with basic authentication; the credentials are those of the
// kubelet, which reaches containerd's image service through the daemon.
func TestRemoteCRITransfer(t *testing.T) {
	s := newStory(t, storyTime, remoteCRIOptions(lab.Options{Registry: lab.Registry{TLS: true, Auth: lab.AuthBasic}}))
	s.must(os.Remove(s.DockerConfig())) // nobody but the kubelet knows them
	k := newKubelet(s)
	k.images = cri.NewImageServiceClient(s.dial(s.SnapshotterAddress()))
	k.pullsAndRuns("node-zstd", &credentials)
}

// TestRemoteCRILocal: containerd 2.4 for a kubelet, by its older way to pull.
func TestRemoteCRILocal(t *testing.T) {
	s := newStory(t, storyTime, remoteCRIOptions(lab.Options{Announce: lab.AnnounceLocal, Registry: lab.Registry{Auth: lab.AuthBasic}}))
	newKubelet(s).pullsAndRuns("node-zstd", &credentials)
}

// TestRemoteCtrContainerd21: containerd 2.1 by its transfer service.
func TestRemoteCtrContainerd21(t *testing.T) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{Containerd: lab.Containerd21, Images: []string{"nginx-gzip"}}))
	ref := s.Ref("nginx-gzip")
	s.ctr("image", "pull", "--plain-http", "--snapshotter", s.Plugin(), ref)
	s.cameFromDaemon("nginx-gzip")
	s.runsNginx(ref)
	s.removeImages(ref)
	s.released()
}

// TestRemoteContainerd21: containerd 2.1 for a kubelet.
func TestRemoteContainerd21(t *testing.T) {
	s := newStory(t, storyTime, remoteCRIOptions(lab.Options{Containerd: lab.Containerd21}))
	newKubelet(s).pullsAndRuns("node-zstd", nil)
}

// TestRemoteContainerd17: containerd 1.7 for a kubelet, with the plugin name that is free in that version.
func TestRemoteContainerd17(t *testing.T) {
	s := newStory(t, storyTime, remoteCRIOptions(lab.Options{Containerd: lab.Containerd17, Announce: lab.AnnounceLocal, PluginName: "erofs"}))
	newKubelet(s).pullsAndRuns("node-zstd", nil)
}

// TestCtrContainerd17: ctr of containerd 1.7 announces nothing, so containerd fetches and unpacks, the daemon converts, and the image runs.
func TestCtrContainerd17(t *testing.T) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{Containerd: lab.Containerd17, Announce: lab.AnnounceLocal, Images: []string{"nginx-gzip"}}))
	ref := s.Ref("nginx-gzip")
	s.ctr("image", "pull", "--plain-http", "--snapshotter", s.Plugin(), ref)
	s.cameFromContainerd("nginx-gzip")
	s.within(time.Minute, "layers are EROFS", s.allConverted)
	s.runsNginx(ref)
	s.removeImages(ref)
	s.released()
}

// remoteCRIOptions are remoteOptions for a kubelet and the node image.
func remoteCRIOptions(o lab.Options) lab.Options {
	o.CRI, o.Images = true, []string{"node-zstd"}
	return remoteOptions(o)
}

// pullsAndRuns pulls the node image, which must come from the daemon, and runs it.
func (k kubelet) pullsAndRuns(image string, auth *cri.AuthConfig) {
	k.t.Helper()
	ref := k.Ref(image)
	k.pulls(ref, auth)
	if auth != nil {
		k.pullsPause(auth)
	}
	k.cameFromDaemon(image)
	k.runsPod(ref, k.executes)
	k.removesAllImages()
	k.released()
}

// pullsPause pulls the image of a pod's sandbox, for which nobody gives credentials later.
func (k kubelet) pullsPause(auth *cri.AuthConfig) {
	k.t.Helper()
	_, err := k.images.PullImage(k.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: k.Ref("pause-gzip")}, Auth: auth})
	k.must(err)
}

// allConverted is an error while a layer is still a directory.
func (s *story) allConverted() error {
	status, err := s.status()
	if err != nil {
		return err
	}
	for _, l := range status.Layers {
		if l.Kind != "erofs" {
			return fmt.Errorf("layer %s is a %s", l.Instance, l.Kind)
		}
	}
	return nil
}
