package main

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	containerdlog "github.com/containerd/log"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
)

// What containerd's packages log comes in our form, and none of it that may show headers.
func TestAdoptLibraries(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	var out strings.Builder
	if err := adoptLibraries(newLogger(&out, config.Log{Level: "debug", Format: "json"})); err != nil {
		t.Fatal(err)
	}
	for _, say := range []func(...any){containerdlog.L.Debug, containerdlog.L.Info, containerdlog.L.WithField("host", "registry.example").Warn} {
		say("registry warning")
	}
	var line struct{ Level, Msg, Host string }
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil {
		t.Fatalf("want one line of JSON, got %q: %v", out.String(), err)
	}
	if line.Level != "WARN" || line.Msg != "registry warning" || line.Host != "registry.example" {
		t.Errorf("got %+v", line)
	}
}
