package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"runbook/acceptance/lab"
	"runbook/engine/journal"
	"runbook/engine/report"
)

// TestChaos kills the controller with kill -9 at a random moment of the whole set-up of a fresh pair, again and again. One resume must end
// well, without a question; then the pair is as one that nobody killed, verify says so, a check finds nothing to do, and nothing was done
// twice that may be done once only. RUNBOOK_CHAOS is how often, RUNBOOK_CHAOS_SEED which moments.
func TestChaos(t *testing.T) {
	t.Parallel()
	needLab(t)
	rounds, seed := number(t, "RUNBOOK_CHAOS", 10), number(t, "RUNBOOK_CHAOS_SEED", 6)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	moments := make([]float64, rounds)
	for i := range moments {
		// Uniform, and of any number of rounds each has its share of the time.
		moments[i] = (float64(i) + random.Float64()) / float64(rounds)
	}
	random.Shuffle(rounds, func(i, j int) { moments[i], moments[j] = moments[j], moments[i] })

	var whole timeline
	var want []state
	t.Run("nobody kills", func(t *testing.T) {
		var mu sync.Mutex
		for _, name := range []string{"one", "two"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := newChaos(t)
				line, killed := c.run(t, nil)
				if killed || line.code != 0 {
					t.Fatalf("a run that nobody killed ends with exit code %d:\n%s", line.code, &c.said)
				}
				state := c.settled(t)
				c.once(t)
				mu.Lock()
				defer mu.Unlock()
				whole, want = line, append(want, state)
			})
		}
	})
	if len(want) != 2 {
		t.FailNow()
	}
	volatile := want[0].differences(want[1]) // what differs between two pairs that nobody killed tells nothing
	t.Logf("two pairs that nobody killed differ in %d things, which are not compared: %s", len(volatile), strings.Join(slices.Sorted(maps.Keys(volatile)), ", "))
	t.Logf("seed %d; a whole run takes %.1f s and says %d things", seed, whole.took().Seconds(), len(whole.events))

	var mu sync.Mutex
	green, done, reached := 0, 0, map[string]int{}
	t.Run("killed", func(t *testing.T) {
		for i, moment := range moments {
			t.Run(fmt.Sprintf("%d at %.1f %%", i+1, 100*moment), func(t *testing.T) {
				t.Parallel()
				c := newChaos(t)
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					done++
					if !t.Failed() {
						green++
					}
					reached[c.where()]++
				}()
				line, killed := c.run(t, whole.at(moment))
				if !killed {
					t.Logf("it was through before it could be killed, with exit code %d", line.code)
				}
				first := c.records(t)
				took, restored := c.resume(t)
				if t.Failed() {
					_, tasks, _ := strings.Cut(first, "\n") // the first line is about the books
					t.Logf("the record:\n%s", tasks)
				}
				t.Logf("killed %s, with %d records; resumed in %.1f s, with %d tasks from the record", c.where(), strings.Count(first, "\n"), took.Seconds(), restored)
				for what, diff := range c.settled(t).differences(want[0]) {
					if _, expected := volatile[what]; !expected {
						t.Errorf("the pair is not as one that nobody killed:\n%s", diff)
					}
				}
				c.once(t)
			})
		}
	})
	var places []string
	for place, n := range reached {
		places = append(places, fmt.Sprintf("%3d  %s", n, place))
	}
	slices.SortFunc(places, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	t.Logf("%d of %d: killed at a random moment, resumed once, and all was well. Where they were killed:\n%s", green, done, strings.Join(places, "\n"))
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s: not a number from 1: %q", name, text)
	}
	return n
}

// timeline is when a run said what.
type timeline struct {
	begin, end time.Time
	events     []time.Time
	code       int
}

func (l timeline) took() time.Duration { return l.end.Sub(l.begin) }

// kill is a moment of a run: so long after it has said so many things. Unlike the time alone, that is the same place on a slow machine.
type kill struct {
	events int
	after  time.Duration
}

// at is a moment between 0 and 1.
func (l timeline) at(moment float64) *kill {
	when := l.begin.Add(time.Duration(moment * float64(l.took())))
	k := &kill{after: when.Sub(l.begin)}
	for i, e := range l.events {
		if e.After(when) {
			break
		}
		k.events, k.after = i+1, when.Sub(e)
	}
	return k
}

// chaos is a pair whose controller is killed.
type chaos struct {
	*pair
	state string
	last  string // the last task that had begun
	said  bytes.Buffer
}

const statements = "/var/lib/mysql/statements.log"

func newChaos(t *testing.T) *chaos {
	t.Helper()
	p := newPair(t, "voms1", "voms2")
	for _, h := range p.Hosts() {
		// It outlives a restart of the server, and counts all that anybody asks of it.
		script := fmt.Sprintf("printf '[mysqld]\\ngeneral_log = ON\\ngeneral_log_file = %s\\n' >/etc/mysql/mariadb.conf.d/10-lab.cnf; mariadb -e \"SET GLOBAL general_log_file = '%s'; SET GLOBAL general_log = ON\"", statements, statements)
		if _, err := h.Exec(t.Context(), "sh", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Host("voms1").Seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &chaos{pair: p, state: filepath.Join(p.dir, "state")}
}

// arguments of the whole set-up.
func (c *chaos) arguments() []string {
	return append([]string{"run", "-i", "inventory.yml", "-e", "@secrets.yml", "--output", "json", "--state-dir", c.state}, allBooks...)
}

// run runs the whole set-up, and kills it at a moment, if one is given.
func (c *chaos) run(t *testing.T, at *kill) (line timeline, killed bool) {
	t.Helper()
	cmd := c.Command(t.Context(), program, c.arguments()...)
	cmd.Dir, cmd.Stderr = c.dir, &c.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	line.begin = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	arm := func(n int) {
		if at != nil && n == at.events {
			timer = time.AfterFunc(at.after, func() { _ = cmd.Process.Kill() })
		}
	}
	arm(0)
	lines := bufio.NewReader(out)
	for {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		line.events = append(line.events, time.Now())
		arm(len(line.events))
		var e report.Event
		if err := json.Unmarshal(text, &e); err != nil {
			t.Errorf("the run says what is no event: %v: %s", err, text)
		}
		c.note(e)
	}
	err = cmd.Wait()
	line.end = time.Now()
	if timer != nil {
		timer.Stop()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	line.code = cmd.ProcessState.ExitCode()
	return line, line.code < 0
}

// note keeps what of an event tells where a run is.
func (c *chaos) note(e report.Event) {
	switch {
	case e.Kind == report.TaskStart:
		c.last = fmt.Sprintf("%s %q on %s", c.book(e.Book), e.Task, e.Host)
	case e.Kind == report.TaskEnd && (e.Result.Status == report.Failed || e.Result.Status == report.Unreachable):
		fmt.Fprintf(&c.said, "%s: %q %s: %s\n", e.Host, e.Task, e.Result.Status, e.Result.Msg)
	case e.Kind == report.Warning || e.Kind == report.PlayStopped:
		fmt.Fprintf(&c.said, "%s %s\n", e.Host, e.Text)
	}
}

// book is the short name of a book.
func (c *chaos) book(title string) string {
	for _, name := range []string{"master", "slave"} {
		if strings.HasSuffix(title, name+" for replication") {
			return "man06/" + name
		}
	}
	return "man06/verify"
}

func (c *chaos) where() string {
	if c.last == "" {
		return "before the first task"
	}
	return "at " + c.last
}

// resume goes on, once, or begins if there is nothing on record. It must end well.
func (c *chaos) resume(t *testing.T) (took time.Duration, restored int) {
	t.Helper()
	runs, err := journal.List(c.state)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"resume", "--state-dir", c.state, "--output", "json", "-v"}
	switch {
	case len(runs) == 0:
		args = c.arguments()
	case runs[0].Status == journal.Done:
		return 0, 0 // all but its last breath
	}
	c.said.Reset()
	cmd := c.Command(t.Context(), program, args...)
	cmd.Dir, cmd.Stderr = c.dir, &c.said
	begin := time.Now()
	out, err := cmd.Output()
	took = time.Since(begin)
	where := c.last
	for line := range bytes.Lines(out) {
		var e report.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("the run says what is no event: %v: %s", err, line)
			continue
		}
		c.note(e)
		if e.Kind == report.TaskEnd && e.Result.OnRecord {
			restored++
		}
	}
	c.last = where
	if err != nil {
		t.Errorf("killed %s; one %s does not end well: %v\n%s", c.where(), args[0], err, &c.said)
	}
	return took, restored
}

// settled proves that the pair is in order, and returns how it is.
func (c *chaos) settled(t *testing.T) state {
	t.Helper()
	for _, books := range [][]string{{"run", "man06/verify"}, append([]string{"check"}, pairBooks...)} {
		v, code := c.runbook(t, books[0], books[1:]...)
		if code != 0 {
			t.Errorf("killed %s and resumed: then %s ends with exit code %d:", c.where(), strings.Join(books, " "), code)
			for _, name := range v.with(report.WouldChange, report.Unknown, report.Failed, report.Unreachable) {
				t.Errorf("  %s %s: %s%s", v[name].Status, name, v[name].Msg, v[name].Because)
			}
		}
	}
	// What dead controllers left behind ends by itself.
	for _, h := range c.Hosts() {
		const idle = `for i in $(seq 100); do ls -d /tmp/.runbook-* >/dev/null 2>&1 || exit 0; sleep 0.1; done; ls -ld /tmp/.runbook-*; exit 1`
		if left, err := h.Exec(t.Context(), "sh", "-c", idle); err != nil {
			t.Errorf("killed %s and resumed: this is left on %s: %s", c.where(), h.FQDN(), left)
		}
	}
	prints, err := c.Fingerprints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := state{}
	for host, print := range prints {
		for _, line := range print {
			s.add(host, line)
		}
	}
	return s
}

// state is how the hosts of a pair are: by what, such as a file, the lines about it.
type state map[string]string

// incidental is what of a line depends on when something was done, or how often the server was restarted meanwhile.
var incidental = regexp.MustCompile(strings.Join([]string{
	` \d{4}-\d\d-\d\dT[0-9:.]+ `, // when a file was changed
	`'\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?'`,
	`"password_last_changed\\":\d+`,
	`'[0-9a-f]{64}'`, // of the dump, which says when it was made
	`'mysql-bin\.\d+',\d+`,
}, "|"))

func (s state) add(host, line string) {
	kind, rest, _ := strings.Cut(line, " ")
	name, _, _ := strings.Cut(rest, " ")
	line = incidental.ReplaceAllString(line, " … ")
	switch kind {
	case "file":
		name, _, _ = strings.Cut(name, " ")
		if strings.HasPrefix(name, "/var/cache/apt/") {
			return // package lists as apt likes to have them
		}
	case "master-status":
		return // where the binary log has come to
	case "variable":
		name, _, _ = strings.Cut(rest, "\t")
	case "sql":
		name = "" // as a whole, but for what is in the tables
		if m := inserts.FindStringSubmatch(rest); m != nil {
			name = m[1]
		}
	}
	s[host+" "+kind+" "+name] += line + "\n"
}

var inserts = regexp.MustCompile("^INSERT INTO `([^`]+)`")

// differences are those things that differ.
func (s state) differences(other state) map[string]string {
	all := map[string]string{}
	for what, lines := range s {
		if other[what] != lines {
			all[what] = diffLines(other[what], lines)
		}
	}
	for what, lines := range other {
		if _, there := s[what]; !there {
			all[what] = diffLines(lines, "")
		}
	}
	return all
}

func diffLines(want, got string) string {
	diff := lab.Fingerprint(strings.Split(want, "\n")).Diff(strings.Split(got, "\n"))
	return strings.Join(diff, "\n")
}

// once proves that what may be done once only was done once.
func (c *chaos) once(t *testing.T) {
	t.Helper()
	for _, want := range []struct {
		host, what string
		times      int
		pattern    string
	}{
		{"voms1", "the replication account is made", 1, `(?i)^CREATE USER .*db_rep`},
		{"voms1", "the canary's table is made", 1, `(?i)^CREATE TABLE canary`},
		{"voms2", "the replication is set up", 1, `(?i)^CHANGE MASTER`},
		{"voms2", "the probe's account is made", 1, `(?i)^CREATE USER .*man06_probe`},
		{"voms2", "an import is finished", 1, `(?i)^UPDATE .runbook.\..imports. SET state`},
	} {
		text, err := c.Host(want.host).Exec(context.WithoutCancel(t.Context()), "cat", statements)
		if err != nil {
			t.Fatal(err)
		}
		times := 0
		for _, query := range regexp.MustCompile(`(?m)\t *\d+ (?:Query|Execute)\t(.*)$`).FindAllStringSubmatch(text, -1) {
			if regexp.MustCompile(want.pattern).MatchString(query[1]) {
				times++
			}
		}
		if times != want.times {
			t.Errorf("killed %s and resumed: %s %d times on %s, want %d", c.where(), want.what, times, want.host, want.times)
		}
	}
	records := c.parsed(t)
	done := map[journal.Key]string{}
	for _, r := range records {
		switch {
		case r.Begin != nil && done[r.Begin.Key] != "":
			t.Errorf("killed %s and resumed: %q of %s is begun again, though it was on record as %s", c.where(), r.Begin.Name, r.Begin.Host, done[r.Begin.Key])
		case r.End != nil && (r.End.Status == string(report.Changed) || r.End.Status == string(report.OK)) && !r.End.Withheld:
			done[r.End.Key] = r.End.Status
		}
	}
}

// parsed are the records of the run.
func (c *chaos) parsed(t *testing.T) []journal.Record {
	t.Helper()
	runs, err := journal.List(c.state)
	if err != nil {
		t.Fatal(err)
	}
	var all []journal.Record
	for _, r := range runs {
		records, _, err := journal.Read(c.state, r.ID)
		if err != nil {
			t.Errorf("killed %s: the record cannot be read: %v", c.where(), err)
		}
		all = append(all, records...)
	}
	return all
}

// records is the text of the record.
func (c *chaos) records(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.state, "runs", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return string(all)
}
