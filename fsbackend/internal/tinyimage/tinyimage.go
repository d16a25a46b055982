// Package tinyimage builds the smallest EROFS image that looks like the ones the converter writes: two files, a device slot, one
// file whose blocks lie on the device and whose tail lies in the metadata, and extended attributes. Probes and tests mount it.
//
//	meta    1024  superblock, with checksum
//	        1152  device slot: block 0 of the device has address 1<<26
//	        1280  root directory: extended inode, trusted.overlay.opaque, entries
//	        1472  /file: extended inode, tail
//	data    the full blocks of /file
package tinyimage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	// FileName is the name of the one file.
	FileName = "file"
	// XattrName and XattrValue are an attribute of the root directory.
	XattrName, XattrValue = "trusted.overlay.opaque", "y"

	blockBytes = 4096
	slotStart  = 1152
	rootStart  = 1280
	fileStart  = 1472
	// deviceAddress is the block address of the device's first block, beyond every block of the metadata: when the device is
	// missing, reads fail instead of returning metadata.
	deviceAddress = 1 << 26
	// tailBytes is the room for a tail behind the inode of /file.
	tailBytes = blockBytes - fileStart - inodeBytes

	inodeBytes       = 64
	layoutInline     = 2 << 1 // i_format: full blocks plus a tail behind the inode
	formatExtended   = 1
	modeDir, modeReg = 0o040755, 0o100644
)

var le = binary.LittleEndian

// Build returns the two files of an image whose /file has the given content: at least one block, and a tail of 1 to 2560 bytes.
func Build(content []byte) (meta, data []byte, err error) {
	full := len(content) / blockBytes * blockBytes
	data, tail := content[:full:full], content[full:]
	if full == 0 || len(tail) == 0 || len(tail) > tailBytes {
		return nil, nil, fmt.Errorf("content of %d bytes does not fit a tiny image", len(content))
	}
	meta = make([]byte, blockBytes)
	putSlot(meta[slotStart:], full/blockBytes)
	putRoot(meta[rootStart:])
	putFile(meta[fileStart:], uint64(len(content)), tail)
	putSuperblock(meta[1024:], crc32.ChecksumIEEE(content))
	return meta, data, nil
}

// putSuperblock comes last: its checksum covers the rest of the block.
func putSuperblock(b []byte, id uint32) {
	le.PutUint32(b[0:], 0xE0F5E1E2) // magic
	le.PutUint32(b[8:], 1)          // feature_compat: checksum
	b[12] = 12                      // log2 of the block size
	le.PutUint16(b[14:], rootStart/32)
	le.PutUint64(b[16:], 2) // inodes
	le.PutUint32(b[36:], 1) // blocks
	le.PutUint32(b[48:], id)
	copy(b[52:64], "tiny image")  // rest of the uuid
	le.PutUint32(b[80:], 0x4|0x8) // feature_incompat: chunked files, device table
	le.PutUint16(b[86:], 1)       // devices
	le.PutUint16(b[88:], slotStart/128)
	sum := ^crc32.Update(^uint32(0x5045B54A), crc32.MakeTable(crc32.Castagnoli), b[8:blockBytes-1024])
	le.PutUint32(b[4:], sum)
}

func putSlot(b []byte, blocks int) {
	copy(b[:64], "tiny image")
	le.PutUint32(b[64:], uint32(blocks))
	le.PutUint32(b[68:], deviceAddress)
}

func putRoot(b []byte) {
	const xattrBytes = 12 + 4 + len("overlay.opaque") + len(XattrValue) + 1 // header, entry, padding to 4
	names := []struct {
		name   string
		offset int
		kind   byte
	}{{".", rootStart, 2}, {"..", rootStart, 2}, {FileName, fileStart, 1}}

	x := b[inodeBytes:]
	x[12+0] = byte(len("overlay.opaque"))
	x[12+1] = 4 // name index of "trusted."
	le.PutUint16(x[12+2:], uint16(len(XattrValue)))
	copy(x[16:], "overlay.opaque"+XattrValue)

	entries := x[xattrBytes:]
	at := 12 * len(names)
	for i, n := range names {
		e := entries[12*i:]
		le.PutUint64(e, uint64(n.offset/32))
		le.PutUint16(e[8:], uint16(at))
		e[10] = n.kind
		at += copy(entries[at:], n.name)
	}
	putInode(b, inode{mode: modeDir, size: uint64(at), nlink: 2, number: 1, xattrs: uint16(1 + (xattrBytes-12)/4)})
}

func putFile(b []byte, size uint64, tail []byte) {
	putInode(b, inode{mode: modeReg, size: size, nlink: 1, number: 2, block: deviceAddress})
	copy(b[inodeBytes:], tail)
}

type inode struct {
	mode, xattrs uint16
	size         uint64
	nlink        uint32
	number       uint32
	block        uint32
}

func putInode(b []byte, i inode) {
	le.PutUint16(b[0:], layoutInline|formatExtended)
	le.PutUint16(b[2:], i.xattrs)
	le.PutUint16(b[4:], i.mode)
	le.PutUint64(b[8:], i.size)
	le.PutUint32(b[16:], i.block)
	le.PutUint32(b[20:], i.number)
	le.PutUint32(b[44:], i.nlink)
}
