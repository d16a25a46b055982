package cachefiles

import (
	"slices"
	"strings"
	"testing"
)

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{
		"":                            false,
		"a":                           true,
		strings.Repeat("0", 248):      true,
		strings.Repeat("0", 249):      false,
		"sha256:0123456789abcdef-_.~": true,
		"a/b":                         false, "a,b": false, "a b": false, "a\n": false, "a\x00": false, "ä": false, "\x7f": false,
	} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// Whatever limits are possible, the kernel takes each command.
func TestLimitsOrder(t *testing.T) {
	for run := range 30 {
		for cull := range run {
			for stop := range cull {
				checkLimits(t, Limits{Run: run, Cull: cull, Stop: stop})
			}
		}
	}
	checkLimits(t, Limits{Run: 99, Cull: 98, Stop: 97})
	for _, l := range []Limits{
		{Run: 100, Cull: 5, Stop: 1}, {Run: 7, Cull: 7, Stop: 1}, {Run: 7, Cull: 5, Stop: 5}, {Run: 7, Cull: 5, Stop: -1}, {Run: 7},
	} {
		if list, err := l.commands(); err == nil {
			t.Errorf("%+v: %q", l, list)
		}
	}
	if list, err := (Limits{}).commands(); err != nil || list != nil {
		t.Errorf("no limits: %q, %v", list, err)
	}
}

func checkLimits(t *testing.T, l Limits) {
	t.Helper()
	list, err := l.commands()
	if err != nil {
		t.Errorf("%+v: %v", l, err)
	}
	k := newKernel(t)
	for _, c := range list {
		if err := k.write([]byte(c)); err != nil {
			t.Fatalf("%+v: the kernel does not take %q of %q: %v", l, c, list, err)
		}
	}
	if k.blocks != l || k.files != l {
		t.Errorf("%q sets %+v and %+v, want %+v", list, k.blocks, k.files, l)
	}
}

func TestBringUpCommands(t *testing.T) {
	list, err := bringUp(Options{Dir: "/var/cache/a b/", Tag: "mine", Limits: Limits{Run: 3, Cull: 2}})
	want := []string{"dir /var/cache/a b", "tag mine", "bstop 0%", "fstop 0%", "bcull 2%", "fcull 2%", "brun 3%", "frun 3%", "bind ondemand"}
	slices.Sort(want[2:8])
	got := slices.Clone(list)
	if len(got) == len(want) {
		slices.Sort(got[2:8])
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", list, err)
	}
	for _, o := range []Options{
		{}, {Dir: "cache"}, {Dir: "/a\nb"}, {Dir: "/a\x00b"}, {Dir: "/" + strings.Repeat("a", 4096)}, {Dir: "/a", Tag: "a b"},
		{Dir: "/a", Limits: Limits{Run: 1}},
	} {
		if list, err := bringUp(o); err == nil {
			t.Errorf("%.40q: %.40q", o.Dir, list)
		}
	}
}
