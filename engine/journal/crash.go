//go:build crash

package journal

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A program built with the tag crash is for tests. It dies, as by kill -9, at one moment of the many at which a record may be cut off: just
// before, just after, and for what is written in the middle of, each call that changes the disk. RUNBOOK_CRASH is the number of that moment,
// from 1; RUNBOOK_CRASH_LOG a file that gets a line for each moment. If RUNBOOK_CRASH_AT is set, only moments that it names, by commas, count.
func init() {
	at, err := strconv.Atoi(os.Getenv("RUNBOOK_CRASH"))
	if err != nil {
		return
	}
	d := &crashingDisk{at: int64(at)}
	if kinds := os.Getenv("RUNBOOK_CRASH_AT"); kinds != "" {
		d.kinds = strings.Split(kinds, ",")
	}
	if path := os.Getenv("RUNBOOK_CRASH_LOG"); path != "" {
		if d.log, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			panic(err)
		}
	}
	theDisk = d
}

type crashingDisk struct {
	osDisk
	at    int64
	kinds []string // nil: all
	now   atomic.Int64
	log   io.Writer
}

// moment is one of those at which the program may die.
func (d *crashingDisk) moment(what string) {
	if d.kinds != nil && !slices.Contains(d.kinds, what) {
		return
	}
	n := d.now.Add(1)
	if d.log != nil {
		fmt.Fprintln(d.log, what)
	}
	if n == d.at {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal is on its way
	}
}

func (d *crashingDisk) around(what string, call func() error) error {
	d.moment("before " + what)
	err := call()
	d.moment("after " + what)
	return err
}

func (d *crashingDisk) open(path string, flag int) (f file, err error) {
	err = d.around("open", func() error {
		f, err = d.osDisk.open(path, flag)
		return err
	})
	if err != nil {
		return nil, err
	}
	return crashingFile{f, d}, nil
}

func (d *crashingDisk) mkdir(path string) error {
	return d.around("mkdir", func() error { return d.osDisk.mkdir(path) })
}

func (d *crashingDisk) link(from, to string) error {
	return d.around("link", func() error { return d.osDisk.link(from, to) })
}

func (d *crashingDisk) rename(from, to string) error {
	return d.around("rename", func() error { return d.osDisk.rename(from, to) })
}

func (d *crashingDisk) remove(path string) error {
	return d.around("remove", func() error { return d.osDisk.remove(path) })
}

func (d *crashingDisk) syncDir(path string) error {
	return d.around("sync of a directory", func() error { return d.osDisk.syncDir(path) })
}

type crashingFile struct {
	file
	d *crashingDisk
}

func (f crashingFile) Write(b []byte) (n int, err error) {
	err = f.d.around("write", func() error {
		half, err := f.file.Write(b[:len(b)/2])
		if err != nil {
			n = half
			return err
		}
		f.d.moment("in the middle of write")
		n, err = f.file.Write(b[half:])
		n += half
		return err
	})
	return n, err
}

func (f crashingFile) datasync() error { return f.d.around("sync", f.file.datasync) }

func (f crashingFile) Truncate(size int64) error {
	return f.d.around("truncate", func() error { return f.file.Truncate(size) })
}
