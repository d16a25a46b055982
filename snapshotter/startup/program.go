package startup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// environment is what of an image's environment decides where files are looked for.
type environment struct {
	path    []string // of programs
	library []string // of libraries, before others
	preload []string // libraries that every program is given
}

func newEnvironment(env []string) environment {
	// What runc takes if the image says nothing.
	e := environment{path: strings.Split("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ":")}
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if len(value) > maxName {
			continue
		}
		switch name {
		case "PATH":
			e.path = strings.Split(value, ":")
		case "LD_LIBRARY_PATH":
			e.library = strings.FieldsFunc(value, func(c rune) bool { return c == ':' || c == ';' })
		case "LD_PRELOAD":
			e.preload = strings.FieldsFunc(value, func(c rune) bool { return c == ':' || c == ' ' })
		}
	}
	return e
}

// start reads the program that name stands for, as a first argument does.
func (f *fetch) start(name string) {
	one, err := f.program(name)
	if err == nil {
		f.executed(one, 0)
	} else if !errors.Is(err, errSeen) {
		f.failed(fmt.Errorf("program %q: %w", name, err))
	}
}

// program finds what execvp would execute.
func (f *fetch) program(name string) (*file, error) {
	if strings.Contains(name, "/") {
		return f.find(f.below(name), true)
	}
	err := error(unix.ENOENT)
	for _, dir := range f.env.path {
		var one *file
		if one, err = f.find(f.below(path.Join(dir, name)), true); err == nil || errors.Is(err, errSeen) {
			return one, err
		}
	}
	return nil, err
}

// below makes a name relative to the root that is relative to the working directory.
func (f *fetch) below(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return "/" + f.dir + "/" + name
}

// executed reads a file as the kernel needs it that executes it. depth is how many scripts have led to it.
func (f *fetch) executed(one *file, depth int) {
	if o, err := f.object(one, nil); err == nil {
		for _, name := range f.env.preload {
			f.push(func([]byte) { f.library(name, o) })
		}
		return
	}
	f.read(one, 0, headBytes)
	head := make([]byte, 256) // what the kernel looks at
	n, err := one.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		f.failed(fmt.Errorf("%s: %w", one.path, err))
		return
	}
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	rest, script := bytes.CutPrefix(line, []byte("#!"))
	words := strings.Fields(string(rest))
	if !script || len(words) == 0 || depth == maxScripts {
		return
	}
	if path.Base(words[0]) == "env" {
		words = append(words[:1], programOfEnv(words[1:])...)
	} else {
		words = words[:1]
	}
	for _, name := range words {
		f.push(func([]byte) {
			if one, err := f.program(name); err == nil {
				f.executed(one, depth+1)
			}
		})
	}
}

// programOfEnv is what env(1) starts: none or one.
func programOfEnv(args []string) []string {
	for i, arg := range args {
		if !strings.HasPrefix(arg, "-") && !strings.Contains(arg, "=") {
			return args[i : i+1]
		}
	}
	return nil
}

// words reads the files that the program's arguments name, if they do: what a script or an init program starts, a shell's commands, files to
// be interpreted.
func (f *fetch) words(args []string) {
	left := maxWords
	for _, arg := range args {
		for _, word := range strings.Fields(arg) {
			if left--; left < 0 {
				return
			}
			if strings.HasPrefix(word, "-") {
				_, word, _ = strings.Cut(word, "=")
			}
			if word = strings.Trim(word, `"';&|()`); word == "" {
				continue
			}
			f.push(func([]byte) { f.word(word) })
		}
	}
}

func (f *fetch) word(word string) {
	one, err := f.program(word)
	if err != nil && !errors.Is(err, errSeen) {
		one, err = f.find(f.below(word), false)
	}
	if err == nil {
		f.executed(one, 0)
	}
}

// accounts reads what containerd reads for the user's numbers.
func (f *fetch) accounts() {
	for _, name := range []string{"/etc/passwd", "/etc/group"} {
		if one, err := f.find(name, false); err == nil {
			f.read(one, 0, headBytes)
		}
	}
}
