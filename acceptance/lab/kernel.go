package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func lockThread() { runtime.LockOSThread() }

// hierarchies returns where the control group hierarchies are mounted that systemd keeps its units in: the unified
// one, and its own on a machine that still has the first version. systemd-nspawn --keep-unit makes its groups
// below the one it is started in, so that two hosts started in the same one would share their units.
func hierarchies() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		mount, source, ok := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if !ok || len(f) < 5 {
			continue
		}
		if strings.HasPrefix(source, "cgroup2 ") || strings.HasPrefix(source, "cgroup ") && strings.Contains(source, "name=systemd") {
			found = append(found, f[4])
		}
	}
	if len(found) == 0 {
		return nil, errors.New("cannot make hosts: no control groups are mounted")
	}
	return found, nil
}

func makeControlGroups(name string) ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var groups []string
	for _, root := range roots {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cannot make a control group: %w", err)
		}
		groups = append(groups, dir)
	}
	return groups, nil
}

// removeControlGroups ends every process in a group and removes the group and those below it.
func removeControlGroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		var left error
		for _, root := range roots {
			left = errors.Join(left, removeControlGroup(filepath.Join(root, name)))
		}
		if left == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cannot remove a control group: %w", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// removeControlGroup is one attempt of removeControlGroups: processes take a moment to die.
func removeControlGroup(top string) error {
	var groups []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return nil // groups vanish while we look
	})
	slices.Reverse(groups) // those below first
	for _, group := range groups {
		procs, readErr := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if readErr != nil && !os.IsNotExist(readErr) && !errors.Is(readErr, syscall.ENODEV) {
			err = errors.Join(err, readErr)
		}
		for _, f := range strings.Fields(string(procs)) {
			if pid, convErr := strconv.Atoi(f); convErr == nil && pid > 0 {
				err = errors.Join(err, ignore(syscall.Kill(pid, syscall.SIGKILL), syscall.ESRCH))
			}
		}
		err = errors.Join(err, ignore(syscall.Rmdir(group), syscall.ENOENT))
	}
	return err
}

// ignore returns err unless it is what the caller expects.
func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}
