package lossydisk

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// diskName is the only file of the FUSE mount.
const diskName = "disk"

// directory is the root of the FUSE mount.
type directory struct {
	fs.Inode
	disk *Disk
}

var _ fs.NodeOnAdder = (*directory)(nil)

func (n *directory) OnAdd(ctx context.Context) {
	n.AddChild(diskName, n.NewPersistentInode(ctx, &file{disk: n.disk}, fs.StableAttr{Mode: syscall.S_IFREG}), true)
}

// file is the disk as a file. Its writes and syncs are the writes and flushes of the disk.
type file struct {
	fs.Inode
	disk *Disk
}

var (
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
)

// Open asks the kernel not to cache: the next Attach would see what a cut has lost, and a read would not be one of the disk.
func (n *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	out.Size = uint64(n.disk.size)
	return 0
}

func (n *file) Read(_ context.Context, _ fs.FileHandle, b []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(b[:n.disk.read(b, at)]), 0
}

func (n *file) Write(_ context.Context, _ fs.FileHandle, b []byte, at int64) (uint32, syscall.Errno) {
	if !n.disk.write(b, at) {
		return 0, syscall.ENOSPC
	}
	return uint32(len(b)), 0
}

func (n *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.disk.flush()
	return 0
}
