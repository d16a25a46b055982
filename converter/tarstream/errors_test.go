package tarstream

import (
	"bytes"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

func TestErrors(t *testing.T) {
	records := func(r ...string) func(b *tartest.Builder) {
		return func(b *tartest.Builder) {
			b.PAX(r...)
			b.Entry(regular("f"), []byte("data"))
		}
	}
	raw := func(payload string) func(b *tartest.Builder) {
		return func(b *tartest.Builder) {
			b.Entry(tartest.Header{Type: 'x'}, []byte(payload))
			b.Entry(regular("f"), nil)
		}
	}
	header := func(f func(h *tartest.Header)) func(b *tartest.Builder) {
		return func(b *tartest.Builder) {
			h := regular("f")
			f(&h)
			b.Header(h)
		}
	}
	edit := func(at int, text string) func(b *tartest.Builder) {
		return header(func(h *tartest.Header) { h.Edit = func(b []byte) { copy(b[at:], text) } })
	}
	for name, tt := range map[string]struct {
		build func(b *tartest.Builder)
		err   error
		text  string // part of the message
	}{
		"checksum":         {header(func(h *tartest.Header) { h.Sum = tartest.Wrong }), ErrHeader, "checksum"},
		"unknown type":     {header(func(h *tartest.Header) { h.Type = 'Q' }), ErrHeader, "'Q'"},
		"multi-volume":     {header(func(h *tartest.Header) { h.Type = 'M' }), ErrHeader, "'M'"},
		"old long names":   {header(func(h *tartest.Header) { h.Type = 'N' }), ErrHeader, "'N'"},
		"mode":             {edit(100, "rwxr-xr"), ErrHeader, "mode"},
		"size":             {edit(124, "1234567x901"), ErrHeader, "size"},
		"size, two words":  {edit(124, "12345 78901"), ErrHeader, "size"},
		"negative size":    {header(func(h *tartest.Header) { h.Size = -1 }), ErrHeader, "size -1"},
		"huge size":        {header(func(h *tartest.Header) { h.Size = math.MaxInt64 }), ErrLimit, "9223372036854775807 bytes"},
		"size of 70 bits":  {edit(124, "\x80\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), ErrHeader, "64 bits"},
		"size of 64 bits":  {edit(124, "\x80\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"), ErrHeader, "64 bits"},
		"negative uid":     {header(func(h *tartest.Header) { h.UID = -1 }), ErrHeader, "uid -1"},
		"uid 2^32-1":       {header(func(h *tartest.Header) { h.UID = math.MaxUint32 }), ErrHeader, "uid 4294967295"},
		"gid 2^32-1":       {records("gid", "4294967295"), ErrHeader, "gid 4294967295"},
		"major":            {header(func(h *tartest.Header) { h.Type, h.Devmajor = '3', 4096 }), ErrHeader, "major 4096"},
		"minor":            {header(func(h *tartest.Header) { h.Type, h.Devminor = '4', 1<<20 }), ErrHeader, "minor 1048576"},
		"PAX negative uid": {records("uid", "-1"), ErrHeader, "uid"},
		"PAX mtime":        {records("mtime", "yesterday"), ErrHeader, "mtime"},
		"PAX size":         {records("size", "9223372036854775808"), ErrHeader, "too large"},
		"PAX huge size":    {records("size", "9223372036854775807"), ErrLimit, "9223372036854775807 bytes"},
		"NUL in path":      {records("path", "a\x00b"), ErrHeader, "NUL"},
		"NUL in linkpath":  {records("linkpath", "a\x00b"), ErrHeader, "NUL"},
		"NUL in key":       {records("a\x00b", "v"), ErrHeader, "bad PAX record"},
		"NUL in long name": {func(b *tartest.Builder) { b.LongName("a\x00b"); b.Entry(regular("f"), nil) }, ErrHeader, "NUL"},
		"no length":        {raw("path=x\n"), ErrHeader, "bad PAX record"},
		"length only":      {raw("17"), ErrHeader, "bad PAX record"},
		"short length":     {raw("3 a=b\n"), ErrHeader, "bad PAX record"},
		"long length":      {raw("99 a=b\n"), ErrHeader, "bad PAX record"},
		"absurd length":    {raw("99999999999999999999 a=b\n"), ErrHeader, "bad PAX record"},
		"negative length":  {raw("-6 a=b\n"), ErrHeader, "bad PAX record"},
		"no key":           {raw("6 =bc\n"), ErrHeader, "bad PAX record"},
		"no equals sign":   {raw("6 abc\n"), ErrHeader, "bad PAX record"},
		"zeros after":      {raw("6 a=b\n\x00\x00"), ErrHeader, "bad PAX record"},
		"global path":      {func(b *tartest.Builder) { b.Global("path", "x") }, ErrHeader, `"path" in a global`},
		"global size":      {func(b *tartest.Builder) { b.Global("size", "1") }, ErrHeader, `"size" in a global`},
		"global xattr":     {func(b *tartest.Builder) { b.Global("SCHILY.xattr.user.a", "1") }, ErrHeader, "in a global"},
		"global map":       {func(b *tartest.Builder) { b.Global("GNU.sparse.map", "1") }, ErrHeader, "in a global"},
		"xattr name":       {records("SCHILY.xattr.", "x"), ErrHeader, "name"},
		"LIBARCHIVE value": {records("LIBARCHIVE.xattr.user.a", "!"), ErrHeader, "LIBARCHIVE.xattr.user.a"},
		"LIBARCHIVE name":  {records("LIBARCHIVE.xattr.user.%4", "YQ"), ErrHeader, "escape"},
		"LIBARCHIVE NUL":   {records("LIBARCHIVE.xattr.user.%00", "YQ"), ErrHeader, "name"},
		"large PAX header": {records("comment", strings.Repeat("x", 1<<20)), ErrLimit, "extension header"},
		"large long name":  {func(b *tartest.Builder) { b.LongName(strings.Repeat("x", 1<<20)) }, ErrLimit, "extension header"},
		"PAX for a volume": {func(b *tartest.Builder) { b.PAX("a", "b"); b.Header(tartest.Header{Type: 'V'}) }, ErrHeader, "volume label"},
		"negative payload": {func(b *tartest.Builder) { b.Header(tartest.Header{Type: 'x', Size: -1}) }, ErrHeader, "size -1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(bytes.NewReader(build(tt.build)), Limits{})
			_, err := r.Next()
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			if _, again := r.Next(); again != err {
				t.Errorf("the error does not stay: %v, then %v", err, again)
			}
		})
	}
}

// TestCurrent names the entry in which an error occurred.
func TestCurrent(t *testing.T) {
	var b tartest.Builder
	b.Entry(regular("first"), make([]byte, 100))
	at := int64(b.Len())
	b.PAX("path", "second")
	h := regular("x")
	h.UID = -1
	b.Header(h)
	r := NewReader(bytes.NewReader(b.Bytes()), Limits{})
	var err error
	for err == nil {
		_, err = r.Next()
	}
	if name, offset := r.Current(); name != "second" || offset != at {
		t.Errorf("got %q, %d, want %q, %d (%v)", name, offset, "second", at, err)
	}

	r = NewReader(bytes.NewReader(b.Bytes()[:550]), Limits{})
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	_, err = r.Next()
	if name, offset := r.Current(); name != "first" || offset != 0 || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "550") {
		t.Errorf("got %q, %d, %v", name, offset, err)
	}
}

// TestMemory feeds streams that announce or contain much, and looks at how much memory that takes.
func TestMemory(t *testing.T) {
	endless := func(block []byte) io.Reader { return io.LimitReader(&repeating{block: block}, 256<<20) }
	var old tartest.Builder
	h := regular("f")
	h.Edit = func(b []byte) { b[482] = 1 }
	old.SparseOld(h, 1000, nil, nil)
	empty := make([]byte, 512) // an extension block without segments
	empty[504] = 1
	full := bytes.Repeat(append([]byte("0000000000\x00\x00"), make([]byte, 12)...), 21) // 21 segments of nothing
	for i := range 21 {
		copy(full[24*i+12:], "0")
	}
	full = append(full, 1, 0, 0, 0, 0, 0, 0, 0)
	var pax tartest.Builder
	pax.PAX("uid", "1")
	var huge tartest.Builder
	huge.Header(tartest.Header{Type: 'x', Size: 1 << 20})
	for name, in := range map[string]io.Reader{
		"empty extension blocks": io.MultiReader(bytes.NewReader(old.Bytes()), endless(empty)),
		"full extension blocks":  io.MultiReader(bytes.NewReader(old.Bytes()), endless(full)),
		"PAX headers":            endless(pax.Bytes()),
		"announced payload":      bytes.NewReader(huge.Bytes()),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := NewReader(in, Limits{SparseSegments: 1000}).Next()
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Error("no error")
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("%d bytes allocated (%v)", used, err)
			}
		})
	}
}

// repeating is a stream of the same bytes over and over.
type repeating struct {
	block []byte
	at    int
}

func (r *repeating) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := copy(p[n:], r.block[r.at:])
		n += c
		r.at = (r.at + c) % len(r.block)
	}
	return n, nil
}
