package benchkit

import (
	"maps"
	"slices"
	"testing"
)

func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Summary
		text   string
	}{
		{nil, Summary{}, "-"},
		{[]float64{1.5}, Summary{1, 1.5, 1.5, 1.5}, "1.50"},
		{[]float64{4, 1}, Summary{2, 2.5, 1, 4}, "2.50 (1.00-4.00)"},
		{[]float64{9, 1, 2}, Summary{3, 2, 1, 9}, "2.00 (1.00-9.00)"},
		{[]float64{8, 2, 4, 1}, Summary{4, 3, 1, 8}, "3.00 (1.00-8.00)"},
	} {
		before := slices.Clone(c.values)
		got := Summarize(c.values)
		if got != c.want || got.String() != c.text {
			t.Errorf("summary of %v is %+v, %q; want %+v, %q", c.values, got, got, c.want, c.text)
		}
		if !slices.Equal(before, c.values) {
			t.Errorf("Summarize changed %v to %v", before, c.values)
		}
	}
}

func TestRatioLine(t *testing.T) {
	one, none := Summarize([]float64{1}), Summary{}
	for _, c := range []struct {
		dividend, divisor Summary
		want              string
	}{
		{Summarize([]float64{1, 2, 9}), Summarize([]float64{4, 3, 5}), "ratio a/b:c 0.50\n"},
		{none, one, ""},
		{one, none, ""},
		{one, Summarize([]float64{0}), ""},
	} {
		if got := RatioLine("a/b:c", c.dividend, c.divisor); got != c.want {
			t.Errorf("ratio of %v and %v is %q, want %q", c.dividend, c.divisor, got, c.want)
		}
	}
}

func TestByKey(t *testing.T) {
	order, groups := ByKey([]int{5, 2, 7, 4}, func(n int) bool { return n%2 == 1 })
	if !slices.Equal(order, []bool{true, false}) {
		t.Errorf("order is %v, want odd numbers first, as in the input", order)
	}
	want := map[bool][]int{true: {5, 7}, false: {2, 4}}
	if !maps.EqualFunc(groups, want, slices.Equal) {
		t.Errorf("groups are %v, want %v", groups, want)
	}
}

// TestRotated shows that over as many rounds as there are elements each is in each place once.
func TestRotated(t *testing.T) {
	list := []string{"a", "b", "c"}
	var got []string
	for n := range 4 {
		got = append(got, Rotated(list, n)...)
	}
	if want := []string{"a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("rounds are %v, want %v", got, want)
	}
}
