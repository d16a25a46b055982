package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// patient is a client without a bound for all of an exchange. It sends a body only when the server wants it.
func (c *Client) patient() *http.Client {
	t := c.http.Transport.(*http.Transport).Clone()
	t.ExpectContinueTimeout = askTime
	return &http.Client{Transport: t}
}

// Export has take read the data of layers to the end of the stream. The error of the daemon goes before that of take, which sees that the stream is
// cut off.
func (c *Client) Export(ctx context.Context, choice Choice, take func(stream io.Reader) error) error {
	query := url.Values{"image": choice.Images, "instance": choice.Instances}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://erofs-snapshotter"+cachePath+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := c.exchange(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	err = take(response.Body)
	// The trailer is there after the end.
	_, _ = io.CopyN(io.Discard, response.Body, maxErrorBytes)
	if cause := response.Trailer.Get(causeTrailer); cause != "" {
		return fmt.Errorf("admin socket %s: the daemon has cut the export off: %s", c.address, cause)
	}
	return err
}

// Import gives the daemon an export, and returns what became of it. The error says that this is not known.
func (c *Client) Import(ctx context.Context, in io.Reader) (ImportReport, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://erofs-snapshotter"+cachePath, io.NopCloser(in))
	if err != nil {
		return ImportReport{}, err
	}
	request.Header.Set("Expect", "100-continue")
	response, err := c.exchange(request)
	if err != nil {
		return ImportReport{}, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return ImportReport{}, fmt.Errorf("admin socket %s: read the answer: %w", c.address, err)
	}
	var report ImportReport
	if err := json.Unmarshal(answer, &report); err != nil {
		return ImportReport{}, fmt.Errorf("admin socket %s: the answer is no report: %w", c.address, err)
	}
	return report, nil
}

// noPage is what net/http answers for a path that it does not know.
const noPage = "404 page not found"

// exchange sends a request and returns an answer that is none of an error.
func (c *Client) exchange(request *http.Request) (*http.Response, error) {
	response, err := c.patient().Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorBytes))
	refused := refusal{response.StatusCode, response.Status, strings.TrimSpace(string(text))}
	if refused.code == http.StatusRequestEntityTooLarge || refused.text == noPage {
		return nil, fmt.Errorf("admin socket %s: whoever listens has no cache to export or import\n  the daemon may be older than this program, or admin.address may be another one in its configuration",
			c.address)
	}
	return nil, fmt.Errorf("admin socket %s: %w", c.address, refused)
}
