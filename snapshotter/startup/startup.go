// Package startup reads what the program of an image certainly needs to start, many files at a time: the program, its dynamic loader, the
// libraries that it names and those that they name, the interpreters of scripts. Of a layer that is loaded on demand the loader would fetch
// them one after the other, each after a round trip to the registry.
//
// It only reads. Nothing of the image is executed or mapped, no name leads out of its root, and what the files say is believed for nothing but
// which file of the same tree to read next. Files, bytes, names and tables are bounded, see below.
//
// A read of a layer that is loaded on demand cannot be interrupted, but for the end of the process: Fetch belongs into a process of its own,
// which its starter may kill at any time. It keeps nothing.
package startup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// Bounds of one Fetch.
const (
	maxFiles = 256
	maxBytes = 64 << 20
	// maxNames is how many names are tried.
	maxNames = 16 << 10
	// maxScripts is how many scripts may be interpreters of each other. The kernel allows four.
	maxScripts = 4
	// maxWords is how many words of the arguments may be names of files.
	maxWords = 64
	// wholeBytes is up to which size an ELF file is read as a whole.
	wholeBytes = 2 << 20
	// headBytes is how much is read of a file that is no ELF file: a script, or data.
	headBytes = 1 << 20
)

const (
	workers = 8
	// pieceBytes is what one worker reads at a time of a file.
	pieceBytes = 256 << 10
	// readBytes is the largest read that the kernel hands on in one piece with its defaults (read_ahead_kb).
	readBytes = 128 << 10
)

// Program is what an image's configuration says about its program.
type Program struct {
	// Args are the entrypoint and its arguments.
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Dir is the working directory; empty is the root.
	Dir string `json:"dir,omitempty"`
}

// Report is what was read.
type Report struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// Full says that a bound was reached.
	Full bool `json:"full,omitempty"`
}

// Fetch reads what the program needs to start in the tree below root. It returns when ctx has ended and the reads that were under way have
// an answer. A file that cannot be read does not keep the others; the error is the first one.
func Fetch(ctx context.Context, root *os.File, p Program) (Report, error) {
	if len(p.Args) == 0 {
		return Report{}, errors.New("no program is named")
	}
	f, err := newFetch(root, p)
	if err != nil {
		return Report{}, err
	}
	return f.run(ctx, p.Args)
}

func newFetch(root *os.File, p Program) (*fetch, error) {
	base, err := nameOf(root)
	if err != nil {
		return nil, err
	}
	f := &fetch{root: root, base: base, dir: p.Dir, env: newEnvironment(p.Env), seen: map[inode]bool{}, asked: map[string]bool{}}
	f.idle.L = &f.mu
	f.cache = sync.OnceValue(f.readCache)
	return f, nil
}

// run reads what args need, which are not empty.
func (f *fetch) run(ctx context.Context, args []string) (Report, error) {
	defer f.close()
	f.push(func([]byte) { f.start(args[0]) })
	f.push(func([]byte) { f.cache() })
	f.push(func([]byte) { f.accounts() })
	f.push(func([]byte) { f.words(args[1:]) })
	stop := context.AfterFunc(ctx, f.end)
	defer stop()
	var working sync.WaitGroup
	for range workers {
		working.Go(f.work)
	}
	working.Wait()
	if f.err == nil {
		f.err = ctx.Err()
	}
	return f.report, f.err
}

// fetch is one Fetch.
type fetch struct {
	root  *os.File
	base  string // what the kernel calls the root
	dir   string // the program's working directory
	env   environment
	cache func() map[string][]string // the dynamic loader's, see library.go

	mu     sync.Mutex
	idle   sync.Cond          // the queue or the number of busy workers has changed
	queue  []func(buf []byte) // oldest first
	busy   int                // workers
	ended  bool               // nothing more begins
	seen   map[inode]bool     // files that were opened
	asked  map[string]bool    // libraries that were looked for where all objects look
	open   []*file            // closed at the end
	tried  int                // names
	taken  int64              // bytes that are read or will be
	report Report
	err    error
}

type inode struct{ device, number uint64 }

// push adds work, which is given a buffer of readBytes.
func (f *fetch) push(do func(buf []byte)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, do)
	f.idle.Signal()
}

// work does what is in the queue until nobody can add to it any more.
func (f *fetch) work() {
	buf := make([]byte, readBytes)
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		for len(f.queue) == 0 && f.busy > 0 && !f.ended {
			f.idle.Wait()
		}
		if len(f.queue) == 0 || f.ended {
			f.idle.Broadcast()
			return
		}
		do := f.queue[0]
		f.queue = f.queue[1:]
		f.busy++
		f.mu.Unlock()
		do(buf)
		f.mu.Lock()
		if f.busy--; f.busy == 0 {
			f.idle.Broadcast()
		}
	}
}

// end keeps work from beginning.
func (f *fetch) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.idle.Broadcast()
}

func (f *fetch) close() {
	for _, one := range f.open {
		one.Close()
	}
}

// failed notes an error.
func (f *fetch) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// read has a range of a file read, in pieces.
func (f *fetch) read(file *file, from, to int64) {
	f.mu.Lock()
	to = min(to, file.size, from+maxBytes-f.taken)
	f.report.Full = f.report.Full || f.taken == maxBytes
	if to > from {
		f.taken += to - from
	}
	f.mu.Unlock()
	for at := from; at < to; at += pieceBytes {
		f.push(func(buf []byte) { f.readPiece(file, at, min(at+pieceBytes, to), buf) })
	}
}

func (f *fetch) readPiece(file *file, from, to int64, buf []byte) {
	for from < to {
		n, err := file.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		from += int64(n)
		f.mu.Lock()
		f.report.Bytes += int64(n)
		ended := f.ended
		f.mu.Unlock()
		if err != nil {
			f.failed(fmt.Errorf("%s: %w", file.path, err))
		}
		if err != nil || ended {
			return
		}
	}
}
