package mountinfo

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	table := `36 35 98:0 / /mnt rw,noatime shared:1 master:2 - ext4 /dev/vda rw,errors=continue
37 36 0:33 / /mnt/a\040b\011c\134d ro,nosuid - erofs /proc/self/fd/7/0a/meta.erofs ro,user_xattr
38 36 0:34 / /mnt/o rw - overlay overlay rw,lowerdir=1:2:a\040b\134\054c,upperdir=/u/` + long + `
39 36 0:35 /a\040b /mnt/t rw - tmpfs  rw`
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{36, 35, "98:0", "/", "/mnt", "rw,noatime", "ext4", "/dev/vda", "rw,errors=continue"},
		{37, 36, "0:33", "/", "/mnt/a b\tc\\d", "ro,nosuid", "erofs", "/proc/self/fd/7/0a/meta.erofs", "ro,user_xattr"},
		{38, 36, "0:34", "/", "/mnt/o", "rw", "overlay", "overlay", `rw,lowerdir=1:2:a\040b\134\054c,upperdir=/u/` + long},
		{39, 36, "0:35", "/a b", "/mnt/t", "rw", "tmpfs", "", "rw"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	options := []Option{{"rw", ""}, {"lowerdir", `1:2:a b\,c`}, {"upperdir", "/u/" + long}}
	if o := got[2].Options(); !reflect.DeepEqual(o, options) {
		t.Errorf("options of the overlay are %q", o)
	}
}

func TestReadSelf(t *testing.T) {
	entries, err := Read(Self)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		t.Fatal("no mounts")
	}
}

func TestMalformed(t *testing.T) {
	for _, line := range []string{"", " - ", "36 35 98:0 / /mnt rw ext4 /dev/vda rw", "36 35 98:0 / - ext4 /dev/vda rw", "x 35 98:0 / /mnt rw - ext4 /dev/vda rw", "36 x 98:0 / /mnt rw - ext4 /dev/vda rw",
		"36 35 98:0 / /mnt rw - ext4 rw"} {
		if e, err := parseLine(line); err == nil {
			t.Errorf("%q parsed as %+v", line, e)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`a\040b`: "a b", `\011\012\134`: "\t\n\\", `\`: `\`, `\04`: `\04`, `\999`: `\999`, `\777`: `\777`, `a\\040`: `a\ `, `\377`: "\xff",
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add(`36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/vda rw,errors=continue`)
	f.Add(`38 36 0:34 / /mnt/o rw - overlay overlay rw,lowerdir=1:2:a\040b\134\054c,upperdir=/u`)
	f.Add(` -   \`)
	f.Fuzz(func(t *testing.T, line string) {
		e, err := parseLine(line)
		if err != nil {
			return
		}
		if len(e.Point)+len(e.FSType)+len(e.Source) > len(line) {
			t.Errorf("%q grew to %+v", line, e)
		}
		for _, o := range e.Options() {
			if strings.Contains(o.Key, "=") && !strings.Contains(e.superOptions, `\075`) {
				t.Errorf("%q has the option %q", line, o)
			}
		}
	})
}
