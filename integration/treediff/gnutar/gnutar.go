// Package gnutar makes the tree that a converted layer is compared with: GNU tar extracts the layer on a fresh ext4, and
// OverlayForm then applies the rules of docs/conversion.md that no tar program knows, to the extracted files themselves. Nothing
// here shares code with the converter.
//
//	disk := gnutar.Ext4(t, 8<<30)
//	err := gnutar.Extract(ctx, "layer.tar", disk+"/tree")
//	err = gnutar.OverlayForm("layer.tar", disk+"/tree")
//
// It needs root, tar, mkfs.ext4 and mount.
package gnutar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Ext4 mounts a new, empty ext4 of the given size for the duration of the test and returns where. It is a sparse file on a loop
// device: only what is written costs space.
func Ext4(t testing.TB, bytes int64) string {
	t.Helper()
	dir := t.TempDir()
	image, mountpoint := filepath.Join(dir, "ext4"), filepath.Join(dir, "disk")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	// ea_inode allows attributes of 64 KiB. A journal would only cost time.
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192", "-O", "ea_inode,^has_journal", image)
	run(t, "mount", "-o", "loop,noatime,user_xattr,acl", image, mountpoint)
	t.Cleanup(func() {
		if unix.Unmount(mountpoint, unix.UMOUNT_NOFOLLOW) == nil {
			return
		}
		// Something still uses it; the loop device goes with the last user.
		if err := unix.Unmount(mountpoint, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", mountpoint, err)
		}
	})
	return mountpoint
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// Extract makes dir and extracts the uncompressed tar into it.
func Extract(ctx context.Context, tar, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// Without --delay-directory-restore a directory to which the archive returns later keeps the time of extraction.
	cmd := exec.CommandContext(ctx, "tar", "--extract", "--file", tar, "--directory", dir,
		"--numeric-owner", "--same-owner", "--preserve-permissions", "--acls", "--xattrs", "--xattrs-include=*",
		"--delay-directory-restore", "--warning=no-timestamp")
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TAR_OPTIONS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tar --extract --file %s: %w\n%s", tar, err, out)
	}
	return nil
}
