package integration

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// imported is what tests read of the report of cache import.
type imported struct {
	Layers []struct {
		Digest, Result               string
		Offered, New, Present, Wrong struct{ Extents, Bytes int64 }
	}
	Error string
}

// sums adds up extents.
func (r imported) sums() (offered, fresh, present, wrong int64) {
	for _, l := range r.Layers {
		offered, fresh, present, wrong = offered+l.Offered.Extents, fresh+l.New.Extents, present+l.Present.Extents, wrong+l.Wrong.Extents
	}
	return
}

// cacheCommand runs `cache` with the programs in a directory, for the daemon of the story.
func (s *story) cacheCommand(programs string, args ...string) (stdout string, err error) {
	cmd := exec.CommandContext(s.ctx, filepath.Join(programs, "erofs-snapshotter"),
		append([]string{"--config", filepath.Join(s.Dir, "etc/snapshotter.toml"), "cache"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

// imports runs `cache import`.
func (s *story) imports(programs, file string) (report imported, err error) {
	s.t.Helper()
	out, err := s.cacheCommand(programs, "import", "--json", file)
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
		s.t.Fatalf("%v, %v", err, jsonErr)
	}
	return report, err
}

// fetchedBytes is how much the daemon has fetched of the layers of an image.
func (s *story) fetchedBytes(image string) (n int64) {
	for _, f := range s.fetchedBy(image) {
		n += f.daemon
	}
	return n
}

// TestCache: a container has started on one machine. What it has read is carried to another one, where the image was pulled lazily: it starts there
// without fetching anything. An export whose bits were flipped on the way does no harm, and the error says so.
func TestCache(t *testing.T) {
	const image = "nginx-" + estargzFormat
	testenv.Need(t, testenv.Tool("go"))
	programs := t.TempDir()
	install(t, programs, "v1")
	o := lab.Options{Images: []string{image}, Daemon: filepath.Join(programs, "erofs-snapshotter")}
	a, b := newLazyStory(t, storyTime, o), newLazyStory(t, storyTime, o)
	refA := a.pull(image)
	a.startIdle(refA, "box")
	export, damaged := filepath.Join(t.TempDir(), "cache.tar"), filepath.Join(t.TempDir(), "damaged.tar")
	a.must(a.StopRegistry()) // the export is of what is here
	_, err := a.cacheCommand(programs, "export", "--image", refA, "--output", export)
	a.must(err)
	extents, flipped := flipBits(t, export, damaged)
	if flipped == 0 || extents < 2*flipped {
		t.Fatalf("%d of %d extents were changed", flipped, extents)
	}

	unknown, err := b.imports(programs, export)
	b.must(err)
	if _, fresh, _, _ := unknown.sums(); fresh > 0 || len(unknown.Layers) == 0 || unknown.Layers[0].Result != "unknown" {
		t.Errorf("before the pull: %+v", unknown)
	}
	refB := b.pull(image)
	b.neverFellBack()
	before := b.fetchedBytes(image)
	report, err := b.imports(programs, damaged)
	if err == nil || !strings.Contains(err.Error(), "not what their layers say") {
		t.Errorf("a damaged export: %v", err)
	}
	offered, fresh, present, wrong := report.sums()
	if offered != extents || wrong != flipped || fresh+present != extents-flipped || report.Error != "" {
		t.Errorf("a damaged export: %d extents offered, %d new, %d here already, %d wrong, of %d with %d changed; %s", offered, fresh, present, wrong, extents, flipped, report.Error)
	}
	report, err = b.imports(programs, export)
	b.must(err)
	if _, now, there, wrong := report.sums(); now+there != extents || there < extents-flipped || wrong > 0 {
		t.Errorf("%d new, %d here already, %d wrong, of %d", now, there, wrong, extents)
	}
	b.startIdle(refB, "box")
	if n := b.fetchedBytes(image) - before; n > 0 {
		t.Errorf("%d bytes were fetched for what had been imported", n)
	}
	b.readsRight("box") // the rest is fetched
	if n := b.fetchedBytes(image) - before; n == 0 {
		t.Error("all of the image was there: the test tests nothing")
	}
	a.endsWithNothing(refA, "box")
	b.endsWithNothing(refB, "box")
}

// flipBits copies an export with a bit flipped in some extents, and counts.
func flipBits(t *testing.T, from, to string) (extents, flipped int64) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(h.Name, ".json") {
			if extents++; extents%5 == 0 {
				content[len(content)/2] ^= 1
				flipped++
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return extents, flipped
}
