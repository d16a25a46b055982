package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// killedImages are what TestKill pulls. The two share a layer; busybox is pulled and started so fast that many kills hit its mounts.
var killedImages = []string{"nginx-gzip", "node-zstd", "busybox-gzip"}

const (
	// killsInShort and killsInLong are how often the daemon is killed. EROFS_TORTURE_KILLS says it exactly.
	killsInShort, killsInLong = 25, 200
	// bystanders is how many of the containers that were started between kills stay until the end.
	bystanders = 4
)

// TestKill ends the daemon with SIGKILL again and again, at random moments of pulls and container starts, and starts it anew. Whatever
// was being done may fail. But containers go on reading right bytes, what is mounted is whole, the next pull succeeds, and nothing is
// orphaned.
func TestKill(t *testing.T) {
	kills := killCount(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("EROFS_TORTURE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills, EROFS_TORTURE_SEED=%d", kills, seed)
	s := newStory(t, time.Minute+time.Duration(kills)*10*time.Second, lab.Options{Images: append([]string{"java-gzip"}, killedImages...)})
	k := &torture{story: s, random: rand.New(rand.NewPCG(seed, 0)), sums: map[string]string{}}
	s.startReader(s.pull("java-gzip"), "witness")
	k.learn()
	for i := range kills {
		k.round(i)
	}
	t.Logf("survived %d kills: %d pulls and %d starts succeeded, %d were cut short", kills, k.pulled, k.started, k.failed)
	if k.failed == 0 {
		t.Error("nothing was cut short: the kills came too late, this test proves nothing")
	}
	s.readsOn("witness")
	for _, id := range k.alive {
		s.readsRight(id)
	}
	k.pullsAll()
	for _, id := range append(k.alive, "witness") {
		s.end(id)
	}
	k.removeRemains()
	k.noOrphans(nil)
	s.released()
}

func killCount(t *testing.T) int {
	text := os.Getenv("EROFS_TORTURE_KILLS")
	switch {
	case text == "" && long():
		return killsInLong
	case text == "":
		return killsInShort
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("EROFS_TORTURE_KILLS=%q: want how often to kill", text)
	}
	return n
}

// torture is a story with an enemy.
type torture struct {
	*story
	random *rand.Rand
	// sums are the digests of the files of each instance, taken when nobody was killed. Conversion is deterministic.
	sums  map[string]string
	alive []string // containers that were started, the oldest first

	pulled, started, failed int
	pullTime, startTime     time.Duration // how long each takes when nobody is killed
}
