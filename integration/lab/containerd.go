package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"runtime"
	"strings"
	"text/template"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// pauseImage is what pod sandboxes run.
const pauseImage = "pause-gzip"

// Version 3 of containerd's configuration serves 2.1 to 2.4.
//
//go:embed containerd.toml.tmpl containerd17.toml.tmpl
var containerdConfigs embed.FS

var containerdTemplates = template.Must(template.ParseFS(containerdConfigs, "*.tmpl"))

// cniConfig is a bridge with a network of its own for each lab.
const cniConfig = `{ "cniVersion": "1.0.0", "name": %[1]q, "plugins": [
  { "type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": %[2]q, "ranges": [[{ "subnet": "10.%[3]d.%[4]d.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
`

// StartContainerd starts containerd and waits until it answers and has loaded what pulls need. It may be called again after
// Stop- or KillContainerd.
func (l *Lab) StartContainerd(ctx context.Context) error {
	if l.containerd.running() {
		return errors.New("containerd runs already")
	}
	config, err := l.writeContainerdConfig()
	if err != nil {
		return err
	}
	if l.containerd, err = l.startProcess("containerd", containerdProgram(l.opts.Containerd, "containerd"), "--config", config); err != nil {
		return err
	}
	return l.containerd.ready(ctx, func(ctx context.Context) error {
		// Asked first, because a gRPC client that finds no socket backs off for a second.
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", l.ContainerdAddress())
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
		if l.client == nil {
			l.client, err = containerd.New(l.ContainerdAddress(), containerd.WithDefaultNamespace(l.Namespace), containerd.WithTimeout(startTimeout))
			if err != nil {
				return err
			}
		}
		return l.checkPlugins(ctx)
	})
}

// StopContainerd asks containerd to end and waits for it. Containers go on running under their shims.
func (l *Lab) StopContainerd() error { return l.containerd.stop() }

// KillContainerd ends containerd with SIGKILL.
func (l *Lab) KillContainerd() error { return l.containerd.kill() }

// Client is a client of containerd in the lab's namespace. It outlives restarts of containerd; the lab closes it.
func (l *Lab) Client() *containerd.Client { return l.client }

// Ctr runs the ctr of the lab's containerd in the lab's namespace and returns its standard output.
func (l *Lab) Ctr(ctx context.Context, args ...string) (string, error) {
	return l.output(ctx, containerdProgram(l.opts.Containerd, "ctr"), args...)
}

// Plugin is the name of our snapshotter in containerd.
func (l *Lab) Plugin() string { return l.opts.PluginName }

// checkPlugins finds plugins that are needed and did not load: containerd serves without them, and pulls then end with puzzling errors.
func (l *Lab) checkPlugins(ctx context.Context) error {
	needed := map[string]bool{"io.containerd.transfer.v1.local": true, "io.containerd.snapshotter.v1." + l.Plugin(): true}
	if l.opts.CRI {
		needed["io.containerd.grpc.v1.cri"] = true
	}
	if l.opts.Stargz {
		needed["io.containerd.snapshotter.v1."+Stargz] = true
	}
	if l.opts.BuiltinErofs {
		needed["io.containerd.differ.v1.erofs"] = true
	}
	resp, err := l.client.IntrospectionService().Plugins(l.Context(ctx))
	if err != nil {
		return fmt.Errorf("list plugins: %w", err)
	}
	for _, p := range resp.Plugins {
		id := p.Type + "." + p.ID
		if needed[id] && p.InitErr == nil {
			delete(needed, id)
		} else if needed[id] {
			return fmt.Errorf("containerd did not load %s: %s", id, p.InitErr.Message)
		}
	}
	for id := range needed {
		return fmt.Errorf("containerd has no plugin %s", id)
	}
	return nil
}

func (l *Lab) writeContainerdConfig() (string, error) {
	values := struct {
		Options                                           // what .CRI, .Differ, .Announce and others are
		Dir, Address, Root, DiffPlugin, Pause, Bin string // Dir: the lab's own, not that of the options
		StargzAddress, StargzRoot, Platform        string
	}{
		l.opts, l.Dir, l.SnapshotterAddress(), l.SnapshotterRoot(), Differ, l.Ref(pauseImage), Program(""),
		l.stargzAddress(), l.StargzRoot(), "linux/" + runtime.GOARCH,
	}
	name := "containerd.toml.tmpl"
	if l.opts.Containerd == Containerd17 {
		name = "containerd17.toml.tmpl"
	}
	var text strings.Builder
	if err := containerdTemplates.ExecuteTemplate(&text, name, values); err != nil {
		return "", err
	}
	if err := os.MkdirAll(l.path("etc/cni"), 0o700); err != nil {
		return "", err
	}
	if l.opts.CNI {
		a, b := l.subnet()
		conf := fmt.Sprintf(cniConfig, l.bridge(), l.path("ipam"), a, b)
		if err := os.WriteFile(l.path("etc/cni/10-lab.conflist"), []byte(conf), 0o600); err != nil {
			return "", err
		}
	}
	path := l.path("etc/containerd.toml")
	return path, os.WriteFile(path, []byte(text.String()), 0o600)
}

// bridge and subnet differ between labs that run at the same time, as far as 16 bits of a hash go.
func (l *Lab) bridge() string {
	a, b := l.subnet()
	return fmt.Sprintf("lab%d-%d", a, b)
}

func (l *Lab) subnet() (a, b int) {
	h := fnv.New32a()
	h.Write([]byte(l.Dir))
	sum := h.Sum32()
	return 64 + int(sum>>8&0x7f), int(sum & 0xff)
}

// endTasks ends and deletes all tasks of all namespaces. It must happen while containerd serves: afterwards nobody would delete runc's
// state and the mounts of the containers.
func (l *Lab) endTasks() error {
	if l.client == nil || !l.containerd.running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	spaces, err := l.client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var errs []error
	for _, ns := range spaces {
		errs = append(errs, l.endTasksOf(ctx, ns))
	}
	return errors.Join(errs...)
}

func (l *Lab) endTasksOf(ctx context.Context, namespace string) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	containers, err := l.client.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list containers of %s: %w", namespace, err)
	}
	var errs []error
	for _, c := range containers {
		task, err := c.Task(ctx, nil)
		if err != nil {
			continue // it has none
		}
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			errs = append(errs, fmt.Errorf("delete task of container %s: %w", c.ID(), err))
		}
	}
	return errors.Join(errs...)
}
