package fanotify

import (
	"slices"
	"testing"
)

const sampleFdinfo = "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t1057\nfanotify flags:3b event-flags:88000\n" +
	"fanotify ino:4f969 sdev:800013 mflags:0 mask:100000 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:69f90400c275b5b4\n"

func TestParseMarks(t *testing.T) {
	for _, c := range []struct {
		text string
		want []uint64
		ok   bool
	}{
		{sampleFdinfo, []uint64{0x4f969}, true},
		{"fanotify flags:3b event-flags:88000\n", nil, true},
		{"pos:\t0\nflags:\t02\nino:\t1057\n", nil, false},
		{"fanotify flags:3b\nfanotify ino:xyz sdev:1\n", nil, false},
		{"fanotify flags:3b\nfanotify sdev:800013 mflags:0 mask:1\n", nil, true},
		{"", nil, false},
	} {
		got, err := parseMarks(c.text)
		if !slices.Equal(got, c.want) || (err == nil) != c.ok {
			t.Errorf("%q: got %v, %v", c.text, got, err)
		}
	}
}

func FuzzParseMarks(f *testing.F) {
	f.Add(sampleFdinfo)
	f.Fuzz(func(t *testing.T, text string) {
		if inodes, err := parseMarks(text); err != nil && inodes != nil {
			t.Errorf("%v with %v", inodes, err)
		}
	})
}
