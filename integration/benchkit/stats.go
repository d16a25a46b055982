package benchkit

import (
	"fmt"
	"slices"
	"time"
)

// Summary is what the tables show of repeated measurements.
type Summary struct {
	N                int
	Median, Min, Max float64
}

// Summarize returns the zero summary for no values. The median of an even number of values is the mean of the middle two.
func Summarize(values []float64) Summary {
	n := len(values)
	if n == 0 {
		return Summary{}
	}
	v := slices.Sorted(slices.Values(values))
	return Summary{N: n, Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// SummarizeOf is Summarize of one field.
func SummarizeOf[T any](rows []T, field func(T) float64) Summary {
	values := make([]float64, len(rows))
	for i, r := range rows {
		values[i] = field(r)
	}
	return Summarize(values)
}

// Times is the summary of a duration in seconds.
func Times[T any](rows []T, field func(T) time.Duration) Summary {
	return SummarizeOf(rows, func(r T) float64 { return field(r).Seconds() })
}

// String is "median (min-max)", or only the value if there is one, or "-".
func (s Summary) String() string {
	switch s.N {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf("%.2f", s.Median)
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", s.Median, s.Min, s.Max)
}

// RatioLine is "ratio NAME VALUE" with the quotient of the medians, or "" when one side is missing. Programs read these lines.
func RatioLine(name string, dividend, divisor Summary) string {
	if dividend.N == 0 || divisor.N == 0 || divisor.Median <= 0 {
		return ""
	}
	return fmt.Sprintf("ratio %s %.2f\n", name, dividend.Median/divisor.Median)
}

// ByKey groups rows, in the order of their first appearance.
func ByKey[K comparable, T any](rows []T, key func(T) K) ([]K, map[K][]T) {
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

// Rotated returns list with the first element moved to position -n, so that no peer always follows the same other.
func Rotated[T any](list []T, n int) []T {
	n %= len(list)
	return slices.Concat(list[n:], list[:n])
}
