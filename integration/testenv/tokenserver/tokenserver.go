// Package tokenserver hands out the tokens that a registry with token authentication wants, to one user, and counts them. It speaks the
// GET form of the protocol (distribution's specification "auth/token"); a client that tries the POST form of OAuth2 first is told 405,
// as by many registries.
package tokenserver

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
)

// Names that the registry must be configured with.
const (
	Issuer  = "test tokens"
	Service = "test registry"
)

// leeway is how long past their end distribution accepts tokens (registry/auth/token: Leeway). Tokens end that much earlier, so that
// their lifetime is the one that was asked for.
const leeway = 60 * time.Second

// Options say who gets which tokens.
type Options struct {
	User, Password string
	// Lifetime is how long the registry accepts a token; whole seconds.
	Lifetime time.Duration
	// Certificate is what the registry trusts (rootcertbundle), Key what belongs to it: of the curve P-256.
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
	// TLS turns on HTTPS.
	TLS *tls.Config
}

// Server is a running token server.
type Server struct {
	*netproxy.Server
	opts   Options
	issued atomic.Int64
}

// New starts a token server. Close ends it.
func New(opts Options) (*Server, error) {
	s := &Server{opts: opts}
	var err error
	s.Server, err = netproxy.Serve(s, netproxy.ServerOptions{TLS: opts.TLS})
	return s, err
}

// Realm is the URL that the registry names in its challenges. It has the name localhost, because some clients take no token from an
// address of a private network.
func (s *Server) Realm() string { return strings.Replace(s.URL(), "127.0.0.1", "localhost", 1) }

// Issued is how many tokens were handed out.
func (s *Server) Issued() int { return int(s.issued.Load()) }

// ServeHTTP answers a request for a token.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	if user, password, _ := r.BasicAuth(); user != s.opts.User || password != s.opts.Password {
		http.Error(w, "wrong user or password", http.StatusUnauthorized)
		return
	}
	token, err := s.token(r.URL.Query()["scope"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.issued.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": int(s.opts.Lifetime / time.Second)})
}

// access is an entry of the claim "access".
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// token signs a token for everything in the scopes, such as "repository:library/nginx:pull,push".
func (s *Server) token(scopes []string) (string, error) {
	granted := []access{}
	for _, list := range scopes {
		for scope := range strings.FieldsSeq(list) {
			if kind, rest, ok := strings.Cut(scope, ":"); ok {
				i := max(0, strings.LastIndexByte(rest, ':')) // a name may hold a port
				granted = append(granted, access{kind, rest[:i], strings.Split(strings.TrimPrefix(rest[i:], ":"), ",")})
			}
		}
	}
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": Issuer, "aud": Service, "sub": s.opts.User, "access": granted,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(s.opts.Lifetime - leeway).Unix(),
	})
	token.Header["x5c"] = []string{base64.StdEncoding.EncodeToString(s.opts.Certificate.Raw)}
	return token.SignedString(s.opts.Key)
}
