package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Fscache is the kernel's cache of files, over which lazy layers may be mounted.
type Fscache struct {
	// Layers is how many are mounted over it, Files how many of their files the kernel has open.
	Layers, Files int64
	// Reads counts the kernel's requests, Failed those that did not get all of their data, NoRoom those of them that the kernel had no room for.
	Reads, Failed, NoRoom int64
	// CopiedBytes is what the kernel got, CulledBytes what was freed again.
	CopiedBytes, CulledBytes int64
	// WantsSpace says that too little of the disk is free.
	WantsSpace bool
}

var (
	fscacheLayers = describe("fscache_layers", "Layers that are mounted over fscache.")
	fscacheFiles  = describe("fscache_files", "Files of layers that the kernel has open in its cache.")
	fscacheReads  = describe("fscache_reads_total", "Requests of the kernel for data in its cache.")
	fscacheFailed = describe("fscache_failures_total", "Requests of the kernel for data in its cache that did not get all of it: the reader gets EIO.")
	fscacheNoRoom = describe("fscache_no_room_total", "Requests whose data the kernel did not take, because the disk is full, or has less free than fscache.bstop.")
	fscacheCopied = describe("fscache_copied_bytes_total", "Bytes written to the kernel's cache.")
	fscacheCulled = describe("fscache_culled_bytes_total", "Bytes freed in the kernel's cache.")
	fscacheWants  = describe("fscache_wants_space", "1 while less of the disk is free than fscache.brun, after it was less than fscache.bcull.")
)

var fscacheDescriptions = []*prometheus.Desc{
	fscacheLayers, fscacheFiles, fscacheReads, fscacheFailed, fscacheNoRoom, fscacheCopied, fscacheCulled, fscacheWants,
}

// fscache reports what there is about the cache; nothing without one.
func (r report) fscache(f *Fscache) {
	if f == nil {
		return
	}
	r.gauge(fscacheLayers, f.Layers)
	r.gauge(fscacheFiles, f.Files)
	r.counter(fscacheReads, f.Reads)
	r.counter(fscacheFailed, f.Failed)
	r.counter(fscacheNoRoom, f.NoRoom)
	r.counter(fscacheCopied, f.CopiedBytes)
	r.counter(fscacheCulled, f.CulledBytes)
	r.gauge(fscacheWants, oneIf(f.WantsSpace))
}
