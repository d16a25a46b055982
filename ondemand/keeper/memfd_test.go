package keeper

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSeal(t *testing.T) {
	for _, want := range [][]byte{nil, []byte("user:password"), bytes.Repeat([]byte("x"), MaxSecretBytes)} {
		f, err := Seal(want)
		must(t, err)
		defer f.Close()
		for range 2 { // reading does not change it
			got, err := Unseal(f)
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, want %d", len(got), len(want))
			}
		}
		if _, err := f.WriteAt([]byte("y"), 0); err == nil {
			t.Error("sealed bytes can be overwritten")
		}
		if err := f.Truncate(1 << 10); err == nil {
			t.Error("sealed bytes can be cut")
		}
	}
	if f, err := Seal(make([]byte, MaxSecretBytes+1)); err == nil {
		f.Close()
		t.Error("too much was sealed")
	}
}

func TestUnsealRefuses(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer file.Close()
	fd, err := unix.MemfdCreate("open", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	must(t, err)
	unsealed := os.NewFile(uintptr(fd), "unsealed")
	defer unsealed.Close()
	fd, err = unix.MemfdCreate("large", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	must(t, err)
	large := os.NewFile(uintptr(fd), "large")
	defer large.Close()
	must(t, large.Truncate(1<<40))
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, allSeals)
	must(t, err)
	for _, f := range []*os.File{file, unsealed, large} {
		if b, err := Unseal(f); err == nil {
			t.Errorf("%s: unsealed %d bytes", f.Name(), len(b))
		}
	}
}
