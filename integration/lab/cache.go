package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// Cache is the directory that tools.sh and images.sh fill.
func Cache() string {
	if dir := os.Getenv("EROFS_LAB_CACHE"); dir != "" {
		return dir
	}
	base := os.Getenv("XDG_CACHE_HOME")
	if base == "" {
		base = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	return filepath.Join(base, "erofs-snapshotter")
}

// Program is the path of a tool that tools.sh installed.
func Program(name string) string { return filepath.Join(Cache(), "bin", name) }

// Layout is the directory of an OCI layout that images.sh made, such as "nginx-gzip".
func Layout(image string) string { return filepath.Join(Cache(), "images", image) }

// Layer is the tar of a layer that images.sh made, such as "base" or "node-modules".
func Layer(name string) string { return filepath.Join(Cache(), "layers", name+".tar") }

// Tools is a complete set of the programs that a Lab starts, besides containerd: see Containerd.
var Tools = testenv.Feature{Name: "lab-tools", Missing: func() error {
	for _, name := range []string{"runc", "registry", "crane"} {
		if _, err := os.Stat(Program(name)); err != nil {
			return fmt.Errorf("%w (make tools)", err)
		}
	}
	return nil
}}

// Image is a layout in the cache.
func Image(image string) testenv.Feature {
	return cached("image:"+image, filepath.Join(Layout(image), "index.json"))
}

// LayerTar is a layer tar in the cache.
func LayerTar(name string) testenv.Feature { return cached("layer:"+name, Layer(name)) }

// ToolProgram is one program that only some tests need, such as fsck.erofs.
func ToolProgram(name string) testenv.Feature { return cached("tool:"+name, Program(name)) }

func cached(feature, path string) testenv.Feature {
	return testenv.Feature{Name: feature, Missing: func() error {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w (make tools images)", err)
		}
		return nil
	}}
}

// environ is the environment of everything a lab starts: the lab's own programs are found first, and temporary files, which
// containerd also mounts on, stay inside of the lab.
func (l *Lab) environ() []string {
	var env []string
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "PATH", "TMPDIR", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SNAPSHOTTER", "NOTIFY_SOCKET", "DOCKER_CONFIG":
		default:
			env = append(env, e)
		}
	}
	return append(env,
		"PATH="+containerdDir(l.opts.Containerd)+":"+filepath.Join(Cache(), "bin")+":"+os.Getenv("PATH"), // the shim is containerd's own
		"TMPDIR="+l.path("tmp"),
		"CONTAINERD_ADDRESS="+l.ContainerdAddress(),
		"CONTAINERD_NAMESPACE="+l.Namespace,
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1", // of cgroup v1, on stderr of every call of ctr
		"OTEL_TRACES_EXPORTER=none",                  // the registry would look for a collector
	)
}
