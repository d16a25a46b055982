package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// What the daemon has learned of credentials is kept by the keeper, for the next daemon: a kubelet tells them once, and layers that are not
// complete are fetched for long.

// importSecret takes over what an earlier daemon has left with the keeper.
func (d *demand) importSecret(f *os.File) {
	if f == nil {
		return
	}
	defer f.Close()
	if d.from.cri == nil {
		return
	}
	b, err := keeper.Unseal(f)
	if err == nil {
		err = d.from.cri.Import(b)
	}
	if err != nil {
		d.log.Warn("credentials that the keeper has kept are of no use", "cause", err)
	}
}

// keepSecrets gives the keeper what was learned, whenever that changes.
func (d *demand) keepSecrets(ctx context.Context) error {
	if d.from.cri == nil {
		<-ctx.Done()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.from.learned:
		}
		if err := d.keepSecret(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("credentials not given to the keeper: after a restart private layers that are not complete may need another pull", "cause", err)
		}
	}
}

func (d *demand) keepSecret(ctx context.Context) (err error) {
	if d.watcher.Ready() != nil {
		return nil // it is given to the next keeper
	}
	b, err := d.from.cri.Export()
	if err != nil {
		return err
	}
	f, err := keeper.Seal(b)
	if err != nil {
		return fmt.Errorf("sealed memory: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return d.watcher.Secret(ctx, f)
}
