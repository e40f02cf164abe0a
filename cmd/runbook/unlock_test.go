package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"runbook/engine/transport"
	"runbook/inventory"
)

// locked is a host, this one, that a run of a controller elsewhere has locked, and the inventory of it.
func locked(t *testing.T) (run transport.Conn, file string) {
	t.Helper()
	t.Setenv("RUNBOOK_LOCK_DIR", t.TempDir())
	run, err := transport.Connect(context.Background(), transport.Config{Name: "here", Connection: "local"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = run.Close() })
	holder := transport.Holder{Run: "20261126-101530-k3f9", User: "alice", Controller: "ctl.example.org", PID: 4711, Mark: "x"}
	if _, _, err := transport.Lock(context.Background(), run, "", holder); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "site.yml")
	if err := os.WriteFile(file, []byte("groups: {all: {connection: local, hosts: {here: {}}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return run, file
}

func works(t *testing.T, run transport.Conn) bool {
	t.Helper()
	_, err := run.Run(context.Background(), transport.Cmd{Args: []string{"true"}})
	return err == nil
}

func TestUnlock(t *testing.T) {
	run, file := locked(t)
	unlock := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, errs bytes.Buffer
		if got := program(append([]string{"unlock"}, args...), &out, &errs); got != want {
			t.Errorf("%q: exit code %d, want %d: %s%s", args, got, want, &out, &errs)
		}
		return out.String(), errs.String()
	}
	for _, args := range [][]string{{}, {"here"}, {"here", "-i", file}, {"here", "-i", file, "--reason", " \n", "--yes"},
		{"nobody", "-i", file, "--reason", "x", "--yes"}, {"here", "-i", file, "--reason", strings.Repeat("x", 201), "--yes"}} {
		if out, _ := unlock(exitBadInput, args...); out != "" || !works(t, run) {
			t.Errorf("%q: %s", args, out)
		}
	}
	out, errs := unlock(exitDone, "here", "-i", file, "--reason", "alice's  network is\ngone", "--yes")
	if _, err := os.Stat("/dev/log"); err != nil && !strings.Contains(errs, "here: there is no log on the host") {
		t.Errorf("without a log: %q", errs)
	}
	for _, part := range []string{"here: locked by run 20261126-101530-k3f9 of alice on ctl.example.org (process 4711), since 20",
		"here: the lock of run 20261126-101530-k3f9 was ended: alice's network is gone\n"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in %q", part, out)
		}
	}
	for end := time.Now().Add(10 * time.Second); works(t, run); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the run that had the lock goes on")
		}
	}
	if out, _ := unlock(exitDone, "here", "-i", file, "--reason", "again", "--yes"); out != "here: nobody holds a lock\n" {
		t.Errorf("the second time: %q", out)
	}
}

// A lock is ended for a person who says yes, and for nobody else.
func TestUnlockAsks(t *testing.T) {
	run, _ := locked(t)
	var out, errs bytes.Buffer
	u := &unlocking{reason: "it hangs", out: &out, errs: &errs, dial: func(ctx context.Context, h *inventory.Host) (transport.Conn, error) {
		return transport.Connect(ctx, transport.Config{Name: h.Name, Connection: "local"})
	}}
	hosts := []*inventory.Host{{Name: "here"}}
	for _, answer := range []string{"", "y", "no", "eof", "yes"} {
		u.ask = func(context.Context, string) (string, error) {
			if answer == "eof" {
				return "", errors.New("cannot ask")
			}
			return answer + "\n", nil
		}
		out.Reset()
		err := u.all(context.Background(), hosts)
		if asked := strings.Contains(out.String(), "here: locked by run 20261126-101530-k3f9 of alice"); !asked {
			t.Errorf("%q: shown %q", answer, &out)
		}
		if answer == "yes" {
			if err != nil || !strings.Contains(out.String(), "was ended: it hangs") {
				t.Errorf("yes: %v, %q", err, &out)
			}
			continue
		}
		var ended *exitError
		if !errors.As(err, &ended) || ended.code != exitFailed || !works(t, run) {
			t.Errorf("%q: %v, %q", answer, err, &out)
		}
	}
}
