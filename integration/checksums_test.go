package integration

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// bigFile is how large a file of the base layer is at least that containers read again and again.
const bigFile = 1 << 20

// baseSums are the checksums of the big files of the layer that is at the bottom of most images, as sha256sum prints them, taken from
// its tar.
var baseSums = sync.OnceValues(func() (string, error) {
	f, err := os.Open(lab.Layer("base"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	var sums strings.Builder
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if h.Typeflag != tar.TypeReg || h.Size < bigFile {
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return "", err
		}
		fmt.Fprintf(&sums, "%x  /%s\n", sum.Sum(nil), path.Clean(h.Name))
	}
	if strings.Count(sums.String(), "\n") < 5 {
		return "", fmt.Errorf("the base layer has too few big files: %q", sums.String())
	}
	return sums.String(), nil
})

// checkSums compares the files named in /sums, without what is in the page cache: otherwise the kernel would not ask the layer.
const checkSums = `while read -r sum name; do dd if="$name" iflag=nocache count=0 status=none; done </sums; sha256sum --quiet --check /sums`

// readsRight expects that a container reads the bytes of its base layer.
func (s *story) readsRight(container string) {
	s.t.Helper()
	if err := s.tryRead(container); err != nil {
		s.t.Error(err)
	}
}

func (s *story) tryRead(container string) error {
	sums, err := baseSums()
	if err != nil {
		return err
	}
	_, err = s.tryExec(container, fmt.Sprintf("cat >/sums <<'END'\n%sEND\n%s", sums, checkSums))
	return err
}

// startReader starts a container that reads the base layer in a loop. It ends when it reads something wrong.
func (s *story) startReader(ref, id string) {
	s.t.Helper()
	sums, err := baseSums()
	s.must(err)
	s.start(ref, id, readForEver(sums)...)
}

// readForEver is the command of a reader. It counts its rounds in a file.
func readForEver(sums string) []string {
	return []string{"/bin/sh", "-ec", fmt.Sprintf(`cat >/sums <<'END'
%sEND
round=0
while :; do
	echo $round >/rounds.new
	mv /rounds.new /rounds
	%s
	round=$((round+1))
done`, sums, checkSums)}
}

// rounds is how often a reader has read everything. The reader must be alive.
func (s *story) rounds(id string) int {
	s.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s.exec(id, "for i in $(seq 600); do [ ! -e /rounds ] || break; sleep 0.1; done; cat /rounds")))
	s.must(err)
	return n
}

// readsOn expects that a reader, from now on, reads everything at least once.
func (s *story) readsOn(id string) {
	s.t.Helper()
	before := s.rounds(id)
	s.within(storyTime/4, "reader "+id+" has read all again", func() error {
		if now := s.rounds(id); now < before+2 { // the first of the two began before
			return fmt.Errorf("%d rounds", now-before)
		}
		return nil
	})
}
