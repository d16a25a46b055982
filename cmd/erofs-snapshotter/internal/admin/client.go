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

// errNoPath says that whoever answers does not know the path, or what it names.
var errNoPath = errors.New("not found")

// Status asks once. Its errors name the socket, and say what to do where that is known; one is ErrNotRunning.
func (c *Client) Status(ctx context.Context) (Status, error) {
	answer, err := c.get(ctx, "/v1/status")
	if errors.Is(err, errNoPath) {
		return Status{}, fmt.Errorf("admin socket %s: whoever listens knows no status\n  compare admin.address in the configurations of the daemon and of this command", c.address)
	}
	if err != nil {
		return Status{}, err
	}
	s, err := decode(answer)
	if err != nil {
		return Status{}, fmt.Errorf("admin socket %s: %w", c.address, err)
	}
	return s, nil
}

// get asks for a path and returns the answer. Its errors name the socket.
func (c *Client) get(ctx context.Context, path string) ([]byte, error) {
	// The host is for HTTP's form only.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://erofs-snapshotter"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorBytes))
		return nil, fmt.Errorf("admin socket %s: %w", c.address, refusal{response.StatusCode, response.Status, strings.TrimSpace(string(text))})
	}
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: read the answer: %w", c.address, err)
	}
	return answer, nil
}

// refusal is an answer that is an error.
type refusal struct {
	code         int
	status, text string
}

func (r refusal) Error() string { return fmt.Sprintf("the daemon answers: %s: %s", r.status, r.text) }

// Is makes errNoPath of the code for it.
func (r refusal) Is(target error) bool { return target == errNoPath && r.code == http.StatusNotFound }

// decode reads an answer.
func decode(answer []byte) (Status, error) {
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
