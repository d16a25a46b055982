package main

import (
	"fmt"
	"slices"
)

// summary is what the tables show of repeated measurements.
type summary struct {
	n                int
	median, min, max float64
}

// summarize returns the zero summary for no values. The median of an even number of values is the mean of the middle two.
func summarize(values []float64) summary {
	n := len(values)
	if n == 0 {
		return summary{}
	}
	v := slices.Sorted(slices.Values(values))
	return summary{n: n, median: (v[(n-1)/2] + v[n/2]) / 2, min: v[0], max: v[n-1]}
}

// summarizeOf is summarize of one field.
func summarizeOf[T any](rows []T, field func(T) float64) summary {
	values := make([]float64, len(rows))
	for i, r := range rows {
		values[i] = field(r)
	}
	return summarize(values)
}

// String is "median (min-max)", or only the value if there is one, or "-".
func (s summary) String() string {
	switch s.n {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf("%.2f", s.median)
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", s.median, s.min, s.max)
}

// ratioLine is "ratio NAME VALUE" with the quotient of the medians, or "" when one side is missing. Programs read these lines.
func ratioLine(name string, ours, theirs summary) string {
	if ours.n == 0 || theirs.n == 0 || theirs.median <= 0 {
		return ""
	}
	return fmt.Sprintf("ratio %s %.2f\n", name, ours.median/theirs.median)
}

// byKey groups rows, in the order of their first appearance.
func byKey[K comparable, T any](rows []T, key func(T) K) ([]K, map[K][]T) {
	var order []K
	groups := map[K][]T{}
	for _, r := range rows {
		k := key(r)
		if _, ok := groups[k]; !ok {
			order = append(order, k)
		}
		groups[k] = append(groups[k], r)
	}
	return order, groups
}

// rotated returns list with the first element moved to position -n, so that no peer always follows the same other.
func rotated[T any](list []T, n int) []T {
	n %= len(list)
	return slices.Concat(list[n:], list[:n])
}
