package machine

import (
	"slices"
	"strings"
	"testing"
)

func TestHasLine(t *testing.T) {
	for text, want := range map[string]bool{
		"":                           false,
		"reading\r\n":                true,
		"one\nreading\nthree":        true,
		"reading":                    false, // it may go on
		"not reading\nreading now\n": false,
	} {
		if got := hasLine(text, "reading"); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

// TestArguments: the host's files can only be read, and a disk is only written to when it is to be kept.
func TestArguments(t *testing.T) {
	args := Machine{Kernel: "bzImage", Disks: []Disk{{File: "root"}, {File: "state", Keep: true}}, Share: true}.arguments()
	for _, want := range []string{"file=root,format=raw,if=virtio,cache=unsafe,snapshot=on", "file=state,format=raw,if=virtio,cache=unsafe"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %q in %q", want, args)
		}
	}
	share := slices.IndexFunc(args, func(a string) bool { return strings.Contains(a, "mount_tag=host") })
	if share < 0 || !strings.Contains(args[share], "readonly=on") {
		t.Errorf("the share is not read-only: %q", args)
	}
	if args := (Machine{}).arguments(); slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "mount_tag") }) {
		t.Errorf("a share that nobody asked for: %q", args)
	}
}
