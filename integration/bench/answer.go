package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// image is a workload: what is pulled, and how its first answer is recognized. The lab's cache has it in several forms.
type image struct {
	name string
	// url answers with status 200 when the image's server is up. Without one the answer is a line on standard output that begins
	// with "ready", and the container ends by itself.
	url string
}

func imageName(i image) string { return i.name }

var images = []image{
	{name: "nginx", url: "http://127.0.0.1:8081/"}, // first HTTP 200
	{name: "node"},  // imports express, typescript, lodash, moment, axios
	{name: "scipy"}, // imports scipy.linalg and solves a system
}

// containerName is unique because each measurement has a containerd namespace of its own.
const containerName = "bench"

// container is a run of an image that was pulled.
type container struct {
	lab  *lab.Lab
	peer peer
	ref  string
}

// answer is the first one of a container, with the time it took and what had come over the network when it was there.
type answer struct {
	text string
	took time.Duration
	link int64
}

// run starts the container on the host's network, with the image's own command. link is asked at the moment of the answer.
func (c container) run(ctx context.Context, img image, link func() int64) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if img.url != "" {
		if err := mustRefuse(img.url); err != nil {
			return answer{}, err
		}
	}
	cmd := exec.CommandContext(ctx, lab.Program("ctr"), "--address", c.lab.ContainerdAddress(), "--namespace", c.lab.Namespace,
		"run", "--rm", "--net-host", "--snapshotter", c.peer.snapshotter, c.ref, containerName)
	cmd.Env = append(os.Environ(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, stdin, err := os.Pipe() // not StdoutPipe: Wait would close it under the reader
	if err != nil {
		return answer{}, err
	}
	defer stdout.Close()
	cmd.Stdout = stdin

	begin := time.Now()
	err = cmd.Start()
	stdin.Close()
	if err != nil {
		return answer{}, err
	}
	ended := make(chan struct{})
	var exit error // set before ended is closed
	go func() {
		exit = cmd.Wait()
		close(ended)
	}()

	var a answer
	if img.url != "" {
		a.text, err = firstOK(ctx, img.url, ended)
	} else {
		a.text, err = firstReady(stdout)
	}
	a.took, a.link = time.Since(begin), link()
	if err == nil && img.url != "" {
		_, err = c.lab.Ctr(ctx, "task", "kill", "--signal", "SIGKILL", containerName)
	}
	if err != nil {
		cancel() // ends ctr; the lab ends the container
	}
	<-ended
	if err == nil && img.url == "" {
		err = exit
	}
	if err != nil {
		return answer{}, fmt.Errorf("run %s: %w: %s", c.ref, err, strings.TrimSpace(stderr.String()))
	}
	return a, nil
}

// mustRefuse makes sure that the answer will be the container's.
func mustRefuse(url string) error {
	address := strings.Trim(strings.TrimPrefix(url, "http:"), "/")
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return nil
	}
	conn.Close()
	return fmt.Errorf("something on this machine listens on %s already, which the image's server needs", address)
}

// firstOK asks until the status is 200.
func firstOK(ctx context.Context, url string, ended <-chan struct{}) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		body, err := get(ctx, client, url)
		if err == nil {
			return body, nil
		}
		select {
		case <-ended:
			return "", fmt.Errorf("the container ended before an answer: %w", err)
		case <-ctx.Done():
			return "", fmt.Errorf("no answer in %s: %w", answerTimeout, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// firstReady reads until the line that says that the workload did its work.
func firstReady(r io.Reader) (string, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "ready") {
			return lines.Text(), nil
		}
	}
	return "", errors.Join(errors.New("its output ended without a line that begins with ready"), lines.Err())
}
