package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
)

// Kind says where an image is.
type Kind string

// The values of Kind are the prefixes that ask for them.
const (
	// Local is a path whose kind its contents tell.
	Local         Kind = "local"
	OCILayout     Kind = "oci"
	OCIArchive    Kind = "oci-archive"
	DockerArchive Kind = "docker-archive"
	InRegistry    Kind = "registry"
)

// Name is a parsed IMAGE argument.
type Name struct {
	Kind Kind
	// Path is absolute, Tag names one of several images there and may be empty. Not of an image in a registry.
	Path, Tag string
	// Reference is the full reference of an image in a registry, "docker.io/library/nginx:latest".
	Reference string
}

// String names the image the same way whatever the working directory is.
func (n Name) String() string {
	if n.Kind == InRegistry {
		return n.Reference
	}
	s := n.Path
	if n.Kind != Local {
		s = string(n.Kind) + ":" + s
	}
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	return s
}

// Parse says what an IMAGE argument means. What it means does not depend on which files are there:
//
//	oci:PATH[:TAG]  oci-archive:PATH[:NAME]  docker-archive:PATH[:NAME]      what the prefix says
//	registry:REF    docker:REF    docker://REF                               an image in a registry
//	/…  ./…  ../…  .  ..                                                     a path, of any of the three local kinds
//	anything else                                                            an image in a registry
//
// Only where a path ends and a tag begins is looked up: the whole is a path if that exists; otherwise the path ends at the first colon
// before which something exists.
//
// A word without a prefix that is also the name of a layout or a file in the working directory is an error that says how to write either.
func Parse(arg string) (Name, error) {
	prefix, rest, _ := strings.Cut(arg, ":")
	switch Kind(prefix) {
	case OCILayout, OCIArchive, DockerArchive:
		return parsePath(Kind(prefix), rest)
	case InRegistry:
		return parseReference(rest)
	case "docker":
		return parseReference(strings.TrimPrefix(rest, "//"))
	}
	if looksLikePath(arg) {
		return parsePath(Local, arg)
	}
	if path := imageAt(arg); path != "" {
		return Name{}, fmt.Errorf("image %q: this could be the file %s or an image in a registry\n  write ./%s for the file, or registry:%s",
			arg, path, arg, arg)
	}
	return parseReference(arg)
}

// looksLikePath says whether arg is written as a path. No reference begins with a slash or a dot.
func looksLikePath(arg string) bool {
	return strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".")
}

// imageAt returns the path that arg would name if it were written as one, if that looks like an image: a file, or a layout.
func imageAt(arg string) string {
	path, _ := splitTag(arg)
	fi, err := os.Stat(path)
	if err == nil && fi.IsDir() {
		_, err = os.Stat(filepath.Join(path, layoutFile))
	}
	if err != nil {
		return ""
	}
	return path
}

func parseReference(arg string) (Name, error) {
	ref, err := reference.ParseDockerRef(arg)
	if err != nil {
		return Name{}, fmt.Errorf("image %q: %w\n  a path is written with / or ./ in front", arg, err)
	}
	return Name{Kind: InRegistry, Reference: ref.String()}, nil
}

func parsePath(kind Kind, arg string) (Name, error) {
	path, tag := splitTag(arg)
	if path == "" {
		return Name{}, fmt.Errorf("image %q: %w", string(kind)+":"+arg, errors.New("no path is given"))
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Name{}, fmt.Errorf("image %q: %w", arg, err)
	}
	return Name{Kind: kind, Path: abs, Tag: tag}, nil
}

// splitTag finds the colon that ends the path. If nothing that is named exists, all of it is the path, for the error message to come.
func splitTag(arg string) (path, tag string) {
	if _, err := os.Lstat(arg); err == nil {
		return arg, ""
	}
	for i := range len(arg) {
		if arg[i] != ':' {
			continue
		}
		if _, err := os.Lstat(arg[:i]); err == nil {
			return arg[:i], arg[i+1:]
		}
	}
	return arg, ""
}
