package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/image-spec/identity"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestNerdctl does what nerdctl does with containerd's Go client: pull, a View of the image for VOLUME directories, run, exec, commit
// to a new image, which then runs, and removal. nerdctl pulls by containerd's transfer service, which uses our differ; before
// containerd 2.0 it pulled by the client, which unpacks with the walking differ.
func TestNerdctl(t *testing.T) {
	for i, p := range programs {
		for j, variant := range variants {
			if j == i%2 && !long() {
				continue // TestLifecycle does it
			}
			pull := (*story).pullByTransfer
			if p.image == "node" {
				pull = (*story).pullByClient
			}
			t.Run(p.image+"-"+variant, func(t *testing.T) { nerdctl(t, p, variant, pull) })
		}
	}
}

func nerdctl(t *testing.T, p program, variant string, pull func(*story, string)) {
	s := newStory(t, storyTime, lab.Options{Images: []string{p.image + "-" + variant}})
	ref := s.Ref(p.image + "-" + variant)
	pull(s, ref)
	img, err := s.Client().GetImage(s.ctx, ref)
	s.must(err)
	s.must(errors.Join(s.copiesVolume(img, "/etc/apt"), s.copiesVolume(img, "/var/lib/dpkg")))

	c := s.newContainer(img, "app", "/bin/sleep", "1000")
	task := s.newTask(c)
	s.noteSuperblocks()
	s.execInTask(task, "echo made by hand >/etc/marker; rm -r /var/lib/dpkg; cp /usr/bin/id /usr/local/bin/effective; chmod 4755 /usr/local/bin/effective")
	committed := s.commit(c, img, s.Host+"/committed:latest")
	s.deleteContainer(c)
	s.committedRuns(committed)
	s.runs(p, committed.Name())

	for _, name := range []string{committed.Name(), ref} {
		s.must(s.Client().ImageService().Delete(s.ctx, name, images.SynchronousDelete()))
	}
	s.released()
}

// pullByTransfer pulls as nerdctl 2 does with containerd 2.
func (s *story) pullByTransfer(ref string) {
	s.t.Helper()
	s.must(s.transfer(s.ctx, ref))
}

// pullByClient pulls as nerdctl does with containerd 1.7: the client unpacks, with the labels of a remote snapshotter.
func (s *story) pullByClient(ref string) {
	s.t.Helper()
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))})
	_, err := s.Client().Pull(s.ctx, ref, containerd.WithResolver(resolver), containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(lab.Snapshotter), containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)))
	s.must(err)
}

// copiesVolume reads a directory of an image as nerdctl does to fill a new volume: in a View whose key is a temporary directory.
func (s *story) copiesVolume(img containerd.Image, volume string) (err error) {
	diffIDs, err := img.RootFS(s.ctx)
	if err != nil {
		return err
	}
	ctx, release, err := s.Client().WithLease(s.ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	dir, volumeCopy := s.t.TempDir(), s.t.TempDir()
	sn := s.Client().SnapshotService(lab.Snapshotter)
	mounts, err := sn.View(ctx, dir, identity.ChainID(diffIDs).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Remove(context.WithoutCancel(ctx), dir)) }()
	s.noteSuperblocks()
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(dir, 0)) }()
	if err := os.CopyFS(filepath.Join(volumeCopy, "v"), os.DirFS(filepath.Join(dir, volume))); err != nil {
		return err
	}
	if entries, err := os.ReadDir(filepath.Join(volumeCopy, "v")); err != nil || len(entries) < 2 {
		return fmt.Errorf("volume %s was filled with %v, error %w", volume, entries, err)
	}
	return nil
}

// newContainer makes a container on a new snapshot of an image. Without arguments it runs the image's own command.
func (s *story) newContainer(img containerd.Image, id string, args ...string) containerd.Container {
	s.t.Helper()
	c, err := s.tryContainer(s.ctx, img, id, args...)
	s.must(err)
	return c
}

func (s *story) tryContainer(ctx context.Context, img containerd.Image, id string, args ...string) (containerd.Container, error) {
	spec := []oci.SpecOpts{oci.WithImageConfig(img), oci.WithNewPrivileges}
	if len(args) > 0 {
		spec = append(spec, oci.WithProcessArgs(args...))
	}
	return s.Client().NewContainer(ctx, id, containerd.WithImage(img), containerd.WithSnapshotter(lab.Snapshotter),
		containerd.WithNewSnapshot(id, img), containerd.WithNewSpec(spec...))
}

// newTask starts a container. What it prints is dropped.
func (s *story) newTask(c containerd.Container) containerd.Task {
	s.t.Helper()
	task, err := c.NewTask(s.ctx, cio.NullIO)
	s.must(err)
	s.must(task.Start(s.ctx))
	return task
}

// execInTask runs a shell script in a container and returns what it printed. More options may change the process.
func (s *story) execInTask(task containerd.Task, script string, opts ...oci.SpecOpts) string {
	s.t.Helper()
	out, err := s.tryExecInTask(task, script, opts...)
	s.must(err)
	return out
}

func (s *story) tryExecInTask(task containerd.Task, script string, opts ...oci.SpecOpts) (string, error) {
	spec, err := task.Spec(s.ctx)
	if err != nil {
		return "", err
	}
	opts = append([]oci.SpecOpts{oci.WithProcessArgs("/bin/sh", "-ec", script)}, opts...)
	if err := oci.ApplyOpts(s.ctx, nil, nil, spec, opts...); err != nil {
		return "", err
	}
	s.execs++
	var stdout, stderr bytes.Buffer
	process, err := task.Exec(s.ctx, fmt.Sprintf("exec%d", s.execs), spec.Process,
		cio.NewCreator(cio.WithStreams(nil, &stdout, &stderr), cio.WithFIFODir(s.t.TempDir())))
	if err != nil {
		return "", err
	}
	exited, err := process.Wait(s.ctx)
	if err == nil {
		err = process.Start(s.ctx)
	}
	if err != nil {
		return "", err
	}
	select {
	case <-exited:
	case <-s.ctx.Done():
		return "", context.Cause(s.ctx)
	}
	status, err := process.Delete(s.ctx) // after the output was copied
	if err == nil && status.ExitCode() != 0 {
		err = fmt.Errorf("%q: exit code %d: %s", script, status.ExitCode(), stderr.String())
	}
	return stdout.String(), err
}

// deleteContainer kills a container and removes it with its snapshot.
func (s *story) deleteContainer(c containerd.Container) {
	s.t.Helper()
	task, err := c.Task(s.ctx, nil)
	s.must(err)
	_, err = task.Delete(s.ctx, containerd.WithProcessKill)
	s.must(err)
	s.must(c.Delete(s.ctx, containerd.WithSnapshotCleanup))
}

// committedRuns expects that a container of the committed image has the changes, and that set-id programs in its new layer work.
func (s *story) committedRuns(img containerd.Image) {
	s.t.Helper()
	c := s.newContainer(img, "again", "/bin/sleep", "1000")
	task := s.newTask(c)
	s.noteSuperblocks()
	if out := s.execInTask(task, "cat /etc/marker; ls /var/lib"); !strings.HasPrefix(out, "made by hand\n") || strings.Contains(out, "dpkg") {
		s.t.Errorf("the committed image shows %q", out)
	}
	if out := s.execInTask(task, "/usr/local/bin/effective --user", oci.WithUIDGID(65534, 65534)); out != "0\n" {
		s.t.Errorf("the effective user of a set-id program is %q, want 0", out)
	}
	s.deleteContainer(c)
}
