package acceptance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"runbook/engine/journal"
	"runbook/engine/report"
)

// clockBook has tasks of each kind that a stopped or a wrong clock finds in another state, some with a timeout. What it does once only it
// says in once.
const clockBook = `runbook: clock
params: {root: {type: path, required: true}}
plays:
  - name: one
    hosts: all
    tasks:
      - name: folder
        file: {path: '{{ root }}/d', state: directory}
      - name: files
        loop: [a, b]
        copy: {dest: '{{ root }}/d/{{ item }}', content: "{{ item }}\n"}
        notify: restart
      - name: token
        timeout: 8s
        command: {shell: 'sleep 0.5; echo token >>{{ root }}/once; echo made >{{ root }}/d/token', creates: '{{ root }}/d/token'}
      - name: number
        command: {argv: [cat, '{{ root }}/d/token'], read: true}
        register: number
      - name: detached
        detach: true
        timeout: 1h
        command: {shell: 'echo begun; sleep 2; echo detached >>{{ root }}/once; (sleep 1; echo >{{ root }}/d/later) >/dev/null 2>&1 & echo made >{{ root }}/d/detached', creates: '{{ root }}/d/detached'}
      - name: waits
        wait_for: {path: '{{ root }}/d/later', timeout: 5m}
      - name: limited
        timeout: 8s
        command: {shell: 'sleep 1; echo limited {{ number.stdout }} >>{{ root }}/once; echo made >{{ root }}/d/limited', creates: '{{ root }}/d/limited'}
      - name: last
        line: {path: '{{ root }}/d/a', line: 'number {{ number.stdout }}'}
    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/once; echo made >{{ root }}/d/restarted', creates: '{{ root }}/d/restarted'}
`

// rivalBook is what a second operator wants meanwhile.
const rivalBook = `runbook: rival
params: {root: {type: path, required: true}}
plays:
  - name: one
    hosts: all
    tasks:
      - name: rival
        copy: {dest: '{{ root }}/rival', content: "rival\n"}
`

// clockOnce is what once holds in the end.
var clockOnce = []string{"token", "detached", "limited made", "restarted"}

// clockField is a host with many accounts: each has a lock of its own, so that many runs can be stopped at a time.
type clockField struct {
	*lockLab
	shifted string // the program, with a clock of its own
}

// How the host's SSH server treats an account.
const (
	patient   = "patient"   // it never ends a connection by itself
	impatient = "impatient" // it ends one that does not answer
	jumping   = "jumping"   // it tells the account another time, by what ~/.clock says
)

func newClockField(t *testing.T, kinds []string) *clockField {
	t.Helper()
	f := &clockField{lockLab: newLockLab(t)}
	var b strings.Builder
	b.WriteString("echo MaxStartups 200 >/etc/ssh/sshd_config.d/clock.conf\n")
	for i, kind := range kinds {
		fmt.Fprintf(&b, `useradd -m -s /bin/bash clock%[1]d
install -d -m 700 -o clock%[1]d /home/clock%[1]d/.ssh
install -m 600 -o clock%[1]d ~root/.ssh/authorized_keys /home/clock%[1]d/.ssh/
`, i)
		switch kind {
		case impatient:
			fmt.Fprintf(&b, "printf 'Match User clock%d\\n ClientAliveInterval 2\\n ClientAliveCountMax 2\\n' >>/etc/ssh/sshd_config.d/clock.conf\n", i)
		case jumping:
			fmt.Fprintf(&b, `command -v faketime >/dev/null || dpkg -s libfaketime >/dev/null 2>&1 || apt-get install -y -qq libfaketime
echo +0 >/home/clock%[1]d/.clock
library=$(dpkg -L libfaketime | grep '/libfaketimeMT\.so')
printf 'Match User clock%[1]d\n SetEnv LD_PRELOAD=%%s FAKETIME_TIMESTAMP_FILE=/home/clock%[1]d/.clock FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1\n' "$library" >>/etc/ssh/sshd_config.d/clock.conf
`, i)
		}
	}
	b.WriteString("sshd -t\nsystemctl reload ssh\n")
	if out, err := f.host.Exec(t.Context(), "sh", "-ec", b.String()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return f
}

// clockPlace is a place for one run.
type clockPlace struct {
	*clockField
	t          *testing.T
	name, kind string
	account    string
	dir, state string
	program    string
	shift      string   // a file that says by how many seconds the controller's clock is wrong
	settings   []string // of the connection
	said       bytes.Buffer
}

func (f *clockField) place(t *testing.T, account int, kind string, settings ...string) *clockPlace {
	t.Helper()
	dir := t.TempDir()
	c := &clockPlace{clockField: f, t: t, kind: kind, account: fmt.Sprint("clock", account), dir: dir, state: filepath.Join(dir, "state"),
		program: program, shift: filepath.Join(dir, "shift"), settings: settings}
	c.inventory(dir, f.lab.Identity(), f.lab.KnownHosts())
	for name, text := range map[string]string{"book.yml": clockBook, "rival.yml": rivalBook, "shift": "0"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *clockPlace) inventory(dir, key, known string) {
	text := fmt.Sprintf("groups:\n  all:\n    user: %s\n    identity_file: %s\n    known_hosts: %s\n    ssh_config: none\n", c.account, key, known)
	for _, s := range c.settings {
		text += "    " + s + "\n"
	}
	text += fmt.Sprintf("    hosts:\n      voms1.example.org: {address: %s}\n", c.host.Address())
	if err := os.WriteFile(filepath.Join(dir, "inv.yml"), []byte(text), 0o644); err != nil {
		c.t.Error(err)
	}
}

func (c *clockPlace) errorf(format string, args ...any) {
	c.t.Helper()
	c.t.Errorf("%s: %s", c.name, fmt.Sprintf(format, args...))
}

// run runs the book; at a moment, if one is given, the fault happens to its process.
func (c *clockPlace) run(at *moment, fault func(p *os.Process), args ...string) (line timeline) {
	var stderr bytes.Buffer
	cmd := c.lab.Command(context.Background(), c.program, args...)
	cmd.Dir, cmd.Stderr = c.dir, &stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // the kernel wakes those that are stopped when their group loses its last parent, such as a shell
	cmd.Env = append(cmd.Environ(), "RUNBOOK_TEST_SHIFT="+c.shift)
	out, err := cmd.StdoutPipe()
	if err == nil {
		line.begin = time.Now()
		err = cmd.Start()
	}
	if err != nil {
		c.errorf("%v", err)
		return line
	}
	happened := make(chan bool, 1)
	var timer *time.Timer
	arm := func(task string) {
		if at != nil && timer == nil && (at.task == "" && at.events == len(line.events) || at.task != "" && at.task == task) {
			timer = time.AfterFunc(at.after, func() { fault(cmd.Process); happened <- true })
		}
	}
	arm("")
	line.read(out, c.errorf, func(e report.Event) {
		switch {
		case e.Kind == report.TaskEnd && e.Result.Status == report.Failed && !strings.Contains(e.Result.Msg, "timed out") && !strings.Contains(e.Result.Msg, "did not end within"):
			c.errorf("%s failed: %s", e.Task, e.Result.Msg)
		case e.Kind == report.TaskEnd && (e.Result.Status == report.Failed || e.Result.Status == report.Unreachable):
			fmt.Fprintf(&c.said, "%s %s: %s\n", e.Task, e.Result.Status, e.Result.Msg)
		case e.Kind == report.Warning:
			fmt.Fprintf(&c.said, "%s\n", e.Text)
		}
		if e.Kind == report.TaskStart {
			arm(e.Task)
		} else {
			arm("")
		}
	})
	_ = cmd.Wait()
	line.end = time.Now()
	if timer != nil && !timer.Stop() {
		<-happened
	}
	c.said.Write(stderr.Bytes())
	line.code = cmd.ProcessState.ExitCode()
	return line
}

func (c *clockPlace) whole(at *moment, fault func(p *os.Process)) timeline {
	return c.run(at, fault, "run", "book.yml", "-i", "inv.yml", "-e", "root=/home/"+c.account, "--state-dir", c.state, "--output", "json")
}

// resume goes on, once, unless the run is through; it must end well.
func (c *clockPlace) resume() {
	c.t.Helper()
	runs, err := journal.List(c.state)
	if err != nil || len(runs) != 1 {
		c.errorf("%d runs are on record, %v", len(runs), err)
		return
	}
	if runs[0].Status == journal.Done {
		return
	}
	if line := c.run(nil, nil, "resume", runs[0].ID, "--state-dir", c.state, "--output", "json"); line.code != 0 {
		c.errorf("resume ends with exit code %d:\n%s", line.code, &c.said)
	}
}

// settled proves that the host is as a run without any fault leaves it, that nothing was done twice, and that the record can be read.
func (c *clockPlace) settled() (records []journal.Record) {
	c.t.Helper()
	out, err := c.host.Exec(context.Background(), "sh", "-ec", "cd /home/"+c.account+"; cd d; for f in *; do echo $f; cat $f; done; cd ..; sort once; ls -A")
	once := append([]string(nil), clockOnce...)
	want := "a\na\nnumber made\nb\nb\ndetached\nmade\nlater\n\nlimited\nmade\nrestarted\nmade\ntoken\nmade\n"
	if err != nil || !strings.HasPrefix(out, want) {
		c.errorf("%v, the host has\n%s\nwant\n%s", err, out, want)
	}
	for _, word := range once {
		if n := strings.Count(strings.TrimPrefix(out, want), word+"\n"); n != 1 {
			c.errorf("%s was done %d times:\n%s", word, n, &c.said)
		}
	}
	runs, err := journal.List(c.state)
	if err != nil || len(runs) != 1 || runs[0].Status != journal.Done {
		c.errorf("on record: %+v, %v", runs, err)
		return nil
	}
	records, _, err = journal.Read(c.state, runs[0].ID)
	if err != nil {
		c.errorf("%v", err)
	}
	ended := map[journal.Key]bool{}
	for i, r := range records {
		switch {
		case r.N != i+1:
			c.errorf("record %d has number %d", i+1, r.N)
		case r.Begin != nil && ended[r.Begin.Key]:
			c.errorf("%s is begun again, though it had ended", r.Begin.Name)
		case r.End != nil && r.End.Status == string(report.Changed):
			ended[r.End.Key] = true
		}
	}
	return records
}

// rival is another operator of another machine, as another user, with records of his own, who wants the same account of the host.
func (c *clockPlace) rival() (code int, said string) {
	dir := filepath.Join(c.lockLab.dir, "bob", c.account)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.errorf("%v", err)
	}
	c.inventory(dir, filepath.Join(c.home(true), "key"), filepath.Join(c.home(true), "known_hosts"))
	if err := os.WriteFile(filepath.Join(dir, "rival.yml"), []byte(rivalBook), 0o644); err != nil {
		c.errorf("%v", err)
	}
	_ = os.Chown(dir, otherUID, otherUID)
	copied := filepath.Join(c.lockLab.dir, "runbook")
	cmd := c.lab.Command(context.Background(), "unshare", "--uts", "sh", "-ec", `hostname ctl2.example.org; exec setpriv --reuid=$0 --regid=$0 --clear-groups "$@"`,
		strconv.Itoa(otherUID), copied, "run", "rival.yml", "-i", "inv.yml", "-e", "root=/home/"+c.account, "--state-dir", filepath.Join(dir, "state"))
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.home(true), "USER=bob"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.errorf("%v", err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestStopped guards that a controller which is stopped for longer than any limit, and goes on, as one that was suspended does, has not lost
// its hosts, takes nothing for failed or done that is not, and at the worst loses a connection, after which one resume ends well. While it
// is stopped it holds its lock, and others are told so. RUNBOOK_CLOCK is how often, for ten minutes each, all at a time; without it a few are
// stopped for as long as it takes.
func TestStopped(t *testing.T) {
	t.Parallel()
	needLab(t)
	rounds, stop, settings := 5, 15*time.Second, []string{"keepalive: 2s"} // lost after 8 s; a lock is renewed every 10 s
	if os.Getenv("RUNBOOK_CLOCK") != "" {
		rounds, stop, settings = number(t, "RUNBOOK_CLOCK", 20), 10*time.Minute, nil
	}
	kinds := []string{patient}
	for i := range rounds {
		kinds = append(kinds, []string{patient, patient, impatient}[i%3])
	}
	f := newClockField(t, kinds)
	copied, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(filepath.Join(f.dir, "runbook"), copied, 0o755) // for everybody
	}
	if err != nil {
		t.Fatal(err)
	}
	first := f.place(t, 0, patient, settings...)
	first.name = "not stopped"
	whole := first.whole(nil, nil)
	if first.settled(); whole.code != 0 || t.Failed() {
		t.Fatalf("a run that nobody stopped ends with exit code %d:\n%s", whole.code, &first.said)
	}
	random := rand.New(rand.NewPCG(uint64(number(t, "RUNBOOK_CHAOS_SEED", 6)), 3))
	var wg sync.WaitGroup
	for i := range rounds {
		share := (float64(i) + random.Float64()) / float64(rounds)
		c := f.place(t, i+1, kinds[i+1], settings...)
		c.name = fmt.Sprintf("stopped at %.1f %%, by a host that is %s", 100*share, c.kind)
		wg.Go(func() { c.stopped(whole.at(share), stop) })
	}
	wg.Wait()
}

func (c *clockPlace) stopped(at *moment, stop time.Duration) {
	told, taken := 0, 0
	line := c.whole(at, func(p *os.Process) {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			c.errorf("%v", err) // it is not over: its output is open
			return
		}
		began := time.Now()
		records, id := c.begun()
		for _, when := range []time.Duration{0, stop - 5*time.Second} {
			time.Sleep(time.Until(began.Add(when))) // that time passes is what is tested
			code, said := c.rival()
			switch {
			case code == 0:
				taken++
			case strings.Contains(said, "is locked by run "+id):
				told++
			default:
				c.errorf("another operator ends with exit code %d:\n%s", code, said)
			}
			if code == 0 && records > 0 && c.kind == patient {
				c.errorf("another operator took the host of a stopped run:\n%s", said)
			}
		}
		if id != "" {
			said, err := c.lab.Command(context.Background(), c.program, "resume", id, "--state-dir", c.state).CombinedOutput()
			if err == nil || !strings.Contains(string(said), strconv.Itoa(p.Pid)) {
				c.errorf("resumed while it was stopped: %v\n%s", err, said)
			}
		}
		time.Sleep(time.Until(began.Add(stop)))
		if err := p.Signal(syscall.SIGCONT); err != nil {
			c.errorf("%v", err)
		}
	})
	if line.took() < stop {
		c.errorf("it was not stopped: %s", line.took())
	}
	if line.code != 0 && line.code != 1 {
		c.errorf("it ends with exit code %d:\n%s", line.code, &c.said)
	}
	after := line.end.Sub(line.begin.Add(stop))
	c.resume()
	c.settled()
	c.t.Logf("%s, %d events and %s: others were told %d times and took the host %d times; it went on for %s and ended with exit code %d: %s", c.name, at.events,
		at.after.Round(time.Millisecond), told, taken, after.Round(time.Second/10), line.code, strings.ReplaceAll(strings.TrimSpace(c.said.String()), "\n", "; "))
}

// begun is how many tasks of the run have begun, and its id.
func (c *clockPlace) begun() (n int, id string) {
	runs, err := journal.List(c.state)
	if err != nil {
		c.errorf("%v", err)
	}
	for _, r := range runs {
		records, _, _ := journal.Read(c.state, r.ID)
		for _, rec := range records {
			if rec.Begin != nil {
				n++
			}
		}
		id = r.ID
	}
	return n, id
}

// day is by how much clocks jump, in seconds.
const day = 86400

// TestClockJumps guards that it does not matter when the clock of the controller or of a host is set, a day forward or back, while a run is
// under way or between a run that was killed and its resume.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	needLab(t)
	kinds := []string{patient}
	for range 8 {
		kinds = append(kinds, jumping)
	}
	kinds = append(kinds, patient)
	f := newClockField(t, kinds)
	f.shifted = buildShifted(t, f.dir)
	first := f.place(t, 0, patient)
	first.name, first.program = "no jump", f.shifted
	whole := first.whole(nil, nil)
	if first.settled(); whole.code != 0 || t.Failed() {
		t.Fatalf("a run without a jump ends with exit code %d:\n%s", whole.code, &first.said)
	}
	random := rand.New(rand.NewPCG(uint64(number(t, "RUNBOOK_CHAOS_SEED", 6)), 4))
	var wg sync.WaitGroup
	for i := range 8 {
		seconds := day * (1 - 2*(i%2))
		controller, between := i/2%2 == 0, i/4 == 1
		share := 0.1 + 0.8*random.Float64()
		c := f.place(t, i+1, jumping)
		c.program = f.shifted
		c.name = fmt.Sprintf("the clock of the %s jumps by %+d s", map[bool]string{true: "controller", false: "host"}[controller], seconds)
		if between {
			c.name += " after the run was killed"
		}
		at := whole.at(share)
		if between && !controller {
			at = &moment{task: "detached", after: time.Second} // a job is found
		}
		wg.Go(func() { c.jump(at, seconds, controller, between) })
	}
	silent := f.place(t, 9, patient, "keepalive: 2s")
	silent.name, silent.program = "the controller's clock is set back when its link has fallen silent", f.shifted
	wg.Go(silent.silent)
	wg.Wait()
}

// silent guards that a link which falls silent is found in time whatever becomes of the clock.
func (c *clockPlace) silent() {
	rules := ""
	filter := func(do string) {
		if out, err := c.host.Exec(context.Background(), "sh", "-ec", strings.ReplaceAll(rules, "DO", do)); err != nil {
			c.errorf("%v %s", err, out)
		}
	}
	var cut time.Time
	line := c.whole(&moment{task: "detached", after: time.Second}, func(p *os.Process) {
		out, err := c.lab.Command(context.Background(), "ss", "-Htnp", "dport", "=", ":22").Output()
		for l := range strings.Lines(string(out)) {
			if fields := strings.Fields(l); strings.Contains(l, fmt.Sprintf("pid=%d,", p.Pid)) {
				port := fields[3][strings.LastIndex(fields[3], ":")+1:]
				rules = "iptables DO INPUT -p tcp --sport " + port + " -j DROP; iptables DO OUTPUT -p tcp --dport " + port + " -j DROP"
			}
		}
		if rules == "" {
			c.errorf("no connection in %s, %v", out, err)
			return
		}
		cut = time.Now()
		time.AfterFunc(time.Minute, func() { _ = p.Kill() }) // it will not come back by itself
		filter("-I")
		if err := os.WriteFile(c.shift, []byte(strconv.Itoa(-day)), 0o644); err != nil {
			c.errorf("%v", err)
		}
	})
	if took := line.end.Sub(cut); line.code != 1 || took > 30*time.Second {
		c.errorf("it ends after %s with exit code %d:\n%s", took, line.code, &c.said)
	} else {
		c.t.Logf("%s: found after %s", c.name, took.Round(time.Second/10))
	}
	filter("-D")
	c.resume()
	c.settled()
}

func (c *clockPlace) jump(at *moment, seconds int, controller, between bool) {
	set := func() {
		file, text := c.shift, strconv.Itoa(seconds)
		if !controller {
			file, text = filepath.Join(c.host.Root(), "home", c.account, ".clock"), fmt.Sprintf("%+d", seconds)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			c.errorf("%v", err)
		}
	}
	line := c.whole(at, func(p *os.Process) {
		if between {
			_ = p.Kill()
		}
		set()
	})
	if want := map[bool]int{false: 0, true: -1}[between]; line.code != want {
		c.errorf("it ends with exit code %d:\n%s", line.code, &c.said)
	}
	c.resume()
	records := c.settled()
	c.t.Logf("%s, after %d events: %s", c.name, len(line.events), strings.ReplaceAll(strings.TrimSpace(c.said.String()), "\n", "; "))
	// The jump was one.
	if !controller {
		argv := append(c.lab.SSH(c.account, c.host), "date +%s")
		out, err := c.lab.Command(context.Background(), argv[0], argv[1:]...).Output()
		now, _ := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if off := now - time.Now().Unix(); err != nil || off < int64(seconds)-100 || off > int64(seconds)+100 {
			c.errorf("the host's clock is wrong by %d s, %v", off, err)
		}
		return
	}
	jumps := 0
	for i := 1; i < len(records); i++ {
		if d := records[i].Time.Sub(records[i-1].Time); d.Abs() > time.Hour {
			jumps++
		}
	}
	if jumps != 1 {
		c.errorf("the times on record jump %d times", jumps)
	}
}

// buildShifted builds the program with a time.Now that is wrong by the number of seconds in the file that RUNBOOK_TEST_SHIFT names: its wall
// clock, and not the monotonic one, as when somebody sets a machine's clock. Nobody sets that of this machine for a test.
func buildShifted(t *testing.T, dir string) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	patched := strings.Replace(string(text), now, now+"\tsec += testShift\n", 1) + `
var testShift int64

func init() {
	path, there := syscall.Getenv("RUNBOOK_TEST_SHIFT")
	if !there {
		return
	}
	look := func() {
		fd, err := open(path)
		if err != nil {
			return
		}
		defer closefd(fd)
		buf := make([]byte, 32)
		size, err := read(fd, buf)
		if err != nil || size <= 0 {
			return // it is being written
		}
		n, sign := int64(0), int64(1)
		for _, c := range buf[:size] {
			if c == '-' {
				sign = -1
			} else {
				n = 10*n + int64(c-'0')
			}
		}
		testShift = sign * n
	}
	look()
	go func() {
		for {
			Sleep(10 * Millisecond)
			look()
		}
	}()
}
`
	patched = strings.Replace(patched, "import (\n", "import (\n\t\"syscall\"\n", 1)
	if strings.Count(patched, "testShift") != 3 || strings.Count(patched, "\"syscall\"\n") != 1 {
		t.Fatalf("time.Now is not what it was in %s", source)
	}
	file, overlay, program := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "shifted")
	if err := os.WriteFile(file, []byte(patched), 0o644); err != nil {
		t.Fatal(err)
	}
	replace, _ := json.Marshal(map[string]map[string]string{"Replace": {source: file}})
	if err := os.WriteFile(overlay, replace, 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-overlay", overlay, "-o", program, "runbook/cmd/runbook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}
