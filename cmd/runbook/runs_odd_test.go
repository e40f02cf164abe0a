package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"runbook/engine/journal"
	"runbook/engine/transport"
)

// started puts a run on record that died at once.
func started(t *testing.T, dir string, run journal.Run) (id, path string) {
	t.Helper()
	w, err := journal.Create(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.ID(), filepath.Join(dir, "runs", w.ID()+".jsonl")
}

// rewrite changes a record of one line to what this program would not have written, and makes its sum fit.
func rewrite(t *testing.T, path, pattern, by string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	body, _, _ := strings.Cut(string(data), `,"sum":`)
	changed := regexp.MustCompile(pattern).ReplaceAllString(body, by)
	if changed == body {
		t.Fatalf("no %s in %s", pattern, body)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(changed)))[:16]
	if err := os.WriteFile(path, []byte(changed+`,"sum":"`+sum+"\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// call runs the program, which must end with a code.
func call(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	if got := program(args, &out, &errs); got != want {
		t.Errorf("runbook %s: exit code %d, want %d: %s%s", strings.Join(args, " "), got, want, &out, &errs)
	}
	return out.String(), errs.String()
}

// siteAndBook makes an inventory of this machine alone, and a book whose one task is a command.
func siteAndBook(t *testing.T, shell string) (site, book string) {
	t.Helper()
	t.Setenv("RUNBOOK_LOCK_DIR", t.TempDir())
	dir := t.TempDir()
	site, book = filepath.Join(dir, "site.yml"), filepath.Join(dir, "book.yml")
	for file, text := range map[string]string{site: "groups: {all: {connection: local, hosts: {here: {}}}}\n",
		book: "runbook: One thing\nplays:\n  - hosts: all\n    tasks:\n      - {name: The thing, command: {shell: '" + shell + "'}}\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return site, book
}

// TestRecordedOperator: a record says of who started the run what the lock on the host says, under sudo too.
func TestRecordedOperator(t *testing.T) {
	t.Setenv("SUDO_USER", "alice")
	dir := t.TempDir()
	site, book := siteAndBook(t, "true")
	call(t, exitDone, "run", "-i", site, book, "--state-dir", dir)
	me := transport.Self("")
	if out, _ := call(t, exitDone, "runs", "show", "--state-dir", dir); !strings.Contains(out, fmt.Sprintf(" by %s on %s, process ", me.User, me.Controller)) {
		t.Errorf("not by %s:\n%s", me.User, out)
	}
}

// TestClockAhead: a run that was dated by a clock which was ahead does not hide those that came after it.
func TestClockAhead(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir) // resume goes to the directory of the run
	early, path := started(t, dir, journal.Run{ID: "20991231-101530-aaaa", Dir: dir, Args: []string{"run"}})
	rewrite(t, path, `"time":"[^"]*"`, `"time":"`+time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339)+`"`)
	late, _ := started(t, dir, journal.Run{Dir: dir, Args: []string{"run"}})
	out, _ := call(t, exitDone, "runs", "--state-dir", dir)
	if at := strings.Index(out, late); at < 0 || at > strings.Index(out, early) {
		t.Errorf("the last run is not the first in the list:\n%s", out)
	}
	if out, _ := call(t, exitDone, "runs", "show", "--state-dir", dir); !strings.HasPrefix(out, "Run "+late) {
		t.Errorf("not the last run is shown:\n%s", out)
	}
	if _, errs := call(t, exitBadInput, "resume", "--state-dir", dir); !strings.Contains(errs, "resuming run "+late) {
		t.Errorf("not the last run is resumed: %s", errs)
	}
}

// TestOddRecords: what is wrong with a record is told by the verbs that meet it, with what to do, and hides none of the others. A run, which has to know
// what all others owe, is refused.
func TestOddRecords(t *testing.T) {
	for _, odd := range []struct {
		make                     func(t *testing.T, path string)
		status, reason, run, one string // one: what to do about that record itself
	}{
		{func(t *testing.T, path string) { rewrite(t, path, `"format":1`, `"format":2`) }, "of format 2",
			"has format 2, of runbook 9.0: this one reads format 1", "use that version, or a later one, which can tell; or move the file away", "hint: use that version, or a later one"},
		{func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, "unreadable", "cannot be read: it is a named pipe and not a regular file", "see to it that the file can be read; or move it away", "it is a named pipe"},
		{func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("garbage\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damaged", "is damaged at byte 0, record 1", "see what it did with runbook runs show 20261126-101530-odd2 ", "is damaged at byte 0"},
	} {
		dir := t.TempDir()
		good, _ := started(t, dir, journal.Run{Args: []string{"run"}})
		id, path := started(t, dir, journal.Run{ID: "20261126-101530-odd2", Version: "9.0", Args: []string{"run"}})
		odd.make(t, path)
		site, book := siteAndBook(t, "touch "+dir+"/touched")
		for _, output := range []string{"text", "json"} {
			out, errs := call(t, exitFailed, "runs", "--output", output, "--state-dir", dir)
			if !strings.Contains(out, good) || !strings.Contains(out, id) || !strings.Contains(out, odd.status) || strings.Count(errs, odd.reason) != 1 {
				t.Errorf("%s: listed as\n%s%s", odd.status, out, errs)
			}
		}
		if _, errs := call(t, exitFailed, "runs", "show", id, "--state-dir", dir); !strings.Contains(errs, odd.reason) || !strings.Contains(errs, odd.one) {
			t.Errorf("%s: shown as %s", odd.status, errs)
		}
		if _, errs := call(t, exitBadInput, "resume", id, "--state-dir", dir); !strings.Contains(errs, odd.one) {
			t.Errorf("%s: resumed: %s", odd.status, errs)
		}
		_, errs := call(t, exitBadInput, "run", "-i", site, book, "--state-dir", dir)
		if !strings.Contains(errs, "cannot tell what earlier runs still owe to the hosts: the journal "+path) || !strings.Contains(errs, odd.run) {
			t.Errorf("%s: run: %s", odd.status, errs)
		}
		if _, err := os.Stat(filepath.Join(dir, "touched")); err == nil {
			t.Errorf("%s: a run went on", odd.status)
		}
	}
}
