package lab

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/testca"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/tokenserver"
)

// Auth is how the registry wants to know who asks.
type Auth string

// Ways of authentication. With the last two the registry answers only Registry.User.
const (
	AuthNone  Auth = ""
	AuthBasic Auth = "basic"
	AuthToken Auth = "token" // of a token server that the lab runs
)

// Registry is how the lab's registry, distribution, is reached.
type Registry struct {
	// Address is where it listens. Default: a free port on loopback.
	Address string
	// TLS turns on HTTPS, with a certificate of Lab.CA. HostsDir has an entry for it.
	TLS bool
	// Auth is required for everything. Lab.DockerConfig has the credentials.
	Auth Auth
	// User and Password are needed with Auth. Default: puller, secret.
	User, Password string
	// TokenLifetime is how long a token opens the registry. Whole seconds; default: 1 minute.
	TokenLifetime time.Duration
	// Record puts a proxy in front that records requests: see RegistryRequests. Pushes go round it.
	Record bool
}

func (r *Registry) setDefaults() {
	if r.User == "" {
		r.User, r.Password = "puller", "secret"
	}
	if r.Address == "" {
		r.Address = "127.0.0.1:0"
	}
	if r.TokenLifetime == 0 {
		r.TokenLifetime = time.Minute
	}
}

// registry is what runs of it.
type registry struct {
	process *process
	addr    string // of distribution itself
	ca      *testca.CA
	tokens  *tokenserver.Server
	proxies []*netproxy.Proxy // the first one is the recording one, if there is one
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

func (l *Lab) startRegistry(ctx context.Context) error {
	if err := os.MkdirAll(l.HostsDir(), 0o700); err != nil {
		return err
	}
	if err := l.fillRegistry(); err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	config, err := l.registryConfig()
	if err != nil {
		return fmt.Errorf("configure the registry: %w", err)
	}
	text, err := json.Marshal(config) // which is YAML, too
	if err != nil {
		return err
	}
	path := l.path("etc/registry.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	if l.registry.process, err = l.startProcess("registry", Program("registry"), "serve", path); err != nil {
		return err
	}
	if err := l.registry.process.ready(ctx, l.pingRegistry); err != nil {
		return err
	}
	l.Host = l.registry.addr
	if l.opts.Registry.Record {
		p, err := l.Mirror()
		if err != nil {
			return err
		}
		l.Host = p.Addr()
	}
	return l.writeRegistryFiles()
}

// fillRegistry lets the registry begin with the files of another one, the directory EROFS_TEST_REGISTRY if that is set. What is there need not be
// pushed, which takes minutes on slow machines.
func (l *Lab) fillRegistry() error {
	from := os.Getenv("EROFS_TEST_REGISTRY")
	if from == "" || l.opts.Resume != "" {
		return nil
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(l.path("registry"), strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		// A file of a repository is replaced by writing to it, a blob is not.
		if d.Name() == "data" {
			return os.Symlink(path, to)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o600)
	})
}

// RegistryFiles is the directory of the registry's files.
func (l *Lab) RegistryFiles() string { return l.path("registry") }

// table is a part of a configuration.
type table = map[string]any

// registryConfig is distribution's configuration. The servers and files that it names are made.
func (l *Lab) registryConfig() (table, error) {
	server := table{"addr": l.opts.Registry.Address, "relativeurls": true} // the log says which port it became
	config := table{
		"version": "0.1",
		"log":     table{"level": "info", "accesslog": table{"disabled": false}},
		"storage": table{"filesystem": table{"rootdirectory": l.path("registry")}, "delete": table{"enabled": true}},
		"http":    server,
	}
	if l.opts.Registry.TLS {
		ca, files, err := l.makeCA("")
		if err != nil {
			return nil, err
		}
		l.registry.ca = ca
		server["tls"] = table{"certificate": files.Certificate, "key": files.Key}
	}
	auth, err := l.registryAuth()
	if auth != nil {
		config["auth"] = auth
	}
	return config, err
}

// registryAuth is the part of the configuration that says who may do what, nil if everybody may do everything.
func (l *Lab) registryAuth() (table, error) {
	opts := l.opts.Registry
	switch opts.Auth {
	case AuthNone:
		return nil, nil
	case AuthBasic:
		hash, err := bcrypt.GenerateFromPassword([]byte(opts.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		path := l.path("etc/htpasswd")
		return table{"htpasswd": table{"realm": "lab", "path": path}}, os.WriteFile(path, fmt.Appendf(nil, "%s:%s\n", opts.User, hash), 0o600)
	case AuthToken:
		signer, files, err := l.makeCA("tokens")
		if err != nil {
			return nil, err
		}
		certificate, key := signer.ServerCertificate()
		l.registry.tokens, err = tokenserver.New(tokenserver.Options{
			User: opts.User, Password: opts.Password, Lifetime: opts.TokenLifetime, Certificate: certificate, Key: key, TLS: l.CA().ServerTLS(),
		})
		if err != nil {
			return nil, err
		}
		return table{"token": table{
			"realm": l.registry.tokens.Realm(), "service": tokenserver.Service, "issuer": tokenserver.Issuer, "rootcertbundle": files.CA,
		}}, nil
	default:
		return nil, fmt.Errorf("no authentication %q; there are %q and %q", opts.Auth, AuthBasic, AuthToken)
	}
}

// makeCA makes an authority with files in a directory below etc.
func (l *Lab) makeCA(dir string) (*testca.CA, testca.Files, error) {
	ca, err := testca.New()
	if err != nil {
		return nil, testca.Files{}, err
	}
	path := filepath.Join(l.path("etc"), dir)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, testca.Files{}, err
	}
	files, err := ca.WriteFiles(path)
	return ca, files, err
}

// pingRegistry finds the registry's address and asks it for anything.
func (l *Lab) pingRegistry(ctx context.Context) error {
	log, err := l.Log("registry")
	if err != nil {
		return err
	}
	m := listening.FindStringSubmatch(log)
	if m == nil {
		return errors.New("its log does not name a port yet")
	}
	l.registry.addr = m[1]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.scheme()+m[1]+"/v2/", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: l.CA().Pool()}}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// writeRegistryFiles tells clients how to reach the registry.
func (l *Lab) writeRegistryFiles() error {
	opts := l.opts.Registry
	if opts.TLS {
		if err := l.WriteHosts(l.Host, fmt.Sprintf("server = %q\nca = %q\n", l.RegistryURL(), l.CAFile())); err != nil {
			return err
		}
	}
	if opts.Auth == AuthNone {
		return nil
	}
	auth := map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(opts.User + ":" + opts.Password))}
	text, err := json.Marshal(map[string]any{"auths": map[string]any{l.Host: auth, l.registry.addr: auth}})
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Dir(l.DockerConfig()), 0o700); err != nil {
		return err
	}
	return os.WriteFile(l.DockerConfig(), text, 0o600)
}

// StopRegistry ends the registry and what the lab runs beside and in front of it. It cannot be started again.
func (l *Lab) StopRegistry() error {
	var errs []error
	for _, p := range l.registry.proxies {
		errs = append(errs, p.Close())
	}
	if l.registry.tokens != nil {
		errs = append(errs, l.registry.tokens.Close())
	}
	if l.registry.process != nil {
		// Killed, not asked: it keeps nothing, and its clean stop waits for idle connections.
		errs = append(errs, l.registry.process.kill())
	}
	return errors.Join(errs...)
}

func (l *Lab) scheme() string {
	if l.opts.Registry.TLS {
		return "https://"
	}
	return "http://"
}

// RegistryURL is Host with its scheme, the target for proxies in front of it.
func (l *Lab) RegistryURL() string { return l.scheme() + l.Host }

// CA is the authority of the registry's certificate, nil without Registry.TLS. Proxies in front of the registry use it too:
//
//	faultproxy.New(l.RegistryURL(), faultproxy.Options{TLS: l.CA().ServerTLS(), Roots: l.CA().Pool()})
func (l *Lab) CA() *testca.CA { return l.registry.ca }

// CAFile is the certificate of CA.
func (l *Lab) CAFile() string { return l.path("etc/ca.pem") }

// DockerConfig is a docker configuration file with the credentials for the registry. It is there with Registry.Auth.
func (l *Lab) DockerConfig() string { return l.path("etc/docker/config.json") }

// HostsDir is the directory of hosts.toml files that CRI reads, and that ctr reads with --hosts-dir.
func (l *Lab) HostsDir() string { return l.path("etc/certs.d") }

// WriteHosts writes the hosts.toml of a registry, which is HOST:PORT.
func (l *Lab) WriteHosts(host, toml string) error {
	dir := filepath.Join(l.HostsDir(), host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600)
}

// Mirror starts another address of the registry, which can be killed. The lab closes it.
func (l *Lab) Mirror() (*netproxy.Proxy, error) {
	p, err := netproxy.New(l.scheme()+l.registry.addr, netproxy.Options{TLS: l.CA().ServerTLS(), Roots: l.CA().Pool()})
	if err != nil {
		return nil, err
	}
	l.registry.proxies = append(l.registry.proxies, p)
	return p, nil
}

// RegistryRequests returns the requests to Host that have ended, in that order, without pushes. It needs Registry.Record.
func (l *Lab) RegistryRequests() []netproxy.Request {
	if !l.opts.Registry.Record {
		panic("lab: RegistryRequests without Options.Registry.Record")
	}
	return l.registry.proxies[0].Requests()
}

// TokensIssued is how many tokens the token server has handed out, 0 without AuthToken. Pushes need some, too.
func (l *Lab) TokensIssued() int {
	if l.registry.tokens == nil {
		return 0
	}
	return l.registry.tokens.Issued()
}

// Ref is the reference in the lab's registry of a cached layout: nginx-gzip becomes 127.0.0.1:PORT/nginx:gzip.
func (l *Lab) Ref(image string) string { return l.RefAt(l.Host, image) }

// RefAt is Ref for another address of the registry, such as a proxy's.
func (l *Lab) RefAt(host, image string) string {
	name, tag, ok := strings.Cut(image, "-")
	if !ok {
		tag = "latest"
	}
	return host + "/" + name + ":" + tag
}

// Push copies the image of an OCI layout to a registry.
func (l *Lab) Push(ctx context.Context, layout, ref string) error {
	if rest, ok := strings.CutPrefix(ref, l.Host+"/"); ok {
		ref = l.registry.addr + "/" + rest
	}
	cmd := l.command(ctx, Program("crane"), "push", "--insecure", layout, ref)
	cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+filepath.Dir(l.DockerConfig()))
	_, err := run(cmd)
	return err
}
