package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Duration is written as a string with units, such as "30s" or "5m". It is a struct because the decoder would store a bare
// number in an integer type without asking.
type Duration struct{ time.Duration }

// UnmarshalText parses what time.ParseDuration accepts.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is not a duration, write for example "30s" or "5m"`, text)
	}
	d.Duration = v
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func oneOf(value string, known ...string) error {
	if !slices.Contains(known, value) {
		return fmt.Errorf("%q is not one of %s", value, strings.Join(known, ", "))
	}
	return nil
}
