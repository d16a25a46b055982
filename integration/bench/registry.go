package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// network is how the registry is reached; it is part of the names of ratios.
const network = "loopback"

// registry is the registry of a lab of its own. It keeps its blobs on a tmpfs, so dropping the page cache does not slow it.
type registry struct {
	lab *lab.Lab
	// marked is how long its log was at the mark.
	marked int
}

func startRegistry(ctx context.Context, w *benchkit.Workshop, images []image) (*registry, error) {
	opts := lab.Options{Dir: w.Memory(), NoDaemon: true}
	for _, img := range images {
		opts.Images = append(opts.Images, img.layout)
	}
	l, err := lab.Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := l.StopContainerd(); err != nil { // every measurement has its own
		return nil, errors.Join(err, l.Close())
	}
	return &registry{lab: l}, nil
}

func (r *registry) close() error { return r.lab.Close() }

func (r *registry) ref(img image) string { return r.lab.Ref(img.layout) }

// mark begins the counting of what is sent.
func (r *registry) mark() {
	log, _ := r.lab.Log("registry") // what cannot be read now cannot be read by sent
	r.marked = len(log)
}

// sent is how many bytes of the image's manifests and blobs the registry sent since the mark.
func (r *registry) sent(img image) (int64, error) {
	time.Sleep(100 * time.Millisecond) // a request is logged a moment after its last byte
	log, err := r.lab.Log("registry")
	if err != nil {
		return 0, err
	}
	n := sentBytes(log[r.marked:], img.name)
	if n == 0 {
		return 0, fmt.Errorf("the registry's access log shows no request for %s", img.name)
	}
	return n, nil
}

// accessLine is a line of the registry's access log (Apache's combined format) for a download: repository, status, bytes.
var accessLine = regexp.MustCompile(`^\S+ \S+ \S+ \[[^]]*\] "GET /v2/(\S+)/(?:manifests|blobs)/\S+ HTTP/[0-9.]+" (\d+) (\d+) `)

func sentBytes(log, repository string) int64 {
	var total int64
	for line := range strings.Lines(log) {
		m := accessLine.FindStringSubmatch(line)
		if m == nil || m[1] != repository || !strings.HasPrefix(m[2], "2") {
			continue
		}
		if n, err := strconv.ParseInt(m[3], 10, 64); err == nil {
			total += n
		}
	}
	return total
}
