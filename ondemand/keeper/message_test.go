package keeper

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range []message{
		helloOf(daemon),
		{kind: hold, id: 7, name: "n", body: []byte("note")},
		{kind: held, name: strings.Repeat("n", MaxNameBytes), body: bytes.Repeat([]byte{0}, MaxNoteBytes)},
		{kind: drop, id: 1 << 31, name: "n"},
		{kind: end},
	} {
		got, err := parse(m.append(nil))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, %v, want %+v", got, err, m)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := message{kind: hold, name: "name", body: []byte("note")}.append(nil)
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, packet := range map[string][]byte{
		"empty":          {},
		"cut header":     good[:headerBytes-1],
		"cut name":       good[:headerBytes+2],
		"kind 0":         changed(0, 0),
		"unknown kind":   changed(0, byte(lastKind)+1),
		"reserved":       changed(2, 1),
		"no name":        changed(1, 0),
		"name too long":  changed(1, 200),
		"control":        changed(headerBytes, '\n'),
		"space":          changed(headerBytes, ' '),
		"not ASCII":      changed(headerBytes, 0xc3),
		"name for end":   changed(0, byte(end)),
		"note too long":  append(bytes.Clone(good), make([]byte, MaxNoteBytes)...),
		"larger than it": make([]byte, maxPacketBytes+1),
	} {
		if m, err := parse(packet); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
}

func TestHello(t *testing.T) {
	for _, want := range []role{observer, daemon, successor, returning} {
		if got, err := parseHello(helloOf(want)); err != nil || got != want {
			t.Errorf("got role %d, %v, want %d", got, err, want)
		}
	}
	version, long := helloOf(daemon), helloOf(daemon)
	version.body[len(magic)]++
	long.body = append(long.body, 0)
	for name, m := range map[string]message{
		"role 0": helloOf(0), "unknown role": helloOf(lastRole + 1), "no hello": {kind: end},
		"empty": {kind: hello}, "another version": version, "too long": long,
	} {
		if r, err := parseHello(m); err == nil {
			t.Errorf("%s: accepted as role %d", name, r)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(helloOf(successor).append(nil))
	f.Add(message{kind: hold, id: 3, name: "a", body: []byte("b")}.append(nil))
	f.Add(ackOf(9, errReplaced).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(m.append(nil), b) {
			t.Errorf("%x is written as %x", b, m.append(nil))
		}
		if r, err := parseHello(m); err == nil && (r < observer || r > lastRole) {
			t.Errorf("role %d", r)
		}
	})
}
