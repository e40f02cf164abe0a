package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"runbook/engine"
	"runbook/engine/journal"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/inventory"
	"runbook/modules"
)

// resumable is a job on hosts a and b of this machine, whose runs are on record.
type resumable struct {
	dir, root, state, id string
	locks                string
	more                 func(*engine.Job) // what is always adjusted, before the program is made
}

func newResumable(t *testing.T, book string) *resumable {
	t.Helper()
	r := &resumable{dir: t.TempDir(), root: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}
	// What holds a lock lives a moment longer than the run, and the test.
	var err error
	if r.locks, err = os.MkdirTemp("", "runbook-locks-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(r.locks) })
	r.write(t, book)
	return r
}

// dial connects to this machine, as if each host were one of its own.
func (r *resumable) dial(ctx context.Context, h *inventory.Host) (transport.Conn, error) {
	if err := os.MkdirAll(filepath.Join(r.locks, h.Name), 0o755); err != nil {
		return nil, err
	}
	return transport.Connect(ctx, transport.Config{Name: h.Name, Connection: "local", LockDir: filepath.Join(r.locks, h.Name)})
}

func (r *resumable) write(t *testing.T, book string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "book.yml"), []byte(book), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "inventory.yml"), []byte("groups: {web: {hosts: {a: {}, b: {}}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs the book, or goes on with the run on record; change may adjust the job. It returns the verdicts.
func (r *resumable) run(t *testing.T, change func(*engine.Job)) (string, engine.Summary) {
	t.Helper()
	inv, err := inventory.Load(filepath.Join(r.dir, "inventory.yml"))
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{}
	job := engine.Job{Inventory: inv, Modules: modules.All(), Reporter: rec, Dial: r.dial, Masker: &secret.Masker{},
		Books: []engine.Source{{FS: os.DirFS(r.dir), Path: "book.yml"}},
		Settings: []engine.Setting{{Name: "root", Value: spec.ParseScalar(r.root), Origin: "-e"},
			{Name: "password", Value: &spec.Value{Kind: spec.String, Str: "hunter2-hunter2"}, Origin: "secrets.yml"}}}
	if r.more != nil {
		r.more(&job)
	}
	books, _, err := engine.Program(job)
	if err != nil {
		t.Fatal(err)
	}
	var w *journal.Writer
	if r.id == "" {
		w, err = journal.Create(r.state, journal.Run{Books: books, Hosts: []string{"a", "b"}, Args: []string{"run"}})
	} else {
		w, job.Past, err = journal.Open(r.state, r.id)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if r.id != "" {
		if err := w.Commit(journal.Record{Kind: journal.KindResume, Resume: &journal.Resume{}}); err != nil {
			t.Fatal(err)
		}
	}
	r.id, job.Journal = w.ID(), w
	if change != nil {
		change(&job)
	}
	summary, err := engine.Run(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	if summary.Halted != "" {
		return rec.lines(), summary
	}
	owed, err := w.Owed()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(journal.Record{Kind: journal.KindClose, Close: &journal.Close{Status: journal.Failed, Owed: owed}}); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(rec.lines(), r.root, "$ROOT"), summary
}

// on runs as the program does: with what the run owes itself, what others have paid for it, and what others owe.
func (r *resumable) on(t *testing.T, change func(*engine.Job)) (string, engine.Summary) {
	t.Helper()
	return r.run(t, func(job *engine.Job) {
		id := job.Journal.ID()
		job.Debts = slices.DeleteFunc(r.owes(t), func(d journal.Debt) bool { return d.Run == id })
		if job.Past != nil {
			if err := journal.Paid(r.state, id, job.Past); err != nil {
				t.Fatal(err)
			}
			var err error
			if job.Own, err = job.Journal.Owed(); err != nil {
				t.Fatal(err)
			}
		}
		if change != nil {
			change(job)
		}
	})
}

// through goes on as the program does, and has to come to the end.
func (r *resumable) through(t *testing.T, change func(*engine.Job)) {
	t.Helper()
	if out, s := r.on(t, change); s.Failed() || s.Asked() || s.Interrupted {
		t.Errorf("not through, asked %+v:\n%s", s.Questions, out)
	}
}

// asks goes on as the program does, and has to end with one question.
func (r *resumable) asks(t *testing.T, want engine.Question, change func(*engine.Job)) {
	t.Helper()
	if out, s := r.on(t, change); len(s.Questions) != 1 || s.Questions[0] != want {
		t.Errorf("asked %+v, want %+v:\n%s", s.Questions, want, out)
	}
}

// with, set, accept, rerun and markDone are what a person adds to the call.
func with(all ...func(*engine.Job)) func(*engine.Job) {
	return func(job *engine.Job) {
		for _, one := range all {
			one(job)
		}
	}
}

func set(name, value string) func(*engine.Job) {
	return func(job *engine.Job) {
		job.Settings = append(job.Settings, engine.Setting{Name: name, Value: spec.ParseScalar(value), Origin: "-e"})
	}
}

func accept(job *engine.Job) { job.AcceptChanges = true }

func rerun(name string) func(*engine.Job) {
	return func(job *engine.Job) { job.Rerun = append(job.Rerun, name) }
}

func markDone(name string) func(*engine.Job) {
	return func(job *engine.Job) { job.MarkDone = append(job.MarkDone, name) }
}

// cutBefore ends the record before the last line that has all of some texts, as if the program had died there.
func (r *resumable) cutBefore(t *testing.T, texts ...string) {
	t.Helper()
	lines := strings.SplitAfter(r.record(t), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if hasAll(lines[i], texts) {
			r.keep(t, lines[:i])
			return
		}
	}
	t.Fatalf("no line has %q:\n%s", texts, r.record(t))
}

// cutBehind ends it behind the first such line.
func (r *resumable) cutBehind(t *testing.T, texts ...string) {
	t.Helper()
	lines := strings.SplitAfter(r.record(t), "\n")
	for i := range lines {
		if hasAll(lines[i], texts) {
			r.keep(t, lines[:i+1])
			return
		}
	}
	t.Fatalf("no line has %q:\n%s", texts, r.record(t))
}

func hasAll(line string, texts []string) bool {
	return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
}

func (r *resumable) keep(t *testing.T, lines []string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.state, "runs", r.id+".jsonl"), []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lay writes a file of the hosts, as it was when the program died.
func (r *resumable) lay(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.root, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *resumable) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(r.root, name)); err != nil {
		t.Fatal(err)
	}
}

func (r *resumable) read(name string) string {
	data, _ := os.ReadFile(filepath.Join(r.root, name))
	return string(data)
}

func (r *resumable) touch(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.root, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

const resumeHead = `runbook: resume
params:
  root: {type: path, required: true}
  password: {secret: true, required: true}
plays:
  - name: one
    hosts: web
    tasks:
`

// gate fails until there is a file of that name.
const gate = `      - name: gate
        command: {argv: [test, -e, '{{ root }}/open'], read: true}
`

// TestResume goes on with runs that failed at a gate. What was done before it is not done again, and what it found is known behind it.
func TestResume(t *testing.T) {
	for _, c := range []struct{ name, before, after, want string }{
		{"registered", `      - name: bare
        command: {shell: 'echo "{{ inventory_hostname }}" >>{{ root }}/log; echo "said by {{ inventory_hostname }}"'}
        register: said
`, `      - name: behind
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "{{ said.stdout }} {{ said.rc }}\n"}
`, "a\nb\n|said by a 0\n|said by b 0\n"},
		{"loop", `      - name: bare
        loop: [1, 2, 3]
        command: {shell: 'echo {{ item }} >>{{ root }}/log.{{ inventory_hostname }}'}
        register: said
`, `      - name: behind
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "{{ len(said.results) }} {{ said.changed }}\n"}
`, "|3 true\n|3 true\n"},
		{"run once", `      - name: bare
        run_once: true
        command: {shell: 'echo once >>{{ root }}/log; echo "by {{ inventory_hostname }}"'}
        register: said
`, `      - name: behind
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "{{ said.stdout }}\n"}
`, "once\n|by a\n|by a\n"},
		{"rescue and ignored", `      - block:
          - name: fails
            command: {shell: 'echo tried >>{{ root }}/log.{{ inventory_hostname }}; exit 1'}
        rescue:
          - name: saves
            command: {shell: 'echo saved >>{{ root }}/log.{{ inventory_hostname }}'}
            register: saved
      - name: forgiven
        command: {shell: 'echo forgiven >>{{ root }}/log.{{ inventory_hostname }}; exit 1'}
        ignore_errors: true
        register: forgiven
`, `      - name: behind
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "{{ saved.changed }} {{ forgiven.failed }} {{ forgiven.rc }}\n"}
`, "|true true 1\n|true true 1\n"},
		{"delegated", `      - name: bare
        delegate_to: b
        command: {shell: 'echo "for {{ inventory_hostname }}" >>{{ root }}/log.{{ inventory_hostname }}; echo x'}
        register: said
`, `      - name: behind
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: '{{ hosts["a"].said.stdout }}'}
`, "|x|x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+c.before+gate+c.after)
			if _, s := r.run(t, nil); !s.Failed() {
				t.Fatal("the gate should be closed")
			}
			logs := r.read("log") + r.read("log.a") + r.read("log.b")
			r.touch(t, "open")
			out, s := r.run(t, nil)
			if s.Failed() || s.Asked() || s.Interrupted {
				t.Fatalf("not through:\n%s", out)
			}
			if got := r.read("log") + r.read("log.a") + r.read("log.b"); got != logs {
				t.Errorf("done again: %q, before %q", got, logs)
			}
			if got := sortedLines(r.read("log")) + "|" + r.read("a") + "|" + r.read("b"); got != c.want {
				t.Errorf("got %q, want %q\n%s", got, c.want, out)
			}
		})
	}
}

// sortedLines is for logs of two hosts at once.
func sortedLines(text string) string {
	if text == "b\na\n" {
		return "a\nb\n"
	}
	return text
}

// TestResumeSecrets guards that a result with a secret is not on record, and that a command which cannot be looked at again is not run again for it
// unless a person says so, who is asked when it is needed.
func TestResumeSecrets(t *testing.T) {
	r := newResumable(t, resumeHead+`      - name: bare
        command: {shell: 'echo ran >>{{ root }}/log.{{ inventory_hostname }}; cat', stdin: '{{ password }}'}
        register: said
`+gate+`      - name: still known
        when: said.changed && said.rc == 0
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "x\n"}
      - name: needs it
        when: said.stdout != ""
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "y\n"}
`)
	r.run(t, nil)
	record := r.record(t)
	if strings.Contains(record, "hunter2") {
		t.Errorf("a secret is on record:\n%s", record)
	}
	r.touch(t, "open")
	out, s := r.run(t, nil)
	if len(s.Questions) != 2 || !s.Questions[0].Again || r.read("log.a") != "ran\n" || r.read("a") != "x\n" || !strings.Contains(out, "not known, for what holds secrets is not on record") {
		t.Errorf("asked %v, ran %q:\n%s", s.Questions, r.read("log.a"), out)
	}
	// One host's answer is not the other's.
	out, s = r.run(t, func(job *engine.Job) { job.Rerun = []string{"b/bare"} })
	if len(s.Questions) != 1 || r.read("log.a") != "ran\n" || r.read("a") != "x\n" || r.read("log.b") != "ran\nran\n" || r.read("b") != "y\n" {
		t.Errorf("asked %v, ran %q and %q:\n%s", s.Questions, r.read("log.a"), r.read("log.b"), out)
	}
}

func (r *resumable) record(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.state, "runs", r.id+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestResumeChanged guards that a task whose arguments are others than on record is not taken for done.
func TestResumeChanged(t *testing.T) {
	book := func(text string) string {
		return resumeHead + "      - name: file\n        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: '" + text + "'}\n" + gate
	}
	r := newResumable(t, book("one"))
	r.run(t, nil)
	r.touch(t, "open")
	r.write(t, book("two"))
	if out, s := r.run(t, nil); !s.Asked() || !strings.Contains(out, "--accept-changes") || r.read("a") != "one" {
		t.Errorf("asked %v, left %q:\n%s", s.Asked(), r.read("a"), out)
	}
	if out, s := r.run(t, func(job *engine.Job) { job.AcceptChanges = true }); s.Failed() || s.Asked() || r.read("a") != "two" {
		t.Errorf("left %q:\n%s", r.read("a"), out)
	}
}

// TestDebts guards that a handler which a run owes runs in the next ordinary run, once, and that this is on record.
func TestDebts(t *testing.T) {
	book := resumeHead + `      - name: file
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "x\n"}
        notify: restart
` + gate + `    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/log.{{ inventory_hostname }}'}
`
	r := newResumable(t, book)
	r.run(t, nil)
	if r.read("log.a") != "" {
		t.Fatal("the handler ran")
	}
	r.touch(t, "open")
	owed := func() []journal.Debt {
		debts, err := journal.Debts(r.state, nil)
		if err != nil {
			t.Fatal(err)
		}
		return debts
	}
	if len(owed()) != 2 {
		t.Fatalf("owed %v", owed())
	}
	first := r.id
	for i, want := range []int{0, 0} {
		r.id = "" // an ordinary run
		out, s := r.run(t, func(job *engine.Job) { job.Debts = owed() })
		if s.Failed() || r.read("log.a") != "restarted\n" || r.read("log.b") != "restarted\n" || len(owed()) != want {
			t.Errorf("run %d: %q, owed %v\n%s", i, r.read("log.a"), owed(), out)
		}
	}
	r.id = first
	out, s := r.run(t, func(job *engine.Job) {
		if err := journal.Paid(r.state, first, job.Past); err != nil {
			t.Fatal(err)
		}
	})
	if s.Failed() || r.read("log.a") != "restarted\n" || r.read("log.b") != "restarted\n" {
		t.Errorf("resumed after another run has paid for it: %q\n%s", r.read("log.a"), out)
	}
	if len(owed()) != 0 {
		t.Errorf("resumed after another run has paid for it, it owes %v", owed())
	}
}

// TestDebtsKilled guards that a run which dies while it pays what another owes, wherever, and is resumed has paid it once.
func TestDebtsKilled(t *testing.T) {
	r := newResumable(t, resumeHead+`      - name: file
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "x\n"}
        notify: restart
`+gate+`    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/log.{{ inventory_hostname }}'}
`)
	r.run(t, nil)
	owing := r.record(t)
	owes := r.id
	r.touch(t, "open")
	r.id = ""
	if _, s := r.run(t, func(job *engine.Job) { job.Debts = r.owes(t) }); s.Failed() {
		t.Fatal("not through")
	}
	pays, lines := r.id, strings.SplitAfter(r.record(t), "\n")
	begun := func(lines []string, host string) bool {
		return slices.ContainsFunc(lines, func(line string) bool {
			return strings.Contains(line, `"kind":"begin"`) && strings.Contains(line, `"name":"restart"`) && strings.Contains(line, `"host":"`+host+`"`)
		})
	}
	for n := 1; n < len(lines)-1; n++ {
		r.state = filepath.Join(t.TempDir(), "state")
		if err := os.MkdirAll(filepath.Join(r.state, "runs"), 0o700); err != nil {
			t.Fatal(err)
		}
		for id, text := range map[string]string{owes: owing, pays: strings.Join(lines[:n], "")} {
			if err := os.WriteFile(filepath.Join(r.state, "runs", id+".jsonl"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, host := range []string{"a", "b"} {
			text := ""
			if begun(lines[:n], host) {
				text = "restarted\n"
			}
			if err := os.WriteFile(filepath.Join(r.root, "log."+host), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		debts := r.owes(t)
		out, s := r.run(t, func(job *engine.Job) {
			job.MarkDone = []string{"restart"}
			job.Debts = slices.DeleteFunc(debts, func(d journal.Debt) bool { return d.Run == pays })
			own, err := job.Journal.Owed()
			if err != nil {
				t.Fatal(err)
			}
			job.Own = own
		})
		if left := r.owes(t); s.Failed() || s.Asked() || len(left) > 0 || r.read("log.a") != "restarted\n" || r.read("log.b") != "restarted\n" {
			t.Errorf("killed after %d lines: %q and %q, owed %v\n%s", n, r.read("log.a"), r.read("log.b"), left, out)
		}
	}
}

// TestUnrecorded guards that nothing is touched which cannot be put on record.
func TestUnrecorded(t *testing.T) {
	r := newResumable(t, resumeHead+`      - name: file
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "x\n"}
`)
	_, s := r.run(t, func(job *engine.Job) { _ = job.Journal.Close() })
	if s.Halted == "" || r.read("a")+r.read("b") != "" {
		t.Errorf("halted %q, left %q", s.Halted, r.read("a"))
	}
}

// TestResumeSerial goes on in the batch in which a run has failed: those before it had their turn, with their handlers, those behind it get it now.
func TestResumeSerial(t *testing.T) {
	head := strings.NewReplacer("    hosts: web\n", "    hosts: web\n    serial: 1\n", "params:\n", "params:\n  closed: {default: nobody}\n").Replace(resumeHead)
	r := newResumable(t, head+`      - name: bare
        command: {shell: 'echo {{ inventory_hostname }} >>{{ root }}/log'}
        notify: restart
      - name: gate
        when: inventory_hostname == closed
        command: {argv: [test, -e, '{{ root }}/open'], read: true}
    handlers:
      - name: restart
        command: {shell: 'echo {{ inventory_hostname }} restarts >>{{ root }}/log'}
`)
	for _, c := range []struct{ closed, before, after string }{
		{"a", "a\n", "a\na restarts\nb\nb restarts\n"},
		{"b", "a\na restarts\nb\n", "a\na restarts\nb\nb restarts\n"},
	} {
		r := *r
		r.root = t.TempDir()
		closed := func(job *engine.Job) {
			job.Settings = append(job.Settings, engine.Setting{Name: "closed", Value: spec.ParseScalar(c.closed), Origin: "-e"})
		}
		out, summary := r.run(t, closed)
		if !summary.Failed() || r.read("log") != c.before || strings.Contains(out, "held back: b") != (c.closed == "a") {
			t.Errorf("%s fails: log %q, want %q\n%s", c.closed, r.read("log"), c.before, out)
		}
		if c.closed == "a" && (len(summary.Failures) != 2 || summary.Failures[1].HeldBack != "one") {
			t.Errorf("what became of the hosts: %+v", summary.Failures)
		}
		r.touch(t, "open")
		if out, summary := r.run(t, closed); summary.Failed() || r.read("log") != c.after {
			t.Errorf("%s failed, and was resumed: log %q, want %q\n%s", c.closed, r.read("log"), c.after, out)
		}
	}
}
