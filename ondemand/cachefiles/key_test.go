package cachefiles

import (
	"math"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	id := strings.Repeat("0a", 32)
	for text, want := range map[string]Key{
		id + ".d0":      {Instance: id},
		id + ".d1000":   {Instance: id, Size: 4096},
		id + ".m2000.1": {Instance: id, Size: 8192, Mount: 1},
		id + ".m7fffffffffffffff.ffffffffffffffff": {Instance: id, Size: math.MaxInt64, Mount: math.MaxUint64},
	} {
		if got, err := ParseKey(text); err != nil || got != want || want.String() != text {
			t.Errorf("%s: got %+v, %v; %+v is %s", text, got, err, want, want)
		}
		if err := CheckID(text); err != nil {
			t.Errorf("%s cannot be an id: %v", text, err)
		}
	}
	for _, bad := range []string{
		"", id, id + ".", id + ".d", id + ".m1", id + ".m1.0", id + ".d1.1", id + ".d01", id + ".d-1", id + ".d+1", id + ".dA", id + ".x1", id[1:] + ".d1",
		strings.ToUpper(id) + ".d1", id + ".d8000000000000000", id + ".m1.1.1", id + ".m1.1 ",
	} {
		if k, err := ParseKey(bad); err == nil {
			t.Errorf("%q: got %+v", bad, k)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(strings.Repeat("0a", 32) + ".m2000.1")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Errorf("%q became %q", s, k)
		}
	})
}
