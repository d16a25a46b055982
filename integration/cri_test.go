package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestCRI is what a kubelet does: it pulls an image, starts a pod with a container, reads its log, runs a command in it, asks what it
// uses, and removes everything. The pod is on the host's network, so it needs no CNI plugins.
func TestCRI(t *testing.T) {
	s := newStory(t, storyTime, lab.Options{CRI: true, Images: []string{"node-zstd"}})
	k := newKubelet(s)
	ref := s.Ref("node-zstd")
	k.pulls(ref, nil)
	k.runsPod(ref, func(container string) {
		k.executes(container)
		k.measures(container, ref)
	})
	k.removesAllImages()
	s.released()
}

// TestPodWithoutRegistry: images that were imported start when there is no registry. The pause image must never need the network.
func TestPodWithoutRegistry(t *testing.T) {
	s := newStory(t, storyTime, remoteCRIOptions(lab.Options{}))
	s.must(s.StopRegistry())
	for _, image := range []string{"pause-gzip", "node-zstd"} {
		archive := filepath.Join(t.TempDir(), "image.tar")
		if out, err := exec.Command("tar", "-C", lab.Layout(image), "-cf", archive, ".").CombinedOutput(); err != nil {
			t.Fatalf("tar: %v: %s", err, out)
		}
		s.ctr("--namespace", "k8s.io", "image", "import", "--index-name", s.Ref(image), "--snapshotter", s.Plugin(), archive)
	}
	k := newKubelet(s)
	k.runsPod(s.Ref("node-zstd"), k.executes)
	k.removesAllImages()
	s.released()
}

// kubelet is a story as seen from Kubernetes.
type kubelet struct {
	*story
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

func newKubelet(s *story) kubelet {
	s.t.Helper()
	return kubelet{s, cri.NewRuntimeServiceClient(s.dial(s.ContainerdAddress())), cri.NewImageServiceClient(s.dial(s.ContainerdAddress()))}
}

// dial connects to a unix socket until the story ends.
func (s *story) dial(address string) *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	s.must(err)
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// runsPod starts a pod with the node image, calls do with its container, and removes both.
func (k kubelet) runsPod(ref string, do func(container string)) {
	k.t.Helper()
	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: k.Namespace},
		LogDirectory: k.t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    "/" + k.Namespace,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		},
	}
	sandbox, err := k.runtime.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: pod})
	k.must(err)
	container := k.runs(sandbox.PodSandboxId, pod, ref)
	k.noteSuperblocks()
	do(container)
	_, err = k.runtime.StopContainer(k.ctx, &cri.StopContainerRequest{ContainerId: container})
	k.must(err)
	_, err = k.runtime.RemoveContainer(k.ctx, &cri.RemoveContainerRequest{ContainerId: container})
	k.must(err)
	_, err = k.runtime.StopPodSandbox(k.ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
	k.must(err)
	_, err = k.runtime.RemovePodSandbox(k.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
	k.must(err)
}

func (k kubelet) pulls(ref string, auth *cri.AuthConfig) {
	k.t.Helper()
	_, err := k.images.PullImage(k.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	k.must(err)
	if n := len(k.instances()); n != 3 {
		k.t.Errorf("%d layer instances after the pull, want 3", n)
	}
}

// runs starts the image's own command, which prints a line and ends, in a shell that then waits.
func (k kubelet) runs(sandbox string, pod *cri.PodSandboxConfig, ref string) string {
	k.t.Helper()
	const log = "app.log"
	created, err := k.runtime.CreateContainer(k.ctx, &cri.CreateContainerRequest{
		PodSandboxId:  sandbox,
		SandboxConfig: pod,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "app"},
			Image:    &cri.ImageSpec{Image: ref},
			Command:  []string{"/bin/sh", "-c", "node /app/index.js && exec sleep 1000"},
			LogPath:  log,
			Linux:    &cri.LinuxContainerConfig{},
		},
	})
	k.must(err)
	_, err = k.runtime.StartContainer(k.ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	k.must(err)
	k.within(30*time.Second, "log line", func() error {
		b, err := os.ReadFile(filepath.Join(pod.LogDirectory, log))
		if err == nil && !strings.Contains(string(b), " stdout F ready node v") {
			err = fmt.Errorf("the log holds %q", b)
		}
		return err
	})
	return created.ContainerId
}

func (k kubelet) executes(container string) {
	k.t.Helper()
	resp, err := k.runtime.ExecSync(k.ctx, &cri.ExecSyncRequest{
		ContainerId: container, Cmd: []string{"/bin/sh", "-c", "echo written >/new && cat /new && node --version"}, Timeout: 30,
	})
	k.must(err)
	if out := string(resp.Stdout); resp.ExitCode != 0 || !strings.HasPrefix(out, "written\nv") {
		k.t.Errorf("exec: exit code %d, output %q, errors %q", resp.ExitCode, out, resp.Stderr)
	}
}

// measures waits for the numbers on which a kubelet bases its decisions: what the container wrote, and what images take.
func (k kubelet) measures(container, ref string) {
	k.t.Helper()
	k.within(30*time.Second, "statistics", func() error {
		stats, err := k.runtime.ContainerStats(k.ctx, &cri.ContainerStatsRequest{ContainerId: container})
		if err != nil {
			return err
		}
		if used := stats.GetStats().GetWritableLayer().GetUsedBytes().GetValue(); used < 4096 {
			return fmt.Errorf("the writable layer takes %d bytes", used)
		}
		fs, err := k.images.ImageFsInfo(k.ctx, &cri.ImageFsInfoRequest{})
		if err != nil {
			return err
		}
		for _, f := range fs.ImageFilesystems {
			// The node image takes about 300 MB.
			if used := f.GetUsedBytes().GetValue(); f.GetFsId().GetMountpoint() == k.SnapshotterRoot() && used > 100<<20 {
				k.t.Logf("images take %d MiB", used>>20)
				return nil
			}
		}
		return fmt.Errorf("image filesystems: %v, want one at %s with more than 100 MiB", fs.ImageFilesystems, k.SnapshotterRoot())
	})
	status, err := k.images.ImageStatus(k.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	k.must(err)
	if status.GetImage().GetSize() < 50<<20 {
		k.t.Errorf("image status: %v", status)
	}
}

func (k kubelet) removesAllImages() {
	k.t.Helper()
	list, err := k.images.ListImages(k.ctx, &cri.ListImagesRequest{})
	k.must(err)
	for _, image := range list.Images {
		_, err := k.images.RemoveImage(k.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image.Id}})
		k.must(err)
	}
	k.collect()
}
