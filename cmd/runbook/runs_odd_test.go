package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"runbook/engine/journal"
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

// TestClockAhead: a run that was dated by a clock which was ahead does not hide those that came after it.
func TestClockAhead(t *testing.T) {
	dir := t.TempDir()
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
