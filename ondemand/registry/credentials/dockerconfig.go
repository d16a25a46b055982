package credentials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/docker/cli/cli/config/configfile"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// maxConfigBytes bounds docker's configuration, which has some 100 bytes for each registry.
const maxConfigBytes = 1 << 20

// hubServer is the name under which docker keeps the credential of Docker Hub in credential stores.
const hubServer = "https://index.docker.io/v1/"

// DockerConfig returns the credentials of the docker CLI's configuration file. An empty path means $DOCKER_CONFIG/config.json, or
// ~/.docker/config.json. The file is read for every question, so that a change counts at once, and need not exist.
//
// A registry that "credHelpers" names is looked up by that program alone. For the others "credsStore" is asked, and then "auths", whose
// keys may also have the paths and patterns that kubelet allows.
func DockerConfig(path string) Source {
	return dockerConfig{path: path}
}

type dockerConfig struct{ path string }

func (c dockerConfig) Get(ctx context.Context, image, host string, _ bool) (user, secret string, err error) {
	target, err := login.For(image, host)
	if err != nil {
		return "", "", err
	}
	path, err := c.file()
	if err != nil {
		return "", "", err
	}
	file, err := readDockerConfig(path)
	if err != nil {
		return "", "", fmt.Errorf("docker configuration %s: %w", path, err)
	}
	l, err := lookUp(ctx, file, target)
	if err != nil {
		return "", "", fmt.Errorf("credentials for %s, docker configuration %s: %w", target.Host, path, err)
	}
	return l.User, l.Secret, nil
}

// file returns the path of the configuration.
func (c dockerConfig) file() (string, error) {
	if c.path != "" {
		return c.path, nil
	}
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find docker's configuration: %w; set DOCKER_CONFIG to its directory", err)
		}
		dir = filepath.Join(home, ".docker")
	}
	return filepath.Join(dir, "config.json"), nil
}

// readDockerConfig returns an empty configuration when there is no file.
func readDockerConfig(path string) (*configfile.ConfigFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return configfile.New(path), nil
	}
	if err != nil {
		return nil, errors.Unwrap(err) // the caller says which file
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfigBytes {
		return nil, fmt.Errorf("is larger than %d bytes", maxConfigBytes)
	}
	return parseDockerConfig(path, data)
}

func parseDockerConfig(path string, data []byte) (*configfile.ConfigFile, error) {
	file := configfile.New(path)
	if err := file.LoadFromReader(bytes.NewReader(data)); err != nil {
		return nil, err
	}
	return file, nil
}

func lookUp(ctx context.Context, file *configfile.ConfigFile, target login.Target) (login.Login, error) {
	server := target.Host
	if server == login.DockerHub {
		server = hubServer
	}
	for _, key := range slices.Sorted(maps.Keys(file.CredentialHelpers)) {
		if login.Host(key) == target.Host {
			return askHelper(ctx, file.CredentialHelpers[key], server)
		}
	}
	if file.CredentialsStore != "" {
		if l, err := askHelper(ctx, file.CredentialsStore, server); err != nil || l.Known() {
			return l, err
		}
	}
	if found := login.NewKeyring(file.AuthConfigs).Match(target); len(found) > 0 {
		return found[0].Login, nil
	}
	return login.Login{}, nil
}
