package gnutar

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strings"
)

// history is what the extracted tree no longer tells about how it came to be.
type history struct {
	// implied are directories that exist only because something lies below them.
	implied map[string]bool
	// opaque are directories that took the place of a non-directory of the same archive.
	opaque map[string]bool
	// directory has every path of the tree, and says whether it is a directory.
	directory map[string]bool
}

// readHistory goes through the entries of an uncompressed tar. It does not follow symlinks: it is meant for archives that name
// every path in one way only.
func readHistory(tarFile string) (*history, error) {
	f, err := os.Open(tarFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := &history{
		implied:   map[string]bool{".": true},
		opaque:    map[string]bool{},
		directory: map[string]bool{".": true},
	}
	for in := tar.NewReader(f); ; {
		entry, err := in.Next()
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return nil, err
		}
		h.add(path.Clean("/" + entry.Name)[1:], entry)
	}
}

func (h *history) add(name string, entry *tar.Header) {
	if name == "" {
		delete(h.implied, ".")
		return
	}
	device := entry.Typeflag == tar.TypeChar && entry.Devmajor == 0 && entry.Devminor == 0
	if base := path.Base(name); device || strings.HasPrefix(name, ".wh..wh.") || strings.HasPrefix(base, ".wh..wh.") && base != ".wh..wh..opq" {
		return // dropped
	}
	for parent := path.Dir(name); !h.directory[parent]; parent = path.Dir(parent) {
		h.directory[parent], h.implied[parent] = true, true
	}
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return
	}
	isDirectory, exists := h.directory[name]
	switch {
	case entry.Typeflag == tar.TypeDir:
		h.opaque[name] = h.opaque[name] || exists && !isDirectory
		delete(h.implied, name)
	case isDirectory:
		h.forget(name)
	}
	h.directory[name] = entry.Typeflag == tar.TypeDir
}

// forget removes what a file in the place of a directory removes.
func (h *history) forget(name string) {
	for p := range h.directory {
		if p == name || strings.HasPrefix(p, name+"/") {
			delete(h.directory, p)
			delete(h.implied, p)
			delete(h.opaque, p)
		}
	}
}
