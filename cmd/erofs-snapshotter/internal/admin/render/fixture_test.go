package render

import (
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// noon is when the statuses of these tests were asked for.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	base    = "sha256:4e6753a2b1c0ffee4e6753a2b1c0ffee4e6753a2b1c0ffee4e6753a2b1c0ffee"
	middle  = "sha256:88aa000000000000000000000000000000000000000000000000000000000000"
	top     = "sha256:99bb000000000000000000000000000000000000000000000000000000000000"
	local   = "sha256:77cc000000000000000000000000000000000000000000000000000000000000"
	baseID  = "0123456789abcdef"
	midID   = "1123456789abcdef"
	topID   = "2123456789abcdef"
	upperID = "3123456789abcdef"
)

// busy is a daemon with one of everything.
func busy() admin.Status {
	return admin.Status{
		Format: admin.Format, Time: noon, Version: "v1.2.3", Started: noon.Add(-3*time.Hour - 12*time.Minute), Root: "/var/lib/x",
		Layers: []admin.Layer{
			{Instance: upperID, Kind: "directory", State: admin.Complete, DiskBytes: 4096, References: 1, Created: noon.Add(-time.Minute)},
			{Instance: baseID, Digest: base, Kind: "erofs", State: admin.Complete, DiskBytes: 126_200_000, Source: "registry.example/app",
				References: 3, Created: noon.Add(-50 * time.Hour), Mounted: true},
			{Instance: midID, Digest: middle, Kind: "erofs", State: admin.Building, Source: "registry.example/app",
				Work: &admin.Work{BlobBytes: 120 << 20, DoneBytes: 60 << 20, Started: noon.Add(-2 * time.Second), Waiters: 1}},
			{Instance: topID, Digest: top, Kind: "erofs", State: admin.Building, Work: &admin.Work{BlobBytes: 10 << 20}},
		},
		Pulls: []admin.Pull{{
			Image: "registry.example/app:1", Namespace: "k8s.io", Manifest: "sha256:aa", Started: noon.Add(-3 * time.Second),
			Layers: []admin.PullLayer{
				{Digest: base, BlobBytes: 50 << 20, DoneBytes: 50 << 20, State: admin.Done, Source: "registry.example/app"},
				{Digest: middle, BlobBytes: 120 << 20, DoneBytes: 60 << 20, State: admin.Fetching, Source: "registry.example/app"},
				{Digest: top, BlobBytes: 10 << 20, State: admin.Waiting},
			},
		}, {
			Image: "registry.example/other:2", Namespace: "default", Manifest: "sha256:bb", Started: noon.Add(-20 * time.Second), Ended: noon.Add(-9 * time.Second),
			Layers: []admin.PullLayer{
				{Digest: base, BlobBytes: 50 << 20, DoneBytes: 50 << 20, State: admin.Done},
				{Digest: local, BlobBytes: 7 << 20, State: admin.Local},
			},
		}},
		Fallbacks: map[string]admin.Fallback{
			"unauthorized": {Count: 2, Time: noon.Add(-9 * time.Second), Image: "registry.example/other:2", Cause: "registry.example: 401"},
			"digest":       {Count: 1, Time: noon.Add(-4 * time.Hour), Image: "registry.example/bad", Cause: "want sha256:1, got sha256:2"},
		},
		Cache: admin.Cache{DiskBytes: 126_204_096, KeptBytes: 4096, KeepLimitBytes: 10 << 30},
		Registry: map[string]admin.Host{
			"registry.example": {Requests: 40, Retries: 2, Failures: 3, FetchedBytes: 110 << 20, Breaker: "closed"},
			"mirror.example":   {Requests: 5, Failures: 5, Breaker: "open"},
		},
	}
}

// later is the same daemon a second later, with 45 MiB more of the middle layer.
func later() admin.Status {
	s := busy()
	s.Time = noon.Add(time.Second)
	s.Layers[2].Work.DoneBytes += 45 << 20
	s.Pulls[0].Layers[1].DoneBytes += 45 << 20
	return s
}

const (
	lazyID     = "4123456789abcdef"
	stillID    = "5123456789abcdef"
	orphanID   = "6123456789abcdef"
	poisonedID = "7123456789abcdef"
)

// lazyLayers are one that is read now, one that stands still, one that was removed, and one that has lost its daemon and keeper.
func lazyLayers() []admin.Layer {
	layers := []admin.Layer{
		{Instance: stillID, Digest: top, Source: "registry.example/app", References: 1, Lazy: &admin.Lazy{
			Format: "zstd:chunked/podman", Bytes: 1000 << 20, PresentBytes: 999 << 20, Extents: 2000, PresentExtents: 1999, Verified: admin.VerifyPending,
		}},
		{Instance: lazyID, Digest: middle, Source: "registry.example/app", References: 2, Lazy: &admin.Lazy{
			Format: "estargz", Bytes: 120 << 20, PresentBytes: 54 << 20, Extents: 480, PresentExtents: 210, Verified: admin.VerifyPending,
			Faults: 1234, Hits: 1073, Failed: 2, DemandedBytes: 62 << 20, FilledBytes: 54 << 20, Corrupt: 1,
			FetchedBytes: admin.Fetched{Fault: 12 << 20, Prefetch: 3 << 20, Background: 6 << 20},
			Latency:      admin.Latency{P50: 0.0123, P90: 0.08, P99: 0.34, Max: 12.5},
			InFlight: []admin.Request{
				{OffsetBytes: 4096, LengthBytes: 4096, Since: noon.Add(-100 * time.Millisecond)},
				{OffsetBytes: 71303168, LengthBytes: 65536, Since: noon.Add(-35 * time.Second)},
				{OffsetBytes: 8192, LengthBytes: 4096, Since: noon.Add(-2 * time.Second)},
			},
			LastError: "registry.example: 503", LastErrorTime: noon.Add(-3 * time.Second),
		}},
		{Instance: orphanID, Digest: base, Lazy: &admin.Lazy{
			Format: "estargz", Bytes: 8 << 20, Extents: 9, PresentExtents: 2, PresentBytes: 1 << 20, Orphan: true, Faults: 1, Latency: admin.Latency{P50: 0.0008, P99: 0.0008},
			Verified: admin.VerifyFailed + "diffID sha256:1, its image says sha256:2",
		}},
		{Instance: poisonedID, Digest: local, Source: "registry.example/db", References: 1, Lazy: &admin.Lazy{
			Format: "estargz", Bytes: 64 << 20, PresentBytes: 16 << 20, Extents: 64, PresentExtents: 16, Verified: admin.VerifyPending, Poisoned: true,
			Users: []string{"k8s.io/database-0", "k8s.io/database-1", "k8s.io/a-container-with-a-rather-long-name", "default/another"},
		}},
	}
	for i := range layers {
		l := &layers[i]
		l.Kind, l.State, l.Mounted, l.Created = "erofs", admin.Partial, true, noon.Add(-time.Duration(i+1)*time.Hour)
		l.DiskBytes = l.Lazy.PresentBytes
	}
	return layers
}

// demanding is a daemon that loads layers on demand, and has all kinds of trouble with it.
func demanding() admin.Status {
	return admin.Status{
		Format: admin.Format, Time: noon, Version: "v1.2.3", Started: noon.Add(-3 * time.Hour), Root: "/var/lib/x", Layers: lazyLayers(),
		LazyFallbacks: map[string]admin.Fallback{
			"small":        {Count: 12, Time: noon.Add(-time.Minute), Image: "registry.example/app", Cause: "it has 1000 bytes, lazy.min_layer_size is 10485760"},
			"broken-index": {Count: 1, Time: noon.Add(-time.Hour), Image: "registry.example/bad", Cause: "estargz: TOC: digest mismatch"},
		},
		Keeper: &admin.Keeper{Address: "/run/x/keeper.sock", Since: noon.Add(-70 * time.Second)},
	}
}

// relieved is the same daemon two seconds later: it has a keeper, the layer that was read grows, another one is complete.
func relieved() admin.Status {
	s := demanding()
	s.Time = noon.Add(2 * time.Second)
	s.Keeper = &admin.Keeper{Address: "/run/x/keeper.sock", Connected: true, Pid: 77, Held: 3, Denied: 4, Since: noon.Add(time.Second)}
	still, read := s.Layers[0].Lazy, s.Layers[1].Lazy
	s.Layers[0].State, still.PresentBytes, still.PresentExtents, still.Verified = admin.Complete, still.Bytes, still.Extents, admin.VerifyPassed
	read.PresentBytes, read.PresentExtents, read.InFlight = read.PresentBytes+6<<20, 234, nil
	s.Layers = s.Layers[:3]
	return s
}
