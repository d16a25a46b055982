package tarstream

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// standardTypes are the types of archive/tar whose entries both readers deliver.
var standardTypes = map[byte]Type{
	tar.TypeReg: Regular, tar.TypeCont: Regular, tar.TypeGNUSparse: Regular, tar.TypeLink: HardLink, tar.TypeSymlink: Symlink,
	tar.TypeChar: CharDevice, tar.TypeBlock: BlockDevice, tar.TypeDir: Directory, tar.TypeFifo: FIFO, 'D': Directory,
}

// compareContents is up to which size contents are compared: archive/tar makes up the holes of files that claim to be huge.
const compareContents = 4 << 20

var errNotComparable = errors.New("an entry that the two readers treat differently on purpose")

// standardAll reads an archive with archive/tar, up to an error or to an entry that is not comparable.
func standardAll(archive []byte) ([]entry, error) {
	tr := tar.NewReader(bytes.NewReader(archive))
	var list []entry
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		if h.Typeflag == 'V' {
			continue
		}
		typ, known := standardTypes[h.Typeflag]
		if !known {
			return list, errNotComparable
		}
		e := entry{Header: Header{Name: h.Name, Type: typ, Mode: uint32(h.Mode & 07777), UID: uint32(h.Uid), GID: uint32(h.Gid),
			ModTime: Time{h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())}}}
		switch typ {
		case HardLink, Symlink:
			e.Linkname = h.Linkname
		case Regular:
			e.Size = h.Size
			if h.Size > compareContents {
				break
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				return list, err
			}
			e.data = string(data)
		}
		list = append(list, e)
	}
}

// compareWithStandard fails if the two readers understand an archive differently. Either may reject what the other accepts, but the
// entries that both deliver must agree.
func compareWithStandard(t *testing.T, archive []byte) (accepted bool) {
	t.Helper()
	theirs, theirErr := standardAll(archive)
	ours, ourErr := readAll(bytes.NewReader(archive), Limits{})
	if ourErr == nil && theirErr == nil && len(ours) != len(theirs) {
		t.Fatalf("%d entries, archive/tar has %d", len(ours), len(theirs))
	}
	for i := range min(len(ours), len(theirs)) {
		a, b := ours[i], theirs[i]
		if a.Size <= compareContents {
			a.data = string(expand(a))
		} else {
			a.data = ""
		}
		a.Sparse, a.Xattrs, a.Offset, a.Devmajor, a.Devminor = nil, nil, 0, 0, 0
		if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
			t.Fatalf("entry %d:\n    ours %.500q\narchive/tar %.500q", i, fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b))
		}
	}
	return ourErr == nil && theirErr == nil
}

// TestAgainstArchiveTar reads what archive/tar writes.
func TestAgainstArchiveTar(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	name := func() string { return strings.Repeat("dir/", rng.IntN(70)) + strings.Repeat("n", 1+rng.IntN(120)) }
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU, tar.FormatUnknown} {
		t.Run(format.String(), func(t *testing.T) {
			for range 200 {
				var buf bytes.Buffer
				w := tar.NewWriter(&buf)
				for range 1 + rng.IntN(5) {
					h := &tar.Header{
						Format: format, Typeflag: "0123456"[rng.IntN(7)], Name: name(), Mode: rng.Int64N(010000),
						Uid: rng.IntN(1 << (1 + rng.IntN(31))), Gid: rng.IntN(1 << 20), ModTime: time.Unix(rng.Int64N(1<<34)-1<<33, 0),
						Devmajor: rng.Int64N(4096), Devminor: rng.Int64N(1 << 20),
					}
					switch h.Typeflag {
					case tar.TypeReg:
						h.Size = rng.Int64N(3000)
					case tar.TypeLink, tar.TypeSymlink:
						h.Linkname = name()
					}
					if format == tar.FormatPAX {
						h.ModTime = h.ModTime.Add(time.Duration(rng.Int64N(1e9)))
						h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y", "VENDOR.key": "v"}
					}
					if err := w.WriteHeader(h); err != nil {
						continue // the format cannot say that
					}
					if _, err := w.Write(tartest.Pattern(int(h.Size), 1)); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if !compareWithStandard(t, buf.Bytes()) {
					_, err := readAll(bytes.NewReader(buf.Bytes()), Limits{})
					t.Fatalf("rejected: %v", err)
				}
			}
		})
	}
}

// TestArchiveTarSamples reads the samples of archive/tar's own tests, where the Go installation has them.
func TestArchiveTarSamples(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(root)), "src/archive/tar/testdata/*.tar"))
	for _, f := range files {
		archive, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(f), func(t *testing.T) {
			_, theirs := standardAll(archive)
			_, ours := readAll(bytes.NewReader(archive), Limits{})
			if theirs == nil && ours != nil {
				t.Logf("rejected: %v", ours)
			}
			compareWithStandard(t, archive)
		})
	}
}

// seeds gives a fuzz target small archives of every form. (Large ones keep the fuzzer busy with making them smaller.)
func seeds(f *testing.F) {
	segments := tartest.Segments(0, 5, 100, 7, 600, 0)
	five := tartest.Segments(0, 1, 10, 1, 20, 1, 30, 1, 40, 1)
	for _, write := range sparseForms {
		for _, s := range [][]tartest.Segment{segments, five} {
			f.Add(build(func(b *tartest.Builder) { write(b, regular("f"), 600, s, tartest.SparseData(s)) }))
		}
	}
	for i, file := range tartest.Edge() {
		if archive := tartest.Pack([]tartest.File{file}); i%7 == 0 && len(archive) <= 4096 {
			f.Add(archive)
		}
	}
	add := func(write func(b *tartest.Builder)) { f.Add(build(write)) }
	add(func(b *tartest.Builder) {
		b.Global("uid", "5", "mtime", "-1.5")
		b.Entry(regular("f"), []byte("x"))
	})
	add(func(b *tartest.Builder) {
		b.PAX("SCHILY.acl.access", aclText, "LIBARCHIVE.xattr.user.%41", "YQ", "size", "1", "mtime", "-0.1")
		b.Entry(regular("f"), []byte("x"))
	})
	add(func(b *tartest.Builder) {
		b.LongName("long")
		b.LongLink("link")
		h := regular("b")
		h.Base256, h.Magic, h.Type = true, tartest.GNU, '1'
		b.Entry(h, nil)
	})
	add(func(b *tartest.Builder) {
		h := regular("v7/")
		h.Magic, h.Type = tartest.V7, 0
		b.Entry(h, nil)
		b.Entry(tartest.Header{Magic: tartest.GNU, Type: 'V', Name: "label"}, nil)
		b.Entry(tartest.Header{Magic: tartest.GNU, Type: 'D', Name: "dump/"}, []byte("Yf\x00\x00"))
		b.Entry(tartest.Header{Magic: tartest.Star, Type: '0', Name: "star", Prefix: "p"}, []byte("s"))
		b.Entry(tartest.Header{Magic: tartest.GNU, Type: '0', Name: "old-go", Prefix: "p"}, []byte("s"))
	})
}

// withSums corrects the checksums of all blocks that look like headers, so that fuzzing gets past them.
func withSums(archive []byte) []byte {
	archive = bytes.Clone(archive)
	for at := 0; at+512 <= len(archive); at += 512 {
		b := archive[at : at+512]
		if string(b[257:262]) != "ustar" {
			continue
		}
		sum := 0
		for i, c := range b {
			if i < 148 || i >= 156 {
				sum += int(c)
			} else {
				sum += ' '
			}
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return archive
}

// FuzzReader looks for panics, memory without bound and headers that break what their documentation promises.
func FuzzReader(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, archive []byte) {
		archive = withSums(archive)
		limits := Limits{MetadataBytes: 64 << 10, SparseSegments: 1000, FileBytes: 1 << 40}
		read, readErr := readAll(bytes.NewReader(archive), limits)
		r := NewReader(bytes.NewReader(archive), limits)
		var last int64 = -1
		for i := 0; ; i++ {
			h, err := r.Next()
			if err != nil {
				if i < len(read) || i == len(read) && readErr == nil && err != io.EOF {
					t.Fatalf("%v after %d entries, with reading %v after %d", err, i, readErr, len(read))
				}
				break
			}
			checkPromises(t, h, r.Stored(), limits)
			if h.Offset <= last || h.Offset%512 != 0 || r.Offset() > int64(len(archive)) {
				t.Fatalf("offset %d after %d; consumed %d of %d", h.Offset, last, r.Offset(), len(archive))
			}
			last = h.Offset
			if i < len(read) && read[i].Name != h.Name {
				t.Fatalf("entry %d is %q, with reading %q", i, h.Name, read[i].Name)
			}
		}
	})
}

func checkPromises(t *testing.T, h *Header, stored int64, limits Limits) {
	t.Helper()
	switch {
	case strings.Contains(h.Name, "\x00") || strings.Contains(h.Linkname, "\x00"):
		t.Fatalf("NUL in a name: %+v", h)
	case h.Mode > 07777 || h.ModTime.Nsec > 999999999 || h.Devmajor > maxMajor || h.Devminor > maxMinor || h.UID > maxID || h.GID > maxID:
		t.Fatalf("number out of range: %+v", h)
	case h.Size < 0 || h.Size > limits.FileBytes || h.Type != Regular && (h.Size != 0 || h.Sparse != nil || stored != 0):
		t.Fatalf("size: %+v", h)
	case h.Sparse == nil && stored != h.Size:
		t.Fatalf("dense, but %d bytes stored: %+v", stored, h)
	}
	var end, sum int64
	for i, s := range h.Sparse {
		if s.Length <= 0 || s.Offset < end || i > 0 && s.Offset == end || s.Length > h.Size-s.Offset {
			t.Fatalf("segment %d: %+v", i, h)
		}
		end = s.Offset + s.Length
		sum += s.Length
	}
	if h.Sparse != nil && (sum != stored || sum == h.Size || len(h.Sparse) > limits.SparseSegments) {
		t.Fatalf("segments of %d bytes, %d stored: %+v", sum, stored, h)
	}
	seen := map[string]bool{}
	for _, x := range h.Xattrs {
		if x.Name == "" || seen[x.Name] {
			t.Fatalf("attribute %q twice or without name", x.Name)
		}
		seen[x.Name] = true
	}
}

// FuzzAgainstArchiveTar looks for archives that archive/tar understands differently.
func FuzzAgainstArchiveTar(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, archive []byte) { compareWithStandard(t, withSums(archive)) })
}
