package watch

import (
	"context"
	"errors"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// After cacheRetry it is tried again to have a cache: another process had the device, or the disk was full. That doubles up to cacheRetryMost.
const (
	cacheRetry     = 15 * time.Second
	cacheRetryMost = 5 * time.Minute
)

// retryCache has a cache made if there should be one and it could not be made.
func (w *Watcher) retryCache(ctx context.Context) {
	w.mu.Lock()
	due := w.overCache.Load() && w.connected && w.cache == nil && !w.deviceLeft && time.Since(w.triedCache) >= w.cacheRetry
	w.mu.Unlock()
	if due {
		w.noCache(w.openCache(ctx, w.kernel.open))
	}
}

// noCache notes why there is no cache; nil: there is one, or there need not be.
func (w *Watcher) noCache(err error) {
	w.mu.Lock()
	if err == nil && w.overCache.Load() && w.cache == nil { // lost meanwhile, which was noted
		w.mu.Unlock()
		return
	}
	former := w.uncached
	w.uncached, w.triedCache = err, time.Now()
	switch {
	case err == nil:
		w.cacheRetry = cacheRetry
	case former != nil:
		w.cacheRetry = min(2*w.cacheRetry, cacheRetryMost)
	}
	again := w.cacheRetry
	w.mu.Unlock()
	switch {
	case err != nil:
		w.o.Log.Error("layers cannot be loaded on demand over fscache", "cause", err, "again_after", again)
	case former != nil:
		w.o.Log.Info("layers can be loaded on demand over fscache again")
	}
}

// cacheReady is why instances cannot be mounted over the cache although they should be. It is called with mu held.
func (w *Watcher) cacheReady() error {
	switch {
	case !w.overCache.Load() || w.cache != nil:
		return nil
	case w.uncached != nil:
		return w.uncached
	}
	return errors.New("there is no cache of files yet")
}

// lost gives a cache up that cannot be served any more: what is mounted fails, instead of waiting for ever. Another cache is made later.
func (c *cache) lost(cause error) {
	w := c.w
	w.mu.Lock()
	if w.cache != c { // given up already
		w.mu.Unlock()
		return
	}
	w.cache, w.deviceLeft, w.lostMounts = nil, true, true
	client := w.keeper
	w.mu.Unlock()
	w.o.Log.Error("the kernel's cache is lost: reads of what is mounted over fscache fail", "cause", cause)
	w.noCache(cause)
	if err := c.device.Close(); err != nil {
		w.o.Log.Error("the device of the cache was not closed", "cause", err)
	}
	ctx, cancel := context.WithTimeout(w.ctx, keeperTimeout)
	defer cancel()
	w.dropDevice(ctx, client)
}

// dropDevice has the keeper give the device up if nobody here serves it: as long as it holds it, readers wait. If it cannot be told now, Run tells
// it again; there is no other cache before.
func (w *Watcher) dropDevice(ctx context.Context, client *keeper.Client) {
	w.dropping.Lock() // so that none is on its way when there is another cache
	defer w.dropping.Unlock()
	w.mu.Lock()
	left := w.deviceLeft
	w.mu.Unlock()
	if !left || client == nil {
		return
	}
	if err := client.DropDevice(ctx); err != nil {
		w.o.Log.Error("the keeper holds the device of a cache that is lost: readers wait; it is told again", "cause", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deviceLeft = false
}

// afterLoss does what is left to do when a cache was lost.
func (w *Watcher) afterLoss(ctx context.Context) error {
	w.mu.Lock()
	client, due := w.keeper, w.lostMounts
	w.lostMounts = false
	w.mu.Unlock()
	callCtx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	w.dropDevice(callCtx, client)
	if !due || w.o.Lost == nil {
		return nil
	}
	return w.o.Lost(ctx)
}
