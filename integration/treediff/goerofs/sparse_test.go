package goerofs

import (
	"fmt"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// sparse adds a file with holes in one of the formats that GNU tar writes.
func (l *layer) sparse() {
	f := l.attributes(tartest.File{Name: l.name(), Type: '0'})
	segments, size := l.segments()
	data := tartest.SparseData(segments)
	f.Data = make([]byte, size)
	for rest, i := data, 0; i < len(segments); i++ {
		n := copy(f.Data[segments[i].Offset:][:segments[i].Length], rest)
		rest = rest[n:]
	}
	h := tartest.Header{Name: f.Name, Type: '0', Mode: int64(f.Mode), UID: int64(f.UID), GID: int64(f.GID), ModTime: f.Sec}
	var extra []string
	if f.Nsec > 0 {
		extra = append(extra, "mtime", paxTime(f.Sec, f.Nsec))
	}
	for _, x := range f.Xattrs {
		extra = append(extra, "SCHILY.xattr."+x.Name, x.Value)
	}
	format := l.in.below(4)
	switch {
	case format == 0 && len(extra) == 0 && len(f.Name) <= 100 && len(segments) > 0: // without records there is no map
		l.tar.Sparse00(h, size, segments, data)
	case format == 1 && len(extra) == 0:
		l.tar.Sparse01(h, size, segments, data)
	case format == 2:
		l.tar.PAX(append(extra, "path", f.Name)...)
		l.tar.SparseOld(h, size, segments, data)
	default:
		l.tar.Sparse10(h, size, segments, data, extra...)
	}
	l.record(f.Name, f)
}

// segments returns where a file has data, and its size. Seldom a file is so large that its chunks are larger than a block.
func (l *layer) segments() (list []tartest.Segment, size int64) {
	for range l.in.below(8) {
		offset := size + int64(pickOr(&l.in, l.in.upTo(20000), 0, 1, 511, 4095, 4096, 100000))
		length := int64(1 + pickOr(&l.in, l.in.upTo(5000), 0, 510, 4094, 4095, 4096))
		list = append(list, tartest.Segment{Offset: offset, Length: length})
		size = offset + length
	}
	hole := pickOr(&l.in, l.in.upTo(9000), 0, 0, 1, 4096, 200000, 16<<20)
	if hole == 16<<20 && !l.rarely() {
		hole = 0
	}
	size += int64(hole)
	if l.in.below(2) == 1 {
		list = append(list, tartest.Segment{Offset: size}) // GNU tar's way to say where the file ends
	}
	return list, size
}

// paxTime writes a time as PAX does: sign and magnitude.
func paxTime(sec int64, nsec uint32) string {
	if sec < 0 && nsec > 0 {
		return fmt.Sprintf("-%d.%09d", -(sec + 1), 1e9-int64(nsec))
	}
	return fmt.Sprintf("%d.%09d", sec, nsec)
}
