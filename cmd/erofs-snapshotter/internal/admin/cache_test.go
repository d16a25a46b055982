package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// writes returns what exports so many pieces of 100,000 bytes, and ends with an error.
func writes(pieces int, end error) func(Choice) (func(context.Context, io.Writer) error, error) {
	return func(Choice) (func(context.Context, io.Writer) error, error) {
		return func(_ context.Context, out io.Writer) error {
			var err error
			for i := range pieces {
				_, writeErr := out.Write(bytes.Repeat([]byte{byte(i)}, 100_000))
				err = errors.Join(err, writeErr)
			}
			return errors.Join(err, end)
		}, nil
	}
}

// drop takes an export for nobody.
func drop(stream io.Reader) error {
	_, err := io.Copy(io.Discard, stream)
	return err
}

func TestExportOverSocket(t *testing.T) {
	address, _ := serveStatus(t, Options{Export: writes(30, nil)})
	var out, want bytes.Buffer
	err := NewClient(address).Export(t.Context(), Choice{}, func(stream io.Reader) error {
		_, err := out.ReadFrom(stream)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	write, _ := writes(30, nil)(Choice{})
	if err := write(t.Context(), &want); err != nil || !bytes.Equal(out.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes came, other than the %d that were sent (%v)", out.Len(), want.Len(), err)
	}
}

func TestExportChoice(t *testing.T) {
	var chosen Choice
	address, _ := serveStatus(t, Options{Export: func(c Choice) (func(context.Context, io.Writer) error, error) {
		chosen = c
		return nil, fmt.Errorf("image %q: %w", c.Images, ErrNoLayer)
	}})
	want := Choice{Images: []string{"a/b:c&d", "e"}, Instances: []string{"0a"}}
	err := NewClient(address).Export(t.Context(), want, drop)
	if !reflect.DeepEqual(chosen, want) || err == nil || !strings.Contains(err.Error(), ErrNoLayer.Error()) {
		t.Errorf("%+v, error %v", chosen, err)
	}
}

// TestExportFails: whoever fails, the client says why.
func TestExportFails(t *testing.T) {
	address, _ := serveStatus(t, Options{Export: writes(30, errors.New("disk\nbroke in ein Stück"+strings.Repeat("x", 10_000)))})
	err := NewClient(address).Export(t.Context(), Choice{}, drop)
	if err == nil || !strings.Contains(err.Error(), "cut the export off: disk broke in ein") || len(err.Error()) > 2000 {
		t.Errorf("error %v", err)
	}
	errFull := errors.New("no space left")
	good, _ := serveStatus(t, Options{Export: writes(30, nil)})
	for range 2 { // the first one leaves nothing behind
		if err := NewClient(good).Export(t.Context(), Choice{}, func(io.Reader) error { return errFull }); !errors.Is(err, errFull) {
			t.Errorf("error %v", err)
		}
	}
	if err := NewClient(good).Export(t.Context(), Choice{}, drop); err != nil {
		t.Errorf("after those: %v", err)
	}
	none, _ := serveStatus(t, Options{})
	if err := NewClient(none).Export(t.Context(), Choice{}, drop); err == nil || !strings.Contains(err.Error(), "may be older") {
		t.Errorf("error %v", err)
	}
	if _, err := NewClient(none).Import(t.Context(), strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "may be older") {
		t.Errorf("error %v", err)
	}
}

// TestExportGone: the server notices that nobody wants the rest.
func TestExportGone(t *testing.T) {
	ended := make(chan error, 1)
	began := make(chan struct{}, 1)
	address, _ := serveStatus(t, Options{Export: func(Choice) (func(context.Context, io.Writer) error, error) {
		return func(_ context.Context, out io.Writer) (err error) {
			for err == nil {
				_, err = out.Write(make([]byte, 1<<20))
				select {
				case began <- struct{}{}:
				default:
				}
			}
			ended <- err
			return err
		}, nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := NewClient(address).Export(ctx, Choice{}, drop); err == nil {
		t.Error("no error")
	}
	<-ended
}

func TestImportOverSocket(t *testing.T) {
	want := ImportReport{Layers: []ImportedLayer{{
		Instance: "i", Digest: "d", Result: Refused, Cause: "c", Offered: Amount{1, 2}, New: Amount{3, 4}, Present: Amount{5, 6}, Wrong: Amount{7, 8},
	}}, Error: "cut off"}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	var read int64
	least := int64(0)
	address, _ := serveStatus(t, Options{Import: func(_ context.Context, in io.Reader) ImportReport {
		n, err := io.CopyN(io.Discard, in, least)
		if read = n; err != nil {
			t.Error(err)
		}
		return want
	}})
	for _, least = range []int64{0, 1000, int64(len(sent))} { // it need not read all
		got, err := NewClient(address).Import(t.Context(), bytes.NewReader(sent))
		if err != nil || !reflect.DeepEqual(got, want) || read != least {
			t.Errorf("%d bytes: %+v, error %v", read, got, err)
		}
	}
}

func TestImportCutOff(t *testing.T) {
	seen := make(chan error, 1)
	address, _ := serveStatus(t, Options{Import: func(_ context.Context, in io.Reader) ImportReport {
		_, err := io.Copy(io.Discard, in)
		seen <- err
		return ImportReport{}
	}})
	broken := errors.New("the pipe broke")
	in := io.MultiReader(strings.NewReader("some"), readerFunc(func([]byte) (int, error) { return 0, broken }))
	if _, err := NewClient(address).Import(t.Context(), in); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if <-seen == nil {
		t.Error("the server has not noticed")
	}
	if r, err := NewClient(address).Import(t.Context(), strings.NewReader("all")); err != nil || r.Layers == nil {
		t.Errorf("after that: %+v, %v", r, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestTransfersOneAtATime: another one is told so, before it sends anything.
func TestTransfersOneAtATime(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	wait := func() { began <- struct{}{}; <-goOn }
	address, _ := serveStatus(t, Options{
		Export: func(Choice) (func(context.Context, io.Writer) error, error) {
			return func(context.Context, io.Writer) error { wait(); return nil }, nil
		},
		Import: func(context.Context, io.Reader) ImportReport { wait(); return ImportReport{} },
	})
	c := NewClient(address)
	first := make(chan error, 2)
	go func() { first <- c.Export(t.Context(), Choice{}, drop) }()
	<-began
	go func() { _, err := c.Import(t.Context(), strings.NewReader("x")); first <- err }() // beside the export
	<-began
	if err := c.Export(t.Context(), Choice{}, drop); err == nil || !strings.Contains(err.Error(), "another one goes on") {
		t.Errorf("export: %v", err)
	}
	unread := readerFunc(func([]byte) (int, error) { t.Error("something was sent"); return 0, io.EOF })
	if _, err := c.Import(t.Context(), unread); err == nil || !strings.Contains(err.Error(), "another one goes on") {
		t.Errorf("import: %v", err)
	}
	close(goOn)
	if err := errors.Join(<-first, <-first); err != nil {
		t.Error(err)
	}
}

// TestBodies: no request but an import may have one.
func TestBodies(t *testing.T) {
	with, _ := serveStatus(t, Options{Status: returning(Status{}, nil), Import: func(context.Context, io.Reader) ImportReport { return ImportReport{} }})
	without, _ := serveStatus(t, Options{Status: returning(Status{}, nil)})
	for _, test := range []struct {
		address, method, path string
		code                  int
	}{
		{with, "POST", cachePath, 200}, {with, "PUT", cachePath, 413}, {with, "POST", "/v1/status", 413}, {with, "GET", "/v1/status", 413}, {without, "POST", cachePath, 413},
	} {
		request, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, strings.NewReader("a body"))
		if err != nil {
			t.Fatal(err)
		}
		response, err := NewClient(test.address).http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != test.code {
			t.Errorf("%s %s: %s, want %d", test.method, test.path, response.Status, test.code)
		}
	}
}
