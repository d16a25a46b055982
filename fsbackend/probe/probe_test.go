package probe

import (
	"testing"
)

func TestTry(t *testing.T) {
	d := t.TempDir()
	t.Log(HaveEROFS(), HaveFileBacked(d), HaveLoop(d), HaveOverlay(d), HaveOverlay(d, "index=off", "redirect_dir=nofollow", "metacopy=off"), HaveOverlay(d, "nosuch=off"), HavePreContent(d), HaveFscache())
	t.Log(DataDirFilesystem(d))
	t.Log(HaveFileBacked("/dev/shm"), HaveLoop("/dev/shm"), HaveOverlay("/dev/shm"), HavePreContent("/dev/shm"))
}
