package credentials

import (
	"context"
	"errors"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// Chain returns a source that answers with the first of the given ones that knows. After a refusal the one that answered is asked
// again; what was refused before is passed over, whichever source says it, until nothing else is left. The errors of sources are
// returned when no other source knew.
func Chain(sources ...Source) Source {
	return &chain{sources: sources}
}

type chain struct {
	sources []Source
	answers login.Memory
}

func (c *chain) Get(ctx context.Context, image, host string, refused bool) (user, secret string, err error) {
	target, err := login.For(image, host)
	if err != nil {
		return "", "", err
	}
	var failures []error
	l := c.answers.Choose(target, refused, len(c.sources), func(i int, refused bool) login.Login {
		user, secret, err := c.sources[i].Get(ctx, image, host, refused)
		if err != nil {
			failures = append(failures, err)
			return login.Login{}
		}
		return login.Login{User: user, Secret: secret}
	})
	if l.Known() {
		return l.User, l.Secret, nil
	}
	return "", "", errors.Join(failures...)
}
