package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"runbook/engine"
	"runbook/engine/module"
	"runbook/engine/transport"
	"runbook/inventory"
	"runbook/modules"
)

// crash is a module with a bug.
type crash struct{}

func (*crash) Check(context.Context, *module.Host) (module.Plan, error) { panic("a bug") }
func (*crash) Apply(context.Context, *module.Host, module.Plan) (module.Values, error) {
	return nil, nil
}

// gauge counts how many hosts are at work at once, and lets none go on before two are.
type gauge struct{ now, most *atomic.Int32 }

func (g *gauge) Check(ctx context.Context, _ *module.Host) (module.Plan, error) {
	n := g.now.Add(1)
	defer g.now.Add(-1)
	for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
	}
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
	}
	return module.Plan{}, nil
}

func (*gauge) Apply(context.Context, *module.Host, module.Plan) (module.Values, error) {
	return nil, nil
}

// job makes a job of one book over local connections to hosts.
func job(t *testing.T, hosts, book string, more map[string]module.Factory) (engine.Job, *recorder) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "inventory.yml")
	if err := os.WriteFile(file, []byte("groups: {web: {hosts: {"+hosts+"}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	factories := modules.All()
	for name, f := range more {
		factories[name] = f
	}
	rec := &recorder{}
	return engine.Job{
		Books:     []engine.Source{{FS: fstest.MapFS{"book.yml": {Data: []byte(book)}}, Path: "book.yml"}},
		Inventory: inv, Modules: factories, Dial: local, Reporter: rec,
	}, rec
}

// TestCrash: a bug in a module fails its task; the run goes on.
func TestCrash(t *testing.T) {
	j, rec := job(t, "a: {}", "runbook: x\nplays: [{hosts: web, tasks: [{crash: {}, ignore_errors: true}, {command: {argv: ['true'], read: true}}]}]\n",
		map[string]module.Factory{"crash": func() module.Module { return &crash{} }})
	summary, err := engine.Run(t.Context(), j)
	if err != nil || summary.Totals[0].Ignored != 1 || summary.Totals[0].OK != 1 {
		t.Errorf("%v %+v\n%s", err, summary.Totals, rec.lines())
	}
	if !strings.Contains(rec.lines(), "a bug") {
		t.Errorf("the reason is missing:\n%s", rec.lines())
	}
}

// TestForks: no more hosts than forks are at work at once, and more than one is.
func TestForks(t *testing.T) {
	for _, strategy := range []string{"linear", "free"} {
		var now, most atomic.Int32
		j, _ := job(t, `"h[1:9]": {}`, "runbook: x\nplays: [{hosts: web, strategy: "+strategy+", tasks: [{gauge: {}}, {gauge: {}}]}]\n",
			map[string]module.Factory{"gauge": func() module.Module { return &gauge{&now, &most} }})
		j.Forks = 3
		summary, err := engine.Run(t.Context(), j)
		if err != nil || summary.Failed() {
			t.Fatal(err, summary)
		}
		if got := most.Load(); got < 2 || got > 3 {
			t.Errorf("%s: %d hosts were at work at once, forks is 3", strategy, got)
		}
	}
}

// TestInterrupt: when the context ends, what runs is ended, nothing new is started, and the summary says so.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	j, rec := job(t, "a: {}, b: {}", "runbook: x\nplays: [{hosts: web, tasks: [{name: long, command: {argv: [sleep, '60'], read: true}}, {name: never, command: {argv: ['true']}}]}]\n", nil)
	time.AfterFunc(500*time.Millisecond, cancel)
	begin := time.Now()
	summary, err := engine.Run(ctx, j)
	if err != nil || !summary.Interrupted {
		t.Fatalf("%v %+v", err, summary)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	if lines := rec.lines(); strings.Contains(lines, "never") || !strings.Contains(lines, "interrupted") {
		t.Errorf("got\n%s", lines)
	}
}

// TestTimeout: a task's timeout ends its command and says so.
func TestTimeout(t *testing.T) {
	j, rec := job(t, "a: {}", "runbook: x\nplays: [{hosts: web, tasks: [{name: long, timeout: 1s, command: {argv: [sleep, '60'], read: true}}]}]\n", nil)
	summary, err := engine.Run(t.Context(), j)
	if err != nil || summary.Totals[0].Failed != 1 || !strings.Contains(rec.lines(), "timed out") {
		t.Errorf("%v %+v\n%s", err, summary.Totals, rec.lines())
	}
}

// TestOneDial: a host is connected to once, whoever asks, and not at all for a play that it is not in.
func TestOneDial(t *testing.T) {
	var mu sync.Mutex
	dialled := map[string]int{}
	j, _ := job(t, "a: {}, b: {}, c: {}", `
runbook: x
plays:
  - hosts: a
    tasks:
      - {command: {argv: ["true"], read: true}, delegate_to: b}
      - {assert: {that: 'hosts["b"].facts.init != ""'}}
  - {hosts: a, tasks: [{command: {argv: ["true"], read: true}}]}
`, nil)
	dial := j.Dial
	j.Dial = func(ctx context.Context, h *inventory.Host) (transport.Conn, error) {
		mu.Lock()
		dialled[h.Name]++
		mu.Unlock()
		return dial(ctx, h)
	}
	if summary, err := engine.Run(t.Context(), j); err != nil || summary.Failed() {
		t.Fatal(err, summary)
	}
	if dialled["a"] != 1 || dialled["b"] != 1 || dialled["c"] != 0 {
		t.Errorf("dialled %v", dialled)
	}
}

// TestSecrets: a secret parameter is in no event, whatever the tasks do with it.
func TestSecrets(t *testing.T) {
	const canary = "c4nary'secret\"value"
	j, rec := job(t, `a: {vars: {password: "c4nary'secret\"value"}}`, `
runbook: x
params: {password: {secret: true, required: true}}
vars: {derived: 'x-{{ password }}'}
plays:
  - hosts: web
    tasks:
      - name: 'name {{ password }}'
        command: {argv: [cat], stdin: '{{ password }}', read: true}
        register: out
      - {name: said on standard error, ignore_errors: true, command: {shell: 'cat >&2; exit 1', stdin: '{{ derived }}', read: true}}
      - {name: in a condition, when: 'out.stdout == "other"', command: {argv: ["true"]}}
      - {name: in an assertion, ignore_errors: true, assert: {that: 'out.stdout == "other"'}}
      - {name: looped, loop: ['{{ password }}'], command: {argv: [cat], stdin: '{{ item }}', read: true}}
      - name: what a host said of it is not put into arguments
        command: {argv: [echo, '{{ out.stdout }}'], read: true}
        failed_when: '!(result.msg contains "an argument holds a secret")'
      - name: nor into the environment
        environment: {A: '{{ out.stdout }}'}
        command: {argv: ["true"], read: true}
        failed_when: '!(result.msg contains "environment variable A holds a secret")'
`, nil)
	summary, err := engine.Run(t.Context(), j)
	if err != nil || summary.Failed() {
		t.Fatal(err, rec.lines())
	}
	for _, e := range rec.events {
		text := strings.Join([]string{e.Task, e.Item, e.Text, e.Why}, "\n")
		if e.Result != nil {
			text += e.Result.Msg + e.Result.Because
			for _, c := range e.Result.Changes {
				text += c.What + c.Before + c.After
			}
		}
		if strings.Contains(text, "c4nary") || strings.Contains(text, canary) {
			t.Errorf("a secret is in an event: %s", text)
		}
	}
	if len(rec.events) < 12 || !strings.Contains(rec.lines(), "***") {
		t.Errorf("nothing was masked:\n%s", rec.lines())
	}
}

// TestAftermath: when a run has failed, the plays with on_failure say how things are, and of a host that was lost that nothing is known.
func TestAftermath(t *testing.T) {
	j, rec := job(t, "a: {}, gone: {port: 1}, idle: {port: 1}, seen: {}", `runbook: x
plays:
  - {hosts: "a:gone", tasks: [{command: {argv: ['true'], read: true}}]}
  - {hosts: "a:gone:seen", on_failure: true, tasks: [{assert: {that: inventory_hostname == "", msg: it serves}}]}
`, nil)
	summary, err := engine.Run(t.Context(), j)
	if err != nil || len(summary.Failures) != 1 || summary.Failures[0].Host != "gone" || len(summary.Totals) != 2 {
		t.Fatalf("%v %+v\n%s", err, summary.Failures, rec.lines())
	}
	if got := strings.Join(summary.State, "|"); !strings.HasPrefix(got, "gone: it was lost, so nothing is known of it|") || !strings.Contains(got, "|a: ") || !strings.Contains(got, "|seen: ") || strings.Contains(got, "idle") {
		t.Errorf("how things are: %q", got)
	}
}
