package login

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// DockerHub is the one name that Host gives to all names of Docker Hub.
const DockerHub = "docker.io"

// Target is what a credential is wanted for.
type Target struct {
	Host       string // as Host returns it
	Repository string // "library/nginx": the repository of the image, whichever host serves it
}

// For returns the target of a request to host for the image, a reference such as docker.io/library/nginx:1.
func For(image, host string) (Target, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return Target{}, fmt.Errorf("credentials for image %q: %w", image, err)
	}
	if host == "" {
		host = reference.Domain(named)
	}
	return Target{Host: Host(host), Repository: reference.Path(named)}, nil
}

// Host returns the name of a registry as credentials are compared: without scheme, path and upper case, and with one name for
// Docker Hub. A port stays: registry:5000 is another registry than registry.
func Host(address string) string {
	host, _, _ := strings.Cut(withoutScheme(address), "/")
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return DockerHub
	}
	return host
}

func withoutScheme(address string) string {
	if _, rest, found := strings.Cut(address, "://"); found {
		return rest
	}
	return address
}
