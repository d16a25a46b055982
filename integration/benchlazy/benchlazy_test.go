package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestParse(t *testing.T) {
	s, err := parse([]string{"-quick", "-parts", "many,random", "-layers", "20", "-mib", "128", "-dir", "/b"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Rounds != 1 || benchkit.Names(s.parts, partName) != "many,random" ||
		len(s.manyLayouts()) != 2 || s.sequentialLayouts()[0].layers[0].files != 2 {
		t.Errorf("settings are %+v", s)
	}
	for _, args := range []string{"-parts all", "-layers 15", "-mib 100", "-n 0", "-dir /longer/than/sockets/allow"} {
		if _, err := parse(append([]string{"-dir=/b"}, strings.Fields(args)...)); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	if _, err := parse([]string{"-help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help gives %v", err)
	}
}

// TestContents: the same name gives the same layer, and packed contents are compressible as they should be.
func TestContents(t *testing.T) {
	c := contents{files: 2, fileBytes: 64 << 10, fill: random}
	var archives [3][]byte
	for i, name := range []string{"a", "a", "b"} {
		path := filepath.Join(t.TempDir(), "layer.tar")
		if err := c.writeTar(path, name, 7); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) || bytes.Equal(archives[0], archives[2]) {
		t.Error("layers depend on something else than their names")
	}
	r := tar.NewReader(bytes.NewReader(archives[0]))
	for i := range 2 {
		if h, err := r.Next(); err != nil || h.Name != fileName(7, i) || h.Size != 64<<10 {
			t.Errorf("entry %d is %+v, error %v", i, h, err)
		}
	}
	for name, want := range map[string][2]float64{"random": {0.99, 1.01}, "packed": {0.25, 0.45}} {
		fill := map[string]func(*rand.ChaCha8, []byte){"random": random, "packed": packed}[name]
		p := make([]byte, 1<<20)
		fill(rand.NewChaCha8([32]byte{}), p)
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(p)
		w.Close()
		if share := float64(z.Len()) / float64(len(p)); share < want[0] || share > want[1] {
			t.Errorf("%s contents shrink to %.2f, want %.2f to %.2f", name, share, want[0], want[1])
		}
	}
}

// TestFileSet: every reader reads its share of the places.
func TestFileSet(t *testing.T) {
	dir := t.TempDir()
	for i := range presentFiles {
		if err := os.WriteFile(filepath.Join(dir, fileName(0, i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, fileName(0, i)), 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	set, err := openFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer set.close()
	for _, readers := range []int{1, 4} {
		if err := set.read(warmReads, readers); err != nil {
			t.Error(err)
		}
	}
	if err := os.Truncate(set[3].Name(), 100); err != nil {
		t.Fatal(err)
	}
	if err := set.read(warmReads, 4); !errors.Is(err, io.EOF) {
		t.Errorf("a file that is too short gives %v", err)
	}
}

func TestReports(t *testing.T) {
	var text strings.Builder
	incomplete := randomCase{"incomplete", false, 4}
	writeRandom(&text, []randomRow{
		{randomCase: incomplete, lazy: true, reads: 1000, took: 12 * time.Millisecond},
		{randomCase: incomplete, lazy: false, reads: 1000, took: 3 * time.Millisecond},
	})
	writeSequential(&text, []sequentialRow{
		{layer: "random1024m", way: lazyRead, blobBytes: 1e9, took: 2 * time.Second},
		{layer: "random1024m", way: curlFile, blobBytes: 1e9, took: 1500 * time.Millisecond},
		{layer: "random1024m", way: curlNull, blobBytes: 1e9, took: 1 * time.Second},
	})
	writeMany(&text, []manyRow{{layers: 1000, daemon: 50 << 20, keeper: 30 << 20, daemonAfter: 100 << 20, ready: 3 * time.Second, keeperDenying: 15 << 20}})
	for _, want := range []string{
		"| incomplete | warm | 4 | 1 | 12.00 | 3.00 |\n", "\nratio random4k/native:incomplete:warm:4 4.00\n",
		"| random1024m | lazy | 1 | 1000.0 | 2.00 | 500 |\n",
		"\nratio sequential/curl-file:random1024m 0.75\n", "\nratio sequential/curl-null:random1024m 0.50\n",
		"| daemon, MiB | 50.00 |\n", "\nratio rss/limit:daemon 0.50\n", "\nratio rss/limit:daemon-restarted 1.00\n", "\nratio rss/limit:keeper 2.00\n",
		"| keeper without a daemon, MiB | 15.00 |\n", "\nratio rss/limit:keeper-denying 1.00\n",
		"\nratio ready/limit 2.00\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	for name, got := range map[string][2]int{
		"random":     {len(randomRow{}.fields()), len(randomHeader)},
		"sequential": {len(sequentialRow{}.fields()), len(sequentialHeader)},
		"many":       {len(manyRow{}.fields()), len(manyHeader)},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: the CSV has %d fields and %d names", name, got[0], got[1])
		}
	}
}

// TestResident asks for the memory of this process.
func TestResident(t *testing.T) {
	if n, err := resident(os.Getpid()); err != nil || n < 1<<20 {
		t.Errorf("%d bytes, error %v", n, err)
	}
}
