package erofs

import (
	"bytes"
	"testing"
)

// TestSuperblock pins the positions of the fields; the expected bytes are written out by hand from erofs_fs.h.
func TestSuperblock(t *testing.T) {
	b := make([]byte, superblockBytes)
	superblock{inodes: 0x0102030405060708, blocks: 0x11121314, xattrBlock: 0x21222324, uuid: [16]byte{0xaa, 15: 0xbb}}.encode(b)
	want := make([]byte, superblockBytes)
	copy(want[0:], []byte{0xe2, 0xe1, 0xf5, 0xe0})
	want[8] = 3
	want[12] = 12
	want[14] = 40 // (1024+128+128)/32
	copy(want[16:], []byte{8, 7, 6, 5, 4, 3, 2, 1})
	copy(want[36:], []byte{0x14, 0x13, 0x12, 0x11})
	copy(want[44:], []byte{0x24, 0x23, 0x22, 0x21})
	want[48], want[63] = 0xaa, 0xbb
	want[80] = 0xc
	want[86] = 1
	want[88] = 9 // 1152/128
	if !bytes.Equal(b, want) {
		t.Errorf("superblock\n got %x\nwant %x", b, want)
	}
}

func TestDeviceSlot(t *testing.T) {
	b := make([]byte, deviceSlotBytes)
	deviceSlot{tag: "tag", blocks: 0x01020304}.encode(b)
	want := make([]byte, deviceSlotBytes)
	copy(want, "tag")
	copy(want[64:], []byte{4, 3, 2, 1, 0, 0, 0, 4})
	if !bytes.Equal(b, want) {
		t.Errorf("device slot\n got %x\nwant %x", b, want)
	}
}

func TestInode(t *testing.T) {
	b := make([]byte, inodeBytes)
	a := Attr{Mode: ModeRegular | 0o4755, UID: 0x01020304, GID: 0x05060708, Mtime: -1, MtimeNsec: 0x0a0b0c0d}
	diskInode{attr: &a, layout: layoutChunk, xattrCount: 0x1112, size: 0x2122232425262728, u: 0x31323334, number: 0x41424344, links: 0x51525354}.encode(b)
	want := []byte{
		9, 0, 0x12, 0x11, 0xed, 0x89, 0, 0, // format, xattrs, mode, start block hi
		0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, // size
		0x34, 0x33, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41, // u, number
		4, 3, 2, 1, 8, 7, 6, 5, // owner
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // mtime
		0xd, 0xc, 0xb, 0xa, 0x54, 0x53, 0x52, 0x51, // nsec, links
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	}
	if !bytes.Equal(b, want) {
		t.Errorf("inode\n got %x\nwant %x", b, want)
	}
}

func TestEncodeDevice(t *testing.T) {
	for _, c := range []struct{ major, minor, want uint32 }{
		{0, 0, 0}, {1, 3, 0x103}, {259, 70000, 0x11110370}, {0xfff, 0xfffff, 0xffffffff},
	} {
		if got := encodeDevice(c.major, c.minor); got != c.want {
			t.Errorf("%d:%d = %#x, want %#x", c.major, c.minor, got, c.want)
		}
	}
}

func TestDirents(t *testing.T) {
	got := encodeDirents([]named{{".", 1, dirDirectory}, {"ab", 0x0102, dirRegular}})
	want := append([]byte{
		1, 0, 0, 0, 0, 0, 0, 0, 24, 0, 2, 0,
		2, 1, 0, 0, 0, 0, 0, 0, 25, 0, 1, 0,
	}, ".ab"...)
	if !bytes.Equal(got, want) {
		t.Errorf("dirents\n got %x\nwant %x", got, want)
	}
}

func TestXattrs(t *testing.T) {
	got, err := encodeXattrs([]Xattr{{"user.b", []byte("12345")}, {"system.posix_acl_access", []byte{9}}})
	if err != nil {
		t.Fatal(err)
	}
	want := append(make([]byte, 12), 0, 2, 1, 0, 9, 0, 0, 0, 1, 1, 5, 0, 'b', '1', '2', '3', '4', '5', 0, 0)
	if !bytes.Equal(got.bytes, want) || got.count != (32-12)/4+1 {
		t.Errorf("got %x count %d\nwant %x count 6", got.bytes, got.count, want)
	}
	for name, bad := range map[string]Xattr{
		"namespace": {"system.nfs4_acl", nil},
		"no suffix": {"user.", nil},
		"long name": {"user." + string(make([]byte, 256)), nil},
		"value":     {"user.x", make([]byte, 1<<16)},
	} {
		if _, err := encodeXattrs([]Xattr{bad}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	var many []Xattr
	for i := range 5 {
		many = append(many, Xattr{"user." + string(rune('a'+i)), make([]byte, 60000)})
	}
	if _, err := encodeXattrs(many); err == nil {
		t.Error("300,000 bytes of attributes: no error")
	}
}

func TestWholeChunk(t *testing.T) {
	for _, c := range []struct {
		size int64
		bits int
		last uint32
		n    int
	}{{4097, 13, 7, 1}, {8192, 13, 7, 1}, {8193, 14, 7, 1}, {1 << 43, 43, 7, 1}, {1<<43 + 1, 43, 7 + 1<<31, 2}} {
		m := wholeChunk(c.size, 7)
		if n := len(m.index); m.bits != c.bits || n != c.n || m.index[0] != 7 || m.index[n-1] != c.last {
			t.Errorf("%d bytes: %d bits, chunks at %d", c.size, m.bits, m.index)
		}
		if u := uint32(m.bits-blockBits) | chunkFormatIndexes; u > 0x3f {
			t.Errorf("%d bytes: chunk format %#x", c.size, u)
		}
	}
}

func TestSparseChunkBits(t *testing.T) {
	for _, c := range []struct {
		size int64
		want int
	}{{1, 12}, {4096 * 4096, 12}, {4096*4096 + 1, 13}, {2 << 40, 29}} {
		if got := sparseChunkBits(c.size); got != c.want {
			t.Errorf("%d bytes: %d bits, want %d", c.size, got, c.want)
		}
		if chunks := (c.size + 1<<c.want - 1) >> c.want; chunks > maxChunks {
			t.Errorf("%d bytes: %d chunks", c.size, chunks)
		}
	}
}
