package imagemount

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
)

// unanswered answers for nothing, although the kernel has everything.
type unanswered struct{}

func (unanswered) Mount(context.Context, string) (*snapshotter.Answering, error) { return nil, nil }
func (unanswered) OverCache(string) (live, dead bool, err error)                 { return false, false, nil }
func (unanswered) Watches(string) bool                                           { return false }
func (unanswered) Serves(string) bool                                            { return false }
func (unanswered) Alive(string) (bool, error)                                    { return true, nil }
func (unanswered) Unsure() error                                                 { return nil }

// TestPoisonedIsSaidOnce: by the command that finds it, not by those after it.
func TestPoisonedIsSaidOnce(t *testing.T) {
	root, _ := newRoot(t)
	orphan := filepath.Join(root, "orphans", "0123456789abcdef")
	must(t, os.MkdirAll(orphan, 0o700))
	must(t, os.WriteFile(filepath.Join(orphan, "data"), []byte("data"), 0o600))
	for i := range 3 {
		var log bytes.Buffer
		o := options(root)
		o.OnDemand, o.Log = unanswered{}, slog.New(slog.NewTextHandler(&log, nil))
		must(t, command(t.Context(), o, func(r *Root) error {
			if n := len(r.Snapshotter().Poisoned()); n != 1 {
				t.Errorf("%d poisoned mounts", n)
			}
			return nil
		}))
		if said := strings.Contains(log.String(), "level=ERROR"); said != (i == 0) {
			t.Errorf("command %d:\n%s", i, &log)
		}
	}
}
