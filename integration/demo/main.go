// Command demo shows erofs-snapshotter at work, from nothing to a web server that runs from EROFS: it installs the tools, builds an
// image from Debian packages, and runs containerd with a registry and our daemon in a private directory. It takes everything away
// again, apart from the cache of tools and images. Run it from the checkout as root: make demo.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

const (
	program = "bin/erofs-snapshotter"
	image   = "nginx-gzip"
)

func main() {
	// Whatever ends the demo, it cleans up: also a terminal that goes away, or a reader of its output that has seen enough.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is the lab and what the steps hand on to each other.
type demo struct {
	lab  *lab.Lab
	ref  string
	page string // address of the container's web server
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root, for mounts and containers")
	}
	d := &demo{}
	defer func() {
		err = errors.Join(err, step("clean up: containers, mounts, processes, files", d.close))
	}()
	for _, s := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"install containerd, runc, a registry (once)", d.tools},
		{"build an image from Debian packages: base, nginx, site (once)", d.image},
		{"start registry, erofs-snapshotter, containerd; push the image", d.start},
		{"pull with --snapshotter " + lab.Snapshotter + ": it fetches the layers itself, and each becomes EROFS while it streams in", d.pull},
		{"look at the layers: compressed, as a tar, as EROFS", d.sizes},
		{"run a shell in a container", d.shell},
		{"run nginx in a container and ask it for its page", d.serve},
		{"look at its mounts", d.mounts},
		{"kill -9 erofs-snapshotter and ask again", d.kill},
		{"start it again, remove container and image", d.remove},
	} {
		if err := step(s.what, func() error { return s.do(ctx) }); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

var steps int

// step narrates one step and how long it took.
func step(what string, do func() error) error {
	steps++
	fmt.Printf("\n%2d. %s\n", steps, what)
	begin := time.Now()
	if err := do(); err != nil {
		return err
	}
	fmt.Printf("    [%.2f s]\n", time.Since(begin).Seconds())
	return nil
}

// show prints the lines of a text, indented.
func show(text string) {
	for line := range strings.Lines(text) {
		fmt.Printf("    %s\n", strings.TrimRight(line, "\n"))
	}
}

func (d *demo) tools(ctx context.Context) error {
	return script(ctx, "integration/lab/tools.sh", "packages", "containerd", "runc", "registry", "crane")
}

func (d *demo) image(ctx context.Context) error {
	return script(ctx, "integration/lab/images.sh", strings.TrimSuffix(image, "-gzip"))
}

func script(ctx context.Context, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "COMPRESSIONS=gzip")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// An interrupted demo stops the script as a terminal does, and what it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return cmd.Run()
}

func (d *demo) start(ctx context.Context) error {
	var err error
	d.lab, err = lab.Start(ctx, lab.Options{
		Daemon:       program,
		DaemonConfig: "[collection]\ngrace = \"0s\"\n",
		Images:       []string{image},
		Announce:     lab.AnnounceTransfer,
	})
	if err != nil {
		return err
	}
	d.ref = d.lab.Ref(image)
	version, err := d.lab.Client().Version(d.lab.Context(ctx))
	if err != nil {
		return err
	}
	show(fmt.Sprintf("containerd %s at %s\nimage %s", version.Version, d.lab.ContainerdAddress(), d.ref))
	return nil
}

func (d *demo) close() error {
	if d.lab == nil {
		return nil
	}
	return d.lab.Close()
}

func (d *demo) pull(ctx context.Context) error {
	_, err := d.lab.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", lab.Snapshotter, d.ref)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, program, "--config", d.lab.Dir+"/etc/snapshotter.toml", "status").CombinedOutput()
	show(string(out))
	return err
}

func (d *demo) shell(ctx context.Context) error {
	out, err := d.lab.Ctr(ctx, "run", "--rm", "--snapshotter", lab.Snapshotter, d.ref, "shell", "/bin/sh", "-c", `
		. /etc/os-release; echo "inside: $PRETTY_NAME, $(find / -xdev -type f | wc -l) files"
		nginx -v 2>&1
		echo change >>/etc/motd && ls -l /etc/motd && tail -n 1 /etc/motd
		grep ' / ' /proc/mounts | cut -d ' ' -f 1,3`)
	show(out)
	return err
}

// serve runs nginx on a port of its own of the host, because the host's 8081 may be taken.
func (d *demo) serve(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	d.page = fmt.Sprintf("http://127.0.0.1:%d/", port)
	conf := fmt.Sprintf("sed 's/listen 8081/listen 127.0.0.1:%d/' /etc/nginx/nginx.conf >/tmp/nginx.conf && exec nginx -c /tmp/nginx.conf", port)
	if _, err := d.lab.Ctr(ctx, "run", "--detach", "--net-host", "--snapshotter", lab.Snapshotter, d.ref, "web", "/bin/sh", "-c", conf); err != nil {
		return err
	}
	return d.ask(ctx)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// ask gets the page, as soon as the server answers.
func (d *demo) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.page, nil)
	if err != nil {
		return err
	}
	for {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			show(fmt.Sprintf("GET %s: %s\n%s", d.page, resp.Status, body))
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *demo) kill(ctx context.Context) error {
	if err := d.lab.KillSnapshotter(); err != nil {
		return err
	}
	return d.ask(ctx)
}

func (d *demo) remove(ctx context.Context) error {
	if err := d.lab.StartSnapshotter(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"task", "delete", "--force", "web"},
		{"container", "delete", "web"},
		{"image", "delete", "--sync", d.ref},
	} {
		if _, err := d.lab.Ctr(ctx, args...); err != nil {
			return err
		}
	}
	return d.waitEmpty(ctx)
}
