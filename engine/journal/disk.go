package journal

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// disk is every way in which this package changes a disk. The tests put one in its place that fails, or loses power, at the N-th call.
type disk interface {
	open(path string, flag int) (file, error) // new files have the mode 0600
	mkdir(path string) error                  // 0700
	link(from, to string) error
	rename(from, to string) error
	remove(path string) error
	syncDir(path string) error
}

type file interface {
	io.Writer
	io.ReaderAt
	io.Closer
	datasync() error
	Truncate(size int64) error
	Stat() (os.FileInfo, error)
	Fd() uintptr
}

// theDisk is the one of this machine.
var theDisk disk = osDisk{}

type osDisk struct{}

type osFile struct{ *os.File }

func (f osFile) datasync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (osDisk) open(path string, flag int) (file, error) {
	f, err := openRegular(path, flag)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) mkdir(path string) error      { return os.Mkdir(path, 0o700) }
func (osDisk) link(from, to string) error   { return os.Link(from, to) }
func (osDisk) rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) remove(path string) error     { return os.Remove(path) }

func (osDisk) syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
