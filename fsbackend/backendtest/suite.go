package backendtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// manyImages is how many layers a container image may have by containerd's own conformance suite.
const manyImages = 128

// Run runs the suite. newBackend makes a backend, image writes image n into dir and returns it.
func Run(t *testing.T, newBackend func(t *testing.T) fsbackend.Backend, image func(t testing.TB, dir string, n int) fsbackend.Image) {
	for name, test := range map[string]func(*testing.T, *stage){
		"Mount":              testMount,
		"MountTwice":         testMountTwice,
		"Flags":              testFlags,
		"Unmount nothing":    testUnmountNothing,
		"Unmount open file":  testUnmountOpenFile,
		"Unmount overlay":    testUnmountOverlay,
		"Reboot":             testReboot,
		"Concurrent":         testConcurrent,
		"Many images":        testManyImages,
		"Cancelled":          testCancelled,
		"Missing target":     testMissingTarget,
		"Damaged":            testDamaged,
		"Failure then mount": testFailureThenMount,
	} {
		t.Run(name, func(t *testing.T) {
			s := &stage{newBackend: newBackend, newImage: image}
			s.open(t)
			test(t, s)
		})
	}
}

func testMount(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	s.mount(t, p)
	p.mustRead(t)
	s.unmount(t, p)
	if _, err := os.Stat(filepath.Join(p.target, FileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there after Unmount: %v", err)
	}
}

func testMountTwice(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	s.mount(t, p)
	s.mount(t, p)
	if err := s.newBackend(t).Mount(t.Context(), p.image, p.target); err != nil {
		t.Errorf("mount by another backend: %v", err)
	}
	if n := len(mountsAt(t, p.target)); n != 1 {
		t.Errorf("%d mounts on the target, want 1", n)
	}
	p.mustRead(t)
	s.unmount(t, p)
}

func testFlags(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	s.mount(t, p)
	defer s.unmount(t, p)
	mounts := mountsAt(t, p.target)
	if len(mounts) != 1 || mounts[0].FSType != "erofs" {
		t.Fatalf("mount table has %+v for the target", mounts)
	}
	for _, want := range []string{"ro", "nosuid", "nodev"} {
		if !strings.Contains(","+mounts[0].Flags+",", ","+want+",") {
			t.Errorf("flags of the mount are %s, without %s", mounts[0].Flags, want)
		}
	}
}

func testUnmountNothing(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	s.unmount(t, p)
	s.mount(t, p)
	s.unmount(t, p)
	s.unmount(t, p)
	if err := s.backend.Unmount(t.Context(), filepath.Join(s.dir, "no", "such", "directory")); err != nil {
		t.Error(err)
	}
}

func testUnmountOpenFile(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	s.mount(t, p)
	f := p.open(t)
	s.unmount(t, p)
	mustMatch(t, f, p.n)
	removeFiles(t, p.image)
	mustMatch(t, f, p.n)
	f.Close()
}

func testUnmountOverlay(t *testing.T, s *stage) {
	upper, lower := s.prop(t, 1), s.prop(t, 2)
	s.mount(t, upper)
	s.mount(t, lower)
	o := overlay(t, upper.target, lower.target)
	defer o.Close()
	for _, p := range []prop{upper, lower} {
		s.unmount(t, p)
		removeFiles(t, p.image)
	}
	f, err := o.Open(FileName, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mustMatch(t, f, upper.n)

	// The mountpoints are free for other images at once.
	next := s.prop(t, 3)
	next.target = upper.target
	s.mount(t, next)
	next.mustRead(t)
	mustMatch(t, f, upper.n)
	s.unmount(t, next)
}

func testReboot(t *testing.T, s *stage) {
	props := []prop{s.prop(t, 1), s.prop(t, 2)}
	for _, p := range props {
		s.mount(t, p)
	}
	for _, p := range props {
		if err := unix.Unmount(p.target, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.backend = s.newBackend(t)
	for _, p := range props {
		s.mount(t, p)
		p.mustRead(t)
		s.unmount(t, p)
	}
}

func testConcurrent(t *testing.T, s *stage) {
	var props []prop
	for n := range 24 {
		props = append(props, s.prop(t, n))
	}
	for _, work := range []func(prop) error{
		func(p prop) error { return s.backend.Mount(t.Context(), p.image, p.target) },
		func(p prop) error { _, err := os.Stat(filepath.Join(p.target, FileName)); return err },
		func(p prop) error { return s.backend.Unmount(t.Context(), p.target) },
	} {
		var wg sync.WaitGroup
		for _, p := range props {
			wg.Go(func() {
				if err := work(p); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

func testManyImages(t *testing.T, s *stage) {
	var props []prop
	for n := range manyImages {
		p := s.prop(t, n)
		s.mount(t, p)
		props = append(props, p)
	}
	for _, p := range props {
		p.mustRead(t)
	}
	for _, p := range props {
		s.unmount(t, p)
	}
}

func testCancelled(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.backend.Mount(ctx, p.image, p.target); !errors.Is(err, context.Canceled) {
		t.Errorf("Mount with a cancelled context returned %v", err)
	}
	if n := len(mountsAt(t, p.target)); n != 0 {
		t.Errorf("%d mounts after a cancelled Mount", n)
	}
	s.mount(t, p)
	if err := s.backend.Unmount(ctx, p.target); err != nil {
		t.Errorf("Unmount with a cancelled context: %v", err)
	}
}

func testMissingTarget(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	p.target = filepath.Join(s.dir, "missing")
	err := s.backend.Mount(t.Context(), p.image, p.target)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), p.target) {
		t.Errorf("Mount on a missing directory returned %v", err)
	}
}

// overlay makes a read-only overlay mount that is attached nowhere.
func overlay(t *testing.T, lowers ...string) *mountapi.Mount {
	t.Helper()
	c, err := mountapi.Open("overlay")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, step := range []error{c.Set("lowerdir", strings.Join(lowers, ":")), c.Create()} {
		if step != nil {
			t.Fatal(step)
		}
	}
	m, err := c.Mount(0)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func removeFiles(t *testing.T, img fsbackend.Image) {
	t.Helper()
	for _, path := range []string{img.Meta, img.Data} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
