package transport_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"runbook/engine/transport"
)

// lockable is a way to one host, with a directory for locks of the test's own.
func lockable(t *testing.T, b backend) transport.Config {
	cfg := b.config(t)
	cfg.LockDir = tempDir(t)
	return cfg
}

// of is the holder that a controller of that run would be, on this machine if pid is not 0, else elsewhere.
func of(run string, pid int) transport.Holder {
	me := transport.Self(run)
	if pid == 0 {
		me.PID, me.Controller = 4711, "ctl.example.org"
	} else {
		me.PID = pid
	}
	return me
}

// deadPID is the number of a process that has ended.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func lock(t *testing.T, c transport.Conn, me transport.Holder) (func(context.Context) error, *transport.Holder) {
	t.Helper()
	release, old, err := transport.Lock(ctx(t), c, "", me)
	if err != nil {
		t.Fatal(err)
	}
	return release, old
}

// refused asserts that c cannot be locked, and returns by whom it is.
func refused(t *testing.T, c transport.Conn, me transport.Holder) transport.Holder {
	t.Helper()
	_, _, err := transport.Lock(ctx(t), c, "", me)
	var held *transport.HeldError
	if !errors.As(err, &held) {
		t.Fatalf("a host that is locked: %v", err)
	}
	return held.Holder
}

func TestLock(t *testing.T) {
	t.Parallel()
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			for name, f := range map[string]func(*testing.T, transport.Config){
				"one":       testLockOne,
				"left":      testLockLeft,
				"killed":    testLockKilled,
				"taken":     testLockTaken,
				"ended":     testLockEnded,
				"race":      testLockRace,
				"directory": testLockDirectory,
				"job":       testLockJob,
			} {
				t.Run(name, func(t *testing.T) { f(t, lockable(t, b)) })
			}
		})
	}
}

// One run holds a host; another is told who, and gets it when it is free.
func testLockOne(t *testing.T, cfg transport.Config) {
	a, b := connect(t, cfg), connect(t, cfg)
	first := of("20261126-101530-aaaa", 0)
	before := time.Now().Add(-2 * time.Second)
	release, old := lock(t, a, first)
	if old != nil {
		t.Errorf("a new lock is taken over from %v", old)
	}
	got := refused(t, b, of("20261126-101531-bbbb", 0))
	if got.Run != first.Run || got.User != first.User || got.Controller != first.Controller || got.PID != 4711 ||
		got.Since.Before(before) || got.Renewed.Before(got.Since) || got.Now.Before(got.Renewed) || !got.Left.IsZero() || len(got.Commands) > 0 {
		t.Errorf("told that it is held by %+v", got)
	}
	text := (&transport.HeldError{Host: "voms1", Holder: got}).Error()
	for _, part := range []string{"voms1", first.Run, first.User, "ctl.example.org", "4711", "since 20"} {
		if !strings.Contains(text, part) {
			t.Errorf("no %s in %q", part, text)
		}
	}
	if holders, err := transport.Locked(ctx(t), b); err != nil || len(holders) != 1 || holders[0].Run != first.Run {
		t.Errorf("Locked: %+v, %v", holders, err)
	}
	// A live controller's lock is not taken by the same run in another process either.
	if err := release(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if holders, err := transport.Locked(ctx(t), b); err != nil || len(holders) != 0 {
		t.Errorf("after the release, Locked: %+v, %v", holders, err)
	}
	if got := script(t, a, "echo on"); got != "on\n" {
		t.Errorf("after the release a command said %q", got)
	}
	parent := of("20261126-101531-bbbb", os.Getppid())
	parent.Mark = parent.Mark[:strings.LastIndex(parent.Mark, ":")+1] + start(t, os.Getppid())
	release, old = lock(t, b, parent)
	if old != nil {
		t.Errorf("taken over from %v", old)
	}
	refused(t, a, of(parent.Run, os.Getpid()))
	if err := release(ctx(t)); err != nil {
		t.Fatal(err)
	}
	// A machine with two names is locked by one run once.
	me := of("20261126-101533-cccc", os.Getpid())
	release, _ = lock(t, a, me)
	again, old := lock(t, b, me)
	if old != nil {
		t.Errorf("the second time, taken over from %v", old)
	}
	if err := errors.Join(again(ctx(t)), release(ctx(t))); err != nil {
		t.Error(err)
	}
}

// start is when a process was started, as the kernel counts.
func start(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[19]
}

// When its connection ends, an idle run's lock is free at once, and one with a command under way when that is over.
func testLockLeft(t *testing.T, cfg transport.Config) {
	b := connect(t, cfg)
	for _, busy := range []bool{false, true} {
		for _, bulk := range []bool{false, true} {
			a := connect(t, cfg)
			lock(t, a, of("a", 0))
			script(t, a, ":")
			dir, mark := tempDir(t), seconds()
			var wg sync.WaitGroup
			if busy {
				wg.Go(func() {
					_, _ = a.Run(ctx(t), transport.Cmd{Script: "touch " + dir + "/begun; sleep " + mark, Bulk: bulk})
				})
				waitFor(t, "the command", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
				waitFor(t, "the holder to know of it", func() bool { return strings.Count(who(t, cfg), "\nwork ") == 1+strings.Count(fmt.Sprint(bulk), "true") })
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if busy {
				got := refused(t, b, of("b", 0))
				for got.Left.IsZero() {
					got = refused(t, b, of("b", 0))
				}
				if got.Left.IsZero() || len(got.Commands) != 1 || !strings.Contains(got.Commands[0], "sleep "+mark) {
					t.Errorf("bulk %v: held by %+v", bulk, got)
				}
				if text := got.String(); !strings.Contains(text, "sleep "+mark) {
					t.Errorf("held by %q", text)
				}
				pid, _, _ := strings.Cut(got.Commands[0], " ")
				time.AfterFunc(5*time.Second, func() { // the run goes on, and waits for its own command
					n, _ := strconv.Atoi(pid)
					_ = syscall.Kill(n, syscall.SIGKILL)
				})
				began := time.Now()
				release, old := lock(t, b, of("a", 0))
				if time.Since(began) < 5*time.Second || old == nil || old.Run != "a" {
					t.Errorf("bulk %v: after %s taken over from %v", bulk, time.Since(began), old)
				}
				if alive(mark) > 0 {
					t.Errorf("bulk %v: the lock was taken over before the command was over", bulk)
				}
				if err := release(ctx(t)); err != nil {
					t.Error(err)
				}
				continue
			}
			began := time.Now()
			var release func(context.Context) error
			var old *transport.Holder
			waitFor(t, "the lock to be free", func() (ok bool) {
				var err error
				release, old, err = transport.Lock(ctx(t), b, "", of("b", 0))
				return err == nil
			})
			if took := time.Since(began); took > 5*time.Second || old != nil {
				t.Errorf("free after %s, taken over from %v", took, old)
			}
			if err := release(ctx(t)); err != nil {
				t.Error(err)
			}
		}
	}
}

// who is what the host says of who has the lock.
func who(t *testing.T, cfg transport.Config) string {
	t.Helper()
	files, _ := filepath.Glob(cfg.LockDir + "/*/who")
	if len(files) != 1 {
		t.Fatalf("files about holders: %v", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// holderPID is the process on the host that holds the lock.
func holderPID(t *testing.T, cfg transport.Config) int {
	t.Helper()
	_, rest, _ := strings.Cut(who(t, cfg), "\nholder ")
	pid, _, _ := strings.Cut(rest, ":")
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatalf("no holder in %q", who(t, cfg))
	}
	return n
}

// lost asserts that c is not used any more.
func lost(t *testing.T, c transport.Conn, why bool) {
	t.Helper()
	var err error
	waitFor(t, "the connection to be given up", func() bool {
		_, err = c.Run(ctx(t), transport.Cmd{Args: []string{"true"}})
		return err != nil
	})
	var away *transport.UnreachableError
	var ended *transport.LockLostError
	if !errors.As(err, &away) || why && !errors.As(err, &ended) {
		t.Errorf("after the lock was lost: %v", err)
	}
}

// A holder that dies without a word makes its run stop, and is taken over from once its commands are over.
func testLockKilled(t *testing.T, cfg transport.Config) {
	if os.Getuid() != 0 {
		t.Skip("the holder may be another user's")
	}
	a, b := connect(t, cfg), connect(t, cfg)
	lock(t, a, of("a", 0))
	dir, mark := tempDir(t), seconds()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = a.Run(ctx(t), transport.Cmd{Script: "touch " + dir + "/begun; sleep " + mark}) })
	waitFor(t, "the command", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
	waitFor(t, "the holder to know of it", func() bool { return strings.Contains(who(t, cfg), "\nwork ") })
	if err := syscall.Kill(holderPID(t, cfg), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lost(t, a, true)
	wg.Wait()
	got := refused(t, b, of("b", 0))
	if got.Left.IsZero() || len(got.Commands) != 1 || !strings.Contains(got.Commands[0], "sleep "+mark) {
		t.Fatalf("with a command under way, held by %+v", got)
	}
	pid, _, _ := strings.Cut(got.Commands[0], " ")
	n, _ := strconv.Atoi(pid)
	_ = syscall.Kill(n, syscall.SIGKILL)
	release, old := lock(t, b, of("b", 0))
	if old == nil || old.Run != "a" || old.PID != 4711 {
		t.Errorf("taken over from %v", old)
	}
	if err := release(ctx(t)); err != nil {
		t.Error(err)
	}
}

// The same run takes over from a controller of which nothing is known, and any from one that is known to be gone. Whoever
// had the lock can do nothing with its connection any more.
func testLockTaken(t *testing.T, cfg transport.Config) {
	b := connect(t, cfg)
	for _, test := range []struct {
		what   string
		holder transport.Holder
		by     string
		taken  bool
	}{
		{"another run, elsewhere", of("a", 0), "b", false},
		{"another run, dead", of("a", deadPID(t)), "b", true},
		{"another run, another process by that number", of("a", os.Getppid()), "b", true},
		{"another run, another machine's dead", func() transport.Holder {
			h := of("a", deadPID(t))
			h.Mark = "x:y:z:1"
			return h
		}(), "b", false},
		{"same run, elsewhere", of("a", 0), "a", true},
	} {
		a := connect(t, cfg)
		lock(t, a, test.holder)
		script(t, a, ":")
		if !test.taken {
			refused(t, b, of(test.by, os.Getpid()))
			script(t, a, ":")
		} else {
			release, old := lock(t, b, of(test.by, os.Getpid()))
			if old == nil || old.PID != test.holder.PID || old.Run != "a" {
				t.Errorf("%s: taken over from %v", test.what, old)
			}
			lost(t, a, true)
			script(t, b, ":")
			if err := release(ctx(t)); err != nil {
				t.Error(err)
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A person ends a lock: its run stops, what is under way is told.
func testLockEnded(t *testing.T, cfg transport.Config) {
	a, b := connect(t, cfg), connect(t, cfg)
	lock(t, a, of("a", 0))
	mark, dir := seconds(), tempDir(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := a.Run(ctx(t), transport.Cmd{Script: "touch " + dir + "/begun; sleep " + mark})
		var away *transport.UnreachableError
		if !errors.As(err, &away) || !away.MayHave {
			t.Errorf("a command of the run: %v", err)
		}
	})
	waitFor(t, "the command", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
	holders, err := transport.Locked(ctx(t), b)
	if err != nil || len(holders) != 1 {
		t.Fatalf("%v, %v", holders, err)
	}
	wrong := holders[0]
	by := transport.Self("")
	left, logged, err := transport.Unlock(ctx(t), b, holders[0], by, "it hangs; $(touch "+dir+"/expanded) 'quoted'\nline")
	if err != nil || len(left) != 1 || !strings.Contains(left[0], "sleep "+mark) {
		t.Errorf("under way after the unlock: %q, %v", left, err)
	} else {
		pid, _, _ := strings.Cut(left[0], " ")
		n, _ := strconv.Atoi(pid)
		_ = syscall.Kill(n, syscall.SIGKILL)
	}
	if _, err := os.Stat("/dev/log"); err != nil && logged {
		t.Error("it is said to be in a log that is not there")
	}
	wg.Wait()
	lost(t, a, true)
	if _, err := os.Stat(dir + "/expanded"); err == nil {
		t.Error("a reason was run")
	}
	if holders, err := transport.Locked(ctx(t), b); err != nil || len(holders) != 0 {
		t.Errorf("after the unlock: %v, %v", holders, err)
	}
	release, old := lock(t, b, of("b", 0))
	if old != nil {
		t.Errorf("taken over from %v", old)
	}
	// What was there before is not what is there now.
	if _, _, err := transport.Unlock(ctx(t), connect(t, cfg), wrong, by, "late"); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("unlocking for the second time: %v", err)
	}
	script(t, b, ":")
	if err := release(ctx(t)); err != nil {
		t.Error(err)
	}
}

// Of many that start at once one holds the lock at a time, and all others are told who.
func testLockRace(t *testing.T, cfg transport.Config) {
	const many, rounds = 6, 4
	var holding atomic.Int32
	var won [rounds]atomic.Int32
	var conns []transport.Conn
	for range many {
		c := connect(t, cfg)
		script(t, c, ":")
		conns = append(conns, c)
	}
	for round := range rounds {
		var wg sync.WaitGroup
		all := make(chan struct{}) // closed when everybody has an answer
		var answers atomic.Int32
		for i, c := range conns {
			wg.Go(func() {
				release, _, err := transport.Lock(ctx(t), c, "", of(fmt.Sprintf("r%d-%d", round, i), 0))
				if answers.Add(1) == many {
					close(all)
				}
				var held *transport.HeldError
				switch {
				case err == nil:
					won[round].Add(1)
					if holding.Add(1) > 1 {
						t.Error("two hold the lock")
					}
					<-all
					holding.Add(-1)
					if err := release(ctx(t)); err != nil {
						t.Error(err)
					}
				case !errors.As(err, &held):
					t.Error(err)
				case !strings.HasPrefix(held.Holder.Run, fmt.Sprintf("r%d-", round)):
					t.Errorf("told that %v holds it", &held.Holder)
				}
			})
		}
		wg.Wait()
		if n := won[round].Load(); n != 1 {
			t.Errorf("%d of %d got the lock", n, many)
		}
	}
}

// The files are such that nobody else can hold or change the lock, and everybody may read who has it. A place that others
// could have prepared is refused.
func testLockDirectory(t *testing.T, cfg transport.Config) {
	c := connect(t, cfg)
	release, _ := lock(t, c, of("a", 0))
	uid := strings.TrimSpace(script(t, c, "id -u"))
	dir := filepath.Join(cfg.LockDir, uid)
	for path, want := range map[string]os.FileMode{"": os.ModeDir | 0o755, "lock": 0o600, "who": 0o644} {
		if info, err := os.Lstat(filepath.Join(dir, path)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if err := release(ctx(t)); err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(cfg.LockDir, "elsewhere")
	for what, make := range map[string]func() error{
		"a link to a directory": func() error {
			return errors.Join(os.Mkdir(away, 0o755), chownTo(away, uid), os.Symlink(away, dir))
		},
		"a link to nowhere":          func() error { return os.Symlink(cfg.LockDir+"/none", dir) },
		"a file":                     func() error { return os.WriteFile(dir, nil, 0o600) },
		"open to all":                func() error { return errors.Join(os.Mkdir(dir, 0o755), chownTo(dir, uid), os.Chmod(dir, 0o757)) },
		"open to the group":          func() error { return errors.Join(os.Mkdir(dir, 0o755), chownTo(dir, uid), os.Chmod(dir, 0o775)) },
		"another user's":             func() error { return errors.Join(os.Mkdir(dir, 0o755), chownTo(dir, "12345")) },
		"a link that its owner made": func() error { return errors.Join(os.Symlink("/var/tmp", dir), os.Lchown(dir, 12345, 12345)) },
	} {
		if os.Getuid() != 0 && strings.Contains(what, "owner") {
			continue
		}
		_ = os.RemoveAll(dir)
		if err := make(); err != nil {
			if os.Getuid() != 0 {
				continue
			}
			t.Fatal(err)
		}
		_, _, err := transport.Lock(ctx(t), c, "", of("a", 0))
		var held *transport.HeldError
		if err == nil || errors.As(err, &held) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func chownTo(path, uid string) error {
	n, err := strconv.Atoi(uid)
	if err != nil {
		return err
	}
	return os.Lchown(path, n, n)
}

// A job that outlives its run keeps the host from others while it is alive, and not from its own run.
func testLockJob(t *testing.T, cfg transport.Config) {
	a, b := connect(t, cfg), connect(t, cfg)
	me := of("a", 0)
	lock(t, a, me)
	dir := tempDir(t)
	var jobs []transport.Job
	var wg sync.WaitGroup
	for i := range 2 {
		job := transport.Job{ID: transport.NewJobID(), Cmd: transport.Cmd{Script: fmt.Sprintf("touch %s/begun%d; sleep %s", dir, i, seconds())}}
		jobs = append(jobs, job)
		if err := transport.HoldJob(ctx(t), a, "", me, job); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _, _ = transport.RunJob(ctx(t), a, job, nil) })
		waitFor(t, "the job", func() bool { _, err := os.Stat(fmt.Sprintf("%s/begun%d", dir, i)); return err == nil })
	}
	t.Cleanup(func() {
		for _, job := range jobs {
			_ = transport.EndJob(ctx(t), b, "", job.ID)
			waitFor(t, "the job's end", func() bool { return transport.RemoveJob(ctx(t), b, "", job.ID) == nil })
		}
	})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	var got transport.Holder
	waitFor(t, "the job to be what holds the host", func() bool {
		got = refused(t, b, of("b", 0))
		return got.Job != ""
	})
	if got.Run != "a" || got.Job != jobs[0].ID && got.Job != jobs[1].ID || !strings.Contains(got.String(), "the long step "+got.Job+" of run a") {
		t.Errorf("held by %+v", got)
	}
	release, old := lock(t, b, me)
	if old != nil {
		t.Errorf("taken over from %v", old)
	}
	if err := release(ctx(t)); err != nil {
		t.Fatal(err)
	}
	holders, err := transport.Locked(ctx(t), b)
	if err != nil || len(holders) != 2 || holders[0].Job == "" {
		t.Fatalf("Locked: %+v, %v", holders, err)
	}
	// One is struck off by a person and goes on, the other one ends.
	struck := holders[0].Job
	if _, _, err := transport.Unlock(ctx(t), b, holders[0], transport.Self(""), "not needed"); err != nil {
		t.Error(err)
	}
	if got = refused(t, b, of("b", 0)); got.Job != holders[1].Job {
		t.Errorf("held by %+v", got)
	}
	if state, err := transport.FindJob(ctx(t), b, "", struck); state != transport.JobRunning {
		t.Errorf("the job is %s, %v", state, err)
	}
	if err := transport.EndJob(ctx(t), b, "", got.Job); err != nil {
		t.Error(err)
	}
	waitFor(t, "the job's end to be noticed", func() bool {
		release, _, err := transport.Lock(ctx(t), b, "", of("b", 0))
		return err == nil && release(ctx(t)) == nil
	})
	// Another process that has the number of one that held the host does not hold it.
	stale := cfg.LockDir + "/$(id -u)/jobs/stale"
	script(t, b, `read -r boot </proc/sys/kernel/random/boot_id; printf 'run z\njob stale\nholder %s:1:%s\n' $PPID "$boot" >`+stale)
	release, _ = lock(t, b, of("b", 0))
	if err := release(ctx(t)); err != nil {
		t.Error(err)
	}
	script(t, b, "test ! -e "+stale)
}

// TestLockManyNames guards that a run does not stand in its own way where many of its hosts are one machine.
func TestLockManyNames(t *testing.T) {
	dir := t.TempDir()
	me := of("20261126-101533-dddd", os.Getpid())
	for range 5 {
		var wg sync.WaitGroup
		for i := range 14 {
			c := connect(t, transport.Config{Name: fmt.Sprintf("name%d", i), Connection: "local", LockDir: dir})
			wg.Go(func() {
				release, old, err := transport.Lock(ctx(t), c, "", me)
				if err != nil || old != nil {
					t.Errorf("taken over from %v: %v", old, err)
					return
				}
				if _, err := c.Run(ctx(t), transport.Cmd{Script: ":"}); err != nil {
					t.Error(err)
				}
				if err := release(ctx(t)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}
