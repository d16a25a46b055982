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
