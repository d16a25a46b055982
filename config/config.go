// Package config reads the configuration file of the daemon.
//
// The file is TOML. Every key is optional and has a default that works; an empty file, and no file at all, are valid. An unknown
// key is an error: a misspelt key that is silently ignored costs more than a daemon that does not start. Errors name the file, the
// line where it is known, the key, and what would be right.
//
// default.toml is the documentation of all keys and is what `erofs-snapshotter config default` prints; a test keeps it equal to
// Default. The package only reads and checks text: whether this machine can do what the file asks for is not its business.
package config

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultPath is where the daemon looks when it is not told otherwise.
const DefaultPath = "/etc/erofs-snapshotter/config.toml"

// DefaultText is a commented file that sets every key to its default.
//
//go:embed default.toml
var DefaultText string

// Config is the whole configuration.
type Config struct {
	// Root is the directory of everything the daemon keeps. It belongs to one daemon.
	Root string `toml:"root"`
	// Address is the unix socket on which containerd talks to the daemon.
	Address     string      `toml:"address"`
	Log         Log         `toml:"log"`
	Mount       Mount       `toml:"mount"`
	Conversion  Conversion  `toml:"conversion"`
	Collection  Collection  `toml:"collection"`
	Containerd  Containerd  `toml:"containerd"`
	Remote      Remote      `toml:"remote"`
	Lazy        Lazy        `toml:"lazy"`
	Fscache     Fscache     `toml:"fscache"`
	Keeper      Keeper      `toml:"keeper"`
	Registry    Registry    `toml:"registry"`
	Credentials Credentials `toml:"credentials"`
	Admin       Admin       `toml:"admin"`
	Metrics     Metrics     `toml:"metrics"`
	Tracing     Tracing     `toml:"tracing"`
	Limits      Limits      `toml:"limits"`
}

// Log says what is logged and how it looks.
type Log struct {
	// Level is the least severe level that is logged: debug, info, warn or error.
	Level string `toml:"level"`
	// Format is text or json.
	Format string `toml:"format"`
}

// Mount says how EROFS instances are mounted.
type Mount struct {
	// Mode is auto, file or loop.
	Mode string `toml:"mode"`
	// DirectIO says when layers are read past the page cache of their files: never, cold or always.
	DirectIO string `toml:"direct_io"`
}

// Conversion says how layers are converted.
type Conversion struct {
	// Parallel is the largest number of layers. Zero is the number of processors.
	Parallel int `toml:"parallel"`
	// Memory is what all of them may take together; each counts as 64 MiB. One is always converted.
	Memory Size `toml:"memory"`
	// Sync says when a layer is put on stable storage: before it is used, or after.
	Sync string `toml:"sync"`
}

// Collection says when unreferenced data go.
type Collection struct {
	// Grace is how long an instance that nothing references is kept. Zero deletes at the next collection.
	Grace Duration `toml:"grace"`
	// Keep is how many bytes of layers that nothing references are kept longer than that, those used last. Zero keeps none.
	Keep Size `toml:"keep"`
}

// Containerd is the way back to containerd: layers are read from its content store.
type Containerd struct {
	Address string `toml:"address"`
	// StallTimeout is how long a read may stay without an answer before the layer fails.
	StallTimeout Duration `toml:"stall_timeout"`
}

// Remote says whether layers are pulled straight from registries.
type Remote struct {
	// Enabled lets the daemon fetch the layers that containerd announces. Otherwise containerd fetches all of them.
	Enabled bool `toml:"enabled"`
}

// Lazy says which layers are loaded on demand.
type Lazy struct {
	// Enabled lets layers be mounted before their data are here, where the registry has an index of them. It needs Remote.Enabled.
	Enabled bool `toml:"enabled"`
	// Mode is how the kernel asks for missing data: auto, fanotify or fscache; eager is as if Enabled were false.
	Mode string `toml:"mode"`
	// MinLayerSize is the size of the smallest layer that is loaded on demand.
	MinLayerSize Size `toml:"min_layer_size"`
	// Trust lists the repositories whose images may be lazy: "host/path", "host/path/*" or "*".
	Trust []string `toml:"trust"`
	// Deadline is how long a reader of missing data waits before it gets an error.
	Deadline Duration `toml:"deadline"`
	// Background fetches the rest of a layer, and checks the whole, once BackgroundDelay has passed without a fetch that a reader waited for.
	Background      bool     `toml:"background"`
	BackgroundDelay Duration `toml:"background_delay"`
	// Startup fetches what an image's program needs to start when the image was pulled.
	Startup bool `toml:"startup"`
}

// Fscache are limits of the kernel's cache of files, in percent of what the filesystem of the root has of blocks, and of inodes.
type Fscache struct {
	// Run is what must be free for nothing to be culled, Cull what makes the kernel want it, and Stop what makes it refuse data.
	Run  int `toml:"brun"`
	Cull int `toml:"bcull"`
	Stop int `toml:"bstop"`
}

// Keeper is the process that answers the kernel while the daemon is away.
type Keeper struct {
	// Address is its unix socket. Empty: keeper.sock beside the daemon's socket. See Config.KeeperAddress.
	Address string `toml:"address"`
	// Start lets the daemon start a keeper if none answers.
	Start bool `toml:"start"`
	// Patience is how long readers wait for a daemon that is away, of a keeper that the daemon starts.
	Patience Duration `toml:"patience"`
}

// Registry says how registries are read.
type Registry struct {
	// HostsDir holds a hosts.toml for each registry, in containerd's form.
	HostsDir string `toml:"hosts_dir"`
	// Connections is the largest number of requests for layers to one host at a time.
	Connections int `toml:"connections"`
	// Memory bounds what was received ahead of the place that is converted, of all layers together.
	Memory Size `toml:"memory"`
	// StallTimeout is how long a host may send nothing, or less than 16 KiB, before another attempt is made.
	StallTimeout Duration `toml:"stall_timeout"`
	// BackgroundRate is how many bytes per second are fetched for work that nobody waits for. Zero is no bound.
	BackgroundRate Size `toml:"background_rate"`
}

// Credentials says where credentials for registries are looked for.
type Credentials struct {
	// DockerConfig is a docker configuration file; it need not exist. Empty: none.
	DockerConfig string `toml:"docker_config"`
	// Kubernetes reads the image pull secrets of a cluster.
	Kubernetes bool `toml:"kubernetes"`
	// Kubeconfig is the way to the cluster. Empty: that of a pod in it.
	Kubeconfig string `toml:"kubeconfig"`
	// CRI forwards calls of CRI's image service to containerd, and remembers the credentials in them.
	CRI bool `toml:"cri"`
}

// Admin is the socket of the status command.
type Admin struct {
	// Address is a unix socket. Empty: admin.sock beside the daemon's socket. See Config.AdminAddress.
	Address string `toml:"address"`
	// Pprof serves Go's profiles on it.
	Pprof bool `toml:"pprof"`
}

// Metrics says where metrics are served besides the admin socket.
type Metrics struct {
	// Address is a TCP address, host:port. Empty: none.
	Address string `toml:"address"`
}

// Tracing says where traces are sent.
type Tracing struct {
	// Endpoint is the URL of an OTLP/HTTP collector. Empty: what OpenTelemetry's environment variables say.
	Endpoint string `toml:"endpoint"`
}

// Limits bound what one layer may ask for, so that a hostile image cannot take the host's memory or disk.
type Limits struct {
	// FileSize is the largest size one file may declare, holes included; LayerSize that of all files of a layer together.
	FileSize  Size `toml:"file_size"`
	LayerSize Size `toml:"layer_size"`
	// StreamSize is the longest uncompressed tar stream.
	StreamSize Size `toml:"stream_size"`
	// Inodes is the largest number of entries of a layer.
	Inodes int64 `toml:"inodes"`
	// MetadataSize bounds names, link targets and attributes that stay in memory while a layer is converted.
	MetadataSize Size `toml:"metadata_size"`
}

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		Root:       "/var/lib/containerd/io.containerd.snapshotter.v1.erofs-snapshotter",
		Address:    "/run/erofs-snapshotter/erofs-snapshotter.sock",
		Log:        Log{Level: "info", Format: "text"},
		Mount:      Mount{Mode: "auto", DirectIO: "never"},
		Conversion: Conversion{Memory: Size{1 << 30}, Sync: "before"},
		Collection: Collection{Grace: Duration{30 * time.Second}},
		Containerd: Containerd{
			Address:      "/run/containerd/containerd.sock",
			StallTimeout: Duration{30 * time.Second},
		},
		Remote: Remote{Enabled: true},
		Lazy: Lazy{
			Enabled: true, Mode: "auto", MinLayerSize: Size{10 << 20}, Trust: []string{"*"}, Deadline: Duration{time.Minute},
			Background: true, BackgroundDelay: Duration{5 * time.Second}, Startup: true,
		},
		Fscache: Fscache{Run: 7, Cull: 5, Stop: 1},
		Keeper:  Keeper{Start: true, Patience: Duration{30 * time.Second}},
		Registry: Registry{
			HostsDir:     "/etc/containerd/certs.d",
			Connections:  4,
			Memory:       Size{48 << 20},
			StallTimeout: Duration{30 * time.Second},
		},
		Credentials: Credentials{DockerConfig: "/root/.docker/config.json", CRI: true},
		Limits: Limits{
			FileSize:     Size{2 << 40},
			LayerSize:    Size{4 << 40},
			StreamSize:   Size{1 << 40},
			Inodes:       16 << 20,
			MetadataSize: Size{1 << 30},
		},
	}
}

// AdminAddress is the path of the admin socket.
func (c Config) AdminAddress() string {
	if c.Admin.Address != "" {
		return c.Admin.Address
	}
	return filepath.Join(filepath.Dir(c.Address), "admin.sock")
}

// KeeperAddress is the path of the keeper's socket.
func (c Config) KeeperAddress() string {
	if c.Keeper.Address != "" {
		return c.Keeper.Address
	}
	return filepath.Join(filepath.Dir(c.Address), "keeper.sock")
}

// Load reads the file. A missing file is an error: see LoadDefault.
func Load(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, text)
}

// LoadDefault reads the file at DefaultPath when there is one, and otherwise returns the defaults.
func LoadDefault() (Config, error) {
	c, err := Load(DefaultPath)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	return c, err
}

// Validate checks what single values cannot know of themselves. Parse has done it already.
func (c Config) Validate() error {
	var errs []error
	report := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	report("root", checkRoot(c.Root))
	report("address", checkSocket(c.Address))
	report("log.level", oneOf(c.Log.Level, "debug", "info", "warn", "error"))
	report("log.format", oneOf(c.Log.Format, "text", "json"))
	report("mount.mode", oneOf(c.Mount.Mode, "auto", "file", "loop"))
	report("mount.direct_io", oneOf(c.Mount.DirectIO, "never", "cold", "always"))
	report("containerd.address", checkSocket(c.Containerd.Address))
	report("admin.address", checkSocket(c.AdminAddress()))
	if c.Address == c.Containerd.Address {
		report("address", errors.New("is also containerd.address; the daemon needs a socket of its own"))
	}
	if admin := c.AdminAddress(); admin == c.Address || admin == c.Containerd.Address {
		report("admin.address", fmt.Errorf("%q is also another socket", admin))
	}
	if c.Conversion.Parallel < 0 {
		report("conversion.parallel", fmt.Errorf("%d is negative", c.Conversion.Parallel))
	}
	report("conversion.sync", oneOf(c.Conversion.Sync, "before", "after"))
	report("conversion.memory", aboveZero(c.Conversion.Memory.Bytes))
	if c.Collection.Grace.Duration < 0 {
		report("collection.grace", fmt.Errorf("%s is negative", c.Collection.Grace))
	}
	if c.Containerd.StallTimeout.Duration <= 0 {
		report("containerd.stall_timeout", fmt.Errorf("%s is not above zero", c.Containerd.StallTimeout))
	}
	report("lazy.mode", oneOf(c.Lazy.Mode, "auto", "fanotify", "fscache", "eager"))
	if f := c.Fscache; f.Stop < 0 || f.Stop >= f.Cull || f.Cull >= f.Run || f.Run >= 100 {
		report("fscache", fmt.Errorf("brun %d, bcull %d, bstop %d: the kernel wants 100 > brun > bcull > bstop >= 0", f.Run, f.Cull, f.Stop))
	}
	for _, p := range c.Lazy.Trust {
		report("lazy.trust", checkRepositories(p))
	}
	report("lazy.deadline", aboveZero(int64(c.Lazy.Deadline.Duration)))
	report("lazy.background_delay", notNegative(int64(c.Lazy.BackgroundDelay.Duration)))
	report("keeper.address", checkSocket(c.KeeperAddress()))
	if keeper := c.KeeperAddress(); keeper == c.Address || keeper == c.Containerd.Address || keeper == c.AdminAddress() {
		report("keeper.address", fmt.Errorf("%q is also another socket", keeper))
	}
	report("keeper.patience", aboveZero(int64(c.Keeper.Patience.Duration)))
	report("registry.hosts_dir", checkOptionalPath(c.Registry.HostsDir))
	report("registry.connections", aboveZero(int64(c.Registry.Connections)))
	report("registry.memory", aboveZero(c.Registry.Memory.Bytes))
	if c.Registry.StallTimeout.Duration <= 0 {
		report("registry.stall_timeout", fmt.Errorf("%s is not above zero", c.Registry.StallTimeout))
	}
	report("credentials.docker_config", checkOptionalPath(c.Credentials.DockerConfig))
	report("credentials.kubeconfig", checkOptionalPath(c.Credentials.Kubeconfig))
	if c.Credentials.Kubeconfig != "" && !c.Credentials.Kubernetes {
		report("credentials.kubeconfig", errors.New("is set, but credentials.kubernetes is false"))
	}
	report("metrics.address", checkTCP(c.Metrics.Address))
	report("tracing.endpoint", checkURL(c.Tracing.Endpoint))
	report("limits.file_size", aboveZero(c.Limits.FileSize.Bytes))
	report("limits.layer_size", aboveZero(c.Limits.LayerSize.Bytes))
	report("limits.stream_size", aboveZero(c.Limits.StreamSize.Bytes))
	report("limits.inodes", aboveZero(c.Limits.Inodes))
	report("limits.metadata_size", aboveZero(c.Limits.MetadataSize.Bytes))
	return errors.Join(errs...)
}

func aboveZero(n int64) error {
	if n <= 0 {
		return fmt.Errorf("%d is not above zero", n)
	}
	return nil
}

func notNegative(n int64) error {
	if n < 0 {
		return fmt.Errorf("%d is negative", n)
	}
	return nil
}

// checkRepositories refuses what would silently match nothing, or more than it seems to.
func checkRepositories(pattern string) error {
	below, all := strings.CutSuffix(pattern, "*")
	if pattern == "*" || strings.Contains(below, "/") && !strings.Contains(below, "*") && (!all || strings.HasSuffix(below, "/")) {
		return nil
	}
	return fmt.Errorf(`%q is no repository: write "host/path", "host/path/*" for all below a path, or "*" for all`, pattern)
}

// checkRoot refuses what an overlay mount cannot name: the kernel splits lowerdir at colons and options at commas.
func checkRoot(root string) error {
	if err := checkPath(root); err != nil {
		return err
	}
	if root == "/" {
		return errors.New("must be a directory of its own, not /")
	}
	if i := strings.IndexAny(root, ":,\\\""); i >= 0 {
		return fmt.Errorf("%q contains %q, which cannot stand in the options of an overlay mount", root, root[i])
	}
	return nil
}

// maxSocketPath is the longest path of a unix socket: sun_path is 108 bytes with its final zero.
const maxSocketPath = 107

func checkSocket(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if len(path) > maxSocketPath {
		return fmt.Errorf("%q has %d bytes, the path of a unix socket has at most %d", path, len(path), maxSocketPath)
	}
	return nil
}

func checkOptionalPath(path string) error {
	if path == "" {
		return nil
	}
	return checkPath(path)
}

// checkTCP wants a host in the address, so that nobody serves the world by leaving it out.
func checkTCP(address string) error {
	if address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err == nil && host == "" {
		err = errors.New("the host is missing")
	}
	if err != nil {
		return fmt.Errorf(`%q is not an address, write for example "127.0.0.1:9464": %w`, address, err)
	}
	return nil
}

func checkURL(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf(`%q is not a URL, write for example "http://127.0.0.1:4318"`, endpoint)
	}
	return nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("must not be empty")
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("%q must be an absolute path", path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q contains control characters", path)
	}
	return nil
}
