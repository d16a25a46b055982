// Package credentials finds what a registry wants to know before it hands out an image.
//
// Sources are asked in turn: Chain joins those of this package and of the packages below it.
//
//	DockerConfig   docker's config.json and the programs that it names    nothing kept: read anew for every question
//	kubesecrets    image pull secrets of Kubernetes, watched              in memory, as long as they exist in the cluster
//	criproxy       what kubelet hands to containerd with each pull        in memory, dropped when unused
//
// Nothing secret is written to disk or to a log, and no error shows a secret or what a credential program said. What was learned is lost
// with the process.
//
// A credential is chosen by the host that asks, alone: a mirror never gets what is meant for the registry behind it. Docker Hub's names
// (docker.io, index.docker.io, registry-1.docker.io) are one host.
package credentials

import "context"

// Source is where credentials come from. Safe for concurrent use.
type Source interface {
	// Get returns the credential for a request to host, which asked for one, for the image, a reference such as
	// docker.io/library/nginx:1. host is the registry of the image or a mirror of it, with its port if it has one.
	//
	// Two empty strings mean that nothing is known, and the request is made without. An empty user means that secret is an identity
	// token. refused tells that what the last call for this image's repository and host returned was refused: something else is
	// returned, or what was fetched anew, or nothing. Whoever makes several requests with one answer reports its refusal once.
	Get(ctx context.Context, image, host string, refused bool) (user, secret string, err error)
}
