package fanotify

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sampleEvent is what the kernel hands out for a read of 8 KiB at 4 KiB.
func sampleEvent(number int32) []byte {
	b := make([]byte, eventBytes)
	ne := binary.NativeEndian
	ne.PutUint32(b, eventBytes)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	ne.PutUint16(b[6:], metadataBytes)
	ne.PutUint64(b[8:], unix.FAN_PRE_ACCESS)
	ne.PutUint32(b[16:], uint32(number))
	b[24] = unix.FAN_EVENT_INFO_TYPE_RANGE
	ne.PutUint16(b[26:], rangeBytes)
	ne.PutUint64(b[32:], 4096)
	ne.PutUint64(b[40:], 8192)
	return b
}

// samplePage is a journal in which slot 3 is taken by an event, slot 4 by none, and slot 5 by one that was answered.
func samplePage(ino uint64) []byte {
	page := make([]byte, journalBytes)
	copy(page, journalHeader(ino))
	for i, state := range map[int]uint32{3: stateTaken, 5: stateFree} {
		copy(slotOf(page, i), sampleEvent(int32(i+10)))
		binary.NativeEndian.PutUint32(slotOf(page, i)[stateOffset:], state)
	}
	binary.NativeEndian.PutUint32(slotOf(page, 4)[stateOffset:], stateTaken)
	return page
}

func TestParseSlot(t *testing.T) {
	page := samplePage(1)
	must(t, checkPage(page, 1))
	for i := range slots {
		e, ok, err := parseSlot(page, i, 8000)
		if err != nil || ok != (i == 3) {
			t.Errorf("slot %d: %v, %v", i, ok, err)
		}
		if want := (event{slot: 3, number: 13, off: 4096, n: 8000 - 4096}); ok && e != want {
			t.Errorf("got %+v, want %+v", e, want)
		}
	}
}

func TestCheckPage(t *testing.T) {
	damage := map[string]func(page []byte){
		"not a journal":    func(p []byte) { p[0]++ },
		"another release":  func(p []byte) { p[8]++ },
		"damaged header":   func(p []byte) { p[12]++ },
		"of inode 2":       func(p []byte) { binary.NativeEndian.PutUint64(p[16:], 2) },
		"unknown state 7":  func(p []byte) { slotOf(p, 3)[stateOffset] = 7 },
		"version 4":        func(p []byte) { slotOf(p, 3)[4] = 4 },
		"49 bytes":         func(p []byte) { slotOf(p, 3)[0] = 49 },
		"23 bytes":         func(p []byte) { slotOf(p, 3)[0] = 23 },
		"kind 5":           func(p []byte) { slotOf(p, 3)[24] = 5 },
		"metadata, want 3": func(p []byte) { slotOf(p, 3)[6] = 32 },
	}
	for want, change := range damage {
		page := samplePage(1)
		change(page)
		if err := checkPage(page, 1); err == nil || !strings.Contains(err.Error(), strings.Split(want, ",")[0]) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if err := checkPage(samplePage(1)[:100], 1); err == nil {
		t.Error("took a short page")
	}
}

func TestParseEvent(t *testing.T) {
	const size = 10000
	for name, c := range map[string]struct {
		change func([]byte)
		ok     bool
		off, n int64
	}{
		"range":             {func([]byte) {}, true, 4096, size - 4096},
		"within":            {func(b []byte) { binary.NativeEndian.PutUint64(b[40:], 100) }, true, 4096, 100},
		"behind the end":    {func(b []byte) { binary.NativeEndian.PutUint64(b[32:], 12288) }, true, size, 0},
		"overflows":         {func(b []byte) { binary.NativeEndian.PutUint64(b[40:], 1<<64-1) }, true, 4096, size - 4096},
		"without a range":   {func(b []byte) { b[0] = metadataBytes }, true, 0, size},
		"nothing":           {func(b []byte) { clear(b) }, false, 0, 0},
		"queue overflow":    {func(b []byte) { binary.NativeEndian.PutUint64(b[8:], unix.FAN_Q_OVERFLOW) }, false, 0, 0},
		"no descriptor":     {func(b []byte) { binary.NativeEndian.PutUint32(b[16:], 1<<32-24) }, false, 0, 0},
		"only a notice":     {func(b []byte) { b[0] = metadataBytes; binary.NativeEndian.PutUint64(b[8:], unix.FAN_ACCESS) }, false, 0, 0},
		"behind 2^63":       {func(b []byte) { binary.NativeEndian.PutUint64(b[32:], 1<<63) }, true, size, 0},
		"count beyond 2^63": {func(b []byte) { binary.NativeEndian.PutUint64(b[40:], 1<<63) }, true, 4096, size - 4096},
	} {
		b := sampleEvent(7)
		c.change(b)
		e, ok, err := parseEvent(b, size)
		if err != nil || ok != c.ok || e.off != c.off || e.n != c.n {
			t.Errorf("%s: got %+v, %v, %v", name, e, ok, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(samplePage(1)[slotBytes:], int64(1<<20))
	f.Add(sampleEvent(3), int64(100))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		size = max(size, 0)
		page := make([]byte, journalBytes)
		copy(page, journalHeader(1))
		copy(page[slotBytes:], b)
		before := bytes.Clone(page)
		good := checkPage(page, 1) == nil
		for i := range slots {
			e, ok, err := parseSlot(page, i, size)
			if good && err != nil {
				t.Errorf("slot %d of a page that was found to be good: %v", i, err)
			}
			if ok && (err != nil || e.number < 0 || e.off < 0 || e.n < 0 || e.n > size-e.off || e.slot != i) {
				t.Errorf("slot %d: %+v, %v", i, e, err)
			}
		}
		if !bytes.Equal(page, before) {
			t.Error("the page was changed")
		}
	})
}

// A group is adopted only with its own journal and data.
func TestAdoptRefuses(t *testing.T) {
	l, g, _ := watched(t, 1<<20)
	group, journal := g.Files()
	other, err := os.OpenFile(t.TempDir()+"/other", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer other.Close()
	h, err := New(other)
	must(t, err)
	defer h.Close()
	otherGroup, otherJournal := h.Files()
	old, err := newJournal(g.inode(t))
	must(t, err)
	defer old.close()
	old.page[8]++
	for name, c := range map[string]struct{ group, journal, data *os.File }{
		"the group watches inode": {otherGroup, journal, l.data},
		"journal: it is of inode": {group, otherJournal, l.data},
		"of inode":                {group, journal, other},
		"another release":         {group, old.file, l.data},
		"not a fanotify group":    {l.data, journal, l.data},
		"bytes, want 4096":        {group, l.data, l.data},
		"not a regular file":      {group, journal, group},
	} {
		next, err := Adopt(dup(t, c.group), dup(t, c.journal), c.data)
		if err == nil {
			next.Close()
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := adoptCopy(t, g, l.data); err != nil {
		t.Error(err)
	}
}

func (g *Group) inode(t testing.TB) uint64 {
	t.Helper()
	st, err := stat(g.data)
	must(t, err)
	return st.Ino
}
