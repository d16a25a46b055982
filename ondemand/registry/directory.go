package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"
)

// directoryAge is how long the hosts of a registry are kept: an edit of hosts.toml or a new certificate is noticed within it, and
// connections, tokens and TLS sessions are used by all layers of a pull.
const directoryAge = time.Minute

// directory knows the hosts of each registry.
type directory struct {
	options Options
	hosts   *hosts

	mu         sync.Mutex
	registries map[string]*listing // by the name in image references
}

// listing is what hosts.toml said about a registry at one time.
type listing struct {
	loaded       time.Time
	hosts        []docker.RegistryHost
	transports   map[*http.Client]*http.Transport // of hosts, below what containerd puts upon them
	repositories map[string][]*endpoint           // by repository: tokens are good for one
}

// repository is the place of an image, with the hosts that serve it in the order in which they are asked.
type repository struct {
	image     string // the whole reference
	spec      reference.Spec
	name      string // "library/nginx"
	endpoints []*endpoint
}

// endpoint is one host as a source of one repository.
type endpoint struct {
	host   *host
	login  *login
	client http.RoundTripper
	caps   docker.HostCapabilities
	base   url.URL // up to the repository, with ?ns= for a mirror
}

func newDirectory(o Options, hosts *hosts) *directory {
	return &directory{options: o, hosts: hosts, registries: map[string]*listing{}}
}

func (d *directory) hostOptions(name string, l *listing) config.HostOptions {
	o := config.HostOptions{UpdateClient: func(client *http.Client) error { return d.tune(client, l) }}
	if d.options.HostsDir != "" {
		o.HostDir = config.HostDirFromRoot(d.options.HostsDir)
	}
	if d.options.PlainHTTP != nil {
		o.DefaultScheme = "https"
		if d.options.PlainHTTP(name) {
			o.DefaultScheme = "http"
		}
	}
	return o
}

// tune fits containerd's transport to ranged reads. It speaks HTTP/1.1, as one HTTP/2 connection for all ranges would be bound by one
// congestion window; each range has a connection, and none is dropped only because more than two are idle. Bodies are read as sent.
func (d *directory) tune(client *http.Client, l *listing) error {
	tr, ok := client.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("transport of a registry: unexpected %T", client.Transport)
	}
	tr.MaxIdleConns = 0
	tr.MaxIdleConnsPerHost = 2 * d.options.Connections
	tr.DisableCompression = true
	tr.ResponseHeaderTimeout = 0 // every request has an end of its own
	l.transports[client] = tr
	return nil
}

// repository returns the place of an image.
func (d *directory) repository(image string) (*repository, error) {
	spec, err := reference.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", image, errdefs.ErrInvalidArgument, err)
	}
	registry := spec.Hostname()
	name := strings.TrimPrefix(strings.TrimPrefix(spec.Locator, registry), "/")
	if name == "" {
		return nil, fmt.Errorf("image %q: %w: no repository", image, errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l, err := d.listing(registry)
	if err != nil {
		return nil, err
	}
	endpoints, ok := l.repositories[name]
	if !ok {
		for _, h := range l.hosts {
			endpoints = append(endpoints, d.endpoint(h, l.transports[h.Client], registry, name))
		}
		l.repositories[name] = endpoints
	}
	return &repository{image: image, spec: spec, name: name, endpoints: endpoints}, nil
}

// listing returns what is known of the registry, read anew if it is old. The caller holds mu.
func (d *directory) listing(registry string) (*listing, error) {
	for name, l := range d.registries {
		if time.Since(l.loaded) > directoryAge {
			l.closeIdle()
			delete(d.registries, name)
		}
	}
	if l, ok := d.registries[registry]; ok {
		return l, nil
	}
	l := &listing{loaded: time.Now(), transports: map[*http.Client]*http.Transport{}, repositories: map[string][]*endpoint{}}
	// The context only carries a logger.
	var err error
	if l.hosts, err = config.ConfigureHosts(context.Background(), d.hostOptions(registry, l))(registry); err != nil {
		return nil, fmt.Errorf("hosts of registry %s in %q: %w: %w", registry, d.options.HostsDir, errdefs.ErrInvalidArgument, err)
	}
	d.registries[registry] = l
	return l, nil
}

func (d *directory) endpoint(h docker.RegistryHost, foreign *http.Transport, registry, repository string) *endpoint {
	e := &endpoint{
		host: d.hosts.get(h.Host),
		caps: h.Capabilities,
		base: url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join("/", h.Path, repository)},
	}
	if h.Host != registry && (registry != "docker.io" || h.Host != "registry-1.docker.io") {
		e.base.RawQuery = url.Values{"ns": {registry}}.Encode()
	}
	e.client = &ownHeaders{own: h.Client.Transport, foreign: foreign, origin: e.base, header: h.Header, agent: d.options.UserAgent}
	e.login = &login{
		client:      &http.Client{Transport: shortAnswers{e.client}, CheckRedirect: keepSecrets},
		credentials: d.options.Credentials,
		host:        h.Host,
		timeout:     d.options.StallTimeout,
		turn:        semaphore.NewWeighted(1),
	}
	return e
}

// url returns the address of an object: its place, and a digest or tag.
func (e *endpoint) url(place, reference string) *url.URL {
	u := e.base
	u.Path = path.Join(u.Path, place, reference)
	return &u
}

func (l *listing) closeIdle() {
	for _, tr := range l.transports {
		tr.CloseIdleConnections()
	}
}

func (d *directory) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.registries {
		l.closeIdle()
	}
}

// serving returns the endpoints that may be asked.
func (r *repository) serving(caps docker.HostCapabilities) []*endpoint {
	var endpoints []*endpoint
	for _, e := range r.endpoints {
		if e.caps.Has(caps) {
			endpoints = append(endpoints, e)
		}
	}
	return endpoints
}
