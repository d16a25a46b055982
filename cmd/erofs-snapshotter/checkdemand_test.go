package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// TestCheckOnDemandOff: what the configuration forbids is not tried, and is no reason not to work.
func TestCheckOnDemandOff(t *testing.T) {
	for key, change := range map[string]func(*config.Config){
		"lazy.enabled":   func(c *config.Config) { c.Lazy.Enabled = false },
		"remote.enabled": func(c *config.Config) { c.Remote.Enabled = false },
		"lazy.mode":      func(c *config.Config) { c.Lazy.Mode = modeEager },
	} {
		cfg := config.Default()
		cfg.Root = t.TempDir()
		change(&cfg)
		r := hostReport{Usable: true}
		if err := r.checkOnDemand(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if f := r.Features[0]; f.Answer != "no" || !strings.Contains(f.Reason, key) || r.OnDemand != nil || !r.Usable || len(r.Advice) > 0 {
			t.Errorf("%s: %+v", key, r)
		}
	}
}

// TestCheckKeeper: a keeper that answers is named, with its own limit of open files; one that does not gives a hint.
func TestCheckKeeper(t *testing.T) {
	cfg := config.Default()
	cfg.Keeper.Address = filepath.Join(t.TempDir(), "keeper.sock")
	r := newOnDemandReport(t.Context(), cfg)
	if r.Keeper.Answers || !strings.Contains(r.Keeper.Error, cfg.Keeper.Address) || r.OpenFiles == 0 {
		t.Errorf("without a keeper: %+v", r)
	}
	if !strings.Contains(strings.Join(r.advise(), "\n"), "erofs-snapshotter-keeper") {
		t.Errorf("advice without a keeper: %q", r.advise())
	}
	serveKeeper(t, cfg.Keeper.Address)
	r = newOnDemandReport(t.Context(), cfg)
	if !r.Keeper.Answers || r.Keeper.PID != os.Getpid() || r.Keeper.Version != "test" || r.Keeper.Error != "" || r.OpenFiles == 0 {
		t.Errorf("with a keeper: %+v", r)
	}
}

// serveKeeper runs a keeper that holds nothing, until the test ends.
func serveKeeper(t *testing.T, address string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- keeper.Serve(ctx, keeper.Options{Address: address, Version: "test", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("keeper: %v", err)
		}
	})
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := keeper.Status(t.Context(), address)
		if err == nil {
			return
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func TestOnDemandText(t *testing.T) {
	answers := keeperFound{Address: "/run/k.sock", Answers: true, PID: 77, Version: "v1", Held: 3}
	const plenty = maxWatched * fanotify.FilesPerGroup
	for name, c := range map[string]struct {
		report onDemandReport
		text   string
		advice string // "" is none
	}{
		"all repositories": {onDemandReport{Keeper: answers, Trust: []string{"*"}, TrustsAll: true, OpenFiles: plenty}, "several parties share", ""},
		"some repositories": {
			onDemandReport{Keeper: answers, Trust: []string{"a.example/*", "b.example/x"}, OpenFiles: plenty}, "images of a.example/*, b.example/x", "",
		},
		"no repository": {onDemandReport{Keeper: answers, OpenFiles: plenty}, "lazy.trust is empty", ""},
		"keeper":        {onDemandReport{Keeper: answers, OpenFiles: plenty}, "/run/k.sock: process 77, version v1, holds 3", ""},
		"no keeper":     {onDemandReport{Keeper: keeperFound{Error: "connection refused"}, OpenFiles: plenty}, "connection refused", "systemctl enable"},
		"few files":     {onDemandReport{Keeper: answers, OpenFiles: 1024}, "1024, enough for about 128", "LimitNOFILE"},
	} {
		var text strings.Builder
		p := printer{w: &text}
		c.report.writeText(&p)
		if !strings.Contains(text.String(), c.text) {
			t.Errorf("%s: %q not in %s", name, c.text, text.String())
		}
		if advice := strings.Join(c.report.advise(), "\n"); !strings.Contains(advice, c.advice) || c.advice == "" && advice != "" {
			t.Errorf("%s: advice %q", name, advice)
		}
	}
}

func TestOthersWithCache(t *testing.T) {
	ours, theirs := cachefiles.Holder{PID: 7, Name: "erofs-snapshotter"}, cachefiles.Holder{PID: 8, Name: "nydusd"}
	if err := othersWithCache([]cachefiles.Holder{ours}, []int{7, 9}); err != nil {
		t.Error(err)
	}
	err := othersWithCache([]cachefiles.Holder{ours, theirs}, []int{7, 9})
	if !errors.Is(err, probe.ErrNotSupported) || !strings.Contains(err.Error(), "nydusd (process 8)") || strings.Contains(err.Error(), "process 7") {
		t.Errorf("got %v", err)
	}
}

// haveTransports has only some transports work, until the test ends.
func haveTransports(t *testing.T, working string) {
	works := haveTransport
	t.Cleanup(func() { haveTransport = works })
	haveTransport = map[string]func(string) error{}
	for _, transport := range transports {
		haveTransport[transport] = func(string) error {
			if strings.Contains(working, transport) {
				return nil
			}
			return errors.New("no " + transport)
		}
	}
}

// TestChooseTransport: what is asked for is taken or nothing; every refusal says why.
func TestChooseTransport(t *testing.T) {
	for _, c := range []struct {
		mode, works string
		daemon      bool
		want, why   string
	}{
		{modeAuto, "fanotify fscache", true, modeFanotify, ""},
		{modeAuto, "fscache", true, modeFscache, ""},
		{modeAuto, "fscache", false, "", "only the daemon"},
		{modeAuto, "", true, "", "no fanotify"},
		{modeAuto, "", true, "", "no fscache"},
		{modeFscache, "fanotify fscache", true, modeFscache, ""},
		{modeFscache, "fanotify", true, "", "no fscache"},
		{modeFanotify, "fscache", true, "", "no fanotify"},
		{modeEager, "fanotify fscache", true, "", "lazy.mode is eager"},
	} {
		haveTransports(t, c.works)
		got, err := chooseTransport(c.mode, "/", c.daemon)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
}

// TestTransportOfLazyLayers: layers that are lazy already are served in a way that works here, also if no new ones may be.
func TestTransportOfLazyLayers(t *testing.T) {
	for _, c := range []struct {
		mode, works string
		cache       bool
	}{
		{modeEager, "fscache", true},
		{modeFanotify, "fscache", true},
		{modeEager, "fanotify fscache", false},
		{modeFscache, "fanotify", false},
		{modeAuto, "", false},
	} {
		haveTransports(t, c.works)
		if got := anyTransport(c.mode, "/", true) == modeFscache; got != c.cache {
			t.Errorf("%+v: over fscache: %t", c, got)
		}
	}
}
