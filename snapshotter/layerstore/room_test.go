package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
)

// TestRoomIsMadeOnce: a conversion that finds the disk full is tried again if there was something to delete, and not more than once.
func TestRoomIsMadeOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		causes    []error // of the attempts
		room      bool    // there is something to delete
		asked     int
		exhausted bool
	}{
		"fits":                {[]error{nil}, true, 0, false},
		"fits after deletion": {[]error{unix.ENOSPC, nil}, true, 1, false},
		"nothing to delete":   {[]error{unix.ENOSPC}, false, 1, true},
		"never fits":          {[]error{unix.ENOSPC, unix.ENOSPC}, true, 1, true},
		"quota":               {[]error{unix.EDQUOT, nil}, true, 1, false},
		"no quota at all":     {[]error{unix.EDQUOT}, false, 1, true},
		"another error":       {[]error{unix.EIO}, true, 0, false},
		"another error then":  {[]error{unix.ENOSPC, unix.EIO}, true, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			asked, attempts := 0, 0
			s, err := Open(root, Options{MakeRoom: func(context.Context) bool {
				asked++
				wantEmpty(t, root) // the attempt has freed what it took
				return tc.room
			}})
			must(t, err)
			defer s.Close()
			s.fromTar = func(ctx context.Context, r io.Reader, target converter.Target, l converter.Limits) (converter.Result, error) {
				cause := tc.causes[attempts]
				attempts++
				if cause != nil {
					_, err := target.Data.WriteAt([]byte("half"), 0)
					return converter.Result{}, errors.Join(err, fmt.Errorf("write data: %w", cause))
				}
				return converter.FromTar(ctx, r, target, l)
			}
			b, dgst := layer(t, "content")
			_, pin, err := s.Import(t.Context(), dgst, opener(b))
			last := tc.causes[len(tc.causes)-1]
			if !errors.Is(err, last) || errdefs.IsResourceExhausted(err) != tc.exhausted {
				t.Errorf("import: %v", err)
			}
			if asked != tc.asked || attempts != len(tc.causes) {
				t.Errorf("%d attempts, and asked %d times for room; want %d and %d", attempts, asked, len(tc.causes), tc.asked)
			}
			if last != nil {
				wantEmpty(t, root)
				if msg := err.Error(); !strings.Contains(msg, string(dgst)) || strings.Contains(msg, "MiB") != tc.exhausted {
					t.Errorf("import: %v", err)
				}
			}
			pin.Release()
		})
	}
}
