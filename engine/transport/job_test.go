package transport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// newJob is a job of c's that the test removes, whatever becomes of it.
func newJob(t *testing.T, c transport.Conn, cmd transport.Cmd) transport.Job {
	t.Helper()
	job := transport.Job{ID: "test-" + transport.NewJobID(), Cmd: cmd}
	t.Cleanup(func() {
		short, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = transport.EndJob(short, c, cmd.User, job.ID)
		if err := transport.RemoveJob(short, c, cmd.User, job.ID); err != nil {
			t.Errorf("cannot remove a job: %v", err)
		}
	})
	return job
}

// jobDir is where a job of c's is on the host.
func jobDir(t *testing.T, c transport.Conn, id string) string {
	t.Helper()
	return strings.TrimSpace(script(t, c, `for d in /var/lib/runbook/jobs "$HOME/.local/state/runbook/jobs"; do if [ -d "$d/`+id+`" ]; then echo "$d/`+id+`"; fi; done`))
}

func TestJobs(t *testing.T) {
	t.Parallel()
	for _, b := range append(backends(), backend{"busybox", busyboxHost}) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, b.config(t))
			for _, test := range []struct {
				name string
				f    func(*testing.T, transport.Conn)
			}{
				{"outcome", testJob},
				{"limit", testJobLimit},
				{"flood", testJobFlood},
				{"flood ends", testJobFloodEnds},
				{"daemon", testJobDaemon},
				{"progress", testJobProgress},
				{"ends", testJobEnds},
				{"restart", testJobRestart},
				{"secret", testJobSecret},
			} {
				t.Run(test.name, func(t *testing.T) { test.f(t, c) })
			}
		})
	}
}

// busyboxHost is one that has busybox and nothing else.
func busyboxHost(t *testing.T) transport.Config {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("there is no busybox here")
	}
	dir := tempDir(t)
	if out, err := exec.Command(busybox, "--install", "-s", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return startServer(t, sshtest.Options{Env: []string{"PATH=" + dir}}).Config()
}

// Any byte passes, what a job is given and where, and how it ended.
func testJob(t *testing.T, c transport.Conn) {
	content := allBytes() + strings.Repeat("long\x00line\n", 200_000) // more than one look takes along
	word := allBytes(0)
	dir := tempDir(t)
	job := newJob(t, c, transport.Cmd{Script: "umask; pwd; printf %s \"$W\" >&2; cat; exit 3", Dir: dir, Env: map[string]string{"W": word}, Stdin: strings.NewReader(content)})
	mask := script(t, c, "umask")
	out, err := transport.RunJob(ctx(t), c, job, nil)
	var exit *transport.ExitError
	if !errors.As(err, &exit) || out.Code != 3 || out.Dropped != 0 {
		t.Errorf("status %d, dropped %d, %v", out.Code, out.Dropped, err)
	}
	if want := mask + dir + "\n" + content; string(out.Stdout) != want {
		t.Errorf("output of %d bytes is %d others: %.200q", len(want), len(out.Stdout), out.Stdout)
	}
	if string(out.Stderr) != word {
		t.Errorf("standard error %q", out.Stderr)
	}
	// It is there until it is removed, and not run again.
	job.Cmd = transport.Cmd{Script: "echo another"}
	again, err := transport.RunJob(ctx(t), c, job, nil)
	if !errors.As(err, &exit) || !bytes.Equal(again.Stdout, out.Stdout) {
		t.Errorf("the second time: %v, %d bytes", err, len(again.Stdout))
	}
	if got := jobDir(t, c, job.ID); got == "" {
		t.Error("the job is not where it is said to be")
	} else if modes := script(t, c, "stat -c '%a %u' "+got+" "+filepath.Dir(got)+"; id -u; ls "+got); !strings.HasPrefix(modes, "700 ") || strings.Count(modes, "700 ") != 2 || strings.Contains(modes, "script") || strings.Contains(modes, "in\n") {
		t.Errorf("the job's directory: %q", modes)
	}
	if open := script(t, c, "find "+jobDir(t, c, job.ID)+" -perm /077"); open != "" {
		t.Errorf("others may read %q", open)
	}
	for range 2 {
		if err := transport.RemoveJob(ctx(t), c, "", job.ID); err != nil {
			t.Error(err)
		}
	}
	if state, err := transport.FindJob(ctx(t), c, "", job.ID); state != transport.JobNone || err != nil {
		t.Errorf("a removed job is %v, %v", state, err)
	}

	// Arguments are words, and are told apart from a script.
	out, err = transport.RunJob(ctx(t), c, newJob(t, c, transport.Cmd{Args: []string{"printf", "%s", word}}), nil)
	if err != nil || string(out.Stdout) != word {
		t.Errorf("an argument came back as %q, %v", out.Stdout, err)
	}
	out, err = transport.RunJob(ctx(t), c, newJob(t, c, transport.Cmd{Args: []string{"no such program"}}), nil)
	if !errors.As(err, &exit) || out.Code != 127 {
		t.Errorf("a program that is not there: %d, %v", out.Code, err)
	}
	for _, id := range []string{"", ".x", "a/b", "a b", "a;b", "-x", strings.Repeat("x", 101)} {
		if _, err := transport.RunJob(ctx(t), c, transport.Job{ID: id, Cmd: transport.Cmd{Args: []string{"true"}}}, nil); err == nil {
			t.Errorf("the ID %q was taken", id)
		}
	}
}

// Of what is over the limit nothing is kept and everything is counted; a writer gets everything.
func testJobLimit(t *testing.T, c transport.Conn) {
	for _, test := range []struct{ size, limit, kept, dropped int64 }{
		{1000, 1000, 1000, 0}, {1001, 1000, 1000, 1}, {5_000_000, 2_000_000, 2_000_000, 3_000_000},
	} {
		cmd := transport.Cmd{Script: fmt.Sprintf("head -c %d /dev/zero; head -c %d /dev/zero >&2", test.size, test.size), Limit: test.limit}
		job := newJob(t, c, cmd)
		out, err := transport.RunJob(ctx(t), c, job, nil)
		if err != nil || int64(len(out.Stdout)) != test.kept || int64(len(out.Stderr)) != test.kept || out.Dropped != 2*test.dropped {
			t.Errorf("%+v: kept %d and %d, dropped %d, %v", test, len(out.Stdout), len(out.Stderr), out.Dropped, err)
		}
		var w bytes.Buffer
		job.Cmd.Stdout = &w
		if out, err = transport.RunJob(ctx(t), c, job, nil); err != nil || int64(w.Len()) != test.size || len(out.Stdout) != 0 || out.Dropped != test.dropped {
			t.Errorf("%+v: a writer got %d, dropped %d, %v", test, w.Len(), out.Dropped, err)
		}
	}
}

// inSession counts the processes of a job: its supervisor, and what that has started. dir is the job's directory.
func inSession(t *testing.T, c transport.Conn, dir string) func() int {
	t.Helper()
	leader := strings.Fields(script(t, c, "cat "+dir+"/pid"))[0]
	return func() (n int) {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, file := range stats {
			stat, _ := os.ReadFile(file)
			_, rest, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(rest); len(f) > 3 && f[3] == leader && f[0] != "Z" {
				n++
			}
		}
		return n
	}
}

// Of a job that writes without end the host keeps what is within the limit. The rest is counted, and shows while it runs.
func testJobFlood(t *testing.T, c transport.Conn) {
	const kept, flood = transport.DefaultLimit, 40_000_000
	gate := filepath.Join(tempDir(t), "gate")
	text := func(redirect, last string) string {
		return fmt.Sprintf("{ echo first; head -c %d /dev/zero; echo; echo 'P %s'; } %s\n", flood, last, redirect)
	}
	wait := "until [ -e " + gate + " ]; do sleep 0.05; done\n"
	job := newJob(t, c, transport.Cmd{Script: text("", "out") + wait + "rm " + gate + "\n" + text(">&2", "err") + wait + "exit 3"})
	seen := make(chan string, 1000)
	var out transport.Output
	done := make(chan error, 1)
	go func() {
		var err error
		out, err = transport.RunJob(ctx(t), c, job, func(line string) { seen <- line })
		done <- err
	}()
	var processes func() int
	for _, want := range []string{"first", "P out", "P err"} {
		for got := ""; got != want; {
			select {
			case got = <-seen:
			case err := <-done:
				t.Fatalf("it ended before %q was seen: %v", want, err)
			}
		}
		dir := jobDir(t, c, job.ID)
		if processes == nil {
			processes = inSession(t, c, dir)
		}
		var size int
		if _, err := fmt.Sscan(script(t, c, "du -s -k "+dir), &size); err != nil || want != "first" && size < kept/1024 || size > 4*kept/1024 {
			t.Errorf("at %q the host keeps %d KiB, %v", want, size, err)
		}
		if want != "first" {
			if err := os.WriteFile(gate, nil, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := <-done
	var exit *transport.ExitError
	all := int64(2 * (len("first\n") + flood + len("\nP out\n")))
	if !errors.As(err, &exit) || out.Code != 3 || len(out.Stdout) != kept || len(out.Stderr) != kept || out.Dropped != all-2*kept {
		t.Errorf("status %d, kept %d and %d, dropped %d of %d, %v", out.Code, len(out.Stdout), len(out.Stderr), out.Dropped, all, err)
	}
	want := append([]byte("first\n"), make([]byte, kept-6)...)
	if !bytes.Equal(out.Stdout, want) || !bytes.Equal(out.Stderr, want) {
		t.Error("what is kept is not the beginning")
	}
	waitFor(t, "its processes to end", func() bool { return processes() == 0 })

	// Who asks for more has more kept, and for all, all.
	var w bytes.Buffer
	cmd := transport.Cmd{Script: fmt.Sprintf("head -c %d /dev/zero", kept+5_000_000), Limit: kept + 3_000_000}
	if out, err := transport.RunJob(ctx(t), c, newJob(t, c, cmd), nil); err != nil || int64(len(out.Stdout)) != cmd.Limit || out.Dropped != 2_000_000 {
		t.Errorf("kept %d, dropped %d, %v", len(out.Stdout), out.Dropped, err)
	}
	cmd.Stdout = &w
	if out, err := transport.RunJob(ctx(t), c, newJob(t, c, cmd), nil); err != nil || w.Len() != kept+5_000_000 || out.Dropped != 0 {
		t.Errorf("a writer got %d, dropped %d, %v", w.Len(), out.Dropped, err)
	}
}

// What a job wrote in small pieces is kept to the byte, and one that is ended while it writes leaves no process behind and as much as it may.
func testJobFloodEnds(t *testing.T, c transport.Conn) {
	cmd := transport.Cmd{Script: "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i + 1)); done; trap 'echo ended; exit 5' TERM; echo begun; while :; do echo more; done"}
	job := newJob(t, c, cmd)
	running, stop := context.WithCancel(ctx(t))
	defer stop()
	var out transport.Output
	done := make(chan error, 1)
	begun := make(chan struct{}, 1000)
	go func() {
		var err error
		out, err = transport.RunJob(running, c, job, func(string) { begun <- struct{}{} })
		done <- err
	}()
	<-begun
	processes := inSession(t, c, jobDir(t, c, job.ID))
	if n := processes(); n < 4 {
		t.Errorf("a job that runs has %d processes", n)
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	waitFor(t, "its processes to end", func() bool { return processes() == 0 })
	var want strings.Builder
	for i := range 3000 {
		fmt.Fprintln(&want, i)
	}
	want.WriteString("begun\nmore\n")
	if !strings.HasPrefix(string(out.Stdout), want.String()) {
		t.Errorf("output of %d bytes", len(out.Stdout))
	}
	if out.Dropped == 0 && !strings.HasSuffix(string(out.Stdout), "ended\n") {
		t.Error("its last words are lost")
	}
}

// What a job leaves behind does not keep it from ending, and may go on to write.
func testJobDaemon(t *testing.T, c transport.Conn) {
	dir := tempDir(t)
	daemon := "until [ -e " + dir + "/gate ]; do sleep 0.05; done; echo late && echo late >&2 && touch " + dir + "/wrote"
	job := newJob(t, c, transport.Cmd{Script: "(" + daemon + ") & echo done; exit 3"})
	begin := time.Now()
	out, err := transport.RunJob(ctx(t), c, job, nil)
	var exit *transport.ExitError
	if !errors.As(err, &exit) || out.Code != 3 || string(out.Stdout) != "done\n" {
		t.Errorf("%v, %q", err, out.Stdout)
	}
	t.Logf("it ended after %s", time.Since(begin).Round(time.Second/10))
	processes := inSession(t, c, jobDir(t, c, job.ID))
	if err := transport.RemoveJob(ctx(t), c, "", job.ID); err != nil {
		t.Error(err)
	}
	if processes() == 0 {
		t.Error("the daemon is gone")
	}
	if err := os.WriteFile(dir+"/gate", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the daemon to write", func() bool { _, err := os.Stat(dir + "/wrote"); return err == nil })
	waitFor(t, "its processes to end", func() bool { return processes() == 0 })
}

// What a job writes shows while it runs.
func testJobProgress(t *testing.T, c transport.Conn) {
	gate := filepath.Join(tempDir(t), "gate")
	seen := make(chan string, 100)
	job := newJob(t, c, transport.Cmd{Script: "echo first; echo; until [ -e " + gate + " ]; do sleep 0.05; done; echo last"})
	done := make(chan error, 1)
	go func() {
		out, err := transport.RunJob(ctx(t), c, job, func(line string) { seen <- line })
		if err == nil && string(out.Stdout) != "first\n\nlast\n" {
			err = fmt.Errorf("output %q", out.Stdout)
		}
		done <- err
	}()
	if got := <-seen; got != "first" {
		t.Errorf("progress %q", got)
	}
	if state, err := transport.FindJob(ctx(t), c, "", job.ID); state != transport.JobRunning || err != nil {
		t.Errorf("while it runs it is %v, %v", state, err)
	}
	if err := transport.RemoveJob(ctx(t), c, "", job.ID); err == nil || !strings.Contains(err.Error(), "still running") {
		t.Errorf("removed while it ran: %v", err)
	}
	awaited := make(chan transport.JobState, 1)
	line := make(chan string, 100)
	go func() {
		state, err := transport.AwaitJob(ctx(t), c, "", job.ID, func(text string) { line <- text })
		if err != nil {
			t.Error(err)
		}
		awaited <- state
	}()
	if got := <-line; got != "first" {
		t.Errorf("who waits sees %q", got)
	}
	if err := os.WriteFile(gate, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if state := <-awaited; state != transport.JobEnded {
		t.Errorf("who waited found it %v", state)
	}
	if state, err := transport.FindJob(ctx(t), c, "", job.ID); state != transport.JobEnded || err != nil {
		t.Errorf("when it is over it is %v, %v", state, err)
	}
}

// A timeout, and whoever interrupts, ends all of the job; afterwards it is lost, and not begun again.
func testJobEnds(t *testing.T, c transport.Conn) {
	for _, cause := range []string{"timeout", "cancel", "shutdown", "killed"} {
		mark, stubborn, away := seconds(), seconds(), seconds()
		cmd := transport.Cmd{Script: "echo begun; sleep " + mark + " & (trap '' TERM; sleep " + stubborn + ") & setsid sleep " + away + " & sleep " + mark + "; wait; sleep " + mark}
		if cause == "timeout" {
			cmd.Timeout = 5 * time.Second // long enough for a busy machine to have begun
		}
		job := newJob(t, c, cmd)
		running, stop := context.WithCancel(ctx(t))
		defer stop()
		var out transport.Output
		done := make(chan error, 1)
		go func() {
			var err error
			out, err = transport.RunJob(running, c, job, nil)
			done <- err
		}()
		waitFor(t, "the job to begin", func() bool { return alive("sleep\x00"+mark) == 2 && alive("sleep\x00"+away) == 1 })
		var err error
		var late *transport.TimeoutError
		var lost *transport.JobLostError
		left := 0
		switch cause {
		case "timeout":
			if err = <-done; !errors.As(err, &late) || string(late.Output.Stdout) != "begun\n" {
				t.Errorf("%s: %v, output %q", cause, err, out.Stdout)
			}
		case "cancel":
			stop()
			if err = <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", cause, err)
			}
		case "shutdown": // everything gets SIGTERM, the supervisor too
			script(t, c, "read -r pid _ <"+jobDir(t, c, job.ID)+"/pid; kill -TERM $pid; for p in $(ps -eo pid=,sid= | awk -v s=$pid '$2 == s && $1 != s {print $1}'); do kill -KILL $p; done")
			if err = <-done; !errors.As(err, &lost) || !strings.Contains(err.Error(), "a signal ended it from outside") {
				t.Errorf("%s: %v", cause, err)
			}
			left = 1 // it had left the session
		case "killed": // as by the kernel when memory runs out: what it started is waited for, and then it is lost
			script(t, c, "read -r pid _ <"+jobDir(t, c, job.ID)+"/pid; kill -KILL $pid")
			time.Sleep(time.Second)
			select {
			case err = <-done:
				t.Errorf("%s: it was given up while its processes lived: %v", cause, err)
				continue
			default:
			}
			script(t, c, "read -r pid _ <"+jobDir(t, c, job.ID)+"/pid; while all=$(ps -eo pid=,sid=,stat= | awk -v s=$pid '$2 == s && $3 !~ /Z/ {print $1}') && [ \"$all\" ]; do kill -KILL $all; sleep 0.05; done")
			if err = <-done; !errors.As(err, &lost) || !strings.Contains(err.Error(), "its processes were killed") {
				t.Errorf("%s: %v", cause, err)
			}
			left = 1
		}
		if n := alive("sleep\x00"+mark) + alive("sleep\x00"+stubborn) + alive("sleep\x00"+away); n != left {
			t.Errorf("%s: %d processes are left", cause, n)
		}
		script(t, c, "for p in $(ps -eo pid=,args= | awk '/[s]leep "+away+"/ {print $1}'); do kill -KILL $p; done")
		out, err = transport.RunJob(ctx(t), c, job, nil)
		if !errors.As(err, &lost) || string(lost.Output.Stdout) != "begun\n" || alive(mark) > 0 {
			t.Errorf("%s: asked for again: %v, %q", cause, err, out.Stdout)
		}
		if state, err := transport.FindJob(ctx(t), c, "", job.ID); state != transport.JobLost || err != nil {
			t.Errorf("%s: found as %v, %v", cause, state, err)
		}
	}
}

// Of fifty who ask at once, each over a connection of its own, one starts it, and all get its output.
func TestJobOnce(t *testing.T) {
	t.Parallel()
	cfg := localWith("/bin/dash")(t)
	dir := tempDir(t)
	first := connect(t, cfg)
	for round := range 3 {
		runs := fmt.Sprintf("%s/runs%d", dir, round)
		job := newJob(t, first, transport.Cmd{Script: "echo x >>" + runs + "; sleep 0.5; echo done"})
		var ready, ended sync.WaitGroup
		start := make(chan struct{})
		for range 50 {
			c := connect(t, cfg)
			ready.Add(1)
			ended.Add(1)
			go func() {
				defer ended.Done()
				defer c.Close()
				_, err := c.Run(ctx(t), transport.Cmd{Args: []string{"true"}})
				ready.Done()
				if err != nil {
					t.Error(err)
					return
				}
				<-start
				if out, err := transport.RunJob(ctx(t), c, job, nil); err != nil || string(out.Stdout) != "done\n" {
					t.Errorf("%v, %q", err, out.Stdout)
				}
			}()
		}
		ready.Wait()
		close(start)
		ended.Wait()
		if text, _ := os.ReadFile(runs); string(text) != "x\n" {
			t.Errorf("it was started %d times", len(text)/2)
		}
	}
}

// After a restart of the host the job is lost, even if a process has its number.
func testJobRestart(t *testing.T, c transport.Conn) {
	mark := seconds()
	job := newJob(t, c, transport.Cmd{Script: "echo begun; sleep " + mark})
	short, cancel := context.WithCancel(ctx(t))
	started := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = transport.RunJob(short, c, job, func(string) { close(started) })
	}()
	<-started
	file := jobDir(t, c, job.ID) + "/pid"
	script(t, c, "cp "+file+" "+file+".was; read -r a b c d <"+file+"; echo $a $b 11111111-2222-3333-4444-555555555555 $d >"+file)
	_, err := transport.RunJob(ctx(t), c, job, nil)
	var lost *transport.JobLostError
	if !errors.As(err, &lost) || !strings.Contains(err.Error(), "the host was restarted while it ran") {
		t.Errorf("another boot: %v", err)
	}
	script(t, c, "read -r a b c d <"+file+".was; echo 1 $b $c $d >"+file)
	if _, err = transport.RunJob(ctx(t), c, job, nil); !errors.As(err, &lost) || !strings.Contains(err.Error(), "were killed") {
		t.Errorf("another process with its number: %v", err)
	}
	script(t, c, "mv "+file+".was "+file)
	if state, _ := transport.FindJob(ctx(t), c, "", job.ID); state != transport.JobRunning {
		t.Errorf("with its own number it is %v", state)
	}
	cancel()
	<-done
}

// A job that fills its own disk finds its output closed, and its exit status is known all the same.
func TestJobDiskFull(t *testing.T) { // not beside others of that user
	cfg := opensshConfig(t, "/bin/dash")
	c := connect(t, cfg)
	dir, uid, _ := strings.Cut(script(t, c, "mkdir -p ~/.local/state/runbook/jobs; cd ~/.local/state/runbook/jobs; pwd; id -u"), "\n")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=200k,uid="+strings.TrimSpace(uid)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	job := newJob(t, c, transport.Cmd{Script: "trap '' PIPE; while echo a line of output; do :; done 2>/dev/null; exit 5"})
	out, err := transport.RunJob(ctx(t), c, job, nil)
	if exit := (*transport.ExitError)(nil); !errors.As(err, &exit) || out.Code != 5 || !strings.HasPrefix(string(out.Stdout), "a line of output\n") {
		t.Errorf("status %d, %d bytes, %v", out.Code, len(out.Stdout), err)
	}
}

// When the host's clock is set while a job runs, it is not older or younger for that: its timeout is as far away as it was.
func TestJobClock(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	if err := os.WriteFile(dir+"/date", []byte("#!/bin/sh\nexec /bin/date -d '+1 day' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := connect(t, startServer(t, sshtest.Options{}).Config())
	after := connect(t, startServer(t, sshtest.Options{Env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")}}).Config())
	if a, b := script(t, before, "date +%F"), script(t, after, "date +%F"); a == b {
		t.Fatalf("it is %s before and after", a)
	}
	job := newJob(t, before, transport.Cmd{Script: "echo begun; until [ -e " + dir + "/gate ]; do sleep 0.05; done; echo ended", Timeout: time.Hour})
	begun := make(chan bool, 10)
	done := make(chan error, 1)
	for _, c := range []transport.Conn{before, after} {
		go func() {
			out, err := transport.RunJob(ctx(t), c, job, func(string) { begun <- true })
			if err == nil && string(out.Stdout) != "begun\nended\n" {
				err = fmt.Errorf("output %q", out.Stdout)
			}
			done <- err
		}()
		select {
		case <-begun:
		case err := <-done:
			t.Fatalf("it is over: %v", err)
		}
	}
	if err := os.WriteFile(dir+"/gate", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A secret on standard input is in no process's arguments, and in no file once the job runs.
func testJobSecret(t *testing.T, c transport.Conn) {
	canary := fmt.Sprintf("canary-%d-%dx", os.Getpid(), lastSeconds.Add(1))
	var seen atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			seen.Add(int64(alive(canary)))
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	gate := filepath.Join(tempDir(t), "gate")
	job := newJob(t, c, transport.Cmd{Script: "echo begun; until [ -e " + gate + " ]; do sleep 0.05; done; read -r s; echo ${#s} # " + canary,
		Stdin: strings.NewReader(canary + "\n")})
	started := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, err := transport.RunJob(ctx(t), c, job, func(line string) {
			if line == "begun" {
				close(started)
			}
		})
		if want := fmt.Sprintf("begun\n%d\n", len(canary)); err != nil || string(out.Stdout) != want {
			t.Errorf("%v, output %q", err, out.Stdout)
		}
	}()
	<-started
	dir := jobDir(t, c, job.ID)
	if got := script(t, c, "grep -r -l '[c]"+canary[1:]+"' "+filepath.Dir(dir)+" || :"); got != "" {
		t.Errorf("the secret is in files: %q", got)
	}
	if err := os.WriteFile(gate, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	<-done
	close(stop)
	wg.Wait()
	if seen.Load() != 0 {
		t.Errorf("the secret was %d times in a process's arguments", seen.Load())
	}
}

// A job goes on when the link is cut in its middle, and over another one its output comes once and whole.
func TestJobLostLink(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := startServer(t, sshtest.Options{Env: []string{"TMPDIR=" + t.TempDir()}})
	c := connect(t, s.Config())
	job := newJob(t, connect(t, s.Config()), transport.Cmd{
		Script: "echo x >>" + dir + "/runs; echo begun; until [ -e " + dir + "/gate ]; do sleep 0.05; done; echo ended; echo words >&2"})
	done := make(chan error, 1)
	seen := make(chan string, 10)
	go func() {
		_, err := transport.RunJob(ctx(t), c, job, func(line string) { seen <- line })
		done <- err
	}()
	<-seen
	_ = c.Close()
	lost := wantUnreachable(t, <-done)
	if !lost.MayHave || !strings.Contains(lost.Error(), "the job "+job.ID+" goes on there") {
		t.Errorf("%v", lost)
	}
	if err := os.WriteFile(dir+"/gate", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	job.Cmd.Stdout = &stream
	out, err := transport.RunJob(ctx(t), connect(t, s.Config()), job, nil)
	if err != nil || stream.String() != "begun\nended\n" || string(out.Stderr) != "words\n" {
		t.Errorf("%v, %q, %q", err, stream.String(), out.Stderr)
	}
	if runs, _ := os.ReadFile(dir + "/runs"); string(runs) != "x\n" {
		t.Errorf("it was started %d times", len(runs)/2)
	}
}

// Wherever the link is cut while a job is being started, it is started once: by the first who asked or by the second.
func TestJobCutWhileStarting(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := startServer(t, sshtest.Options{Env: []string{"TMPDIR=" + t.TempDir()}})
	first := 0
	again := connect(t, s.Config())
	for i := range 25 {
		c := connect(t, s.Config())
		script(t, c, ":")
		runs := fmt.Sprintf("%s/runs%d", dir, i)
		job := newJob(t, again, transport.Cmd{Script: "echo x >>" + runs + "; echo \"$W\"", Env: map[string]string{"W": "first"}})
		time.AfterFunc(time.Duration(i)*4*time.Millisecond, func() { _ = c.Close() })
		if _, err := transport.RunJob(ctx(t), c, job, nil); err == nil {
			continue
		}
		job.Cmd.Env["W"] = "second"
		out, err := transport.RunJob(ctx(t), again, job, nil)
		if err != nil {
			t.Errorf("cut after %d ms: %v", i*4, err)
		}
		if string(out.Stdout) == "first\n" {
			first++
		}
		if runs, _ := os.ReadFile(runs); string(runs) != "x\n" {
			t.Errorf("cut after %d ms: it was started %d times", i*4, len(runs)/2)
		}
	}
	t.Logf("%d of 25 were found", first)
}

// A job outlives sshd's session, with a real sshd, and belongs to the user that it was started as: neither the login user
// nor anybody else but root can look into it.
func TestJobOpenssh(t *testing.T) {
	t.Parallel()
	cfg := opensshConfig(t, "/bin/dash")
	cfg.BecomePassword = becomePassword()
	dir := tempDir(t)
	c := connect(t, cfg)
	for _, user := range []string{"", "root"} {
		gate := dir + "/gate" + user
		job := newJob(t, connect(t, cfg), transport.Cmd{Script: "id -un; until [ -e " + gate + " ]; do sleep 0.05; done; echo ended", User: user})
		begun := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			_, err := transport.RunJob(ctx(t), c, job, func(string) { close(begun) })
			done <- err
		}()
		<-begun
		if user == "root" {
			if got := script(t, c, "cat /var/lib/runbook/jobs/"+job.ID+"/out 2>&1; ls /var/lib/runbook/jobs 2>&1 || :"); !strings.Contains(got, "Permission denied") {
				t.Errorf("the login user reads root's job: %q", got)
			}
		}
		_ = c.Close()
		wantUnreachable(t, <-done)
		if err := os.WriteFile(gate, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		c = connect(t, cfg)
		want := userWith("/bin/dash")
		if user != "" {
			want = user
		}
		out, err := transport.RunJob(ctx(t), c, job, nil)
		if err != nil || string(out.Stdout) != want+"\nended\n" {
			t.Errorf("as %q: %v, %q", user, err, out.Stdout)
		}
	}
}

// A directory of jobs that another user has put in place is not used. It comes first: no other job of that user may be there.
func TestJobForeignDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs a second user")
	}
	cfg := opensshConfig(t, "/bin/bash")
	c := connect(t, cfg)
	home := strings.TrimSpace(script(t, c, "cd; mkdir -p .local/state/runbook; pwd; id -u"))
	home, uid, _ := strings.Cut(home, "\n")
	there := home + "/.local/state/runbook/jobs"
	fallback := "/var/tmp/.runbook-jobs-" + uid
	defer os.RemoveAll(fallback)
	for _, dir := range []string{there, fallback} {
		if out, err := exec.Command("mkdir", dir).CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
	}
	_, err := transport.RunJob(ctx(t), c, transport.Job{ID: transport.NewJobID(), Cmd: transport.Cmd{Args: []string{"true"}}}, nil)
	if err == nil || !strings.Contains(err.Error(), "no directory for jobs can be made that belongs to "+userWith("/bin/bash")+" alone") {
		t.Errorf("root's directories: %v", err)
	}
	// Without a home, /var/tmp does.
	if err := os.Remove(fallback); err != nil {
		t.Fatal(err)
	}
	job := newJob(t, c, transport.Cmd{Args: []string{"echo", "done"}})
	forged := there + "/" + job.ID
	if out, err := exec.Command("sh", "-c", "mkdir "+forged+" && cd "+forged+" && echo 0 >rc && echo forged >out && : >err && echo 1 1 1 1 >pid").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	if out, err := transport.RunJob(ctx(t), c, job, nil); err != nil || string(out.Stdout) != "done\n" {
		t.Errorf("%v, %q", err, out.Stdout)
	}
	if info, err := os.Stat(fallback + "/" + job.ID); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the job in /var/tmp: %v", err)
	}
	if err := os.RemoveAll(there); err != nil {
		t.Fatal(err)
	}
}
