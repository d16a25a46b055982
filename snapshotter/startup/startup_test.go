package startup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// tree is an image's tree in a directory of the test.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T) tree { return tree{t, t.TempDir()} }

func (tr tree) path(name string) string {
	path := filepath.Join(tr.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	return path
}

func (tr tree) write(name string, b []byte, mode os.FileMode) {
	tr.t.Helper()
	if err := os.WriteFile(tr.path(name), b, mode); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr tree) link(name, target string) {
	tr.t.Helper()
	if err := os.Symlink(target, tr.path(name)); err != nil {
		tr.t.Fatal(err)
	}
}

// copyProgram copies a program of this machine and all that it is linked with, and returns their names; the loader is the last.
func (tr tree) copyProgram(name string) []string {
	tr.t.Helper()
	testenv.Need(tr.t, testenv.Tool("ldd"))
	out, err := exec.Command("ldd", name).CombinedOutput()
	names := []string{name}
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(`).FindAllStringSubmatch(string(out), -1) {
		names = append(names, m[1])
	}
	if err == nil && len(names) < 3 {
		err = fmt.Errorf("%s is not linked with a loader and a library:\n%s", name, out)
	}
	testenv.Need(tr.t, testenv.Feature{Name: "linked-programs", Missing: func() error { return err }})
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			tr.t.Fatal(err)
		}
		tr.write(n, b, 0o755)
	}
	return names
}

// fetched returns the names of the files that are read for a program.
func (tr tree) fetched(p Program) ([]string, Report, error) {
	tr.t.Helper()
	root, err := os.Open(tr.dir)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer root.Close()
	f, err := newFetch(root, p)
	if err != nil {
		tr.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tr.t.Context(), 30*time.Second)
	defer cancel()
	report, err := f.run(ctx, p.Args)
	var names []string
	for _, one := range f.open {
		names = append(names, one.path)
	}
	slices.Sort(names)
	return names, report, err
}

// wants compares the files that are read for a program.
func (tr tree) wants(p Program, want ...string) Report {
	tr.t.Helper()
	got, report, err := tr.fetched(p)
	if err != nil {
		tr.t.Errorf("%q: %v", p.Args, err)
	}
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		tr.t.Errorf("%q reads\n%q, want\n%q", p.Args, got, want)
	}
	if report.Files != len(want) {
		tr.t.Errorf("%q: %d files reported, want %d", p.Args, report.Files, len(want))
	}
	return report
}

// A program of this machine: the loader needs what ldd says, and all of it is read.
func TestProgram(t *testing.T) {
	tr := newTree(t)
	names := tr.copyProgram("/bin/sh")
	tr.write("/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\n"), 0o644)
	tr.write("/etc/unneeded", nil, 0o644)
	var bytes int64
	for _, n := range append(names, "/etc/passwd") {
		fi, err := os.Stat(filepath.Join(tr.dir, n))
		if err != nil {
			t.Fatal(err)
		}
		var large error
		if fi.Size() > wholeBytes {
			large = fmt.Errorf("%s is larger than what is read as a whole", n)
		}
		testenv.Need(t, testenv.Feature{Name: "small-libraries", Missing: func() error { return large }})
		bytes += fi.Size()
	}
	report := tr.wants(Program{Args: []string{"sh"}}, append(names, "/etc/passwd")...)
	if report.Bytes != bytes || report.Full {
		t.Errorf("%+v, want %d bytes", report, bytes)
	}
	tr.wants(Program{Args: []string{"/bin/sh"}}, append(names, "/etc/passwd")...)
	tr.wants(Program{Args: []string{"../bin/sh"}, Dir: "/etc"}, append(names, "/etc/passwd")...)
	tr.wants(Program{Args: []string{"sh"}, Env: []string{"PATH=/etc:/bin"}}, append(names, "/etc/passwd")...)
	if got, _, err := tr.fetched(Program{Args: []string{"sh"}, Env: []string{"PATH=/nowhere"}}); err == nil || len(got) != 1 {
		t.Errorf("a program that is not in PATH: %q, %v", got, err)
	}
}

// Scripts need their interpreters, and what they are given to start.
func TestScripts(t *testing.T) {
	tr := newTree(t)
	sh := tr.copyProgram("/bin/sh")
	tr.write("/entrypoint", []byte("#! /usr/bin/again -x\nexec \"$@\"\n"), 0o755)
	tr.write("/usr/bin/again", []byte("#!/usr/bin/env -S A=b sh\n"), 0o755)
	tr.write("/usr/bin/env", []byte("not really"), 0o755)
	tr.write("/usr/bin/server", []byte("data"), 0o755)
	tr.write("/app/index.js", []byte("data"), 0o644)
	tr.write("/app/data/config", []byte("data"), 0o644)
	tr.write("/app/not", []byte("data"), 0o644)
	script := append(sh, "/entrypoint", "/usr/bin/again", "/usr/bin/env")
	tr.wants(Program{Args: []string{"/entrypoint"}}, script...)
	tr.wants(Program{Args: []string{"/entrypoint", "server", "index.js", "-v", "--config=data/config", "data"}, Dir: "/app"},
		append(script, "/usr/bin/server", "/app/index.js", "/app/data/config")...)
	tr.wants(Program{Args: []string{"sh", "-c", "cd /app && exec server 'index.js'"}, Dir: "/app"}, append(sh, "/usr/bin/server", "/app/index.js")...)
	tr.write("/self", []byte("#!/self\n"), 0o755)
	tr.wants(Program{Args: []string{"/self"}}, "/self")
	for i := range 10 {
		tr.write(fmt.Sprintf("/many%d", i), fmt.Appendf(nil, "#!/many%d\n", i+1), 0o755)
	}
	tr.wants(Program{Args: []string{"/many0"}}, "/many0", "/many1", "/many2", "/many3", "/many4")
}

// Where libraries are looked for, in this order.
func TestLibraries(t *testing.T) {
	const loader = "/lib/loader"
	tr := newTree(t)
	tr.write(loader, testELF{}.bytes(), 0o755)
	tr.write("/opt/app/bin/program", testELF{interp: loader, needed: []string{"libone.so", "libnone.so"}, runpath: "$ORIGIN/../lib:${ORIGIN}/$LIB"}.bytes(), 0o755)
	tr.link("/bin/program", "../opt/app/bin/program")
	tr.write("/opt/app/lib/libone.so", testELF{needed: []string{"libtwo.so", "libone.so"}}.bytes(), 0o644)
	tr.write("/opt/app/lib/libtwo.so", testELF{}.bytes(), 0o644) // a runpath is not inherited
	tr.write("/usr/lib/libtwo.so", testELF{machine: 3}.bytes(), 0o644)
	tr.write("/usr/lib/x86_64-linux-gnu/libtwo.so", testELF{}.bytes(), 0o644)
	p := Program{Args: []string{"program"}}
	tr.wants(p, loader, "/opt/app/bin/program", "/opt/app/lib/libone.so", "/usr/lib/x86_64-linux-gnu/libtwo.so")

	// The cache comes before the default directories, and has libraries for other machines, too.
	tr.write("/other/libtwo.so", testELF{machine: 3}.bytes(), 0o644)
	tr.write("/cached/libtwo.so", testELF{}.bytes(), 0o644)
	tr.write("/etc/ld.so.cache", testCache("libtwo.so", "/other/libtwo.so", "libtwo.so", "/cached/libtwo.so"), 0o644)
	tr.wants(p, loader, "/etc/ld.so.cache", "/opt/app/bin/program", "/opt/app/lib/libone.so", "/other/libtwo.so", "/cached/libtwo.so")

	// The environment comes before both.
	tr.write("/env/libtwo.so", testELF{}.bytes(), 0o644)
	tr.write("/env/libpre.so", testELF{}.bytes(), 0o644)
	p.Env = []string{"LD_LIBRARY_PATH=/nowhere:/env", "LD_PRELOAD=libpre.so"}
	tr.wants(p, loader, "/etc/ld.so.cache", "/opt/app/bin/program", "/opt/app/lib/libone.so", "/env/libtwo.so", "/env/libpre.so")

	// An rpath is inherited, and comes first of all.
	tr.write("/opt/app/bin/program", testELF{interp: loader, needed: []string{"libone.so"}, rpath: "$ORIGIN/../lib"}.bytes(), 0o755)
	p.Env = p.Env[:1]
	tr.wants(p, loader, "/etc/ld.so.cache", "/opt/app/bin/program", "/opt/app/lib/libone.so", "/opt/app/lib/libtwo.so")
}

// Of a large file only what the loader reads is read.
func TestLargeProgram(t *testing.T) {
	tr := newTree(t)
	b := testELF{needed: []string{"libone.so"}}.bytes()
	tr.write("/program", append(b, make([]byte, 4*wholeBytes)...), 0o755)
	tr.write("/usr/lib/libone.so", b, 0o644)
	report := tr.wants(Program{Args: []string{"/program"}}, "/program", "/usr/lib/libone.so")
	if report.Bytes < int64(2*len(b)) || report.Bytes > int64(2*len(b))+2*page {
		t.Errorf("%d bytes were read, want about %d", report.Bytes, 2*len(b))
	}
}

// Whatever a tree has, nothing outside of it is read, nothing waits, and there is an end.
func TestHostileTrees(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr := newTree(t)
	tr.link("/out", outside)
	tr.link("/up", strings.Repeat("../", 30)+outside)
	tr.link("/loop", "/loop2")
	tr.link("/loop2", "/loop")
	tr.link("/magic", "/proc/self/root"+outside)
	tr.link("/itself", ".")
	if err := unix.Mkfifo(tr.path("/fifo"), 0o777); err != nil {
		t.Fatal(err)
	}
	names := []string{"/out", "/up", "/loop", "/magic", "/fifo", "/itself", "../../.." + outside, "", "/", "\x00", strings.Repeat("x", 1<<20)}
	if os.Geteuid() == 0 && unix.Mknod(tr.path("/null"), unix.S_IFCHR|0o777, int(unix.Mkdev(1, 3))) == nil {
		names = append(names, "/null")
	}
	for _, name := range names {
		got, _, err := tr.fetched(Program{Args: []string{name, name}})
		if len(got) > 0 || err == nil {
			t.Errorf("%.40q: reads %q, %v", name, got, err)
		}
	}
	tr.write("/etc/ld.so.cache", bytes.Repeat([]byte("glibc-ld.so.cache1.1\xff\xff\xff\xff"), 1000), 0o644)
	tr.write("/program", testELF{interp: "/fifo", needed: append(names, "libself.so"), runpath: strings.Repeat("$ORIGIN/..:", 300)}.bytes(), 0o755)
	tr.write("/lib/libself.so", testELF{needed: []string{"libself.so", "/program"}}.bytes(), 0o755)
	tr.wants(Program{Args: []string{"/itself/itself/program"}}, "/etc/ld.so.cache", "/lib/libself.so", "/program")
}

// The bounds on files and bytes.
func TestBounds(t *testing.T) {
	tr := newTree(t)
	const n = 3 * maxFiles
	for i := range n {
		tr.write(fmt.Sprintf("/lib/lib%d.so", i), testELF{needed: []string{fmt.Sprintf("lib%d.so", i+1), fmt.Sprintf("lib%d.so", n-i)}}.bytes(), 0o644)
	}
	got, report, err := tr.fetched(Program{Args: []string{"/lib/lib0.so"}})
	if err == nil || len(got) > 0 {
		t.Errorf("what is not executable was executed: %q", got)
	}
	if err := os.Chmod(filepath.Join(tr.dir, "/lib/lib0.so"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, report, err = tr.fetched(Program{Args: []string{"/lib/lib0.so"}})
	if len(got) != maxFiles || !report.Full || err != nil {
		t.Errorf("%d files were read: %+v, %v", len(got), report, err)
	}

	tr = newTree(t)
	var args []string
	for i := range maxWords {
		name := fmt.Sprintf("/program%d", i)
		tr.write(name, testELF{}.bytes(), 0o755)
		if err := os.Truncate(filepath.Join(tr.dir, name), wholeBytes); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	_, report, err = tr.fetched(Program{Args: args})
	if report.Bytes != maxBytes || !report.Full || err != nil {
		t.Errorf("%+v, %v; want %d bytes", report, err, int64(maxBytes))
	}
}

func TestEnds(t *testing.T) {
	tr := newTree(t)
	tr.write("/program", []byte("data"), 0o755)
	root, err := os.Open(tr.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Fetch(ctx, root, Program{Args: []string{"/program"}}); err == nil {
		t.Error("no error after the end")
	}
	if _, err := Fetch(t.Context(), root, Program{}); err == nil {
		t.Error("no error without a program")
	}
}
