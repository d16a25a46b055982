package blob

import (
	"errors"
	"fmt"
	"iter"
)

// Create makes the files of a blob without any extent present, in a directory that has none of them, and puts them on stable storage. It
// does not sync the directory: the caller has more to put there. dataBytes is the length of the data blob; the extents must
// be in the order of their offsets and must not overlap. After an error the caller removes the directory.
func Create(dir string, id [32]byte, dataBytes int64, extents iter.Seq[Extent]) error {
	if err := create(osDirectory(dir), id, dataBytes, extents); err != nil {
		return fmt.Errorf("create blob %s: %w", dir, err)
	}
	return nil
}

func create(dir directory, id [32]byte, dataBytes int64, extents iter.Seq[Extent]) error {
	var head tableHead
	err := createFile(dir, ExtentsName, func(f file) (err error) {
		if head, err = writeTable(f, id, dataBytes, extents); err != nil {
			return err
		}
		return f.datasync()
	})
	if err != nil {
		return err
	}
	err = createFile(dir, DataName, func(f file) error {
		if err := f.truncate(dataBytes); err != nil {
			return err
		}
		return f.datasync()
	})
	if err != nil {
		return err
	}
	t := &table{head: head}
	return createFile(dir, PresentName, func(f file) error { return createRecord(f, t.recordHead()) })
}

func createFile(dir directory, name string, fill func(file) error) error {
	f, err := dir.create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(f), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
