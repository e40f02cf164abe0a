package transport_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// backend is one way to reach a host; the suite must pass over each.
type backend struct {
	name string
	// config returns how to reach it, or skips the test.
	config func(t *testing.T) transport.Config
}

// backends: locally with every sh there is, over the server in this process, over OpenSSH with several login shells.
func backends() []backend {
	list := []backend{
		{"local-dash", localWith("/bin/dash")},
		{"local-bash", localWith("/bin/bash")},
		{"local-busybox", localBusybox},
		{"inprocess", func(t *testing.T) transport.Config { return startServer(t, sshtest.Options{}).Config() }},
	}
	for _, shell := range []string{"/bin/dash", "/bin/bash", "/bin/csh"} {
		list = append(list, backend{"openssh-" + filepath.Base(shell), func(t *testing.T) transport.Config { return opensshConfig(t, shell) }})
	}
	return list
}

func localWith(shell string) func(t *testing.T) transport.Config {
	return func(t *testing.T) transport.Config {
		if _, err := os.Stat(shell); err != nil {
			t.Skipf("there is no %s here", shell)
		}
		return transport.WithInterpreter(transport.Config{Name: "here", Connection: "local"}, shell)
	}
}

func localBusybox(t *testing.T) transport.Config {
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("there is no busybox here")
	}
	sh := filepath.Join(t.TempDir(), "sh")
	if err := os.Symlink("/bin/busybox", sh); err != nil {
		t.Fatal(err)
	}
	return localWith(sh)(t)
}

func startServer(t *testing.T, opts sshtest.Options) *sshtest.Server {
	t.Helper()
	s, err := sshtest.Start(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func connect(t *testing.T, cfg transport.Config) transport.Conn {
	t.Helper()
	c, err := transport.Connect(ctx(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ctx bounds a test: nothing here may take longer.
func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	t.Cleanup(cancel)
	return c
}

func run(t *testing.T, c transport.Conn, cmd transport.Cmd) transport.Output {
	t.Helper()
	out, err := c.Run(ctx(t), cmd)
	if err != nil {
		t.Fatalf("%v %q: %v", cmd.Args, cmd.Script, err)
	}
	return out
}

func script(t *testing.T, c transport.Conn, text string) string {
	t.Helper()
	return string(run(t, c, transport.Cmd{Script: text}).Stdout)
}

// tempDir is a directory that every login user of the suite can use.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rbtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// allBytes is every byte but those left out, twice, and a newline at neither end.
func allBytes(without ...byte) string {
	var b []byte
	for range 2 {
		for i := range 256 {
			if !bytes.Contains(without, []byte{byte(i)}) {
				b = append(b, byte(i))
			}
		}
	}
	return string(b)
}

func TestSuite(t *testing.T) {
	t.Parallel()
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, b.config(t))
			for _, test := range []struct {
				name string
				f    func(*testing.T, transport.Conn)
			}{
				{"bytes", testBytes},
				{"status", testStatus},
				{"place", testPlace},
				{"limit", testLimit},
				{"timeout", testTimeout},
				{"cancel", testCancel},
				{"daemon", testDaemon},
				{"own shell", testOwnShell},
				{"concurrent", testConcurrent},
				{"shell killed", testShellKilled},
				{"bulk", testBulk},
				{"bulk ends", testBulkEnds},
				{"dial", testDial},
				{"files", testFiles},
				{"secrets", testSecrets},
			} {
				t.Run(test.name, func(t *testing.T) { test.f(t, c) })
			}
		})
	}
}

// Any byte passes: in arguments, environment, directory and script all but NUL, in input and output NUL too.
func testBytes(t *testing.T, c transport.Conn) {
	word := allBytes(0)
	content := allBytes() + strings.Repeat("long\x00line ", 20000)
	out := run(t, c, transport.Cmd{Args: []string{"printf", "%s", word}})
	if string(out.Stdout) != word || len(out.Stderr) != 0 {
		t.Errorf("an argument came back as %q, %q", out.Stdout, out.Stderr)
	}
	out = run(t, c, transport.Cmd{Script: "cat; printf %s \"$W\" >&2", Stdin: strings.NewReader(content), Env: map[string]string{"W": word}})
	if string(out.Stdout) != content {
		t.Errorf("input of %d bytes came back as %d others", len(content), len(out.Stdout))
	}
	if string(out.Stderr) != word {
		t.Errorf("the environment came back as %q", out.Stderr)
	}
	out = run(t, c, transport.Cmd{Script: "cat <<'EOF'\n" + word + "\nEOF"})
	if string(out.Stdout) != word+"\n" {
		t.Errorf("a script's text came back as %q", out.Stdout)
	}
	for _, cmd := range []transport.Cmd{
		{Args: []string{"echo", "a\x00b"}},
		{Script: "echo a\x00b"},
		{Args: []string{"env"}, Env: map[string]string{"A": "a\x00b"}},
		{Args: []string{"env"}, Env: map[string]string{"A B": "x"}},
		{Args: []string{"pwd"}, Dir: "/\x00"},
		{},
		{Args: []string{"a"}, Script: "b"},
	} {
		var exit *transport.ExitError
		if _, err := c.Run(ctx(t), cmd); err == nil || errors.As(err, &exit) {
			t.Errorf("%q %q %q: not refused: %v", cmd.Args, cmd.Script, cmd.Env, err)
		}
	}
}

func testStatus(t *testing.T, c transport.Conn) {
	for _, test := range []struct {
		cmd  transport.Cmd
		want int
	}{
		{transport.Cmd{Args: []string{"true"}}, 0},
		{transport.Cmd{Args: []string{"sh", "-c", "exit 255"}}, 255},
		{transport.Cmd{Script: "echo out; echo err >&2; exit 3"}, 3},
		{transport.Cmd{Script: "false"}, 1},
		{transport.Cmd{Script: "if"}, 2},
		{transport.Cmd{Args: []string{"no such program"}}, 127},
		{transport.Cmd{Args: []string{"/etc/passwd"}}, 126},
		{transport.Cmd{Args: []string{"sh", "-c", "kill -TERM $$"}}, 143},
		{transport.Cmd{Script: "kill -KILL $$"}, 137},
		{transport.Cmd{Script: "kill -TERM 0; sleep 5"}, 143},
		{transport.Cmd{Args: []string{"sh", "-c", "kill -TERM 0; sleep 5"}}, 143},
	} {
		for _, bulk := range []bool{false, true} {
			if bulk && strings.Contains(test.cmd.Script+strings.Join(test.cmd.Args, " "), "kill -TERM 0") {
				continue // may reach sudo and the login shell, too
			}
			cmd := test.cmd
			cmd.Bulk = bulk
			out, err := c.Run(ctx(t), cmd)
			var exit *transport.ExitError
			if test.want == 0 && err != nil || test.want != 0 && !errors.As(err, &exit) || out.Code != test.want {
				t.Errorf("%q %q bulk %v: status %d, %v, want %d (%q)", cmd.Args, cmd.Script, bulk, out.Code, err, test.want, out.Stderr)
			}
		}
	}
	_, err := c.Run(ctx(t), transport.Cmd{Script: "echo out; echo first line >&2; echo more >&2; exit 3"})
	if err == nil || err.Error() != "exit status 3: first line" {
		t.Errorf("error %v", err)
	}
}

func testPlace(t *testing.T, c transport.Conn) {
	dir := filepath.Join(tempDir(t), "-a 'b")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, bulk := range []bool{false, true} {
		out := run(t, c, transport.Cmd{Script: "pwd; echo \"$A\"", Dir: dir, Env: map[string]string{"A": "1"}, Bulk: bulk})
		if want := dir + "\n1\n"; string(out.Stdout) != want {
			t.Errorf("bulk %v: %q, want %q", bulk, out.Stdout, want)
		}
		out = run(t, c, transport.Cmd{Script: "[ \"$(pwd -P)\" = \"$(cd && pwd -P)\" ] && echo home; echo \"$A\"", Bulk: bulk})
		if string(out.Stdout) != "home\n\n" {
			t.Errorf("bulk %v: not at home, or an environment that stays: %q", bulk, out.Stdout)
		}
		_, err := c.Run(ctx(t), transport.Cmd{Args: []string{"touch", dir + "/made"}, Dir: dir + "/no", Bulk: bulk})
		var exit *transport.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("bulk %v: a directory that is not there: %v", bulk, err)
		}
	}
	if _, err := os.Stat(dir + "/made"); err == nil {
		t.Error("a command was run although its directory is not there")
	}
}

// What is over the limit is counted, to the byte, and not kept.
func testLimit(t *testing.T, c transport.Conn) {
	for _, test := range []struct{ size, limit, kept, dropped int64 }{
		{999, 1000, 999, 0},
		{1000, 1000, 1000, 0},
		{1001, 1000, 1000, 1},
		{131072, 65536, 65536, 65536},
		{65536, 65536, 65536, 0},
		{5_000_000, 65535, 65535, 4_934_465},
	} {
		for _, bulk := range []bool{false, true} {
			out := run(t, c, transport.Cmd{Script: fmt.Sprintf("head -c %d /dev/zero; head -c %d /dev/zero >&2", test.size, test.size), Limit: test.limit, Bulk: bulk})
			if int64(len(out.Stdout)) != test.kept || int64(len(out.Stderr)) != test.kept || out.Dropped != 2*test.dropped {
				t.Errorf("bulk %v, %+v: kept %d and %d, dropped %d", bulk, test, len(out.Stdout), len(out.Stderr), out.Dropped)
			}
		}
	}
}

// alive counts the processes whose command line holds mark.
func alive(mark string) int {
	n := 0
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(mark)) {
			n++
		}
	}
	return n
}

// seconds is a time to sleep that no other test sleeps, to find the process by.
var lastSeconds atomic.Int64

func seconds() string { return fmt.Sprint(100000 + os.Getpid()%1000*100 + int(lastSeconds.Add(1))) }

// A timeout ends all that the command started, children that ignore SIGTERM too, but nothing of an earlier command,
// and the shell goes on with what others asked for.
func testTimeout(t *testing.T, c transport.Conn) {
	for _, bulk := range []bool{false, true} {
		before, mark, stubborn := seconds(), seconds(), seconds()
		script(t, c, "sleep "+before+" >/dev/null 2>&1 &")
		t.Cleanup(func() { script(t, c, "kill $(ps -eo pid=,args= | awk '/[s]leep "+before+"/ {print $1}')") })
		time.Sleep(30 * time.Millisecond) // the kernel tells processes apart by hundredths of a second
		var wg sync.WaitGroup
		start := time.Now()
		wg.Add(1)
		go func() {
			defer wg.Done()
			out, err := c.Run(ctx(t), transport.Cmd{
				Script: "echo begun; sleep " + mark + " & (trap '' TERM; sleep " + stubborn + ") & sleep " + mark + "; echo never; wait",
				Bulk:   bulk, Timeout: 300 * time.Millisecond})
			var late *transport.TimeoutError
			if !errors.As(err, &late) {
				t.Errorf("bulk %v: %v", bulk, err)
			} else if string(late.Output.Stdout) != "begun\n" || string(out.Stdout) != "begun\n" {
				t.Errorf("bulk %v: output before the end %q", bulk, out.Stdout)
			}
			if took := time.Since(start); took < 2*time.Second || took > 20*time.Second {
				t.Errorf("bulk %v: a child that ignores SIGTERM was ended after %s", bulk, took)
			}
			if n := alive(mark) + alive(stubborn); n != 0 {
				t.Errorf("bulk %v: %d processes are left", bulk, n)
			}
		}()
		time.Sleep(50 * time.Millisecond)
		// The next one runs while the stubborn child is waited for and then killed.
		if got := script(t, c, "sleep 3 & sleep 3; wait; echo next"); got != "next\n" {
			t.Errorf("the next command's output is %q", got)
		}
		wg.Wait()
		if alive(before) != 1 {
			t.Errorf("bulk %v: a process of an earlier command was ended", bulk)
		}
	}
}

func testCancel(t *testing.T, c transport.Conn) {
	dir := tempDir(t)
	mark := seconds()
	running, stop := context.WithCancel(ctx(t))
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		if _, err := c.Run(running, transport.Cmd{Script: "touch " + dir + "/begun; sleep " + mark}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if alive(mark) != 0 {
			t.Error("a cancelled command still runs")
		}
	}()
	waitFor(t, "the command to begin", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })

	// One that waits in the queue is cancelled without waiting, and never runs; those around it do.
	queued, stopQueued := context.WithCancel(ctx(t))
	sent := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		if _, err := c.Run(queued, transport.Cmd{Args: []string{"touch", dir + "/never"}, Sent: func() { close(sent) }}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled in the queue: %v", err)
		}
	}()
	<-sent
	wg.Add(1)
	go func() {
		defer wg.Done()
		if _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"touch", dir + "/after"}}); err != nil {
			t.Errorf("behind a cancelled command: %v", err)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	stopQueued()
	time.Sleep(300 * time.Millisecond)
	stop()
	wg.Wait()
	if _, err := os.Stat(dir + "/never"); err == nil {
		t.Error("a command that was cancelled in the queue was run")
	}
	if _, err := os.Stat(dir + "/after"); err != nil {
		t.Error("a command behind cancelled ones was not run")
	}

	mark = seconds()
	bulk, stopBulk := context.WithTimeout(ctx(t), 300*time.Millisecond)
	defer stopBulk()
	if _, err := c.Run(bulk, transport.Cmd{Args: []string{"sleep", mark}, Bulk: true}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("bulk: %v", err)
	}
	waitFor(t, "the cancelled bulk command to end", func() bool { return alive(mark) == 0 })
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A process that stays behind with the command's streams neither holds the reply nor writes into that of another.
func testDaemon(t *testing.T, c transport.Conn) {
	start := time.Now()
	if got := script(t, c, "(sleep 3; echo late; echo late >&2; sleep 1) & echo now"); got != "now\n" {
		t.Errorf("output %q", got)
	}
	if took := time.Since(start); took > 2500*time.Millisecond {
		t.Errorf("a daemon held the reply for %s", took)
	}
	for time.Since(start) < 3300*time.Millisecond {
		out := run(t, c, transport.Cmd{Script: "sleep 0.2; echo x; echo y >&2"})
		if string(out.Stdout) != "x\n" || string(out.Stderr) != "y\n" {
			t.Fatalf("a daemon wrote into another command's output: %q, %q", out.Stdout, out.Stderr)
		}
	}
	start = time.Now()
	out := run(t, c, transport.Cmd{Script: "sleep 20 & echo now; printf '%s' $! >&2", Bulk: true})
	if string(out.Stdout) != "now\n" {
		t.Errorf("bulk output %q", out.Stdout)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("a daemon held the bulk session for %s", took)
	}
	script(t, c, "kill "+string(out.Stderr))
}

// Whatever a script does to itself, it does to a process of its own.
func testOwnShell(t *testing.T, c transport.Conn) {
	first := script(t, c, "set -u; set -e; umask 077; cd /; export LEFT=1; readonly x=1; exec 2>/dev/null; trap 'echo bye' EXIT; echo $$")
	if !strings.HasSuffix(first, "\nbye\n") {
		t.Errorf("no trap at the end: %q", first)
	}
	second := script(t, c, "echo $$; echo bye")
	if first == second {
		t.Errorf("two scripts are the same process: %q", first)
	}
	if got := script(t, c, "echo \"${LEFT-clean}\"; x=2; echo $x; echo to the reply"); got != "clean\n2\nto the reply\n" {
		t.Errorf("the next script saw %q", got)
	}
	if got := script(t, c, "cat; echo end"); got != "end\n" {
		t.Errorf("without input a script read %q", got)
	}
}

func testConcurrent(t *testing.T, c transport.Conn) {
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			want := strings.Repeat(fmt.Sprintf("%d.", i), 1+i*100)
			out, err := c.Run(ctx(t), transport.Cmd{Args: []string{"cat"}, Stdin: strings.NewReader(want), Bulk: i%20 == 0})
			if err != nil || string(out.Stdout) != want {
				t.Errorf("%d: %v, %d bytes", i, err, len(out.Stdout))
			}
		}()
	}
	wg.Wait()
	// What is sent to a user after Sent runs after it.
	dir := tempDir(t)
	sent := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		_, err := c.Run(ctx(t), transport.Cmd{Script: "sleep 0.3; touch " + dir + "/applied", Sent: func() { close(sent) }})
		if err != nil {
			t.Error(err)
		}
	}()
	<-sent
	run(t, c, transport.Cmd{Args: []string{"test", "-e", dir + "/applied"}})
	wg.Wait()
}

// A command that ends our shell is reported, and the next one gets a new shell.
func testShellKilled(t *testing.T, c transport.Conn) {
	dir := filepath.Dir(script(t, c, "readlink /proc/$$/fd/1"))
	defer func() { run(t, c, transport.Cmd{Args: []string{"rm", "-rf", dir}}) }()
	_, err := c.Run(ctx(t), transport.Cmd{Args: []string{"sh", "-c", "kill -KILL $PPID; sleep 1"}})
	var lost *transport.UnreachableError
	if !errors.As(err, &lost) || !lost.MayHave {
		t.Errorf("error %v", err)
	}
	if got := script(t, c, "echo alive"); got != "alive\n" {
		t.Errorf("afterwards: %q", got)
	}
}

func testBulk(t *testing.T, c transport.Conn) {
	content := bytes.Repeat([]byte(allBytes()+"\n"), 20_000) // 10 MB
	sum := sha256.New()
	out := run(t, c, transport.Cmd{Script: "echo words >&2; cat", Stdin: bytes.NewReader(content), Stdout: sum})
	if want := sha256.Sum256(content); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("bulk data came back changed")
	}
	if string(out.Stderr) != "words\n" || len(out.Stdout) != 0 {
		t.Errorf("standard error %q, kept %d", out.Stderr, len(out.Stdout))
	}
	// Input that a command does not want is no error; the status is the command's.
	out, err := c.Run(ctx(t), transport.Cmd{Script: "head -c 5; exit 9", Stdin: bytes.NewReader(content), Bulk: true})
	if out.Code != 9 || string(out.Stdout) != string(content[:5]) {
		t.Errorf("status %d, %q, %v", out.Code, out.Stdout, err)
	}
}

type brokenWriter struct{ room int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.room -= len(p); b.room < 0 {
		return 0, errors.New("disk full")
	}
	return len(p), nil
}

// When the receiver of a stream fails, the command is ended and the receiver's error is what is returned.
func testBulkEnds(t *testing.T, c transport.Conn) {
	mark := seconds()
	_, err := c.Run(ctx(t), transport.Cmd{Script: "cat /dev/zero & sleep " + mark, Stdout: &brokenWriter{1 << 20}})
	if err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v", err)
	}
	if alive(mark) != 0 {
		t.Error("the command still runs")
	}
}

// echo serves connections that get back what they send.
func echo(t *testing.T, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stopped, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { _ = l.Close(); stop(); wg.Wait() })
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(stopped, func() { _ = conn.Close() })
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return l.Addr().String()
}

func testDial(t *testing.T, c transport.Conn) {
	socket := filepath.Join(tempDir(t), "echo, s")
	addrs := map[string]string{"tcp": echo(t, "tcp", "127.0.0.1:0"), "unix": echo(t, "unix", socket)}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for network, addr := range addrs {
		conn, err := c.Dial(ctx(t), "", network, addr)
		if err != nil {
			t.Errorf("%s: %v", network, err)
			continue
		}
		checkEcho(t, conn)
	}
	for network, addr := range map[string]string{"tcp": "127.0.0.1:1", "unix": socket + ".no"} {
		if conn, err := c.Dial(ctx(t), "", network, addr); err == nil {
			t.Errorf("connected to %s %s where nobody listens", network, addr)
			_ = conn.Close()
		} else if !strings.HasPrefix(err.Error(), "cannot connect to "+addr) {
			t.Errorf("error %v", err)
		}
	}
	if _, err := c.Dial(ctx(t), "", "udp", "127.0.0.1:1"); err == nil {
		t.Error("udp was not refused")
	}
}

// checkEcho sends through an echo in both directions at once, lets a deadline pass, goes on, and closes.
func checkEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	data := []byte(strings.Repeat(allBytes(), 4000)) // 2 MB
	go func() { _, _ = conn.Write(data) }()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the echo of %d bytes is wrong: %v", len(data), err)
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Errorf("deadline: %v", err)
	}
	var timeout net.Error
	if _, err := conn.Read(got); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a read past its deadline returned %v", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	if _, err := conn.Write([]byte("again")); err != nil {
		t.Errorf("after a deadline: %v", err)
	}
	if _, err := io.ReadFull(conn, got[:5]); err != nil || string(got[:5]) != "again" {
		t.Errorf("after a deadline: %v, %q", err, got[:5])
	}
}

// No secret is visible to other users: not in any process's arguments, and in no file that others can read.
func testSecrets(t *testing.T, c transport.Conn) {
	canary := fmt.Sprintf("canary-%d-%d", os.Getpid(), lastSeconds.Add(1))
	stop := make(chan struct{})
	var seen atomic.Int64
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
	for _, bulk := range []bool{false, true} {
		run(t, c, transport.Cmd{Script: ": " + canary + "; sleep 0.1; sh -c 'sleep 0.1'", Env: map[string]string{"S": canary}, Stdin: strings.NewReader(canary), Bulk: bulk})
	}
	const own = "d=$(readlink /proc/$$/fd/1); d=${d%/*}; "
	if got := script(t, c, own+"stat -c %a $d"); got != "700\n" {
		t.Errorf("mode of the private directory: %q", got)
	}
	if got := script(t, c, own+"grep -l "+canary[:7]+" $d/*.[ieo] || :"); got != "" {
		t.Errorf("secrets are left in files: %q", got)
	}
	close(stop)
	wg.Wait()
	if seen.Load() != 0 {
		t.Errorf("the secret was %d times in a process's arguments", seen.Load())
	}
}
