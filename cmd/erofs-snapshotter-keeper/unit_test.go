package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// TestUnitRestarts: the unit starts the keeper again after a death, and not after an end that was meant. The program's exit status tells them apart.
func TestUnitRestarts(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/erofs-snapshotter-keeper.service")
	must(t, err)
	if !slices.Contains(strings.Split(string(unit), "\n"), "Restart=on-failure") {
		t.Error("the unit does not say Restart=on-failure")
	}
	for signal, clean := range map[unix.Signal]bool{unix.SIGTERM: true, unix.SIGKILL: false} {
		at := address(t)
		cmd := exec.Command(os.Args[0], "--address", at)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		must(t, cmd.Start())
		for waited := time.Now(); ; time.Sleep(2 * time.Millisecond) {
			if _, err := keeper.Status(t.Context(), at); err == nil {
				break
			} else if time.Since(waited) > patience {
				_ = cmd.Process.Kill()
				t.Fatal(err)
			}
		}
		must(t, cmd.Process.Signal(signal))
		if err := cmd.Wait(); (err == nil) != clean {
			t.Errorf("after %v: %v", signal, err)
		}
	}
}
