package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// spans is a collector of traces.
type spans struct {
	mu  sync.Mutex
	all []*traces.Span
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var export collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &export)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range export.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
}

// tree counts spans by their name with those of their parents before it: "pull/layer/convert".
func (s *spans) tree() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	byID := map[string]*traces.Span{}
	for _, span := range s.all {
		byID[string(span.SpanId)] = span
	}
	tree := map[string]int{}
	for _, span := range s.all {
		path := span.Name
		for parent := byID[string(span.ParentSpanId)]; parent != nil; parent = byID[string(parent.ParentSpanId)] {
			path = parent.Name + "/" + path
		}
		tree[path]++
	}
	return tree
}

// TestPullIsSeen: status, metrics and traces show a pull.
func TestPullIsSeen(t *testing.T) {
	seen := &spans{}
	server := httptest.NewServer(seen)
	defer server.Close()
	metrics := freePort(t)
	s := newStory(t, storyTime, remoteOptions(lab.Options{
		Images:       []string{"nginx-gzip"},
		DaemonConfig: fmt.Sprintf("[tracing]\nendpoint = %q\n[metrics]\naddress = %q\n", server.URL, metrics),
	}))
	ref := s.Ref("nginx-gzip")
	s.pullRemote(ref)

	status, err := s.status()
	s.must(err)
	if len(status.Layers) != 3 || len(status.Pulls) != 1 || status.Pulls[0].Image != ref || len(status.Fallbacks) > 0 {
		t.Errorf("status: %+v", status)
	}
	for _, l := range status.Layers {
		if l.State != "complete" || l.Source != strings.TrimSuffix(ref, ":gzip") || l.References != 1 || l.DiskBytes == 0 {
			t.Errorf("layer: %+v", l)
		}
	}
	resp, err := http.Get("http://" + metrics + "/metrics")
	s.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	s.must(err)
	for _, want := range []string{
		"erofs_snapshotter_remote_layers_total 3",
		`erofs_snapshotter_pulls_total{outcome="remote"} 1`,
		`erofs_snapshotter_fallbacks_total{reason="not-found"} 0`,
		fmt.Sprintf("erofs_snapshotter_registry_requests_total{host=%q}", s.Host),
	} {
		if !strings.Contains(string(text), "\n"+want) {
			t.Errorf("no metric %s", want)
		}
	}
	s.within(30*time.Second, "spans have arrived", func() error {
		if tree := seen.tree(); tree["pull"] != 1 || tree["pull/layer/convert"] != 3 || tree["pull/layer/fetch"] != 3 {
			return fmt.Errorf("spans: %v", tree)
		}
		return nil
	})
}

// freePort returns an address on loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
