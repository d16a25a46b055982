package layerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
)

func TestImport(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	b, dgst := layer(t, strings.Repeat("content", 10_000))
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	if inst.ID != EagerID(dgst) || inst.Kind != EROFS || inst.Layer != dgst || inst.DiffID != dgst {
		t.Errorf("imported %+v", inst)
	}
	if err := s.Discard(inst.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("discarding a pinned instance: %v", err)
	}
	var blocks int64
	for path, want := range map[string]int64{s.MetaPath(inst.ID): inst.MetaBytes, s.DataPath(inst.ID): inst.DataBytes} {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Size != want {
			t.Errorf("%s has %d bytes, recorded are %d", path, st.Size, want)
		}
		blocks += st.Blocks * 512
	}
	if inst.DiskBytes != blocks {
		t.Errorf("%d bytes on disk recorded, want %d", inst.DiskBytes, blocks)
	}
	again, secondPin, err := s.Import(t.Context(), dgst, never)
	must(t, err)
	if again != inst {
		t.Errorf("the second import gave %+v, the first %+v", again, inst)
	}
	pin.Release()
	pin.Release() // counts once
	if !s.Pinned(inst.ID) {
		t.Error("not pinned with one of two pins left")
	}

	reopened := open(t, root)
	if got, err := reopened.Get(inst.ID); err != nil || got != inst {
		t.Errorf("after a restart: %+v, %v; want %+v", got, err, inst)
	}
	secondPin.Release()
	must(t, s.Discard(inst.ID))
	if _, err := s.Get(inst.ID); !errdefs.IsNotFound(err) {
		t.Errorf("discarded instance: %v", err)
	}
	// The same layer again, before the old files are deleted.
	fresh, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, s.DeleteDiscarded())
	if _, err := os.Stat(s.MetaPath(fresh.ID)); err != nil {
		t.Errorf("files of the new import: %v", err)
	}
	must(t, s.Discard(fresh.ID))
	must(t, s.DeleteDiscarded())
	wantEmpty(t, root)
}

func TestImportRefuses(t *testing.T) {
	b, dgst := layer(t, "content")
	other, otherDigest := layer(t, "other")
	for name, tc := range map[string]struct {
		layer digest.Digest
		open  Opener
		want  []string
	}{
		"other content": {dgst, opener(other), []string{dgst.String(), otherDigest.String()}},
		"cut":           {dgst, opener(b[:700]), []string{dgst.String()}},
		"no blob":       {dgst, func(context.Context) (io.ReadCloser, error) { return nil, errdefs.ErrNotFound }, []string{dgst.String()}},
		"no digest":     {"sha256:123", opener(b), []string{"sha256:123"}},
		"other hash":    {digest.Digest("sha512:" + strings.Repeat("0", 128)), opener(b), []string{"sha512:"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			_, _, err := s.Import(t.Context(), tc.layer, tc.open)
			if err == nil {
				t.Fatal("imported")
			}
			for _, text := range tc.want {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not name %s", err, text)
				}
			}
			wantEmpty(t, root)
			if list := s.List(); len(list) > 0 {
				t.Errorf("list: %v", list)
			}
		})
	}
}

// slowStore is a store whose conversions wait until they are released or cancelled.
func slowStore(t *testing.T) (s *Store, started chan struct{}, release chan struct{}) {
	s = open(t, t.TempDir())
	started, release = make(chan struct{}, 10), make(chan struct{})
	real := s.fromTar
	s.fromTar = func(ctx context.Context, r io.Reader, target converter.Target, l converter.Limits) (converter.Result, error) {
		started <- struct{}{}
		select {
		case <-release:
			return real(ctx, r, target, l)
		case <-ctx.Done():
			return converter.Result{}, ctx.Err()
		}
	}
	return s, started, release
}

func waiters(s *Store, id ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.builds[id]; b != nil {
		return b.waiters
	}
	return 0
}

func TestImportIsSharedByAllWhoWait(t *testing.T) {
	s, started, release := slowStore(t)
	b, dgst := layer(t, "content")
	const callers = 5
	var busy sync.WaitGroup
	results := make(chan error, callers)
	first, leave := context.WithCancel(t.Context())
	for i := range callers {
		ctx := t.Context()
		if i == 0 {
			ctx = first
		}
		busy.Go(func() {
			_, pin, err := s.Import(ctx, dgst, opener(b))
			pin.Release()
			results <- err
		})
		if i == 0 {
			<-started // it is the one whose context the conversion started with
		}
	}
	for waiters(s, EagerID(dgst)) < callers {
		runtime.Gosched()
	}
	leave()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	busy.Wait()
	for range callers - 1 {
		if err := <-results; err != nil {
			t.Errorf("who stayed got %v", err)
		}
	}
	if len(started) > 0 {
		t.Error("converted more than once")
	}
	if s.Pinned(EagerID(dgst)) {
		t.Error("still pinned after every pin was released")
	}
}

// TestImportWithAnotherOpener: who began the conversion does not see the blob any more, who waits for it does.
func TestImportWithAnotherOpener(t *testing.T) {
	s := open(t, t.TempDir())
	b, dgst := layer(t, "content")
	opening, fail := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	go func() {
		_, _, err := s.Import(context.Background(), dgst, func(context.Context) (io.ReadCloser, error) {
			close(opening)
			<-fail
			return nil, errdefs.ErrNotFound
		})
		first <- err
	}()
	<-opening
	second := make(chan error)
	go func() {
		_, pin, err := s.Import(context.Background(), dgst, opener(b))
		pin.Release()
		second <- err
	}()
	for waiters(s, EagerID(dgst)) < 2 {
		runtime.Gosched()
	}
	close(fail)
	if err := <-first; !errdefs.IsNotFound(err) {
		t.Errorf("who does not see the blob: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("who sees the blob: %v", err)
	}
}

// TestImportIsLogged: one line for a conversion, which says what was left out.
func TestImportIsLogged(t *testing.T) {
	var log bytes.Buffer
	s, err := Open(t.TempDir(), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	b, dgst := layer(t, "content")
	real := s.fromTar
	s.fromTar = func(ctx context.Context, r io.Reader, target converter.Target, l converter.Limits) (converter.Result, error) {
		res, err := real(ctx, r, target, l)
		res.Dropped.AUFS = 3
		return res, err
	}
	for range 2 {
		_, pin, err := s.Import(t.Context(), dgst, opener(b))
		must(t, err)
		pin.Release()
	}
	line := log.String()
	for _, want := range []string{dgst.String(), fmt.Sprintf("blob_bytes=%d", len(b)), "took=", "AUFS:3"} {
		if strings.Count(line, want) != 1 {
			t.Errorf("the log does not say %q once:\n%s", want, line)
		}
	}
}

func TestImportEndsWithItsLastWaiter(t *testing.T) {
	s, started, release := slowStore(t)
	b, dgst := layer(t, "content")
	ctx, leave := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, _, err := s.Import(ctx, dgst, opener(b))
		result <- err
	}()
	<-started
	leave()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	// Whoever comes now gets a conversion of its own, even if the cancelled one has not ended yet.
	close(release)
	_, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, s.Discard(EagerID(dgst)))
	must(t, s.DeleteDiscarded())
	wantEmpty(t, filepath.Dir(s.dir))
}

func TestCloseEndsImports(t *testing.T) {
	s, started, _ := slowStore(t)
	b, dgst := layer(t, "content")
	result := make(chan error)
	go func() {
		_, _, err := s.Import(t.Context(), dgst, opener(b))
		result <- err
	}()
	<-started
	must(t, s.Close())
	if err := <-result; err == nil {
		t.Error("imported by a closed store")
	}
	wantEmpty(t, filepath.Dir(s.dir))
	if _, _, err := s.Import(t.Context(), dgst, opener(b)); err == nil {
		t.Error("imported by a closed store")
	}
}
