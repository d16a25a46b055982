package render

import (
	"fmt"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

func TestFindLayer(t *testing.T) {
	s := admin.Status{Layers: []admin.Layer{
		{Instance: "aa11", Kind: "directory", State: admin.Complete},
		{Instance: "aa22", Digest: "sha256:bb", State: admin.Partial, Kind: "erofs", Source: "registry.example/a"},
		{Instance: "aa2233", Digest: "sha256:bbcc", State: admin.Complete, Kind: "erofs"},
		{Instance: "cc33", Digest: "sha256:dd\x1b", State: admin.Complete, Kind: "erofs"}, // twice the same layer
		{Instance: "cc44", Digest: "sha256:dd\x1b", State: admin.Partial, Kind: "erofs"},
	}}
	for _, test := range []struct {
		name, want string // the instance
		says       []string
	}{
		{"aa11", "aa11", nil}, {"aa1", "aa11", nil}, {"bbc", "aa2233", nil}, {"sha256:bbc", "aa2233", nil}, {"cc3", "cc33", nil},
		{"aa22", "aa22", nil}, {"bb", "aa22", nil}, {"sha256:bb", "aa22", nil}, // whole names, with which others begin
		{"aa", "", []string{`"aa" names 3 layers`, "aa22  (partial erofs, digest bb, from registry.example/a)"}},
		{"dd", "", []string{`"dd" names 2 layers`, "cc33", "cc44"}},
		{"sha256:", "", []string{"names 4 layers"}},
		{"ee\x1b", "", []string{`no layer is named "ee\x1b"`, "aa11", "cc44"}},
		{"", "", []string{"no layer is named", "aa11"}},
	} {
		l, err := FindLayer(s, test.name)
		if l.Instance != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q: %q, error %v", test.name, l.Instance, err)
		}
		for _, want := range test.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in: %v", want, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q steers the terminal", err)
		}
	}
	gone := admin.Layer{Instance: "ff", State: admin.Partial, Lazy: &admin.Lazy{Orphan: true}}
	again := admin.Layer{Instance: "ff", State: admin.Partial, Lazy: &admin.Lazy{}}
	for _, layers := range [][]admin.Layer{{gone, again}, {again, gone}, {gone, again, gone}} {
		if l, err := FindLayer(admin.Status{Layers: layers}, "f"); err != nil || l.Lazy != again.Lazy {
			t.Errorf("of a layer pulled again: %+v, error %v", l, err)
		}
	}
	if l, err := FindLayer(admin.Status{Layers: []admin.Layer{gone}}, "ff"); err != nil || l.Lazy != gone.Lazy {
		t.Errorf("of a layer removed: %+v, error %v", l, err)
	}
	if _, err := FindLayer(admin.Status{}, "x"); err == nil || !strings.Contains(err.Error(), "has none") {
		t.Error(err)
	}
}

func TestCandidates(t *testing.T) {
	var layers []admin.Layer
	for i := range 12 {
		layers = append(layers, admin.Layer{Instance: fmt.Sprintf("0123456789abcdef%064d", i), Kind: "directory"})
	}
	layers[11].State = admin.Partial
	text := candidates(layers)
	if !strings.Contains(text, "and 2 more") || strings.Index(text, "partial") > strings.Index(text, "directory") {
		t.Error(text)
	}
	// What they share says nothing.
	few := []admin.Layer{{Instance: "0123456789abcd11"}, {Instance: "0123456789abcd22"}}
	if text := candidates(few); !strings.Contains(text, "0123456789abcd11 ") || !strings.Contains(text, "0123456789abcd22 ") {
		t.Error(text)
	}
}
