package render

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// view shows one status after another.
type view interface {
	// show gets the status and the one before it, nil at first and after an interruption.
	show(s admin.Status, before *admin.Status) error
	// lost says that there was no answer. It may be called again for the same interruption.
	lost(cause error) error
}

// Watch follows a daemon.
type Watch struct {
	// Ask returns the daemon's status.
	Ask func(context.Context) (admin.Status, error)
	// Interval is the time between two questions.
	Interval time.Duration
	Out      io.Writer
	// TerminalSize is the number of columns and rows of the terminal that Out is; nil if it is none.
	TerminalSize func() (columns, rows int, err error)
	// JSON writes each status as one line of JSON.
	JSON bool
}

// Run asks and shows until ctx ends, which is no error. When the first question has no answer, that is an error. Later ones that have none
// are shown, and Run goes on: the daemon may be starting again.
func (w Watch) Run(ctx context.Context) error {
	s, err := w.Ask(ctx)
	if err != nil {
		return unlessEnded(ctx, err)
	}
	v := w.view()
	if err := v.show(s, nil); err != nil {
		return err
	}
	before := &s
	ticker := time.NewTicker(w.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		s, err := w.Ask(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			before, err = nil, v.lost(err)
		case before != nil && !before.Started.Equal(s.Started): // another process: its counts begin anew
			err = v.show(s, nil)
			before = &s
		default:
			err = v.show(s, before)
			before = &s
		}
		if err != nil {
			return err
		}
	}
}

func unlessEnded(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil
	}
	return err
}

func (w Watch) view() view {
	switch {
	case w.JSON:
		return jsonView{json.NewEncoder(w.Out)}
	case w.TerminalSize != nil:
		return &terminal{out: w.Out, size: w.TerminalSize}
	}
	return &lines{out: w.Out}
}

// jsonView writes statuses for programs. An interruption is a gap in their times.
type jsonView struct{ encoder *json.Encoder }

func (v jsonView) show(s admin.Status, _ *admin.Status) error { return v.encoder.Encode(s) }
func (v jsonView) lost(error) error                           { return nil }
