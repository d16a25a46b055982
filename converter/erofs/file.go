package erofs

import "io"

// File is what the writer needs of a file. *os.File is one.
type File interface {
	io.WriterAt
	// Truncate sets the length; what was never written reads as zeros.
	Truncate(size int64) error
}
