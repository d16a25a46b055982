package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
)

// sizes shows what each layer of the image takes in the registry, as a tar and as EROFS.
func (d *demo) sizes(ctx context.Context) error {
	ctx = d.lab.Context(ctx)
	img, err := d.lab.Client().GetImage(ctx, d.ref)
	if err != nil {
		return err
	}
	manifest, err := images.Manifest(ctx, d.lab.Client().ContentStore(), img.Target(), nil)
	if err != nil {
		return err
	}
	instances, err := d.instances()
	if err != nil {
		return err
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "layer\tcompressed\ttar\tEROFS on disk\tmetadata\tdata\t")
	for _, layer := range manifest.Layers {
		i := instances[layer.Digest]
		fmt.Fprintf(w, "%.19s\t%s\t%s\t%s\t%s\t%s\t\n", layer.Digest, size(layer.Size), size(i.DiffBytes),
			size(allocated(i.dir)), size(fileSize(i.dir+"/meta.erofs")), size(fileSize(i.dir+"/data")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	show(text.String())
	return nil
}

// instance is what the demo reads of a layer.json.
type instance struct {
	Layer     digest.Digest
	DiffBytes int64
	dir       string
}

// instances returns what is in the daemon's layer store.
func (d *demo) instances() (map[digest.Digest]instance, error) {
	dirs, err := filepath.Glob(d.lab.SnapshotterRoot() + "/layers/*")
	if err != nil {
		return nil, err
	}
	all := map[digest.Digest]instance{}
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/layer.json")
		if err != nil {
			return nil, err
		}
		i := instance{dir: dir}
		if err := json.Unmarshal(b, &i); err != nil {
			return nil, fmt.Errorf("%s/layer.json: %w", dir, err)
		}
		all[i.Layer] = i
	}
	return all, nil
}

func fileSize(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// allocated is what the files of a directory take on disk.
func allocated(dir string) (bytes int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			bytes += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
	}
	return bytes
}

func size(bytes int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if bytes >= unit.bytes {
			return fmt.Sprintf("%.1f %s", float64(bytes)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d B", bytes)
}

// mounts shows the EROFS mounts of the daemon and the overlay of the container.
func (d *demo) mounts(context.Context) error {
	lines, err := d.mountLines()
	if err != nil {
		return err
	}
	for _, l := range lines {
		show(strings.ReplaceAll(l, d.lab.Dir, "…"))
	}
	return nil
}

// mountLines returns /proc/mounts as far as it belongs to our daemon, EROFS first.
func (d *demo) mountLines() ([]string, error) {
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.Contains(line, d.lab.SnapshotterRoot()) {
			lines = append(lines, fmt.Sprintf("%s on %s\n    %s", f[2], f[1], strings.ReplaceAll(f[3], ",", ", ")))
		}
	}
	slices.SortStableFunc(lines, func(a, b string) int { return cmp.Compare(kind(a), kind(b)) })
	return lines, nil
}

func kind(line string) int {
	if strings.HasPrefix(line, "erofs") {
		return 0
	}
	return 1
}

// waitEmpty waits until the daemon has unmounted and deleted everything.
func (d *demo) waitEmpty(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		points, err := d.lab.Mounts("snapshotter")
		if err != nil {
			return err
		}
		layers, err := filepath.Glob(d.lab.SnapshotterRoot() + "/layers/*")
		if err != nil {
			return err
		}
		if len(points) == 0 && len(layers) == 0 {
			show("no mount and no layer is left")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still there after 30 s: mounts %q, layers %q", points, layers)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
