package main

import (
	"context"
	"io"
	"log/slog"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/criproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/kubesecrets"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// sources is where layers come from that containerd has not fetched. The zero value is nowhere.
type sources struct {
	client  *registry.Client
	cri     *criproxy.Proxy      // nil without credentials.cri
	learned chan struct{}        // holds a signal when cri has learned something
	secrets *kubesecrets.Secrets // nil without credentials.kubernetes
}

// newSources makes the client of registries with its credentials, if layers are to be pulled from there. It connects to nothing.
func newSources(cfg config.Config, log *slog.Logger) (s sources, err error) {
	// Also without remote pulls: a kubelet may have been told that the image service is here.
	if cfg.Credentials.CRI {
		s.learned = make(chan struct{}, 1)
		if s.cri, err = criproxy.New(criproxy.Options{Address: cfg.Containerd.Address, Changed: s.noteLearned}); err != nil {
			return sources{}, err
		}
	}
	if !cfg.Remote.Enabled {
		return s, nil
	}
	var known []credentials.Source
	if s.cri != nil {
		known = append(known, s.cri)
	}
	if cfg.Credentials.Kubernetes {
		s.secrets = kubesecrets.New(kubesecrets.Options{Kubeconfig: cfg.Credentials.Kubeconfig, Log: log})
		known = append(known, s.secrets)
	}
	if path := cfg.Credentials.DockerConfig; path != "" {
		known = append(known, credentials.DockerConfig(path))
	}
	s.client = registry.New(registryOptions(cfg.Registry, credentials.Chain(known...), log))
	return s, nil
}

func (s sources) noteLearned() {
	select {
	case s.learned <- struct{}{}:
	default:
	}
}

// registryOptions are those of a client as the configuration says.
func registryOptions(cfg config.Registry, known credentials.Source, log *slog.Logger) registry.Options {
	return registry.Options{
		HostsDir:       cfg.HostsDir,
		Credentials:    known,
		Log:            log,
		UserAgent:      userAgent(),
		Connections:    cfg.Connections,
		Memory:         cfg.Memory.Bytes,
		StallTimeout:   cfg.StallTimeout.Duration,
		BackgroundRate: cfg.BackgroundRate.Bytes,
	}
}

// userAgent is what registries see of us.
func userAgent() string { return "erofs-snapshotter/" + buildVersion() }

// registry is the sources as a Snapshotter takes them: nil if there are none.
func (s sources) registry() remote.Registry {
	if s.client == nil {
		return nil
	}
	return paced{s.client}
}

// run follows what changes, until ctx ends.
func (s sources) run(ctx context.Context) error {
	if s.secrets == nil {
		<-ctx.Done()
		return nil
	}
	return s.secrets.Run(ctx)
}

func (s sources) close() error {
	var err error
	if s.cri != nil {
		err = s.cri.Close()
	}
	if s.client != nil {
		s.client.Close()
	}
	return err
}

// paced has work that nobody waits for use no more than its share, and asks other hosts for what came corrupt.
type paced struct{ *registry.Client }

func (p paced) Open(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	if remote.InBackground(ctx) {
		ctx = registry.Background(ctx)
	}
	return p.Client.Open(ctx, image, layer)
}

func (p paced) ReadAt(ctx context.Context, image string, layer ocispec.Descriptor, dst []byte, off int64, attempt int) error {
	return p.Client.ReadAt(registry.Again(ctx, attempt), image, layer, dst, off)
}
