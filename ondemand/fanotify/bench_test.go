package fanotify

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func init() { roles["bench"] = randomReads }

const benchBytes = 64 << 20

// BenchmarkRead measures random reads of 4 KiB through an EROFS mount by a process of their own, with the blob in the page cache and the
// file not: of a blob that nobody watches, and of one whose data is there but that is watched.
func BenchmarkRead(b *testing.B) {
	testenv.Need(b, testenv.Root, testenv.EROFS, preContent)
	l := newLayer(b, benchBytes)
	f := l.filler()
	must(b, f.fillAll())
	b.Run("native", func(b *testing.B) {
		l.mount(b)
		benchReaders(b, l.path)
	})
	b.Run("watched", func(b *testing.B) {
		g := l.watch(b)
		l.mount(b)
		defer serve(b, g, f)()
		benchReaders(b, l.path)
		st := g.Stats()
		if st.Hits.Count != st.Events || st.Events < uint64(b.N) {
			b.Errorf("%d events, %d answered at once", st.Events, st.Hits.Count)
		}
	})
}

func benchReaders(b *testing.B, path string) {
	for _, readers := range []int{1, 4} {
		b.Run(fmt.Sprintf("%dreaders", readers), func(b *testing.B) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), roleEnv+"=bench", fmt.Sprintf("READS=%d %d %s", b.N, readers, path))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			must(b, err)
			took, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
			must(b, err)
			b.ReportMetric(float64(took)/float64(b.N), "ns/op")
		})
	}
}

// randomReads is a process that reads, and says how many nanoseconds that took.
func randomReads() error {
	var count, readers int
	var path string
	if _, err := fmt.Sscan(os.Getenv("READS"), &count, &readers, &path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	runtime.GOMAXPROCS(readers + 1)
	var took time.Duration
	for count > 0 {
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		pages := rand.Perm(benchBytes / pageBytes)
		pages = pages[:min(count, len(pages))]
		count -= len(pages)
		start := time.Now()
		var work sync.WaitGroup
		errs := make(chan error, readers)
		for r := range readers {
			work.Go(func() {
				p := make([]byte, pageBytes)
				for i := r; i < len(pages); i += readers {
					off := int64(pages[i]) * pageBytes
					if n := rawPread(fd, p, off); n != len(p) {
						errs <- fmt.Errorf("read %d bytes", n)
						return
					}
					if err := checkContent(p[:8], off); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		work.Wait()
		took += time.Since(start)
		if len(errs) > 0 {
			return <-errs
		}
	}
	fmt.Println(took.Nanoseconds())
	return nil
}

// rawPread reads as a program does that has no scheduler of its own.
func rawPread(fd int, p []byte, off int64) int {
	n, _, _ := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(off), 0, 0)
	return int(n)
}
