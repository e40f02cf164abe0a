package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Fingerprint is what there is on a host, one thing a line, in order: every file with its kind, mode, owner, size, time of change and
// content; the packet filter; units and whether they are enabled and active; listening ports; the database's settings, and every
// statement of a dump of all databases. Things that change by themselves on an idle host are left out: logs, what the kernel
// mounts, the database's own files, access times, counters.
type Fingerprint []string

// String returns the lines.
func (f Fingerprint) String() string { return strings.Join(f, "\n") + "\n" }

// Hash returns one hash over everything.
func (f Fingerprint) Hash() string { return fmt.Sprintf("%x", sha256.Sum256([]byte(f.String()))) }

// Diff says what is in one fingerprint only, with - for f and + for g, in order.
func (f Fingerprint) Diff(g Fingerprint) []string {
	count := map[string]int{}
	for _, line := range f {
		count[line]--
	}
	for _, line := range g {
		count[line]++
	}
	var diff []string
	for line, n := range count {
		for ; n < 0; n++ {
			diff = append(diff, "- "+line)
		}
		for ; n > 0; n-- {
			diff = append(diff, "+ "+line)
		}
	}
	slices.SortFunc(diff, func(a, b string) int { return strings.Compare(a[2:]+a[:1], b[2:]+b[:1]) })
	return diff
}

// volatile are the paths that change by themselves.
var volatile = []string{
	"dev", "proc", "run", "sys",
	"var/log",
	"var/lib/mysql",   // compared as a dump
	"var/lib/systemd", // random seed, time stamps of timers
	"var/lib/sudo",    // who was lectured
}

// runtimeState prints what a host is besides its files. Sections are told apart by a prefix.
const runtimeState = `
section() { sed "s/^/$1 /"; }
iptables-save | grep -v '^#' | sed 's/\[[0-9]*:[0-9]*\]//' | section iptables
ip6tables-save | grep -v '^#' | sed 's/\[[0-9]*:[0-9]*\]//' | section ip6tables
systemctl list-unit-files --no-legend --plain | awk '{print $1, $2}' | section unit-file
systemctl list-units --no-legend --plain --all --type=service,socket,timer,path,mount | awk '$1 !~ /^(user|user-runtime-dir|session-)/ {print $1, $3, $4}' | sort | section unit
ss -Hlntu | awk '{print $1, $5}' | sort | section listens
if [ "$(systemctl is-active mariadb)" = active ]; then
	mariadb -NBe "SHOW GLOBAL VARIABLES" | grep -v -E '^(timestamp|gtid_.*|last_.*|rand_seed.*|pseudo_.*|innodb_.*)[[:space:]]' | section variable
	mariadb -NBe "SHOW MASTER STATUS" | section master-status
	mariadb -Ee "SHOW SLAVE STATUS" | grep -E '(Master_(Host|Port|User)|Slave_(IO|SQL)_Running):' | section slave-status
	mysqldump --all-databases --routines --events --skip-dump-date --skip-extended-insert --order-by-primary --default-character-set=utf8mb4 \
		--ignore-table=mysql.innodb_index_stats --ignore-table=mysql.innodb_table_stats | section sql
fi
`

// Fingerprint looks at a running host from outside. Two of the same host are equal if nothing happened in between.
func (h *Host) Fingerprint(ctx context.Context) (Fingerprint, error) {
	pid, err := h.PID()
	if err != nil {
		return nil, err
	}
	// Debian checks the database's own tables behind the back of a start, with files in /tmp.
	if _, err := h.Exec(ctx, "timeout", "60", "sh", "-c", "while pgrep -x debian-start >/dev/null; do sleep 0.02; done"); err != nil {
		return nil, fmt.Errorf("cannot take the fingerprint of %s: %w", h.Name, err)
	}
	var f Fingerprint
	root := rootOf(pid) + "/" // a link, to be followed
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, root)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it went while we looked; the other fingerprint will tell whether it matters
		case err != nil:
			return err
		case slices.Contains(volatile, name):
			return fs.SkipDir
		case strings.Contains(name, "systemd-private-"):
			return fs.SkipDir // named after the boot
		}
		line, err := h.describe(path, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		f = append(f, line)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot take the fingerprint of %s: %w", h.Name, err)
	}
	out, err := h.Exec(ctx, "sh", "-c", runtimeState)
	if err != nil {
		return nil, fmt.Errorf("cannot take the fingerprint of %s: %w", h.Name, err)
	}
	return append(f, strings.Split(strings.TrimSuffix(out, "\n"), "\n")...), nil
}

// describe returns the line of one file.
func (h *Host) describe(path, name string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	stat := info.Sys().(*syscall.Stat_t)
	line := fmt.Sprintf("file /%s %v %d:%d", name, info.Mode(), stat.Uid, stat.Gid)
	switch {
	case info.Mode().IsRegular():
		content, err := h.content(path, name)
		return fmt.Sprintf("%s %d %s %s", line, info.Size(), info.ModTime().UTC().Format("2006-01-02T15:04:05.000000"), content), err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		return line + " -> " + target, err
	}
	// A directory's size and time tell of files that came and went; what they left is what counts.
	return line, nil
}

// lower remembers the hashes of files in images, which never change.
var lower sync.Map

func (h *Host) content(path, name string) (string, error) {
	if _, err := os.Lstat(filepath.Join(h.dir(), "upper", name)); err == nil {
		return hashFile(path)
	}
	key := h.lab.image + "/" + name
	if _, err := os.Lstat(key); err != nil {
		return hashFile(path) // on a file system that the host mounted
	}
	if hash, ok := lower.Load(key); ok {
		return hash.(string), nil
	}
	hash, err := hashFile(path)
	if err == nil {
		lower.Store(key, hash)
	}
	return hash, err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// Fingerprints returns those of all hosts, by name.
func (l *Lab) Fingerprints(ctx context.Context) (map[string]Fingerprint, error) {
	prints := map[string]Fingerprint{}
	for _, h := range l.Hosts() {
		print, err := h.Fingerprint(ctx)
		if err != nil {
			return nil, err
		}
		prints[h.FQDN()] = print
	}
	return prints, nil
}
