package acceptance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"runbook/acceptance/lab"
	"runbook/engine/report"
)

// needLab skips where hosts cannot be made, which is a failure where they must.
func needLab(t *testing.T) {
	t.Helper()
	if why := lab.Unavailable(); why != "" {
		if os.Getenv("CI") == "true" || os.Getenv("RUNBOOK_NO_SKIP") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

// pair is a lab and what an operator of it works with.
type pair struct {
	*lab.Lab
	dir string // inventory.yml and secrets.yml
}

// newLab makes hosts that are gone when the test ends.
func newLab(t *testing.T, hosts ...string) *lab.Lab {
	t.Helper()
	needLab(t)
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	l, err := lab.New(t.Context(), lab.Options{Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	labs.add(l)
	t.Cleanup(func() {
		defer labs.remove(l)
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := l.Up(t.Context(), hosts...); err != nil {
		t.Fatal(err)
	}
	return l
}

func newPair(t *testing.T, hosts ...string) *pair {
	t.Helper()
	l := newLab(t, hosts...)
	p := &pair{l, t.TempDir()}
	p.write(t, "inventory.yml", l.Inventory())
	p.write(t, "secrets.yml", "databases: ["+strings.Join(lab.Databases, ", ")+"]\nreplication_password: \"q'Z7$(id)kR8vQ2zW9mXt4\"\n")
	return p
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func (p *pair) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// verdicts are what a check or a run said of each task: by host, name and item, handlers marked.
type verdicts map[string]verdict

type verdict struct {
	report.Result
	book string // title
}

// with lists the tasks of these statuses, in order of their names.
func (v verdicts) with(statuses ...report.Status) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if slices.Contains(statuses, v[name].Status) {
			names = append(names, name)
		}
	}
	return names
}

// runbook runs books, and returns what it said of each task. Of a handler that ran twice the last counts.
func (p *pair) runbook(t *testing.T, verb string, books ...string) (v verdicts, exitCode int) {
	t.Helper()
	args := append([]string{verb, "-i", "inventory.yml", "-e", "@secrets.yml", "--output", "json"}, books...)
	cmd := p.Command(t.Context(), program, args...)
	cmd.Dir = p.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cannot start runbook: %v", err)
	}
	v = verdicts{}
	for line := range bytes.Lines(out) {
		var e report.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("runbook %s says what is no event: %v: %s", verb, err, line)
		}
		if e.Kind != report.TaskEnd {
			continue
		}
		name := e.Host + ": " + e.Task
		if e.Item != "" {
			name += " [" + e.Item + "]"
		}
		if e.Handler {
			name += " (handler)"
		}
		v[name] = verdict{*e.Result, e.Book}
	}
	if len(v) == 0 {
		t.Fatalf("runbook %s did nothing: exit code %d\n%s", verb, cmd.ProcessState.ExitCode(), stderr.Bytes())
	}
	return v, cmd.ProcessState.ExitCode()
}

// differences tells in what a run did not do what a check had said, nothing if it did. What was unknown may turn out as it likes, but for a failure.
func differences(check, run verdicts) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(check)) {
		said, did := check[name], run[name]
		fits := map[report.Status][]report.Status{
			report.OK: {report.OK}, report.WouldChange: {report.Changed}, report.Skipped: {report.Skipped},
			report.Failed: {report.Failed}, report.Unknown: {report.OK, report.Changed, report.Skipped},
		}[said.Status]
		if !slices.Contains(fits, did.Status) {
			list = append(list, fmt.Sprintf("%s: check said %s (%s), the run %s (%s)", name, said.Status, said.Because, did.Status, did.Msg))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(run)) {
		if _, told := check[name]; !told {
			list = append(list, fmt.Sprintf("%s: check did not mention it, the run said %s", name, run[name].Status))
		}
	}
	return list
}

var (
	pairBooks = []string{"man06/master", "man06/slave"}
	allBooks  = append(slices.Clone(pairBooks), "man06/verify")
)

// TestCheckDrift guards that check finds what differs from the books, and nothing else: from nothing at all to each single fault of
// testdata/drift. What check said it would change is exactly what the run then changes, and the next check finds nothing.
func TestCheckDrift(t *testing.T) {
	t.Parallel()
	p := newPair(t, "voms1", "voms2")
	if err := p.Host("voms1").Seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.readsOnly(t)
	p.equal(t, "a fresh pair", nil, allBooks...)

	for _, d := range readDrifts(t, "testdata/drift/pair.txtar") {
		t.Run(d.name, func(t *testing.T) {
			if _, err := p.Host(d.on).Exec(t.Context(), "sh", "-ec", d.script); err != nil {
				t.Fatalf("cannot make the fault: %v", err)
			}
			p.equal(t, d.name, &d, pairBooks...)
		})
	}
}

// readsOnly checks all books on the pair, and proves that nothing but reading was even attempted: both hosts are as they were, no
// system call of the login and what it started would have changed anything, and the database was asked for nothing but data.
func (p *pair) readsOnly(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	const statements = "/var/lib/mysql/statements.log"
	everywhere := func(query string) {
		for _, h := range p.Hosts() {
			if _, err := h.SQL(ctx, query); err != nil {
				t.Fatal(err)
			}
		}
	}
	everywhere("SET GLOBAL general_log_file = '" + statements + "'")
	login := func() error { // what a login does by itself
		for _, h := range p.Hosts() {
			if _, err := p.as(ctx, h, "true"); err != nil {
				return err
			}
		}
		return nil
	}
	byItself, err := p.trace(ctx, login)
	if err != nil {
		t.Fatal(err)
	}
	before, err := p.Fingerprints(ctx)
	if err != nil {
		t.Fatal(err)
	}
	everywhere("SET GLOBAL general_log = ON")
	attempts, err := p.trace(ctx, func() error {
		check, _ := p.runbook(t, "check", allBooks...)
		for _, name := range check.with(report.Unknown) {
			if strings.HasPrefix(check[name].book, "MAN06: set up the MySQL") {
				t.Errorf("a fresh pair: check says unknown of %s: %s", name, check[name].Because)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	everywhere("SET GLOBAL general_log = OFF")
	after, err := p.Fingerprints(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for host := range before {
		if diff := before[host].Diff(after[host]); len(diff) > 0 {
			t.Errorf("check changed %s:\n%s", host, strings.Join(diff, "\n"))
		}
	}
	for _, attempt := range attempts {
		if !slices.Contains(byItself, attempt) && !expected.MatchString(attempt) {
			t.Errorf("check attempted on a host: %s", attempt)
		}
	}
	for _, h := range p.Hosts() {
		said, err := h.Exec(ctx, "cat", statements)
		if err != nil {
			t.Fatal(err)
		}
		queries := 0
		for _, query := range regexp.MustCompile(`(?m)\t *\d+ Query\t(.*)$`).FindAllStringSubmatch(said, -1) {
			queries++
			if !harmless.MatchString(query[1]) || strings.Contains(strings.ToUpper(query[1]), "INTO OUTFILE") {
				t.Errorf("check asked the database of %s: %s", h.FQDN(), query[1])
			}
		}
		if queries < 20 {
			t.Errorf("the database of %s has noted %d statements only: is this its log?\n%s", h.FQDN(), queries, said)
		}
	}
}

// harmless fits statements that change nothing but their own session.
var harmless = regexp.MustCompile(`(?i)^(?:SELECT|SHOW|EXPLAIN|CHECKSUM|USE|COMMIT|ROLLBACK|SET NAMES|START TRANSACTION READ ONLY|SET GLOBAL general_log = O(?:N|FF)$)`)

// expected fits what apt-get -s does to a child of its own.
var expected = regexp.MustCompile(`^kill N.*, SIGINT`)

// trace is Host.Trace of all hosts at once.
func (p *pair) trace(ctx context.Context, f func() error) (attempts []string, err error) {
	inner := f
	for _, h := range p.Hosts() {
		next := inner
		inner = func() error {
			list, err := h.Trace(ctx, next)
			attempts = append(attempts, list...)
			return err
		}
	}
	err = inner()
	return attempts, err
}

// as runs a command in a login on a host.
func (p *pair) as(ctx context.Context, h *lab.Host, command string) (string, error) {
	argv := append(p.SSH("root", h), command)
	out, err := p.Command(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// equal checks, runs, and checks again. With a drift, check must find it at its tasks and at no other.
func (p *pair) equal(t *testing.T, what string, d *drift, books ...string) {
	t.Helper()
	begin := time.Now()
	check, code := p.runbook(t, "check", books...)
	would := check.with(report.WouldChange)
	want := 0
	if d != nil || len(check.with(report.WouldChange, report.Unknown)) > 0 {
		want = 2
	}
	if code != want {
		t.Errorf("%s: check ends with exit code %d, want %d", what, code, want)
	}
	if bad := check.with(report.Failed, report.Unreachable); len(bad) > 0 {
		t.Errorf("%s: check says that it fails: %q: %s", what, bad, check[bad[0]].Msg)
	}
	if d != nil {
		if !slices.Equal(would, d.tasks) {
			t.Errorf("check would change\n\t%s\nwant\n\t%s", strings.Join(would, "\n\t"), strings.Join(d.tasks, "\n\t"))
		}
		if unknown := check.with(report.Unknown); !slices.Equal(unknown, d.unknown) {
			t.Errorf("check says unknown of\n\t%s\nwant\n\t%s", strings.Join(unknown, "\n\t"), strings.Join(d.unknown, "\n\t"))
		}
	}
	run, code := p.runbook(t, "run", books...)
	if code != 0 {
		bad := run.with(report.Failed, report.Unreachable)
		t.Fatalf("%s: the run ends with exit code %d: %q", what, code, bad)
	}
	changed := run.with(report.Changed)
	found := 0
	for _, name := range changed {
		if slices.Contains(would, name) {
			found++
		}
	}
	for _, difference := range differences(check, run) {
		t.Errorf("%s: %s", what, difference)
	}
	after, code := p.runbook(t, "check", books...)
	if left := after.with(report.WouldChange, report.Unknown, report.Failed, report.Unreachable); code != 0 || len(left) > 0 {
		t.Errorf("%s: after the run a check ends with exit code %d and %q", what, code, left)
	}
	t.Logf("%s: check predicted %d of %d changes, %d unknown, in %.1f s with the run", what, found, len(changed), len(check.with(report.Unknown)), time.Since(begin).Seconds())
}

// drift is one fault of a pair that was in order.
type drift struct {
	name    string
	on      string   // host
	script  string   // makes it
	tasks   []string // that would change
	unknown []string // about which nobody can tell before
}

// readDrifts reads a file of faults; the file says itself what is in it.
func readDrifts(t *testing.T, file string) []drift {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []drift
	for _, f := range archive.Files {
		d := drift{name: f.Name}
		head, script, found := strings.Cut(string(f.Data), "\n\n")
		if !found {
			t.Fatalf("%s: %s: no empty line before the script", file, f.Name)
		}
		d.script = script
		for line := range strings.Lines(head) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			host := d.on
			if name, rest, elsewhere := strings.Cut(value, " | "); elsewhere {
				host, value = name, rest
			}
			value = strings.TrimSpace(value)
			switch key {
			case "on":
				d.on = value
			case "task":
				d.tasks = append(d.tasks, host+"."+lab.Domain+": "+value)
			case "handler":
				d.tasks = append(d.tasks, host+"."+lab.Domain+": "+value+" (handler)")
			case "unknown":
				d.unknown = append(d.unknown, host+"."+lab.Domain+": "+value)
			default:
				t.Fatalf("%s: %s: unknown line %q", file, f.Name, line)
			}
		}
		slices.Sort(d.tasks)
		slices.Sort(d.unknown)
		if d.on == "" || len(d.tasks) == 0 {
			t.Fatalf("%s: %s: needs a host and a task", file, f.Name)
		}
		list = append(list, d)
	}
	return list
}

// TestCheckPrefixes guards that check is right about pairs that are half configured: a run of the books ends after each task that changes
// something, as if it had been killed, with its handlers lost. Then check predicts what a run changes, and after it nothing is left.
func TestCheckPrefixes(t *testing.T) {
	t.Parallel()
	var changing []string
	t.Run("whole", func(t *testing.T) {
		p := newPair(t, "voms1", "voms2")
		if err := p.Host("voms1").Seed(t.Context()); err != nil {
			t.Fatal(err)
		}
		v, code := p.runbook(t, "run", pairBooks...)
		if code != 0 {
			t.Fatalf("the run ends with exit code %d: %q", code, v.with(report.Failed, report.Unreachable))
		}
		for _, name := range v.with(report.Changed) {
			_, name, _ = strings.Cut(name, ": ")
			changing = append(changing, strings.Split(name, " [")[0])
		}
	})
	for _, cut := range cuts(t) {
		if !slices.Contains(changing, cut.after) && !strings.Contains(cut.after, " restart") {
			continue // after it a pair is as before it
		}
		t.Run(cut.after, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, "voms1", "voms2")
			if err := p.Host("voms1").Seed(t.Context()); err != nil {
				t.Fatal(err)
			}
			cut.lay(t, p.dir)
			// Its record stands apart. What it owes would be paid behind the run that is checked, and what starts anew there takes its moment.
			v, code := p.runbook(t, "run", append(slices.Clone(cut.books), "--state-dir", filepath.Join(p.dir, "apart"))...)
			if failed := v.with(report.Failed, report.Unreachable); code != 1 || len(failed) != 1 || !strings.HasSuffix(failed[0], theEnd) {
				t.Fatalf("the run should have ended at %q: exit code %d, %q", theEnd, code, failed)
			}
			p.equal(t, "ended after "+cut.after, nil, pairBooks...)
		})
	}
}

// theEnd is the name of the task at which a run ends.
const theEnd = "the run is killed here"

// cut is a place at which a run ends.
type cut struct {
	after string   // name of the task before it
	books []string // to run: the last is cut, in the directory of lay
	name  string   // of its file
	text  string
}

// lay writes the book that is cut, with all that it needs beside it.
func (c cut) lay(t *testing.T, dir string) {
	t.Helper()
	at := filepath.Join(dir, "man06")
	if err := os.CopyFS(at, os.DirFS("../runbooks/man06")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, c.name), []byte(c.text), 0o600); err != nil {
		t.Fatal(err)
	}
}

var emptyList = regexp.MustCompile(`^ *(?:tasks|block|rescue|always):\s*$`)

// cuts are the places behind each task of the books for the pair. A task that is part of a block ends the block too.
func cuts(t *testing.T) []cut {
	t.Helper()
	task := regexp.MustCompile(`^( {6}| {10})- (?:name: "?([^"]*)"?|meta: .*)$`)
	var list []cut
	var before []string
	for _, book := range pairBooks {
		name := strings.TrimPrefix(book, "man06/") + ".yml"
		data, err := os.ReadFile("../runbooks/man06/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text, handlers := string(data), ""
		if at := strings.Index(text, "\n    handlers:\n"); at >= 0 {
			text, handlers = text[:at+1], text[at+1:]
		}
		last := ""
		lines := strings.SplitAfter(text, "\n")
		for i, line := range append(lines, "      - meta: end\n") {
			found := task.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
			if found == nil {
				continue
			}
			begins := i > 0 && emptyList.MatchString(lines[i-1]) // of a list that would be empty
			if strings.Contains(last, ": ") && !begins {
				end := "      - name: " + theEnd + "\n        command: {argv: [\"false\"], read: true}\n"
				rest := handlers
				if !strings.Contains(strings.Join(lines[:min(i, len(lines))], ""), "notify:") {
					rest = ""
				}
				list = append(list, cut{after: last, books: append(slices.Clone(before), "./man06/"+name), name: name,
					text: strings.Join(lines[:min(i, len(lines))], "") + end + rest})
			}
			last = found[2]
		}
		before = append(before, book)
	}
	if len(list) < 40 {
		t.Fatalf("only %d places to end a run were found: are the books written in another way now?", len(list))
	}
	return list
}
