package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkCommit measures how long Commit of a 1 GB upper directory takes: containerd waits for it inside of its own write
// transaction. The directory is made once and put back after each commit.
//
//	go test ./snapshotter -run '^$' -bench Commit -benchtime 300x
//
// In the dirty variants 64 MiB are written before each commit and not synced, as an unpacker does. In the converting ones
// another directory, of 1 GB too, is being converted all the time.
//
// The metrics floor-* are what the disk takes at the same time for the least that a durable transaction needs: two syncs, one
// after the other, of blocks that exist already. Commit cannot be faster than that.
func BenchmarkCommit(b *testing.B) {
	const total = 1 << 30
	for _, files := range []int{4, 20_000} {
		for _, load := range []string{"none", "dirty", "converting"} {
			b.Run(fmt.Sprintf("files=%d/load=%s", files, load), func(b *testing.B) {
				s := start(b, immediate(newRoot(b)))
				if load == "converting" {
					keepConverting(b, s, total)
				}
				benchmarkCommit(b, s, files, total/files, load == "dirty")
			})
		}
	}
}

// keepConverting converts a directory of that size, again and again.
func keepConverting(b *testing.B, s *Snapshotter, size int) {
	dir := filepath.Join(b.TempDir(), "upper")
	must(b, os.Mkdir(dir, 0o755))
	writeFile(b, filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), 1<<20), size)
	inst, pin, err := s.layers.AdoptDir(dir, "load")
	must(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	var busy sync.WaitGroup
	busy.Go(func() {
		for ctx.Err() == nil {
			image, imagePin, err := s.layers.ConvertDir(ctx, inst.ID)
			imagePin.Release()
			if err == nil {
				err = errors.Join(s.layers.Discard(image.ID), s.layers.DeleteDiscarded())
			}
			if err != nil && ctx.Err() == nil {
				b.Error(err)
				return
			}
		}
	})
	b.Cleanup(func() { cancel(); busy.Wait(); pin.Release() })
}

func benchmarkCommit(b *testing.B, s *Snapshotter, files, fileBytes int, dirty bool) {
	_, err := s.Prepare(b.Context(), "active", "")
	must(b, err)
	upper := activeUpper(b, s, "active")
	content := make([]byte, 64<<20)
	for i := range files {
		dir := filepath.Join(upper, fmt.Sprint(i%100))
		must(b, os.MkdirAll(dir, 0o755))
		writeFile(b, filepath.Join(dir, fmt.Sprint(i)), content, fileBytes)
	}
	unix.Sync()

	var took, floor []time.Duration
	sync := newSyncer(b)
	for b.Loop() {
		b.StopTimer()
		if dirty {
			// A new file each time: ext4 writes one that replaces another when it is closed, which no unpacker does.
			must(b, os.RemoveAll(filepath.Join(upper, fmt.Sprint("dirty", len(took)-1))))
			writeFile(b, filepath.Join(upper, fmt.Sprint("dirty", len(took))), content, len(content))
		}
		b.StartTimer()
		begin := time.Now()
		must(b, s.Commit(b.Context(), "committed", "active"))
		took = append(took, time.Since(begin))
		b.StopTimer()
		floor = append(floor, sync())
		upper = putBack(b, s)
		b.StartTimer()
	}
	reportQuantiles(b, "", took)
	reportQuantiles(b, "floor-", floor)
	b.ReportMetric(float64(len(took)), "commits")
}

func reportQuantiles(b *testing.B, prefix string, all []time.Duration) {
	slices.Sort(all)
	for name, q := range map[string]float64{"p50-ms": 0.5, "p99-ms": 0.99, "max-ms": 1} {
		b.ReportMetric(float64(all[int(q*float64(len(all)-1))].Microseconds())/1000, prefix+name)
	}
}

// newSyncer returns a function that measures two syncs.
func newSyncer(b *testing.B) func() time.Duration {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	must(b, err)
	b.Cleanup(func() { must(b, f.Close()) })
	block := make([]byte, 4096)
	twice := func() time.Duration {
		begin := time.Now()
		for i := range int64(2) {
			_, err := f.WriteAt(block, i*4096)
			must(b, err)
			must(b, unix.Fdatasync(int(f.Fd())))
		}
		return time.Since(begin)
	}
	twice()
	return twice
}

func writeFile(b *testing.B, path string, content []byte, n int) {
	f, err := os.Create(path)
	must(b, err)
	defer f.Close()
	for n > 0 {
		k, err := f.Write(content[:min(n, len(content))])
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
