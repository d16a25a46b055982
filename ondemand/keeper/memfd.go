package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// MaxSecretBytes bounds what Seal takes and Unseal returns: a thousand repositories with a token of 4 KiB each.
	MaxSecretBytes = 4 << 20
	allSeals       = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
)

// Seal returns a memfd with b that nobody can change any more, which is on no disk and goes with its last descriptor.
func Seal(b []byte) (*os.File, error) {
	if len(b) > MaxSecretBytes {
		return nil, fmt.Errorf("seal %d bytes: more than %d", len(b), MaxSecretBytes)
	}
	fd, err := unix.MemfdCreate("erofs-snapshotter-sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("erofs-snapshotter-sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "sealed memfd")
	_, err = f.Write(b)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, allSeals)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal: %w", err)
	}
	return f, nil
}

// Unseal returns what was sealed into f, which must be a memfd with all of Seal's seals.
func Unseal(f *os.File) ([]byte, error) {
	fd, err := numberOf(f)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	size, err := sealedSize(fd)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, size), b); err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return b, nil
}

// sealedSize returns the length of a sealed memfd, or an error when it is not one.
func sealedSize(fd int) (int64, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&allSeals != allSeals {
		return 0, errors.New("not a sealed memfd")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Size > MaxSecretBytes {
		return 0, fmt.Errorf("%d bytes are more than %d", st.Size, MaxSecretBytes)
	}
	return st.Size, nil
}
