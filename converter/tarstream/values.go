package tarstream

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
)

// paxNumber parses a decimal number that is not negative. No value means that the record is deleted.
func paxNumber(key, value []byte) (int64, error) {
	if len(value) == 0 {
		return absent, nil
	}
	v, err := parseDecimal(value)
	if err != nil {
		return 0, fmt.Errorf("%w: PAX record %q: %w", ErrHeader, key, err)
	}
	return v, nil
}

func parseDecimal(b []byte) (int64, error) {
	if len(b) == 0 {
		return 0, fmt.Errorf("no number")
	}
	var v int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%q is not a decimal number", clip(b))
		}
		if v > (math.MaxInt64-9)/10 && v > (math.MaxInt64-int64(c-'0'))/10 {
			return 0, fmt.Errorf("%q is too large", clip(b))
		}
		v = v*10 + int64(c-'0')
	}
	return v, nil
}

// paxTime parses seconds since 1970 with an optional minus sign and fraction. Digits after the ninth of the fraction are dropped.
func paxTime(value []byte) (Time, error) {
	digits, negative := bytes.CutPrefix(value, []byte("-"))
	whole, fraction, _ := bytes.Cut(digits, []byte("."))
	sec, err := parseDecimal(whole)
	if err != nil {
		return Time{}, fmt.Errorf("%w: PAX record \"mtime\": %w", ErrHeader, err)
	}
	nsec, weight := int64(0), int64(1e8)
	for _, c := range fraction {
		if c < '0' || c > '9' {
			return Time{}, fmt.Errorf("%w: PAX record \"mtime\": %q is not a time", ErrHeader, clip(value))
		}
		nsec += int64(c-'0') * weight
		weight /= 10
	}
	if negative {
		sec = -sec
		if nsec > 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	return Time{Sec: sec, Nsec: uint32(nsec)}, nil
}

// paxName returns a value that is a path.
func paxName(key, value []byte) (string, error) {
	if bytes.IndexByte(value, 0) >= 0 {
		return "", fmt.Errorf("%w: NUL in PAX record %q: %q", ErrHeader, key, clip(value))
	}
	return string(value), nil
}

// clip shortens a value for a message, and copies it, so that the caller's buffer need not be on the heap.
func clip(b []byte) string { return string(b[:min(len(b), 60)]) }

// unescapeSchily undoes what GNU tar does to characters of attribute names that cannot stand in the key of a PAX record.
// It works in place.
func unescapeSchily(b []byte) []byte {
	if bytes.IndexByte(b, '%') < 0 {
		return b
	}
	out := b[:0]
	for i := 0; i < len(b); i++ {
		switch {
		case bytes.HasPrefix(b[i:], []byte("%3D")):
			out, i = append(out, '='), i+2
		case bytes.HasPrefix(b[i:], []byte("%25")):
			out, i = append(out, '%'), i+2
		default:
			out = append(out, b[i])
		}
	}
	return out
}

// unescapeURL decodes %XX in place.
func unescapeURL(b []byte) ([]byte, error) {
	out := b[:0]
	for i := 0; i < len(b); i++ {
		if b[i] != '%' {
			out = append(out, b[i])
			continue
		}
		var c [1]byte
		if len(b)-i < 3 {
			return nil, fmt.Errorf("incomplete escape at its end")
		}
		if _, err := hex.Decode(c[:], b[i+1:i+3]); err != nil {
			return nil, err
		}
		out, i = append(out, c[0]), i+2
	}
	return out, nil
}
