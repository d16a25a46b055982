package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// TestKillAtEveryStep kills a process at each named step of a tour, starts anew, and expects that nothing acknowledged is
// lost and nothing is left over.
func TestKillAtEveryStep(t *testing.T) {
	newRoot(t) // skips without the rights
	steps := map[string]int{}
	for n := 1; ; n++ {
		root := newRoot(t)
		did, killed := runChild(t, root, 0, childKillAt+"="+strconv.Itoa(n))
		if !killed {
			break
		}
		step := did[len(did)-1]
		steps[step]++
		if !strings.HasPrefix(step, "prepare/") {
			// The repair is killed too, at its first step, if it has any.
			if again, killed := runChild(t, root, 0, childKillAt+"=1", childOnlyStart+"=1"); killed {
				steps["repair: "+again[len(again)-1]]++
			}
		}
		when := fmt.Sprintf("step %d (%s)", n, step)
		s := checkAfterCrash(t, root, when)
		checkAcknowledged(t, s, when, did)
		must(t, s.Close())
		if t.Failed() {
			break
		}
	}
	t.Logf("killed at %v", steps)
	for _, want := range []string{
		"prepare/directory", "prepare/entered", "prepare/mounted", "layerstore/adopt/made", "layerstore/adopt/named",
		"layerstore/adopt/renamed", "commit/adopted", "commit/done", "layerstore/build/filled", "layerstore/build/written",
		"layerstore/build/renamed", "convert/made", "convert/replaced", "remove/done", "collect/discarded", "collect/disowning",
		"collect/disowned", "collect/unmounted", "repair: layerstore/return/renamed", "repair: collect/discarded",
	} {
		if steps[want] == 0 {
			t.Errorf("the tour does not reach %s", want)
		}
	}
}

// TestKillAtRandom kills a busy process again and again on one root directory. EROFS_TEST_KILLS says how often.
func TestKillAtRandom(t *testing.T) {
	root := newRoot(t)
	kills := 15
	if v := os.Getenv("EROFS_TEST_KILLS"); v != "" {
		var err error
		kills, err = strconv.Atoi(v)
		must(t, err)
	}
	for i := range kills {
		after := time.Duration(20+rand.IntN(400)) * time.Millisecond
		if out, killed := runChild(t, root, after); !killed {
			t.Fatalf("round %d: the child ended by itself: %s", i, out)
		}
		must(t, checkAfterCrash(t, root, fmt.Sprintf("round %d", i)).Close())
		if t.Failed() {
			return
		}
	}
	s := start(t, crashed(root))
	for removeLeaves(t, s) > 0 {
	}
	must(t, s.Cleanup(t.Context()))
	for _, sub := range []string{"layers", "m", "snapshots"} {
		if left := list(filepath.Join(root, sub)); len(left) > 0 {
			t.Errorf("%s: left: %v", sub, left)
		}
	}
}

func removeLeaves(t *testing.T, s *Snapshotter) (removed int) {
	must(t, s.Walk(t.Context(), func(c context.Context, info snapshots.Info) error {
		err := s.Remove(c, info.Name)
		if err == nil {
			removed++
		} else if !errdefs.IsFailedPrecondition(err) {
			return err
		}
		return nil
	}))
	return removed
}

// checkAcknowledged checks that what the child said it did is so.
func checkAcknowledged(t *testing.T, s *Snapshotter, when string, did []string) {
	t.Helper()
	for _, name := range []string{"base", "child", "pulled"} {
		if slices.Contains(did, "removing "+name) {
			continue
		}
		info, err := s.Stat(t.Context(), name)
		committed := err == nil && info.Kind == snapshots.KindCommitted
		if slices.Contains(did, "committed "+name) && !committed {
			t.Errorf("%s: the committed snapshot %s is lost", when, name)
		}
		if slices.Contains(did, "wrote "+name) && !committed {
			// checkAfterCrash has looked into the committed ones.
			wantContent(t, filepath.Join(activeUpper(t, s, name+"-active"), name), name)
		}
	}
}

// runChild runs a child on root, and kills it after a time unless that is zero. It returns the lines that the child wrote.
func runChild(t *testing.T, root string, after time.Duration, env ...string) (lines []string, killed bool) {
	t.Helper()
	var b strings.Builder
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(append(os.Environ(), childRoot+"="+root), env...)
	cmd.Stdout, cmd.Stderr = &b, &b
	must(t, cmd.Start())
	if after > 0 {
		time.AfterFunc(after, func() { cmd.Process.Kill() })
	}
	err := cmd.Wait()
	lines = strings.Split(strings.TrimSpace(b.String()), "\n")
	if err == nil {
		return lines, false
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signal() == syscall.SIGKILL {
		return lines, true
	}
	t.Fatalf("child: %v\n%s", err, b.String())
	return nil, false
}

// checkAfterCrash opens the root of a killed process and checks that what is there is whole. The caller closes what it returns.
func checkAfterCrash(t *testing.T, root, when string) *Snapshotter {
	t.Helper()
	s, err := New(t.Context(), crashed(root))
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if _, err := s.restoreAll(t.Context()); err != nil { // what was not synced
		t.Errorf("%s: %v", when, err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	if err := checkConsistent(t.Context(), s); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	parents := map[string]string{}
	kinds := map[string]snapshots.Kind{}
	must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		parents[info.Name], kinds[info.Name] = info.Parent, info.Kind
		return nil
	}))
	for key, kind := range kinds {
		want := chainFiles(key, kind, parents)
		if err := checkFiles(t, s, key, kind, want); err != nil {
			t.Errorf("%s: %s snapshot %s: %v", when, kind, key, err)
		}
	}
	return s
}

// chainFiles returns the names of the files that a snapshot must show.
func chainFiles(key string, kind snapshots.Kind, parents map[string]string) (files []string) {
	if kind != snapshots.KindCommitted {
		key = parents[key]
	}
	for ; key != ""; key = parents[key] {
		files = append(files, key)
	}
	return files
}

func checkFiles(t *testing.T, s *Snapshotter, key string, kind snapshots.Kind, want []string) error {
	mounts, err := s.Mounts(t.Context(), key)
	if kind == snapshots.KindCommitted {
		mounts, err = s.View(t.Context(), "check", key)
		defer s.Remove(t.Context(), "check")
	}
	if err != nil {
		return err
	}
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	defer mount.UnmountAll(dir, 0)
	for _, name := range want {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if string(b) != name {
			return fmt.Errorf("file %s contains %q", name, b)
		}
	}
	for _, name := range list(dir) {
		// What an active snapshot wrote itself may be there.
		if !slices.Contains(want, name) && !(kind == snapshots.KindActive && name+"-active" == key) {
			return fmt.Errorf("unexpected file %s", name)
		}
	}
	return nil
}
