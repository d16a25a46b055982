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
	return keeper.Serve(context.Background(), keeper.Options{Address: o.Keeper, Ready: func() { fmt.Println("ready") }, Log: newLog()})
}

// life is a process that serves. It reads commands, one in a line, when it is told to begin:
//
//	begin               connects to the keeper, and serves what that holds: "ready"
//	mount DIR TARGET    mounts the instance in DIR: "mounted TARGET"
//	left NAME DIR       an instance has left the store, and is in DIR now
//
// and says besides:
//
//	answered                            the first answer was given
//	counts INHERITED LATE REFUSED NOTICES
//	complete NAME                       all data of an instance are there
//	gone DIR                            nobody reads any more from what has left
//
// SIGTERM ends it in order, the end of its standard input at once.
type life struct {
	o       lifeOptions
	log     *slog.Logger
	watcher *watch.Watcher
	backend *file.Backend
	source  func(layerstore.Instance) ondemand.Source
	said    sync.Mutex
}

func live() error {
	o, err := lifeOptionsOf()
	if err != nil {
		return err
	}
	l := &life{o: o, log: newLog(), backend: file.New(file.Options{Mode: file.File})}
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
	l.watcher = watch.New(watch.Options{
		Engine: engine, Syncer: syncer, Keeper: l.o.Keeper, Log: l.log,
		Describe: l.describe,
		Gone:     func(dir string) { l.say("gone", dir) },
	})
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
		}
	}
	os.Exit(0)
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
		Complete: func() error {
			l.say("complete", inst.ID)
			return nil
		},
	}, nil
}

// reportTo says what is worth knowing of the requests as soon as it is known.
func (l *life) reportTo(ctx context.Context) {
	ticker := time.NewTicker(500 * time.Microsecond)
	defer ticker.Stop()
	var answered bool
	var said [4]uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var now [4]uint64
		var answers uint64
		for _, r := range l.watcher.Reports() {
			q := r.Requests
			answers += q.Hits.Count + q.Fills.Count
			now = [4]uint64{now[0] + q.Inherited, now[1] + q.Late, now[2] + q.Refused, now[3] + q.Notices}
		}
		if now != said && now[0] >= said[0] { // what is closed is not counted any more
			said = now
			l.say("counts", now[0], now[1], now[2], now[3])
		}
		if answers > 0 && !answered {
			answered = true
			l.say("answered")
		}
	}
}
