package layerstore

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestUsers: names are kept as they are, and replaced as a whole.
func TestUsers(t *testing.T) {
	dir := t.TempDir()
	if users, noted, err := Users(dir); users != nil || noted || err != nil {
		t.Errorf("of nothing: %q, %v, %v", users, noted, err)
	}
	for _, want := range [][]string{{"default/1/box", "mount /mnt/ö \" \n"}, nil, {"third"}} {
		must(t, NoteUsers(dir, want))
		if users, noted, err := Users(dir); !slices.Equal(users, want) || !noted || err != nil {
			t.Errorf("%q, %v, %v; want %q", users, noted, err, want)
		}
	}
	if left := names(t, dir); !slices.Equal(left, []string{usersName}) {
		t.Errorf("files %q", left)
	}
	if err := NoteUsers(dir, []string{strings.Repeat("x", maxUsersBytes)}); err == nil {
		t.Error("what cannot be read again was written")
	}
	if users, _, err := Users(dir); len(users) != 1 || err != nil {
		t.Errorf("after an error: %q, %v", users, err)
	}
}

// TestDamagedUsers: what cannot be read was noted all the same.
func TestDamagedUsers(t *testing.T) {
	for _, content := range []string{"", "{", `{"users": 7}`, `{"users": ["` + strings.Repeat("x", maxUsersBytes) + `"]}`} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, usersName), []byte(content), 0o600))
		if users, noted, err := Users(dir); users != nil || !noted || err == nil || !strings.Contains(err.Error(), usersName) {
			t.Errorf("%.20q: %q, %v, %v", content, users, noted, err)
		}
	}
}
