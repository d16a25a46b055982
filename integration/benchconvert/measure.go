package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// timeout is for one measurement.
const timeout = 5 * time.Minute

// row is one measurement.
type row struct {
	begin               time.Time
	round               int
	layer, form, method string

	tarBytes, inputBytes int64
	diskBytes            int64 // allocated for what was written
	load                 float64
	report
}

var header = []string{"time", "round", "layer", "input", "method", "tar_bytes", "input_bytes", "time_s", "cpu_s", "peak_rss_kib",
	"disk_bytes", "inodes", "load1", "remark"}

func (r row) fields() []string {
	return []string{r.begin.Format(time.RFC3339), strconv.Itoa(r.round), r.layer, r.form, r.method,
		strconv.FormatInt(r.tarBytes, 10), strconv.FormatInt(r.inputBytes, 10), benchkit.Seconds(r.Wall), benchkit.Seconds(r.CPU),
		strconv.FormatInt(r.PeakKiB, 10), strconv.FormatInt(r.diskBytes, 10), strconv.FormatInt(r.Inodes, 10),
		strconv.FormatFloat(r.load, 'f', 2, 64), r.Remark}
}

// work is a method with one of the forms that it is for.
type work struct {
	method
	form string
}

func workOf(methods []method) []work {
	var list []work
	for _, m := range methods {
		for _, form := range m.forms {
			list = append(list, work{m, form})
		}
	}
	return list
}

// measure returns the rows that could be measured, and the errors of the others.
func measure(ctx context.Context, w *benchkit.Workshop, s settings, csvPath string) (rows []row, err error) {
	raw, err := benchkit.NewTable(csvPath, header)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	inputs := map[string]map[string]input{}
	for _, l := range s.layers {
		if inputs[l.name], err = prepare(ctx, l); err != nil {
			return nil, err
		}
	}
	var errs []error
	for round := range s.Rounds {
		for _, l := range s.layers {
			for _, job := range benchkit.Rotated(workOf(s.methods), round) {
				if ctx.Err() != nil {
					return rows, errors.Join(append(errs, ctx.Err())...)
				}
				row, err := measureOne(ctx, w, inputs[l.name][job.form], job.method)
				if err != nil {
					errs = append(errs, fmt.Errorf("round %d, %s of %s, %s: %w", round+1, job.name, l.name, job.form, err))
					benchkit.Progress("%v", errs[len(errs)-1])
					continue
				}
				row.round = round + 1
				rows = append(rows, row)
				errs = append(errs, raw.Write(row.fields()))
				benchkit.Progress("round %d %-6s %-7s %-16s %.3f s, processors %.3f s, %d MiB %s", row.round, row.layer, row.form, row.method,
					row.Wall.Seconds(), row.CPU.Seconds(), row.PeakKiB>>10, row.Remark)
			}
		}
	}
	return rows, errors.Join(errs...)
}

func measureOne(ctx context.Context, w *benchkit.Workshop, in input, m method) (r row, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r = row{begin: time.Now(), layer: in.layer, form: in.form, method: m.name, tarBytes: in.tarBytes, load: benchkit.LoadAverage()}
	if !m.writes {
		return r, r.run(ctx, in, m, "")
	}
	err = w.WithFreshDisk(ctx, func(mount string) error {
		dir := filepath.Join(mount, "work")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if _, err := benchkit.SyncDisk(mount); err != nil {
			return err
		}
		if err := r.run(ctx, in, m, dir); err != nil {
			return err
		}
		if _, err := benchkit.SyncDisk(mount); err != nil { // blocks are allocated late
			return err
		}
		r.diskBytes, err = benchkit.Allocated("", dir)
		return err
	})
	return r, err
}

func (r *row) run(ctx context.Context, in input, m method, dir string) (err error) {
	if r.inputBytes, err = benchkit.Warm(in.path); err != nil {
		return err
	}
	if m.writes {
		if err := benchkit.TouchMemory(); err != nil {
			return err
		}
	}
	r.report, err = m.start(ctx, job{input: in.path, output: dir, digest: in.digest})
	return err
}
