package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// result is one measurement. Cached is by how much each part of the page cache grew.
type result struct {
	testCase, variant string
	read              int64
	took              time.Duration
	cached            pages
}

func (r result) String() string {
	return fmt.Sprintf("%s %s: read %d MB in %.3f s, cached: files %d data %d meta %d all %d MB", r.testCase, r.variant, r.read>>20,
		r.took.Seconds(), r.cached.files>>20, r.cached.data>>20, r.cached.meta>>20, r.cached.all>>20)
}

// pages are bytes of page cache.
type pages struct {
	data, meta int64 // of the files on the disk
	files      int64 // of the mounted files
	all        int64 // of the machine, by /proc/meminfo
}

// bench is the disk with the layers.
type bench struct {
	dir    string
	layers map[string]fsbackend.Image
	listed map[string][]regular // the files of a layer
}

func (b *bench) rounds(ctx context.Context, n int, cs []testCase, vs []variant) ([]result, error) {
	var results []result
	for round := range n {
		for _, c := range cs {
			for _, v := range benchkit.Rotated(vs, round) {
				rs, err := b.measure(ctx, c, v)
				if err != nil {
					return results, fmt.Errorf("%s, %s: %w", c.name, v.name, err)
				}
				results = append(results, rs...)
				benchkit.Progress("round %d: %s", round+1, rs)
			}
		}
	}
	return results, nil
}

// measure runs the case once, and once more if it has a warm form, which then tells by how much the caches grow further.
func (b *bench) measure(ctx context.Context, c testCase, v variant) (_ []result, err error) {
	all, err := b.files(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := dropCaches(); err != nil {
		return nil, err
	}
	if c.fresh {
		if err := b.fill(c.layers); err != nil {
			return nil, err
		}
	}
	m, err := v.mount(ctx, b.mounts(), b.layers, c.layers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.unmount()) }()
	var results []result
	once := func(name string) error {
		before, err := m.cached(nil)
		if err != nil {
			return err
		}
		r := result{testCase: name, variant: v.name}
		begin := time.Now()
		if r.read, err = c.use(ctx, m, all); err != nil {
			return err
		}
		r.took = time.Since(begin)
		m.settle()
		after, err := m.cached(all)
		if err != nil {
			return err
		}
		r.cached = pages{after.data - before.data, after.meta - before.meta, after.files, after.all - before.all}
		results = append(results, r)
		return nil
	}
	if err := once(c.name); err != nil {
		return nil, err
	}
	if !c.again {
		return results, nil
	}
	if err := once(c.name + "-warm"); err != nil {
		return nil, err
	}
	results[1].cached.files -= results[0].cached.files
	return results, nil
}

func (b *bench) mounts() string { return filepath.Join(b.dir, "m") }

// files are those of the layers that the case may read. A layer has the same files however it is mounted, so they are listed once.
func (b *bench) files(ctx context.Context, c testCase) ([]regular, error) {
	var all []regular
	for _, name := range c.layers {
		if b.listed[name] == nil {
			m, err := variant{}.mount(ctx, b.mounts(), b.layers, []string{name})
			if err != nil {
				return nil, err
			}
			b.listed[name], err = regularFiles(m.points[0])
			if err := errors.Join(err, m.unmount()); err != nil {
				return nil, err
			}
		}
		all = append(all, b.listed[name]...)
	}
	if c.pick != nil {
		all = c.pick(all)
	}
	return all, nil
}

// fill reads the files of layers into the page cache.
func (b *bench) fill(layers []string) error {
	for _, name := range layers {
		for _, path := range []string{b.layers[name].Meta, b.layers[name].Data} {
			if _, err := benchkit.Warm(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// cached asks the kernel. The files on the disk come first: opening a mounted file reads its inode from one of them.
func (m *mounted) cached(files []regular) (p pages, err error) {
	if p.all, err = meminfoCached(); err != nil {
		return p, err
	}
	for _, i := range m.images {
		for path, to := range map[string]*int64{i.Meta: &p.meta, i.Data: &p.data} {
			n, err := cachedBytes(path)
			if err != nil {
				return p, err
			}
			*to += n
		}
	}
	for _, f := range files {
		n, err := cachedBytes(f.path)
		if err != nil {
			return p, err
		}
		p.files += n
	}
	return p, nil
}

// cachedBytes is how much of a file is in the page cache. Needs Linux 6.5.
func cachedBytes(path string) (int64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &unix.CachestatRange{}, &stat, 0); err != nil {
		return 0, fmt.Errorf("cachestat %s: %w", path, err)
	}
	return int64(stat.Cache) * pageBytes, nil
}

// touchBytes is more memory than a measurement fills.
const touchBytes = 1 << 30

// dropCaches is benchkit.ColdCache, which touches three times the memory and takes that much longer.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return err
	}
	b, err := unix.Mmap(-1, 0, touchBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	return unix.Munmap(b)
}

func meminfoCached() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Cached:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no Cached in /proc/meminfo")
}
