package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// program is an image, and how to see that what is in it works.
type program struct {
	image  string
	layers int
	// prints is what the image's own command prints; nil for a server.
	prints *regexp.Regexp
}

var programs = []program{
	{image: "nginx", layers: 3},
	{image: "node", layers: 3, prints: regexp.MustCompile(`(?m)^ready node v\d+\S* typescript \d`)},
	// 3a + b = 9, a + 2b = 8
	{image: "scipy", layers: 4, prints: regexp.MustCompile(`(?m)^ready numpy .* x \[(2\.0|1\.99)\d*, (3\.0|2\.99)\d*\]`)},
	{image: "java", layers: 3, prints: regexp.MustCompile(`(?m)^ready java \d+`)},
}

// variants are the ways in which the layers of the cached images are compressed.
var variants = []string{"gzip", "zstd"}

// long says that the long forms of the tests are wanted.
func long() bool { return os.Getenv("EROFS_TEST_LONG") != "" }

// answers asks the web server of the nginx image for its page, in the network namespace of the process pid.
func (s *story) answers(pid int) {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dialInside(pid, "127.0.0.1:8081") },
	}}
	s.within(20*time.Second, "web server answers", func() error {
		req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://container/", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(page), "<h1>ok</h1>")) {
			err = fmt.Errorf("status %s, page %q", resp.Status, page)
		}
		return err
	})
}

// dialInside connects to an address in the network namespace of a process, where only the loopback device is, which nobody has
// turned on yet.
func dialInside(pid int, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Not unlocked: the thread is in another namespace and ends with this goroutine.
		runtime.LockOSThread()
		conn, err := func() (net.Conn, error) {
			if err := enterNetwork(pid); err != nil {
				return nil, err
			}
			return net.DialTimeout("tcp", address, 5*time.Second)
		}()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func enterNetwork(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace of process %d: %w", pid, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	loopback.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, loopback)
}
