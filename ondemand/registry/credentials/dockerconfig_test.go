package credentials

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// writeConfig makes a docker configuration and returns its path.
func writeConfig(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// addHelper makes docker-credential-NAME, a shell script, the only program on PATH besides those of the system.
func addHelper(t *testing.T, name, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// echo answers a request with the name of the server as the user.
const echo = `read -r server || true
[ "$1" = get ] || exit 3
printf '{"ServerURL":"%s","Username":"%s","Secret":"s3cret"}' "$server" "$server"
`

func TestDockerConfigAnswers(t *testing.T) {
	addHelper(t, "echo", echo)
	addHelper(t, "token", `echo '{"Username":"<token>","Secret":"tok"}'`)
	addHelper(t, "empty", `echo "credentials not found in native keychain"; exit 1`)
	hub := "docker.io/library/nginx:1"
	for _, test := range []struct {
		name, config, image, host string
		user, secret              string
	}{
		{"auth", `{"auths":{"r.io":{"auth":"` + basic("u", "p") + `"}}}`, "r.io/app:1", "r.io", "u", "p"},
		{"user and password", `{"auths":{"r.io":{"username":"u","password":"p"}}}`, "r.io/app:1", "r.io", "u", "p"},
		{"identity token", `{"auths":{"r.io":{"auth":"` + basic("u", "") + `","identitytoken":"tok"}}}`, "r.io/app:1", "r.io", "", "tok"},
		{"Docker Hub", `{"auths":{"https://index.docker.io/v1/":{"auth":"` + basic("u", "p") + `"}}}`, hub, "registry-1.docker.io", "u", "p"},
		{"a mirror gets nothing of Docker Hub", `{"auths":{"docker.io":{"auth":"` + basic("u", "p") + `"}}}`, hub, "mirror.io", "", ""},
		{"a mirror's own", `{"auths":{"mirror.io":{"auth":"` + basic("u", "p") + `"}}}`, hub, "mirror.io", "u", "p"},
		{"port", `{"auths":{"127.0.0.1:5000":{"auth":"` + basic("u", "p") + `"}}}`, "127.0.0.1:5000/a", "127.0.0.1:5000", "u", "p"},
		{"other registry", `{"auths":{"r.io":{"auth":"` + basic("u", "p") + `"}}}`, "s.io/a", "s.io", "", ""},
		{"helper", `{"credHelpers":{"r.io":"echo"}}`, "r.io/app:1", "r.io", "r.io", "s3cret"},
		{"helper for Docker Hub", `{"credHelpers":{"docker.io":"echo"}}`, hub, "registry-1.docker.io", hubServer, "s3cret"},
		{"helper is for its registry", `{"credHelpers":{"r.io":"echo"}}`, "s.io/a", "s.io", "", ""},
		{"token of a helper", `{"credHelpers":{"r.io":"token"}}`, "r.io/app:1", "r.io", "", "tok"},
		{"store", `{"credsStore":"echo","auths":{"r.io":{}}}`, "r.io/app:1", "r.io", "r.io", "s3cret"},
		{"helper before store", `{"credsStore":"echo","credHelpers":{"r.io":"token"}}`, "r.io/app:1", "r.io", "", "tok"},
		{"empty store", `{"credsStore":"empty"}`, "r.io/app:1", "r.io", "", ""},
		{"empty store, then auths", `{"credsStore":"empty","auths":{"r.io":{"auth":"` + basic("u", "p") + `"}}}`, "r.io/app:1", "r.io", "u", "p"},
		{"helper alone", `{"credHelpers":{"r.io":"empty"},"auths":{"r.io":{"auth":"` + basic("u", "p") + `"}}}`, "r.io/app:1", "r.io", "", ""},
		{"keys that are not ours", `{"HttpHeaders":{"A":"b"},"detachKeys":"ctrl-x"}`, "r.io/app:1", "r.io", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			user, secret, err := DockerConfig(writeConfig(t, test.config)).Get(t.Context(), test.image, test.host, false)
			if err != nil || user != test.user || secret != test.secret {
				t.Errorf("got %q, %q, %v, want %q, %q", user, secret, err, test.user, test.secret)
			}
		})
	}
}

func TestDockerConfigFindsItsFile(t *testing.T) {
	config := []byte(`{"auths":{"r.io":{"auth":"` + basic("u", "p") + `"}}}`)
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", "")
	source := DockerConfig("")
	if got := ask(t, source, false); got != "" {
		t.Errorf("without a file: got %q", got)
	}
	if err := os.Mkdir(filepath.Join(home, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, source, false); got != "p" {
		t.Errorf("with ~/.docker/config.json: got %q, want p", got)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	if got := ask(t, source, false); got != "" {
		t.Errorf("with an empty DOCKER_CONFIG directory: got %q", got)
	}
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("HOME", "")
	if _, _, err := source.Get(t.Context(), image, host, false); err == nil || !strings.Contains(err.Error(), "DOCKER_CONFIG") {
		t.Errorf("without HOME: got error %v", err)
	}
}

func TestDockerConfigSeesChanges(t *testing.T) {
	path := writeConfig(t, `{"auths":{"r.io":{"auth":"`+basic("u", "old")+`"}}}`)
	source := DockerConfig(path)
	if got := ask(t, source, false); got != "old" {
		t.Fatalf("got %q, want old", got)
	}
	if err := os.WriteFile(path, []byte(`{"auths":{"r.io":{"auth":"`+basic("u", "new")+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, source, true); got != "new" {
		t.Errorf("got %q, want new", got)
	}
}

func TestDockerConfigErrors(t *testing.T) {
	addHelper(t, "leak", `echo '{"Secret":"s3cret"}'; echo s3cret >&2; exit 1`)
	addHelper(t, "garbage", `echo 's3cret is not JSON'`)
	addHelper(t, "endless", `while :; do echo s3crets3crets3crets3crets3crets3crets3crets3cret; done`)
	for _, test := range []struct{ name, config, want string }{
		{"broken JSON", `{"auths": s3cret`, "config.json"},
		{"broken auth", `{"auths":{"r.io":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("s3cret")) + `"}}}`, "config.json"},
		{"wrong type", `{"auths":{"r.io":"s3cret"}}`, "config.json"},
		{"too large", `{"auths":{}}` + strings.Repeat(" ", maxConfigBytes), "larger than"},
		{"helper fails", `{"credHelpers":{"r.io":"leak"}}`, "docker-credential-leak: exit status 1"},
		{"helper says nonsense", `{"credHelpers":{"r.io":"garbage"}}`, "docker-credential-garbage"},
		{"helper says too much", `{"credsStore":"endless"}`, "wrote more than"},
		{"no such helper", `{"credsStore":"missing"}`, "docker-credential-missing"},
		{"helper by path", `{"credsStore":"x/../../../bin/sh"}`, "slash"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := writeConfig(t, test.config)
			_, _, err := DockerConfig(path).Get(t.Context(), image, host, false)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got error %v, want one with %q and %q", err, test.want, path)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

// A helper that was killed must not leave a child that still holds its output, and Get must not wait for one.
func TestHelperEndsWithItsRequest(t *testing.T) {
	dir := addHelper(t, "slow", `cd "$(dirname "$0")"; sleep 600 & echo $! > child; touch started; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	source := DockerConfig(writeConfig(t, `{"credsStore":"slow"}`))
	done := make(chan error, 1)
	go func() {
		_, _, err := source.Get(ctx, image, host, false)
		done <- err
	}()
	waitForFile(t, filepath.Join(dir, "started"))
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "docker-credential-slow") {
		t.Errorf("got error %v", err)
	}
	child, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	waitForEnd(t, strings.TrimSpace(string(child)))
}

// FuzzDockerConfig: no file makes us panic, and none is without an end.
func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"*.r.io/team":{"identitytoken":"t"}}}`))
	f.Add([]byte(`{"auths":{"[":{"username":"u"}},"credHelpers":{"r.io":"a/b"}}`))
	f.Add([]byte(`{"auths":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parseDockerConfig("config.json", data)
		if err != nil {
			return
		}
		file.CredentialsStore, file.CredentialHelpers = "", nil // no programs
		for _, target := range []login.Target{{Host: "docker.io", Repository: "library/nginx"}, {Host: "a.r.io:5000", Repository: "team/app"}} {
			if _, err := lookUp(t.Context(), file, target); err != nil {
				t.Errorf("%v: %v", target, err)
			}
		}
	})
}
