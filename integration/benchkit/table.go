package benchkit

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// Table is a CSV file with the raw values. Each row is in the file when Write returns: an interrupted benchmark keeps what it has.
type Table struct {
	file *os.File
	csv  *csv.Writer
}

// NewTable makes a table with a header.
func NewTable(path string, header []string) (*Table, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	t := &Table{file: f, csv: csv.NewWriter(f)}
	if err := t.Write(header); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

// Write adds a row.
func (t *Table) Write(fields []string) error {
	if err := t.csv.Write(fields); err != nil {
		return err
	}
	t.csv.Flush()
	return t.csv.Error()
}

// Close closes the file.
func (t *Table) Close() error { return t.file.Close() }

// Seconds is a duration in a table.
func Seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 4, 64) }

// Megabytes are 10^6 bytes.
func Megabytes(n int64) float64 { return float64(n) / 1e6 }

// WriteRatios ends a printed table, also one without a ratio because one side was not measured.
func WriteRatios(w io.Writer, lines string) {
	if lines != "" {
		lines = "```\n" + lines + "```\n\n"
	}
	fmt.Fprint(w, "\n", lines)
}
