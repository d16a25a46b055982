package toc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

// maxValueBytes is how much JSON one entry may take. An inode holds at most 256 KiB of attributes, 350 KiB in base64; names may be
// 4096 bytes, each six bytes long as an escape.
const maxValueBytes = 1 << 20

// scanner reads the JSON of a table of contents, entry by entry:
//
//	{"version": 1, "entries": [entry, ...], ...}
//
// Keys that it does not know are skipped.
type scanner struct {
	in      gate
	json    *json.Decoder
	version int64
	list    bool // inside of the entries
	seen    bool // the entries came
}

func newScanner(r io.Reader) (*scanner, error) {
	s := &scanner{in: gate{r: r}}
	s.json = json.NewDecoder(&s.in)
	if err := s.delimiter('{'); err != nil {
		return nil, err
	}
	return s, nil
}

// next fills e with the next entry. It returns io.EOF when all of the JSON was read and was right.
func (s *scanner) next(e *entry) error {
	for !s.list {
		s.open()
		if !s.json.More() {
			return s.end()
		}
		if err := s.key(); err != nil {
			return err
		}
	}
	s.open()
	if s.json.More() {
		*e = entry{}
		return s.decode(e)
	}
	s.list = false
	if err := s.delimiter(']'); err != nil {
		return err
	}
	return s.next(e)
}

// key reads a key of the outermost object and its value, or the beginning of the entries.
func (s *scanner) key() error {
	t, err := s.token()
	if err != nil {
		return err
	}
	switch t {
	case "version":
		return s.decode(&s.version)
	case "entries":
		if s.seen {
			return errors.New("entries twice")
		}
		s.seen = true
		t, err := s.token()
		if err == nil && t != nil && t != json.Delim('[') { // nil is null, an empty list as Go writes it
			err = fmt.Errorf("entries are %v, not a list", t)
		}
		s.list = t == json.Delim('[')
		return err
	default:
		var skipped json.RawMessage
		return s.decode(&skipped)
	}
}

// end reads the rest, of which only white space is allowed.
func (s *scanner) end() error {
	if err := s.delimiter('}'); err != nil {
		return err
	}
	if s.version != 1 {
		return fmt.Errorf("version %d, only 1 is known", s.version)
	}
	s.open()
	_, err := s.json.Token()
	if err == nil {
		err = errors.New("more data after the end")
	}
	return err
}

func (s *scanner) delimiter(want json.Delim) error {
	t, err := s.token()
	if err == nil && t != want {
		err = fmt.Errorf("%v where %q should be", t, want)
	}
	return err
}

func (s *scanner) token() (json.Token, error) {
	s.open()
	t, err := s.json.Token()
	return t, unexpected(err)
}

func (s *scanner) decode(v any) error {
	s.open()
	return unexpected(s.json.Decode(v))
}

// unexpected says that the JSON does not end here.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// open lets the decoder read as much as one value may have.
func (s *scanner) open() { s.in.allowed = s.json.InputOffset() + maxValueBytes }

// gate is a reader that refuses to go on behind a position. It bounds the memory of a decoder, which holds a value as a whole.
type gate struct {
	r           io.Reader
	at, allowed int64
}

func (g *gate) Read(p []byte) (int, error) {
	if g.at >= g.allowed {
		return 0, fmt.Errorf("%w: value of more than %d bytes", index.ErrLimit, maxValueBytes)
	}
	n, err := g.r.Read(p[:min(int64(len(p)), g.allowed-g.at)])
	g.at += int64(n)
	return n, err
}
