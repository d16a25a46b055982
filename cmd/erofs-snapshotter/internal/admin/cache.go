package admin

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

const (
	cachePath = "/v1/cache"
	// stallTime is how long a client may take none of an export, or give nothing of an import: what is before or behind it may be a slow network.
	stallTime = 5 * time.Minute
	// exportBuffer is written at a time.
	exportBuffer = 256 << 10
	// causeTrailer follows an export that was cut off, and says why.
	causeTrailer = "Erofs-Snapshotter-Cause"
)

// ErrNoLayer says that there is no layer to export.
var ErrNoLayer = errors.New("no such layer")

// Choice says which layers are exported. An empty one: all that are lazy.
type Choice struct {
	// Images are references; their layers are chosen. Instances are names of layer instances, which are chosen, too.
	Images, Instances []string
}

// All says that nothing was chosen in particular.
func (c Choice) All() bool { return len(c.Images) == 0 && len(c.Instances) == 0 }

// Amount is a part of a layer.
type Amount struct {
	Extents int64 `json:"extents"`
	Bytes   int64 `json:"bytes"`
}

// Add adds an extent.
func (a *Amount) Add(bytes uint32) {
	a.Extents++
	a.Bytes += int64(bytes)
}

// Exported says what is in an export.
type Exported struct {
	Layers []ExportedLayer `json:"layers"`
	// DamagedExtents were left out, because the disk has other bytes than it should; the daemon's log names their layers.
	DamagedExtents int64 `json:"damagedExtents"`
}

// ExportedLayer is one of an export.
type ExportedLayer struct {
	Instance string `json:"instance"`
	Digest   string `json:"digest"`
	Amount
}

// What became of a layer of an import.
const (
	Imported = "imported" // what was offered was imported, was here already, or was wrong
	Unknown  = "unknown"  // no image with the layer was pulled by this index
	Whole    = "whole"    // the layer was pulled as a whole: nothing is missing
	Refused  = "refused"  // it could not be imported, or not all of it
)

// ImportReport says what became of an import.
type ImportReport struct {
	Layers []ImportedLayer `json:"layers"`
	// Error says why the rest of the stream could not be read. What came before was imported.
	Error string `json:"error,omitempty"`
}

// ImportedLayer is one of an import.
type ImportedLayer struct {
	Instance string `json:"instance"`
	Digest   string `json:"digest"`
	// Result is Imported, Unknown, Whole or Refused; Cause says why, of the last.
	Result string `json:"result"`
	Cause  string `json:"cause,omitempty"`
	// Offered is what came. Of that New was written and is on stable storage, Present was here already, and Wrong is not of this layer.
	Offered Amount `json:"offered"`
	New     Amount `json:"new"`
	Present Amount `json:"present"`
	Wrong   Amount `json:"wrong"`
}

// cache answers for the data of layers that are here. One export and one import go on at a time: they are read and compared at the speed of the
// disk, beside what containers wait for.
type cache struct {
	o                    Options
	exporting, importing turn
}

// turn is taken by one request at a time.
type turn chan struct{}

// turnTime is how long a request waits for one that is just ending, such as that of a client that has gone.
const turnTime = time.Second

func newTurn() turn { return make(turn, 1) }

// take says whether it is r's turn. If not it has answered.
func (t turn) take(w http.ResponseWriter, r *http.Request) bool {
	ctx, cancel := context.WithTimeout(r.Context(), turnTime)
	defer cancel()
	select {
	case t <- struct{}{}:
		return true
	case <-ctx.Done():
		http.Error(w, "another one goes on: wait until it has ended", http.StatusServiceUnavailable)
		return false
	}
}

func (t turn) leave() { <-t }

func (c *cache) export(w http.ResponseWriter, r *http.Request) {
	if !c.exporting.take(w, r) {
		return
	}
	defer c.exporting.leave()
	query := r.URL.Query()
	write, err := c.o.Export(Choice{Images: query["image"], Instances: query["instance"]})
	switch {
	case errors.Is(err, ErrNoLayer):
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", causeTrailer)
	out := bufio.NewWriterSize(&patientWriter{w: w, c: http.NewResponseController(w)}, exportBuffer)
	if err := errors.Join(write(r.Context(), out), out.Flush()); err != nil {
		w.Header().Set(causeTrailer, firstBytes(err.Error()))
	}
}

// firstBytes is as much of an error as a trailer may have, in one line.
func firstBytes(s string) string {
	b := []byte(s[:min(len(s), maxErrorBytes)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = ' '
		}
	}
	return string(b)
}

func (c *cache) imports(w http.ResponseWriter, r *http.Request) {
	if !c.importing.take(w, r) {
		return
	}
	defer c.importing.leave()
	controller := http.NewResponseController(w)
	body := &patientReader{r: r.Body, c: controller}
	report := c.o.Import(r.Context(), body)
	// A client that still sends would not see the answer.
	_, err := io.Copy(io.Discard, body)
	if err != nil {
		return // it has gone
	}
	_ = controller.SetReadDeadline(time.Time{}) // fails when the connection has gone
	_ = controller.SetWriteDeadline(time.Now().Add(answerTime))
	if report.Layers == nil {
		report.Layers = []ImportedLayer{}
	}
	writeJSON(w, report)
}

// takesBody says whether a request may have a body.
func (o Options) takesBody(r *http.Request) bool {
	return o.Import != nil && r.Method == http.MethodPost && r.URL.Path == cachePath
}

// patience gives a connection time as long as something goes on.
type patience struct{ set time.Time }

// renew says whether it is time to give it more.
func (p *patience) renew() (until time.Time, renew bool) {
	now := time.Now()
	if now.Sub(p.set) < time.Second {
		return time.Time{}, false
	}
	p.set = now
	return now.Add(stallTime), true
}

type patientWriter struct {
	w io.Writer
	c *http.ResponseController
	patience
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if until, renew := p.renew(); renew {
		if err := p.c.SetWriteDeadline(until); err != nil {
			return 0, err
		}
	}
	return p.w.Write(b)
}

type patientReader struct {
	r io.Reader
	c *http.ResponseController
	patience
}

func (p *patientReader) Read(b []byte) (int, error) {
	if until, renew := p.renew(); renew {
		if err := p.c.SetReadDeadline(until); err != nil {
			return 0, err
		}
	}
	return p.r.Read(b)
}
