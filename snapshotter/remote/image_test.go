package remote

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

func TestBadImages(t *testing.T) {
	for name, c := range map[string]struct{ manifest, config string }{
		"no json":        {"{", "{}"},
		"no layers":      {`{}`, "{}"},
		"bad digest":     {`{"layers":[{"digest":"sha256:1","size":1}]}`, "{}"},
		"negative size":  {fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"digest":%q,"size":-1}]}`, digest.FromString(""), digest.FromString("")), "{}"},
		"config no json": {oneLayer(1), "["},
		"no diff_ids":    {oneLayer(1), "{}"},
		"bad diff_id":    {oneLayer(1), `{"rootfs":{"diff_ids":["sha256:x"]}}`},
		"many layers":    {oneLayer(maxLayers + 1), "{}"},
	} {
		t.Run(name, func(t *testing.T) {
			img, _, err := parseManifest([]byte(c.manifest))
			if err == nil {
				err = img.addConfig([]byte(c.config))
			}
			if err == nil {
				t.Error("no error")
			}
		})
	}
}

// TestProgram: what an image starts is its entrypoint and the arguments.
func TestProgram(t *testing.T) {
	for config, want := range map[string]*startup.Program{
		`{}`:                            nil,
		`{"config":{"Cmd":"a string"}}`: nil,
		`{"config":[]}`:                 nil,
		`{"config":null}`:               nil,
		`{"config":{"Cmd":["c"],"Volumes":[],"ExposedPorts":7}}`:                           {Args: []string{"c"}},
		`{"config":{"Env":["A=b"],"WorkingDir":"/d"}}`:                                     nil,
		`{"config":{"Entrypoint":["/e","x"],"Cmd":["c"],"Env":["A=b"],"WorkingDir":"/d"}}`: {Args: []string{"/e", "x", "c"}, Env: []string{"A=b"}, Dir: "/d"},
		`{"config":{"Cmd":["c"]}}`:                                                         {Args: []string{"c"}},
	} {
		img, _, err := parseManifest([]byte(oneLayer(1)))
		if err != nil {
			t.Fatal(err)
		}
		diffIDs := fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}`, digest.FromString("x"))
		if rest := config[1:]; rest != "}" {
			diffIDs += ","
		}
		if err := img.addConfig([]byte(diffIDs + config[1:])); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(img.program, want) {
			t.Errorf("%s: %+v, want %+v", config, img.program, want)
		}
	}
}

// oneLayer is a manifest with n times the same layer.
func oneLayer(n int) string {
	layer := fmt.Sprintf(`{"digest":%q,"size":1}`, digest.FromString(""))
	return fmt.Sprintf(`{"config":%s,"layers":[%s]}`, layer, strings.TrimSuffix(strings.Repeat(layer+",", n), ","))
}

// FuzzImage: whatever manifest and configuration say, an image that is accepted can be asked for each of its layers, and only for them.
func FuzzImage(f *testing.F) {
	f.Add([]byte(oneLayer(1)), []byte(fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}}`, digest.FromString("x"))))
	f.Add([]byte(oneLayer(2)), []byte(fmt.Sprintf(`{"rootfs":{"diff_ids":[%q,%q]}}`, digest.FromString("x"), digest.FromString("x"))))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		img, configDigest, err := parseManifest(manifest)
		if err != nil {
			return
		}
		if err := configDigest.Validate(); err != nil {
			t.Fatal(err)
		}
		if img.addConfig(config) != nil {
			return
		}
		for i, l := range img.layers {
			at, err := img.place(announcement{layer: l.Digest, target: img.chains[i]}, i == 0)
			if err != nil || at != i {
				t.Fatalf("layer %d found at %d: %v", i, at, err)
			}
		}
		if _, err := img.place(announcement{layer: img.layers[0].Digest, target: digest.FromString("no chain")}, true); err == nil {
			t.Fatal("an unknown chain ID was found")
		}
	})
}
