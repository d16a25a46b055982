package watch

import "time"

// mounted are the beginnings of the ids of the instances of which the kernel has a superblock over this cache.
func (c *cache) mounted() (map[string]bool, error) {
	all, err := c.w.kernel.listSuperblocks()
	found := map[string]bool{}
	for _, s := range all {
		if s.domain == c.note.Domain {
			found[s.instance] = true
		}
	}
	return found, err
}

// look culls what nobody has mounted any more, and has the keeper give the device up when nothing is mounted. A cache that the kernel has given up is
// lost.
func (c *cache) look() {
	if err := c.device.Check(); err != nil {
		c.lost(err)
		return
	}
	mounted, err := c.mounted()
	if err != nil {
		c.w.o.Log.Warn("cannot find out what is mounted over fscache", "cause", err)
		return
	}
	now := time.Now()
	c.noteMounted(mounted, now)
	c.settleHolding(len(mounted) > 0)
	full, err := c.device.WantsCulling()
	if err != nil {
		c.w.o.Log.Warn("cannot find out whether the kernel wants space", "cause", err)
	}
	c.mu.Lock()
	c.full = full
	if full && c.unswept.IsZero() {
		c.unswept = now
	}
	c.mu.Unlock()
	c.sweep(now)
}

const (
	// sweepPause is how long after a mount was prepared nothing is culled: what begins to be used while it is culled cannot be read. Where mounts come
	// all the time it is done after mountTime all the same.
	sweepPause = 5 * time.Second
	// sweepAgain is for how long after an unmount there may be more to cull: the kernel gives the files their names some time after.
	sweepAgain = 10 * time.Second
)

// noteMounted compares what is mounted with the last look.
func (c *cache) noteMounted(mounted map[string]bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.known {
		if !mounted[name] {
			c.unmounted = now
			if c.unswept.IsZero() {
				c.unswept = now
			}
		}
	}
	c.known = mounted
}

// sweepable says whether it is time to cull. It is called with mu held.
func (c *cache) sweepable(now time.Time) bool {
	return !c.unswept.IsZero() && (now.Sub(c.prepared) >= sweepPause || now.Sub(c.unswept) >= mountTime)
}

// sweep culls what nobody has mounted, if it is time for that. Mounts wait until it is done.
func (c *cache) sweep(now time.Time) {
	c.sweeping.Lock()
	defer c.sweeping.Unlock()
	c.mu.Lock()
	due := c.sweepable(now)
	if due && now.Sub(c.unmounted) >= sweepAgain {
		c.unswept = time.Time{}
	}
	c.mu.Unlock()
	if !due {
		return
	}
	files, bytes, err := c.device.Sweep()
	c.mu.Lock()
	c.culled += bytes
	c.mu.Unlock()
	if err != nil {
		c.w.o.Log.Warn("culling the cache of files", "cause", err)
	} else if files > 0 {
		c.w.o.Log.Info("cache of files culled", "files", files, "bytes", bytes)
	}
}
