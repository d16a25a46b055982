package main

import (
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/telemetry"
)

// fscache says how the kernel's cache of files is; nil without one.
func (o observer) fscache() *admin.Fscache {
	r := o.demand.watcher.CacheReport()
	if r == nil {
		return nil
	}
	return &admin.Fscache{
		Domain: r.Domain, Dir: r.Dir, Layers: r.Mounted, Files: r.Stats.Objects,
		Reads: int64(r.Stats.Reads), Failed: int64(r.Stats.Failed), NoRoom: int64(r.Stats.NoRoom),
		CopiedBytes: int64(r.Stats.Written), CulledBytes: r.CulledBytes, WantsSpace: r.WantsSpace,
	}
}

func (o observer) fscacheMetrics() *telemetry.Fscache {
	f := o.fscache()
	if f == nil {
		return nil
	}
	return &telemetry.Fscache{
		Layers: int64(f.Layers), Files: int64(f.Files), Reads: f.Reads, Failed: f.Failed, NoRoom: f.NoRoom,
		CopiedBytes: f.CopiedBytes, CulledBytes: f.CulledBytes, WantsSpace: f.WantsSpace,
	}
}
