package snapshotter

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserveBytes is how much of the disk metadata.db has ahead of its end. A transaction writes anew what it changes, some 20 pages
// of 4 KiB; this is enough for several in a row that find none of the pages that earlier ones gave up.
const reserveBytes = 256 << 10

// reserve gives metadata.db its blocks before they are needed: bolt grows the file with holes, and on a full disk Remove, which
// makes room, would fail like everything else. It is called inside of a write transaction, and does nothing while the file
// has the length it had. A disk that is full already, or cannot do this, is no error.
func (s *Snapshotter) reserve() {
	fi, err := os.Stat(s.metadataPath())
	if err != nil || fi.Size() == s.reservedFor {
		return
	}
	f, err := os.OpenFile(s.metadataPath(), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, fi.Size()+reserveBytes); err != nil {
		s.log.Debug("no space reserved for the metadata", "cause", err)
		return
	}
	s.reservedFor = fi.Size()
}
