package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Prune removes the runs whose last record is older than olderThan, and returns their names. It keeps what lives or owes, what is damaged
// (nobody knows what it owes), and what has paid the debt of a run that is still there.
func Prune(stateDir string, olderThan time.Duration, now time.Time) ([]string, error) {
	s, err := at(stateDir)
	if err != nil {
		return nil, err
	}
	return s.prune(olderThan, now)
}

func (s state) prune(olderThan time.Duration, now time.Time) (removed []string, err error) {
	if err := s.make(); err != nil {
		return nil, err
	}
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	debts, err := s.owed(all)
	errs := []error{err}
	keep, there := map[string]bool{}, map[string]bool{}
	for _, d := range debts {
		keep[d.Run] = true
	}
	var old []Info
	for _, info := range all {
		there[info.ID] = there[info.ID] || !info.Imported
		if !keep[info.ID] && !info.Ended.IsZero() && now.Sub(info.Ended) > olderThan {
			old = append(old, info)
		}
	}
	// A run that has paid for another goes after it, or that one would owe again.
	for again := true; again; {
		again = false
		old = slices.DeleteFunc(old, func(info Info) bool {
			pays := false
			err := settled(info.Path, func(p Settled) { pays = pays || p.Run != info.ID && there[p.Run] })
			if err != nil {
				return true // owed has told
			}
			if pays && !info.Imported {
				return false
			}
			gone, err := s.removeRun(info)
			errs = append(errs, err)
			if gone {
				removed, again = append(removed, info.ID), true
				if !info.Imported {
					delete(there, info.ID)
				}
			}
			return true
		})
	}
	for _, dir := range []string{s.runs(), s.imported()} {
		errs = append(errs, s.sweep(dir, max(olderThan, time.Hour), now))
	}
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}

// removeRun removes a run that nobody has touched since it was listed.
func (s state) removeRun(info Info) (gone bool, err error) {
	f, err := s.disk.open(info.Path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot prune the run %s: %w", info.ID, err)
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil
	}
	if st, err := f.Stat(); err != nil || st.Size() != info.Size || sameFile(f, info.Path) != nil {
		return false, nil
	}
	err = s.disk.remove(info.Path)
	if err == nil && !info.Imported {
		if err = s.disk.remove(s.holder(info.ID)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	// Before the next is removed, for their order matters after a crash too.
	if err = errors.Join(err, s.disk.syncDir(filepath.Dir(info.Path))); err != nil {
		return false, fmt.Errorf("cannot prune the run %s: %w", info.ID, err)
	}
	return true, nil
}

// sweep removes what a crash has left of records that were never begun.
func (s state) sweep(dir string, olderThan time.Duration, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot prune: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || now.Sub(info.ModTime()) <= olderThan {
			continue
		}
		name := e.Name()
		leftover := strings.HasSuffix(name, ".new")
		if id, ok := strings.CutSuffix(name, ".holder"); ok && ValidID(id) {
			_, err := os.Lstat(s.path(id))
			leftover = errors.Is(err, fs.ErrNotExist)
		}
		if leftover {
			if err := s.disk.remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("cannot prune: %w", err)
			}
		}
	}
	return nil
}
