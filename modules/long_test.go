package modules

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// cutOff begins Apply of a task over a connection that is cut as soon as reached exists, and returns the host as who goes on
// with the run sees it: over another connection, with the same JobID.
func cutOff(t *testing.T, host *module.Host, m module.Module, plan module.Plan, reached string) *module.Host {
	t.Helper()
	server, err := sshtest.Start(t.TempDir(), sshtest.Options{Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	link := func() *module.Host {
		conn, err := transport.Connect(t.Context(), server.Config())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		h := *host
		h.Conn = conn
		return &h
	}
	first := link()
	first.JobID = "test-" + transport.NewJobID()
	done := make(chan error, 1)
	go func() {
		_, err := m.Apply(t.Context(), first, plan)
		done <- err
	}()
	for range 300 {
		if _, err := os.Stat(reached); err == nil {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("it ended before %s: %v", reached, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	_ = first.Conn.Close()
	var lost *transport.UnreachableError
	if err := <-done; !errors.As(err, &lost) || !lost.MayHave {
		t.Fatalf("when its link was cut, Apply said: %v", err)
	}
	second := link()
	second.JobID = first.JobID
	t.Cleanup(func() {
		h := *host
		h.JobID = first.JobID
		interrupted, interrupt := context.WithCancel(context.Background())
		interrupt()
		_, _ = transport.AwaitJob(interrupted, h.Conn, h.User, h.JobID, nil)
		_ = h.ForgetLong(context.Background())
	})
	if state, err := second.LongState(t.Context()); state != transport.JobRunning || err != nil {
		t.Fatalf("after the cut the job is %v, %v", state, err)
	}
	return second
}

// goOn does what the engine does with a task that was under way: it waits for the job, checks, and applies.
func goOn(t *testing.T, host *module.Host, name string, args map[string]any, open string) module.Values {
	t.Helper()
	if err := os.WriteFile(open, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if state, err := host.AwaitLong(t.Context(), makeModule(t, name, args)); state != transport.JobEnded || err != nil {
		t.Fatalf("waited for, the job is %v, %v", state, err)
	}
	plan, err := makeModule(t, name, args).Check(t.Context(), host)
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	values, err := makeModule(t, name, args).Apply(t.Context(), host, plan)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if state, err := host.LongState(t.Context()); state != transport.JobNone || err != nil {
		t.Errorf("when it was collected the job is %v, %v", state, err)
	}
	return values
}

func once(t *testing.T, runs string) {
	t.Helper()
	if text, err := os.ReadFile(runs); err != nil || string(text) != "x\n" {
		t.Errorf("it was started %d times (%v)", len(text)/2, err)
	}
}

func TestCommandLinkLost(t *testing.T) {
	dir := t.TempDir()
	args := map[string]any{"shell": "echo x >>" + dir + "/runs; read -r s; until [ -e " + dir + "/open ]; do sleep 0.05; done; echo got $s; exit 3",
		"stdin": "words\n", "ok_codes": []any{3}}
	m := makeModule(t, "command", args)
	m.(module.Long).Detach(true)
	host := cutOff(t, packageHost(t, nil), m, module.Plan{}, dir+"/runs")
	if err := os.WriteFile(dir+"/open", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m = makeModule(t, "command", args)
	m.(module.Long).Detach(true)
	values, err := m.Apply(t.Context(), host, module.Plan{})
	if err != nil || values["stdout"] != "got words" || values["rc"] != 3 {
		t.Errorf("%v, %v", values, err)
	}
	once(t, dir+"/runs")
	// The outcome was handed over: the next Apply is another one.
	next := *host
	if values, err = m.Apply(t.Context(), &next, module.Plan{}); err == nil || !strings.Contains(err.Error(), "second long step") {
		t.Errorf("twice in one Apply: %v, %v", values, err)
	}
}

// A package transaction goes on when the link is cut in the middle of a package's script: nothing is left half installed.
func TestPackageLinkLost(t *testing.T) {
	p := newAptRoot(t)
	p.deb("slow", "1", "Depends: gamma\n", "#!/bin/sh\necho x >>$DPKG_ROOT/runs\nuntil [ -e $DPKG_ROOT/open ]; do sleep 0.1; done\n")
	p.index()
	args := map[string]any{"name": "slow", "update_cache": true}
	plan := p.mustCheck(args)
	host := cutOff(t, p.host, makeModule(t, "package", args), plan, p.root+"/runs")
	shown, waited := make(chan string, 100), make(chan error, 1)
	watching := *host
	watching.ProgressFunc = func(text string) { shown <- text }
	go func() {
		_, err := watching.AwaitLong(t.Context(), makeModule(t, "package", args))
		waited <- err
	}()
	select {
	case text := <-shown:
		p.want("progress", text, "Setting up slow (1) ...")
	case <-time.After(20 * time.Second):
		t.Error("no progress is shown")
	}
	// Whoever looks meanwhile sees what is under way.
	if plan, err := makeModule(t, "package", args).Check(t.Context(), host); err != nil || len(plan.Changes) == 0 {
		t.Errorf("while it runs: %+v, %v", plan.Changes, err)
	}
	values := goOn(t, host, "package", args, p.root+"/open")
	p.want("installed", p.installed(), "gamma 1, slow 1")
	once(t, p.root+"/runs")
	if got := values["packages"].([]any); len(got) != 1 || got[0] != "slow" { // the lists were yet to be fetched
		t.Errorf("packages %v", got)
	}
	if got := values["versions"].(map[string]any); got["slow"] != "1" {
		t.Errorf("versions %v", got)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	p.want("again", p.apply(args), "")
}

// A dump and an import go on when the link is cut, and are collected and not begun again: an import that is begun again
// drops what the first one loads.
func TestMySQLLinkLost(t *testing.T) {
	source, replica := startPair(t)
	source.changes("mysql_database", source.on(map[string]any{"name": "voms_lab"}))
	source.sql("CREATE TABLE voms_lab.usr (id INT PRIMARY KEY)", "INSERT INTO voms_lab.usr VALUES (1), (2)")
	gated := func(s *labServer, program, after string) string {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		wrapper := filepath.Join(s.dir, program)
		text := "#!/bin/sh\ncase $* in --version) exec " + path + " \"$@\" ;; esac\n" + path + " \"$@\" || exit\necho x >>" + s.dir + "/runs\nuntil [ -e " + s.dir + "/open ]; do sleep 0.1; done\n" + after
		if err := os.WriteFile(wrapper, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return wrapper
	}
	dump := filepath.Join(source.dir, "dump.sql")
	args := source.on(map[string]any{"databases": []any{"voms_lab"}, "dest": dump, "program": gated(source, "mariadb-dump", "")})
	plan, err := source.check("mysql_dump", args)
	if err != nil {
		t.Fatal(err)
	}
	host := cutOff(t, source.host, makeModule(t, "mysql_dump", args), plan, source.dir+"/runs")
	values := goOn(t, host, "mysql_dump", args, source.dir+"/open")
	once(t, source.dir+"/runs")
	if values["tables"] != 1 || values["log_file"] == "" {
		t.Errorf("the dump: %v", values)
	}
	if _, again := source.must("mysql_dump", args); again {
		t.Error("the dump was taken again")
	}

	args = replica.on(map[string]any{"databases": []any{"voms_lab"}, "src": dump, "overwrite": true, "program": gated(replica, "mariadb", "")})
	if plan, err = replica.check("mysql_import", args); err != nil {
		t.Fatal(err)
	}
	host = cutOff(t, replica.host, makeModule(t, "mysql_import", args), plan, replica.dir+"/runs")
	// The controller that goes on dies in its turn, between the mark that the import is complete and its own record.
	if err := os.WriteFile(replica.dir+"/open", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dies := *host
	dies.KeepJob = true
	if _, err := makeModule(t, "mysql_import", args).Apply(t.Context(), &dies, plan); err != nil {
		t.Fatal(err)
	}
	replica.sql("UPDATE runbook.imports SET finished = '2001-02-03 04:05:06'")
	values = goOn(t, host, "mysql_import", args, replica.dir+"/open")
	if finished, _ := values["finished"].(string); !strings.HasPrefix(finished, "2001-02-03") {
		t.Errorf("the import is finished a second time: %v", values)
	}
	once(t, replica.dir+"/runs")
	if values["tables"] != 1 || replica.value("SELECT COUNT(*) FROM voms_lab.usr") != 2 {
		t.Errorf("the import: %v", values)
	}
	if _, again := replica.must("mysql_import", args); again {
		t.Error("the import was done again")
	}
}
