package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/slowproxy"
)

// network is how the registry is reached; its name is part of the names of ratios.
type network struct {
	name string
	link slowproxy.Options // zero: nothing is in between
}

var networks = []network{
	{name: "loopback"},
	{name: "slow", link: slowproxy.Options{RoundTrip: 10 * time.Millisecond, BitsPerSecond: 200_000_000}},
}

func networkName(n network) string { return n.name }

// linkTime is how long a link of this network takes for as many bytes.
func (n network) linkTime(bytes int64) time.Duration {
	return time.Duration(float64(bytes) * 8 / float64(n.link.BitsPerSecond) * float64(time.Second))
}

// registry is the registry of a lab of its own. It keeps its blobs on a tmpfs, so dropping the page cache does not slow it.
type registry struct {
	lab   *lab.Lab
	links map[string]*slowproxy.Proxy // by network
	// marked is how long its log was at the mark.
	marked int
}

func startRegistry(ctx context.Context, w *benchkit.Workshop, s settings) (_ *registry, err error) {
	opts := lab.Options{Dir: w.Memory(), NoDaemon: true}
	for _, p := range s.peers {
		for _, img := range s.images {
			if layout := p.layout(img); !slices.Contains(opts.Images, layout) {
				opts.Images = append(opts.Images, layout)
			}
		}
	}
	for _, layout := range opts.Images {
		if err := lab.Image(layout).Missing(); err != nil {
			return nil, err
		}
	}
	l, err := lab.Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	r := &registry{lab: l, links: map[string]*slowproxy.Proxy{}}
	err = l.StopContainerd() // every measurement has its own
	for _, n := range s.networks {
		if err == nil && n.link != (slowproxy.Options{}) {
			r.links[n.name], err = slowproxy.New(l.Host, n.link)
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *registry) close() error {
	var errs []error
	for _, link := range r.links {
		if link != nil {
			errs = append(errs, link.Close())
		}
	}
	return errors.Join(append(errs, r.lab.Close())...)
}

// ref is the name of a layout over a network.
func (r *registry) ref(layout string, n network) string {
	if link := r.links[n.name]; link != nil {
		return r.lab.RefAt(link.Addr(), layout)
	}
	return r.lab.Ref(layout)
}

// received is how many bytes have come over a network so far, those of requests that have not ended among them. It is 0 for loopback,
// where nothing counts them.
func (r *registry) received(n network) int64 {
	if link := r.links[n.name]; link != nil {
		return link.Downstream()
	}
	return 0
}

// mark begins the counting of what is sent.
func (r *registry) mark() {
	log, _ := r.lab.Log("registry") // what cannot be read now cannot be read by sent
	r.marked = len(log)
}

// sent is how many bytes of the image's manifests and blobs the registry sent since the mark, by requests that have ended.
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
