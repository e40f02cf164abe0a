package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares got with testdata/name; control characters are shown, so that the file is a text.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = strings.NewReplacer("\x1b", "␛", "\r", "␍").Replace(got)
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", path, got, want)
	}
}

// clock is a time that moves only when told.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time          { return c.now }
func (c *clock) forward(d time.Duration) { c.now = c.now.Add(d) }
func newClock() *clock                   { return &clock{time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)} }
func end(host, task string, r Result) Event {
	return Event{Kind: TaskEnd, Host: host, TaskID: task, Task: task, Place: "man06/master.yml:31", Result: &r}
}

// hostile is what a host that is an enemy might print.
const hostile = "\x1b[2J\x1b]52;c;cm0gLXJm\x07\rok\u202etxt.exe\u009b31m\xff\x00"

func sampleRun(check bool) []Event {
	changed, hangs := Changed, ""
	if check {
		changed, hangs = WouldChange, "Write stunnel.conf"
	}
	conf := end("voms1", "Write stunnel.conf", Result{Status: changed, Changes: []Change{
		{What: "content of /etc/stunnel/stunnel.conf", Before: "cert = a\nkey = b\nverify = 0\n[mysql]\n", After: "cert = a\nkey = b\nverify = 2\n[mysql]\nclient = yes\n"},
		{What: "mode of /etc/stunnel/stunnel.conf", Before: "0644", After: "0600"},
	}, Warnings: []string{"the old file was world-readable"}})
	failed := end("voms2", "Start stunnel", Result{Status: Failed, Msg: "exit status 1: cannot bind\nport 3307 is taken by " + hostile + "\n", Attempts: 3, Seconds: 61})
	failed.Why = "replication needs the tunnel"
	ignored := end("voms1", "Look for an old dump", Result{Status: Failed, Ignored: true, Msg: "no such file"})
	item := end("voms1", "Create databases", Result{Status: changed, Changes: []Change{{What: "database"}}, HangsOn: hangs})
	item.Item = "DB_1"
	handler := end("voms1", "Restart stunnel", Result{Status: changed, Changes: []Change{{What: "restart", Outage: "for about 2s"}}, Seconds: 12.3})
	handler.Handler = true
	return []Event{
		{Kind: RunStart, Check: check, Hosts: []string{"voms1", "voms2", "voms3"}},
		{Kind: BookStart, Book: "MAN06 step 1: the master"},
		{Kind: PlayStart, Play: "Prepare the master", Hosts: []string{"voms1", "voms2", "voms3"}},
		end("voms1", "Install stunnel", Result{Status: OK, Msg: "stunnel 5.68 is installed"}),
		end("voms2", "Install stunnel", Result{Status: Skipped, Because: "when: facts.family == \"rhel\" is false"}),
		end("voms3", "Install stunnel", Result{Status: Unreachable, Msg: "cannot reach voms3: timed out after 20s"}),
		{Kind: HostLost, Host: "voms3", Task: "Install stunnel", Text: "cannot reach voms3: timed out after 20s"},
		conf, failed,
		ignored, item,
		end("voms1", "Take the dump", Result{Status: Unknown, Because: "the server is not installed yet"}),
		handler,
		{Kind: Warning, Text: "binlog-do-db loses cross-database updates"},
		{Kind: PlayStopped, Play: "Prepare the slave", Text: "play \"Prepare the slave\" stops: it needs voms2, which failed"},
		{Kind: RunEnd, Elapsed: 83.4, Totals: []Total{
			{Host: "voms1", OK: 1, Changed: 3, Ignored: 1, Unknown: 1, Seconds: 82.9},
			{Host: "voms2", Skipped: 1, Failed: 1, Seconds: 61.2},
			{Host: "voms3", Unreachable: 1, Seconds: 20},
		}},
	}
}

func TestPlain(t *testing.T) {
	for _, test := range []struct {
		name  string
		check bool
		opts  TextOptions
	}{
		{"plain.txt", false, TextOptions{}},
		{"plain-check-diff.txt", true, TextOptions{Diff: true}},
		{"plain-verbose.txt", false, TextOptions{Verbose: 1, Diff: true}},
		{"color.txt", false, TextOptions{Color: true, Diff: true}},
	} {
		var out bytes.Buffer
		text := NewText(&out, test.opts)
		for _, e := range sampleRun(test.check) {
			text.Event(e)
		}
		golden(t, test.name, out.String())
		if !test.opts.Color {
			for _, r := range out.String() {
				if r != '\n' && hidden(r) || r == utf8.RuneError {
					t.Errorf("%s: plain output holds %q", test.name, r)
				}
			}
		}
	}
}

// TestTerminal writes every frame of a small run with a clock of its own.
func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	clock := newClock()
	text := NewText(&out, TextOptions{Terminal: true, Width: func() int { return 44 }, Now: clock.Now})
	frame := func(what string) {
		text.redraw()
		fmt.Fprintf(&out, "---- %s\n", what)
	}
	text.Event(Event{Kind: RunStart})
	text.Event(Event{Kind: BookStart, Book: "Dump"})
	frame("nothing runs")
	text.Event(Event{Kind: TaskStart, Host: "voms1", TaskID: "t1", Task: "Dump the databases"})
	clock.forward(300 * time.Millisecond)
	text.Event(Event{Kind: TaskStart, Host: "日本2", TaskID: "t1", Task: "Dump the databases"})
	frame("two run")
	clock.forward(12 * time.Second)
	text.Event(Event{Kind: Progress, Host: "voms1", TaskID: "t1", Text: "340 MiB of \x1b[31m2 GiB"})
	frame("progress, cut to the width")
	text.Event(Event{Kind: TaskEnd, Host: "日本2", TaskID: "t1", Task: "Dump the databases", Result: &Result{Status: OK}})
	frame("one was ok, without a line")
	text.Event(Event{Kind: TaskEnd, Host: "voms1", TaskID: "t1", Task: "Dump the databases",
		Result: &Result{Status: Changed, Seconds: 12.3, Changes: []Change{{What: "dump"}}}})
	frame("the other changed")
	fmt.Fprintln(text.Above(&out), "a diagnostic")
	text.Event(Event{Kind: RunEnd, Elapsed: 12.3, Totals: []Total{{Host: "voms1", Changed: 1, Seconds: 12.3}, {Host: "日本2", OK: 1, Seconds: 12}}})
	frame("the end")
	golden(t, "terminal.txt", out.String())
}

func TestTerminalManyHosts(t *testing.T) {
	var out bytes.Buffer
	text := NewText(&out, TextOptions{Terminal: true, Now: newClock().Now})
	for i := range 200 {
		text.Event(Event{Kind: TaskStart, Host: fmt.Sprintf("host%03d", i), TaskID: "t1", Task: "Install"})
	}
	text.redraw()
	if lines := strings.Count(out.String(), "\n"); lines != maxLive+1 {
		t.Errorf("%d lines are shown of 200 hosts, want %d:\n%s", lines, maxLive+1, out.String())
	}
	if !strings.Contains(out.String(), "… and 192 more running") {
		t.Errorf("the other hosts are not counted:\n%s", out.String())
	}
}

// TestLive runs the ticker beside events, holds and log lines, for the race detector; what is on the screen when it
// has stopped holds no trace of the region.
func TestLive(t *testing.T) {
	var out bytes.Buffer
	text := NewText(&out, TextOptions{Terminal: true})
	stop := text.Live()
	for i := range 50 {
		host := fmt.Sprint(i)
		text.Event(Event{Kind: TaskStart, Host: host, TaskID: "t"})
		text.redraw()
		text.Hold()()
		fmt.Fprintln(text.Above(&out), "log")
		text.Event(Event{Kind: TaskEnd, Host: host, TaskID: "t", Result: &Result{Status: OK}})
	}
	stop()
	if text.live.drawn != 0 {
		t.Errorf("%d lines are left on the screen", text.live.drawn)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	for _, e := range sampleRun(true) {
		j.Event(e)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != len(sampleRun(true)) {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%v in %s", err, line)
		}
		for _, r := range line {
			if hidden(r) {
				t.Errorf("%q in %s", r, line)
			}
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                     "plain",
		"żółw 日本 🐢":                 "żółw 日本 🐢",
		"a\tb\nc\r":                 `a\tb\nc\r`,
		"\x1b[31mred":               `\x1b[31mred`,
		"\u009b31m":                 `\u009b31m`,
		"\u202eevil\u2069\u200b":    `\u202eevil\u2069\u200b`,
		"\xff\xfe\x00\x7f":          `\xff\xfe\x00\x7f`,
		"\U000e0041":                `\U000e0041`,
		"line\u2028separator\ufeff": `line\u2028separator\ufeff`,
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range Clean(text) {
			if hidden(r) || r == utf8.RuneError && !strings.ContainsRune(text, r) {
				t.Errorf("%q is left of %q", r, text)
			}
		}
	})
}

func TestTruncate(t *testing.T) {
	for _, test := range []struct {
		in   string
		max  int
		want string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"日本語", 6, "日本語"}, {"日本語", 5, "日本…"}, {"日本語", 4, "日…"},
		{"e\u0301a", 2, "e\u0301a"}, {"abc", 0, ""}, {"", 0, ""},
	} {
		if got := truncate(test.in, test.max); got != test.want {
			t.Errorf("truncate(%q, %d) = %q, want %q", test.in, test.max, got, test.want)
		}
	}
}
