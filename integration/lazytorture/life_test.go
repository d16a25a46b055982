package lazytorture

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/fscache"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// lifeEnv has the lifeOptions.
const lifeEnv = "LAZYTORTURE_LIFE"

// lifeOptions are for a keeper and for a life.
type lifeOptions struct {
	Keeper string            // its address
	Blobs  map[string]string // paths of layers' blobs, by digest
	// Delay has each request take some milliseconds.
	Delay bool
	// Registry is the IP:PORT from which layers come, if it is set, instead of files. Deadline is that of faults.
	Registry string
	Deadline time.Duration
	// Cache is the directory for the kernel's cache of files, if layers are mounted over that; Layers is where instances are.
	Cache, Layers string
	// Patience is the keeper's.
	Patience time.Duration
}

func (o lifeOptions) env(role string) []string {
	b, _ := json.Marshal(o) // strings and numbers
	return append(os.Environ(), roleEnv+"="+role, lifeEnv+"="+string(b))
}

func lifeOptionsOf() (o lifeOptions, err error) {
	return o, json.Unmarshal([]byte(os.Getenv(lifeEnv)), &o)
}

func newLog() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }

// keep is the keeper. It ends with its standard input, whatever it holds.
func keep() error {
	o, err := lifeOptionsOf()
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return keeper.Serve(context.Background(), keeper.Options{
		Address: o.Keeper, Patience: o.Patience, Ready: func() { fmt.Println("ready") }, Log: newLog(),
	})
}

// life is a process that serves. It reads commands, one in a line, when it is told to begin:
//
//	begin               connects to the keeper, and serves what that holds: "ready"
//	mount DIR TARGET    mounts the instance in DIR: "mounted TARGET"
//	left NAME DIR       an instance has left the store, and is in DIR now
//	recorded NAME       that an instance is complete
//
// and says besides:
//
//	answered                            the first answer was given
//	counts INHERITED LATE REFUSED NOTICES ASKED
//	complete NAME                       all data of an instance are there, and that is to be recorded
//	gone DIR                            nobody reads any more from what has left
//
// SIGTERM ends it in order, the end of its standard input at once. Over the kernel's cache, INHERITED is what a successor would inherit now.
type life struct {
	o       lifeOptions
	log     *slog.Logger
	watcher *watch.Watcher
	backend fsbackend.Backend
	source  func(layerstore.Instance) ondemand.Source
	said    sync.Mutex

	mu       sync.Mutex
	recorded map[string][]chan struct{} // closed when it is
}

func live() error {
	o, err := lifeOptionsOf()
	if err != nil {
		return err
	}
	l := &life{o: o, log: newLog(), backend: file.New(file.Options{Mode: file.File}), recorded: map[string][]chan struct{}{}}
	if l.source, err = newSource(o); err != nil {
		return err
	}
	commands := bufio.NewScanner(os.Stdin)
	if !commands.Scan() {
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return l.run(ctx, commands)
}

func (l *life) run(ctx context.Context, commands *bufio.Scanner) error {
	syncer := blob.NewSyncer(func(_ *blob.Blob, err error) { l.log.Error("flush", "cause", err) })
	engine := ondemand.New(ondemand.Options{
		NewDecoder: func() ondemand.Decoder { return new(layerstore.Decoder) }, Deadline: l.o.Deadline, Log: l.log,
	})
	options := watch.Options{
		Engine: engine, Syncer: syncer, Keeper: l.o.Keeper, Log: l.log,
		Describe: l.describe,
		Gone:     func(dir string) { l.say("gone", dir) },
	}
	if l.o.Cache != "" {
		options.Cache = l.cacheOptions()
		l.backend = fscache.New(l.backend)
	}
	l.watcher = watch.New(options)
	if l.o.Cache != "" {
		l.watcher.UseCache()
	}
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { syncer.Run(working) })
	running.Go(func() { _ = engine.Run(working) }) // never fails
	if err := l.watcher.Connect(ctx); err != nil {
		return err
	}
	l.say("ready")
	running.Go(func() { l.reportTo(working) })
	go l.obey(ctx, commands)
	err := l.watcher.Run(ctx)
	if err == nil {
		err = l.watcher.Close()
	}
	stop()
	running.Wait()
	return err
}

// cacheOptions are as the daemon has them.
func (l *life) cacheOptions() watch.CacheOptions {
	meta, data := fscache.TrialImage()
	return watch.CacheOptions{
		Dir: l.o.Cache, Find: func(instance string) string { return filepath.Join(l.o.Layers, instance) }, TrialMeta: meta, TrialData: data,
		Try: func(ctx context.Context, c watch.Cookies) error { return fscache.Try(ctx, fsbackend.Cookies(c)) },
	}
}

func (l *life) say(words ...any) {
	l.said.Lock()
	defer l.said.Unlock()
	fmt.Println(words...)
}

// obey does what it is told, until nobody is left to tell: then this process ends, and somebody else has the keeper.
func (l *life) obey(ctx context.Context, commands *bufio.Scanner) {
	for commands.Scan() {
		words := strings.Fields(commands.Text())
		switch words[0] {
		case "mount":
			if err := l.mount(ctx, words[1], words[2]); err == nil {
				l.say("mounted", words[2])
			} else if ctx.Err() == nil {
				l.log.Error("mount", "cause", err)
			}
		case "left":
			l.watcher.Left(words[1], words[2])
		case "recorded":
			l.mu.Lock()
			for _, recorded := range l.recorded[words[1]] {
				close(recorded)
			}
			delete(l.recorded, words[1])
			l.mu.Unlock()
		}
	}
	os.Exit(0)
}

// complete returns when it is recorded that an instance is complete: from then on it is read without anybody who answers.
func (l *life) complete(id layerstore.ID) {
	recorded := make(chan struct{})
	l.mu.Lock()
	l.recorded[string(id)] = append(l.recorded[string(id)], recorded)
	l.mu.Unlock()
	l.say("complete", id)
	<-recorded
}

func (l *life) mount(ctx context.Context, dir, target string) error {
	layer, err := l.describe(dir)
	if err != nil {
		return err
	}
	if err := l.watcher.Open(layer); err != nil {
		return err
	}
	image := fsbackend.Image{Meta: filepath.Join(dir, "meta.erofs"), Data: filepath.Join(dir, blob.DataName), OnDemand: true}
	how, err := l.watcher.Mount(ctx, layer.Name)
	if err != nil {
		return err
	}
	if how != nil {
		image.Check = how.Check
		if how.Cookies != nil {
			cookies := fsbackend.Cookies(*how.Cookies)
			image.Cookies = &cookies
		}
	}
	return l.backend.Mount(ctx, image, target)
}

func (l *life) describe(dir string) (watch.Layer, error) {
	inst, err := layerstore.ReadInstance(dir)
	if err != nil {
		return watch.Layer{}, err
	}
	return watch.Layer{
		Name: string(inst.ID), ID: inst.ID.Bytes(), Dir: dir, Digest: inst.Layer.String(), Origin: "origin", Source: l.source(inst),
		Partial: inst.Partial(),
		Complete: func() error {
			l.complete(inst.ID)
			return nil
		},
	}, nil
}

// reportTo says what is worth knowing of the requests as soon as it is known.
func (l *life) reportTo(ctx context.Context) {
	ticker := time.NewTicker(500 * time.Microsecond * testenv.Slow)
	defer ticker.Stop()
	var answered bool
	var said [5]uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var now [5]uint64
		var answers uint64
		for _, r := range l.watcher.Reports() {
			q := r.Requests
			answers += q.Hits.Count + q.Fills.Count
			inherited := q.Inherited
			if l.o.Cache != "" {
				inherited = uint64(len(q.InFlight))
			}
			now = [5]uint64{now[0] + inherited, now[1] + q.Late, now[2] + q.Refused, now[3] + q.Notices, now[4] + q.Events}
		}
		if now != said && now[4] >= said[4] { // what is closed is not counted any more
			said = now
			l.say("counts", now[0], now[1], now[2], now[3], now[4])
		}
		if answers > 0 && !answered {
			answered = true
			l.say("answered")
		}
	}
}
