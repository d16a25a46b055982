package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// convertTimeout is for one measurement of one layer.
const convertTimeout = 5 * time.Minute

// source is a layer in one compression.
type source struct{ layer, compression string }

var (
	layers       = []string{"base", "node-modules", "scipy"}
	compressions = []string{"plain", "gzip", "zstd"}
)

// input is a source as files.
type input struct {
	source
	tar      string // the plain tar
	path     string // what is converted
	digest   digest.Digest
	tarBytes int64
}

// method makes files from an input in an empty directory on a fresh file system.
type method struct {
	name string
	run  func(ctx context.Context, in input, dir string) error
	// syncs says that the output is to be synced after run, which is measured apart.
	syncs bool
	// skip is a compression for which the method means nothing.
	skip string
}

// Names in tables and ratios.
const (
	catFile    = "cat"
	decompress = "decompress"
	mkfsErofs  = "mkfs.erofs"
)

// All methods read their input from the page cache.
var methods = []method{
	// What a pull does with a layer: decompress, both digests, convert, sync, rename into place.
	{name: eager, run: importLayer},
	// The least that any conversion has to do: write as many bytes.
	{name: catFile, run: catTar, syncs: true},
	// The least that reading costs: the fastest decompressor at hand, into nothing.
	{name: decompress, run: decompressLayer, skip: "plain"},
	// What containerd's erofs differ does, without the two digests that containerd makes as well; it does not sync.
	{name: mkfsErofs, run: mkfs, syncs: true},
}

// columns of the table. The first is ours; the others are what it is divided by in the ratios.
var columns = []struct {
	name, method string
	value        func(convertRow) time.Duration
}{
	{eager, eager, convertRow.synced},
	{catFile + "+fsync", catFile, convertRow.synced},
	{decompress, decompress, convertRow.synced},
	{mkfsErofs, mkfsErofs, func(r convertRow) time.Duration { return r.time }},
	{mkfsErofs + "+fsync", mkfsErofs, convertRow.synced},
}

const outputName = "output"

// convertRow is one measurement.
type convertRow struct {
	begin                      time.Time
	round                      int
	layer, compression, method string
	tarBytes, inputBytes       int64
	time, sync                 time.Duration
	diskBytes                  int64 // allocated for the result
	load                       float64
}

func (r convertRow) synced() time.Duration { return r.time + r.sync }

var convertHeader = []string{"time", "round", "layer", "compression", "method", "tar_bytes", "input_bytes", "time_s", "sync_s", "disk_bytes", "load1"}

func (r convertRow) fields() []string {
	return []string{r.begin.Format(time.RFC3339), strconv.Itoa(r.round), r.layer, r.compression, r.method,
		strconv.FormatInt(r.tarBytes, 10), strconv.FormatInt(r.inputBytes, 10), seconds(r.time), seconds(r.sync),
		strconv.FormatInt(r.diskBytes, 10), strconv.FormatFloat(r.load, 'f', 2, 64)}
}

// measureConversions returns the rows that could be measured, and the errors of the others.
func measureConversions(ctx context.Context, w *workshop, rounds int, csvPath string) (rows []convertRow, err error) {
	raw, err := newTable(csvPath, convertHeader)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.close()) }()
	inputs, err := prepareInputs(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for round := range rounds {
		for _, in := range inputs {
			for _, m := range rotated(methods, round) {
				if ctx.Err() != nil {
					return rows, errors.Join(append(errs, ctx.Err())...)
				}
				if m.skip == in.compression {
					continue
				}
				row, err := measureConversion(ctx, w, in, m)
				if err != nil {
					errs = append(errs, fmt.Errorf("round %d, %s of %s, %s: %w", round+1, m.name, in.layer, in.compression, err))
					progress("%v", errs[len(errs)-1])
					continue
				}
				row.round = round + 1
				rows = append(rows, row)
				errs = append(errs, raw.write(row.fields()))
				progress("round %d %-12s %-5s %-10s %.2f sync %.2f", row.round, row.layer, row.compression, row.method, row.time.Seconds(), row.sync.Seconds())
			}
		}
	}
	return rows, errors.Join(errs...)
}

func measureConversion(ctx context.Context, w *workshop, in input, m method) (convertRow, error) {
	ctx, cancel := context.WithTimeout(ctx, convertTimeout)
	defer cancel()
	row := convertRow{begin: time.Now(), layer: in.layer, compression: in.compression, method: m.name, tarBytes: in.tarBytes, load: loadAverage()}
	err := w.withFreshDisk(ctx, func(mount string) (err error) {
		dir := filepath.Join(mount, "work")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		for _, path := range []string{in.tar, in.path} {
			if row.inputBytes, err = warm(path); err != nil {
				return err
			}
		}
		if _, err := syncDisk(mount); err != nil {
			return err
		}
		if err := touchMemory(); err != nil {
			return err
		}
		begin := time.Now()
		if err := m.run(ctx, in, dir); err != nil {
			return err
		}
		row.time = time.Since(begin)
		if m.syncs {
			if err := fsync(filepath.Join(dir, outputName)); err != nil {
				return err
			}
			row.sync = time.Since(begin) - row.time
		}
		if _, err := syncDisk(mount); err != nil { // blocks are allocated late
			return err
		}
		row.diskBytes, err = allocated("", dir)
		return err
	})
	return row, err
}

func importLayer(ctx context.Context, in input, dir string) error {
	store, err := layerstore.Open(dir, layerstore.Options{})
	if err != nil {
		return err
	}
	_, pin, err := store.Import(ctx, in.digest, func(context.Context) (io.ReadCloser, error) { return os.Open(in.path) })
	pin.Release()
	return errors.Join(err, store.Close())
}

func catTar(ctx context.Context, in input, dir string) error {
	return shell(ctx, `cat <"$IN" >"$OUT"`, in.tar, filepath.Join(dir, outputName))
}

func decompressLayer(ctx context.Context, in input, _ string) error {
	return shell(ctx, decompressors[in.compression]+` <"$IN" >"$OUT"`, in.path, os.DevNull)
}

// mkfs has the arguments of containerd 2.4.2 (internal/erofsutils) and, last, those that its documentation recommends.
func mkfs(ctx context.Context, in input, dir string) error {
	const mkfs = `mkfs.erofs --tar=f --aufs --quiet -Enoinline_data -T0 --mkfs-time --sort=none "$OUT"`
	return shell(ctx, decompressors[in.compression]+` <"$IN" | `+mkfs, in.path, filepath.Join(dir, outputName))
}

var decompressors = map[string]string{"plain": "cat", "gzip": "igzip -dc", "zstd": "zstd -dc -q"}

// shell runs a script that reads the file $IN and writes $OUT. The lab's programs are found first.
func shell(ctx context.Context, script, in, out string) error {
	cmd := exec.CommandContext(ctx, "bash", "-e", "-o", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "IN="+in, "OUT="+out, "PATH="+lab.Program("")+":"+os.Getenv("PATH"))
	if out != os.DevNull {
		cmd.Env = append(cmd.Env, "TMPDIR="+filepath.Dir(out)) // as containerd does
	}
	cmd.WaitDelay = 10 * time.Second
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s (%s): %w: %s", script, in, err, text)
	}
	return nil
}

func fsync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// warm reads a file, so that it is in the page cache, and returns its length.
func warm(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(io.Discard, f)
}

// prepareInputs finds the layers in the lab's cache and compresses them there, once.
func prepareInputs(ctx context.Context) ([]input, error) {
	var inputs []input
	for _, layer := range layers {
		tar := lab.Layer(layer)
		st, err := os.Stat(tar)
		if err != nil {
			return nil, fmt.Errorf("%w (make images)", err)
		}
		for _, c := range compressions {
			in := input{source: source{layer, c}, tar: tar, tarBytes: st.Size()}
			if in.path, err = compressed(ctx, tar, c); err != nil {
				return nil, err
			}
			if in.digest, err = digestOf(in.path); err != nil {
				return nil, err
			}
			inputs = append(inputs, in)
		}
	}
	return inputs, nil
}

// compressed is a compressed copy of a layer, made anew when the layer is newer.
func compressed(ctx context.Context, tar, compression string) (string, error) {
	compressor, suffix := "gzip -6 -n -c", ".gz"
	switch compression {
	case "plain":
		return tar, nil
	case "zstd":
		compressor, suffix = "zstd -3 -q -c", ".zst"
	}
	dir := filepath.Join(lab.Cache(), "bench")
	path := filepath.Join(dir, filepath.Base(tar)+suffix)
	if old, err := os.Stat(path); err == nil {
		if st, err := os.Stat(tar); err == nil && st.ModTime().Before(old.ModTime()) {
			return path, nil
		}
	}
	progress("%s %s", compressor, filepath.Base(tar))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	part := path + ".part"
	defer os.Remove(part)
	if err := shell(ctx, compressor+` <"$IN" >"$OUT"`, tar, part); err != nil {
		return "", err
	}
	return path, os.Rename(part, path)
}

func digestOf(path string) (digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}
