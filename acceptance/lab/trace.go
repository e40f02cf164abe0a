package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tracedCalls are the system calls that change something, with those that open a file, which may.
const tracedCalls = "open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat," +
	"chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,truncate,ftruncate,mknod,mknodat,utime,utimes,utimensat,futimesat," +
	"setxattr,lsetxattr,fsetxattr,removexattr,mount,umount2,kill,tkill,tgkill,reboot,sethostname,settimeofday,clock_settime,swapon,swapoff"

// Trace runs f and returns what the host's sshd, the logins on it and everything that they started attempted meanwhile that would change
// something: system calls with their first path, numbers written as N, each once and in order of their text. Attempts that failed are among them; the
// shell's own files, in the transport's private directory, files without a name, and /dev/null are not.
func (h *Host) Trace(ctx context.Context, f func() error) (attempts []string, err error) {
	inner, err := h.Exec(ctx, "systemctl", "show", "-p", "MainPID", "--value", "ssh.service")
	if err != nil {
		return nil, err
	}
	sshd, err := h.outside(strings.TrimSpace(inner))
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "runbook-trace-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "trace")
	strace := exec.CommandContext(ctx, "strace", "-f", "-y", "-qq", "-s", "512", "-p", strconv.Itoa(sshd), "-o", file, "-e", "trace="+tracedCalls)
	strace.Cancel = func() error { return strace.Process.Signal(os.Interrupt) }
	if err := strace.Start(); err != nil {
		return nil, fmt.Errorf("cannot trace: %w", err)
	}
	err = traced(ctx, sshd)
	if err == nil {
		err = f()
	}
	_ = strace.Process.Signal(os.Interrupt)
	_ = strace.Wait() // ends with the signal that it was sent
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return attempted(string(text)), nil
}

// outside is the number that this machine has for a process of the host.
func (h *Host) outside(inner string) (int, error) {
	leader, err := h.PID()
	if err != nil {
		return 0, err
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", leader))
	if err != nil {
		return 0, err
	}
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0, err
	}
	for _, file := range all {
		if at, err := os.Readlink(filepath.Join(filepath.Dir(file), "ns/pid")); err != nil || at != namespace {
			continue
		}
		status, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		for line := range strings.Lines(string(status)) {
			if pids, found := strings.CutPrefix(line, "NSpid:"); found {
				if list := strings.Fields(pids); list[len(list)-1] == inner {
					return strconv.Atoi(list[0])
				}
			}
		}
	}
	return 0, fmt.Errorf("%s has no process %s", h.Name, inner)
}

// traced waits until a process is traced.
func traced(ctx context.Context, pid int) error {
	for range 100 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		if !strings.Contains(string(status), "TracerPid:\t0\n") {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("cannot trace: strace does not attach")
}

var (
	tracedLine  = regexp.MustCompile(`^\d+ +(\w+)\((.*)`)
	tracedDir   = regexp.MustCompile(`^(?:AT_FDCWD|\d+)<([^>]*)>`)
	tracedPath  = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	opensToRead = regexp.MustCompile(`^open`)
	opensChange = regexp.MustCompile(`O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND`)
	digits      = regexp.MustCompile(`\d+`)
	ownFiles    = regexp.MustCompile(`^(?:/tmp|/var/tmp|/run|/dev/shm)/\.runbook-|^/dev/(?:null|tty)$`)
)

// attempted reads the output of strace.
func attempted(text string) []string {
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		call := tracedLine.FindStringSubmatch(line)
		if call == nil || opensToRead.MatchString(call[1]) && !opensChange.MatchString(call[2]) {
			continue
		}
		if strings.Contains(call[2], "O_TMPFILE") {
			continue // a file without a name, which is gone with whoever opened it
		}
		what := call[2]
		if path := tracedPath.FindStringSubmatch(call[2]); path != nil {
			if what = path[1]; !strings.HasPrefix(what, "/") {
				if dir := tracedDir.FindStringSubmatch(call[2]); dir != nil {
					what = dir[1] + "/" + what
				}
			}
			if ownFiles.MatchString(what) {
				continue
			}
		}
		seen[call[1]+" "+digits.ReplaceAllString(strings.TrimSpace(what), "N")] = true
	}
	var list []string
	for attempt := range seen {
		list = append(list, attempt)
	}
	slices.Sort(list)
	return list
}
