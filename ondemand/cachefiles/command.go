package cachefiles

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// commandMost is the longest command that the kernel takes: a page with a NUL.
const commandMost = 4095

// idMost is the longest id that can be a cookie or name a volume: the kernel puts "erofs," and a letter before it, and file names end at
// 255 bytes. It does not check: longer keys have crashed it.
const idMost = 248

// CheckID says whether id can be an fsid, a domain_id or a device's cookie. All that the kernel can do with it must be the same as what is
// meant: no byte may have a meaning in a path or in mount options, or have the kernel encode the name of the cache file.
func CheckID(id string) error {
	if err := checkName(id, idMost); err != nil {
		return err
	}
	if strings.Contains(id, ",") {
		return fmt.Errorf("id %q: contains a comma, which ends it in mount options", id)
	}
	return nil
}

func checkName(name string, most int) error {
	if name == "" {
		return errors.New("id is empty")
	}
	if len(name) > most {
		return fmt.Errorf("id %.20q… has %d bytes, at most %d are possible", name, len(name), most)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == '/' {
			return fmt.Errorf("id %q: byte %#02x is not possible", name, c)
		}
	}
	return nil
}

// Limits are percentages of the blocks, and of the inodes, of the filesystem that the cache is on. The zero value leaves the kernel's.
type Limits struct {
	// Run is how much must be free for the kernel not to want anything culled, and Cull how little for it to begin to; 7 and 5.
	Run, Cull int
	// Stop is how little must be free for the kernel to make no new cache files, and to refuse data for those that exist; 1.
	Stop int
}

// kernelLimits are in force when nothing is said.
var kernelLimits = Limits{Run: 7, Cull: 5, Stop: 1}

func (l Limits) check() error {
	if l.Stop < 0 || l.Stop >= l.Cull || l.Cull >= l.Run || l.Run >= 100 {
		return fmt.Errorf("limits of %d %% (run), %d %% (cull) and %d %% (stop): must be 100 > run > cull > stop >= 0", l.Run, l.Cull, l.Stop)
	}
	return nil
}

// commands returns what brings the kernel from its own limits to l. It compares each one with the others in force then, so an order
// must be found: there is always one.
func (l Limits) commands() ([]string, error) {
	if l == (Limits{}) {
		return nil, nil
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	var list []string
	for have := kernelLimits; have != l; {
		for _, step := range []struct {
			name string
			to   Limits
			n    int
		}{
			{"stop", Limits{have.Run, have.Cull, l.Stop}, l.Stop},
			{"run", Limits{l.Run, have.Cull, have.Stop}, l.Run},
			{"cull", Limits{have.Run, l.Cull, have.Stop}, l.Cull},
		} {
			if step.to != have && step.to.check() == nil {
				for _, of := range []string{"b", "f"} {
					list = append(list, fmt.Sprintf("%s%s %d%%", of, step.name, step.n))
				}
				have = step.to
				break
			}
		}
	}
	return list, nil
}

// bringUp returns the commands that make a cache of an open device, in their order.
func bringUp(o Options) ([]string, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("cache directory %q: not an absolute path", o.Dir)
	}
	list := []string{"dir " + filepath.Clean(o.Dir)}
	if o.Tag != "" {
		if err := checkName(o.Tag, idMost); err != nil {
			return nil, fmt.Errorf("tag of the cache: %w", err)
		}
		list = append(list, "tag "+o.Tag)
	}
	limits, err := o.Limits.commands()
	if err != nil {
		return nil, err
	}
	list = append(append(list, limits...), "bind ondemand")
	for _, c := range list {
		if err := checkCommand(c); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// checkCommand says whether the kernel would understand a command as it is meant.
func checkCommand(c string) error {
	if len(c) > commandMost {
		return fmt.Errorf("command %.20q… has %d bytes, the kernel takes %d", c, len(c), commandMost)
	}
	if strings.ContainsAny(c, "\x00\n") {
		return fmt.Errorf("command %q contains a NUL or the end of a line", c)
	}
	return nil
}

// copen answers an OPEN with the size of the object.
func copen(id uint32, size int64) string { return fmt.Sprintf("copen %d,%d", id, size) }
