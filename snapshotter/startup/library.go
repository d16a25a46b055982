package startup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// loaded is an object that the dynamic loader maps: a program or a library.
type loaded struct {
	*object
	path string
	// rpath are directories that the objects have named that led to this one.
	rpath []string
}

// Bounds of the search for libraries.
const (
	maxDirs       = 64
	maxCacheBytes = 4 << 20
	maxCached     = 64 << 10 // libraries
)

var errMachine = errors.New("for another machine")

// object has an ELF file read as the loader needs it, and the libraries that it names looked for. by is what needs it, nil for a program.
func (f *fetch) object(one *file, by *loaded) (*loaded, error) {
	if one.size <= wholeBytes && isELF(one) {
		f.read(one, 0, one.size) // before it is looked at, which takes several reads of missing data
	}
	parsed, err := parseELF(one, one.size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", one.path, err)
	}
	o := &loaded{object: parsed, path: one.path}
	if by != nil && (by.machine != o.machine || by.order != o.order) {
		return nil, fmt.Errorf("%s: %w", one.path, errMachine)
	}
	if len(o.runpath) == 0 {
		o.rpath = directories(o.object.rpath, one.path)
		if by != nil {
			o.rpath = append(o.rpath, by.rpath...)
		}
		o.rpath = o.rpath[:min(len(o.rpath), maxDirs)]
	}
	if o.interp != "" && by == nil {
		f.push(func([]byte) { f.library(o.interp, o) })
	}
	for _, name := range o.needed {
		f.push(func([]byte) { f.library(name, o) })
	}
	if one.size > wholeBytes {
		for _, r := range o.ranges {
			f.read(one, r.from, r.to)
		}
	}
	return o, nil
}

func isELF(r io.ReaderAt) bool {
	b := make([]byte, 4)
	_, err := r.ReadAt(b, 0)
	return err == nil && string(b) == elfMagic
}

// library finds a library as the loader does, and has it read.
func (f *fetch) library(name string, by *loaded) {
	if strings.Contains(name, "/") {
		f.tryLibrary(f.below(name), by)
		return
	}
	dirs := append(append([]string{}, by.rpath...), f.env.library...)
	dirs = append(dirs, directories(by.runpath, by.path)...)
	if len(dirs) == 0 && !f.askOnce(name) {
		return
	}
	for _, dir := range dirs {
		if f.tryLibrary(path.Join(f.below(dir), name), by) {
			return
		}
	}
	for _, found := range f.cache()[name] {
		if f.tryLibrary(found, by) {
			return
		}
	}
	for _, dir := range defaultDirs(by.machine) {
		if f.tryLibrary(path.Join(dir, name), by) {
			return
		}
	}
}

// askOnce says whether a library was not yet looked for where all objects look.
func (f *fetch) askOnce(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.asked[name]
	f.asked[name] = true
	return !known
}

func (f *fetch) tryLibrary(name string, by *loaded) (found bool) {
	one, err := f.find(name, false)
	if err == nil {
		_, err = f.object(one, by)
	}
	return err == nil || errors.Is(err, errSeen) || errors.Is(err, errFull)
}

// directories are those of a list in an object, with what $ORIGIN stands for.
func directories(list, origin string) []string {
	var dirs []string
	for _, dir := range strings.Split(list, ":") {
		dir = strings.NewReplacer("$ORIGIN", path.Dir(origin), "${ORIGIN}", path.Dir(origin)).Replace(dir)
		if dir != "" && len(dir) <= maxName && !strings.Contains(dir, "$") && len(dirs) < maxDirs {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// multiarch are Debian's names of directories, by ELF's numbers of machines.
var multiarch = map[uint16]string{
	21: "powerpc64le-linux-gnu", 22: "s390x-linux-gnu", 62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu", 243: "riscv64-linux-gnu", 258: "loongarch64-linux-gnu",
}

// defaultDirs are those that glibc's and musl's loaders look into by themselves.
func defaultDirs(machine uint16) []string {
	dirs := []string{"/lib64", "/usr/lib64", "/lib", "/usr/local/lib", "/usr/lib"}
	if name := multiarch[machine]; name != "" {
		dirs = append([]string{"/lib/" + name, "/usr/lib/" + name}, dirs...)
	}
	return dirs
}

// readCache reads the cache of glibc's loader, which says where libraries are. Without one, or with one that is not understood, there are the
// default directories. It is read whole: so does the loader.
func (f *fetch) readCache() map[string][]string {
	one, err := f.find("/etc/ld.so.cache", false)
	if err != nil {
		return nil
	}
	b := make([]byte, min(one.size, maxCacheBytes))
	if _, err := one.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		f.failed(fmt.Errorf("%s: %w", one.path, err))
		return nil
	}
	return parseCache(b)
}

// parseCache reads the form that glibc has written since 2.2: alone, or after the one before it.
//
//	 0:20  magic   20:24 number of entries   24:48 not needed
//	48:..  number x { flags u32, offset of the name u32, of the path u32, not needed u32, features u64 }, in the machine's byte order
//	       the offsets, from the magic, are of strings that end with a zero
//
// Libraries for processors with certain features are left out.
func parseCache(b []byte) map[string][]string {
	const header, entry = 48, 24
	at := bytes.Index(b, []byte("glibc-ld.so.cache1.1"))
	if at < 0 || len(b)-at < header {
		return nil
	}
	b = b[at:]
	found := map[string][]string{}
	left := 2 * len(b) // of names and paths: in a hostile cache many are the same bytes
	for i := range min(int(binary.NativeEndian.Uint32(b[20:])), maxCached, (len(b)-header)/entry) {
		e := b[header+i*entry:]
		name, where := cString(b, binary.NativeEndian.Uint32(e[4:])), cString(b, binary.NativeEndian.Uint32(e[8:]))
		if left -= len(name) + len(where); left < 0 {
			break
		}
		if name != "" && strings.HasPrefix(where, "/") && binary.NativeEndian.Uint64(e[16:]) == 0 {
			found[name] = append(found[name], where)
		}
	}
	return found
}

// cString is the string at an offset, or the empty one if there is none.
func cString(b []byte, off uint32) string {
	if int64(off) >= int64(len(b)) {
		return ""
	}
	b = b[off:min(int64(len(b)), int64(off)+maxName)]
	end := bytes.IndexByte(b, 0)
	return string(b[:max(end, 0)])
}
