package integration

import (
	"os"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestPrivateImage: a kubelet has told the credentials of a private registry once, with the pull of an image. Its container reads missing data also
// from daemons that have started since: after one that was stopped, and after one that was killed.
func TestPrivateImage(t *testing.T) {
	for _, auth := range []lab.Auth{lab.AuthBasic, lab.AuthToken} {
		t.Run(string(auth), func(t *testing.T) {
			const image = "node-" + estargzFormat
			s := newLazyStory(t, storyTime, lab.Options{CRI: true, Images: []string{image}, Registry: lab.Registry{TLS: true, Auth: auth}})
			s.must(os.Remove(s.DockerConfig())) // nobody but the kubelet knows them
			k := newKubelet(s)
			k.images = cri.NewImageServiceClient(s.dial(s.SnapshotterAddress()))
			ref := s.Ref(image)
			k.pulls(ref, &credentials)
			k.pullsPause(&credentials)
			k.runsPod(ref, func(container string) {
				k.restartsDaemon(k.StopSnapshotter)
				k.readsMissing(container, image, "/usr/bin/perl*")
				k.restartsDaemon(k.KillSnapshotter)
				k.readsMissing(container, image, "/usr/lib/x86_64-linux-gnu/lib[a-m]*")
			})
			k.neverFellBack()
			k.removesAllImages()
			k.released()
		})
	}
}

// readsMissing has a container read files of which the daemon fetches data from the registry.
func (k kubelet) readsMissing(container, image, files string) {
	k.t.Helper()
	before := k.sentToDaemon(image)
	resp, err := k.runtime.ExecSync(k.ctx, &cri.ExecSyncRequest{
		ContainerId: container, Cmd: []string{"/bin/sh", "-c", "cat " + files + " >/dev/null"}, Timeout: 60,
	})
	k.must(err)
	if resp.ExitCode != 0 {
		k.t.Errorf("%s: exit code %d, errors %q", files, resp.ExitCode, resp.Stderr)
	}
	n := k.sentToDaemon(image) - before
	k.t.Logf("%s: %d bytes fetched", files, n)
	if n == 0 {
		k.t.Errorf("nothing of %s was missing, so this test proves nothing", files)
	}
}

// sentToDaemon is how many bytes of an image's layers the daemon has fetched so far.
func (s *story) sentToDaemon(image string) (sum int64) {
	s.t.Helper()
	for _, f := range s.fetchedBy(image) {
		sum += f.daemon
	}
	return sum
}
