package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
)

// registryConfig asks for a free port; the log says which one it became.
const registryConfig = `version: 0.1
log: {level: info, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http: {addr: "127.0.0.1:0"}
`

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

func (l *Lab) startRegistry(ctx context.Context) error {
	config := l.path("etc/registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, l.path("registry")), 0o600); err != nil {
		return err
	}
	var err error
	if l.registry, err = l.startProcess("registry", Program("registry"), "serve", config); err != nil {
		return err
	}
	return l.registry.ready(ctx, func(ctx context.Context) error {
		log, err := l.Log("registry")
		if err != nil {
			return err
		}
		m := listening.FindStringSubmatch(log)
		if m == nil {
			return errors.New("its log does not name a port yet")
		}
		l.Host = m[1]
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Host+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

func (l *Lab) stopRegistry() error {
	if l.registry == nil {
		return nil
	}
	// Killed, not asked: it keeps nothing, and its clean stop waits for idle connections.
	return l.registry.kill()
}

// Ref is the reference in the lab's registry of a cached layout: nginx-gzip becomes 127.0.0.1:PORT/nginx:gzip.
func (l *Lab) Ref(image string) string {
	name, tag := image, "latest"
	if i := strings.LastIndexByte(image, '-'); i >= 0 {
		name, tag = image[:i], image[i+1:]
	}
	return l.Host + "/" + name + ":" + tag
}

// Push copies the image of an OCI layout to a registry.
func (l *Lab) Push(ctx context.Context, layout, ref string) error {
	_, err := l.output(ctx, "crane", "push", "--insecure", layout, ref)
	return err
}
