package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// MaxCells is how many cells a Map may be asked for: enough for a picture, and 1 MiB of JSON.
const MaxCells = 1 << 16

// ErrNoMap says that there is no layer of that name, or that it has no data blob.
var ErrNoMap = errors.New("no fill map")

// Map says which parts of a layer's data blob are present.
type Map struct {
	Instance string `json:"instance"`
	// Cells stand for parts of the blob of the same length, in their order: how much of each is present, from 0 to 1.
	Cells []float64 `json:"cells"`
}

// answerMap gives a Map. Its path has the name of the instance, and its query how many cells there shall be.
func answerMap(w http.ResponseWriter, r *http.Request, fill func(context.Context, string, int) ([]float64, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTime)
	defer cancel()
	instance, asked := r.PathValue("instance"), r.URL.Query().Get("cells")
	n, err := strconv.Atoi(asked)
	if err != nil || n < 1 || n > MaxCells {
		http.Error(w, fmt.Sprintf("cells=%q is no number from 1 to %d", asked, MaxCells), http.StatusBadRequest)
		return
	}
	cells, err := fill(ctx, instance, n)
	switch {
	case errors.Is(err, ErrNoMap):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		writeJSON(w, Map{Instance: instance, Cells: cells})
	}
}

// Map asks which parts of a layer are present. instance is its whole name.
func (c *Client) Map(ctx context.Context, instance string, cells int) (Map, error) {
	answer, err := c.get(ctx, fmt.Sprintf("/v1/layers/%s/map?cells=%d", url.PathEscape(instance), cells))
	if err != nil {
		return Map{}, fmt.Errorf("fill map of layer %s: %w", instance, err)
	}
	m, err := decodeMap(answer, cells)
	if err != nil {
		return Map{}, fmt.Errorf("fill map of layer %s: admin socket %s: %w", instance, c.address, err)
	}
	return m, nil
}

// decodeMap reads an answer that should have so many cells.
func decodeMap(answer []byte, cells int) (Map, error) {
	var m Map
	if err := json.Unmarshal(answer, &m); err != nil {
		return Map{}, fmt.Errorf("the answer is no map: %w", err)
	}
	if len(m.Cells) != cells {
		return Map{}, fmt.Errorf("the answer has %d cells, asked for %d", len(m.Cells), cells)
	}
	for i, part := range m.Cells {
		if part < 0 || part > 1 {
			return Map{}, fmt.Errorf("cell %d is %v, which is not between 0 and 1", i, part)
		}
	}
	return m, nil
}
