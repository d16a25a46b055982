package integration

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestLifecycle is the life of four images by ctr: pull, run, exec, diff, commit, removal, and then nothing is left. TestNerdctl does
// the other variant of each image by the Go client; in the long form both do all.
func TestLifecycle(t *testing.T) {
	for i, p := range programs {
		for j, variant := range variants {
			if j == i%2 || long() {
				t.Run(p.image+"-"+variant, func(t *testing.T) { lifecycle(t, p, variant, lab.Options{}) })
			}
		}
	}
}

// TestLifecycleLoopDevices is the same where the kernel cannot mount files.
func TestLifecycleLoopDevices(t *testing.T) {
	lifecycle(t, programs[0], "zstd", lab.Options{DaemonConfig: "[mount]\nmode = \"loop\"\n"})
}

func lifecycle(t *testing.T, p program, variant string, opts lab.Options) {
	image := p.image + "-" + variant
	opts.Images = []string{image}
	s := newStory(t, storyTime, opts)
	ref := s.pull(image)
	if n := len(s.instances()); n != p.layers {
		t.Errorf("%d layer instances, want %d", n, p.layers)
	}
	s.runs(p, ref)
	s.start(ref, "box", "/bin/sleep", "1000")
	if n := len(s.layerMounts()); n != p.layers {
		t.Errorf("%d layers are mounted, want %d", n, p.layers)
	}
	s.setID("box")
	want := []string{"root/", "root/new", "etc/", "etc/.wh.debian_version", "etc/cron.daily/", "etc/cron.daily/x"}
	for name := range strings.FieldsSeq(s.exec("box", "ls /etc/cron.daily")) {
		want = append(want, "etc/cron.daily/.wh."+name)
	}
	s.exec("box", `echo something new >/root/new; rm /etc/debian_version; rm -r /etc/cron.daily; mkdir /etc/cron.daily; echo x >/etc/cron.daily/x`)
	s.differs("box", want)
	s.commits("box")
	s.removeImages(ref)
	s.released()
}

// runs lets an image do what it is for.
func (s *story) runs(p program, ref string) {
	s.t.Helper()
	if p.prints != nil {
		if out := s.ctr("run", "--rm", "--snapshotter", lab.Snapshotter, ref, "once"); !p.prints.MatchString(out) {
			s.t.Errorf("the container printed %q, want %s", out, p.prints)
		}
		return
	}
	s.start(ref, "server")
	s.answers(s.pid("server"))
	s.end("server")
}

// pid is the process of a container's task.
func (s *story) pid(container string) int {
	s.t.Helper()
	for line := range strings.Lines(s.ctr("task", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == container {
			pid, err := strconv.Atoi(f[1])
			s.must(err)
			return pid
		}
	}
	s.t.Fatalf("container %s has no task", container)
	return 0
}

// setID expects that set-id programs of the image raise the rights of an ordinary user, though layers are mounted nosuid in the
// host's tree: passwd has to read /etc/shadow for this, as root, and chage as its group.
func (s *story) setID(container string) {
	s.t.Helper()
	const nobody = "65534:65534"
	if out, err := s.tryExec(container, "cat /etc/shadow", nobody); err == nil {
		s.t.Errorf("an ordinary user reads /etc/shadow: %q", out)
	}
	if out := s.exec(container, "passwd --status nobody", nobody); !strings.HasPrefix(out, "nobody ") {
		s.t.Errorf("passwd --status as an ordinary user printed %q", out)
	}
	if out := s.exec(container, "chage --list nobody", nobody); !strings.Contains(out, "Last password change") {
		s.t.Errorf("chage --list as an ordinary user printed %q", out)
	}
	s.exec(container, "cp /usr/bin/id /usr/local/bin/effective; chmod 4755 /usr/local/bin/effective")
	if out := s.exec(container, "/usr/local/bin/effective --user", nobody); out != "0\n" {
		s.t.Errorf("the effective user of a set-id program is %q, want 0", out)
	}
	s.exec(container, "rm /usr/local/bin/effective")
}

// differs expects that the layer that containerd makes of a container's changes holds these entries, and perhaps more directories.
func (s *story) differs(container string, want []string) {
	s.t.Helper()
	out := s.ctr("snapshots", "--snapshotter", lab.Snapshotter, "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", container)
	var got []string
	for r := tar.NewReader(strings.NewReader(out)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		s.must(err)
		if h.Typeflag != tar.TypeDir || slices.Contains(want, h.Name) {
			got = append(got, h.Name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.t.Errorf("the diff holds %q, want %q", got, want)
	}
}

// commits ends a container, makes a committed snapshot of its snapshot, and looks at it from above.
func (s *story) commits(container string) {
	s.t.Helper()
	snapshots := []string{"snapshots", "--snapshotter", lab.Snapshotter}
	s.ctr("task", "rm", "--force", container)
	s.ctr(snapshots, "commit", "committed", container)
	s.ctr("container", "rm", "--keep-snapshot", container)
	target := s.t.TempDir()
	s.ctr(snapshots, "prepare", "above", "committed")
	mounts, err := s.Client().SnapshotService(lab.Snapshotter).Mounts(s.ctx, "above")
	s.must(err)
	s.noteSuperblocks()
	s.must(mounts[0].Mount(target))
	defer unmount(s.t, target)
	if b, err := os.ReadFile(filepath.Join(target, "root/new")); string(b) != "something new\n" {
		s.t.Errorf("the committed file holds %q, error %v", b, err)
	}
	if entries, err := os.ReadDir(filepath.Join(target, "etc/cron.daily")); len(entries) != 1 {
		s.t.Errorf("the directory that was made anew holds %v, error %v", entries, err)
	}
	if _, err := os.Stat(filepath.Join(target, "etc/debian_version")); !os.IsNotExist(err) {
		s.t.Errorf("the deleted file: %v, want that it does not exist", err)
	}
	if usage := s.ctr(snapshots, "usage", "-b", "committed"); !strings.Contains(usage, "committed") {
		s.t.Errorf("usage: %q", usage)
	}
	s.ctr(snapshots, "rm", "above")
	s.ctr(snapshots, "rm", "committed")
}

func unmount(t *testing.T, target string) {
	t.Helper()
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		t.Error(err)
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}
