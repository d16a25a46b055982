// Package render makes text of an admin.Status for people: one table, or a view that follows the daemon.
//
// Everything in a Status may come from outside (names of images, causes of errors), so whatever could steer a terminal is replaced.
package render

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// shortDigest is how many hex digits name a layer, as many as containerd's and Docker's tools show.
const shortDigest = 12

// short is the beginning of a digest or an instance's id.
func short(name string) string {
	if _, hex, ok := strings.Cut(name, ":"); ok {
		name = hex
	}
	if name == "" {
		return "-"
	}
	return cut(clean(name), shortDigest)
}

// cut shortens s to n characters.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:max(n, 0)])
}

// clean makes text from outside fit for one line of a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' { // errors of several lines
			return ' '
		}
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// orNone is clean text, or a sign that there is none.
func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return clean(s)
}

// size writes bytes with a binary unit and one decimal.
func size(bytes int64) string {
	if bytes > -1024 && bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), 0
	// 1023.95 would be written as 1024.0.
	for math.Abs(value) >= 1023.95 && unit < len(sizeUnits)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", value, sizeUnits[unit])
}

var sizeUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// span writes a duration with its two largest units: 48s, 3m12s, 5h3m, 12d4h.
func span(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	days, hours, minutes, seconds := d/(24*time.Hour), d/time.Hour%24, d/time.Minute%60, d/time.Second%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, seconds)
	}
	return fmt.Sprintf("%ds", seconds)
}

// count writes a number and its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// page collects output; the first error of the writer ends it.
type page struct {
	w   io.Writer
	err error
}

func (p *page) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// table writes rows of cells in columns, the first of which are the headings.
func (p *page) table(rows [][]string) {
	if p.err != nil {
		return
	}
	t := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t")) // the error comes with Flush, too
	}
	p.err = t.Flush()
}
