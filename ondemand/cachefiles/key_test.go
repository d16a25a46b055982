package cachefiles

import (
	"math"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	id := strings.Repeat("0a", 32)
	for text, want := range map[string]Key{
		"d." + id + ".0":     {Instance: id},
		"d." + id + ".1000":  {Instance: id, Size: 4096},
		"m1." + id + ".2000": {Instance: id, Size: 8192, Mount: 1},
		"mffffffffffffffff." + id + ".7fffffffffffffff": {Instance: id, Size: math.MaxInt64, Mount: math.MaxUint64},
	} {
		if got, err := ParseKey(text); err != nil || got != want || want.String() != text {
			t.Errorf("%s: got %+v, %v; %+v is %s", text, got, err, want, want)
		}
		if err := CheckID(text); err != nil {
			t.Errorf("%s cannot be an id: %v", text, err)
		}
	}
	for _, bad := range []string{
		"", id, "d", "d.", "d." + id, "d." + id + ".", "m." + id + ".1", "m0." + id + ".1", "m1." + id, "d1." + id + ".1", "d." + id + ".01",
		"d." + id + ".-1", "d." + id + ".+1", "d." + id + ".A", "x." + id + ".1", "d." + id[1:] + ".1", "d." + strings.ToUpper(id) + ".1",
		"d." + id + ".8000000000000000", "m1." + id + ".1.1", "m1." + id + ".1 ", "m01." + id + ".1", "m10000000000000000." + id + ".1", "." + id + ".1",
	} {
		if k, err := ParseKey(bad); err == nil {
			t.Errorf("%q: got %+v", bad, k)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("m1." + strings.Repeat("0a", 32) + ".2000")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Errorf("%q became %q", s, k)
		}
	})
}

func TestListed(t *testing.T) {
	id := strings.Repeat("0a", 32)
	domain := strings.Repeat("x", DomainMost)
	name := func(mount uint64) string { return domain + "," + Key{Instance: id, Size: 4096, Mount: mount}.String() }
	for entry, want := range map[string]string{
		name(1):                           id,
		name(math.MaxUint64):              id,
		name(1)[:listedMost]:              id[:23],
		name(math.MaxUint64)[:listedMost]: id[:8],
	} {
		if got, ok := Listed(entry, domain); got != want || !ok {
			t.Errorf("%s: %q, %t", entry, got, ok)
		}
	}
	for _, entry := range []string{"", "features", "254:1", domain, domain + ",", domain + ",d." + id + ".1", domain + ",m." + id + ".1",
		domain + ",mx." + id + ".1", domain + ",m1", "y" + name(1), domain + "x,m1." + id + ".1"} {
		if got, ok := Listed(entry, domain); ok {
			t.Errorf("%s: %q", entry, got)
		}
	}
}

func FuzzListed(f *testing.F) {
	f.Add("domain,m1."+strings.Repeat("0a", 32)+".1000", "domain")
	f.Fuzz(func(t *testing.T, entry, domain string) {
		if id, ok := Listed(entry, domain); ok && (!strings.HasPrefix(entry, domain+",m") || !strings.Contains(entry, "."+id)) {
			t.Errorf("%q of %q is %q", entry, domain, id)
		}
	})
}
