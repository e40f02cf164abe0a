package transport_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"runbook/engine/secret"
	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// becomeWay is one way to another user.
type becomeWay struct {
	name, user string
	config     func(t *testing.T) transport.Config
}

// becomeWays: with and without a password, by sudo and su, locally and over both kinds of server.
func becomeWays() []becomeWay {
	real := func(shell, method string, password bool) func(t *testing.T) transport.Config {
		return func(t *testing.T) transport.Config {
			cfg := opensshConfig(t, shell)
			cfg.BecomeMethod = method
			if password {
				cfg.BecomePassword = becomePassword()
			}
			return cfg
		}
	}
	return []becomeWay{
		{"root by sudo without password", "root", real("/bin/bash", "sudo", false)},
		{"root by sudo with password", "root", real("/bin/dash", "sudo", true)},
		{"another by sudo, password not needed", "nobody", real("/bin/bash", "sudo", true)},
		{"another by su with password", "bash", real("/bin/dash", "su", true)},
		{"another by su from csh", "dash", real("/bin/csh", "su", true)},
		{"local root to another by sudo", "nobody", func(t *testing.T) transport.Config { return transport.Config{Connection: "local"} }},
		{"local root to another by su", "nobody", func(t *testing.T) transport.Config {
			return transport.Config{Connection: "local", BecomeMethod: "su"}
		}},
		{"in-process root to another by su", "nobody", func(t *testing.T) transport.Config {
			cfg := startServer(t, sshtest.Options{}).Config()
			cfg.BecomeMethod = "su"
			return cfg
		}},
	}
}

func TestBecome(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("users to become need root")
	}
	t.Parallel()
	for _, way := range becomeWays() {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			cfg := way.config(t)
			user := way.user
			if user == "bash" || user == "dash" {
				user = userWith("/bin/" + user)
			}
			c := connect(t, cfg)
			u := as{c, user}
			stop := watchArguments(t, cfg.BecomePassword)
			defer stop()
			out := run(t, u, transport.Cmd{Script: "id -un; printf %s \"$HOME\" >&2"})
			if string(out.Stdout) != user+"\n" || strings.Contains(string(out.Stderr), cfg.User) && cfg.User != "" {
				t.Fatalf("%q, home %q", out.Stdout, out.Stderr)
			}
			if got := script(t, c, "id -un"); got == user+"\n" {
				t.Errorf("the login user is %q", got)
			}
			content := strings.Repeat(allBytes(), 1000) // 0.5 MB
			for _, bulk := range []bool{false, true} {
				cmd := transport.Cmd{Script: "id -un >&2; cat; exit 5", Stdin: strings.NewReader(content), Bulk: bulk, Env: map[string]string{"X": "y"}}
				out, err := u.Run(ctx(t), cmd)
				if out.Code != 5 || string(out.Stderr) != user+"\n" || string(out.Stdout) != content {
					t.Errorf("bulk %v: status %d, %q, %d bytes of %d, %v", bulk, out.Code, out.Stderr, len(out.Stdout), len(content), err)
				}
				mark := seconds()
				_, err = u.Run(ctx(t), transport.Cmd{Script: "sleep " + mark + " & sleep " + mark, Timeout: 300 * time.Millisecond, Bulk: bulk})
				var late *transport.TimeoutError
				if !errors.As(err, &late) || alive(mark) != 0 {
					t.Errorf("bulk %v: a timeout gave %v and left %d processes", bulk, err, alive(mark))
				}
			}
			testDialAs(t, c, user)
		})
	}
}

// watchArguments looks for a password in every process's arguments and environment until it is told to stop.
func watchArguments(t *testing.T, password secret.Secret) func() {
	if password.IsZero() {
		return func() {}
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			more, _ := filepath.Glob("/proc/[0-9]*/environ")
			for _, f := range append(files, more...) {
				if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(password.Reveal())) {
					t.Errorf("the password is in %s: %q", f, b)
					return
				}
			}
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() { close(end); wg.Wait() }
}

// testDialAs opens a unix socket as user, which the server sees by the peer's credentials: what databases look at.
func testDialAs(t *testing.T, c transport.Conn, user string) {
	t.Helper()
	socket := filepath.Join(tempDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	uids := make(chan uint32, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		raw, _ := conn.(*net.UnixConn).SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
				uids <- cred.Uid
			}
		})
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}()
	conn, err := c.Dial(ctx(t), user, "unix", socket)
	if err != nil {
		t.Fatalf("Dial as %s: %v", user, err)
	}
	want := strings.TrimSpace(script(t, as{c, user}, "id -u"))
	if got := fmt.Sprint(<-uids); got != want {
		t.Errorf("the server sees uid %s, want %s", got, want)
	}
	checkEcho(t, conn)
	if conn, err := c.Dial(ctx(t), user, "unix", socket+".no"); err == nil {
		_ = conn.Close()
		t.Error("connected to a socket that is not there")
	} else if !strings.Contains(err.Error(), "such") {
		t.Errorf("a socket that is not there: %v", err)
	}
}

// Every relay will do: where one is missing, the next is taken.
func TestRelays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("users to become need root")
	}
	t.Parallel()
	for _, tools := range [][]string{{"perl"}, {"socat"}, {"python3"}, {}} {
		name := strings.Join(tools, "")
		bin := tempDir(t)
		for _, tool := range append([]string{"sh", "cat", "id", "sleep", "su", "grep", "setsid", "rm", "mkdir", "dd", "printf"}, tools...) {
			path, err := exec.LookPath(tool)
			if err == nil && strings.Contains(path, "shims") {
				path = "/usr/bin/" + tool
				_, err = os.Stat(path)
			}
			if err != nil {
				continue
			}
			if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
				t.Fatal(err)
			}
		}
		if len(tools) > 0 {
			if _, err := os.Stat(filepath.Join(bin, tools[0])); err != nil {
				t.Logf("there is no %s here", tools[0])
				continue
			}
		}
		// With su, PATH stays as the server sets it; without forwarding, TCP takes the relay, too.
		cfg := startServer(t, sshtest.Options{NoForward: true, Env: []string{"PATH=" + bin, "ENV=/dev/null"}}).Config()
		cfg.BecomeMethod = "su"
		c := connect(t, cfg)
		addrs := map[string]string{"tcp": echo(t, "tcp", "127.0.0.1:0"), "unix": echo(t, "unix", filepath.Join(tempDir(t), "e,c:h o"))}
		for network, addr := range addrs {
			conn, err := c.Dial(ctx(t), "", network, addr)
			if len(tools) == 0 {
				if err == nil || !strings.Contains(err.Error(), "perl, socat, nc (with -U) or python3") {
					t.Errorf("without any tool: %v", err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", name, network, err)
				continue
			}
			checkEcho(t, conn)
		}
	}
}

// Refusals are told apart, in time, and asking again does not try again.
func TestBecomeRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("users to become need root")
	}
	t.Parallel()
	for _, test := range []struct {
		name, user string
		config     func(*transport.Config)
		shell      string
		want       string
	}{
		{"sudo, wrong password", "root", func(c *transport.Config) { c.BecomePassword = secret.New("wrong") }, "/bin/dash", "wrong password"},
		{"sudo, no password", "root", func(c *transport.Config) {}, "/bin/dash", "a password is asked for and none was given"},
		{"sudo, not allowed", "root", func(c *transport.Config) { c.BecomePassword = becomePassword() }, "/bin/csh", "not in the sudoers file"},
		{"sudo, no such user", "no-such-user", func(c *transport.Config) {}, "/bin/bash", "no-such-user"},
		{"su, wrong password", "root", func(c *transport.Config) { c.BecomeMethod = "su"; c.BecomePassword = secret.New("wrong") }, "/bin/dash", "wrong password"},
		{"su, no password", "root", func(c *transport.Config) { c.BecomeMethod = "su" }, "/bin/dash", "a password is asked for and none was given"},
		{"not a name", "a;id", func(c *transport.Config) {}, "/bin/bash", "not a user name"},
		{"an option", "-s", func(c *transport.Config) {}, "/bin/bash", "not a user name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := opensshConfig(t, test.shell)
			test.config(&cfg)
			c := connect(t, cfg)
			for _, bulk := range []bool{false, true} {
				start := time.Now()
				_, err := c.Run(ctx(t), transport.Cmd{Args: []string{"id"}, User: test.user, Bulk: bulk})
				var refused *transport.BecomeError
				if !errors.As(err, &refused) || !strings.Contains(refused.Reason, test.want) {
					t.Errorf("bulk %v: %v, want %q", bulk, err, test.want)
				}
				if took := time.Since(start); took > 15*time.Second || bulk && took > time.Second {
					t.Errorf("bulk %v: refused after %s", bulk, took)
				}
			}
			if got := script(t, c, "echo goes on"); got != "goes on\n" {
				t.Errorf("%q", got)
			}
		})
	}
}
