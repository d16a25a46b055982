package cachefiles

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is a process that has the device, or an object of a cache, open.
type Holder struct {
	PID  int
	Name string // of its program, as the kernel cuts it
}

func (h Holder) String() string { return fmt.Sprintf("%s (process %d)", h.Name, h.PID) }

// Holders returns who keeps the device busy, as far as this process may look and can see them: processes in another pid namespace that does not
// belong to this one are not seen. They may have ended meanwhile.
func Holders() []Holder { return holders("/proc", deviceNumber()) }

// deviceNumber is that of the device, or 0 if there is none.
func deviceNumber() uint64 {
	var st unix.Stat_t
	if err := unix.Stat(devicePath, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return 0
	}
	return st.Rdev
}

// objectName is what /proc shows for the descriptor of an object.
const objectName = "anon_inode:[cachefiles]"

func holders(proc string, device uint64) []Holder {
	var list []Holder
	processes, _ := os.ReadDir(proc)
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, p.Name(), "fd")
		files, _ := os.ReadDir(dir)
		if slices.ContainsFunc(files, func(f os.DirEntry) bool { return holds(filepath.Join(dir, f.Name()), device) }) {
			name, _ := os.ReadFile(filepath.Join(proc, p.Name(), "comm"))
			list = append(list, Holder{PID: pid, Name: strings.TrimSpace(string(name))})
		}
	}
	slices.SortFunc(list, func(a, b Holder) int { return a.PID - b.PID })
	return list
}

// holds says whether a link in /proc is to the device or to an object. What it is not is not opened or waited for: a link to a file of a
// network filesystem that is gone would hang.
func holds(link string, device uint64) bool {
	name, err := os.Readlink(link)
	if err != nil {
		return false
	}
	if name == objectName {
		return true
	}
	if filepath.Base(strings.TrimSuffix(name, " (deleted)")) != filepath.Base(devicePath) || device == 0 {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(link, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == device
}

// named lists holders for a message.
func named(list []Holder) string {
	if len(list) == 0 {
		return "by none that can be seen"
	}
	var words []string
	for _, h := range list {
		words = append(words, h.String())
	}
	return "by " + strings.Join(words, ", ")
}
