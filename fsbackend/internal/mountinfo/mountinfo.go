// Package mountinfo reads the kernel's mount tables, /proc/<pid>/mountinfo (proc_pid_mountinfo(5)).
//
// A table holds the mounts that can be reached from the root directory of the process: a process in a chroot sees a part of its
// mount namespace.
package mountinfo

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Self is the table of the caller's mount namespace. The thread's, not the process's: a thread may live in a namespace of its own.
const Self = "/proc/thread-self/mountinfo"

// Entry is one mount.
type Entry struct {
	// ID is the mount's number, as statx reports it too, Parent that of the mount on which it is mounted.
	ID, Parent int
	// Device is the filesystem ("254:1"), and Root the directory of it that the mount shows ("/" for all of it). Unlike Point
	// the two mean the same in every mount namespace.
	Device, Root string
	// Point is where it is mounted, as seen from the root directory of the process whose table this is.
	Point string
	// Flags are those of the mount ("ro,nosuid,nodev,relatime").
	Flags string
	// FSType is the type of filesystem, Source the word that was given as source.
	FSType, Source string

	// superOptions keeps the kernel's escapes, because an escaped comma separates nothing.
	superOptions string
}

// Option is one option of a superblock, with the value as the mounter gave it.
type Option struct{ Key, Value string }

// Options returns the options of the superblock.
func (e Entry) Options() []Option {
	var opts []Option
	for field := range strings.SplitSeq(e.superOptions, ",") {
		key, value, _ := strings.Cut(field, "=")
		opts = append(opts, Option{unescape(key), unescape(value)})
	}
	return opts
}

// Read parses a whole table.
func Read(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var entries []Entry
	r := bufio.NewReader(f)
	for {
		// Lines have no limit: one overlay mount may name hundreds of lower directories.
		line, err := r.ReadString('\n')
		if err == io.EOF && line == "" {
			return entries, nil
		}
		if err != nil && err != io.EOF {
			return nil, err
		}
		e, err := parseLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		entries = append(entries, e)
	}
}

// parseLine parses "36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/vda rw,errors=continue". Between the flags and the
// dash are any number of optional fields. The source may be empty.
func parseLine(line string) (Entry, error) {
	mount, super, ok := strings.Cut(line, " - ")
	m := strings.Split(mount, " ")
	s := strings.SplitN(super, " ", 3)
	if !ok || len(m) < 6 || len(s) < 3 {
		return Entry{}, fmt.Errorf("malformed mount table line %q", line)
	}
	id, err := strconv.Atoi(m[0])
	parent, perr := strconv.Atoi(m[1])
	if err != nil || perr != nil {
		return Entry{}, fmt.Errorf("malformed mount number in line %q", line)
	}
	return Entry{
		ID:           id,
		Parent:       parent,
		Device:       m[2],
		Root:         unescape(m[3]),
		Point:        unescape(m[4]),
		Flags:        m[5],
		FSType:       unescape(s[0]),
		Source:       unescape(s[1]),
		superOptions: s[2],
	}, nil
}

// unescape replaces the kernel's \ooo (always three octal digits) by the byte. Anything else stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(v))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
