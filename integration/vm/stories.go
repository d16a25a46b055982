package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// story is a test of a package below integration that runs in a virtual machine with the host's files.
type story struct {
	// name is what the table in docs/kernels.md calls it.
	name string
	// pkg is the package, below the module; test is what -test.run gets.
	pkg, test string
	// images are those of the cache that it pushes to its registry.
	images []string
	// modes are those in which it means something.
	modes []string
	// env is what it gets besides the environment of all.
	env []string
	// cut gives it two machines with one disk, one after another. The first one loses its power after the line cutMark; the test is told by
	// EROFS_TEST_CUT which one it is in, "before" or "after".
	cut bool
}

// cutMark is printed by a story when the power is to be cut.
const cutMark = "=== vm: cut"

// mode is how layers with an index reach the kernel.
type mode struct {
	name string
	// needs is what fsbackend/probe must find, if anything.
	needs string
	env   []string
}

var modes = []mode{
	{name: "eager", env: []string{"EROFS_TEST_LAZY_MODE=eager"}},
	// Where there are pre-content events they are what the daemon chooses by itself.
	{name: "fanotify", needs: "pre-content"},
	{name: "fscache", needs: "fscache", env: []string{"EROFS_TEST_LAZY_MODE=fscache"}},
}

var (
	eager = []string{"eager"}
	lazy  = []string{"fanotify", "fscache"}
	long  = []string{"EROFS_TEST_LONG=1"} // for a part that only the long form has
)

const stories = "integration"

var allStories = []story{
	{name: "nginx, pulled as a whole", pkg: stories, test: "^TestLifecycle$/^nginx-gzip$", images: []string{"nginx-gzip"}, modes: eager},
	{name: "nginx over loop devices", pkg: stories, test: "^TestLifecycleLoopDevices$", images: []string{"nginx-zstd"}, modes: eager},
	{name: "straight from the registry", pkg: stories, test: "^TestRemoteCtr$", images: []string{"nginx-gzip"}, modes: eager},
	{name: "reboot", pkg: stories, test: "^TestReboot$/^erofs-differ$", images: []string{"nginx-gzip", "busybox-zstd"}, modes: eager},
	{name: "lost files after a power cut", pkg: stories, test: "^TestPowerCut$", images: []string{"nginx-gzip"}, modes: eager},
	{name: "nginx, estargz; tree as eager", pkg: stories, test: "^TestLazy$/^nginx-estargz$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "node, zstd:chunked; tree as eager", pkg: stories, test: "^TestLazy$/^node-zstdchunked$", images: []string{"node-zstdchunked"}, modes: lazy},
	{name: "scipy, estargz; tree as eager", pkg: stories, test: "^TestLazy$/^scipy-estargz$", images: []string{"scipy-estargz"}, modes: lazy, env: long},
	{name: "background, then no registry", pkg: stories, test: "^TestLazyBackground$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "registry stops", pkg: stories, test: "^TestLazyRegistryStops$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "daemon stopped and killed under readers", pkg: stories, test: "^TestLazyRestart$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "no daemon for too long", pkg: stories, test: "^TestLazyPatience$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "daemon and keeper lost together", pkg: stories, test: "^TestLazyPoisoned$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "keeper hangs", pkg: stories, test: "^TestLazyKeeperHangs$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "image removed under a container", pkg: stories, test: "^TestLazyRemoval$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "domain, removal and culling", pkg: stories, test: "^TestFscacheLife$", images: []string{"nginx-estargz"}, modes: []string{"fscache"}},
	{name: "cache taken by another program", pkg: stories, test: "^TestFscacheBusy$", images: []string{"nginx-estargz"}, modes: []string{"fscache"}},
	{name: "walk of a tree", pkg: stories, test: "^TestLazyWalk$", images: []string{"nginx-estargz"}, modes: lazy},
	{name: "power cut under readers", pkg: stories, test: "^TestCut$", images: []string{"nginx-estargz", "nginx-gzip"}, modes: lazy, cut: true},
	{name: "torture by kills, ext4", pkg: "integration/lazytorture", test: "^TestKills$/^ext4$", modes: []string{"fanotify"}},
	{name: "torture by kills over fscache, ext4", pkg: "integration/lazytorture", test: "^TestKillsFscache$", modes: []string{"fscache"}, env: long},
	{name: "torture: daemon and keeper lost together", pkg: "integration/lazytorture", test: "^TestLossFscache$", modes: []string{"fscache"}},
	{name: "torture: no daemon for too long", pkg: "integration/lazytorture", test: "^TestPatienceFscache$", modes: []string{"fscache"}},
}

// shortStories has one story for each mode, for every change: those that show most in the least time.
var shortStories = map[string]string{
	"eager": "^nginx, pulled as a whole$", "fanotify": "^daemon stopped and killed", "fscache": "^daemon stopped and killed|^power cut",
}

// slow is by how much an emulated machine may be slower than a real one.
const slow = 15

// limit bounds a story.
const limit = 40 * time.Minute

// run is one boot: the stories of a mode on a kernel.
type run struct {
	kernel  kernel
	mode    mode
	stories []story
}

// name is the column of the table.
func (r run) name() string { return r.kernel.series + " " + r.mode.name }

// plan says what runs where. The stories are those whose names match pattern, or shortStories when it is "short"; with those a mode runs on one
// kernel only, the last one that has it, and eager on the first.
func plan(chosen []kernel, modeNames, pattern string) ([]run, error) {
	var runs []run
	for _, m := range modes {
		if modeNames != "" && !slices.Contains(strings.Split(modeNames, ","), m.name) {
			continue
		}
		text := pattern
		if pattern == "short" {
			text = shortStories[m.name]
		}
		match, err := regexp.Compile(text)
		if err != nil {
			return nil, err
		}
		var able []kernel
		for _, k := range chosen {
			if m.needs == "" || slices.Contains(k.answers, m.needs) {
				able = append(able, k)
			}
		}
		if pattern == "short" && len(able) > 1 {
			if m.needs == "" {
				able = able[:1]
			} else {
				able = able[len(able)-1:]
			}
		}
		var told []story
		for _, s := range allStories {
			if slices.Contains(s.modes, m.name) && match.MatchString(s.name) {
				told = append(told, s)
			}
		}
		for _, k := range able {
			if len(told) > 0 {
				runs = append(runs, run{k, m, told})
			}
		}
	}
	if len(runs) == 0 {
		return nil, fmt.Errorf("no story %q for modes %q on the kernels that are there", pattern, modeNames)
	}
	slices.SortStableFunc(runs, func(a, b run) int {
		return slices.Index(seriesOf(chosen), a.kernel.series) - slices.Index(seriesOf(chosen), b.kernel.series)
	})
	return runs, nil
}

func seriesOf(kernels []kernel) (series []string) {
	for _, k := range kernels {
		series = append(series, k.series)
	}
	return series
}

// checkName is the mark of what `erofs-snapshotter check` prints.
const checkName = "check"

// place is where things are, for the host and for the machines, which have its files.
type place struct {
	repo, work  string // the sources; the programs
	home, path  string // as in the environment
	cache, logs string
}

// script is what the first process of the machine runs: see init-host.sh. It is check, and the stories with these numbers.
func (r run) script(p place, numbers []int, env ...string) string {
	var s strings.Builder
	env = slices.Concat([]string{
		"HOME=" + p.home, "PATH=" + p.path, "EROFS_LAB_CACHE=" + p.cache, "EROFS_TEST_PRODUCT=" + p.work + "/product",
		"EROFS_TEST_REGISTRY=" + p.work + "/registry",
		fmt.Sprintf("EROFS_TEST_SLOW=%d", slow), "EROFS_TEST_REQUIRE=all",
	}, r.mode.env, env)
	for _, e := range env {
		fmt.Fprintf(&s, "export %s\n", quote(e))
	}
	fmt.Fprintf(&s, "echo 'root = \"/state/check\"' >/run/check.toml\n")
	fmt.Fprintf(&s, "story %s / %s --config /run/check.toml check\n", checkName, quote(p.work+"/product/erofs-snapshotter"))
	for _, i := range numbers {
		st := r.stories[i]
		words := []string{"story", mark(i), quote(p.repo + "/" + st.pkg), "env"}
		for _, e := range st.env {
			words = append(words, quote(e))
		}
		words = append(words, quote(p.work+"/"+program(st.pkg)), "-test.v", "-test.timeout="+limit.String(), quote("-test.run="+st.test))
		fmt.Fprintln(&s, strings.Join(words, " "))
	}
	return s.String()
}

// mark is what stands for a story in the output of the machine.
func mark(i int) string { return fmt.Sprintf("story-%d", i) }

// quote makes one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
