package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"runbook/engine"
	"runbook/engine/journal"
	"runbook/engine/report"
)

// TestPrunable: what a dry run foresees is what is pruned, whatever runs died, owe, or have paid for whom.
func TestPrunable(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	pruned, kept := 0, 0
	for seed := range 24 {
		random := rand.New(rand.NewPCG(uint64(seed), 1))
		dir := t.TempDir()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		var ids []string
		for i := range 8 {
			at := now.Add(time.Duration(i-10) * 24 * time.Hour)
			id := at.Format("20060102-150405-") + fmt.Sprintf("run%d", i)
			w, err := journal.Create(dir, journal.Run{ID: id, Hosts: []string{"a"}, Books: []journal.Book{{Path: "b.yml", Tasks: []journal.Task{
				{ID: "1:1/1", Name: "x"}, {ID: "1:1/handlers/1", Name: "h"}}}}})
			must(err)
			write := func(r journal.Record) { r.Time = at; must(w.Commit(r)) }
			if random.IntN(2) == 0 {
				write(journal.Record{Kind: journal.KindEnd, End: &journal.End{Key: journal.Key{Task: "1:1/1", Host: "a", Nth: 1}, Status: "changed",
					Notified: []string{"1:1/handlers/1"}}})
			}
			for _, other := range ids {
				if random.IntN(3) == 0 {
					write(journal.Record{Kind: journal.KindSettled, Settled: &journal.Settled{Run: other, Host: "a", Handler: "1:1/handlers/1", N: 9}})
				}
			}
			closed := random.IntN(2) == 0
			if closed {
				write(journal.Record{Kind: journal.KindClose, Close: &journal.Close{Status: journal.Done}})
			} else {
				write(journal.Record{Kind: journal.KindNote, Note: &journal.Note{Text: "died"}})
			}
			ids = append(ids, id)
			if closed || random.IntN(8) > 0 {
				must(w.Close())
			} else {
				defer w.Close()
			}
		}
		if random.IntN(6) == 0 {
			path := filepath.Join(dir, "runs", ids[random.IntN(len(ids))]+".jsonl")
			data, err := os.ReadFile(path)
			must(err)
			data[len(data)*2/3] ^= 1
			must(os.WriteFile(path, data, 0o600))
		}
		age := time.Duration(random.IntN(11)) * 24 * time.Hour
		foreseen, _ := prunable(dir, age, now)
		gone, _ := journal.Prune(dir, age, now)
		if !slices.Equal(foreseen, gone) {
			t.Errorf("seed %d: a dry run foresees %v, pruned are %v", seed, foreseen, gone)
		}
		pruned, kept = pruned+len(gone), kept+8-len(gone)
	}
	if pruned < 30 || kept < 30 {
		t.Errorf("%d runs were pruned and %d kept: that is no test", pruned, kept)
	}
}

func TestParseAge(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "36h": 36 * time.Hour, "0s": 0, "1h30m": 90 * time.Minute,
		"99999d": 99999 * 24 * time.Hour, "9999999d": 106751 * 24 * time.Hour, "99999w": 15250 * 7 * 24 * time.Hour} {
		if got, err := parseAge(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "99999999999999999999d", "-3h", "90", "ninety days"} {
		if got, err := parseAge(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestTimesText(t *testing.T) {
	for _, test := range []struct {
		was, is float64
		want    string
	}{
		{0.1, 0.9, ""}, // less than a second
		{10, 15, ""},   // less than twice
		{2, 41, "2.0s → 41s, 20.5 times"},
		{41, 2, "41s → 2.0s, 0.0488 times"},
		{0.01, 3, "0.0s → 3.0s"},
	} {
		if got := timesText(test.was, test.is); got != test.want {
			t.Errorf("%v → %v: %q", test.was, test.is, got)
		}
	}
}

// TestClosingPage: 200 hosts that fail alike are one line, what hosts say acts on no terminal, secrets are masked, and the commands end the page.
func TestClosingPage(t *testing.T) {
	w, err := journal.Create(t.TempDir(), journal.Run{Books: []journal.Book{{Tasks: []journal.Task{{ID: "1:1/handlers/1", Name: "restart mysql"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := engine.Summary{State: []string{"db1: the master serves\x1b[2J"}}
	for i := range 200 {
		s.Failures = append(s.Failures, engine.Failure{Host: fmt.Sprintf("db%d", i+1), Task: "hunter2 \u202e", Msg: "no\nroute\nat\nall\nhere"})
		end := &journal.End{Key: journal.Key{Task: "1:1/1", Host: fmt.Sprintf("db%03d", i+1), Nth: 1}, Status: "changed", Notified: []string{"1:1/handlers/1"}}
		if err := w.Append(journal.Record{Kind: journal.KindEnd, End: end}); err != nil {
			t.Fatal(err)
		}
		s.State = append(s.State, fmt.Sprintf("db%d: it is up", i+1))
	}
	s.Totals = []report.Total{{Host: "db1", Failed: 1}}
	var out strings.Builder
	r := &record{writer: w, books: []string{"man06/slave"}, mask: func(text string) string { return strings.ReplaceAll(text, "hunter2", "***") }}
	r.end(&out, s, exitFailed)
	want := `
Run ID of man06/slave is not through: it failed.

What failed
  db1, db2, db3, db4 and 196 more  at "*** \u202e": no
      route
      at
      …

How things are now
  db1: the master serves\x1b[2J
  db1: it is up
  db2: it is up
  db3: it is up
  db4: it is up
  db5: it is up
  db6: it is up
  db7: it is up
  db8: it is up
  db9: it is up
  db10: it is up
  db11: it is up
  and 189 more

Still to be done, by handlers that were notified (going on does it)
  db001, db002, db003, db004 and 196 more  restart mysql

To go on:
  runbook resume ID
To look closer:
  runbook runs show ID
`
	if got := strings.ReplaceAll(out.String(), w.ID(), "ID"); got != want {
		t.Errorf("got:\n%s", got)
	}
	for _, c := range []struct {
		asked []engine.Question
		want  []string
	}{
		{[]engine.Question{{Host: "a", Task: "x y"}}, []string{"runbook resume ID --rerun 'a/x y'\n", "runbook resume ID --mark-done 'a/x y'\n"}},
		{[]engine.Question{{Host: "a", Task: "x"}, {Host: "b", Task: "x"}, {Host: "a", Task: "x"}, {Host: "c", Task: "z", Accept: true}},
			[]string{"with --mark-done in place of --rerun", "runbook resume ID --accept-changes --rerun a/x --rerun b/x\n"}},
		{[]engine.Question{{Host: "a", Task: "x", Accept: true}}, []string{"if what differs is meant:\n  runbook resume ID --accept-changes\n"}},
	} {
		s.Questions = c.asked
		page := strings.ReplaceAll(r.closingPage(s, nil, nil, journal.Interrupted), w.ID(), "ID")
		for _, want := range append(c.want, "it needs an answer from you") {
			if !strings.Contains(page, want) {
				t.Errorf("the page has no %q:\n%s", want, page)
			}
		}
	}
}

// TestShowIsSafe: whatever a record says, nothing in it acts on a terminal.
func TestShowIsSafe(t *testing.T) {
	dir := t.TempDir()
	evil := "\x1b]0;x\a\u202e\u009b2J\r"
	w, err := journal.Create(dir, journal.Run{Version: evil, Dir: evil, Args: []string{"run", evil}, User: evil, Controller: evil, Hosts: []string{evil},
		Books: []journal.Book{{Path: evil, Title: evil, Tasks: []journal.Task{{ID: "1:1/1", Play: evil, Name: evil}, {ID: "1:1/2", Play: evil, Name: evil + "2"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	key := journal.Key{Task: "1:1/1", Host: evil, Item: evil, Nth: 1}
	result := []byte(`{"status":"changed","seconds":1,"changes":[{"what":"\u001b[2J\u202e","before":"\u001b\n","after":"\u202e\n"}],"warnings":["\u001b"]}`)
	for _, r := range []journal.Record{
		{Kind: journal.KindFacts, Facts: &journal.Facts{Host: evil, BootID: "1"}}, {Kind: journal.KindFacts, Facts: &journal.Facts{Host: evil, BootID: "2"}},
		{Kind: journal.KindBegin, Begin: &journal.Begin{Key: key, Name: evil}},
		{Kind: journal.KindEnd, End: &journal.End{Key: key, Name: evil, Status: "changed", Result: result}},
		{Kind: journal.KindEnd, End: &journal.End{Key: journal.Key{Task: evil, Host: evil}, Name: evil, Status: evil, Result: []byte(`{"status":"` + `\u001b` + `"}`)}},
		{Kind: journal.KindNote, Note: &journal.Note{Text: evil}},
		{Kind: journal.KindSettled, Settled: &journal.Settled{Run: evil, Host: evil, Handler: evil, N: 1}},
		{Kind: journal.KindBegin, Begin: &journal.Begin{Key: journal.Key{Task: "1:1/2", Host: evil}, Name: evil, Notify: []string{"1:1/1"}}},
		{Kind: journal.KindClose, Close: &journal.Close{Status: evil, Text: evil, Owed: []journal.Owed{{Host: evil, Name: evil}}}},
		{Kind: journal.KindResume, Resume: &journal.Resume{Version: evil, User: evil, Controller: evil, Rerun: []string{evil}, MarkDone: []string{evil}}},
		{Kind: journal.KindClose, Close: &journal.Close{Status: evil, Text: evil, Owed: []journal.Owed{{Host: evil, Name: evil}}}},
	} {
		if err := w.Commit(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := journal.Create(dir, journal.Run{Version: "1", Hosts: []string{evil}, Args: []string{"run"}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, args := range [][]string{{"list"}, {"list", "--output", "json"}, {"show", "--diff", w.ID()}, {"show", "--output", "json", w.ID()}, {"diff", w.ID(), other.ID()}} {
		var out strings.Builder
		program(append(append([]string{"runs"}, args...), "--state-dir", dir), &out, &out)
		if text := out.String(); len(text) < 100 || strings.ContainsAny(text, "\x1b\a\r\u202e\u009b") {
			t.Errorf("runs %v says %q", args, text)
		}
	}
}

// TestResumePage: the record on docs/resume.md is one, and the page has every kind of record and the number of the format.
func TestResumePage(t *testing.T) {
	data, err := os.ReadFile("../../docs/resume.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	_, example, _ := strings.Cut(page, "```json\n")
	example, _, _ = strings.Cut(example, "```")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "runs"), 0o700); err != nil {
		t.Fatal(err)
	}
	const id = "20261126-104621-k3f9"
	if err := os.WriteFile(filepath.Join(dir, "runs", id+".jsonl"), []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if code := program([]string{"runs", "show", "--state-dir", dir}, &out, &out); code != exitDone ||
		!strings.Contains(out.String(), "Run "+id+": interrupted, after ") || !strings.Contains(out.String(), "changed      db1.example.org  The message: create /etc/motd") {
		t.Errorf("exit code %d:\n%s", code, out.String())
	}
	for _, kind := range []journal.Kind{journal.KindRun, journal.KindFacts, journal.KindBegin, journal.KindEnd, journal.KindNote, journal.KindSettled, journal.KindResume, journal.KindClose} {
		if !strings.Contains(page, "\n| `"+string(kind)+"` | ") {
			t.Errorf("the page does not tell of records of the kind %s", kind)
		}
	}
	if !strings.Contains(page, fmt.Sprintf("JSON Lines, format %d.", journal.Format)) {
		t.Errorf("the page is not about format %d", journal.Format)
	}
}
