package transport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"runbook/engine/secret"
	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// wantUnreachable checks that err says so, and returns it.
func wantUnreachable(t *testing.T, err error) *transport.UnreachableError {
	t.Helper()
	var lost *transport.UnreachableError
	if !errors.As(err, &lost) {
		t.Fatalf("error %v, want an UnreachableError", err)
	}
	return lost
}

// tarpit takes connections and does f with each.
func tarpit(t *testing.T, f func(net.Conn)) transport.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() { defer wg.Done(); defer conn.Close(); f(conn) }()
		}
	}()
	dir := t.TempDir()
	if _, err := sshtest.NewKey(filepath.Join(dir, "key"), ""); err != nil {
		t.Fatal(err)
	}
	return transport.Config{Name: "tarpit", Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "u", SSHConfig: "none",
		Identities: []string{filepath.Join(dir, "key")}, KnownHosts: filepath.Join(dir, "known_hosts"), ConnectTimeout: 300 * time.Millisecond}
}

// The limit on connecting holds for a server that says nothing, says it slowly, or never stops talking, and so does one on memory, which is why no
// other test runs beside it.
func TestConnectLimit(t *testing.T) {
	for name, f := range map[string]func(net.Conn){
		"silent": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"slow": func(c net.Conn) {
			for _, b := range []byte("SSH-2.0-slow" + strings.Repeat("x", 1000)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		},
		"endless": func(c net.Conn) {
			for {
				if _, err := c.Write([]byte("a line before the version\r\n")); err != nil {
					return
				}
			}
		},
		"endless, without an end of line": func(c net.Conn) {
			for text := bytes.Repeat([]byte("SSH-2.0-"), 1<<17); ; {
				if _, err := c.Write(text); err != nil {
					return
				}
			}
		},
		"version, then silence": func(c net.Conn) {
			_, _ = c.Write([]byte("SSH-2.0-x\r\n"))
			_, _ = io.Copy(io.Discard, c)
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		_, err := transport.Connect(ctx(t), tarpit(t, f))
		lost := wantUnreachable(t, err)
		if took := time.Since(start); took > 5*time.Second || lost.MayHave {
			t.Errorf("%s: %v after %s", name, err, took)
		}
		if runtime.ReadMemStats(&after); after.HeapSys > before.HeapSys+64<<20 {
			t.Errorf("%s: the heap grew by %d MiB", name, (after.HeapSys-before.HeapSys)>>20)
		}
	}
	cancelled, cancel := context.WithCancel(ctx(t))
	time.AfterFunc(50*time.Millisecond, cancel)
	cfg := tarpit(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	cfg.ConnectTimeout = 0
	if _, err := transport.Connect(cancelled, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A link that falls silent is found by the keepalive, and everything that waits for it is told.
func TestSilentDrop(t *testing.T) {
	t.Parallel()
	// The shell is ended in the middle of a command, and leaves its directory.
	s := startServer(t, sshtest.Options{Env: []string{"TMPDIR=" + t.TempDir()}})
	cfg := s.Config()
	cfg.Keepalive = 400 * time.Millisecond
	c := connect(t, cfg)
	time.Sleep(2 * time.Second)
	script(t, c, "echo an idle link is not a dead one")
	socket := echo(t, "tcp", "127.0.0.1:0")
	tunnel, err := c.Dial(ctx(t), "", "tcp", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()

	start := time.Now()
	errs := make(chan error, 4)
	sent := make(chan struct{})
	go func() {
		_, err := c.Run(ctx(t), transport.Cmd{Args: []string{"sleep", "30"}, Sent: func() { close(sent) }})
		errs <- err
	}()
	<-sent
	go func() { _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"true"}}); errs <- err }()
	go func() { _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"sleep", "30"}, Bulk: true}); errs <- err }()
	go func() { _, err := tunnel.Read(make([]byte, 1)); errs <- err }()
	time.Sleep(1500 * time.Millisecond) // the bulk command has begun by then
	s.Stall()
	for range 4 {
		if lost := wantUnreachable(t, <-errs); !lost.MayHave || !strings.Contains(lost.Error(), "no sign of life") {
			t.Errorf("error %v", lost)
		}
	}
	if took := time.Since(start); took > 6*time.Second {
		t.Errorf("the drop was found after %s", took)
	}
	_, err = c.Run(ctx(t), transport.Cmd{Args: []string{"true"}})
	if lost := wantUnreachable(t, err); lost.MayHave {
		t.Errorf("after the drop, a command that was never sent: %v", err)
	}
	_, err = c.Dial(ctx(t), "", "tcp", socket)
	wantUnreachable(t, err)
}

// However long before it the link was last heard of, a silent drop is found within four intervals of the keepalive: a minute.
func TestSilentDropInTime(t *testing.T) {
	t.Parallel()
	const interval = 2 * time.Second
	var drops sync.WaitGroup
	for _, idle := range []time.Duration{0, interval / 4, interval / 2, interval * 3 / 4} {
		s := startServer(t, sshtest.Options{})
		cfg := s.Config()
		cfg.Keepalive = interval
		c := connect(t, cfg)
		drops.Go(func() {
			time.Sleep(idle)
			if _, err := c.Run(ctx(t), transport.Cmd{Script: ":"}); err != nil {
				t.Error(err)
			}
			s.Stall()
			start := time.Now()
			_, err := c.Run(ctx(t), transport.Cmd{Script: ":"})
			var lost *transport.UnreachableError
			if took := time.Since(start); !errors.As(err, &lost) || took > 4*interval || took < 3*interval {
				t.Errorf("a drop %s after the login was found after %s: %v", idle, took, err)
			}
		})
	}
	drops.Wait()
}

// A link that falls silent while a shell is started, or before a command's time is over, is not taken for a host that refuses, nor for a
// command that was ended.
func TestSilentEarly(t *testing.T) {
	restore := transport.SetStartLimit(300 * time.Millisecond)
	defer restore()
	for name, cmd := range map[string]transport.Cmd{
		"login":          {Script: ":"},
		"login, bulk":    {Script: ":", Bulk: true},
		"become":         {Script: ":", User: "nobody"},
		"become, bulk":   {Script: ":", User: "nobody", Bulk: true},
		"password":       {Script: ":", User: "daemon"},
		"password, bulk": {Script: ":", User: "daemon", Bulk: true},
	} {
		dir := t.TempDir()
		begun, shell := filepath.Join(dir, "begun"), filepath.Join(dir, "shell")
		if err := os.WriteFile(shell, []byte("#!/bin/sh\n: >"+begun+"\nexec sleep 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		s := startServer(t, sshtest.Options{Shell: shell})
		cfg := s.Config()
		cfg.Keepalive = 400 * time.Millisecond
		if cmd.User == "daemon" {
			cfg.BecomePassword = secret.New("of nobody")
		}
		c := connect(t, cfg)
		failed := make(chan error, 1)
		go func() { _, err := c.Run(ctx(t), cmd); failed <- err }()
		waitFor(t, "the shell to be started", func() bool { _, err := os.Stat(begun); return err == nil })
		s.Stall()
		err := <-failed
		var lost *transport.UnreachableError
		if !errors.As(err, &lost) || !strings.Contains(err.Error(), "no sign of life") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A command whose time is over on a link that has fallen silent may be going on.
func TestSilentTimeout(t *testing.T) {
	t.Parallel()
	for _, bulk := range []bool{false, true} {
		for _, deadline := range []bool{false, true} {
			s := startServer(t, sshtest.Options{Env: []string{"TMPDIR=" + t.TempDir()}})
			cfg := s.Config()
			cfg.Keepalive = time.Second
			c := connect(t, cfg)
			script(t, c, ":")
			begun := filepath.Join(t.TempDir(), "begun")
			cmd := transport.Cmd{Script: "echo >" + begun + "; sleep 20", Bulk: bulk}
			limited, cancel := ctx(t), func() {}
			if deadline {
				limited, cancel = context.WithTimeout(limited, time.Second)
			} else {
				cmd.Timeout = time.Second
			}
			failed := make(chan error, 1)
			go func() { _, err := c.Run(limited, cmd); failed <- err }()
			waitFor(t, "the command to begin", func() bool { _, err := os.Stat(begun); return err == nil })
			s.Stall()
			var lost *transport.UnreachableError
			if err := <-failed; !errors.As(err, &lost) || !lost.MayHave {
				t.Errorf("bulk %v, deadline %v: %v", bulk, deadline, err)
			}
			cancel()
		}
	}
}

// Wherever a connection is cut, the answer is never that the command ran, nor that it failed.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, k := range []int64{0, 1, 16, 17, 64, 100, 200, 500, 1000, 3000, 10_000, 50_000, 100_000, 150_000} {
		for _, bulk := range []bool{false, true} {
			s := startServer(t, sshtest.Options{})
			c := connect(t, s.Config())
			script(t, c, ":")
			s.CutAfter(k)
			out, err := c.Run(ctx(t), transport.Cmd{Script: "head -c 200000 /dev/zero; exit 3", Bulk: bulk})
			lost := wantUnreachable(t, err)
			// Before a session of its own is there, the command cannot have run.
			if !lost.MayHave && !(bulk && k < 1000) {
				t.Errorf("cut after %d, bulk %v: %v", k, bulk, err)
			}
			if out.Code != 0 {
				t.Errorf("cut after %d, bulk %v: a status of %d", k, bulk, out.Code)
			}
			_ = c.Close()
			s.Close()
		}
	}
}

// An exit status that never comes is not 0.
func TestNoStatus(t *testing.T) {
	t.Parallel()
	c := connect(t, startServer(t, sshtest.Options{NoStatus: true}).Config())
	out, err := c.Run(ctx(t), transport.Cmd{Script: "echo done", Bulk: true})
	if lost := wantUnreachable(t, err); !lost.MayHave || string(out.Stdout) != "done\n" {
		t.Errorf("%v, %q", err, out.Stdout)
	}
}

// The host is the enemy: whatever it sends in place of a reply is an error, and bounded.
func TestGarbled(t *testing.T) {
	t.Parallel()
	for name, shell := range map[string]string{
		"not a shell":     "#!/bin/sh\necho This account is not available. >&2\nexit 1\n",
		"garbage":         "#!/bin/sh\nexec cat /dev/zero\n",
		"echo":            "#!/bin/sh\nexec cat\n",
		"greets and lies": "#!/bin/sh\nwhile read -r a b c d e f; do case $c in rb*) echo; echo $c 1 /tmp; head -c 20000000 /dev/zero; exit;; esac; done\n",
	} {
		path := filepath.Join(t.TempDir(), "sh")
		if err := os.WriteFile(path, []byte(shell), 0o755); err != nil {
			t.Fatal(err)
		}
		c := connect(t, startServer(t, sshtest.Options{Shell: path}).Config())
		short, cancel := context.WithTimeout(ctx(t), 2*time.Second)
		out, err := c.Run(short, transport.Cmd{Script: "echo a"})
		cancel()
		if err == nil || len(out.Stdout) > 0 {
			t.Errorf("%s: %q without an error", name, out.Stdout)
		}
		if name == "not a shell" && !strings.Contains(err.Error(), "This account is not available") {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.Close()
	}
}

// Close ends what waits, and a closed Conn says so.
func TestClose(t *testing.T) {
	t.Parallel()
	s := startServer(t, sshtest.Options{})
	for name, cfg := range map[string]transport.Config{"local": {Connection: "local"}, "ssh": s.Config()} {
		c := connect(t, cfg)
		mark := seconds()
		errs := make(chan error, 3)
		go func() { _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"sleep", mark}}); errs <- err }()
		go func() { _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"sleep", mark}, Bulk: true}); errs <- err }()
		waitFor(t, "the commands to begin", func() bool { return alive(mark) >= 2 })
		go func() { _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"true"}}); errs <- err }()
		time.Sleep(50 * time.Millisecond)
		if err := c.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		for range 3 {
			wantUnreachable(t, <-errs)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: Close again: %v", name, err)
		}
		_, err := c.Run(ctx(t), transport.Cmd{Args: []string{"true"}})
		wantUnreachable(t, err)
		_, err = c.Dial(ctx(t), "", "tcp", "127.0.0.1:1")
		wantUnreachable(t, err)
		local := connect(t, transport.Config{Connection: "local"})
		script(t, local, fmt.Sprintf("kill $(ps -eo pid=,args= | awk '/^ *[0-9]+ [s]leep %s/ {print $1}') 2>/dev/null || :", mark))
	}
}

// A bulk command that is given up before the host has said who it is has not begun: nobody could end it. The link is slow, so that the
// moments before and after are told apart.
func TestGivenUpEarly(t *testing.T) {
	t.Parallel()
	s := startServer(t, sshtest.Options{RTT: 200 * time.Millisecond})
	c := connect(t, s.Config())
	var marks []string
	for patience := 50 * time.Millisecond; patience < 1500*time.Millisecond; patience += 100 * time.Millisecond {
		mark := seconds()
		marks = append(marks, mark)
		short, cancel := context.WithTimeout(ctx(t), patience)
		_, err := c.Run(short, transport.Cmd{Args: []string{"sleep", mark}, Bulk: true})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up after %s: %v", patience, err)
		}
	}
	for _, mark := range marks {
		waitFor(t, "a command that was given up to be gone", func() bool { return alive(mark) == 0 })
	}
}
