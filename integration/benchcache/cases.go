package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	bigBytes   = 1 << 20
	smallBytes = 64 << 10
	// smallFiles is enough for half a second or more, and keeps a round short.
	smallFiles = 10000
	pageBytes  = 4096
)

// testCase is a way to use layers.
type testCase struct {
	name   string
	layers []string
	// fresh fills the page cache of the layers' files before, as a conversion leaves it. Otherwise nothing is in memory.
	fresh bool
	// again repeats the case without emptying memory, as NAME-warm.
	again bool
	// pick chooses files of the first layer.
	pick func([]regular) []regular
	// use does it and returns how many bytes were read, 0 if it cannot know.
	use useFunc
}

var program = []string{"scipy-app", "scipy", "python", "base"}

var cases = []testCase{
	{name: "seq", layers: []string{"scipy"}, again: true, pick: big, use: readAll(128 << 10)},
	{name: "rand4k", layers: []string{"scipy"}, pick: big, use: readRandom(4<<10, 4000)},
	{name: "rand64k", layers: []string{"scipy"}, pick: big, use: readRandom(64<<10, 1500)},
	{name: "mmap", layers: []string{"scipy"}, pick: big, use: touchPages},
	{name: "small", layers: []string{"node-modules"}, again: true, pick: small, use: readAll(128 << 10)},
	{name: "exec", layers: program, again: true, use: runPython},
	{name: "seq-fresh", layers: []string{"scipy"}, fresh: true, pick: big, use: readAll(128 << 10)},
	{name: "exec-fresh", layers: program, fresh: true, use: runPython},
}

func big(all []regular) []regular {
	return slices.DeleteFunc(slices.Clone(all), func(f regular) bool { return f.size < bigBytes })
}

func small(all []regular) []regular {
	s := slices.DeleteFunc(slices.Clone(all), func(f regular) bool { return f.size > smallBytes || f.size == 0 })
	return s[:min(len(s), smallFiles)]
}

type useFunc = func(ctx context.Context, m *mounted, files []regular) (int64, error)

// readAll reads every file from its front to its back.
func readAll(bufferBytes int) useFunc {
	return func(ctx context.Context, _ *mounted, files []regular) (int64, error) {
		buf := make([]byte, bufferBytes)
		var total int64
		for _, f := range files {
			n, err := drain(f.path, buf)
			if total += n; err != nil {
				return total, err
			}
		}
		return total, ctx.Err()
	}
}

func drain(path string, buf []byte) (int64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var total int64
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return total, fmt.Errorf("%s: %w", path, err)
		}
		if n == 0 {
			return total, nil
		}
		total += int64(n)
	}
}

// readRandom reads count aligned pieces, none twice, the same ones each time.
func readRandom(pieceBytes int64, count int) useFunc {
	return func(_ context.Context, _ *mounted, files []regular) (int64, error) {
		type piece struct {
			file   int
			offset int64
		}
		var pieces []piece
		open := make([]*os.File, len(files))
		for n, f := range files {
			for at := int64(0); at+pieceBytes <= f.size; at += pieceBytes {
				pieces = append(pieces, piece{n, at})
			}
			var err error
			if open[n], err = os.Open(f.path); err != nil {
				return 0, err
			}
			defer open[n].Close()
		}
		r := rand.New(rand.NewPCG(1, 2))
		r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		buf := make([]byte, pieceBytes)
		pieces = pieces[:min(count, len(pieces))]
		for _, p := range pieces {
			if _, err := open[p.file].ReadAt(buf, p.offset); err != nil {
				return 0, err
			}
		}
		return int64(len(pieces)) * pieceBytes, nil
	}
}

// touchPages maps every file and loads a byte of each page, from the front to the back.
func touchPages(_ context.Context, _ *mounted, files []regular) (int64, error) {
	var total int64
	for _, f := range files {
		fd, err := unix.Open(f.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		b, err := unix.Mmap(fd, 0, int(f.size), unix.PROT_READ, unix.MAP_SHARED)
		unix.Close(fd)
		if err != nil {
			return 0, fmt.Errorf("mmap %s: %w", f.path, err)
		}
		var sum byte
		for at := 0; at < len(b); at += pageBytes {
			sum += b[at]
		}
		runtime.KeepAlive(sum) // keeps the loads from being optimized away
		if err := unix.Munmap(b); err != nil {
			return 0, err
		}
		total += f.size
	}
	return total, nil
}

// runPython imports scipy in an overlay of the layers, as a container would.
func runPython(ctx context.Context, m *mounted, _ []regular) (_ int64, err error) {
	if err := unix.Mount("overlay", m.overlay, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(m.points, ":")); err != nil {
		return 0, fmt.Errorf("overlay: %w", err)
	}
	defer func() { err = errors.Join(err, waitUnmount(m.overlay)) }()
	cmd := exec.CommandContext(ctx, "chroot", m.overlay, "/usr/bin/env", "python3", "/app/app.py")
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ready") {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return 0, nil
}
