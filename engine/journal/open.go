package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// UnreadableError says that a record cannot be read, so that nobody knows what is in it.
type UnreadableError struct {
	Path string
	Err  error
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("the journal %s cannot be read: %v", e.Path, e.Err)
}

func (e *UnreadableError) Unwrap() error { return e.Err }

// openRecord opens a record to read it.
func openRecord(path string) (*os.File, error) {
	f, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return f, nil
}

// unreadable is err about a file that the message names anyway.
func unreadable(path string, err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return &UnreadableError{path, err}
}

// openRegular opens a file and nothing else: a pipe of that name would keep whoever opens it waiting for ever, and a link may lead anywhere. New
// files have the mode 0600.
func openRegular(path string, flag int) (*os.File, error) {
	refuse := func(mode fs.FileMode) error { return &fs.PathError{Op: "open", Path: path, Err: irregular(mode)} }
	// Before it is opened, for with a device that does something; and again afterwards, for another may have taken its place.
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, refuse(info.Mode())
	}
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse(info.Mode())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// irregular says what a file is that is none.
func irregular(mode fs.FileMode) error {
	what := "something else"
	switch {
	case mode&fs.ModeSymlink != 0:
		what = "a symbolic link"
	case mode.IsDir():
		what = "a directory"
	case mode&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case mode&fs.ModeSocket != 0:
		what = "a socket"
	case mode&fs.ModeDevice != 0:
		what = "a device"
	}
	return fmt.Errorf("it is %s and not a regular file", what)
}

// readRegular reads a small file as a whole.
func readRegular(path string) ([]byte, error) {
	f, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}
