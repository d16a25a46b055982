package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// The tests of crashes run this test program again, as a child that works on a root directory and is killed.
const (
	childRoot   = "EROFS_TEST_CHILD_ROOT"
	childKillAt = "EROFS_TEST_CHILD_KILL_AT" // make a tour and kill yourself at the n-th named step; otherwise work at random
	// childOnlyStart: do nothing but start.
	childOnlyStart = "EROFS_TEST_CHILD_ONLY_START"
)

// crashed are the options of a snapshotter that is killed, and of the one that looks at what it left.
func crashed(root string) Options {
	return Options{Root: root, Backend: file.New(file.Options{}), Grace: -1, Content: contentBeside(root)}
}

// fileContent is a content store in a directory, which outlives the processes. What was imported from it can be made again.
type fileContent string

func contentBeside(root string) fileContent { return fileContent(root + ".content") }

func (f fileContent) path(name digest.Digest) string { return filepath.Join(string(f), name.Encoded()) }

func (f fileContent) add(name digest.Digest, b []byte) error {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	return os.WriteFile(f.path(name), b, 0o600)
}

func (f fileContent) Open(_ context.Context, layer ocispec.Descriptor) (io.ReadCloser, error) {
	return os.Open(f.path(layer.Digest))
}

func (f fileContent) Document(_ context.Context, name digest.Digest) ([]byte, map[string]string, error) {
	b, err := os.ReadFile(f.path(name))
	return b, nil, err
}

// childMain does what the environment says. What it has done it says on its standard output, line by line; the last line of one
// that killed itself is the step.
func childMain(root string) {
	log.SetFlags(0)
	at := os.Getenv(childKillAt)
	if at != "" {
		n, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		killAtStep(n)
	}
	opts := crashed(root)
	if at == "" { // the steps of the tour have an order
		opts.Layers.SyncAfter = os.Getpid()%2 == 0
	}
	s, err := New(context.Background(), opts)
	if err != nil {
		log.Fatal(err)
	}
	switch {
	case os.Getenv(childOnlyStart) != "":
	case at != "":
		err = tour(s)
	default:
		err = workAtRandom(s)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// killAtStep has the process kill itself at the n-th named step.
func killAtStep(n int64) {
	var reached atomic.Int64
	step.Hook = func(name string) {
		if reached.Add(1) == n {
			fmt.Println(name)
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				log.Fatal(err)
			}
			select {}
		}
	}
}

// tour does once what a snapshotter does. Every layer has one file, which is called as the snapshot and contains its name.
func tour(s *Snapshotter) error {
	c := context.Background()
	for _, layer := range [][2]string{{"base", ""}, {"child", "base"}} {
		name, parent := layer[0], layer[1]
		if _, err := s.Prepare(c, name+"-active", parent); err != nil {
			return err
		}
		if err := writeInto(c, s, name+"-active", name); err != nil {
			return err
		}
		fmt.Println("wrote", name)
		if err := s.Commit(c, name, name+"-active"); err != nil {
			return err
		}
		fmt.Println("committed", name)
	}
	if err := convertEach(c, s); err != nil {
		return err
	}
	if err := importInto(c, s, "pulled", "child"); err != nil {
		return err
	}
	fmt.Println("committed pulled")
	if _, err := s.View(c, "view", "pulled"); err != nil {
		return err
	}
	if _, err := s.Prepare(c, "container", "pulled"); err != nil {
		return err
	}
	if err := s.Cleanup(c); err != nil {
		return err
	}
	for _, key := range []string{"view", "container", "pulled", "child"} {
		fmt.Println("removing", key)
		if err := s.Remove(c, key); err != nil {
			return err
		}
	}
	return s.Cleanup(c)
}

func convertEach(c context.Context, s *Snapshotter) error {
	for {
		id, ok, err := s.nextDirectory(c, nil)
		if err != nil || !ok {
			return err
		}
		if err := s.convert(c, id); err != nil {
			return err
		}
	}
}

// writeInto writes the file called name into the upper directory of an active snapshot.
func writeInto(c context.Context, s *Snapshotter, key, name string) error {
	return s.view(c, func(c context.Context, _ *records) error {
		id, _, err := snapshotKind(c, key)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(s.upperDir(id), name), []byte(name), 0o600)
	})
}

// importInto makes a committed snapshot the way the differ does.
func importInto(c context.Context, s *Snapshotter, name, parent string) error {
	mounts, err := s.Prepare(c, name+"-active", parent)
	if err != nil {
		return err
	}
	id, ok := s.ActiveSnapshot(c, mounts)
	if !ok {
		return fmt.Errorf("snapshot of mounts %v: %w", mounts, errdefs.ErrNotFound)
	}
	b := layerTar(name)
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := contentBeside(s.root).add(layer.Digest, b); err != nil {
		return err
	}
	inst, pin, err := s.Layers().Import(c, layer.Digest, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	})
	if err != nil {
		return err
	}
	defer pin.Release()
	if err := s.Bind(namespaces.WithNamespace(c, "default"), id, inst.ID, layer); err != nil {
		return err
	}
	return s.Commit(c, name, name+"-active")
}

// workAtRandom works in several goroutines, with the background work going on, and returns the first error.
func workAtRandom(s *Snapshotter) error {
	c := context.Background()
	go s.Run(c)
	failed := make(chan error)
	var busy sync.WaitGroup
	for worker := range 3 {
		busy.Go(func() {
			for i := 0; ; i++ {
				if err := randomWork(c, s, fmt.Sprintf("%d-%d-%d", os.Getpid(), worker, i)); err != nil {
					failed <- err
				}
			}
		})
	}
	return <-failed
}

func randomWork(c context.Context, s *Snapshotter, name string) error {
	var committed, others []string
	if err := s.Walk(c, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			committed = append(committed, info.Name)
		} else {
			others = append(others, info.Name)
		}
		return nil
	}); err != nil {
		return err
	}
	parent := ""
	if len(committed) > 0 && rand.IntN(4) > 0 {
		parent = committed[rand.IntN(len(committed))]
	}
	// Another worker may remove what we chose; that is the only error there should be.
	var err error
	switch rand.IntN(8) {
	case 0, 1:
		err = importInto(c, s, name, parent)
	case 2, 3:
		if _, err = s.Prepare(c, name+"-active", parent); err == nil {
			if err = writeInto(c, s, name+"-active", name); err == nil {
				err = s.Commit(c, name, name+"-active")
			}
		}
	case 4:
		_, err = s.Prepare(c, name, parent)
	case 5:
		_, err = s.View(c, name, parent)
	case 6:
		err = s.Cleanup(c)
	case 7:
		for _, key := range append(others, committed...) {
			if rand.IntN(2) == 0 || len(committed)+len(others) > 20 {
				_ = s.Remove(c, key) // refused if it has children
			}
		}
	}
	if expectedInRace(err) {
		return nil
	}
	return err
}

// expectedInRace says that another worker has removed, or is using, what an operation was about.
func expectedInRace(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsAlreadyExists(err)
}

// layerTar is a layer with one file, which contains its name.
func layerTar(name string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(name)), Typeflag: tar.TypeReg}
	if err := w.WriteHeader(h); err != nil {
		panic(err)
	}
	if _, err := io.WriteString(w, name); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}
