// Package progress tells a person how the layers of an image are fetched.
//
// On a terminal every layer that is being fetched has a line of its own, which is drawn again as bytes come in; a layer that is done leaves
// a line above. Elsewhere there is one line when the work begins and one for each layer that is done, so that a log stays readable.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount"
)

// drawEvery keeps the terminal from being the slowest part.
const drawEvery = 100 * time.Millisecond

// Printer writes progress. Safe for concurrent use.
type Printer struct {
	now func() time.Time

	mu       sync.Mutex
	w        io.Writer
	terminal bool
	columns  int
	rows     int // lines that may be drawn at once
	blobs    []*blob
	drawn    int // lines below which the cursor stands
	drawnAt  time.Time
}

// blob is a layer that is fetched.
type blob struct {
	desc  ocispec.Descriptor
	n     int // of how many
	read  int64
	begun time.Time // zero: no byte was read yet
	done  bool
}

var _ imagemount.Progress = (*Printer)(nil)

// New returns a Printer that writes to w, in the form for terminals if it is one.
func New(w io.Writer) *Printer {
	p := &Printer{w: w, now: time.Now}
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 2 {
			p.terminal, p.columns, p.rows = true, int(size.Col), int(size.Row)-2
		}
	}
	return p
}

// Begin implements imagemount.Progress.
func (p *Printer) Begin(fetch []ocispec.Descriptor, layers int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var total int64
	for i, desc := range fetch {
		p.blobs = append(p.blobs, &blob{desc: desc, n: i + 1})
		total += desc.Size
	}
	if len(fetch) > 0 {
		p.printf("fetching %d of %d layers, %s\n", len(fetch), layers, size(total))
	}
}

// Read implements imagemount.Progress.
func (p *Printer) Read(d digest.Digest, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.find(d)
	if b == nil {
		return
	}
	now := p.now()
	if b.begun.IsZero() {
		b.begun = now
	}
	b.read += int64(n)
	if p.terminal && now.Sub(p.drawnAt) >= drawEvery {
		p.drawnAt = now
		p.erase()
		p.draw()
	}
}

// Done implements imagemount.Progress.
func (p *Printer) Done(d digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.find(d)
	if b == nil || b.done {
		return
	}
	b.done = true
	p.erase()
	p.printf("%s\n", p.fit(p.line(b)))
	if p.terminal {
		p.draw()
	}
}

// End removes the lines that are drawn again and again, so that what follows stands below the finished layers.
func (p *Printer) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *Printer) find(d digest.Digest) *blob {
	for _, b := range p.blobs {
		if b.desc.Digest == d {
			return b
		}
	}
	return nil
}

// draw writes a line for each layer in work, as far as there is room.
func (p *Printer) draw() {
	for _, b := range p.blobs {
		if b.begun.IsZero() || b.done || p.drawn == p.rows {
			continue
		}
		p.printf("%s\n", p.fit(p.line(b)))
		p.drawn++
	}
}

// erase takes away what draw wrote: cursor up to the first line, clear to the end of the screen.
func (p *Printer) erase() {
	if p.drawn > 0 {
		p.printf("\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

func (p *Printer) line(b *blob) string {
	name := b.desc.Digest.Encoded()
	text := fmt.Sprintf("layer %*d/%d  %s  ", len(fmt.Sprint(len(p.blobs))), b.n, len(p.blobs), name[:min(len(name), 12)])
	took := p.now().Sub(b.begun)
	rate := ""
	if !b.begun.IsZero() && took > 0 {
		rate = fmt.Sprintf("  %s/s", size(int64(float64(b.read)/took.Seconds())))
	}
	if b.done {
		return text + size(b.read) + rate + "  done"
	}
	return text + fmt.Sprintf("%s of %s", size(b.read), size(b.desc.Size)) + rate
}

// fit cuts a line that would wrap: the cursor could not find back.
func (p *Printer) fit(line string) string {
	if p.terminal && len(line) > p.columns {
		return line[:p.columns]
	}
	return line
}

// printf ignores errors: progress that cannot be shown is no reason to stop.
func (p *Printer) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 4) }

// None shows nothing.
type None struct{}

var _ imagemount.Progress = None{}

// Begin implements imagemount.Progress.
func (None) Begin([]ocispec.Descriptor, int) {}

// Read implements imagemount.Progress.
func (None) Read(digest.Digest, int) {}

// Done implements imagemount.Progress.
func (None) Done(digest.Digest) {}
