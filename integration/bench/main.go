// Command bench measures erofs-snapshotter against its peers and prints tables (Markdown) and lines `ratio NAME VALUE`: an image is
// pulled from a registry on loopback, directly or over a slow link, and run to its first answer. The stargz snapshotter and our peers
// whose names begin with "lazy" fetch what is read, of images with an index; the others pull whole layers. Conversions of single layers
// are measured by benchconvert, and reads of lazy layers by benchlazy.
//
//	make bench                                  everything, 5 rounds
//	make bench BENCHFLAGS=-quick                one round
//	go run ./integration/bench -images scipy -peers ctrd-erofs,eager -n 3
//
// # Conditions, the same for everybody
//
//   - Every measurement has an ext4 of its own, made anew for it on a loop device. containerd's root, our root and all temporary
//     files are on it. An old or busy file system creates files several times more slowly, which flatters everybody but overlayfs.
//   - The page cache is dropped before the pull and again before the run. The registry keeps its blobs in memory.
//   - One round measures every peer once before the next begins, and each round begins with another peer.
//   - igzip is in PATH, because containerd unpacks gzip with it when it is there.
//   - Peers that load on demand go on fetching between pull and run, and what they fetch counts in their bytes. That time is in the CSV file,
//     as pause_s.
//   - Peers do not sync what they unpack; we do, before a layer becomes visible. The column "+sync" is how long a syncfs of the
//     root's file system took right after the pull: what is missing until a power cut no longer matters.
//
// It needs root and what `make tools images` installs. Raw values go to a CSV file below -out. Everything else is below -dir and is
// removed at the end, also after an interrupt; what a killed run left is removed by the next.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// dirLimit is the longest path of the work directory: the sockets of labs lie in it.
const dirLimit = 10

var programs = []benchkit.Program{
	{Path: lab.Program("containerd"), Version: "2.4.2"},
	{Path: lab.Program("runc"), Version: "1.5.2"},
	{Path: lab.Program("mkfs.erofs"), Version: "1.9.4"},
	{Path: lab.Program("ministargz"), Version: "0.19.1"},
	{Path: "igzip"},
}

// settings are the command line.
type settings struct {
	benchkit.Flags
	networks []network
	peers    []peer
	images   []image
}

func main() { benchkit.Main("bench", run) }

func run(ctx context.Context, args []string) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	if err := lab.Tools.Missing(); err != nil {
		return err
	}
	return s.Run(ctx, programs, clearLab, func(work *benchkit.Workshop, stamp string, w io.Writer) error {
		rows, err := measurePulls(ctx, work, s, stamp+"-pull.csv")
		writePulls(w, rows)
		return err
	})
}

func parse(args []string) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	networkList := fs.String("networks", benchkit.Names(networks, networkName), "networks")
	peerList := fs.String("peers", benchkit.Names(peers, peerName), "peers")
	imageList := fs.String("images", benchkit.Names(images, imageName), "images")
	err := s.Parse(fs, args)
	if err != nil {
		return settings{}, err
	}
	if len(s.Dir) > dirLimit {
		return settings{}, fmt.Errorf("-dir %s is longer than %d characters: unix sockets below it would not fit", s.Dir, dirLimit)
	}
	if s.networks, err = benchkit.Choose(*networkList, networks, networkName); err != nil {
		return settings{}, fmt.Errorf("-networks: %w", err)
	}
	if s.peers, err = benchkit.Choose(*peerList, peers, peerName); err != nil {
		return settings{}, fmt.Errorf("-peers: %w", err)
	}
	if s.images, err = benchkit.Choose(*imageList, images, imageName); err != nil {
		return settings{}, fmt.Errorf("-images: %w", err)
	}
	return s, nil
}

// clearLab: a lab that starts clears abandoned ones beside it, with their processes.
func clearLab(ctx context.Context, dir string) error {
	l, err := lab.Start(ctx, lab.Options{Dir: dir, NoDaemon: true})
	if err != nil {
		return err
	}
	return l.Close()
}
