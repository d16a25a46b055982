package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// On-disk sizes and positions, in bytes unless said otherwise. Source: include/linux/erofs_fs.h and fs/erofs/erofs_fs.h of
// Linux 7.2; everything used here is understood since 5.16.
const (
	// BlockBytes is the block size of the images we write. fscache and kernels before 6.4 take no other.
	BlockBytes = 4096
	blockBits  = 12

	superblockOffset = 1024
	superblockBytes  = 128
	deviceSlotBytes  = 128
	inodeBytes       = 64 // extended inode: the only form with a 32-bit owner and a time of its own
	direntBytes      = 12
	chunkIndexBytes  = 8
	xattrHeaderBytes = 12
	xattrEntryBytes  = 4
	slotBytes        = 32 // a nid counts slots of this size

	// rootOffset is where the root inode lies, right behind the device slot: the superblock's root nid has only 16 bits, so
	// the root cannot be written at the end like all other directories.
	rootOffset = superblockOffset + superblockBytes + deviceSlotBytes
)

const (
	magic = 0xE0F5E1E2

	compatChecksum = 0x1
	compatMtime    = 0x2

	incompatChunkedFile = 0x4
	incompatDeviceTable = 0x8

	layoutPlain  = 0
	layoutInline = 2
	layoutChunk  = 4

	chunkFormatIndexes = 0x20

	// nullBlock is the chunk index of a hole.
	nullBlock = 0xffffffff

	// deviceAddress is the block address at which the data blob appears in the image's address space, whatever the
	// length of the meta image. It must lie behind the meta image: a kernel since 6.4 that is given no device reads such
	// addresses from the primary, and beyond its end that is EIO, never another file's bytes. 2^26 blocks are 256 GiB.
	deviceAddress = 1 << 26
	// maxDataBlocks is how many blocks a 32-bit address space leaves for the data blob.
	maxDataBlocks = nullBlock - deviceAddress
)

// File types of directory entries.
const (
	dirRegular = 1 + iota
	dirDirectory
	dirChar
	dirBlock
	dirFIFO
	dirSocket
	dirSymlink
)

var le = binary.LittleEndian

// superblock is the part of struct erofs_super_block that we set.
type superblock struct {
	inodes     uint64
	blocks     uint32
	xattrBlock uint32
	uuid       [16]byte
}

// encode writes the 128 bytes of the superblock with a zero checksum.
func (s superblock) encode(b []byte) {
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], rootOffset/slotBytes)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[44:], s.xattrBlock)
	copy(b[48:64], s.uuid[:])
	le.PutUint32(b[80:], incompatChunkedFile|incompatDeviceTable)
	le.PutUint16(b[86:], 1) // one extra device
	le.PutUint16(b[88:], (superblockOffset+superblockBytes)/deviceSlotBytes)
}

// checksum returns the superblock's CRC-32C over block 0 from the superblock on. The kernel starts behind the first 8 bytes
// with the state that these leave (fs/erofs/super.c, erofs_superblock_csum_verify).
func checksum(block0 []byte) uint32 {
	const stateAfterMagic = 0x5045B54A
	return ^crc32.Update(^uint32(stateAfterMagic), crc32.MakeTable(crc32.Castagnoli), block0[superblockOffset+8:])
}

// deviceSlot is struct erofs_deviceslot of the data blob.
type deviceSlot struct {
	tag    string // 64 bytes
	blocks uint32
}

func (d deviceSlot) encode(b []byte) {
	copy(b[:64], d.tag)
	le.PutUint32(b[64:], d.blocks)
	le.PutUint32(b[68:], deviceAddress)
}

// diskInode is struct erofs_inode_extended.
type diskInode struct {
	attr       *Attr
	layout     uint16
	xattrCount uint16
	size       uint64
	u          uint32 // start block, chunk format or device number
	number     uint32
	links      uint32
}

const linksOffset = 44 // of i_nlink in the inode

func (n diskInode) encode(b []byte) {
	le.PutUint16(b[0:], 1|n.layout<<1)
	le.PutUint16(b[2:], n.xattrCount)
	le.PutUint16(b[4:], uint16(n.attr.Mode))
	le.PutUint64(b[8:], n.size)
	le.PutUint32(b[16:], n.u)
	le.PutUint32(b[20:], n.number)
	le.PutUint32(b[24:], n.attr.UID)
	le.PutUint32(b[28:], n.attr.GID)
	le.PutUint64(b[32:], uint64(n.attr.Mtime))
	le.PutUint32(b[40:], n.attr.MtimeNsec)
	le.PutUint32(b[linksOffset:], n.links)
}

// direntType maps the type bits of a mode to the type of a directory entry.
func direntType(mode uint32) uint8 {
	switch mode & ModeType {
	case ModeDir:
		return dirDirectory
	case ModeChar:
		return dirChar
	case ModeBlock:
		return dirBlock
	case ModeFIFO:
		return dirFIFO
	case ModeSocket:
		return dirSocket
	case ModeSymlink:
		return dirSymlink
	}
	return dirRegular
}

// encodeDevice is the kernel's new_encode_dev (include/linux/kdev_t.h): 12 bits of major, 20 of minor.
func encodeDevice(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// alignUp rounds n up to a multiple of to, a power of two.
func alignUp[T int | int64](n, to T) T { return (n + to - 1) &^ (to - 1) }
