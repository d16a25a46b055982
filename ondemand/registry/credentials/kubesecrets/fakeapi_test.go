package kubesecrets

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// fakeAPI is a Kubernetes API server that has secrets.
type fakeAPI struct {
	// listOnly makes it one that does not know watches which begin with what exists.
	listOnly bool
	// forbidden makes it refuse everything.
	forbidden atomic.Bool

	mu       sync.Mutex
	version  int
	secrets  map[string]secret // by namespace/name
	log      []event           // all changes, the version of one is its index + 1
	oldest   int               // watches from before this version are answered with 410 Gone
	changed  chan struct{}     // closed by the next change
	lists    int               // requests for a list
	watches  int               // requests for a watch
	bookmark bool              // watches get a bookmark after each change
}

type secret struct{ namespace, name, kind, key, value string }

type event struct {
	kind   string
	secret secret
}

func newFakeAPI() *fakeAPI {
	return &fakeAPI{secrets: make(map[string]secret), changed: make(chan struct{})}
}

// serve listens on address, or on any when it is empty, until the test or stop ends it.
func (f *fakeAPI) serve(t *testing.T, address string) (at string, stop func()) {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(f)
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	stop = func() {
		server.CloseClientConnections()
		server.Close()
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// kubeconfig writes the configuration for the server at address.
func kubeconfig(t *testing.T, address string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"http://%s"}}],
		"users":[{"name":"u","user":{}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`, address)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// apply makes or changes a secret.
func (f *fakeAPI) apply(s secret) { f.change("ADDED", s) }

func (f *fakeAPI) remove(s secret) { f.change("DELETED", s) }

func (f *fakeAPI) change(kind string, s secret) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := s.namespace + "/" + s.name
	if kind == "DELETED" {
		delete(f.secrets, name)
	} else {
		if _, exists := f.secrets[name]; exists {
			kind = "MODIFIED"
		}
		f.secrets[name] = s
	}
	f.version++
	f.log = append(f.log, event{kind, s})
	f.wake()
}

// expire forgets the history, and ends the watches that hang on it with 410 Gone.
func (f *fakeAPI) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.log = append(f.log, event{"GONE", secret{}})
	f.oldest = f.version
	f.wake()
}

// wake makes the watches look. The caller holds mu.
func (f *fakeAPI) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeAPI) counts() (lists, watches int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists, f.watches
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/v1/secrets" || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	kind, version := q.Get("fieldSelector"), q.Get("resourceVersion")
	w.Header().Set("Content-Type", "application/json")
	if f.forbidden.Load() {
		w.WriteHeader(http.StatusForbidden)
		send(w, failure(http.StatusForbidden, "Forbidden"))
		return
	}
	if q.Get("watch") == "" {
		f.list(w, kind)
		return
	}
	f.mu.Lock()
	f.watches++
	listOnly := f.listOnly
	f.mu.Unlock()
	initial := q.Get("sendInitialEvents") == "true"
	if initial && listOnly {
		w.WriteHeader(http.StatusUnprocessableEntity)
		send(w, failure(http.StatusUnprocessableEntity, "Invalid"))
		return
	}
	from, _ := strconv.Atoi(version)
	if initial {
		from = f.sendInitial(w, kind)
	}
	f.follow(w, r, kind, from)
}

func (f *fakeAPI) list(w http.ResponseWriter, kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists++
	items := []any{}
	for _, s := range f.secrets {
		if "type="+s.kind == kind {
			items = append(items, s.object(f.version))
		}
	}
	send(w, map[string]any{"kind": "SecretList", "apiVersion": "v1",
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)}, "items": items})
}

// sendInitial sends all that exists and the bookmark that says so. It returns the version of that.
func (f *fakeAPI) sendInitial(w http.ResponseWriter, kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.secrets {
		if "type="+s.kind == kind {
			send(w, map[string]any{"type": "ADDED", "object": s.object(f.version)})
		}
	}
	send(w, bookmark(f.version, map[string]any{"k8s.io/initial-events-end": "true"}))
	return f.version
}

// follow sends the changes after version from.
func (f *fakeAPI) follow(w http.ResponseWriter, r *http.Request, kind string, from int) {
	for {
		f.mu.Lock()
		if from < f.oldest {
			f.mu.Unlock()
			send(w, map[string]any{"type": "ERROR", "object": failure(http.StatusGone, "Expired")})
			return
		}
		news, changed := f.log[from:], f.changed
		from = f.version
		withBookmark := f.bookmark && len(news) > 0
		f.mu.Unlock()
		for _, e := range news {
			if "type="+e.secret.kind == kind {
				send(w, map[string]any{"type": e.kind, "object": e.secret.object(from)})
			}
		}
		if withBookmark {
			send(w, bookmark(from, nil))
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (s secret) object(version int) map[string]any {
	return map[string]any{"kind": "Secret", "apiVersion": "v1", "type": s.kind,
		"metadata": map[string]any{"namespace": s.namespace, "name": s.name, "resourceVersion": strconv.Itoa(version)},
		"data":     map[string]any{s.key: base64.StdEncoding.EncodeToString([]byte(s.value))}}
}

func bookmark(version int, annotations map[string]any) map[string]any {
	return map[string]any{"type": "BOOKMARK", "object": map[string]any{"kind": "Secret", "apiVersion": "v1",
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(version), "annotations": annotations}}}
}

func failure(code int, reason string) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason}
}

// send writes one JSON document. When it cannot, the client is gone.
func send(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
