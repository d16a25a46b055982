package main

import (
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// A base that another image has brought is no layer that the pull waits for.
func TestPassedOver(t *testing.T) {
	for name, test := range map[string]struct {
		states []remote.State
		want   int // so many layers, from the lowest up
	}{
		"all new":         {[]remote.State{remote.Fetching, remote.Waiting, remote.Waiting}, 0},
		"base there":      {[]remote.State{remote.Waiting, remote.Waiting, remote.Fetching, remote.Waiting}, 2},
		"base there, end": {[]remote.State{remote.Waiting, remote.Done, remote.Done}, 1},
		"left":            {[]remote.State{remote.Waiting, remote.Local, remote.Local}, 1},
	} {
		var layers []remote.PullLayer
		for _, s := range test.states {
			layers = append(layers, remote.PullLayer{State: s})
		}
		for i := range layers {
			if got := passedOver(layers, i); got != (i < test.want) {
				t.Errorf("%s: layer %d: %v", name, i, got)
			}
		}
	}
}
