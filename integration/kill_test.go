package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// killedImages are what TestKill pulls, starts and removes. They share their lowest layer, with each other and with the witness.
var killedImages = []string{"nginx-gzip", "node-zstd"}

const (
	// killsInShort and killsInLong are how often the daemon is killed. EROFS_TORTURE_KILLS says it exactly.
	killsInShort, killsInLong = 25, 200
	// bystanders is how many of the containers that were started between kills go on running.
	bystanders = 4
	// killedCollection is how long after a removal the daemon may still be collecting.
	killedCollection = 500 * time.Millisecond
	// reconnectTime is how long containerd may take to find the daemon again. It waits up to 3 s between two attempts.
	reconnectTime = 20 * time.Second
)

// TestKill ends the daemon with SIGKILL again and again, at random moments of pulls, container starts and removals, some of them in
// its repair of the kill before. Whatever was being done may fail. But containers go on reading right bytes, every layer that is
// visible is whole, the next pull succeeds, and nothing is orphaned.
func TestKill(t *testing.T) {
	t.Run("erofs", func(t *testing.T) { kill(t, lab.Differ, 1, "") })
	// Layers are in use before they are synced.
	t.Run("sync after", func(t *testing.T) { kill(t, lab.Differ, 3, "[conversion]\nsync = \"after\"\n") })
	// Layers are unpacked into directories, and converted while containers start on them.
	t.Run("directories", func(t *testing.T) { kill(t, "walking", 3, "") })
}

func kill(t *testing.T, differ string, part int, config string) {
	kills, seed := tortureInput(t)
	kills = (kills + part - 1) / part
	t.Logf("%d kills, EROFS_TORTURE_SEED=%d", kills, seed)
	s := newStory(t, time.Minute+time.Duration(kills)*10*time.Second, lab.Options{
		Images:       append([]string{"java-gzip"}, killedImages...),
		Differ:       differ,
		DaemonConfig: config + "[collection]\ngrace = \"200ms\"\n", // or few pulls would convert anything
	})
	k := &torture{
		story:   s,
		random:  rand.New(rand.NewPCG(seed, 0)),
		layers:  newLayerCheck(s, differ == lab.Differ),
		present: map[string]bool{},
		took:    map[string]time.Duration{},
		results: map[string][2]int{},
	}
	witness := s.pull("java-gzip")
	s.startReader(witness, "witness")
	k.learn()
	for k.killed < kills {
		k.round()
	}
	t.Logf("killed %d times, %d of them during a start of the daemon; succeeded, failed: pulls %d, starts %d, removals %d",
		k.killed, k.killedEarly, k.results["pull"], k.results["start"], k.results["remove"])
	if kills >= killsInShort && k.results["pull"][1] == 0 {
		t.Error("no pull was cut short: the kills came too late, so this test proves nothing")
	}
	k.finish(witness)
}

func tortureInput(t *testing.T) (kills int, seed uint64) {
	kills, seed = killsInShort, rand.Uint64()
	if long() {
		kills = killsInLong
	}
	if text := os.Getenv("EROFS_TORTURE_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("EROFS_TORTURE_KILLS=%q: want how often to kill", text)
		}
		kills = n
	}
	if text := os.Getenv("EROFS_TORTURE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return kills, seed
}

// torture is a story with an enemy.
type torture struct {
	*story
	random  *rand.Rand
	layers  *layerCheck
	present map[string]bool          // images that were pulled
	took    map[string]time.Duration // what "pull IMAGE", "start IMAGE" and "remove IMAGE" take when nobody is killed
	alive   []string                 // containers that were started between kills, the oldest first

	containers          int // makes names
	killed, killedEarly int
	results             map[string][2]int // successes and failures
}

// learn does everything once in peace.
func (k *torture) learn() {
	k.t.Helper()
	for _, image := range killedImages {
		for _, action := range []string{"pull", "start", "remove"} {
			if action == "remove" {
				k.must(k.layers.learn())
			}
			start := time.Now()
			k.must(k.do(action, image, "lesson-"+image))
			k.took[action+" "+image] = time.Since(start)
			if action == "start" {
				k.must(k.clear("lesson-" + image))
			}
		}
	}
	k.t.Logf("in peace: %v", k.took)
}

// round does one thing and kills the daemon meanwhile.
func (k *torture) round() {
	k.t.Helper()
	image := killedImages[k.random.IntN(len(killedImages))]
	action := k.choose(image)
	k.containers++
	id := fmt.Sprintf("c%d", k.containers)
	type result struct {
		err  error
		took time.Duration
	}
	done := make(chan result, 1)
	go func() {
		start := time.Now()
		err := k.do(action, image, id)
		done <- result{err, time.Since(start)}
	}()
	moment := k.took[action+" "+image]
	if action == "remove" {
		moment += killedCollection
	}
	k.sleep(k.below(moment))
	k.kill()
	k.restart()
	r := <-done
	k.note(action, image, r.err)
	if r.err == nil {
		k.took[action+" "+image] = r.took
	}
	k.within(reconnectTime, fmt.Sprintf("kill %d during %s of %s (%v)", k.killed, action, image, r.err), k.reachable)
	if action == "start" {
		k.keep(id, r.err)
	}
}

// choose says what the daemon will be doing when it is killed.
func (k *torture) choose(image string) string {
	k.t.Helper()
	if !k.present[image] {
		return "pull"
	}
	switch k.random.IntN(8) {
	case 0:
		return "remove"
	case 1, 2, 3:
		k.must(k.do("remove", image, ""))
		k.present[image] = false
		// Sometimes the layers are still there when they are pulled again.
		k.sleep(k.below(killedCollection))
		return "pull"
	}
	return "start"
}

func (k *torture) below(limit time.Duration) time.Duration {
	return time.Duration(k.random.Int64N(int64(limit)))
}

// do is safe to call beside the test's own goroutine.
func (k *torture) do(action, image, id string) error {
	ctx, cancel := context.WithTimeout(k.ctx, time.Minute)
	defer cancel()
	ref := k.Ref(image)
	switch action {
	case "pull":
		_, err := k.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", lab.Snapshotter, ref)
		return err
	case "start":
		return k.run(ctx, ref, id)
	case "remove":
		return k.Client().ImageService().Delete(ctx, ref, images.SynchronousDelete())
	}
	return fmt.Errorf("no action %q", action)
}

func (k *torture) run(ctx context.Context, ref, id string) error {
	img, err := k.Client().GetImage(ctx, ref)
	if err != nil {
		return err
	}
	c, err := k.tryContainer(ctx, img, id, "/bin/sleep", "10000")
	if err != nil {
		return err
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	return task.Start(ctx)
}

func (k *torture) sleep(d time.Duration) {
	select {
	case <-k.ctx.Done():
		k.t.Fatal(context.Cause(k.ctx))
	case <-time.After(d):
	}
}

// kill kills the daemon, and looks at what it left.
func (k *torture) kill() {
	k.t.Helper()
	k.must(k.KillSnapshotter())
	k.killed++
	if err := k.layers.check(); err != nil {
		k.t.Fatalf("after kill %d: %v", k.killed, err)
	}
}

// restart starts the daemon. Every third time it is killed before it serves, while it repairs what the kill before has left.
func (k *torture) restart() {
	k.t.Helper()
	if k.random.IntN(3) == 0 {
		ctx, cancel := context.WithTimeout(k.ctx, k.below(60*time.Millisecond))
		err := k.StartSnapshotter(ctx)
		cancel()
		if err != nil {
			k.killedEarly++
		}
		k.kill()
	}
	k.must(k.StartSnapshotter(k.ctx))
}

// reachable says whether containerd has found the daemon again.
func (k *torture) reachable() error {
	_, err := k.Client().SnapshotService(lab.Snapshotter).Stat(k.ctx, "witness")
	return err
}

func (k *torture) note(action, image string, err error) {
	n := k.results[action]
	if err == nil {
		n[0]++
	} else {
		n[1]++
	}
	k.results[action] = n
	switch {
	case action == "pull" && err == nil:
		k.present[image] = true
	case action == "remove":
		// containerd forgets the image before it collects.
		_, err := k.Client().GetImage(k.ctx, k.Ref(image))
		k.present[image] = err == nil
	}
}

// keep keeps a container that was started, and takes leave of one that was started long ago. One that was started half is removed.
func (k *torture) keep(id string, err error) {
	k.t.Helper()
	if err != nil {
		k.must(k.clear(id))
		return
	}
	k.alive = append(k.alive, id)
	if len(k.alive) > bystanders {
		k.readsRight(k.alive[0])
		k.must(k.clear(k.alive[0]))
		k.alive = k.alive[1:]
	}
}

// clear removes whatever there is of a container.
func (k *torture) clear(id string) error {
	c, err := k.Client().LoadContainer(k.ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if task, err := c.Task(k.ctx, nil); err == nil {
		if _, err := task.Delete(k.ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := c.Delete(k.ctx, containerd.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// finish takes stock when the last kill is over.
func (k *torture) finish(witness string) {
	k.t.Helper()
	k.readsOn("witness")
	for _, id := range k.alive {
		k.readsRight(id)
	}
	refs := []string{witness}
	for _, image := range killedImages {
		refs = append(refs, k.pull(image))
	}
	k.collect()
	k.within(releaseTime, "nothing orphaned", k.orphans)
	k.must(k.layers.check())
	for _, id := range append(slices.Clone(k.alive), "witness") {
		k.must(k.clear(id))
	}
	k.removeImages(refs...)
	k.released()
}
