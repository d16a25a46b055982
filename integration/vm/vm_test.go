package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/guest"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// TestThisKernel runs the guest's tests without a virtual machine: this kernel must show what it has shown. After the plan was
// changed, or an image, they must fail.
func TestThisKernel(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	dir := t.TempDir()
	if err := buildTests(t.Context(), dir, "integration/vm/guest"); err != nil {
		t.Fatal(err)
	}
	layers := madeLayers()
	p, err := prepare(t.Context(), dir, layers, stacksOf(layers))
	if err != nil {
		t.Fatal(err)
	}
	o := runGuest(t, dir)
	images := max(o.passedBelow(guestProgram, "TestImages/file/"), o.passedBelow(guestProgram, "TestImages/loop/"))
	if stacks := o.passedBelow(guestProgram, "TestStacks/"); len(o.failed) > 0 || images != len(p.Images) || stacks != len(p.Stacks) {
		t.Errorf("%d of %d images and %d of %d stacks are equal; failed: %q", images, len(p.Images), stacks, len(p.Stacks), o.failed)
	}
	for name, spoil := range map[string]func(*guest.Plan){
		"TestImages/(file|loop)/hard-links": func(p *guest.Plan) { find(p, "hard-links").Tree[1].Nlink++ },
		"TestImages/(file|loop)/huge":       func(p *guest.Plan) { find(p, "huge").Spots[2].Data[4096]++ },
		"TestStacks/one_layer":              func(p *guest.Plan) { p.Stacks[0].Merged = p.Stacks[0].Merged[1:] },
		"TestStacks/whiteouts":              func(p *guest.Plan) { p.Stacks[1].Log[0] = "" },
		"TestStacks/many_layers":            func(p *guest.Plan) { p.Stacks[2].Changed[5].Mode ^= 1 },
	} {
		spoiled, err := guest.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		spoil(&spoiled)
		if err := spoiled.Save(dir); err != nil {
			t.Fatal(err)
		}
		if o := runGuest(t, dir, "-test.run=^"+strings.ReplaceAll(name, "/", "$/^")+"$"); len(o.failed) == 0 {
			t.Errorf("%s did not notice that the plan is wrong", name)
		}
		if err := p.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func find(p *guest.Plan, name string) *guest.Image {
	for i := range p.Images {
		if p.Images[i].Name == name {
			return &p.Images[i]
		}
	}
	return nil
}

func runGuest(t *testing.T, dir string, args ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, guestProgram), append(args, "-test.v")...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), guest.DirVariable+"="+dir)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("%s", out)
	return understand(string(out) + "=== vm: end " + guestProgram + " 0\n")
}

func TestUnderstand(t *testing.T) {
	const printed = `=== vm: begin a.test
=== RUN   TestOne
--- PASS: TestOne (0.01s)
    --- PASS: TestOne/sub (0.00s)
--- SKIP: TestTwo (0.00s)
PASS
=== vm: end a.test 0
=== vm: begin b.test
--- FAIL: TestThree (0.00s)
=== vm: end b.test 1 after 61 s
=== vm: release 6.1.2
`
	o := understand(printed)
	if got := o.printed["b.test"]; got != "--- FAIL: TestThree (0.00s)\n" {
		t.Errorf("b.test printed %q", got)
	}
	o.printed = nil
	want := outcome{release: "6.1.2", ended: map[string]string{"a.test": "0", "b.test": "1"}, took: map[string]time.Duration{"b.test": 61 * time.Second},
		failed: []string{"TestThree"},
		passed: map[string][]string{"a.test": {"TestOne", "TestOne/sub"}, "b.test": nil}, skipped: map[string][]string{"a.test": {"TestTwo"}, "b.test": nil}}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got %+v, want %+v", o, want)
	}
	if n := o.passedBelow("a.test", "TestOne/"); n != 1 {
		t.Errorf("%d passed below TestOne, want 1", n)
	}
}

func TestVerify(t *testing.T) {
	good := outcome{release: "6.1", ended: map[string]string{"a.test": "0"}}
	if err := good.verify([]string{"a.test"}); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]outcome{
		"a program is missing":       {release: "6.1"},
		"a program was killed":       {release: "6.1", ended: map[string]string{"a.test": "137"}},
		"a test failed":              {release: "6.1", ended: map[string]string{"a.test": "0"}, failed: []string{"TestA"}},
		"the machine ended too soon": {ended: map[string]string{"a.test": "0"}},
	} {
		if o.verify([]string{"a.test"}) == nil {
			t.Errorf("%s, and all is well", name)
		}
	}
}

func TestTroubles(t *testing.T) {
	const console = "Linux version\n[    1.0] WARNING: CPU: 0 PID: 1 at fs/x.c\nerofs: mounted\n"
	if got := troubles(console); len(got) != 1 || !strings.Contains(got[0], "fs/x.c") {
		t.Errorf("got %q", got)
	}
}
