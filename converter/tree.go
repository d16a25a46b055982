package converter

import (
	"errors"
	"fmt"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
)

// tree is the layer as it will stand in the image: what tar entries or a directory put there, later entries over earlier ones.
type tree struct {
	root *directory
}

// node is what a name stands for: a directory, or an inode that was written to the image already.
type node struct {
	dir    *directory
	inode  *erofs.Inode
	target string // of a symbolic link: parents are looked up through links
	link   bool   // symbolic link
}

type directory struct {
	attr     erofs.Attr
	parent   *directory
	children map[string]*node
	// hidden are the names that this layer takes away from the layers below.
	hidden map[string]struct{}
	// opaque: nothing of the directory in the layers below shows through.
	opaque bool
}

// impliedAttr is what a directory gets that is named only as somebody's parent.
var impliedAttr = erofs.Attr{Mode: erofs.ModeDir | 0o755}

func newTree() *tree {
	root := &directory{attr: impliedAttr}
	root.parent = root
	return &tree{root: root}
}

const (
	maxPathBytes = 4096 // PATH_MAX
	maxLinks     = 255  // symbolic links followed for one path, as in containerd; the kernel allows 40
	maxSteps     = 4096 // components looked at for one path, those of the links' targets included
)

// splitPath cleans a path as it stands in an archive and splits it. The result is empty for the root.
func splitPath(path string) ([]string, error) {
	if len(path) > maxPathBytes {
		return nil, fmt.Errorf("path of %d bytes, Linux allows %d", len(path), maxPathBytes)
	}
	parts := strings.Split(path, "/")
	clean := parts[:0]
	for _, p := range parts {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return nil, errors.New(`".." in a path could lead out of the layer`)
		}
		if err := checkName(p); err != nil {
			return nil, err
		}
		clean = append(clean, p)
	}
	return clean, nil
}

func checkName(name string) error {
	if len(name) > erofs.MaxNameBytes {
		return fmt.Errorf("name of %d bytes, Linux allows %d", len(name), erofs.MaxNameBytes)
	}
	return nil
}

// directory returns the directory at a path below the root. Where it or its parents are missing they are made, after admit
// has agreed to each; a nil admit makes none. Symbolic links of the layer are followed, and never lead out of it: the layer's root
// is their root, as it is for containerd's applier.
func (t *tree) directory(path []string, admit func(name string) error) (*directory, error) {
	w := walk{root: t.root, admit: admit}
	return w.from(t.root, path)
}

// walk is the way along one path.
type walk struct {
	root         *directory
	admit        func(name string) error
	steps, links int
}

func (w *walk) from(d *directory, path []string) (*directory, error) {
	for _, name := range path {
		if w.steps++; w.steps > maxSteps {
			return nil, fmt.Errorf("more than %d directories on the way", maxSteps)
		}
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			d = d.parent
			continue
		}
		n := d.children[name]
		var err error
		switch {
		case n == nil:
			d, err = w.missing(d, name)
		case n.dir != nil:
			d = n.dir
		case n.link:
			d, err = w.follow(d, n.target)
		default:
			err = fmt.Errorf("%q is not a directory", name)
		}
		if err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (w *walk) follow(d *directory, target string) (*directory, error) {
	if w.links++; w.links > maxLinks {
		return nil, fmt.Errorf("more than %d symbolic links on the way", maxLinks)
	}
	if strings.HasPrefix(target, "/") {
		d = w.root
	}
	return w.from(d, strings.Split(target, "/"))
}

func (w *walk) missing(d *directory, name string) (*directory, error) {
	if w.admit == nil {
		return nil, fmt.Errorf("no directory %q in this layer", name)
	}
	if err := checkName(name); err != nil { // it may come from the target of a link
		return nil, err
	}
	if err := w.admit(name); err != nil {
		return nil, err
	}
	return d.mkdir(strings.Clone(name), impliedAttr), nil // name is part of a longer string
}

// lookup returns what a cleaned path stands for, nil if nothing. The last component is not followed.
func (t *tree) lookup(path []string) (*node, error) {
	if len(path) == 0 {
		return &node{dir: t.root}, nil
	}
	d, err := t.directory(path[:len(path)-1], nil)
	if err != nil {
		return nil, err
	}
	return d.children[path[len(path)-1]], nil
}

func (d *directory) mkdir(name string, a erofs.Attr) *directory {
	sub := &directory{attr: a}
	d.put(name, &node{dir: sub})
	return sub
}

// put gives a name to n. What had the name is gone, except that a directory over a directory is the same one with other
// attributes.
func (d *directory) put(name string, n *node) {
	old := d.children[name]
	if n.dir != nil && old != nil {
		if old.dir != nil {
			old.dir.attr = n.dir.attr
			return
		}
		// This layer replaced whatever was below by a non-directory first.
		n.dir.opaque = true
	}
	if n.dir != nil {
		n.dir.parent = d
	}
	if d.children == nil {
		d.children = make(map[string]*node)
	}
	d.children[name] = n
}

// hide takes a name away from the layers below. What this layer puts there itself stays, whichever comes first (OCI image
// specification, layer.md, "Whiteouts").
func (d *directory) hide(name string) {
	if d.hidden == nil {
		d.hidden = make(map[string]struct{})
	}
	d.hidden[name] = struct{}{}
}

// opaqueXattr marks an opaque directory for overlayfs.
var opaqueXattr = erofs.Xattr{Name: "trusted.overlay.opaque", Value: []byte("y")}

// image turns the tree into what the writer wants, with whiteouts in overlayfs form. They share one inode, which whiteout
// makes when the first is needed.
func (d *directory) image(below bool, whiteout func() (*erofs.Inode, error)) (*erofs.Dir, error) {
	below = below && !d.opaque
	out := &erofs.Dir{Attr: d.attr, Entries: make([]erofs.Entry, 0, len(d.children)+len(d.hidden))}
	if d.opaque {
		out.Attr.Xattrs = append(out.Attr.Xattrs[:len(out.Attr.Xattrs):len(out.Attr.Xattrs)], opaqueXattr)
	}
	for name := range d.hidden {
		switch n := d.children[name]; {
		case n != nil && n.dir != nil:
			n.dir.opaque = true
		case n == nil && below:
			// Below an opaque directory there is nothing to hide, and overlayfs would list the whiteout.
			w, err := whiteout()
			if err != nil {
				return nil, err
			}
			out.Entries = append(out.Entries, erofs.Entry{Name: name, Inode: w})
		}
	}
	for name, n := range d.children {
		e := erofs.Entry{Name: name, Inode: n.inode}
		if n.dir != nil {
			var err error
			if e.Dir, err = n.dir.image(below, whiteout); err != nil {
				return nil, err
			}
		}
		out.Entries = append(out.Entries, e)
	}
	return out, nil
}
