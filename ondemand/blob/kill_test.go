package blob

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// childEnv names the directory of the blob that a child process fills.
const childEnv = "BLOB_TEST_FILL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := fillForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(testenv.Main(m))
}

const killExtents = 4000

func killBlob() (extents []Extent, dataBytes int64) {
	return someExtents(rand.New(rand.NewPCG(5, 6)), killExtents, 3000)
}

// fillForEver writes absent extents and says which are durable, until it is killed or there are none left.
func fillForEver(dir string) error {
	b, err := Open(dir, testID, Options{})
	if err != nil {
		return err
	}
	extents, _ := killBlob()
	for {
		var batch []int
		for range 1 + rand.IntN(20) {
			i := b.NextAbsent(rand.IntN(killExtents), killExtents)
			if i == killExtents {
				continue
			}
			if err := b.Write(i, contentOf(i, extents[i])); err != nil {
				return err
			}
			batch = append(batch, i)
		}
		if err := b.Flush(); err != nil {
			return err
		}
		for _, i := range batch {
			fmt.Println(i)
		}
	}
}

// TestKill kills processes that fill a blob. The next one finds right bytes only, and everything that was said to be durable.
func TestKill(t *testing.T) {
	extents, dataBytes := killBlob()
	dir := t.TempDir()
	must(t, Create(dir, testID, dataBytes, slices.Values(extents)))
	durable := map[int]bool{}
	for range 20 {
		for _, i := range killAfter(t, dir, 1+rand.IntN(60)) {
			durable[i] = true
		}
		b := reopen(t, dir)
		if b.Lost() != nil {
			t.Fatal(b.Lost())
		}
		checkPresent(t, b, extents)
		for i := range durable {
			if !b.Present(i) {
				t.Fatalf("extent %d was durable and is not present", i)
			}
		}
		must(t, b.Close())
	}
}

// killAfter starts a child, kills it after it has said that some extents are durable, and returns all of which it said so.
func killAfter(t *testing.T, dir string, extents int) (durable []int) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		i, err := strconv.Atoi(lines.Text())
		if err != nil {
			break // the kill cut the line
		}
		durable = append(durable, i)
		if len(durable) == extents {
			must(t, child.Process.Kill())
		}
	}
	if err := child.Wait(); err == nil || child.ProcessState.Exited() {
		t.Fatalf("the child ended by itself after %d extents: %v", len(durable), err)
	}
	return durable
}
