package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

func TestDefaultTextIsTheDefault(t *testing.T) {
	got, err := Parse("default.toml", []byte(DefaultText))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, Default()) {
		t.Errorf("default.toml parses to\n%+v\nwant\n%+v", got, Default())
	}
	var tree map[string]any
	if err := toml.Unmarshal([]byte(DefaultText), &tree); err != nil {
		t.Fatal(err)
	}
	if got, want := treeKeys("", tree), slices.Sorted(slices.Values(Keys())); !slices.Equal(got, want) {
		t.Errorf("default.toml sets\n%v\nthe keys are\n%v", got, want)
	}
}

func treeKeys(prefix string, tree map[string]any) []string {
	var keys []string
	for k, v := range tree {
		keys = append(keys, prefix+k)
		if sub, ok := v.(map[string]any); ok {
			keys = append(keys, treeKeys(prefix+k+".", sub)...)
		}
	}
	slices.Sort(keys)
	return keys
}

func TestDeployedExampleIsTheDefault(t *testing.T) {
	text, err := os.ReadFile("../deploy/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != DefaultText {
		t.Error("deploy/config.toml differs from config/default.toml: copy it again")
	}
}

func TestParseKeepsDefaultsOfKeysNotSet(t *testing.T) {
	got, err := Parse("x", []byte("root = \"/data\"\n[collection]\ngrace = \"2m\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root = "/data"
	want.Collection.Grace = Duration{2 * time.Minute}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseErrors(t *testing.T) {
	long := "/" + strings.Repeat("s", maxSocketPath)
	for _, test := range []struct{ name, text, want string }{
		{"misspelt key", "\n[mount]\nmod = \"file\"", `f:3: unknown key "mount.mod", did you mean "mount.mode"?`},
		{"misspelt table", "[colection]\n", `f:1: unknown key "colection", did you mean "collection"?`},
		{"wrong table", "grace = \"1s\"", `f:1: unknown key "grace", did you mean "collection.grace"?`},
		{"nothing like it", "# c\nwatermelon = 1", "f:2: unknown key \"watermelon\" (`erofs-snapshotter config default` prints all keys)"},
		{"two unknown keys", "rot = \"/r\"\nadress = \"/a\"", `f:2: unknown key "adress", did you mean "address"?`},
		{"unknown mode", "[mount]\nmode = \"fuse\"", `f: mount.mode: "fuse" is not one of auto, file, loop`},
		{"unknown level", "[log]\nlevel = \"loud\"", `f: log.level: "loud" is not one of debug, info, warn, error`},
		{"unknown format", "[log]\nformat = \"xml\"", `f: log.format: "xml" is not one of text, json`},
		{"duration without unit", "[collection]\ngrace = 30", `f: "30" is not a duration, write for example "30s"`},
		{"mode", "[lazy]\nmode = \"fuse\"", `lazy.mode: "fuse" is not one of auto, fanotify, fscache, eager`},
		{"cache limits", "[fscache]\nbcull = 7", `fscache: brun 7, bcull 7, bstop 1: the kernel wants 100 > brun > bcull > bstop >= 0`},
		{"bad duration", "[collection]\ngrace = \"soon\"", `f:2: collection.grace: "soon" is not a duration`},
		{"negative grace", "[collection]\ngrace = \"-1s\"", `f: collection.grace: -1s is negative`},
		{"no stall timeout", "[containerd]\nstall_timeout = \"0s\"", `f: containerd.stall_timeout: 0s is not above zero`},
		{"size without unit", "[limits]\nfile_size = \"12\"", `f:2: limits.file_size: "12" is not a size, write for example "512MiB"`},
		{"decimal unit", "[limits]\nfile_size = \"1GB\"", `f:2: limits.file_size: "1GB" is not a size`},
		{"negative size", "[limits]\nfile_size = \"-1GiB\"", `f:2: limits.file_size: "-1GiB" is not a size`},
		{"large size", "[limits]\nlayer_size = \"8388608TiB\"", `f:2: limits.layer_size: "8388608TiB" is too large`},
		{"larger size", "[limits]\nlayer_size = \"99999999999999999999B\"", `is too large`},
		{"no inodes", "[limits]\ninodes = 0", `f: limits.inodes: 0 is not above zero`},
		{"no stream", "[limits]\nstream_size = \"0B\"", `f: limits.stream_size: 0 is not above zero`},
		{"wrong type", "root = 3", `f:1: `},
		{"not TOML", "root = \"/a\"\nroot /b", `f:2: `},
		{"empty root", `root = ""`, `f: root: must not be empty`},
		{"root /", `root = "/"`, `f: root: must be a directory of its own`},
		{"relative root", `root = "var"`, `f: root: "var" must be an absolute path`},
		{"root with a colon", `root = "/a:b"`, `f: root: "/a:b" contains ':'`},
		{"control character", `address = "/a\nb"`, `f: address: "/a\nb" contains control characters`},
		{"long address", `address = "` + long + `"`, `has 108 bytes, the path of a unix socket has at most 107`},
		{"containerd's address", `address = "/run/containerd/containerd.sock"`, `f: address: is also containerd.address`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse("f", []byte(test.text))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q in it", err, test.want)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"0B": 0, "1B": 1, "1025B": 1025, "3KiB": 3 << 10, "1536MiB": 1536 << 20, "2 TiB": 2 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s.Bytes != want {
			t.Errorf("%s: got %d, %v, want %d", text, s.Bytes, err, want)
		}
		if got := s.String(); got != strings.ReplaceAll(text, " ", "") {
			t.Errorf("%s is written as %s", text, got)
		}
	}
}

func TestLoadNamesAMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.toml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error that names %s", err, path)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultText))
	f.Add([]byte("mount.mode = \"file\"\n[[log]]\nlevel = 1"))
	f.Add([]byte("root = \"/\\u0000\"\n[containerd]\nstall_timeout = \"9999999h\"\nx = {y = 1979-05-27}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("f", text)
		if err != nil {
			if !reflect.DeepEqual(c, Config{}) {
				t.Errorf("error %v came with a configuration: %+v", err, c)
			}
			return
		}
		again, err := toml.Marshal(c)
		if err != nil {
			t.Fatalf("marshal %+v: %v", c, err)
		}
		if back, err := Parse("again", again); err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("%+v came back as %+v, %v", c, back, err)
		}
	})
}
