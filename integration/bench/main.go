// Command bench measures erofs-snapshotter against its peers and prints tables (Markdown) and lines `ratio NAME VALUE`.
//
//	make bench                                  everything, 5 rounds
//	make bench BENCHFLAGS=-quick                one round
//	go run ./integration/bench -only pull -images scipy -peers ctrd-erofs,eager -n 3
//
// Two things are measured. "pull": pull an image from a registry on loopback and run it to its first answer. "convert": turn one
// layer's tar into EROFS.
//
// # Conditions, the same for everybody
//
//   - Every measurement has an ext4 of its own, made anew for it on a loop device. containerd's root, our root and all temporary
//     files are on it. An old or busy file system creates files several times more slowly, which flatters everybody but overlayfs.
//   - The page cache is dropped before the pull and again before the run. The registry keeps its blobs in memory.
//   - One round measures every peer once before the next begins, and each round begins with another peer.
//   - igzip is in PATH, because containerd unpacks gzip with it when it is there.
//   - Peers do not sync what they unpack; we do, before a layer becomes visible. The column "+sync" is how long a syncfs of the
//     root's file system took right after the pull: what is missing until a power cut no longer matters.
//
// It needs root and what `make tools images` installs. Raw values go to a CSV file per table below -out. Everything else is below
// -dir and is removed at the end, also after an interrupt; what a killed run left is removed by the next.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirLimit is the longest path of the work directory: the sockets of labs lie in it.
const dirLimit = 10

// settings are the command line.
type settings struct {
	rounds        int
	peers         []peer
	images        []image
	pull, convert bool
	dir, out      string
}

func main() {
	s, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
		defer stop()
		err = run(ctx, s)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func parse(args []string) (settings, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	n := fs.Int("n", 5, "number of rounds")
	quick := fs.Bool("quick", false, "one round")
	only := fs.String("only", "", "pull or convert (default both)")
	peerList := fs.String("peers", allNames(peers, peerName), "peers of the pull benchmark")
	imageList := fs.String("images", allNames(images, imageName), "images of the pull benchmark")
	dir := fs.String("dir", filepath.Join(os.TempDir(), "esb"), "work directory with 5 GiB of room, a path of at most 10 characters; removed at the end")
	out := fs.String("out", "bench-results", "directory for raw CSV and tables")
	if err := fs.Parse(args); err != nil {
		return settings{}, err
	}
	s := settings{rounds: *n, dir: *dir, out: *out, pull: *only != "convert", convert: *only != "pull"}
	if *quick {
		s.rounds = 1
	}
	if fs.NArg() > 0 {
		return settings{}, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if s.rounds < 1 {
		return settings{}, fmt.Errorf("-n %d: want at least 1", s.rounds)
	}
	if !slices.Contains([]string{"", "pull", "convert"}, *only) {
		return settings{}, fmt.Errorf("-only %q: want pull or convert", *only)
	}
	var err error
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return settings{}, err
	}
	if len(s.dir) > dirLimit {
		return settings{}, fmt.Errorf("-dir %s is longer than %d characters: unix sockets below it would not fit", s.dir, dirLimit)
	}
	if s.peers, err = choose(*peerList, peers, peerName); err != nil {
		return settings{}, fmt.Errorf("-peers: %w", err)
	}
	if s.images, err = choose(*imageList, images, imageName); err != nil {
		return settings{}, fmt.Errorf("-images: %w", err)
	}
	return s, nil
}

// choose returns those of the known things that a list of names, separated by commas, asks for.
func choose[T any](list string, known []T, name func(T) string) ([]T, error) {
	var chosen []T
	for word := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(known, func(t T) bool { return name(t) == word })
		if i < 0 {
			return nil, fmt.Errorf("no %q, there are %s", word, allNames(known, name))
		}
		chosen = append(chosen, known[i])
	}
	return chosen, nil
}

func allNames[T any](list []T, name func(T) string) string {
	var names []string
	for _, t := range list {
		names = append(names, name(t))
	}
	return strings.Join(names, ",")
}

// run measures what the settings say. A measurement that fails does not end the others, but the whole is an error then.
func run(ctx context.Context, s settings) (err error) {
	machine, err := describeMachine(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return err
	}
	work, err := openWorkshop(ctx, s.dir, diskBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.close()) }()

	stamp := filepath.Join(s.out, time.Now().Format("20060102-150405"))
	var text strings.Builder
	machine.write(&text)
	var failures []error
	if s.pull {
		rows, err := measurePulls(ctx, work, s, stamp+"-pull.csv")
		failures = append(failures, err)
		writePulls(&text, rows)
	}
	if s.convert {
		rows, err := measureConversions(ctx, work, s.rounds, stamp+"-convert.csv")
		failures = append(failures, err)
		writeConversions(&text, rows)
	}
	fmt.Print(text.String())
	failures = append(failures, os.WriteFile(stamp+".md", []byte(text.String()), 0o644))
	return errors.Join(failures...)
}

// progress is for whoever waits; results go to standard output.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
