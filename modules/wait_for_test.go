package modules

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func localHost(t *testing.T) *module.Host {
	t.Helper()
	conn, err := transport.Connect(t.Context(), transport.Config{Name: "local", Connection: "local"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &module.Host{Name: "local", Conn: conn}
}

func newWaitFor(t *testing.T, args map[string]any) module.Module {
	t.Helper()
	m := All()["wait_for"]()
	if err := module.Decode(m, args); err != nil {
		t.Fatal(err)
	}
	return m
}

// serve answers every connection with the greeting, "" meaning silence.
func serve(t *testing.T, greeting string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, greeting)
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func TestWaitForPort(t *testing.T) {
	host := localHost(t)
	talks, silent := serve(t, "SSH-2.0-test\r\n"), serve(t, "")
	closed := unusedPort(t)
	for name, c := range map[string]struct {
		args map[string]any
		want string // part of what is still waited for, "" if nothing
	}{
		"open":            {map[string]any{"port": silent}, ""},
		"closed":          {map[string]any{"port": closed}, "stopped: "},
		"stopped":         {map[string]any{"port": closed, "state": "stopped"}, ""},
		"not stopped":     {map[string]any{"port": silent, "state": "stopped"}, "started"},
		"greeting":        {map[string]any{"port": talks, "search_regex": "^SSH-2"}, ""},
		"other greeting":  {map[string]any{"port": talks, "search_regex": "^HTTP", "connect_timeout": 0.2}, `started, and says "SSH-2.0-test\r\n"`},
		"silent greeting": {map[string]any{"port": silent, "search_regex": "x", "connect_timeout": 0.2}, `started, and says ""`},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := newWaitFor(t, c.args).Check(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case c.want == "" && len(plan.Changes) > 0:
				t.Errorf("plan is %+v", plan)
			case c.want != "" && (len(plan.Changes) != 1 || !strings.HasPrefix(plan.Changes[0].Before, c.want)):
				t.Errorf("plan is %+v, want %q", plan, c.want)
			}
		})
	}
}

func unusedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// What is not there yet is there after Apply, and a second Check finds nothing to wait for.
func TestWaitForComes(t *testing.T) {
	host := localHost(t)
	path := filepath.Join(t.TempDir(), "socket")
	m := newWaitFor(t, map[string]any{"path": path, "sleep": 0.02, "timeout": "10s"})
	plan, err := m.Check(t.Context(), host)
	if err != nil || len(plan.Changes) != 1 {
		t.Fatalf("plan is %+v, %v", plan, err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = os.WriteFile(path, nil, 0o600)
	}()
	if _, err := m.Apply(t.Context(), host, plan); err != nil {
		t.Fatal(err)
	}
	if plan, err := m.Check(t.Context(), host); err != nil || len(plan.Changes) > 0 {
		t.Errorf("second plan is %+v, %v", plan, err)
	}
}

// A run that is stopped stops waiting.
func TestWaitForCancelled(t *testing.T) {
	host := localHost(t)
	m := newWaitFor(t, map[string]any{"port": unusedPort(t), "timeout": "1h"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := m.Apply(ctx, host, module.Plan{}); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}
