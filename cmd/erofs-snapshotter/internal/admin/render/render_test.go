package render

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestTable(t *testing.T) {
	for name, s := range map[string]admin.Status{
		"busy.txt": busy(), "lazy.txt": demanding(), "relieved.txt": relieved(),
		"idle.txt": {Format: admin.Format, Time: noon, Version: "v1.2.3", Started: noon.Add(-5 * time.Second), Root: "/var/lib/x"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := Table(&b, s); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
		})
	}
}

func TestFrame(t *testing.T) {
	before := busy()
	golden(t, "frame.txt", strings.Join(frame(later(), &before), "\n")+"\n")
	golden(t, "lazyframe.txt", strings.Join(frame(demanding(), nil), "\n")+"\n")
	before = demanding()
	golden(t, "relievedframe.txt", strings.Join(frame(relieved(), &before), "\n")+"\n")
}

func TestRates(t *testing.T) {
	before, s := busy(), later()
	restarted := later()
	restarted.Layers[2].Work.Started = noon // another attempt: 105 MiB in 1 s
	for _, test := range []struct {
		name   string
		s      admin.Status
		before *admin.Status
		want   float64 // of the middle layer, MiB/s
	}{
		{"average since the start", s, nil, 35},
		{"between two samples", s, &before, 45},
		{"of a later attempt", restarted, &before, 105},
		{"clock stands still", before, &before, 0},
		{"clock goes back", before, &s, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := ratesOf(test.s, test.before)
			if got := r[middle] / (1 << 20); got != test.want {
				t.Errorf("%v MiB/s, want %v", got, test.want)
			}
			if _, ok := r[top]; ok {
				t.Error("a layer that waits has a rate")
			}
		})
	}
}

func TestOtherWork(t *testing.T) {
	s := busy()
	if others := otherWork(s); len(others) != 0 {
		t.Errorf("work of a pull that goes on: %+v", others)
	}
	s.Pulls[0].Layers[1].State = admin.Local // from now on containerd's
	s.Layers[0].Work = &admin.Work{}         // a directory, which has no digest
	others := otherWork(s)
	if len(others) != 2 || others[0].Digest != upperID || others[0].State != admin.Waiting || others[1].Digest != middle || others[1].State != admin.Fetching {
		t.Errorf("got %+v", others)
	}
	s.Pulls[0].Ended = noon
	if others := otherWork(s); len(others) != 3 {
		t.Errorf("after the end of the pull: %+v", others)
	}
}

func TestUnits(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 10 << 30: "10.0 GiB", 1<<63 - 1: "8.0 EiB", -2048: "-2.0 KiB",
	} {
		if got := size(bytes); got != want {
			t.Errorf("size %d: %s, want %s", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59400 * time.Millisecond: "59s", 59600 * time.Millisecond: "1m0s", 5*time.Hour + 3*time.Minute: "5h3m", 292 * time.Hour: "12d4h",
	} {
		if got := span(d); got != want {
			t.Errorf("span %d: %s, want %s", d, got, want)
		}
	}
}

func TestLeft(t *testing.T) {
	for _, test := range []struct {
		p    progress
		want string
	}{
		{progress{done: 10, total: 110, rate: 10}, "10s"},
		{progress{done: 10, total: 0, rate: 10}, "-"},
		{progress{done: 10, total: 110}, "-"},
		{progress{done: 200, total: 110, rate: 10}, "0s"},
		{progress{total: 1 << 62, rate: 1e-9}, "-"},
	} {
		if got := test.p.left(); got != test.want {
			t.Errorf("%+v: %s, want %s", test.p, got, test.want)
		}
	}
}

// FuzzRender feeds answers that are no good: nothing that steers a terminal comes out, and nothing panics.
func FuzzRender(f *testing.F) {
	for _, s := range []admin.Status{busy(), later(), demanding(), relieved(), {}} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Add([]byte(`{"root":"a\u001b[2Jb\nc\u202e","layers":[{"digest":"sha256:\u001b]0;x","work":{"blobBytes":-1}}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var before, s admin.Status
		if json.Unmarshal(one, &before) != nil || json.Unmarshal(two, &s) != nil {
			return
		}
		var b strings.Builder
		v := lines{out: &b}
		for _, err := range []error{Table(&b, before), Table(&b, s), v.show(before, nil), v.show(s, &before)} {
			if err != nil {
				t.Error(err)
			}
		}
		for _, l := range append(s.Layers, before.Layers...) {
			if err := errors.Join(Map(&b, l, full(TextCells(l, 80)), 80), SVG(&b, l, full(3))); err != nil {
				t.Error(err)
			}
		}
		_, err := FindLayer(s, "4")
		b.WriteString(fmt.Sprint(err))
		for _, row := range frame(s, &before) {
			if strings.Contains(row, "\n") {
				t.Errorf("a row of two: %q", row)
			}
			b.WriteString(row)
		}
		for _, r := range b.String() {
			if !unicode.IsPrint(r) && r != '\n' {
				t.Fatalf("%q in %q", r, b.String())
			}
		}
	})
}
