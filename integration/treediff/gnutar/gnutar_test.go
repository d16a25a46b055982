package gnutar_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff/gnutar"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestOverlayForm(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("tar"), testenv.Tool("mkfs.ext4"))
	disk := gnutar.Ext4(t, 64<<20)
	for _, test := range []struct {
		name string
		tar  []string // names; directories end in a slash, "x@" is a 0:0 device
		want []string // what lines returns
	}{
		{"plain", []string{"a", "d/", "d/b"}, []string{"a", "d/", "d/b"}},
		{"implied", []string{"d/e/f"}, []string{"d/ implied", "d/e/ implied", "d/e/f"}},
		{"explicit after its child", []string{"d/f", "d/"}, []string{"d/", "d/f"}},
		{"whiteouts", []string{".wh.a", "d/", "d/.wh.b"}, []string{"a whiteout 2", "d/", "d/b whiteout 2"}},
		{"own file", []string{".wh.a", "a", "b", ".wh.b"}, []string{"a", "b"}},
		{"own directory", []string{".wh.a", "a/", "a/x", "b/x", ".wh.b"}, []string{"a/ opaque", "a/x", "b/ opaque implied", "b/x"}},
		{"opaque", []string{"d/x", "d/.wh..wh..opq", "d/.wh.y", "d/e/", "d/e/.wh.z"}, []string{"d/ opaque implied", "d/e/", "d/x"}},
		{"opaque root", []string{".wh..wh..opq", "./", ".wh.x", "y"}, []string{"./ opaque", "y"}},
		{"AUFS", []string{".wh..wh.plnk/", ".wh..wh.plnk/1.2", "d/.wh..wh.aufs", "a"}, []string{"a"}},
		{"whiteout device", []string{"d/x@", "d/", ".wh.d"}, []string{"d/ opaque"}},
		{"directory in the place of a file", []string{"a", "a/", "a/b"}, []string{"a/ opaque", "a/b"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			archive, dir := filepath.Join(t.TempDir(), "layer.tar"), filepath.Join(disk, test.name)
			ok(t, os.WriteFile(archive, pack(test.tar), 0o600))
			ok(t, gnutar.Extract(t.Context(), archive, dir))
			ok(t, gnutar.OverlayForm(archive, dir))
			records, err := treediff.Scan(t.Context(), dir)
			ok(t, err)
			if got := lines(records); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// packed is the time of all entries.
const packed = 1_700_000_000

func pack(names []string) []byte {
	var files []tartest.File
	for _, name := range names {
		f := tartest.File{Name: name, Type: '0', Mode: 0o700, Sec: packed}
		if strings.HasSuffix(name, "/") {
			f.Type = '5'
		}
		if device, ok := strings.CutSuffix(name, "@"); ok {
			f.Name, f.Type = device, '3'
		}
		// All of these are dropped.
		f.Xattrs = []tartest.Xattr{{Name: "trusted.overlay.opaque", Value: "y"}, {Name: "trusted.overlay.origin", Value: "x"}}
		files = append(files, f)
	}
	return tartest.Pack(files)
}

// lines describes a tree: a line for each path, without a root that nothing is special about.
func lines(records []treediff.Record) []string {
	var out []string
	for _, r := range records {
		line := r.Path
		if r.Type == treediff.Directory {
			line += "/"
		}
		if r.Xattrs["trusted.overlay.opaque"] == "y" {
			line += " opaque"
		}
		switch {
		case r.Type == treediff.Character && r.Rdev == unix.Mkdev(0, 0) && r.Mode == 0 && r.Mtime == treediff.Time{}:
			line += " whiteout " + string('0'+rune(r.Nlink))
		case r.Mtime == treediff.Time{} && r.Mode == 0o755:
			line += " implied"
		case r.Mtime.Sec != packed:
			line += " time " + r.Mtime.String()
		}
		if len(r.Xattrs) > strings.Count(line, "opaque") {
			line += " attributes"
		}
		if line != "./ implied" {
			out = append(out, line)
		}
	}
	return out
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
