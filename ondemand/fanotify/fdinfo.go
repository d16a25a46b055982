package fanotify

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// parseMarks returns the numbers of the inodes that a fanotify group watches, from what the kernel says about its descriptor:
//
//	pos:	0
//	...
//	fanotify flags:3b event-flags:88000
//	fanotify ino:4f969 sdev:800013 mflags:0 mask:100000 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:69f90400c275b5b4
func parseMarks(fdinfo string) (inodes []uint64, err error) {
	group := false
	for line := range strings.Lines(fdinfo) {
		rest, ok := strings.CutPrefix(line, "fanotify ")
		if !ok {
			continue
		}
		group = group || strings.HasPrefix(rest, "flags:")
		for field := range strings.FieldsSeq(rest) {
			if hex, ok := strings.CutPrefix(field, "ino:"); ok {
				ino, err := strconv.ParseUint(hex, 16, 64)
				if err != nil {
					return nil, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
				}
				inodes = append(inodes, ino)
			}
		}
	}
	if !group {
		return nil, errors.New("not a fanotify group")
	}
	return inodes, nil
}
