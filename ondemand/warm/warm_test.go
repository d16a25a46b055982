package warm

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

var update = flag.Bool("update", false, "write testdata anew")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// someLayer is the layer of a number.
func someLayer(n int) Layer {
	return Layer{Instance: fmt.Sprintf("%064x", n), Digest: digest.FromString(fmt.Sprint(n))}
}

// sample is a stream with three layers, one of which has nothing.
func sample(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	must(t, w.Layer(someLayer(1)))
	must(t, w.Extent(0, []byte("first")))
	must(t, w.Extent(4096, bytes.Repeat([]byte("x"), 600)))
	must(t, w.Layer(someLayer(2)))
	must(t, w.Layer(someLayer(3)))
	must(t, w.Extent(1<<40, []byte("far")))
	w.Damaged()
	must(t, w.Close())
	return b.Bytes()
}

// told is what a stream says, a line for each thing. Contents of extents that are read only every other time are left out then.
func told(stream io.Reader, skip bool) (lines []string, err error) {
	r := NewReader(stream)
	for n := 0; ; n++ {
		x, begins, err := r.Next()
		switch {
		case err == io.EOF:
			return append(lines, fmt.Sprintf("%+v", r.Sum())), nil
		case err != nil:
			if _, _, again := r.Next(); again != err {
				return lines, fmt.Errorf("%w, and then %w", err, again)
			}
			return lines, err
		case begins:
			lines = append(lines, "layer "+strings.TrimLeft(r.Layer().Instance, "0")+" "+r.Layer().Digest.Encoded()[:4])
		default:
			content := make([]byte, x.Length)
			if !skip {
				if err := r.Read(content); err != nil {
					return lines, err
				}
			}
			lines = append(lines, fmt.Sprintf("%d: %d bytes %.5q", x.Offset, x.Length, content))
		}
	}
}

func TestStream(t *testing.T) {
	lines, err := told(bytes.NewReader(sample(t)), false)
	want := `layer 1 6b86
0: 5 bytes "first"
4096: 600 bytes "xxxxx"
layer 2 d473
layer 3 4e07
1099511627776: 3 bytes "far"
{Extents:3 Bytes:608 Damaged:1}`
	if got := strings.Join(lines, "\n"); err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
	if lines, err := told(bytes.NewReader(sample(t)), true); err != nil || len(lines) != 7 {
		t.Errorf("without reading: %v, %q", err, lines)
	}
}

func TestEmptyStream(t *testing.T) {
	var b bytes.Buffer
	must(t, NewWriter(&b).Close())
	if lines, err := told(&b, false); err != nil || len(lines) != 1 {
		t.Errorf("%v, %q", err, lines)
	}
}

// TestSample: streams of this format that were written once can be read for ever, and are written in the same way.
func TestSample(t *testing.T) {
	const path = "testdata/format1.tar"
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, sample(t), 0o644))
	}
	stored, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(stored, sample(t)) {
		t.Error("the format has changed: give it another number")
	}
}

// TestCutOff: wherever a stream ends too early, that is seen, and what came before is right.
func TestCutOff(t *testing.T) {
	whole := sample(t)
	all, err := told(bytes.NewReader(whole), false)
	must(t, err)
	const trailer = 1024
	for n := range len(whole) - trailer {
		for _, skip := range []bool{false, true} {
			stream := struct{ io.Reader }{bytes.NewReader(whole[:n])} // not one that can seek
			lines, err := told(stream, skip)
			if n >= len(whole)-trailer-512 && err == nil {
				continue // all of the end is there, but not the padding
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if len(lines) > len(all) || !skip && strings.Join(lines, "") != strings.Join(all[:len(lines)], "") {
				t.Fatalf("%d bytes: %q", n, lines)
			}
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	instance := someLayer(1).Instance
	begin, layer := file(beginName, `{"format":1}`), file(instance+"/"+layerName, `{"digest":"`+string(someLayer(1).Digest)+`"}`)
	end := file(endName, `{"extents":1,"bytes":1}`)
	at := func(offset int64, content string) entry {
		return file(fmt.Sprintf("%s/%016x", instance, offset), content)
	}
	large := at(0, "")
	large.Size, large.short = blob.MaxExtentBytes+1, true
	long := at(0, "x")
	long.PAXRecords, long.Format = map[string]string{"comment": "x"}, tar.FormatPAX
	link := at(0, "")
	link.Typeflag, link.Linkname = tar.TypeSymlink, "/etc/passwd"
	for _, test := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"good", []entry{begin, layer, at(0, "x"), end}, ""},
		{"another archive", []entry{file("etc/passwd", "x")}, `begins with "etc/passwd"`},
		{"another format", []entry{file(beginName, `{"format":2}`)}, "format 2, this program knows 1"},
		{"no document", []entry{file(beginName, "x")}, "invalid character"},
		{"a long document", []entry{file(beginName, strings.Repeat(" ", maxDocumentBytes+1))}, "more than 4096"},
		{"no layer", []entry{begin, at(0, "x")}, "not expected there"},
		{"no layer and no name", []entry{begin, file("/0000000000000000", "x")}, "not expected there"},
		{"another layer", []entry{begin, layer, file(someLayer(2).Instance+"/0000000000000000", "x")}, "not expected there"},
		{"a layer again", []entry{begin, layer, layer}, "comes again"},
		{"an instance without a name", []entry{begin, file("x/"+layerName, `{"digest":"`+string(someLayer(1).Digest)+`"}`)}, "not 64 hex digits"},
		{"no digest", []entry{begin, file(instance+"/"+layerName, `{"digest":"x"}`)}, "digest"},
		{"another name", []entry{begin, layer, file(instance+"/x", "x")}, "not expected there"},
		{"capitals", []entry{begin, layer, file(instance+"/000000000000000A", "x")}, "not expected there"},
		{"negative offset", []entry{begin, layer, file(instance+"/ffffffffffffffff", "x")}, "ErrFormat"},
		{"far offset", []entry{begin, layer, at(blob.MaxDataBytes, "x")}, "ends after"},
		{"empty", []entry{begin, layer, at(0, "")}, "has 0 bytes"},
		{"large", []entry{begin, layer, large}, "want 1 to"},
		{"wrong order", []entry{begin, layer, at(10, "x"), at(9, "x")}, "comes after"},
		{"overlap", []entry{begin, layer, at(10, "xy"), at(11, "x")}, "comes after"},
		{"one is missing", []entry{begin, layer, end}, "0 extents with 0 bytes came"},
		{"a link", []entry{begin, layer, link}, "no plain file"},
		{"extended headers", []entry{begin, layer, long}, "no plain file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := told(archive(t, test.entries), false)
			if test.want == "" {
				must(t, err)
			} else if !errors.Is(err, ErrFormat) || test.want != "ErrFormat" && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	if _, err := told(strings.NewReader(strings.Repeat("no archive ", 200)), false); !errors.Is(err, ErrFormat) {
		t.Errorf("no archive: %v", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	w := NewWriter(io.Discard)
	if w.Extent(0, []byte("x")) == nil {
		t.Error("an extent before any layer")
	}
	if w.Layer(Layer{Instance: "x", Digest: someLayer(1).Digest}) == nil || w.Layer(Layer{Instance: someLayer(1).Instance}) == nil {
		t.Error("a layer without a name, or without a digest")
	}
	must(t, w.Layer(someLayer(1)))
	must(t, w.Extent(10, []byte("xy")))
	if w.Extent(11, []byte("x")) == nil || w.Extent(20, nil) == nil {
		t.Error("an extent over another, or without bytes")
	}
}

// entry is one of an archive.
type entry struct {
	*tar.Header
	content string
	short   bool // the content is not as long as the header says
}

func file(name, content string) entry {
	return entry{header(name, int64(len(content))), content, false}
}

func archive(t *testing.T, entries []entry) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(t, w.WriteHeader(e.Header))
		_, err := io.WriteString(w, e.content)
		must(t, err)
		if e.short {
			return &b
		}
	}
	must(t, w.Close())
	return &b
}

// FuzzReader: what can be read can be written again, and says the same then.
func FuzzReader(f *testing.F) {
	f.Add(sample(f))
	var empty bytes.Buffer
	must(f, NewWriter(&empty).Close())
	f.Add(empty.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		sumHeaders(stream)
		r := NewReader(struct{ io.Reader }{bytes.NewReader(stream)})
		var again bytes.Buffer
		w := NewWriter(&again)
		for {
			x, begins, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
			if begins {
				must(t, w.Layer(r.Layer()))
				continue
			}
			if int(x.Length) > len(stream) {
				return // it is cut off
			}
			content := make([]byte, x.Length)
			if r.Read(content) != nil {
				return
			}
			must(t, w.Extent(x.Offset, content))
		}
		for range r.Sum().Damaged % 10 {
			w.Damaged()
		}
		must(t, w.Close())
		want, err := told(bytes.NewReader(stream), false)
		must(t, err)
		got, err := told(&again, false)
		must(t, err)
		last := len(want) - 1
		if strings.Join(got[:last], "\n") != strings.Join(want[:last], "\n") {
			t.Errorf("read %q, and again %q", want, got)
		}
	})
}

// sumHeaders makes the checksums of headers right, so that the fuzzer gets behind them: all blocks that say that they are one.
func sumHeaders(stream []byte) {
	for ; len(stream) >= 512; stream = stream[512:] {
		if string(stream[257:262]) != "ustar" {
			continue
		}
		sum := 8 * int(' ')
		for i, c := range stream[:512] {
			if i < 148 || i >= 156 {
				sum += int(c)
			}
		}
		copy(stream[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
}
