package acceptance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"runbook/acceptance/lab"
)

// program is the path of the binary under test; crashing that of one which dies at a chosen moment of its record.
var program, crashing string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "runbook-acceptance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program, crashing = filepath.Join(dir, "runbook"), filepath.Join(dir, "crashing")
	for _, args := range [][]string{{"-o", program}, {"-tags", "crash", "-o", crashing}} {
		build := exec.Command("go", append(append([]string{"build"}, args...), "runbook/cmd/runbook")...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is shipped
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "cannot build the program under test: %v\n%s", err, out)
			return 1
		}
	}
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupts
		for _, l := range labs.all() {
			if err := l.Down(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
		os.Exit(130)
	}()
	return m.Run()
}

func TestScripts(t *testing.T) {
	if why := lab.Unavailable(); why != "" {
		if os.Getenv("CI") == "true" || os.Getenv("RUNBOOK_NO_SKIP") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			bin := filepath.Join(env.WorkDir, "bin")
			for _, dir := range []string{home, bin} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					return err
				}
			}
			env.Setenv("HOME", home)
			env.Setenv("LANG", "C.UTF-8")
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Values[scriptKey{}] = &script{prints: map[string]map[string]lab.Fingerprint{}}
			// Until there is a lab, the program runs here: for what needs no hosts.
			return os.Symlink(program, filepath.Join(bin, "runbook"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"lab":        command(labCommand),
			"runbook":    command(func(ts *testscript.TestScript, args []string) error { return ts.Exec("runbook", args...) }),
			"exits":      exits,
			"eventually": command(eventually),
		},
	})
}

// script is what the commands of one script share.
type script struct {
	lab     *lab.Lab
	prints  map[string]map[string]lab.Fingerprint // by their name and host
	watches map[string]*lab.Watch
}

type scriptKey struct{}

// labs are those that must go when the tests are interrupted.
var labs registry

type registry struct {
	mu   sync.Mutex
	live []*lab.Lab
}

func (r *registry) add(l *lab.Lab) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = append(r.live, l)
}

func (r *registry) remove(l *lab.Lab) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = slices.DeleteFunc(r.live, func(x *lab.Lab) bool { return x == l })
}

func (r *registry) all() []*lab.Lab {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.live)
}

// slots limits how many labs are up at once.
var slots = make(chan struct{}, 2)

// command makes a script's command of a function that may fail. With ! before it, it must.
func command(f func(*testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := f(ts, args)
		var usage usageError
		switch {
		case errors.As(err, &usage):
			ts.Fatalf("%v", err)
		case neg && err == nil:
			ts.Fatalf("unexpected success")
		case !neg && err != nil:
			ts.Fatalf("%v", err)
		case err != nil:
			ts.Logf("[failed as expected: %v]", err)
		}
	}
}

// usageError is a mistake in a script, which ! must not turn into success.
type usageError string

func (e usageError) Error() string { return string(e) }

// perform runs a command by its name: lab, runbook, or a program.
func perform(ts *testscript.TestScript, args []string) error {
	if len(args) == 0 {
		return usageError("which command?")
	}
	if args[0] == "lab" {
		return labCommand(ts, args[1:])
	}
	return ts.Exec(args[0], args[1:]...)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = perform(ts, args[1:])
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func eventually(ts *testscript.TestScript, args []string) error {
	const patience = 30 * time.Second
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		err := perform(ts, args)
		var usage usageError
		switch {
		case err == nil:
			ts.Logf("[after %.1f s]", time.Since(begin).Seconds())
			return nil
		case errors.As(err, &usage):
			return err
		case time.Since(begin) > patience:
			return fmt.Errorf("still failing after %v: %w", patience, err)
		}
	}
}

// labCommand is `lab VERB ARG...`.
func labCommand(ts *testscript.TestScript, args []string) error {
	ctx := context.Background() // a test's deadline ends the whole process
	s := ts.Value(scriptKey{}).(*script)
	if len(args) == 0 {
		return usageError("lab: which verb?")
	}
	verb, args := args[0], args[1:]
	if verb == "up" {
		return s.up(ctx, ts, args)
	}
	if s.lab == nil {
		return usageError("lab: there is none before lab up")
	}
	if verb == "unwatch" {
		return s.unwatch(ts)
	}
	if len(args) == 0 {
		return usageError("lab " + verb + ": needs an argument")
	}
	switch verb {
	case "fingerprint":
		prints, err := s.fingerprints(ctx, args[1:])
		s.prints[args[0]] = prints
		return err
	case "unchanged":
		return s.unchanged(ctx, args[0])
	case "cert":
		return s.cert(ts, args)
	case "watch":
		return s.watch(args[0], args[1:])
	case "reboot":
		return s.reboot(ctx, args)
	}
	h := s.lab.Host(args[0])
	if h == nil {
		return usageError("lab: there is no host " + args[0])
	}
	switch args = args[1:]; verb {
	case "exec":
		argv, err := h.Argv(args...)
		if err != nil {
			return err
		}
		return ts.Exec(argv[0], argv[1:]...)
	case "sql":
		argv, err := h.Argv("mariadb", "-NB", "--default-character-set=utf8mb4", "-e", strings.Join(args, " "))
		if err != nil {
			return err
		}
		return ts.Exec(argv[0], argv[1:]...)
	case "seed":
		return h.Seed(ctx)
	case "stop":
		return h.Stop(ctx)
	case "crash":
		return h.Crash(ctx)
	case "start":
		return h.Start(ctx)
	case "unplug":
		return h.Unplug(ctx)
	case "plug":
		return h.Plug(ctx)
	}
	return usageError("lab: no verb " + verb)
}

// up boots hosts, in a lab of this script's own.
func (s *script) up(ctx context.Context, ts *testscript.TestScript, hosts []string) error {
	if s.lab == nil {
		slots <- struct{}{}
		ts.Defer(func() { <-slots })
		l, err := lab.New(ctx, lab.Options{Log: log{ts}})
		if err != nil {
			return err
		}
		s.lab = l
		labs.add(l)
		ts.Defer(func() {
			for _, w := range s.watches {
				if _, err := w.Stop(); err != nil {
					ts.Logf("%v", err)
				}
			}
			labs.remove(l)
			ts.Check(l.Down(ctx))
		})
		// The program under test, run where it sees the hosts. It keeps the pid, so that a script can kill it.
		wrapper := ts.MkAbs(filepath.Join(ts.Getenv("WORK"), "bin", "runbook"))
		if err := os.Remove(wrapper); err != nil {
			return err
		}
		argv := l.Controller(program)
		if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+strings.Join(argv, " ")+" \"$@\"\n"), 0o755); err != nil {
			return err
		}
	}
	if err := s.lab.Up(ctx, hosts...); err != nil {
		return err
	}
	inventory := filepath.Join(ts.Getenv("WORK"), "inventory.yml")
	if _, err := os.Stat(inventory); err == nil {
		return nil
	}
	return os.WriteFile(inventory, []byte(s.lab.Inventory()), 0o644)
}

// reboot restarts hosts, all at the same time.
func (s *script) reboot(ctx context.Context, names []string) error {
	hosts := make([]*lab.Host, len(names))
	for i, name := range names {
		if hosts[i] = s.lab.Host(name); hosts[i] == nil {
			return usageError("lab: there is no host " + name)
		}
	}
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = h.Reboot(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// log makes what a lab says part of a script's log.
type log struct{ ts *testscript.TestScript }

func (l log) Write(p []byte) (int, error) {
	l.ts.Logf("[lab] %s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func (s *script) fingerprints(ctx context.Context, hosts []string) (map[string]lab.Fingerprint, error) {
	if len(hosts) == 0 {
		return nil, usageError("lab fingerprint: of which hosts?")
	}
	prints := map[string]lab.Fingerprint{}
	for _, name := range hosts {
		h := s.lab.Host(name)
		if h == nil {
			return nil, usageError("lab: there is no host " + name)
		}
		print, err := h.Fingerprint(ctx)
		if err != nil {
			return nil, err
		}
		prints[name] = print
	}
	return prints, nil
}

func (s *script) unchanged(ctx context.Context, name string) error {
	before := s.prints[name]
	if before == nil {
		return usageError("lab unchanged: no fingerprint " + name)
	}
	var hosts []string
	for host := range before {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	after, err := s.fingerprints(ctx, hosts)
	if err != nil {
		return err
	}
	for _, host := range hosts {
		if diff := before[host].Diff(after[host]); len(diff) > 0 {
			err = errors.Join(err, fmt.Errorf("%s changed since %s:\n%s", host, name, strings.Join(diff[:min(len(diff), 60)], "\n")))
		}
	}
	return err
}

func (s *script) watch(host string, secrets []string) error {
	if len(secrets) == 0 {
		return usageError("lab watch: for which strings?")
	}
	if s.watches == nil {
		s.watches = map[string]*lab.Watch{}
	}
	if s.watches[host] != nil {
		return usageError("lab watch: " + host + " is watched already")
	}
	if host == "controller" {
		s.watches[host] = s.lab.WatchController(secrets...)
		return nil
	}
	h := s.lab.Host(host)
	if h == nil {
		return usageError("lab: there is no host " + host)
	}
	s.watches[host] = h.Watch(secrets...)
	return nil
}

func (s *script) unwatch(ts *testscript.TestScript) error {
	if len(s.watches) == 0 {
		return usageError("lab unwatch: nothing is watched")
	}
	var failed error
	for host, w := range s.watches {
		seen, err := w.Stop()
		failed = errors.Join(failed, err)
		ts.Logf("[%s: looked %d times, at most %v apart, at %d processes]", host, seen.Samples, seen.Longest, seen.Processes)
		for _, hit := range seen.Hits {
			failed = errors.Join(failed, fmt.Errorf("%s: %v", host, hit))
		}
	}
	s.watches = nil
	return failed
}

func (s *script) cert(ts *testscript.TestScript, args []string) error {
	usage := usageError("usage: lab cert NAME DIR [expired|forged]")
	if len(args) < 2 || len(args) > 3 {
		return usage
	}
	r := lab.Request{Name: args[0]}
	if !strings.Contains(r.Name, " ") { // a person otherwise
		r.DNS = args[:1]
	}
	if len(args) == 3 {
		switch args[2] {
		case "expired":
			r.NotAfter = time.Now().Add(-time.Hour)
		case "forged":
			r.Forged = true
		default:
			return usage
		}
	}
	dir := ts.MkAbs(args[1])
	return s.lab.Issue(r, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
}
