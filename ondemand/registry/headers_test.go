package registry

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-0/1":                   {0, 1, 1},
		"Bytes 5-9/20":                  {5, 10, 20},
		"bytes 5-9/*":                   {5, 10, unknownTotal},
		"bytes 0-0/0":                   {},
		"bytes 5-4/20":                  {},
		"bytes 5-20/20":                 {},
		"bytes */20":                    {},
		"bytes -5-9/20":                 {},
		"bytes +5-9/20":                 {},
		"bytes 5-9":                     {},
		"bytes=5-9/20":                  {},
		"lines 5-9/20":                  {},
		"bytes 5-9/20/30":               {},
		"":                              {},
		"bytes 0-9223372036854775807/*": {},
	} {
		got, err := parseContentRange(s)
		if got != want || (err == nil) != (want != contentRange{}) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/100")
	f.Add("bytes 9223372036854775807-9223372036854775807/*")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err == nil && (r.first < 0 || r.end <= r.first || r.total != unknownTotal && r.end > r.total) {
			t.Errorf("%q gives %+v", s, r)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"100":                           time.Minute,
		"9223372036854775807":           time.Minute,
		"-7":                            0,
		"soon":                          0,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
		"Fri, 02 Jan 2099 03:04:00 GMT": time.Minute,
	} {
		if got := retryAfter(http.Header{"Retry-After": {s}}, now, time.Minute); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Fri, 02 Jan 2026 03:04:15 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if got := retryAfter(http.Header{"Retry-After": {s}}, time.Unix(0, 0), time.Minute); got < 0 || got > time.Minute {
			t.Errorf("%q gives %v", s, got)
		}
	})
}

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		"nothing here": "nothing here",
		"get https://h/p?X-Amz-Signature=s: timeout": "get https://h/p timeout",
		`Get "https://u:p@h:5000/p?s#f": EOF`:        `Get "https://h:5000/p": EOF`,
		"http://u:p@s@h/p":                           "http://h/p",
		"two http://a/?x http://b/#y":                "two http://a/ http://b/",
	} {
		if got := redact(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("user", "secret")
	f.Fuzz(func(t *testing.T, user, secret string) {
		secret = "hunter2" + secret
		u := url.URL{Scheme: "https", Host: "example", Path: "/p", User: url.UserPassword(user, secret), RawQuery: url.Values{user: {secret}}.Encode()}
		if got := redact("Get \"" + u.String() + "\": broken"); strings.Contains(got, "hunter2") || !strings.Contains(got, "https://example/p") {
			t.Errorf("%q", got)
		}
	})
}

func TestScrubHidesTheAddress(t *testing.T) {
	err := scrub(&url.Error{Op: "Get", URL: "https://h/p?signature=1", Err: context.Canceled})
	var hidden *url.Error
	if errors.As(err, &hidden) || strings.Contains(err.Error(), "signature") || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
