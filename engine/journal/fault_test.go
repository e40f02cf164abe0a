package journal

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// faults is a real disk on which things go wrong.
type faults struct {
	osDisk
	failAt int           // the call that fails, from 1; 0 for none
	off    bool          // and all after it: the power is gone
	errno  syscall.Errno // of the failure
	room   int64         // bytes that may still be written, if full is set
	full   bool
	gate   func() // called in every sync
	lazy   bool   // syncs are only counted

	mu     sync.Mutex
	calls  int
	syncs  int
	failed string           // what failed
	after  int              // writes and syncs tried on that file since
	synced map[string]int64 // path → size when last synced
}

// call counts a call and says whether it fails.
func (d *faults) call(what, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	if d.failed == path && (what == "write" || what == "sync") {
		d.after++
	}
	if d.failAt != 0 && (d.calls == d.failAt || d.off && d.calls > d.failAt) {
		if d.failed == "" && (what == "write" || what == "sync") {
			d.failed = path
		}
		return &os.PathError{Op: what, Path: path, Err: d.errno}
	}
	return nil
}

func (d *faults) open(path string, flag int) (file, error) {
	if err := d.call("open", path); err != nil {
		return nil, err
	}
	f, err := d.osDisk.open(path, flag)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file: f, d: d, path: path}, nil
}

func (d *faults) mkdir(path string) error {
	if err := d.call("mkdir", path); err != nil {
		return err
	}
	return d.osDisk.mkdir(path)
}

func (d *faults) link(from, to string) error {
	if err := d.call("link", to); err != nil {
		return err
	}
	return d.osDisk.link(from, to)
}

func (d *faults) rename(from, to string) error {
	if err := d.call("rename", to); err != nil {
		return err
	}
	return d.osDisk.rename(from, to)
}

func (d *faults) remove(path string) error {
	if err := d.call("remove", path); err != nil {
		return err
	}
	return d.osDisk.remove(path)
}

func (d *faults) syncDir(path string) error {
	if err := d.call("syncdir", path); err != nil || d.lazy {
		return err
	}
	return d.osDisk.syncDir(path)
}

// syncsNow is syncs while a writer is at work.
func (d *faults) syncsNow() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

type faultyFile struct {
	file
	d    *faults
	path string
}

// Write fails after half of its bytes, as a disk may.
func (f *faultyFile) Write(b []byte) (int, error) {
	if err := f.d.call("write", f.path); err != nil {
		n, _ := f.file.Write(b[:len(b)/2])
		return n, err
	}
	f.d.mu.Lock()
	room, full := f.d.room, f.d.full
	f.d.room -= min(room, int64(len(b)))
	f.d.mu.Unlock()
	if full && int64(len(b)) > room {
		n, _ := f.file.Write(b[:room])
		return n, &os.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
	}
	return f.file.Write(b)
}

func (f *faultyFile) datasync() error {
	if f.d.gate != nil {
		f.d.gate()
	}
	if err := f.d.call("sync", f.path); err != nil {
		return err
	}
	if !f.d.lazy {
		if err := f.file.datasync(); err != nil {
			return err
		}
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.syncs++
	if f.d.synced == nil {
		f.d.synced = map[string]int64{}
	}
	// The first line is synced under a temporary name.
	name := strings.TrimSuffix(strings.Replace(f.path, "/runs/.", "/runs/", 1), ".new")
	f.d.synced[strings.TrimSuffix(name, ".jsonl")+".jsonl"] = st.Size()
	return nil
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.d.call("truncate", f.path); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

// tmpfs mounts a file system of so many bytes, and returns its place and a way to give it another size.
func tmpfs(t *testing.T, bytes int) (dir string, resize func(bytes int)) {
	dir = t.TempDir()
	mount := func(flags uintptr, bytes int) error {
		return unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=0700,size="+itoa(bytes))
	}
	if err := mount(0, bytes); err != nil {
		t.Skipf("cannot mount a file system of a fixed size: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func(bytes int) {
		if err := mount(unix.MS_REMOUNT, bytes); err != nil {
			t.Fatal(err)
		}
	}
}
