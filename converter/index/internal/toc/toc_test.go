package toc_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/internal/toc"
)

// dataEnd is where the data end in the blobs of these tests.
const dataEnd = 1000

var sum = "sha256:" + strings.Repeat("ab", 32)

// read returns a line for each record of a table of contents.
func read(text string, d toc.Dialect, l index.Limits) (lines []string, prefetch int64, err error) {
	r, err := toc.NewReader(strings.NewReader(strings.ReplaceAll(text, "SUM", sum)), d, dataEnd, l)
	if err != nil {
		return nil, 0, err
	}
	for {
		record, err := r.Next()
		if err == io.EOF {
			return lines, r.Prefetch(), nil
		}
		if err != nil {
			return lines, 0, err
		}
		line := record.Name
		for _, x := range record.Extents {
			line += fmt.Sprintf(" %d+%d", x.Offset, x.Length)
			if !x.Hole {
				line += fmt.Sprintf("=%d:%d", x.Blob.Start, x.Blob.End)
			}
			if x.Skip > 0 {
				line += fmt.Sprintf("/%d", x.Skip)
			}
		}
		lines = append(lines, line)
	}
}

// document makes a table of contents of entries.
func document(entries string) string { return `{"version":1,"entries":[` + entries + `]}` }

func TestExtents(t *testing.T) {
	for _, c := range []struct {
		name     string
		dialect  toc.Dialect
		entries  string
		want     string
		prefetch int64
	}{
		{"one file to the end of the data", toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":10,"chunkDigest":"SUM"}`, "a 0+5=10:1000", 0},
		{"digest of the file for its only chunk", toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":10,"digest":"SUM"}`, "a 0+5=10:1000", 0},
		{"the next file ends it, others wait", toc.Stargz, `{"name":"d","type":"dir"},{"name":"a","type":"reg","size":5,"offset":10,"chunkDigest":"SUM"},
			{"name":"b","type":"dir"},{"name":"c","type":"reg","size":5,"offset":70,"chunkDigest":"SUM"},{"name":"e","type":"reg"}`,
			"d|a 0+5=10:70|b|c 0+5=70:1000|e", 0},
		{"chunks, the last one without a size", toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":10,"chunkSize":3,"chunkDigest":"SUM"},
			{"type":"chunk","offset":30,"chunkOffset":3,"chunkDigest":"SUM"}`, "a 0+3=10:30 3+2=30:1000", 0},
		{"shared member", toc.Stargz, `{"name":"a","type":"reg","size":5,"innerOffset":512,"chunkDigest":"SUM"},
			{"name":"b","type":"reg","size":4,"innerOffset":1536,"chunkDigest":"SUM"},{"name":"c","type":"reg","size":1,"offset":50,"chunkDigest":"SUM"}`,
			"a 0+5=0:50/512|b 0+4=0:50/1536|c 0+1=50:1000", 0},
		{"landmark", toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":10,"chunkDigest":"SUM"},
			{"name":"./.prefetch.landmark","type":"reg","size":1,"offset":60,"chunkDigest":"SUM"},
			{"name":"c","type":"reg","size":1,"offset":90,"chunkDigest":"SUM"}`, "a 0+5=10:60|c 0+1=90:1000", 60},
		{"landmark against prefetching", toc.Stargz, `{"name":".no.prefetch.landmark","type":"reg","size":1,"offset":6,"chunkDigest":"SUM"}`, "", 0},
		{"a landmark's name elsewhere", toc.Stargz, `{"name":"d/.prefetch.landmark","type":"reg"},{"name":".prefetch.landmark","type":"dir"}`,
			"d/.prefetch.landmark|.prefetch.landmark", 0},
		{"explicit end", toc.Podman, `{"name":"a","type":"reg","size":5,"offset":10,"endOffset":20,"digest":"SUM"}`, "a 0+5=10:20", 0},
		{"holes", toc.Podman, `{"name":"a","type":"reg","size":9,"offset":10,"endOffset":90,"chunkSize":2,"chunkDigest":"SUM"},
			{"type":"chunk","name":"a","offset":30,"chunkOffset":2,"chunkSize":4,"chunkType":"zeros"},
			{"type":"chunk","name":"a","offset":40,"chunkOffset":6,"chunkSize":3,"chunkDigest":"SUM"}`, "a 0+2=10:30 2+4 6+3=40:90", 0},
		{"no landmarks", toc.Podman, `{"name":".prefetch.landmark","type":"reg"}`, ".prefetch.landmark", 0},
		{"paths", toc.Podman, `{"name":"./","type":"dir"},{"name":"/a//b/","type":"dir"}`, "|a/b", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, prefetch, err := read(document(c.entries), c.dialect, index.Limits{})
			if got := strings.Join(lines, "|"); err != nil || got != c.want || prefetch != c.prefetch {
				t.Errorf("got %q, prefetch %d, %v; want %q, prefetch %d", got, prefetch, err, c.want, c.prefetch)
			}
		})
	}
}

func TestDocuments(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{"version":1,"entries":null}`, ""},
		{`{"entries":[],"more":{"a":[1]},"version":1} `, ""},
		{``, "unexpected EOF"},
		{`[]`, `where "{" should be`},
		{`{"version":1`, "unexpected EOF"},
		{`{"version":`, "unexpected EOF"},
		{`{"version":1,"entries":[`, "unexpected EOF"},
		{`{"version":1,"entries":[{"name":"a","type":"dir"}`, "unexpected EOF"},
		{`{"version":1,"entries":[{"name":"a","type":"dir"},`, "unexpected EOF"},
		{`{"version":1,"entries":{}}`, "not a list"},
		{`{"version":2,"entries":[]}`, "version 2"},
		{`{"entries":[]}`, "version 0"},
		{`{"version":1,"entries":[],"entries":[]}`, "entries twice"},
		{`{"version":1,"entries":[]}{}`, "more data"},
		{`{"version":1,"entries":[]}x`, "invalid character"},
		{`{"version":1,"entries":[{"name":1}]}`, "cannot unmarshal"},
		{`{"version":1,"x":"` + strings.Repeat("x", 1<<20) + `"}`, "value of more than"},
		{`{"version":1,` + strings.Repeat(" ", 1<<20) + `"x":1}`, "value of more than"},
		{document(`{"name":"` + strings.Repeat("x", 1<<20) + `"}`), "value of more than"},
	} {
		_, _, err := read(c.text, toc.Podman, index.Limits{})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.60s: got %v, want ...%s...", c.text, err, c.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct {
		dialect toc.Dialect
		entries string
		want    string
		is      error
	}{
		{toc.Stargz, `{"name":"a","type":"socket"}`, `entry "a": unknown type "socket"`, nil},
		{toc.Stargz, `{"name":"a/../b","type":"dir"}`, `".." in a path`, nil},
		{toc.Stargz, `{"name":"a\u0000","type":"dir"}`, `NUL in`, nil},
		{toc.Stargz, `{"name":"a\ufffd","type":"dir"}`, `not UTF-8`, index.ErrNotLazy},
		{toc.Stargz, "{\"name\":\"a\xff\",\"type\":\"dir\"}", `not UTF-8`, index.ErrNotLazy},
		{toc.Stargz, `{"name":"` + strings.Repeat("a/", 2049) + `","type":"dir"}`, `4098 bytes`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"hardlink","linkName":"../b"}`, `link target: ".."`, nil},
		{toc.Stargz, `{"name":"a","type":"symlink","linkName":"b\u0000"}`, `link target: NUL`, nil},
		{toc.Stargz, `{"name":"a","type":"symlink","linkName":"` + strings.Repeat("x", 4096) + `"}`, `link target`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"dir","uid":-1}`, `uid -1 is not in`, nil},
		{toc.Stargz, `{"name":"a","type":"dir","gid":4294967295}`, `gid 4294967295 is not in`, nil},
		{toc.Stargz, `{"name":"a","type":"char","devMajor":4096}`, `device major 4096`, nil},
		{toc.Stargz, `{"name":"a","type":"block","devMinor":1048576}`, `device minor 1048576`, nil},
		{toc.Stargz, `{"name":"a","type":"dir","modtime":"yesterday"}`, `modification time "yesterday"`, nil},
		{toc.Stargz, `{"name":"a","type":"dir","xattrs":{"user.` + strings.Repeat("x", 251) + `":""}}`, `extended attribute`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"dir","xattrs":{"user.x":"` + strings.Repeat("AAAA", 21846) + `"}}`, `value of 65538 bytes`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"reg","size":-1}`, `size -1`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"reg","size":2199023255553}`, `size 2199023255553`, index.ErrLimit},
		{toc.Stargz, `{"type":"chunk"}`, `chunk without a file`, nil},
		{toc.Stargz, `{"name":"a","type":"dir"},{"type":"chunk"}`, `chunk without a file`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1}`, `no digest`, index.ErrNotLazy},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":4,"digest":"SUM"}`, `no digest`, index.ErrNotLazy},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkDigest":"md5:00"}`, `not a SHA-256 digest`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkDigest":"sha256:` + strings.Repeat("x", 64) + `"}`, `not a SHA-256 digest`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":4,"chunkDigest":"SUM"}`, `chunks of 4 bytes together, size is 5`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":6,"chunkDigest":"SUM"}`, `6 bytes at 0, in a file of 5`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":-1,"chunkDigest":"SUM"}`, `-1 bytes at 0`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkOffset":1,"chunkDigest":"SUM"}`, `at 1, in a file of 5`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkDigest":"SUM"},{"type":"chunk","chunkOffset":5}`, `chunk at 5`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":3,"chunkDigest":"SUM"},{"type":"chunk","name":"b"}`, `a chunk of "b"`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":-1,"chunkDigest":"SUM"}`, `data at -1 of`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":1000,"chunkDigest":"SUM"}`, `of which 1000 bytes have data`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"offset":9,"chunkDigest":"SUM"},{"name":"b","type":"reg","size":5,"offset":8,"chunkDigest":"SUM"}`,
			`entry "b": chunk at 0: its data begin at 8, before`, nil},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"innerOffset":-1,"chunkDigest":"SUM"}`, `inner offset -1`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"reg","size":5,"innerOffset":300000000,"chunkDigest":"SUM"}`, `inner offset 300000000`, index.ErrLimit},
		{toc.Stargz, `{"name":"a","type":"reg","size":67108865,"chunkDigest":"SUM"}`, `67108865 bytes, allowed are`, index.ErrLimit},
		{toc.Podman, `{"name":"a","type":"reg","size":5,"offset":9,"endOffset":9,"digest":"SUM"}`, `bytes 9 to 9`, nil},
		{toc.Podman, `{"name":"a","type":"reg","size":5,"offset":9,"endOffset":1001,"digest":"SUM"}`, `bytes 9 to 1001`, nil},
		{toc.Podman, `{"name":"a","type":"reg","size":5,"offset":-9,"endOffset":9,"digest":"SUM"}`, `data at -9 of`, nil},
		{toc.Podman, `{"name":"a","type":"reg","size":5,"chunkType":"ones"}`, `unknown chunk type "ones"`, nil},
	} {
		_, _, err := read(document(c.entries), c.dialect, index.Limits{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.120s:\n got %v\nwant ...%s...", c.entries, err, c.want)
		} else if c.is != nil && !errors.Is(err, c.is) || c.is == nil && (errors.Is(err, index.ErrNotLazy) || errors.Is(err, index.ErrLimit)) {
			t.Errorf("%.120s: %v is of the wrong kind", c.entries, err)
		}
	}
}

func TestLimits(t *testing.T) {
	const two = `{"name":"a","type":"reg","size":5,"offset":9,"endOffset":90,"digest":"SUM"},{"name":"b","type":"dir"}`
	for _, c := range []struct {
		limits index.Limits
		want   string
	}{
		{index.Limits{Entries: 2, FileBytes: 5, ExtentBytes: 5, RangeBytes: 81}, ""},
		{index.Limits{Entries: 1}, "more than 1 entries"},
		{index.Limits{FileBytes: 4}, "size 5"},
		{index.Limits{ExtentBytes: 4}, "5 bytes, allowed are 4"},
		{index.Limits{RangeBytes: 80}, "allowed are 80 bytes"},
	} {
		_, _, err := read(document(two), toc.Podman, c.limits)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, index.ErrLimit) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: got %v, want ...%s...", c.limits, err, c.want)
		}
	}
	// In this dialect the length of the range is known only when the next one begins.
	const shared = `{"name":"a","type":"reg","size":5,"offset":9,"chunkDigest":"SUM"},{"name":"b","type":"reg","size":5,"offset":90,"chunkDigest":"SUM"}`
	_, _, err := read(document(shared), toc.Stargz, index.Limits{RangeBytes: 80})
	if !errors.Is(err, index.ErrLimit) || !strings.Contains(err.Error(), `begins with "a"`) {
		t.Errorf("got %v", err)
	}
}

// TestWaitingIsBounded: the end of a file's data may be known a million entries later.
func TestWaitingIsBounded(t *testing.T) {
	entries := `{"name":"a","type":"reg","size":5,"offset":9,"chunkDigest":"SUM"}` + strings.Repeat(`,{"name":"b","type":"dir"}`, 200_000)
	if _, _, err := read(document(entries), toc.Stargz, index.Limits{}); !errors.Is(err, index.ErrLimit) {
		t.Errorf("got %v", err)
	}
}
