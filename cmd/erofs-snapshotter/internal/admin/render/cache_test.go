package render

import (
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

func TestExported(t *testing.T) {
	for _, test := range []struct {
		e    admin.Exported
		want string
	}{
		{admin.Exported{}, "0 layers exported, -\n"},
		{admin.Exported{Layers: []admin.ExportedLayer{
			{Instance: midID, Digest: middle, Amount: admin.Amount{Extents: 3, Bytes: 3 << 20}}, {Instance: topID, Digest: top},
		}, DamagedExtents: 2}, `LAYER         INSTANCE      EXTENTS  SIZE
88aa00000000  1123456789ab  3        3.0 MiB
99bb00000000  2123456789ab  0        0 B
2 layers exported, 3 (3.0 MiB)
2 extents were left out: the disk has other bytes than it should; the daemon's log names the layers
`},
	} {
		var b strings.Builder
		if err := Exported(&b, test.e); err != nil || b.String() != test.want {
			t.Errorf("%v\n%s", err, b.String())
		}
	}
}

func TestImported(t *testing.T) {
	r := admin.ImportReport{Layers: []admin.ImportedLayer{
		{Instance: baseID, Digest: base, Result: admin.Imported, Offered: admin.Amount{Extents: 5, Bytes: 5 << 10},
			New: admin.Amount{Extents: 3, Bytes: 3 << 10}, Present: admin.Amount{Extents: 2, Bytes: 2 << 10}},
		{Instance: midID, Digest: middle, Result: admin.Imported, Offered: admin.Amount{Extents: 1, Bytes: 1}, Wrong: admin.Amount{Extents: 1, Bytes: 1}},
		{Instance: topID, Digest: top, Result: admin.Unknown, Offered: admin.Amount{Extents: 1, Bytes: 2048}},
		{Instance: upperID, Digest: local, Result: admin.Whole},
		{Instance: upperID, Digest: local, Result: admin.Refused, Cause: "disk\x1b[1m\nfull"},
		{Instance: "\x1b", Digest: "\x1b", Result: "\x1b"},
	}, Error: "cut\x1b off"}
	want := `LAYER         INSTANCE      OFFERED      NEW          HERE ALREADY  WRONG    RESULT
4e6753a2b1c0  0123456789ab  5 (5.0 KiB)  3 (3.0 KiB)  2 (2.0 KiB)   -        ok
88aa00000000  1123456789ab  1 (1 B)      -            -             1 (1 B)  WRONG in part
99bb00000000  2123456789ab  1 (2.0 KiB)  -            -             -        not here: pull the image first
77cc00000000  3123456789ab  -            -            -             -        here as a whole
77cc00000000  3123456789ab  -            -            -             -        failed: disk?[1m full
?             ?             -            -            -             -        ?
6 layers, 7 (7.0 KiB) offered, 3 (3.0 KiB) new
`
	var b strings.Builder
	if err := Imported(&b, r); err != nil || b.String() != want {
		t.Errorf("%v\n%s", err, b.String())
	}
	if got := ImportProblem(r); got != "the rest was not imported: cut? off; 1 extent is not what its layer says and was not imported; 1 layer could not be imported" {
		t.Errorf("problem: %s", got)
	}
	r.Layers, r.Error = append(r.Layers[:1:1], r.Layers[2:4]...), ""
	if got := ImportProblem(r); got != "" {
		t.Errorf("problem: %s", got)
	}
}
