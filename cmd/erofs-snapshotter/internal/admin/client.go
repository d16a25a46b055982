package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxAnswerBytes bounds what is read of an answer; 10,000 layers make 4 MiB.
	maxAnswerBytes = 64 << 20
	// maxErrorBytes bounds what is shown of an answer that is not a Status.
	maxErrorBytes = 1 << 10
	// askTime is how long one question may take: longer than the server's answerTime, so that its error is seen.
	askTime = 15 * time.Second
)

// ErrNotRunning says that nobody listens on the socket.
var ErrNotRunning = errors.New("the daemon is not running")

// Client asks the daemon behind one admin socket. It makes a connection for each question, so a restart of the daemon is no matter.
type Client struct {
	address string
	http    http.Client
}

// NewClient returns a client for the unix socket at address. It does not connect.
func NewClient(address string) *Client {
	return &Client{address: address, http: http.Client{
		Timeout: askTime,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", address)
			},
		},
	}}
}

// Status asks once. Its errors name the socket, and say what to do where that is known; one is ErrNotRunning.
func (c *Client) Status(ctx context.Context) (Status, error) {
	// The host is for HTTP's form only.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://erofs-snapshotter/v1/status", nil)
	if err != nil {
		return Status{}, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return Status{}, c.explain(err)
	}
	defer response.Body.Close()
	body := io.LimitReader(response.Body, maxAnswerBytes)
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return Status{}, fmt.Errorf("admin socket %s: whoever listens knows no status\n  compare admin.address in the configurations of the daemon and of this command", c.address)
	default:
		text, _ := io.ReadAll(io.LimitReader(body, maxErrorBytes))
		return Status{}, fmt.Errorf("admin socket %s: the daemon answers: %s: %s", c.address, response.Status, strings.TrimSpace(string(text)))
	}
	s, err := decode(body)
	if err != nil {
		return Status{}, fmt.Errorf("admin socket %s: %w", c.address, err)
	}
	return s, nil
}

// decode reads an answer.
func decode(r io.Reader) (Status, error) {
	answer, err := io.ReadAll(r)
	if err != nil {
		return Status{}, fmt.Errorf("read the answer: %w", err)
	}
	// The format comes first: another one may give the other fields another type.
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(answer, &format); err != nil {
		return Status{}, fmt.Errorf("the answer is no status: %w", err)
	}
	if format.Format != Format {
		return Status{}, fmt.Errorf("the answer has format %d, this program knows %d only\n  use the erofs-snapshotter program that the daemon was started from",
			format.Format, Format)
	}
	var s Status
	if err := json.Unmarshal(answer, &s); err != nil {
		return Status{}, fmt.Errorf("the answer is no status: %w", err)
	}
	return s, nil
}

// explain makes an error of the connection one that an operator can do something about.
func (c *Client) explain(err error) error {
	// The operation and URL that net/http and net put before the cause say nothing here.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		err = op.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("admin socket %s: %w\n  start it (systemctl start erofs-snapshotter), or name its configuration: erofs-snapshotter --config FILE status",
			c.address, ErrNotRunning)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("admin socket %s: %w\n  it belongs to the user that the daemon runs as: ask as root", c.address, err)
	}
	return fmt.Errorf("admin socket %s: %w", c.address, err)
}
