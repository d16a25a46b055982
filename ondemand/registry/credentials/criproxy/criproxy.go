// Package criproxy learns registry credentials from kubelet: it stands between kubelet and containerd's CRI image service.
//
//	kubelet ── runtime.v1.ImageService ──► Proxy ── the same call ──► containerd
//	                                         │ remembers the AuthConfig of PullImage
//	                                         ▼
//	                                        Get
//
// kubelet is started with --image-service-endpoint on the socket where the proxy is registered. Every call is handed on as it is: its
// metadata, deadline and cancellation, fields of requests and answers that this version does not know, and containerd's error.
//
// A credential is remembered before the call is handed on, because containerd asks our snapshotter for the image's layers while it lasts.
// It is kept in memory only, for the registry's host and the image's repository, and is good for no other image: a wrong one
// spoils nothing else. The last few of a repository are kept, so that one pod's wrong secret does not take away another's
// right one. What nobody used for KeepUnused is dropped. Nothing is logged.
//
// Kubelet does not tell again what it has told once. So that the daemon's next process can go on fetching layers, it gets what this one has
// learned: Export, whose bytes must only be in memory (package keeper), and Import. Options.Changed says when to export again.
package criproxy

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

const (
	// KeepUnused is how long a credential is kept that no request used. A layer that is fetched on demand is complete, and needs no
	// credential any more, long before. Tokens of cloud registries are valid for 12 hours at most.
	KeepUnused = 24 * time.Hour
	// maxMessageBytes is kubelet's own limit for answers of the CRI.
	maxMessageBytes = 16 << 20
	// maxReconnectDelay is well below gRPC's two minutes: containerd is back within seconds of a restart, and kubelet waits.
	maxReconnectDelay = 3 * time.Second
)

// Options say where to hand calls on to.
type Options struct {
	// Address is the path of containerd's unix socket.
	Address string
	// Changed is called after what Export returns has changed, from the goroutine that changed it, several at once perhaps: it must not wait.
	// That a credential was used is a change only now and then. It may be nil.
	Changed func()
}

// Proxy hands calls on and answers from what it learned. It is a source of credentials. Safe for concurrent use.
type Proxy struct {
	conn    *grpc.ClientConn
	learned *learned
}

// New returns a proxy for the containerd at opts.Address. It does not connect: that is done with the first call.
func New(opts Options) (*Proxy, error) {
	retry := backoff.DefaultConfig
	retry.MaxDelay = maxReconnectDelay
	conn, err := grpc.NewClient("unix://"+opts.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: maxReconnectDelay}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd's CRI at %s: %w", opts.Address, err)
	}
	return &Proxy{conn: conn, learned: newLearned(maxRepositories, KeepUnused, opts.Changed)}, nil
}

// Close fails the calls that are in work and forgets all credentials.
func (p *Proxy) Close() error {
	p.learned.close()
	return p.conn.Close()
}

// Get returns what kubelet gave with a pull of the image's repository, the last first, if it is meant for host.
func (p *Proxy) Get(_ context.Context, image, host string, refused bool) (user, secret string, err error) {
	target, err := login.For(image, host)
	if err != nil {
		return "", "", err
	}
	l := p.learned.get(target, refused)
	return l.User, l.Secret, nil
}

// learn remembers the credential of a pull. What cannot be understood is left to containerd, which refuses the pull.
func (p *Proxy) learn(pull *runtime.PullImageRequest) {
	auth := pull.GetAuth()
	host, ok := serverHost(auth.GetServerAddress())
	if !ok {
		return
	}
	target, err := login.For(pull.GetImage().GetImage(), host)
	if err != nil {
		return
	}
	if l := fromAuth(auth); l.Known() {
		p.learned.put(target, l)
	}
}

// serverHost returns the host of the AuthConfig's server address, which is a URL or a host, or is empty when the credential is meant
// for the registry that the image's name begins with.
func serverHost(address string) (host string, ok bool) {
	if !strings.Contains(address, "://") {
		return address, true
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", false
	}
	return u.Host, true
}

// fromAuth reads an AuthConfig in the order in which containerd's CRI does. A registry token alone is nothing, as it is to
// containerd: it cannot be exchanged for the tokens that a registry asks for.
func fromAuth(auth *runtime.AuthConfig) login.Login {
	switch {
	case auth.GetUsername() != "":
		return login.Login{User: auth.GetUsername(), Secret: auth.GetPassword()}
	case auth.GetIdentityToken() != "":
		return login.Login{Secret: auth.GetIdentityToken()}
	case auth.GetAuth() != "":
		l, err := login.DecodeBasic(auth.GetAuth())
		if err != nil {
			return login.Login{}
		}
		return l
	}
	return login.Login{}
}
