package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// state is a state directory on a disk.
type state struct {
	dir  string
	disk disk
}

// Dir returns the state directory, and makes it: the one given, or that of the user, which is $XDG_STATE_HOME/runbook or
// ~/.local/state/runbook. It refuses one that somebody else could write into.
func Dir(stateDir string) (string, error) {
	s, err := at(stateDir)
	if err != nil {
		return "", err
	}
	return s.dir, s.make()
}

// at resolves a state directory without touching it.
func at(stateDir string) (state, error) {
	if stateDir == "" {
		// The XDG specification says that a relative path is to be ignored.
		home := os.Getenv("XDG_STATE_HOME")
		if !filepath.IsAbs(home) {
			user, err := os.UserHomeDir()
			if err != nil {
				return state{}, fmt.Errorf("cannot find the state directory: %w; set HOME or XDG_STATE_HOME, or give --state-dir", err)
			}
			home = filepath.Join(user, ".local", "state")
		}
		stateDir = filepath.Join(home, "runbook")
	}
	dir, err := filepath.Abs(stateDir)
	if err != nil {
		return state{}, fmt.Errorf("cannot find the state directory %s: %w", stateDir, err)
	}
	return state{dir: dir, disk: theDisk}, nil
}

func (s state) runs() string               { return filepath.Join(s.dir, "runs") }
func (s state) imported() string           { return filepath.Join(s.dir, "imported") }
func (s state) path(id string) string      { return filepath.Join(s.runs(), id+".jsonl") }
func (s state) holder(id string) string    { return filepath.Join(s.runs(), id+".holder") }
func (s state) foreign(id string) string   { return filepath.Join(s.imported(), id+".jsonl") }
func (s state) temporary(id string) string { return filepath.Join(s.runs(), "."+id+".new") }

// make makes the state directory, and what is in it, where they are missing.
func (s state) make() error {
	for _, dir := range []string{s.dir, s.runs()} {
		if err := s.mkdirAll(dir); err != nil {
			return fmt.Errorf("cannot make the state directory: %w", err)
		}
		if err := private(dir); err != nil {
			return err
		}
	}
	return nil
}

func (s state) mkdirAll(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := s.mkdirAll(parent); err != nil {
			return err
		}
	}
	if err := s.disk.mkdir(dir); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return s.disk.syncDir(parent)
}

// private refuses a directory in which somebody else could put records, for the records decide what is done on hosts.
func private(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("cannot use the state directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("cannot use the state directory %s: it is not a directory", dir)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("cannot use the state directory %s: others may write into it (mode %04o); chmod go-w it, or give another --state-dir", dir, mode)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("cannot use the state directory %s: it belongs to user %d, and this is user %d; give another --state-dir", dir, st.Uid, os.Geteuid())
	}
	return nil
}

var idForm = regexp.MustCompile(`^[0-9]{8}-[0-9]{6}-[a-z0-9]{4}$`)

// ValidID tells whether id has the form of a run's.
func ValidID(id string) bool { return idForm.MatchString(id) }

func checkID(id string) error {
	if !ValidID(id) {
		return fmt.Errorf("cannot find a run %q: runs are called like 20261126-101530-k3f9", id)
	}
	return nil
}

// idTime is how an id begins.
const idTime = "20060102-150405"

// newID is the time in UTC and four letters that are not easily confused.
func newID(now time.Time) string {
	const letters = "23456789abcdefghjkmnpqrstuvwxyz"
	b := make([]byte, 0, 4)
	for len(b) < cap(b) {
		var r [1]byte
		rand.Read(r[:])
		if int(r[0]) < 256/len(letters)*len(letters) {
			b = append(b, letters[int(r[0])%len(letters)])
		}
	}
	return now.UTC().Format(idTime) + "-" + string(b)
}

// find returns where the record of a run is, which may be an imported one.
func (s state) find(id string) (path string, imported bool, err error) {
	if err := checkID(id); err != nil {
		return "", false, err
	}
	for _, path := range []string{s.path(id), s.foreign(id)} {
		if _, err := os.Lstat(path); err == nil {
			return path, path == s.foreign(id), nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", false, fmt.Errorf("cannot find the run %s: %w", id, err)
		}
	}
	return "", false, fmt.Errorf("there is no run %s in %s: %w", id, s.dir, fs.ErrNotExist)
}

// ids lists the runs in a directory.
func ids(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the runs: %w", err)
	}
	var out []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".jsonl"); ok && ValidID(id) {
			out = append(out, id)
		}
	}
	return out, nil
}
