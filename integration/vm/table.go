package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// tableMark is the line before the table of stories in docs/kernels.md.
const tableMark = "<!-- Stories: written by make test-vm. -->"

// table is one of Markdown whose first column names the rows.
type table struct {
	columns, rows []string
	cells         map[[2]string]string // by row and column
}

// parseTable reads what String wrote.
func parseTable(text string) table {
	t := table{cells: map[[2]string]string{}}
	for n, line := range strings.Split(strings.TrimSpace(text), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case n == 0 && len(cells) > 1:
			t.columns = cells[1:]
		case n > 1 && len(cells) > 1:
			t.rows = append(t.rows, cells[0])
			for i, c := range cells[1:min(len(cells), len(t.columns)+1)] {
				t.cells[[2]string{cells[0], t.columns[i]}] = c
			}
		}
	}
	return t
}

func (t *table) set(row, column, cell string) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if !slices.Contains(t.columns, column) {
		t.columns = append(t.columns, column)
	}
	t.cells[[2]string{row, column}] = cell
}

// sort puts rows and columns in the order of the lists; what these do not name is left out.
func (t *table) sort(rows, columns []string) {
	t.rows, t.columns = inOrder(t.rows, rows), inOrder(t.columns, columns)
}

func inOrder(names, order []string) []string {
	return slices.DeleteFunc(slices.Clone(order), func(n string) bool { return !slices.Contains(names, n) })
}

func (t table) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "| | %s |\n|---|%s\n", strings.Join(t.columns, " | "), strings.Repeat("---|", len(t.columns)))
	for _, row := range t.rows {
		fmt.Fprintf(&s, "| %s |", row)
		for _, column := range t.columns {
			fmt.Fprintf(&s, " %s |", t.cells[[2]string{row, column}])
		}
		fmt.Fprintln(&s)
	}
	return s.String()
}

// Rows of the table besides the stories.
const (
	rowDate    = "date"
	rowRelease = "kernel"
	rowChoice  = "`check`: mounts; on demand"
)

// record writes a run's results into its column of the table in a file. Stories that did not run keep what stands there.
func (r run) record(file string, o outcome) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), tableMark+"\n")
	if !ok {
		return fmt.Errorf("%s has no line %q", file, tableMark)
	}
	after := rest
	for strings.HasPrefix(after, "|") {
		_, after, _ = strings.Cut(after, "\n")
	}
	t := parseTable(strings.TrimSuffix(rest, after))
	t.set(rowDate, r.name(), time.Now().Format(time.DateOnly))
	t.set(rowRelease, r.name(), o.release)
	t.set(rowChoice, r.name(), choice(o.printed[checkName]))
	for i, s := range r.stories {
		t.set(s.name, r.name(), r.result(o, i))
	}
	t.sort(allRows(), allColumns())
	return os.WriteFile(file, []byte(before+tableMark+"\n"+t.String()+after), 0o644)
}

func allRows() []string {
	rows := []string{rowDate, rowRelease, rowChoice}
	for _, s := range allStories {
		rows = append(rows, s.name)
	}
	return rows
}

func allColumns() (columns []string) {
	for _, k := range kernels {
		for _, m := range modes {
			columns = append(columns, run{kernel: k, mode: m}.name())
		}
	}
	return columns
}
