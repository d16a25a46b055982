package converter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff/goerofs"
)

// TestLazyIsEager compares what an index gives with what the tar of the same layer gives, in all that the format knows.
func TestLazyIsEager(t *testing.T) {
	archive := oddArchive()
	for _, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			l := format.pack(t, archive)
			made, _ := l.lazily(t)
			eager := scanned(t, l.eagerly(t))
			if len(eager) < 1500 {
				t.Errorf("only %d paths", len(eager))
			}
			compareTrees(t, l, eager, scanned(t, made))
		})
	}
}

// scanned scans an instance with a reader that is not ours.
func scanned(t *testing.T, f files) []treediff.Record {
	t.Helper()
	records, err := goerofs.Scan(t.Context(), f.meta, f.data, 1<<20)
	must(t, err)
	return records
}

// TestLazyIsEagerToTheKernel does the same with the kernel as reader.
func TestLazyIsEagerToTheKernel(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	archive := oddArchive()
	for _, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			l := format.pack(t, archive)
			made, _ := l.lazily(t)
			compareTrees(t, l, mounted(t, l.eagerly(t)), mounted(t, made))
		})
	}
}

// mounted scans an instance while it is mounted.
func mounted(t *testing.T, f files) []treediff.Record {
	t.Helper()
	target, backend := t.TempDir(), file.New(file.Options{Mode: file.Auto})
	must(t, backend.Mount(t.Context(), fsbackend.Image{Meta: f.meta.Name(), Data: f.data.Name()}, target))
	defer func() { must(t, backend.Unmount(context.Background(), target)) }()
	records, err := treediff.Scan(t.Context(), target)
	must(t, err)
	return records
}

// compareTrees forgets of the eager tree what no index of the format can express, and compares.
func compareTrees(t *testing.T, l lazyLayer, eager, lazy []treediff.Record) {
	t.Helper()
	hidden := l.open(t).Hidden
	eager = slices.DeleteFunc(eager, func(r treediff.Record) bool { return slices.Contains(hidden, r.Path) })
	for i := range eager {
		r := &eager[i]
		r.Xattrs = maps.Clone(r.Xattrs)
		maps.DeleteFunc(r.Xattrs, func(name, _ string) bool { return strings.HasPrefix(name, "system.posix_acl_") })
		if l.seconds {
			if r.Mtime.Nsec >= 5e8 {
				r.Mtime.Sec++
			}
			r.Mtime.Nsec = 0
		}
	}
	for i, d := range treediff.Compare(eager, lazy) {
		if i == 20 {
			t.Fatal("and more")
		}
		t.Error(d)
	}
}

// TestCheckTarDelivers fills a data blob by CheckTar, and expects the same bytes as from the extents.
func TestCheckTarDelivers(t *testing.T) {
	archive := oddArchive()
	for _, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			l := format.pack(t, archive)
			want, made := l.lazily(t)
			got := newFiles(t).data
			must(t, got.Truncate(made.DataBytes))
			next := 0
			sums, err := converter.CheckTar(t.Context(), bytes.NewReader(l.blob), l.open(t), converter.Limits{}, func(i int, b []byte) error {
				if i != next || int64(len(b)) != made.Extents[i].Length {
					t.Errorf("extent %d has %d bytes, want extent %d with %d", i, len(b), next, made.Extents[next].Length)
				}
				next++
				_, err := got.WriteAt(b, made.Extents[i].At)
				return err
			})
			must(t, err)
			if next != len(made.Extents) {
				t.Errorf("%d extents, want %d", next, len(made.Extents))
			}
			a, err := io.ReadAll(io.NewSectionReader(want.data, 0, made.DataBytes))
			must(t, err)
			b, err := io.ReadAll(io.NewSectionReader(got, 0, made.DataBytes))
			must(t, err)
			if !bytes.Equal(a, b) {
				t.Error("the data blobs differ")
			}
			f := newFiles(t)
			eager, err := converter.FromTar(t.Context(), bytes.NewReader(l.blob), converter.Target{Meta: f.meta, Data: f.data}, converter.Limits{})
			must(t, err)
			if want := (converter.Sums{Blob: eager.Blob, BlobBytes: eager.BlobBytes, DiffID: eager.DiffID, DiffBytes: eager.DiffBytes}); sums != want {
				t.Errorf("got %+v, want %+v", sums, want)
			}
			if sums.Blob != digest.FromBytes(l.blob) {
				t.Errorf("digest %s", sums.Blob)
			}
		})
	}
}

func TestLazyIsDeterministic(t *testing.T) {
	l := packPodman(t, oddArchive(), 4096)
	var images [2][]byte
	for i := range images {
		f, made := l.lazily(t)
		var err error
		images[i], err = io.ReadAll(io.NewSectionReader(f.meta, 0, made.MetaBytes))
		must(t, err)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two images of the same index differ")
	}
}

// indexOf is an index with the given records.
func indexOf(records ...*index.Record) *index.Index {
	return &index.Index{Format: "test", Codec: index.Gzip, Hidden: []string{"hidden"}, Records: func() (index.Reader, error) { return &recordList{records}, nil }}
}

type recordList struct{ left []*index.Record }

func (l *recordList) Next() (*index.Record, error) {
	if len(l.left) == 0 {
		return nil, io.EOF
	}
	next := *l.left[0]
	l.left = l.left[1:]
	return &next, nil
}

func (l *recordList) Prefetch() int64 { return 77 }

// recordOf is the record of a regular file of runs of bytes that alternate between data and holes, data first.
func recordOf(name string, runs ...int64) *index.Record {
	r := &index.Record{Header: tarstream.Header{Name: name, Type: tarstream.Regular, Mode: 0o644, Offset: -1}}
	for i, n := range runs {
		if n > 0 {
			r.Extents = append(r.Extents, index.Extent{Offset: r.Size, Length: n, Hole: i%2 == 1})
			r.Size += n
		}
	}
	return r
}

func plan(t *testing.T, limits converter.Limits, records ...*index.Record) (converter.Lazy, error) {
	t.Helper()
	made, err := converter.FromIndex(t.Context(), indexOf(records...), newFiles(t).meta, testID, limits)
	if err == nil {
		must(t, checkPlan(made))
	}
	return made, err
}

// TestPlan is where data go in the data blob.
func TestPlan(t *testing.T) {
	const mib, tib = 1 << 20, 1 << 40
	for _, c := range []struct {
		name    string
		records []*index.Record
		want    string
		blocks  int64
	}{
		{"nothing", nil, "", 1},
		{"empty file", []*index.Record{recordOf("a")}, "", 1},
		{"small files have blocks of their own", []*index.Record{recordOf("a", 1), recordOf("b", 4097), recordOf("c", 4096)}, "0+1 4096+4097 12288+4096", 4},
		{"extents of one file", []*index.Record{recordOf("a", 10, 0, 20, 0, 30)}, "0+10 10+20 30+30", 1},
		{"small holes take addresses", []*index.Record{recordOf("a", 10, 63*mib, 20), recordOf("b", 1)}, "0+10 66060298+20 66064384+1", 63*256 + 2},
		{"holes of less than the half too", []*index.Record{recordOf("a", 65*mib, 64*mib, 1)}, "0+68157440 135266304+1", 129*256 + 1},
		{"large holes do not", []*index.Record{recordOf("a", 10, 128*mib, 20), recordOf("b", 1)}, "0+10 65546+20 69632+1", 18}, // chunks of 64 KiB
		{"an extent over two chunks of 32 KiB", []*index.Record{recordOf("a", 0, 40000, 40000, 65*mib, 1)}, "7232+40000 80000+1", 20},
		{"a hole alone", []*index.Record{recordOf("lastlog", 0, tib)}, "", 1},
		{"chunks of 512 MiB", []*index.Record{recordOf("lastlog", 0, tib/2, 5, tib/2)}, "0+5", 131072},
		{"marks have no contents", []*index.Record{recordOf(".wh.a", 7), recordOf("d/.wh..wh.aufs", 7), recordOf("d/.wh..wh..opq", 7), recordOf("a", 7)}, "0+7", 1},
		{"what is replaced keeps its place", []*index.Record{recordOf("a", 7), recordOf("a", 8)}, "0+7 4096+8", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			made, err := plan(t, converter.Limits{}, c.records...)
			must(t, err)
			var got []string
			for _, x := range made.Extents {
				got = append(got, fmt.Sprintf("%d+%d", x.At, x.Length))
			}
			if strings.Join(got, " ") != c.want || made.DataBytes != c.blocks*4096 || made.Prefetch != 77 {
				t.Errorf("got %q, %d blocks, prefetch %d; want %q, %d blocks", got, made.DataBytes/4096, made.Prefetch, c.want, c.blocks)
			}
		})
	}
}

func TestFromIndexErrors(t *testing.T) {
	gap, short, long := recordOf("f", 10, 0, 10), recordOf("f", 10), recordOf("f", 10, 0, 10)
	gap.Extents[1].Offset++
	short.Size++
	long.Size--
	for _, c := range []struct {
		name   string
		limits converter.Limits
		record *index.Record
		want   string
		limit  bool
	}{
		{"gap", converter.Limits{}, gap, `test: entry "f": extent of 10 bytes at 11`, false},
		{"short", converter.Limits{}, short, `test: entry "f": extents do not reach the end`, false},
		{"long", converter.Limits{}, long, `extent of 10 bytes at 10, in a file of 19`, false},
		{"size", converter.Limits{FileBytes: 9}, recordOf("f", 10), "file of 10 bytes, allowed are 9", true},
		{"sum of sizes", converter.Limits{LayerBytes: 9}, recordOf("f", 10), "more than 9 bytes together", true},
		{"entries", converter.Limits{Inodes: 2}, recordOf("a/b/f"), "more than 2 entries", true},
		{"extents", converter.Limits{MetadataBytes: 400}, recordOf("f", 1, 1, 1, 1, 1, 1, 1), "extents of more than 400 bytes", true},
		{"path", converter.Limits{}, recordOf(strings.Repeat("n", 256)), "name of 256 bytes", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := plan(t, c.limits, c.record)
			var entry *converter.EntryError
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &entry) || errors.Is(err, converter.ErrLimit) != c.limit {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := converter.FromIndex(ctx, indexOf(recordOf("a")), newFiles(t).meta, testID, converter.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v after the context ended", err)
	}
}
