package acceptance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"runbook/acceptance/lab"
	"runbook/engine/secret"
	"runbook/engine/transport"
)

// operator is what a process needs to be a controller that locks a host.
type operator struct {
	Run, As               string // whose lock
	Login, Address        string
	Identity, Known       string
	Method, Password, Dir string
}

// said is a line of such a process.
type said struct {
	Locked    bool
	TakenOver *transport.Holder
	Held      *transport.Holder
	Error     string
	Out       string
	Took      time.Duration
}

// init makes this program a controller if it is called as one: it connects, says "ready", and does what its input says:
// lock, release, run SCRIPT. When its input ends it ends without a word to the host.
func init() {
	text := os.Getenv("RUNBOOK_TEST_OPERATOR")
	if text == "" {
		return
	}
	var o operator
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	say := func(s said) { _ = json.NewEncoder(os.Stdout).Encode(s) }
	ctx := context.Background()
	conn, err := transport.Connect(ctx, transport.Config{Name: "voms1", Address: o.Address, User: o.Login, Identities: []string{o.Identity},
		KnownHosts: o.Known, SSHConfig: "none", Jump: "none", BecomeMethod: o.Method, BecomePassword: secret.New(o.Password), Keepalive: time.Minute})
	if err != nil {
		say(said{Error: err.Error()})
		os.Exit(1)
	}
	say(said{})
	release := func(context.Context) error { return nil }
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		verb, rest, _ := strings.Cut(in.Text(), " ")
		began := time.Now()
		answer := said{}
		var err error
		switch verb {
		case "lock":
			var old *transport.Holder
			var free func(context.Context) error
			free, old, err = transport.Lock(ctx, conn, o.As, transport.Self(o.Run))
			var held *transport.HeldError
			switch {
			case errors.As(err, &held):
				answer.Held = &held.Holder
			case err == nil:
				release, answer.Locked, answer.TakenOver = free, true, old
			}
		case "release":
			err = release(ctx)
		case "run":
			var out transport.Output
			out, err = conn.Run(ctx, transport.Cmd{User: o.As, Script: rest})
			answer.Out = string(out.Stdout)
		}
		if err != nil {
			answer.Error = err.Error()
		}
		answer.Took = time.Since(began)
		say(answer)
	}
	os.Exit(0)
}

// process is an operator's program at work.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
}

// uid of the operator who is not root here.
const otherUID = 23456

// start starts an operator's program, as another user of this machine if other is set, and returns when it is connected.
func (p *lockLab) start(t *testing.T, o operator, other bool) *process {
	t.Helper()
	o.Address, o.Identity, o.Known = p.host.Address(), filepath.Join(p.home(other), "key"), filepath.Join(p.home(other), "known_hosts")
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{p.program}
	if other {
		argv = append([]string{"setpriv", fmt.Sprint("--reuid=", otherUID), fmt.Sprint("--regid=", otherUID), "--clear-groups"}, argv...)
	}
	cmd := p.lab.Command(context.Background(), argv[0], argv[1:]...)
	cmd.Dir = p.home(other)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.home(other), "USER=" + map[bool]string{false: "alice", true: "bob"}[other], "RUNBOOK_TEST_OPERATOR=" + string(text)}
	cmd.Stderr = os.Stderr
	s := &process{t: t, cmd: cmd}
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(stdout)
	s.out.Buffer(nil, 1<<20)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	if hello := s.hear(); hello.Error != "" {
		t.Fatal(hello.Error)
	}
	return s
}

func (p *process) tell(text string) {
	if _, err := io.WriteString(p.stdin, text+"\n"); err != nil {
		p.t.Error(err)
	}
}

func (p *process) hear() (s said) {
	if !p.out.Scan() {
		s.Error = fmt.Sprintf("the program said nothing more: %v", p.out.Err())
	} else if err := json.Unmarshal(p.out.Bytes(), &s); err != nil {
		s.Error = err.Error()
	}
	return s
}

func (p *process) do(text string) said {
	p.tell(text)
	return p.hear()
}

// must does what cannot fail.
func (p *process) must(text string) said {
	p.t.Helper()
	s := p.do(text)
	if s.Error != "" || text == "lock" && !s.Locked {
		p.t.Fatalf("%s: %+v %s", text, s, s.Error)
	}
	return s
}

// refused asserts that another one holds the lock.
func (p *process) refused() transport.Holder {
	p.t.Helper()
	s := p.do("lock")
	if s.Held == nil {
		p.t.Fatalf("lock: %+v", s)
	}
	return *s.Held
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// lockLab is a host and two operators of this machine.
type lockLab struct {
	lab     *lab.Lab
	host    *lab.Host
	dir     string
	program string
}

func (p *lockLab) home(other bool) string {
	return filepath.Join(p.dir, map[bool]string{false: "alice", true: "bob"}[other])
}

func newLockLab(t *testing.T) *lockLab {
	t.Helper()
	l := newLab(t, "voms1")
	p := &lockLab{lab: l, host: l.Host("voms1")}
	var err error
	if p.dir, err = os.MkdirTemp("", "runbook-lock-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	p.program = filepath.Join(p.dir, "operator")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copyFile := func(from, to string, mode os.FileMode) {
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, content, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copyFile(self, p.program, 0o755)
	for _, other := range []bool{false, true} {
		home := p.home(other)
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		copyFile(l.Identity(), home+"/key", 0o600)
		copyFile(l.KnownHosts(), home+"/known_hosts", 0o600)
		if other {
			for _, path := range []string{home, home + "/key", home + "/known_hosts"} {
				if err := os.Chown(path, otherUID, otherUID); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := os.Chmod(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// on runs sh text on the host, from outside.
func (p *lockLab) on(t *testing.T, text string) string {
	t.Helper()
	out, err := p.host.Exec(t.Context(), "sh", "-c", text)
	if err != nil {
		t.Fatalf("%s: %v %s", text, err, out)
	}
	return out
}

// wait waits for a condition.
func wait(t *testing.T, what string, limit time.Duration, done func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !done() {
		if time.Since(began) > limit {
			t.Fatalf("waited %s in vain for %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}

// ways are those to root's lock.
var ways = map[string]operator{
	"root":          {Login: "root"},
	"sudo":          {Login: "ops", As: "root"},
	"sudo password": {Login: "opspw", As: "root", Password: lab.OpsPassword},
	"su":            {Login: "ops", As: "root", Method: "su", Password: lab.RootPassword},
}

// TestLocks is what a lock promises, on a real host, with controllers that are real processes.
func TestLocks(t *testing.T) {
	t.Parallel()
	p := newLockLab(t)
	t.Run("race", p.race)
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Run("killed", func(t *testing.T) { p.killed(t, way) })
			t.Run("cut off", func(t *testing.T) { p.cutOff(t, way) })
		})
	}
	t.Run("attacks", p.attacks)
	t.Run("own", p.own)
}

// race starts two controllers at once, of two users, a hundred times: one holds the host, and the other is told who.
func (p *lockLab) race(t *testing.T) {
	const rounds = 100
	wins := map[bool]int{}
	var longest time.Duration
	controller, _ := os.Hostname()
	for round := range rounds {
		var both [2]*process
		var answers [2]said
		var wg sync.WaitGroup
		for i := range both {
			wg.Go(func() {
				o := ways[[]string{"root", "sudo"}[i]]
				o.Run = fmt.Sprintf("race-%d-%d", round, i)
				both[i] = p.start(t, o, i == 1)
				answers[i] = both[i].do("lock")
			})
		}
		wg.Wait()
		winner := 0
		if answers[1].Locked {
			winner = 1
		}
		won, lost := answers[winner], answers[1-winner]
		held := lost.Held
		if !won.Locked || lost.Locked || held == nil {
			t.Fatalf("round %d: %+v and %+v", round, answers[0], answers[1])
		}
		if held.Run != fmt.Sprintf("race-%d-%d", round, winner) || held.PID != both[winner].cmd.Process.Pid || held.Controller != controller ||
			held.User != []string{"root", "bob"}[winner] || time.Since(held.Since) > time.Minute || time.Since(held.Since) < -time.Second {
			t.Errorf("round %d: told that it is held by %+v", round, held)
		}
		wins[winner == 1]++
		longest = max(longest, won.Took, lost.Took)
		both[winner].must("release")
		if got := both[1-winner].do("lock"); !got.Locked || got.TakenOver != nil {
			t.Errorf("round %d: after the release %+v", round, got)
		}
		both[1-winner].must("release")
		both[0].kill()
		both[1].kill()
	}
	t.Logf("%d races, won by alice %d times and by bob %d times; the longest answer took %s", rounds, wins[false], wins[true], longest)
}

// killed kills the controller of the holder: the host is free within five seconds, or when the command under way is over.
func (p *lockLab) killed(t *testing.T, way operator) {
	way.Run = "second"
	second := p.start(t, way, true)
	for i := range 5 {
		first := way
		first.Run = fmt.Sprintf("first-%d", i)
		a := p.start(t, first, false)
		a.must("lock")
		a.must("run true")
		second.refused()
		a.kill()
		took := wait(t, "the lock of a dead controller", 5*time.Second, func() bool { return second.do("lock").Locked })
		t.Logf("free %s after kill -9", took.Round(time.Millisecond))
		second.must("release")
	}
	way.Run = "busy"
	a := p.start(t, way, false)
	a.must("lock")
	a.must("run true")
	a.tell("run rm -f /run/go; while [ ! -e /run/go ]; do sleep 0.1; done")
	wait(t, "the command", 5*time.Second, func() bool { return strings.Contains(p.on(t, "ps -eo args"), "sleep 0.1") })
	a.kill()
	var held transport.Holder
	wait(t, "the connection's end to be known", 10*time.Second, func() bool {
		held = second.refused()
		return !held.Left.IsZero()
	})
	if held.Run != "busy" || len(held.Commands) != 1 {
		t.Errorf("held by %+v", held)
	}
	p.on(t, "touch /run/go")
	wait(t, "the end of the command", 5*time.Second, func() bool { return second.do("lock").Locked })
	second.must("release")
	second.kill()
	wait(t, "the holders' end", 5*time.Second, func() bool { return p.on(t, "ls /run/runbook/lock") == "lock\n" })
	if left := p.on(t, "fuser /run/runbook/lock/lock 2>&1 || true"); strings.TrimSpace(left) != "" {
		t.Errorf("processes have the lock open: %s", left)
	}
}

// cutOff has a controller's packets dropped: others are told who it is and when it was heard last. Once its lock was taken away, nothing
// that it still wants done is done.
func (p *lockLab) cutOff(t *testing.T, way operator) {
	way.Run = "second"
	second := p.start(t, way, true)
	cut := func(run string) (a *process, plug func()) {
		first := way
		first.Run = run
		a = p.start(t, first, false)
		a.must("lock")
		a.must("run true")
		port := p.port(t, a)
		p.on(t, "iptables -I INPUT -p tcp --sport "+port+" -j DROP && iptables -I OUTPUT -p tcp --dport "+port+" -j DROP")
		plug = sync.OnceFunc(func() {
			p.on(t, "iptables -D INPUT -p tcp --sport "+port+" -j DROP && iptables -D OUTPUT -p tcp --dport "+port+" -j DROP")
		})
		t.Cleanup(plug)
		return a, plug
	}

	a, plug := cut("first")
	held := second.refused()
	if held.Run != "first" || held.PID != a.cmd.Process.Pid || !held.Left.IsZero() {
		t.Errorf("held by %+v", held)
	}
	if text := held.String(); !strings.Contains(text, "last sign of life") || !strings.Contains(text, "is alive") {
		t.Errorf("told that it is held by %s", text)
	}
	resumed := way
	resumed.Run = "first"
	c := p.start(t, resumed, true)
	if got := c.refused(); got.PID != a.cmd.Process.Pid { // its own controller lives
		t.Errorf("held by %+v", got)
	}
	p.on(t, "rm -f /run/late")
	a.tell("run touch /run/late")
	out := p.unlock(t, "the cable is out")
	for _, part := range []string{"locked by run first of ", "the lock of run first was ended: the cable is out"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in %q", part, out)
		}
	}
	if log := p.on(t, "journalctl -t runbook -o cat -n 1"); !strings.Contains(log, "ended the lock of run first of ") || !strings.Contains(log, "the cable is out") {
		t.Errorf("the host's log says %q", log)
	}
	if got := second.must("lock"); got.TakenOver != nil {
		t.Errorf("after the unlock, taken over from %v", got.TakenOver)
	}
	plug()
	if got := a.hear(); got.Error == "" {
		t.Errorf("a run whose lock was ended still works: %+v", got)
	} else {
		t.Log(got.Error)
	}
	if got := p.on(t, "ls /run/late 2>&1 || true"); !strings.Contains(got, "No such file") {
		t.Errorf("what it wanted done was done: %s", got)
	}
	second.must("release")

	// The same, with the controller dead: it is on this machine, so that is known. Its host does not know.
	a, plug = cut("third")
	pid := a.cmd.Process.Pid
	a.kill()
	got := second.must("lock")
	if got.TakenOver == nil || got.TakenOver.Run != "third" || got.TakenOver.PID != pid {
		t.Errorf("taken over from %+v", got.TakenOver)
	}
	second.must("release")
	plug()
}

// port is the one that a process's connection to the host comes from.
func (p *lockLab) port(t *testing.T, a *process) string {
	t.Helper()
	out, err := p.lab.Command(t.Context(), "ss", "-Htnp", "dport", "=", ":22").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Fields(line); strings.Contains(line, fmt.Sprintf("pid=%d,", a.cmd.Process.Pid)) && len(f) > 4 {
			return f[3][strings.LastIndex(f[3], ":")+1:]
		}
	}
	t.Fatalf("no connection of %d in %s", a.cmd.Process.Pid, out)
	return ""
}

func (p *lockLab) unlock(t *testing.T, reason string) string {
	t.Helper()
	site := filepath.Join(p.dir, "site.yml")
	if err := os.WriteFile(site, []byte(p.lab.Inventory()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := p.lab.Command(t.Context(), program, "unlock", p.host.FQDN(), "-i", site, "--reason", reason, "--yes").CombinedOutput()
	if err != nil {
		t.Fatalf("unlock: %v\n%s", err, out)
	}
	return string(out)
}

// attacks are what a local user of the host may try.
func (p *lockLab) attacks(t *testing.T) {
	as := func(user, text string) string {
		out, _ := p.host.Exec(t.Context(), "runuser", "-u", user, "--", "sh", "-c", "exec 2>&1; "+text)
		return out
	}
	p.on(t, "rm -rf /run/runbook")
	for _, try := range []string{"mkdir /run/runbook", "ln -s /tmp /run/runbook", "touch /run/runbook"} {
		if out := as("ops", try+" && echo done"); strings.Contains(out, "done") {
			t.Errorf("%s: %s", try, out)
		}
	}
	root := ways["sudo"]
	root.Run = "root"
	a := p.start(t, root, false)
	a.must("lock")
	dir := "/run/runbook/lock"
	holder := strings.TrimSpace(p.on(t, "sed -n 's/^holder \\([0-9]*\\):.*/\\1/p' "+dir+"/who"))
	if _, err := strconv.Atoi(holder); err != nil {
		t.Fatalf("no holder: %q", holder)
	}
	for _, try := range []string{
		"flock -n " + dir + "/lock true", "flock -s -n " + dir + "/lock true", "flock -n " + dir + "/who true && cat " + dir + "/lock", "echo x >" + dir + "/who",
		"echo x >>" + dir + "/lock", "mv " + dir + " /tmp/x", "mkdir " + dir + "/jobs", "rm -f " + dir + "/lock", "ln -s x " + dir + "/who.new", "kill " + holder,
	} {
		if out := as("ops", try+" && echo done"); strings.Contains(out, "done") {
			t.Errorf("%s: %s", try, out)
		}
	}
	if out := as("ops", "cat "+dir+"/who"); !strings.Contains(out, "run root\n") {
		t.Errorf("who: %s", out)
	}
	a.must("release")
	if out := as("opspw", "flock -n "+dir+"/lock true && echo done"); strings.Contains(out, "done") {
		t.Errorf("a lock that nobody holds was locked: %s", out)
	}

	// An account without a home has its lock in /var/tmp, where others could have been before.
	p.on(t, "id homeless 2>/dev/null || useradd -M -d /nonexistent -s /bin/sh homeless")
	uid := strings.TrimSpace(p.on(t, "id -u homeless"))
	place := "/var/tmp/.runbook-" + uid
	homeless := operator{Login: "root", As: "homeless", Run: "homeless"}
	b := p.start(t, homeless, false)
	p.on(t, "mkdir -p /home/ops/trap && chown ops: /home/ops/trap && chmod 777 /home/ops/trap")
	for _, trap := range []string{"mkdir -m 777 " + place, "ln -s /home/ops/trap " + place, "touch " + place, "mkfifo -m 666 " + place} {
		if out := as("ops", trap+" && echo done"); !strings.Contains(out, "done") {
			t.Fatalf("%s: %s", trap, out)
		}
		if got := b.do("lock"); got.Locked || !strings.Contains(got.Error, place) {
			t.Errorf("%s: %+v", trap, got)
		}
		p.on(t, "rm -rf "+place)
	}
	b.must("lock")
	b.must("release")
	if out := p.on(t, "ls /home/ops/trap"); out != "" {
		t.Errorf("the trap holds %s", out)
	}
}

// own is the lock of a user without root: it keeps out the same user, and not root.
func (p *lockLab) own(t *testing.T) {
	ops := operator{Login: "ops", Run: "ops"}
	a, b := p.start(t, ops, false), p.start(t, operator{Login: "ops", Run: "another"}, true)
	a.must("lock")
	if got := b.refused(); got.Run != "ops" {
		t.Errorf("held by %+v", got)
	}
	root := ways["root"]
	root.Run = "root"
	r := p.start(t, root, true)
	r.must("lock")
	r.must("release")
	_ = a.cmd.Process.Signal(syscall.SIGKILL)
	wait(t, "the lock of a dead controller", 5*time.Second, func() bool { return b.do("lock").Locked })
	b.must("release")
}
