// Package integration holds what only the whole shows: real layers through the converter and the kernel, and user stories with
// containerd, runc and a registry. One file is one story.
package integration

import (
	"os"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
