package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"golang.org/x/sys/unix"

	"runbook/acceptance/lab"
	"runbook/engine/journal"
	"runbook/engine/report"
)

// TestChaos kills the controller with kill -9 during the whole set-up of a fresh pair, again and again: at random moments, and where its record
// is written, in the middle of a write and when it has been synced. One resume must end well, without a question; then the pair is as one that
// nobody killed, verify says so, a check finds nothing to do, and nothing was done twice that may be done once only. RUNBOOK_CHAOS is how often
// at random, RUNBOOK_CHAOS_SEED which moments; RUNBOOK_POINTS at how many of the writes, or all.
func TestChaos(t *testing.T) {
	t.Parallel()
	needLab(t)
	rounds, seed := number(t, "RUNBOOK_CHAOS", 10), number(t, "RUNBOOK_CHAOS_SEED", 6)
	random := rand.New(rand.NewPCG(uint64(seed), 0))

	var whole timeline
	var want []state
	var writes int
	t.Run("nobody kills", func(t *testing.T) {
		var mu sync.Mutex
		for _, name := range []string{"one", "two"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := newChaos(t)
				log := c.crashes(0)
				line := c.run(t, nil, nil)
				if line.code != 0 {
					t.Fatalf("a run that nobody killed ends with exit code %d:\n%s", line.code, &c.said)
				}
				moments, err := os.ReadFile(log)
				if err != nil {
					t.Fatal(err)
				}
				state := c.settled(t)
				c.once(t)
				mu.Lock()
				defer mu.Unlock()
				whole, want, writes = line, append(want, state), bytes.Count(moments, []byte("\n"))
			})
		}
	})
	if len(want) != 2 {
		t.FailNow()
	}
	volatile := want[0].differences(want[1]) // what differs between two pairs that nobody killed tells nothing
	t.Logf("two pairs that nobody killed differ in %d things, which are not compared: %s", len(volatile), strings.Join(slices.Sorted(maps.Keys(volatile)), ", "))
	t.Logf("seed %d; a whole run takes %.1f s and says %d things; its record can be cut off in %d ways", seed, whole.took().Seconds(), len(whole.events), writes)
	if writes < 100 {
		t.Fatal("the record of a whole run has more writes than that")
	}

	kills := kills{whole: whole, want: want[0], volatile: volatile}
	t.Run("killed", func(t *testing.T) {
		for i, share := range shares(random, rounds) {
			t.Run(fmt.Sprintf("%d at %.1f %%", i+1, 100*share), func(t *testing.T) {
				kills.one(t, func(c *chaos) timeline { return c.run(t, whole.at(share), nil) })
			})
		}
	})
	kills.tell(t, "killed at a random moment")

	points := make([]int, writes)
	for i := range points {
		points[i] = i + 1
	}
	if os.Getenv("RUNBOOK_POINTS") != "all" {
		points = nil
		for _, share := range shares(random, number(t, "RUNBOOK_POINTS", 4)) {
			points = append(points, 1+int(share*float64(writes)))
		}
	}
	t.Run("writes", func(t *testing.T) {
		for _, n := range points {
			t.Run(fmt.Sprintf("%d of %d", n, writes), func(t *testing.T) {
				kills.one(t, func(c *chaos) timeline {
					c.crashes(n)
					return c.run(t, nil, nil)
				})
			})
		}
	})
	kills.tell(t, "killed where the record is written")
}

// shares are numbers between 0 and 1 in any order: uniform, and of any number of rounds each has its share.
func shares(random *rand.Rand, rounds int) []float64 {
	all := make([]float64, rounds)
	for i := range all {
		all[i] = (float64(i) + random.Float64()) / float64(rounds)
	}
	random.Shuffle(rounds, func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// kills are runs that are killed and resumed.
type kills struct {
	whole    timeline
	want     state             // of a pair that nobody killed
	volatile map[string]string // what of it is not compared

	mu          sync.Mutex
	green, done int
	reached     map[string]int
}

// one kills one run of a fresh pair, resumes it and looks at what has become of the pair.
func (k *kills) one(t *testing.T, kill func(*chaos) timeline) {
	t.Parallel()
	c := newChaos(t)
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.done++
		if !t.Failed() {
			k.green++
		}
		if k.reached == nil {
			k.reached = map[string]int{}
		}
		k.reached[c.where()]++
	}()
	line := kill(c)
	c.binary, c.env = program, nil
	if line.code >= 0 {
		t.Logf("it was through before it could be killed, with exit code %d", line.code)
	}
	first := c.records(t)
	made := c.made(t)
	took, restored := c.resume(t)
	if restored < made {
		t.Errorf("killed %s: %d changes were on record as made, and resume took %d tasks from it", c.where(), made, restored)
	}
	if t.Failed() {
		t.Logf("the record:\n%s", told(c.parsed(t)))
	}
	t.Logf("killed %s, with %d records; resumed in %.1f s, with %d tasks from the record", c.where(), strings.Count(first, "\n"), took.Seconds(), restored)
	for what, diff := range c.settled(t).differences(k.want) {
		if _, expected := k.volatile[what]; !expected {
			t.Errorf("the pair is not as one that nobody killed:\n%s", diff)
		}
	}
	c.once(t)
}

// tell reports and forgets the kills so far.
func (k *kills) tell(t *testing.T, how string) {
	t.Helper()
	var places []string
	for place, n := range k.reached {
		places = append(places, fmt.Sprintf("%3d  %s", n, place))
	}
	slices.SortFunc(places, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	t.Logf("%d of %d: %s, resumed once, and all was well. Where they were killed:\n%s", k.green, k.done, how, strings.Join(places, "\n"))
	k.green, k.done, k.reached = 0, 0, nil
}

// fault is what happens to a host during a run.
type fault struct {
	what string
	does func(ctx context.Context, h *lab.Host) error
	ends func(ctx context.Context, h *lab.Host) error // after the run
	anew bool                                         // the host starts anew
	link func(l *lab.Link)                            // instead of does: what happens to the connection, by way of a link
}

var (
	restarts = fault{what: "restarts", does: func(ctx context.Context, h *lab.Host) error { return h.Reboot(ctx) }, anew: true}
	crashes  = fault{what: "loses its power", anew: true, does: func(ctx context.Context, h *lab.Host) error {
		return errors.Join(h.Crash(ctx), h.Start(ctx))
	}}
	unplugged = fault{what: "is cut off",
		does: func(ctx context.Context, h *lab.Host) error { return h.Unplug(ctx) },
		ends: func(ctx context.Context, h *lab.Host) error { return h.Plug(ctx) }}
)

// linkCut is that a host's connection is cut, after so many bytes.
func linkCut(cut lab.Cut, after int64) fault {
	return fault{what: fmt.Sprintf("has its connection cut after %d bytes (%s)", after, cut), link: func(l *lab.Link) { l.CutAfter(after, cut) }}
}

// TestFaults guards that a host may restart, lose its power, be cut off or lose its connection during the set-up of a pair: what was under way there is not taken
// for failed or done, and one resume ends well and leaves the pair in order. RUNBOOK_FAULTS is how often at random moments besides.
func TestFaults(t *testing.T) {
	t.Parallel()
	needLab(t)
	for _, round := range []struct {
		task, host string
		fault
	}{
		{"Step 4: insert the dump", "voms2", restarts},
		{"Step 8: dump the databases", "voms1", crashes},
		{"Step 4: fetch the dump from the master", "voms1", unplugged},
	} {
		t.Run(round.host+" "+round.what, func(t *testing.T) {
			t.Parallel()
			newChaos(t).suffer(t, &moment{task: round.task}, round.host, round.fault)
		})
	}
	if os.Getenv("RUNBOOK_FAULTS") == "" {
		return
	}
	t.Run("voms2 has no room for its relay log", fullRelayLog)
	var whole timeline
	t.Run("no fault", func(t *testing.T) { whole = newChaos(t).run(t, nil, nil) })
	random := rand.New(rand.NewPCG(uint64(number(t, "RUNBOOK_CHAOS_SEED", 6)), 1))
	for i := range number(t, "RUNBOOK_FAULTS", 0) {
		faults := []fault{restarts, crashes, unplugged}
		for _, cut := range lab.Cuts {
			faults = append(faults, linkCut(cut, random.Int64N(1<<random.IntN(17))))
		}
		share, host, f := random.Float64(), []string{"voms1", "voms2"}[random.IntN(2)], faults[i%len(faults)]
		t.Run(fmt.Sprintf("%d %s %s at %.1f %%", i+1, host, f.what, 100*share), func(t *testing.T) {
			t.Parallel()
			newChaos(t).suffer(t, whole.at(share), host, f)
		})
	}
}

// suffer runs the set-up with a fault of a host, and resumes.
func (c *chaos) suffer(t *testing.T, at *moment, name string, f fault) {
	t.Helper()
	h := c.Host(name)
	where, before := "", 0
	var link *lab.Link
	if f.link != nil {
		var err error
		if link, err = c.Link(h); err != nil {
			t.Fatal(err)
		}
		defer link.Close()
		c.write(t, "inventory.yml", strings.Replace(c.Inventory(), "address: "+h.Address()+"}", "address: "+link.Address+"}", 1))
	}
	line := c.run(t, at, func() error {
		where = c.where()
		before = strings.Count(c.records(t), `"host":"`+h.FQDN()+`"`)
		if link != nil {
			f.link(link)
			return nil
		}
		return f.does(t.Context(), h)
	})
	if f.ends != nil {
		if err := f.ends(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s %s %s; the run ends after %.1f s with exit code %d", name, f.what, where, line.took().Seconds(), line.code)
	if link != nil {
		if _, cut := link.WasCut(); !cut && line.code != 0 {
			t.Errorf("the run ends with exit code %d before the connection was cut:\n%s", line.code, &c.said)
		}
	}
	if line.took() > 2*time.Minute {
		t.Errorf("the run took %.0f s to find that %s %s", line.took().Seconds(), name, f.what)
	}
	for _, r := range c.parsed(t) {
		// Of a host that restarts in good order, its services may go before its connections.
		if r.End != nil && r.End.Host == h.FQDN() && r.End.Status == string(report.Failed) && f.what != restarts.what {
			t.Errorf("%s %s %s, and the record says that %q failed: %s", name, f.what, where, r.End.Name, r.End.Result)
		}
	}
	if line.code == 0 {
		if at.task != "" {
			t.Errorf("%s %s, and the run did not notice", name, f.what)
		}
	} else {
		took, restored := c.resume(t)
		t.Logf("resumed in %.1f s, with %d tasks from the record", took.Seconds(), restored)
		if f.anew && before > 1 && !strings.Contains(c.said.String(), h.FQDN()+" it has started anew") {
			t.Errorf("%s %s, and resume did not notice:\n%s", name, f.what, &c.said)
		}
	}
	c.settled(t)
	if t.Failed() {
		t.Logf("the record:\n%s", told(c.parsed(t)))
	}
}

// TestFullController guards that a run whose record finds no more room on the controller stops before its next change, says which file it is,
// and goes on when there is room.
func TestFullController(t *testing.T) {
	t.Parallel()
	c := newChaos(t)
	if err := os.Mkdir(c.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", c.state, "tmpfs", 0, "mode=0700,size=4096"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(c.state, 0); err != nil {
			t.Error(err)
		}
	})
	size := func(bytes int) {
		if err := unix.Mount("tmpfs", c.state, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("mode=0700,size=%d", bytes)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := c.Fingerprints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	line := c.run(t, nil, nil)
	if line.code != 1 && line.code != 3 || len(line.events) > 0 || !strings.Contains(c.said.String(), c.state) || !strings.Contains(c.said.String(), "no space left on device") {
		t.Fatalf("without room for the first record a run ends with exit code %d and says %d things:\n%s", line.code, len(line.events), &c.said)
	}
	after, err := c.Fingerprints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for host := range before {
		if diff := before[host].Diff(after[host]); len(diff) > 0 {
			t.Errorf("a run that could not be put on record changed %s:\n%s", host, strings.Join(diff, "\n"))
		}
	}
	var last int
	for pages := 6; ; pages += pages / 2 {
		size(pages * os.Getpagesize())
		c.said.Reset()
		verb := "run"
		if runs, err := journal.List(c.state); err != nil {
			t.Fatal(err)
		} else if len(runs) > 0 {
			verb = "resume"
		}
		code := 0
		if verb == "run" {
			code = c.run(t, nil, nil).code
		} else {
			cmd := c.Command(t.Context(), program, "resume", "--state-dir", c.state)
			cmd.Dir, cmd.Stderr = c.dir, &c.said
			out, _ := cmd.Output()
			c.said.Write(out)
			code = cmd.ProcessState.ExitCode()
		}
		records := c.parsed(t)
		t.Logf("%d KiB: %s ends with exit code %d and %d records", pages*os.Getpagesize()>>10, verb, code, len(records))
		if code == 0 {
			break
		}
		if !strings.Contains(c.said.String(), filepath.Join(c.state, "runs")) || !strings.Contains(c.said.String(), "no space left on device") {
			t.Fatalf("with %d pages %s does not say what is full:\n%s", pages, verb, &c.said)
		}
		if len(records) > 0 && code != 4 || len(records) < last || pages > 200 {
			t.Fatalf("with %d pages %s ends with exit code %d, and %d records after %d:\n%s", pages, verb, code, len(records), last, &c.said)
		}
		last = len(records)
	}
	c.settled(t)
	c.once(t)
}

// TestEditedBook guards that a run of the pair whose book was edited since it failed says how, and goes on with the edited one if that is meant,
// without doing anything twice.
func TestEditedBook(t *testing.T) {
	t.Parallel()
	c := newChaos(t)
	all := cuts(t)
	at := slices.IndexFunc(all, func(cut cut) bool { return cut.after == "Step 4: insert the dump" })
	if at < 0 {
		t.Fatal("the slave's book has no task that inserts the dump")
	}
	cut := all[at]
	cut.lay(t, c.dir)
	call := func(args ...string) (code int, out string) {
		cmd := c.Command(t.Context(), program, append(args, "--state-dir", c.state)...)
		cmd.Dir = c.dir
		text, _ := cmd.CombinedOutput()
		return cmd.ProcessState.ExitCode(), string(text)
	}
	if code, out := call(append([]string{"run", "-i", "inventory.yml", "-e", "@secrets.yml"}, cut.books...)...); code != 1 || !strings.Contains(out, theEnd) {
		t.Fatalf("the run should have ended at %q: exit code %d\n%s", theEnd, code, out)
	}
	whole, err := os.ReadFile("../runbooks/man06/" + cut.name)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(whole), `state: directory, mode: "0755"`, `state: directory, mode: "0711"`, 1)
	if edited == string(whole) {
		t.Fatal("nothing was edited")
	}
	c.write(t, filepath.Join("man06", cut.name), edited)

	records := c.records(t)
	code, out := call("resume")
	for _, want := range []string{
		`task "the run is killed here" is gone`, `task "Step 5: the replication runs" is new`,
		`task "Step 1: the folder of the tunnel's configuration" is not what it was`, "--accept-changes", "no host was touched",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("resume with an edited book does not say %q:\n%s", want, out)
		}
	}
	if code != 3 || c.records(t) != records {
		t.Errorf("resume with an edited book ends with exit code %d, and its record has %d more bytes", code, len(c.records(t))-len(records))
	}
	code, out = call("resume", "--accept-changes")
	if code != 0 || !strings.Contains(out, "changed      voms2.example.org  Step 1: the folder") {
		t.Errorf("resume --accept-changes ends with exit code %d:\n%s", code, out)
	}
	if v, code := c.runbook(t, "run", "man06/verify"); code != 0 {
		t.Errorf("then verify ends with exit code %d: %q", code, v.with(report.Failed))
	}
	c.once(t, "Step 1: the folder of the tunnel's configuration")
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

// read calls each for what a run says, until it says no more.
func (l *timeline) read(out io.Reader, errorf func(format string, args ...any), each func(report.Event)) {
	for lines := bufio.NewReader(out); ; {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		l.events = append(l.events, time.Now())
		var e report.Event
		if err := json.Unmarshal(text, &e); err != nil {
			errorf("the run says what is no event: %v: %s", err, text)
		}
		each(e)
	}
}

// moment is one of a run: so long after it has said so many things, or that a task begins. Unlike the time alone, that is the same place
// on a slow machine.
type moment struct {
	events int
	task   string
	after  time.Duration
}

// at is a moment between 0 and 1.
func (l timeline) at(share float64) *moment {
	when := l.begin.Add(time.Duration(share * float64(l.took())))
	m := &moment{after: when.Sub(l.begin)}
	for i, e := range l.events {
		if e.After(when) {
			break
		}
		m.events, m.after = i+1, when.Sub(e)
	}
	return m
}

// chaos is a pair whose controller is killed.
type chaos struct {
	*pair
	state  string
	binary string   // the program that is run
	env    []string // for it
	mu     sync.Mutex
	last   string // the last task that had begun
	said   bytes.Buffer
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
	return &chaos{pair: p, state: filepath.Join(p.dir, "state"), binary: program}
}

// crashes lets the next run die at the n-th of the moments at which its record may have come to differ, 0 for none of them. It returns a file
// that gets a line for each.
func (c *chaos) crashes(n int) string {
	log := filepath.Join(c.dir, "moments")
	c.binary = crashing
	c.env = []string{fmt.Sprintf("RUNBOOK_CRASH=%d", n), "RUNBOOK_CRASH_LOG=" + log, "RUNBOOK_CRASH_AT=in the middle of write,after sync"}
	return log
}

// arguments of the whole set-up.
func (c *chaos) arguments() []string {
	return append([]string{"run", "-i", "inventory.yml", "-e", "@secrets.yml", "--output", "json", "--state-dir", c.state}, allBooks...)
}

// run runs the whole set-up. At a moment, if one is given, the fault happens; without one it is killed.
func (c *chaos) run(t *testing.T, at *moment, fault func() error) (line timeline) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := c.Command(t.Context(), c.binary, c.arguments()...)
	cmd.Dir, cmd.Stderr, cmd.Env = c.dir, &stderr, append(os.Environ(), c.env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if fault == nil {
		fault = func() error { return cmd.Process.Kill() }
	}
	line.begin = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	happened := make(chan error, 1)
	var timer *time.Timer
	arm := func(now bool) {
		if now && timer == nil {
			timer = time.AfterFunc(at.after, func() { happened <- fault() })
		}
	}
	arm(at != nil && at.task == "" && at.events == 0)
	line.read(out, t.Errorf, func(e report.Event) {
		c.note(e)
		arm(at != nil && (at.task == "" && at.events == len(line.events) || at.task != "" && e.Kind == report.TaskStart && e.Task == at.task))
	})
	err = cmd.Wait()
	line.end = time.Now()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if timer != nil && !timer.Stop() {
		if err := <-happened; err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	c.said.Write(stderr.Bytes())
	line.code = cmd.ProcessState.ExitCode()
	return line
}

// note keeps what of an event tells where a run is.
func (c *chaos) note(e report.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
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
	c.mu.Lock()
	defer c.mu.Unlock()
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
	var stderr bytes.Buffer
	cmd := c.Command(t.Context(), program, args...)
	cmd.Dir, cmd.Stderr = c.dir, &stderr
	begin := time.Now()
	out, err := cmd.Output()
	took = time.Since(begin)
	c.said.Write(stderr.Bytes())
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

// idle is sh text that waits for the end of what dead controllers left on a host.
const idle = `for i in $(seq 100); do ls -d /tmp/.runbook-* >/dev/null 2>&1 || exit 0; sleep 0.1; done; ls -ld /tmp/.runbook-*; exit 1`

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
		if name == "gtid_slave_pos" {
			return // which of the events were the last
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

// once proves that what may be done once only was done once, and that no task was done twice but those that were meant to be.
func (c *chaos) once(t *testing.T, meant ...string) {
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
		case r.Begin != nil && done[r.Begin.Key] != "" && !slices.Contains(meant, r.Begin.Name):
			t.Errorf("killed %s and resumed: %q of %s is begun again, though it was on record as %s", c.where(), r.Begin.Name, r.Begin.Host, done[r.Begin.Key])
		case r.End != nil && (r.End.Status == string(report.Changed) || r.End.Status == string(report.OK)) && !r.End.Withheld:
			done[r.End.Key] = r.End.Status
		}
	}
}

// parsed are the records of the run.
func (c *chaos) parsed(t *testing.T) []journal.Record {
	t.Helper()
	return parsed(t, c.state)
}

// parsed are the records in a state directory.
func parsed(t *testing.T, state string) []journal.Record {
	t.Helper()
	runs, err := journal.List(state)
	if err != nil {
		t.Fatal(err)
	}
	var all []journal.Record
	for _, r := range runs {
		records, _, err := journal.Read(state, r.ID)
		if err != nil {
			t.Errorf("the record cannot be read: %v", err)
		}
		all = append(all, records...)
	}
	return all
}

// made counts the changes that are on record as made, in a run that is not through.
func (c *chaos) made(t *testing.T) (n int) {
	t.Helper()
	for _, r := range c.parsed(t) {
		switch {
		case r.End != nil && r.End.Effect && !r.End.Withheld && r.End.Status != string(report.Failed) && r.End.Status != string(report.Unreachable):
			n++
		case r.Close != nil && r.Close.Status == journal.Done:
			return 0
		}
	}
	return n
}

// told is the record in short.
func told(records []journal.Record) string {
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "%s %3d %s", r.Time.Format("15:04:05.000"), r.N, r.Kind)
		switch {
		case r.Begin != nil:
			fmt.Fprintf(&b, " %s %q %s", r.Begin.Host, r.Begin.Name, r.Begin.Item)
		case r.End != nil:
			fmt.Fprintf(&b, " %s %q %s %s", r.End.Host, r.End.Name, r.End.Item, r.End.Status)
		case r.Note != nil:
			fmt.Fprintf(&b, " %s", r.Note.Text)
		case r.Close != nil:
			fmt.Fprintf(&b, " %s\n%s", r.Close.Status, r.Close.Text)
		}
		b.WriteByte('\n')
	}
	return b.String()
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
