package render

import (
	"fmt"
	"slices"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// maxCandidates is how many layers an error names.
const maxCandidates = 10

// FindLayer returns the layer with that instance or digest. A beginning is enough if no other layer has it, and the "sha256:" of a digest may
// be left out. Its errors name the layers that could be meant.
func FindLayer(s admin.Status, name string) (admin.Layer, error) {
	var exact, begin []admin.Layer
	for _, l := range s.Layers {
		_, hex, _ := strings.Cut(l.Digest, ":")
		names := []string{l.Instance, l.Digest, hex}
		if slices.Contains(names, name) {
			exact = append(exact, l)
		}
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, name) }) {
			begin = append(begin, l)
		}
	}
	found := current(exact)
	if len(found) == 0 {
		found = current(begin)
	}
	switch {
	case name == "" || len(found) == 0:
		return admin.Layer{}, fmt.Errorf("no layer is named %q%s", name, candidates(s.Layers))
	case len(found) > 1:
		return admin.Layer{}, fmt.Errorf("%q names %d layers%s", name, len(found), candidates(found))
	}
	return found[0], nil
}

// current leaves out a layer that was removed and is still in use when another one has the same name: nobody could name that one.
func current(layers []admin.Layer) []admin.Layer {
	var list []admin.Layer
	for _, l := range layers {
		at := slices.IndexFunc(list, func(other admin.Layer) bool { return other.Instance == l.Instance })
		switch {
		case at < 0:
			list = append(list, l)
		case stateOf(l) == l.State:
			list[at] = l
		}
	}
	return list
}

// candidates is the part of an error that lists layers, those that can have a map first.
func candidates(layers []admin.Layer) string {
	if len(layers) == 0 {
		return "\n  the daemon has none"
	}
	layers = slices.Clone(layers)
	slices.SortStableFunc(layers, func(a, b admin.Layer) int { return candidateRank(a) - candidateRank(b) })
	// Beginnings that several layers share help nobody.
	columns := shortDigest
	for columns < 64 && shared(layers, columns) {
		columns += 4
	}
	text := "\n  say one of these:"
	for i, l := range layers {
		if i == maxCandidates {
			return text + fmt.Sprintf("\n    … and %d more, see erofs-snapshotter status", len(layers)-i)
		}
		text += fmt.Sprintf("\n    %s  (%s %s, digest %s, from %s)",
			cut(clean(l.Instance), columns), orNone(stateOf(l)), orNone(l.Kind), short(l.Digest), orNone(l.Source))
	}
	return text
}

func candidateRank(l admin.Layer) int {
	switch {
	case l.State == admin.Partial:
		return 0
	case l.Kind == kindDirectory || l.State == admin.Building:
		return 2
	}
	return 1
}

// shared says whether two instances begin with the same characters.
func shared(layers []admin.Layer, columns int) bool {
	seen := map[string]bool{}
	for _, l := range layers {
		begin := cut(l.Instance, columns)
		if seen[begin] {
			return true
		}
		seen[begin] = true
	}
	return false
}
