package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Parse reads a configuration. Keys that are not set have their default. The name stands in errors only.
func Parse(name string, text []byte) (Config, error) {
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c)
	if err != nil {
		return Config{}, describe(name, err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// describe turns the decoder's errors into lines of the form "file:line: key: cause".
func describe(name string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var errs []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			errs = append(errs, fmt.Errorf("%s:%d: %s", name, line, describeUnknown(e.Key())))
		}
		return errors.Join(errs...)
	}
	var bad *toml.DecodeError
	if !errors.As(err, &bad) {
		return fmt.Errorf("%s: %w", name, err)
	}
	line, _ := bad.Position()
	cause := strings.TrimPrefix(bad.Error(), "toml: ")
	if key := strings.Join(bad.Key(), "."); key != "" {
		return fmt.Errorf("%s:%d: %s: %s", name, line, key, cause)
	}
	return fmt.Errorf("%s:%d: %s", name, line, cause)
}

func describeUnknown(key toml.Key) string {
	path := strings.Join(key, ".")
	if near := nearest(path, Keys()); near != "" {
		return fmt.Sprintf("unknown key %q, did you mean %q?", path, near)
	}
	return fmt.Sprintf("unknown key %q (`erofs-snapshotter config default` prints all keys)", path)
}

// Keys lists every key of the file in dotted form, tables included.
func Keys() []string { return fieldKeys("", reflect.TypeFor[Config]()) }

func fieldKeys(prefix string, t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		key := prefix + f.Tag.Get("toml")
		keys = append(keys, key)
		if f.Type.Kind() == reflect.Struct && f.Type.Field(0).Tag.Get("toml") != "" { // a table, not a value like Duration
			keys = append(keys, fieldKeys(key+".", f.Type)...)
		}
	}
	return keys
}

// nearest returns the known key that is most like the given one, or "" when none is close. A key in the wrong table is close:
// the same last part is what its author meant.
func nearest(path string, known []string) string {
	last := path[strings.LastIndexByte(path, '.')+1:]
	for _, k := range known {
		if k[strings.LastIndexByte(k, '.')+1:] == last {
			return k
		}
	}
	best, bestDistance := "", 1+len(path)/4
	for _, k := range known {
		// The length alone bounds the distance from below; a key of megabytes is not compared.
		if d := len(path) - len(k); d > bestDistance || -d > bestDistance {
			continue
		}
		if d := editDistance(path, k); d <= bestDistance {
			best, bestDistance = k, d-1
		}
	}
	return best
}

// editDistance counts the insertions, deletions and replacements of bytes that make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := slices.Min([]int{row[j] + 1, row[j+1] + 1, diagonal + cost})
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
