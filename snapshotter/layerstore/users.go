package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// usersName is a file beside the others of a lazy instance that becomes an orphan because nobody has answered for it: it says who may have read
// wrong data. It goes with the directory.
//
//	{"users": ["name of a snapshot", ...]}
const usersName = "users.json"

// maxUsersBytes is the length of the largest such file: 10,000 containers take 1 MiB.
const maxUsersBytes = 4 << 20

type usersFile struct {
	Users []string `json:"users"`
}

// NoteUsers notes in the directory of an instance, wherever that is, who reads from it. It is on stable storage then. What was noted before is
// replaced.
func NoteUsers(dir string, users []string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", usersName, err)
		}
	}()
	b, err := json.Marshal(usersFile{users})
	if err != nil {
		return err
	}
	if len(b) > maxUsersBytes {
		return fmt.Errorf("%d bytes, more than %d", len(b), maxUsersBytes)
	}
	next := filepath.Join(dir, usersName+".next")
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	if err := os.Rename(next, filepath.Join(dir, usersName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// ForgetUsers takes away what NoteUsers has noted.
func ForgetUsers(dir string) error {
	if err := os.Remove(filepath.Join(dir, usersName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Users returns what NoteUsers has noted, and whether it has noted anything. That is so also if it cannot be read.
func Users(dir string) (users []string, noted bool, err error) {
	f, err := os.Open(filepath.Join(dir, usersName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, true, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxUsersBytes+1))
	if err == nil && len(b) > maxUsersBytes {
		err = fmt.Errorf("more than %d bytes", maxUsersBytes)
	}
	var read usersFile
	if err == nil {
		err = json.Unmarshal(b, &read)
	}
	if err != nil {
		return nil, true, fmt.Errorf("%s: %w", usersName, err)
	}
	return read.Users, true, nil
}
