package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// SampleInterval is how often a Watch looks.
const SampleInterval = 10 * time.Millisecond

// Watch samples the argument lists and environments of processes for strings that must never be in one.
type Watch struct {
	stop chan struct{}
	done chan struct{}

	mu        sync.Mutex
	seen      Sighting
	processes map[string]bool
	err       error
}

// Sighting is what a Watch saw.
type Sighting struct {
	Samples   int           // how often it looked
	Longest   time.Duration // between two looks
	Processes int           // different ones that it looked at, by pid and argument list
	Hits      []Hit
}

// Hit is a process that showed a secret.
type Hit struct {
	Place   string // cmdline or environ
	Process string // its argument list, with the secrets masked
	Secret  int    // which of the watched strings
}

func (h Hit) String() string {
	return fmt.Sprintf("string %d in %s of: %s", h.Secret+1, h.Place, h.Process)
}

// Watch looks at every process of the host, until Stop is called. It goes on over reboots.
func (h *Host) Watch(secrets ...string) *Watch {
	return watch(secrets, func() (string, []string) {
		pid, err := h.PID()
		if err != nil {
			return "", nil // down, as in a reboot
		}
		proc := filepath.Join(rootOf(pid), "proc")
		return proc, numbers(proc)
	})
}

// WatchController looks at every process in the lab's network that belongs to no host: the program under test and its children.
func (l *Lab) WatchController(secrets ...string) *Watch {
	return watch(secrets, func() (string, []string) {
		ns, err := os.Stat("/run/netns/" + l.namespace())
		if err != nil {
			return "", nil
		}
		var pids []string
		for _, pid := range numbers("/proc") {
			if theirs, err := os.Stat("/proc/" + pid + "/ns/net"); err == nil && os.SameFile(ns, theirs) {
				pids = append(pids, pid)
			}
		}
		return "/proc", pids
	})
}

func watch(secrets []string, list func() (proc string, pids []string)) *Watch {
	w := &Watch{stop: make(chan struct{}), done: make(chan struct{}), processes: map[string]bool{}}
	go func() {
		defer close(w.done)
		hits := map[Hit]bool{}
		ticker := time.NewTicker(SampleInterval)
		defer ticker.Stop()
		last := time.Now()
		for {
			proc, pids := list()
			w.sample(secrets, proc, pids, hits)
			now := time.Now()
			w.mu.Lock()
			w.seen.Samples++
			w.seen.Longest = max(w.seen.Longest, now.Sub(last))
			w.mu.Unlock()
			last = now
			select {
			case <-w.stop:
				return
			case <-ticker.C:
			}
		}
	}()
	return w
}

func (w *Watch) sample(secrets []string, proc string, pids []string, hits map[Hit]bool) {
	for _, pid := range pids {
		dir := filepath.Join(proc, pid)
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			w.note(err)
			continue
		}
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		w.note(err)
		w.mu.Lock()
		w.processes[pid+" "+string(cmdline)] = true
		for i, secret := range secrets {
			for _, p := range []struct {
				place string
				text  []byte
			}{{"cmdline", cmdline}, {"environ", environ}} {
				if !bytes.Contains(p.text, []byte(secret)) {
					continue
				}
				command := strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
				for _, s := range secrets {
					command = strings.ReplaceAll(command, s, "*****")
				}
				hit := Hit{Place: p.place, Process: command, Secret: i}
				if !hits[hit] {
					hits[hit] = true
					w.seen.Hits = append(w.seen.Hits, hit)
				}
			}
		}
		w.mu.Unlock()
	}
}

// note remembers why a process could not be looked at, unless it just ended.
func (w *Watch) note(err error) {
	if err == nil || errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "no such process") {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// Stop ends the watch and says what it saw. The error tells that it could not look.
func (w *Watch) Stop() (Sighting, error) {
	close(w.stop)
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Processes = len(w.processes)
	return w.seen, w.err
}

// numbers lists the entries of a directory that are pids.
func numbers(proc string) []string {
	d, err := os.Open(proc)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil
	}
	pids := names[:0]
	for _, name := range names {
		if name[0] >= '0' && name[0] <= '9' {
			pids = append(pids, name)
		}
	}
	return pids
}
