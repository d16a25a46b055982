package integration

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// daemonStatus is what tests read of the daemon's answer; docs/monitoring.md describes all of it.
type daemonStatus struct {
	Layers []struct {
		Instance, Digest, Kind, State, Source string
		DiskBytes                             int64
		References                            int
		Lazy                                  *struct {
			Bytes, PresentBytes, Faults, Failed int64
			Verified                            string
		}
	}
	Pulls []struct {
		Image  string
		Layers []struct{ Digest, State string }
	}
	Fallbacks map[string]struct {
		Count        int
		Image, Cause string
	}
}

// status asks the daemon over its admin socket.
func (s *story) status() (status daemonStatus, err error) {
	socket := filepath.Join(filepath.Dir(s.SnapshotterAddress()), "admin.sock")
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Get("http://daemon/v1/status")
	if err != nil {
		return status, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return status, errors.New(resp.Status)
	}
	return status, json.NewDecoder(resp.Body).Decode(&status)
}
