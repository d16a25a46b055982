package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkCommit measures how long Commit of a 1 GB upper directory takes: containerd waits for it inside of its own write
// transaction. The directory is made once and put back after each commit.
//
//	go test ./snapshotter -run '^$' -bench Commit -benchtime 300x
//
// Dirty variants write 64 MiB that are not synced before each commit, as an unpacker does.
func BenchmarkCommit(b *testing.B) {
	const total = 1 << 30
	for _, files := range []int{4, 20_000} {
		for _, dirty := range []bool{false, true} {
			b.Run(fmt.Sprintf("files=%d/dirty=%v", files, dirty), func(b *testing.B) {
				benchmarkCommit(b, files, total/files, dirty)
			})
		}
	}
}

func benchmarkCommit(b *testing.B, files, fileBytes int, dirty bool) {
	s := start(b, immediate(newRoot(b)))
	_, err := s.Prepare(b.Context(), "active", "")
	must(b, err)
	upper := activeUpper(b, s, "active")
	content := make([]byte, 64<<20)
	for i := range files {
		dir := filepath.Join(upper, fmt.Sprint(i%100))
		must(b, os.MkdirAll(dir, 0o755))
		writeZeros(b, filepath.Join(dir, fmt.Sprint(i)), content, fileBytes)
	}
	unix.Sync()

	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		if dirty {
			writeZeros(b, filepath.Join(upper, "dirty"), content, len(content))
		}
		b.StartTimer()
		begin := time.Now()
		must(b, s.Commit(b.Context(), "committed", "active"))
		took = append(took, time.Since(begin))
		b.StopTimer()
		upper = putBack(b, s)
		b.StartTimer()
	}
	slices.Sort(took)
	quantile := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(quantile(0.5), "p50-ms")
	b.ReportMetric(quantile(0.99), "p99-ms")
	b.ReportMetric(quantile(1), "max-ms")
	b.ReportMetric(float64(len(took)), "commits")
}

func writeZeros(b *testing.B, path string, zeros []byte, n int) {
	f, err := os.Create(path)
	must(b, err)
	defer f.Close()
	for n > 0 {
		k, err := f.Write(zeros[:min(n, len(zeros))])
		must(b, err)
		n -= k
	}
}

// putBack makes an active snapshot of the committed one again, and returns its upper directory.
func putBack(b *testing.B, s *Snapshotter) string {
	inst := instanceOf(b, s, "committed")
	must(b, s.Remove(b.Context(), "committed"))
	_, err := s.Prepare(context.Background(), "active", "")
	must(b, err)
	upper := activeUpper(b, s, "active")
	must(b, os.Remove(upper))
	must(b, s.layers.ReturnDir(inst.ID, upper))
	return upper
}
