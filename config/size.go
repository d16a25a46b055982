package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes that is written as a string with a binary unit, such as "512MiB" or "2TiB".
type Size struct{ Bytes int64 }

// sizeUnits are the units from the largest to the smallest.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// UnmarshalText parses a whole number followed by B, KiB, MiB, GiB or TiB.
func (s *Size) UnmarshalText(text []byte) error {
	for _, unit := range sizeUnits {
		number, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if errors.Is(err, strconv.ErrRange) || n > math.MaxInt64/unit.bytes {
			return fmt.Errorf("%q is too large", text)
		}
		if err != nil || n < 0 {
			break
		}
		s.Bytes = n * unit.bytes
		return nil
	}
	return fmt.Errorf(`%q is not a size, write for example "512MiB" or "2TiB"`, text)
}

// MarshalText is the inverse of UnmarshalText.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String uses the largest unit that loses nothing.
func (s Size) String() string {
	for _, unit := range sizeUnits {
		if s.Bytes%unit.bytes == 0 && s.Bytes != 0 {
			return fmt.Sprintf("%d%s", s.Bytes/unit.bytes, unit.name)
		}
	}
	return "0B"
}
