package tarstream

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The binary form of a POSIX ACL as Linux keeps it in an extended attribute, little endian:
//
//	0:4 version (2)   then, for each entry:   0:2 tag   2:4 permissions   4:8 id, or 0xffffffff
const (
	aclVersion = 2
	aclNoID    = 0xffffffff

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// errNamedACL is the error of an entry that names a user or group whose id is not in the archive.
var errNamedACL = errors.New("the id is not in the archive")

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// addACL converts the text of an ACL and adds it as an attribute. An access ACL that says no more than the mode is not stored: Linux does
// not keep it either. It returns 1 if the ACL had to be left out because it names somebody whose id is not known here.
func (p *paxRecords) addACL(name string, text []byte) (named int, err error) {
	entries, err := parseACL(string(text))
	if errors.Is(err, errNamedACL) {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%w: ACL: %w", ErrHeader, err)
	}
	const minimal = 3 // owner, group, others
	if len(entries) == minimal && name == "system.posix_acl_access" {
		return 0, nil
	}
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	p.setXattr(name, b)
	return 0, nil
}

// parseACL parses entries like "user:1000:r-x" or star's "user:games:r-x:5", separated by commas or newlines, and sorts them as
// Linux wants them.
func parseACL(text string) ([]aclEntry, error) {
	var list []aclEntry
	for line := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == ',' || c == '\n' }) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		e, err := parseACLEntry(line)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b aclEntry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id))
	})
	return list, checkACL(list)
}

func parseACLEntry(line string) (aclEntry, error) {
	fields := strings.Split(line, ":")
	if len(fields) < 3 || len(fields) > 4 {
		return aclEntry{}, fmt.Errorf("entry %q is not tag:qualifier:permissions", line)
	}
	e := aclEntry{id: aclNoID}
	named := fields[1] != ""
	switch fields[0] {
	case "user", "u":
		e.tag = aclUserObj
		if named {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if named {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return aclEntry{}, fmt.Errorf("entry %q has an unknown tag", line)
	}
	if named {
		if e.tag == aclMask || e.tag == aclOther {
			return aclEntry{}, fmt.Errorf("entry %q has a qualifier", line)
		}
		var err error
		if e.id, err = aclID(fields); err != nil {
			return aclEntry{}, err
		}
	}
	var err error
	e.perm, err = aclPerm(fields[2])
	return e, err
}

// aclID returns the id in the fourth field, which star adds, or a qualifier that is a number itself.
func aclID(fields []string) (uint32, error) {
	s := fields[len(fields)-1]
	if len(fields) == 3 {
		s = fields[1]
	}
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s %q: %w", fields[0], fields[1], errNamedACL)
	}
	if id >= aclNoID {
		return 0, fmt.Errorf("%s %q: id %d is not one of 32 bits", fields[0], fields[1], id)
	}
	return uint32(id), nil
}

func aclPerm(s string) (uint16, error) {
	var perm uint16
	for _, c := range []byte(s) {
		i := bytes.IndexByte([]byte("xwr"), c)
		if i >= 0 {
			perm |= 1 << i
		} else if c != '-' {
			return 0, fmt.Errorf("permissions %q", s)
		}
	}
	return perm, nil
}

// checkACL checks what Linux requires of a sorted ACL.
func checkACL(list []aclEntry) error {
	var count [aclOther + 1]int
	for i, e := range list {
		count[e.tag]++
		if i > 0 && e.tag == list[i-1].tag && e.id == list[i-1].id {
			return fmt.Errorf("two entries with tag %#x and the same id", e.tag)
		}
	}
	if count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1 {
		return fmt.Errorf("it does not have one entry each for owner, group and others")
	}
	if count[aclUser]+count[aclGroup] > 0 && count[aclMask] == 0 {
		return fmt.Errorf("it has named entries and no mask")
	}
	return nil
}
