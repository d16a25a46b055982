package keeper

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// endPoll is how often it is looked whether the keeper may end, once it was told to.
const endPoll = 200 * time.Millisecond

func (s *server) toldToEnd() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	because := "missing data would be read as zeros without this process"
	switch {
	case len(s.held) > 0:
	case s.device.held():
		because = "mounts over the kernel's cache could not be read without this process"
	default:
		return
	}
	s.log.Warn("told to end; going on, because "+because, "held", len(s.held), "device", s.device.held(),
		"hint", "erofs-snapshotter-keeper --replace takes over; it ends by itself when the last layer is complete or removed")
}

// mayEnd tells whether nothing can be read wrongly without this process.
func (s *server) mayEnd() bool {
	s.mu.Lock()
	s.over = s.over || len(s.held) == 0 && !s.device.held() // from now on nothing is taken
	over := s.over && s.answering == 0
	s.mu.Unlock()
	return over || goingDown() && alone("/proc")
}

// goingDown tells whether the machine is about to go down and all processes have been told to end. systemd becomes another program then.
// Other init systems do not wait for this process, and kill it together with all others.
func goingDown() bool {
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.HasPrefix(string(comm), "systemd-shutdo") // the kernel cuts it
}

// alone tells whether no process is left that could read anything: none but init, this one, kernel threads, and the dead.
func alone(proc string) bool {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		// What has no memory has no program. A process that ended meanwhile is not there either.
		if _, err := os.Readlink(proc + "/" + e.Name() + "/exe"); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}
