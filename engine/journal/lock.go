package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockedError says who is writing the record.
type LockedError struct {
	ID         string
	PID        int // 0 if the holder could not be made out
	User       string
	Controller string
	Since      time.Time
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("the run %s is being worked on by another process", e.ID)
	}
	return fmt.Sprintf("the run %s is being worked on by %s, process %d on %s, since %s",
		e.ID, e.User, e.PID, e.Controller, e.Since.Local().Format("2006-01-02 15:04:05"))
}

// holder is what stands beside a lock.
type holder struct {
	PID        int       `json:"pid"`
	Start      string    `json:"start"` // of the process, in the kernel's count: a number is used again, a number and its start are not
	User       string    `json:"user"`
	Controller string    `json:"controller"`
	Since      time.Time `json:"since"`
}

func self() holder {
	h := holder{PID: os.Getpid(), Start: processStart(os.Getpid()), Since: time.Now().UTC(), User: strconv.Itoa(os.Getuid())}
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	h.Controller, _ = os.Hostname()
	return h
}

// processStart returns field 22 of /proc/PID/stat, or nothing.
func processStart(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field is the program's name in parentheses, which may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// lives tells whether the process that h names is there. Of a process of another controller (a shared home) nobody here can say, and the lock
// speaks for it.
func (h holder) lives() bool {
	if name, err := os.Hostname(); err != nil || name != h.Controller {
		return true
	}
	if err := unix.Kill(h.PID, 0); h.PID <= 0 || err != nil && !errors.Is(err, unix.EPERM) {
		return false
	}
	now := processStart(h.PID)
	return now == "" || h.Start == "" || now == h.Start
}

func (s state) readHolder(id string) (h holder, ok bool) {
	b, err := readRegular(s.holder(id))
	return h, err == nil && json.Unmarshal(b, &h) == nil && h.PID > 0
}

// locked says who holds the lock of a record, as far as that can be made out.
func (s state) locked(id string) *LockedError {
	h, ok := s.readHolder(id)
	if !ok || !h.lives() {
		return &LockedError{ID: id}
	}
	return &LockedError{ID: id, PID: h.PID, User: h.User, Controller: h.Controller, Since: h.Since}
}

// lockPatience is how long a lock may be held by somebody who cannot be made out: a winner that has yet to write its name, or a reader that
// looks whether a writer lives.
const lockPatience = 2 * time.Second

// lock takes the lock of a record and writes beside it who has it. The lock is of the kernel, and goes with the process.
func (s state) lock(f file, id string) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(2 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return s.sign(id)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot lock the journal %s: %w", s.path(id), err)
		}
		if locked := s.locked(id); locked.PID > 0 || time.Now().After(deadline) {
			return locked
		}
	}
}

// sign writes who holds the lock. Only its holder does, so one temporary name is enough.
func (s state) sign(id string) error {
	b, err := json.Marshal(self())
	if err != nil {
		return err
	}
	temporary := s.holder(id) + ".new"
	err = func() error {
		f, err := s.disk.open(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if err != nil {
			return err
		}
		_, err = f.Write(append(b, '\n'))
		return errors.Join(err, f.Close())
	}()
	if err == nil {
		err = s.disk.rename(temporary, s.holder(id))
	}
	if err != nil {
		s.disk.remove(temporary)
		return fmt.Errorf("cannot write who works on the run: %w", err)
	}
	return nil
}

// writerLives tells whether somebody holds the lock of the record at path.
func writerLives(path string) (bool, error) {
	f, err := openRecord(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	// A shared lock, held for an instant: readers do not disturb each other, and lock waits out one.
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return false, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, nil
	default:
		return false, unreadable(path, err)
	}
}
