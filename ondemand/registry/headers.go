package registry

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// unknownTotal is the total of a Content-Range that ends in "/*".
const unknownTotal = -1

// contentRange is the Content-Range of an answer 206: bytes [first, end) of total.
type contentRange struct {
	first, end, total int64
}

// parseContentRange reads "bytes 0-99/1234" (RFC 9110, 14.4). The result is consistent: 0 <= first < end <= total if that is known.
func parseContentRange(s string) (contentRange, error) {
	bad := fmt.Errorf("unusable Content-Range %.60q", s)
	unit, rest, _ := strings.Cut(s, " ")
	interval, size, found := strings.Cut(rest, "/")
	from, to, found2 := strings.Cut(interval, "-")
	if !found || !found2 || !strings.EqualFold(unit, "bytes") {
		return contentRange{}, bad
	}
	first, err := parseDigits(from)
	if err != nil {
		return contentRange{}, bad
	}
	last, err := parseDigits(to)
	if err != nil {
		return contentRange{}, bad
	}
	total := int64(unknownTotal)
	if size != "*" {
		if total, err = parseDigits(size); err != nil || last >= total {
			return contentRange{}, bad
		}
	}
	if last < first || last+1 < 0 {
		return contentRange{}, bad
	}
	return contentRange{first: first, end: last + 1, total: total}, nil
}

// parseDigits reads a number that is not negative, without sign or spaces.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// retryAfter returns how long a host asks to be left alone: a number of seconds or a date, 0 if it does not say, at most limit.
func retryAfter(h http.Header, now time.Time, limit time.Duration) time.Duration {
	s := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := parseDigits(s); err == nil {
		if seconds > int64(limit/time.Second) {
			return limit
		}
		return time.Duration(seconds) * time.Second
	}
	date, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return max(0, min(limit, date.Sub(now)))
}
