package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// halves is a layer of which the first half is present.
func halves(_ context.Context, instance string, cells int) ([]float64, error) {
	switch instance {
	case "lazy":
		parts := make([]float64, cells)
		for i := range cells / 2 {
			parts[i] = 1
		}
		return parts, nil
	case "broken":
		return nil, errors.New("the table is damaged")
	}
	return nil, fmt.Errorf("layer instance %q: %w", instance, ErrNoMap)
}

func TestMapOverSocket(t *testing.T) {
	address, _ := serveStatus(t, Options{Map: halves})
	c := NewClient(address)
	for _, n := range []int{1, 2, 5, MaxCells} {
		m, err := c.Map(t.Context(), "lazy", n)
		want, _ := halves(t.Context(), "lazy", n)
		if err != nil || m.Instance != "lazy" || !reflect.DeepEqual(m.Cells, want) {
			t.Errorf("%d cells: %d, error %v", n, len(m.Cells), err)
		}
	}
	for _, test := range []struct {
		instance string
		cells    int
		want     []string
	}{
		{"broken", 1, []string{"fill map of layer broken", address, "500", "the table is damaged"}},
		{"absent", 1, []string{"fill map of layer absent", "404", ErrNoMap.Error()}},
		{"../../status?x/", 1, []string{"404", `layer instance "../../status?x/"`}}, // is a name, not a path
		{"lazy", 0, []string{"400", `cells="0" is no number from 1 to 65536`}},
		{"lazy", MaxCells + 1, []string{"400"}},
	} {
		_, err := c.Map(t.Context(), test.instance, test.cells)
		for _, want := range test.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %d cells: %q is not in: %v", test.instance, test.cells, want, err)
			}
		}
	}
}

func TestMapPaths(t *testing.T) {
	with, _ := serveStatus(t, Options{Map: halves})
	without, _ := serveStatus(t, Options{})
	for _, test := range []struct {
		address, method, path string
		code                  int
		want                  string
	}{
		{with, "GET", "/v1/layers/lazy/map?cells=2", 200, `{"instance":"lazy","cells":[1,0]}`},
		{with, "GET", "/v1/layers/lazy/map", 400, `cells=""`},
		{with, "GET", "/v1/layers/lazy/map?cells=x", 400, `cells="x"`},
		{with, "POST", "/v1/layers/lazy/map?cells=2", 405, ""},
		{with, "GET", "/v1/layers/lazy", 404, ""},
		{without, "GET", "/v1/layers/lazy/map?cells=2", 404, ""},
	} {
		request, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := NewClient(test.address).http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != test.code || !strings.Contains(string(body), test.want) {
			t.Errorf("%s %s: %s, error %v: %s", test.method, test.path, response.Status, err, body)
		}
	}
}

func TestMapDecodeRefuses(t *testing.T) {
	for answer, want := range map[string]string{
		"":                         "no map",
		`{"cells": "x"}`:           "no map",
		`{"cells": [1]}`:           "has 1 cells, asked for 2",
		`{"cells": [1, 1.000001]}`: "cell 1 is 1.000001",
		`{"cells": [-0.5, 1]}`:     "cell 0 is -0.5",
	} {
		if _, err := decodeMap([]byte(answer), 2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", answer, err, want)
		}
	}
}

// TestLazyOverSocket: what a lazy layer has arrives, and what it has not is left out.
func TestLazyOverSocket(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := &Lazy{
		Format: "estargz", Bytes: 1, PresentBytes: 2, Extents: 3, PresentExtents: 4, Faults: 5, Hits: 6, Failed: 7, DemandedBytes: 8,
		FetchedBytes: Fetched{Fault: 9, Prefetch: 10, Background: 11}, FilledBytes: 12, Corrupt: 13, Latency: Latency{P50: 1, P90: 2, P99: 3, Max: 4},
		InFlight: []Request{{OffsetBytes: 14, LengthBytes: 15, Since: began}}, LastError: "e", LastErrorTime: began, Verified: VerifyPassed,
		Orphan: true, Poisoned: true, Users: []string{"u"},
	}
	keeper := &Keeper{Address: "a", Connected: true, Pid: 1, Held: 2, Denied: 3, Since: began}
	fallbacks := map[string]Fallback{"small": {Count: 1, Time: began, Image: "i", Cause: "c"}}
	address, _ := serveStatus(t, Options{Status: returning(Status{
		Layers: []Layer{{Instance: "i", State: Partial, Lazy: want}}, Keeper: keeper, LazyFallbacks: fallbacks}, nil)})
	s, err := NewClient(address).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Layers) != 1 || !reflect.DeepEqual(s.Layers[0].Lazy, want) || !reflect.DeepEqual(s.Keeper, keeper) || !reflect.DeepEqual(s.LazyFallbacks, fallbacks) {
		t.Errorf("got %+v", s)
	}
	if want.FetchedBytes.Total() != 30 {
		t.Errorf("total %d", want.FetchedBytes.Total())
	}
}
