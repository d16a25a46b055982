package watch

import (
	"context"
	"encoding/json"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// hold gives a keeper that has just come the device, if anything is mounted.
func (c *cache) hold(ctx context.Context, client *keeper.Client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return nil
	}
	return c.give(ctx, client) // after an error it should be held all the same, so the next keeper gets it
}

// holdLocked has the keeper hold the device, unless it does. It is called with mu held.
func (c *cache) holdLocked(ctx context.Context, client *keeper.Client) error {
	if c.held && c.sure {
		return nil
	}
	if err := c.give(ctx, client); err != nil {
		return err
	}
	c.held = true
	return nil
}

// give has a keeper hold the device. It is called with mu held.
func (c *cache) give(ctx context.Context, client *keeper.Client) error {
	note, err := json.Marshal(c.note)
	if err != nil {
		return err
	}
	err = client.HoldDevice(ctx, keeper.HeldDevice{Note: note, File: c.device.File()})
	c.sure = err == nil
	return err
}

// settleHolding has the keeper hold the device while anything is mounted, also what was mounted after it took longer than it should, and give it up
// otherwise: then nothing is to be answered, and a keeper that holds nothing can end.
func (c *cache) settleHolding(mounted bool) {
	c.w.mu.Lock()
	client := c.w.keeper
	c.w.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if client == nil || mounted && c.held && c.sure || !mounted && (!c.held || time.Since(c.prepared) < mountTime) {
		return
	}
	ctx, cancel := context.WithTimeout(c.w.ctx, keeperTimeout)
	defer cancel()
	if mounted {
		if err := c.holdLocked(ctx, client); err != nil {
			c.w.o.Log.Warn("the keeper does not hold the cache's device though something is mounted; it is told again", "cause", err)
		}
		return
	}
	c.sure = false // a keeper that does not answer in time may drop it later
	if err := client.DropDevice(ctx); err != nil {
		c.w.o.Log.Warn("the keeper holds the cache's device though nothing is mounted; it is told again", "cause", err)
		return
	}
	c.held = false
}
