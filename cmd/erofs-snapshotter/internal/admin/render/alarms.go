package render

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

const (
	// patience is how old a request of the kernel is when people should hear of it. Most take some 10 ms.
	patience = time.Second
	// alarmColumns is where the names of containers are wrapped.
	alarmColumns = 90
)

// alarm is something about lazy layers that an operator should do something about, or know because somebody waits.
type alarm struct {
	key  string   // the same as long as it is the same trouble
	what []string // rows
	why  string   // explains it, or says what to do; may be empty
}

// rows are for a screen or table.
func (a alarm) rows() []string {
	rows := slices.Clone(a.what)
	if a.why != "" {
		rows = append(rows, a.why)
	}
	for i := range rows[1:] {
		rows[i+1] = "  " + rows[i+1]
	}
	return rows
}

// line is the same in one line.
func (a alarm) line() string {
	text := strings.Join(a.what, " ")
	if a.why == "" {
		return text
	}
	return text + "; " + a.why
}

// alarms are the worst first. age writes for how long something has been so.
func alarms(s admin.Status, age func(time.Duration) string) []alarm {
	var poisoned, wrong, slow []alarm
	for _, l := range s.Layers {
		if l.Lazy == nil {
			continue
		}
		if l.Lazy.Poisoned {
			poisoned = append(poisoned, alarm{"poisoned " + l.Instance, poisonRows(l),
				"what they have not read yet fails with EIO for good: daemon and keeper ended together; new containers are not affected"})
		}
		if cause, failed := strings.CutPrefix(l.Lazy.Verified, admin.VerifyFailed); failed {
			wrong = append(wrong, alarm{"wrong " + l.Instance,
				[]string{fmt.Sprintf("WRONG %s: it is not the layer that its image names: %s", short(name(l)), clean(cause))},
				"new containers get the right one; end those that run from " + sourceOf(l)})
		}
		if row := slowRow(l, s.Time, age); row != "" {
			slow = append(slow, alarm{"slow " + l.Instance, []string{row}, ""})
		}
	}
	return slices.Concat(poisoned, wrong, keeperAlarm(s, age), slow)
}

// poisonRows name the containers first, because a terminal cuts what is too long.
func poisonRows(l admin.Layer) []string {
	restart := fmt.Sprintf("POISONED %s: restart ", short(name(l)))
	if len(l.Lazy.Users) == 0 {
		return []string{restart + "the containers that run from " + sourceOf(l)}
	}
	names := make([]string, len(l.Lazy.Users))
	for i, n := range l.Lazy.Users {
		names[i] = orNone(n)
	}
	rows := wrap(names, alarmColumns)
	rows[0] = restart + rows[0]
	return rows
}

// sourceOf names where a layer came from, or points at the layer that the sentence is about.
func sourceOf(l admin.Layer) string {
	if l.Source == "" {
		return "it"
	}
	return clean(l.Source)
}

// keeperAlarm is empty while there is a keeper, or no need for one.
func keeperAlarm(s admin.Status, age func(time.Duration) string) []alarm {
	if s.Keeper == nil || s.Keeper.Connected {
		return nil
	}
	row := "NO KEEPER at " + orNone(s.Keeper.Address)
	if !s.Keeper.Since.IsZero() {
		row += " for " + age(s.Time.Sub(s.Keeper.Since))
	}
	return []alarm{{"keeper", []string{row + ": start it (systemctl start erofs-snapshotter-keeper)"},
		"if the daemon ended now, containers that run from lazy layers would have to be restarted"}}
}

// slowRow is about the requests that wait for longer than patience; empty if there is none.
func slowRow(l admin.Layer, now time.Time, age func(time.Duration) string) string {
	var late []admin.Request
	for _, r := range l.Lazy.InFlight {
		if now.Sub(r.Since) >= patience {
			late = append(late, r)
		}
	}
	if len(late) == 0 {
		return ""
	}
	oldest := slices.MinFunc(late, func(a, b admin.Request) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.OffsetBytes, b.OffsetBytes))
	})
	row := fmt.Sprintf("SLOW %s: %s, the oldest for %s (%s at %d)", short(name(l)), count(len(late), "read waits", "reads wait"),
		age(now.Sub(oldest.Since)), size(oldest.LengthBytes), oldest.OffsetBytes)
	if l.Lazy.LastError != "" {
		row += ", last error " + age(now.Sub(l.Lazy.LastErrorTime)) + " ago: " + clean(l.Lazy.LastError)
	}
	return row
}

// steps is an age that changes only when it doubles, so that whoever writes down what has changed does not write each second.
func steps(d time.Duration) string {
	step := time.Second
	for step <= d/2 {
		step *= 2
	}
	if d < step {
		return "less than " + span(step)
	}
	return "more than " + span(step)
}
