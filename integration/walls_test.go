package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/erofs-snapshotter/erofs-snapshotter"

// mayImport is which packages of ours each package of the product imports. A name that ends with /... means the package and all
// below it. Add a line with the package that you add; a new import between existing packages is a decision about the design.
// Packages below an internal directory are their parent's own business: Go lets only its tree import them, and they import only
// each other, unless they have a line here.
var mayImport = map[string][]string{
	"config":                                    nil,
	"converter":                                 {"converter/..."},
	"converter/erofs":                           nil,
	"converter/index":                           {"converter/tarstream", "converter/inflate"},
	"converter/index/estargz":                   {"converter/index", "converter/inflate", "converter/tarstream"}, // its index is packed as its layer is
	"converter/index/indextest":                 {"converter/index", "converter/tarstream", "converter/tartest"}, // what tests of formats share
	"converter/index/zstdchunked":               {"converter/index", "converter/tarstream"},
	"converter/index/internal/toc":              {"converter/index", "converter/tarstream"},
	"converter/inflate":                         nil,
	"converter/tarstream":                       nil,
	"converter/tartest":                         nil, // archives for tests
	"fsbackend":                                 {"fsbackend/probe"},
	"fsbackend/backendtest":                     {"fsbackend"}, // the conformance suite of backends
	"fsbackend/file":                            {"fsbackend", "fsbackend/probe"},
	"fsbackend/fscache":                         {"fsbackend"},
	"fsbackend/probe":                           nil,
	"imagemount":                                {"imagemount/...", "snapshotter", "snapshotter/layerstore", "snapshotter/lazy", "fsbackend"},
	"imagemount/image":                          {"snapshotter/layerstore"},
	"imagemount/progress":                       {"imagemount"},
	"imagemount/source":                         nil,
	"imagemount/target":                         nil,
	"ondemand":                                  {"ondemand/blob"},
	"ondemand/blob":                             nil,
	"ondemand/cachefiles":                       nil,
	"ondemand/fanotify":                         nil,
	"ondemand/keeper":                           {"ondemand/cachefiles", "ondemand/fanotify"},
	"ondemand/registry":                         nil,
	"ondemand/registry/credentials":             nil,
	"ondemand/registry/credentials/criproxy":    nil,
	"ondemand/registry/credentials/kubesecrets": nil,
	"ondemand/warm":                             {"ondemand/blob"},
	"ondemand/watch":                            {"ondemand", "ondemand/blob", "ondemand/cachefiles", "ondemand/fanotify", "ondemand/keeper"},
	"snapshotter":                               {"snapshotter/layerstore", "snapshotter/lazy", "snapshotter/remote", "snapshotter/startup", "fsbackend", "converter"},
	"snapshotter/content":                       nil,
	"snapshotter/differ":                        {"snapshotter/layerstore", "converter/..."},
	"snapshotter/layerstore":                    {"converter/...", "ondemand/blob"},
	"snapshotter/lazy":                          {"snapshotter/layerstore", "converter", "converter/index/..."},
	"snapshotter/remote":                        {"snapshotter/layerstore", "snapshotter/lazy", "snapshotter/startup"},
	"snapshotter/startup":                       nil, // it reads hostile images, in a process of its own
	"cmd/erofs-snapshotter":                     {"..."},
	"cmd/erofs-snapshotter-keeper":              {"ondemand/keeper"},
	"integration/...":                           {"..."},
}

// wall is an import that must not exist, directly or through other packages, in code or (if inTests) in tests.
type wall struct {
	from, to string
	except   []string
	inTests  bool
	why      string
}

var walls = []wall{
	{from: "fsbackend/...", to: module + "/ondemand/...", inTests: true,
		why: "cmd joins mounting and fetching through small interfaces, so that each can be tested and replaced alone"},
	{from: "ondemand/...", to: module + "/fsbackend/...", inTests: true,
		why: "cmd joins mounting and fetching through small interfaces, so that each can be tested and replaced alone"},
	{from: "converter/...", to: "github.com/containerd/...",
		why: "the converter runs without containerd: in tests, in build tools, on other systems"},
	{from: "config", to: "github.com/containerd/...",
		why: "the configuration is read by every command, most of which know nothing of containerd"},
	{from: "ondemand/...", to: "github.com/containerd/...", except: []string{"ondemand/registry"},
		why: "the engine answers the kernel and must not grow with containerd; only ondemand/registry reads hosts files and credentials its way"},
	{from: "imagemount/...", to: module + "/ondemand/registry/...", inTests: true,
		why: "an image can come from anywhere: cmd joins registries in through a small interface"},
	{from: "fsbackend/...", to: "github.com/containerd/errdefs/...",
		why: "errors become containerd's error classes in snapshotter only"},
	{from: "...", to: module + "/cmd/...", except: []string{"cmd/..."}, inTests: true,
		why: "a command is the top: what others need of it belongs into a package"},
	{from: "cmd/...", to: "github.com/golang-jwt/...",
		why: "only the tests' token server signs tokens"},
	{from: "cmd/...", to: "golang.org/x/crypto/bcrypt",
		why: "only the tests' registry has passwords"},
	{from: "...", to: module + "/integration/...", except: []string{"integration/..."},
		why: "the product does not contain its tests"},
}

// siblings are directories whose packages do not import each other: each implements the same contract and can be removed alone.
var siblings = map[string][]string{
	"fsbackend":       {"file", "fscache"},
	"ondemand":        {"fanotify", "cachefiles", "fusefile"},
	"converter/index": {"estargz", "zstdchunked", "soci"},
}

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath                               string
	Imports, Deps, TestImports, XTestImports []string
}

// name is the path of the package in this module.
func (p goPackage) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// covers says whether a pattern stands for a package.
func covers(pattern, name string) bool {
	prefix, tree := strings.CutSuffix(pattern, "...")
	if !tree {
		return pattern == name
	}
	return strings.HasPrefix(name+"/", prefix)
}

func anyCovers(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, name) })
}

// TestWalls keeps the structure of the module: who may import whom.
func TestWalls(t *testing.T) {
	packages := listPackages(t)
	if len(packages) < 5 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, p := range packages {
		checkOwnImports(t, p)
		for _, w := range allWalls() {
			checkWall(t, p, w)
		}
	}
}

// TestWallsDocumented keeps the table of packages in docs/architecture.md complete.
func TestWallsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range listPackages(t) {
		name, last := p.name(), path.Base(p.name())
		if isInternal(name) {
			continue
		}
		if !slices.ContainsFunc([]string{name, "…/" + last, last}, func(s string) bool { return strings.Contains(string(text), "`"+s+"`") }) {
			t.Errorf("docs/architecture.md does not name package %s", name)
		}
	}
}

func allWalls() []wall {
	all := slices.Clone(walls)
	for parent, names := range siblings {
		for _, from := range names {
			for _, to := range names {
				if from != to {
					all = append(all, wall{from: parent + "/" + from + "/...", to: module + "/" + parent + "/" + to + "/...", inTests: true,
						why: "siblings in " + parent + " implement the same contract; what they share belongs into " + parent})
				}
			}
		}
	}
	return all
}

func checkOwnImports(t *testing.T, p goPackage) {
	t.Helper()
	var allowed []string
	internal := isInternal(p.name())
	known := internal
	for pattern, list := range mayImport {
		if covers(pattern, p.name()) {
			known = true
			allowed = append(allowed, list...)
		}
	}
	if !known {
		t.Errorf("package %s is not in mayImport: add it, with what it imports of ours", p.name())
		return
	}
	for _, imported := range p.Imports {
		own, isOwn := strings.CutPrefix(imported, module+"/")
		if !isOwn || isInternal(own) || anyCovers(allowed, own) {
			continue
		}
		t.Errorf("%s imports %s: mayImport allows it %q. If that is meant, the design changes: say why there", p.name(), own, allowed)
	}
}

func isInternal(name string) bool { return strings.Contains(name, "/internal/") }

func checkWall(t *testing.T, p goPackage, w wall) {
	t.Helper()
	if !covers(w.from, p.name()) || anyCovers(w.except, p.name()) {
		return
	}
	imports := slices.Clone(p.Deps)
	if w.inTests {
		imports = slices.Concat(imports, p.TestImports, p.XTestImports)
	}
	for _, imported := range imports {
		if covers(w.to, imported) {
			t.Errorf("%s imports %s, perhaps through another package: %s (go list -deps shows the way)", p.name(), imported, w.why)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"config", "config", true},
		{"config", "configure", false},
		{"converter/...", "converter", true},
		{"converter/...", "converter/erofs", true},
		{"converter/...", "converters", false},
		{"...", "anything/at/all", true},
	} {
		if got := covers(c.pattern, c.name); got != c.want {
			t.Errorf("covers(%q, %q) = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}
