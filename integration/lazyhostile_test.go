package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
)

// What follows are images and registries that lie, or send something wrong. Nobody reads a byte that is not the image's.

// hostileConfig has the layers of these tests loaded on demand, which are small.
const hostileConfig = "[lazy]\nmin_layer_size = \"1MiB\"\n"

// dataBytes is the length of each file of dataLayer.
const dataBytes = 3 << 20

// dataFile is what is in data/one and data/two of dataLayer.
func dataFile(name string) []byte {
	return tartest.Pattern(dataBytes, uint64(len(name))+uint64(name[0]))
}

func dataLayer(t *testing.T) stargzlayer.Layer {
	return stargzlayer.Pack(t, tartest.Pack([]tartest.File{
		{Name: "data/", Type: '5', Mode: 0o755},
		{Name: "data/one", Type: '0', Mode: 0o644, Data: dataFile("one")},
		{Name: "data/two", Type: '0', Mode: 0o644, Data: dataFile("two")},
	}), estargz.WithChunkSize(64<<10))
}

// newHostileStory is a story for such layers, with more of the table lazy.
func newHostileStory(t *testing.T, more string) *story {
	t.Helper()
	return newLazyStory(t, storyTime, lab.Options{DaemonConfig: hostileConfig + more})
}

// pullsAndStarts pulls an image of onBusybox, and starts a container of it, "box".
func (s *story) pullsAndStarts(ref string) {
	s.t.Helper()
	s.must(s.tryPull(ref))
	s.neverFellBack()
	s.start(ref, "box", "sleep", "1000")
}

// onBusybox composes and pushes an image of busybox and a layer, and returns its reference.
func (s *story) onBusybox(name string, top stargzlayer.Layer) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "blob")
	s.must(os.WriteFile(path, top.Blob, 0o644))
	return s.compose(name, append(s.cachedLayers("busybox-zstd"), layer{Descriptor: top.Descriptor, diffID: top.DiffID, path: path})...)
}

// sumIn is the digest of a file as a container sees it.
func (s *story) sumIn(container, path string) string {
	s.t.Helper()
	sum, _, _ := strings.Cut(s.exec(container, "sha256sum "+path), " ")
	return "sha256:" + sum
}

// admin asks the daemon on its admin socket.
func (s *story) admin(path string) string {
	s.t.Helper()
	socket := filepath.Join(filepath.Dir(s.SnapshotterAddress()), "admin.sock")
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Get("http://daemon" + path)
	s.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	s.must(err)
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s", path, resp.Status)
	}
	return string(b)
}

// metric is the value of a metric of the daemon.
func (s *story) metric(name string) float64 {
	s.t.Helper()
	_, rest, ok := strings.Cut(s.admin("/metrics"), "\n"+name+" ")
	if !ok {
		s.t.Fatalf("no metric %s", name)
	}
	value, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(value, 64)
	s.must(err)
	return v
}

// wantFallback expects that one layer was pulled as a whole, for this reason.
func (s *story) wantFallback(reason string) {
	s.t.Helper()
	if n := s.metric(fmt.Sprintf("erofs_snapshotter_lazy_fallbacks_total{reason=%q}", reason)); n != 1 {
		s.t.Errorf("%v layers were pulled as a whole because of %q, want one", n, reason)
	}
}

// verified is what the daemon says of the check of a layer, "" if the layer is not lazy.
func (s *story) verified(layer digest.Digest) string {
	s.t.Helper()
	status, err := s.status()
	s.must(err)
	for _, l := range status.Layers {
		if l.Digest == layer.String() && l.Lazy != nil {
			return l.Lazy.Verified
		}
	}
	return ""
}

// findsOut waits until the check of a layer has failed.
func (s *story) findsOut(liar stargzlayer.Layer) {
	s.t.Helper()
	s.within(time.Minute, "it is found out", func() error {
		if v := s.verified(liar.Digest); !strings.HasPrefix(v, "failed: ") {
			return fmt.Errorf("checked: %q", v)
		}
		return nil
	})
}

// shownAs expects that a container reads a file of dataLayer with the contents that one of its files has.
func (s *story) shownAs(container, file, contents string) {
	s.t.Helper()
	if got, want := s.sumIn(container, "/data/"+file), digest.FromBytes(dataFile(contents)).String(); got != want {
		s.t.Errorf("the container %s reads %s of data/%s, want %s, that is data/%s", container, got, file, want, contents)
	}
}

// TestLyingIndex: the table of contents gives each of two files the other's contents, with every digest right. The containers that run are named
// when the check of the whole layer finds it, and new ones get what the tar says.
func TestLyingIndex(t *testing.T) {
	s := newHostileStory(t, "background_delay = \"4s\"\n")
	liar := dataLayer(t).Swapped(t, "data/one", "data/two")
	ref := s.onBusybox("lying-v1", liar)
	s.pullsAndStarts(ref)
	s.shownAs("box", "one", "two") // as the index says
	s.findsOut(liar)
	if log := s.daemonLog(); !strings.Contains(log, "not what its image says") || !strings.Contains(log, "box") || !strings.Contains(log, "data/one") {
		t.Errorf("layer and container are not named:\n%s", log)
	}
	// Until it is replaced there are none.
	s.within(time.Minute, "a new container", func() error {
		_, err := s.Ctr(s.ctx, "run", "--detach", "--snapshotter", s.Plugin(), ref, "new", "sleep", "1000")
		if err != nil && !strings.Contains(err.Error(), "do not use this image") {
			t.Fatal(err)
		}
		return err
	})
	s.noteSuperblocks()
	for _, name := range []string{"one", "two"} {
		s.shownAs("new", name, name)
	}
	s.sumIn("box", "/data/two") // it lives
	s.endsWithNothing(ref, "box", "new")
}

// TestLyingDiffID: an image whose configuration claims another diffID for a layer, so that its chain ID may be that of another image. When that is
// found there are no new containers of it, for the layer has no better form, also after a restart.
func TestLyingDiffID(t *testing.T) {
	s := newHostileStory(t, "background_delay = \"4s\"\n")
	liar := dataLayer(t)
	liar.DiffID = digest.FromString("another image's layer")
	ref := s.onBusybox("claims-v1", liar)
	s.pullsAndStarts(ref)
	refused := func() {
		t.Helper()
		_, err := s.Ctr(s.ctx, "run", "--rm", "--snapshotter", s.Plugin(), ref, "new", "true")
		if err == nil {
			t.Error("a new container")
		} else if !strings.Contains(err.Error(), "do not use this image") || !strings.Contains(err.Error(), liar.DiffID.String()) {
			t.Errorf("the error does not say why: %v", err)
		}
	}
	s.findsOut(liar)
	refused()
	s.restartsDaemon(s.KillSnapshotter)
	refused()
	s.sumIn("box", "/data/one") // it lives
	s.endsWithNothing(ref, "box")
}

// TestWithoutTrust: images of repositories that are not in lazy.trust are pulled as a whole.
func TestWithoutTrust(t *testing.T) {
	s := newHostileStory(t, "trust = [\"registry.example/*\", \"{{.Host}}/other\"]\n")
	l := dataLayer(t)
	s.pulledWhole(s.onBusybox("stranger-v1", l), l, "untrusted")
}

// TestBrokenIndexes: a layer whose index is not what its manifest says, or nothing at all, is pulled as a whole.
func TestBrokenIndexes(t *testing.T) {
	s := newHostileStory(t, "")
	honest := dataLayer(t)
	for name, l := range map[string]stargzlayer.Layer{
		"footer": honest.WithBlob(t, func(blob []byte) { blob[len(blob)-15]++ }), // a letter of the magic
		"toc":    honest.Renamed(estargz.TOCJSONDigestAnnotation, digest.FromString("other").String()),
		"path":   honest.WithTOC(t, func(toc *estargz.JTOC) { toc.Entries[1].Name = "data/../../one" }),
	} {
		t.Run(name, func(t *testing.T) {
			s.pulledWhole(s.onBusybox(name+"-v1", l), l, "broken-index")
			s.restartsDaemon(s.StopSnapshotter) // it counts from the start
		})
	}
}

// pulledWhole pulls and runs an image with a layer that must not be lazy.
func (s *story) pulledWhole(ref string, l stargzlayer.Layer, reason string) {
	s.t.Helper()
	s.must(s.tryPull(ref))
	s.neverFellBack()
	s.wantFallback(reason)
	status, err := s.status()
	s.must(err)
	for _, have := range status.Layers {
		if have.Digest == l.Digest.String() && (have.Lazy != nil || have.State != "complete") {
			s.t.Errorf("the layer is %s, lazy: %v", have.State, have.Lazy != nil)
		}
	}
	s.start(ref, "box", "sleep", "1000")
	s.shownAs("box", "one", "one")
	s.endsWithNothing(ref, "box")
}

// flipper is a mirror of the registry that changes a bit of blobs every so many bytes while it is on.
type flipper struct {
	*netproxy.Server
	every   int64
	on      atomic.Bool
	flipped atomic.Int64
}

// flipper makes one for blobs whose paths contain a text.
func (s *story) flipper(blobs string, every int64) *flipper {
	s.t.Helper()
	f := &flipper{every: every}
	forward, err := netproxy.NewForward(s.RegistryURL(), nil)
	s.must(err)
	forward.ModifyResponse = func(resp *http.Response) error {
		if f.on.Load() && strings.Contains(resp.Request.URL.Path, blobs) {
			resp.Body = &flippedBody{ReadCloser: resp.Body, f: f, next: rand.Int64N(min(every, 64<<10))} // of one extent, or more
		}
		return nil
	}
	f.Server, err = netproxy.Serve(forward, netproxy.ServerOptions{})
	s.must(err)
	s.t.Cleanup(func() { _ = f.Close(); forward.Close() })
	return f
}

// flippedBody changes a bit every so many bytes, from next on.
type flippedBody struct {
	io.ReadCloser
	f        *flipper
	at, next int64
}

func (b *flippedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	for ; b.next < b.at+int64(n); b.next += b.f.every {
		p[b.next-b.at] ^= 1 << (b.next % 8)
		b.f.flipped.Add(1)
	}
	b.at += int64(n)
	return n, err
}

// mirrors has the daemon read blobs from hosts in this order, and from nowhere else.
func (s *story) mirrors(urls ...string) {
	s.t.Helper()
	text := fmt.Sprintf("server = %q\n", urls[len(urls)-1])
	for _, url := range urls {
		text += fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url)
	}
	s.must(s.WriteHosts(s.Host, text))
}

// TestCorruptMirror: a mirror that changes one bit in 100 KiB. Nothing of that reaches a reader, and the next mirror has what is right.
func TestCorruptMirror(t *testing.T) {
	s := newHostileStory(t, "background = false\n")
	bad := s.flipper("/blobs/", 100<<10)
	good, err := s.Mirror()
	s.must(err)
	s.mirrors(bad.URL(), good.URL())
	ref := s.onBusybox("bits-v1", dataLayer(t))
	s.pullsAndStarts(ref)
	before := s.metric("erofs_snapshotter_lazy_failures_total")
	bad.on.Store(true)
	for _, name := range []string{"one", "two"} {
		s.shownAs("box", name, name)
	}
	corrupt := s.metric("erofs_snapshotter_lazy_corrupt_extents_total")
	t.Logf("%d bits changed, %v extents were corrupt", bad.flipped.Load(), corrupt)
	if corrupt == 0 || bad.flipped.Load() == 0 {
		t.Error("nothing was corrupt, so this test proves nothing")
	}
	if n := s.metric("erofs_snapshotter_lazy_failures_total") - before; n > 0 {
		t.Errorf("%v requests of the kernel failed", n)
	}
	s.endsWithNothing(ref, "box")
}

// TestCorruptIndex: of an index that one mirror spoils the next mirror is asked, so that the layer is loaded on demand all the same.
func TestCorruptIndex(t *testing.T) {
	s := newHostileStory(t, "background = false\n")
	l := dataLayer(t)
	bad := s.flipper("/blobs/"+l.Digest.String(), 64) // nothing that could be an index, wherever it is
	good, err := s.Mirror()
	s.must(err)
	s.mirrors(bad.URL(), good.URL())
	bad.on.Store(true)
	ref := s.onBusybox("index-v1", l)
	s.pullsAndStarts(ref)
	if n := s.metric("erofs_snapshotter_lazy_corrupt_indexes_total"); n != 1 || s.verified(l.Digest) == "" {
		t.Errorf("%v indexes were corrupt, want one; the check of the lazy layer: %q", n, s.verified(l.Digest))
	}
	s.shownAs("box", "one", "one")
	s.endsWithNothing(ref, "box")
}

// TestCorruptRegistry: without a mirror that has it right, readers get errors, and never a wrong byte; what is right when it comes is read.
func TestCorruptRegistry(t *testing.T) {
	s := newHostileStory(t, "background = false\ndeadline = \"3s\"\n")
	bad := s.flipper("/blobs/", 100<<10)
	s.mirrors(bad.URL())
	ref := s.onBusybox("bits-v1", dataLayer(t))
	s.pullsAndStarts(ref)
	bad.on.Store(true)
	if out, err := s.tryExec("box", "cat /data/one >/dev/null"); err == nil || !strings.Contains(err.Error(), "Input/output error") {
		t.Errorf("the container has read everything: %q, %v", out, err)
	}
	right, failed := s.readsRightOrNothing("data/two", dataFile("two"), 6)
	t.Logf("%d pages were right, %d failed; %d bits changed", right, failed, bad.flipped.Load())
	if failed == 0 {
		t.Error("nothing failed, so this test proves nothing")
	}
	bad.on.Store(false)
	s.within(time.Minute, "all is read", func() error {
		_, err := s.tryExec("box", "cat /data/one /data/two >/dev/null")
		return err
	})
	for _, name := range []string{"one", "two"} {
		s.shownAs("box", name, name)
	}
	s.endsWithNothing(ref, "box")
}

// readsRightOrNothing reads pages of a file in a layer's mount, some in each extent, until so many have failed, with EIO.
func (s *story) readsRightOrNothing(name string, want []byte, most int) (right, failed int) {
	s.t.Helper()
	for _, point := range s.layerMounts() {
		f, err := os.Open(filepath.Join(point, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		s.must(err)
		defer f.Close()
		s.must(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
		p := make([]byte, 4096)
		for off := int64(0); off < int64(len(want)) && failed < most; off += 48 << 10 {
			_, err := f.ReadAt(p, off)
			switch {
			case errors.Is(err, unix.EIO):
				failed++
			case err != nil:
				s.t.Errorf("at %d: %v", off, err)
			case !bytes.Equal(p, want[off:off+4096]):
				s.t.Errorf("at %d: wrong bytes", off)
			default:
				right++
			}
		}
		return right, failed
	}
	s.t.Errorf("no layer has %s", name)
	return 0, 0
}
