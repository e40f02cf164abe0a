package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"runbook/engine"
	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/spec"
)

// cut ends the record before the end of a task on a host, as if the program had died in it.
func (r *resumable) cut(t *testing.T, task, host string) {
	t.Helper()
	lines := strings.SplitAfter(r.record(t), "\n")
	for i, line := range lines {
		if strings.Contains(line, `"kind":"end"`) && strings.Contains(line, `"name":"`+task+`"`) && strings.Contains(line, `"host":"`+host+`"`) {
			if err := os.WriteFile(filepath.Join(r.state, "runs", r.id+".jsonl"), []byte(strings.Join(lines[:i], "")), 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%q has no end on %s:\n%s", task, host, r.record(t))
}

// log is what the tasks of a run have written.
func (r *resumable) log(t *testing.T, want string) {
	t.Helper()
	if got := strings.ReplaceAll(r.read("log"), "\n", " "); got != want {
		t.Errorf("the log has %q, want %q", got, want)
	}
}

const onA = "        when: inventory_hostname == \"a\"\n"

func says(name, more string) string {
	return "      - name: " + name + "\n" + onA + "        command: {shell: 'echo " + name + " >>{{ root }}/log'}\n" + more
}

// indented puts tasks into a block.
func indented(tasks string) string { return strings.ReplaceAll("\n"+tasks, "\n", "\n    ")[1:] }

// TestQuestion guards that nothing follows from a question but what a person answers: no rescue, no always, no later task, whatever the book says of
// failures.
func TestQuestion(t *testing.T) {
	for name, middle := range map[string]string{
		"rescued":         "      - block:\n" + strings.TrimRight(indented(says("bare", "")), " ") + "        rescue:\n" + strings.TrimRight(indented(says("rescue", "")), " "),
		"always":          "      - block:\n" + strings.TrimRight(indented(says("bare", "")), " ") + "        always:\n" + strings.TrimRight(indented(says("finally", "")), " "),
		"ignored":         says("bare", "        ignore_errors: true\n"),
		"never a mistake": says("bare", "        failed_when: false\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+middle+says("tail", ""))
			r.run(t, nil)
			r.cut(t, "bare", "a")
			if err := os.Remove(filepath.Join(r.root, "log")); err != nil {
				t.Fatal(err)
			}
			out, s := r.run(t, nil)
			if len(s.Questions) != 1 || s.Questions[0] != (engine.Question{Host: "a", Task: "bare"}) || len(s.Failures) != 1 {
				t.Errorf("asked %v, failures %v:\n%s", s.Questions, s.Failures, out)
			}
			r.log(t, "")
			out, s = r.run(t, func(job *engine.Job) { job.MarkDone = []string{"a/bare"} })
			want := "tail "
			if name == "always" {
				want = "finally tail "
			}
			if s.Failed() || s.Asked() {
				t.Errorf("answered, it should be through:\n%s", out)
			}
			r.log(t, want)
		})
	}
}

// TestQuestionInLoop guards that a loop does not go on past an item of which it is asked, and that items are known by what is done with them.
func TestQuestionInLoop(t *testing.T) {
	r := newResumable(t, strings.Replace(resumeHead, "params:\n", "params:\n  items: {type: list, default: [ann, bob]}\n", 1)+"      - name: bare\n"+onA+`        loop: items
        command: {shell: 'echo {{ item }} >>{{ root }}/log; test {{ item }} != bob || test -e {{ root }}/open'}
`)
	if out, s := r.run(t, nil); !s.Failed() {
		t.Fatalf("bob should fail:\n%s", out)
	}
	r.log(t, "ann bob ")
	r.touch(t, "open")
	// Somebody puts zoe before them.
	zoe := func(accept bool) func(*engine.Job) {
		return func(job *engine.Job) {
			job.AcceptChanges = accept
			set("items", "zoe,ann,bob")(job)
		}
	}
	if out, s := r.run(t, zoe(false)); len(s.Questions) != 1 || !s.Questions[0].Accept {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
	r.log(t, "ann bob ")
	if out, s := r.run(t, zoe(true)); s.Failed() {
		t.Errorf("accepted:\n%s", out)
	}
	r.log(t, "ann bob zoe bob ")

	// One that died in the first item does not do the second before it is answered.
	r = newResumable(t, resumeHead+"      - name: bare\n"+onA+"        loop: [one, two]\n        command: {shell: 'echo {{ item }} >>{{ root }}/log'}\n")
	r.run(t, nil)
	r.cut(t, "bare", "a")
	if out, s := r.run(t, nil); len(s.Questions) != 1 {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
	r.log(t, "one two ")
}

// TestQuestionRunOnce guards that what was under way for all on a host that is not the first one now is asked about there.
func TestQuestionRunOnce(t *testing.T) {
	r := newResumable(t, resumeHead+`      - name: gate
        when: inventory_hostname == "a"
        command: {argv: [test, -e, '{{ root }}/open'], read: true}
      - name: once
        run_once: true
        command: {shell: 'echo {{ inventory_hostname }} >>{{ root }}/log'}
`)
	r.run(t, nil)
	r.log(t, "b ")
	r.cut(t, "once", "b")
	r.touch(t, "open")
	if out, s := r.run(t, nil); len(s.Questions) != 1 || s.Questions[0].Host != "b" {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
	r.log(t, "b ")
}

// TestQuestionOnceGone guards that what was done for all on a host that takes no part any more is not done again on another, and that what was under
// way there is asked about.
func TestQuestionOnceGone(t *testing.T) {
	for _, died := range []bool{false, true} {
		r := newResumable(t, resumeHead+"      - name: once\n        run_once: true\n        command: {shell: 'echo once >>{{ root }}/log'}\n"+gate)
		r.run(t, nil)
		if died {
			r.cut(t, "once", "a")
		}
		r.touch(t, "open")
		if err := os.WriteFile(filepath.Join(r.dir, "inventory.yml"), []byte("groups: {web: {hosts: {b: {}}}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if died {
			r.asks(t, engine.Question{Host: "a", Task: "once"}, accept)
		} else {
			r.through(t, accept)
		}
		r.log(t, "once ")
	}
}

// TestQuestionInRescue guards that a rescue or an always in which the program died goes on there, with the answer, and that the block before it is
// not tried again though it might go well now.
func TestQuestionInRescue(t *testing.T) {
	block := func(fails string) string {
		return "      - block:\n" + strings.TrimRight(indented(fails+says("never", "")), " ") + "        rescue:\n" + strings.TrimRight(indented(says("rescue", "        register: said\n")), " ") +
			"        always:\n" + strings.TrimRight(indented(says("finally", "")), " ") + says("tail", "")
	}
	look := "      - name: look\n" + onA + "        command: {argv: [test, -e, '{{ root }}/open'], read: true}\n"
	half := "      - name: half\n" + onA + "        command: {shell: 'test -e {{ root }}/open && echo half >>{{ root }}/log'}\n"
	for _, c := range []struct{ fails, died, want string }{
		{look, "rescue", "rescue finally tail "},
		{half, "rescue", "rescue finally tail "},
		{half, "finally", "finally tail "},
		{half, "tail", "tail "},
	} {
		r := newResumable(t, resumeHead+block(c.fails))
		r.run(t, nil)
		r.log(t, "rescue finally tail ")
		r.cut(t, c.died, "a")
		r.lay(t, "log", "")
		r.touch(t, "open")
		r.asks(t, engine.Question{Host: "a", Task: c.died}, nil)
		r.log(t, "")
		r.through(t, rerun("a/"+c.died))
		r.log(t, c.want)
	}
}

// TestForgivenNoMore guards that a failure which the edited book does not forgive any more is tried again, once.
func TestForgivenNoMore(t *testing.T) {
	bare := strings.Replace(says("bare", ""), "/log'", "/log; test -e {{ root }}/open'", 1)
	block := func(second string) string {
		return "      - block:\n" + strings.TrimRight(indented(bare), " ") + "        " + second + ":\n" + strings.TrimRight(indented(says("saves", "")), " ")
	}
	for name, c := range map[string][3]string{
		"ignored": {bare + "        ignore_errors: true\n", bare, "bare bare "},
		"rescued": {block("rescue"), block("always"), "bare saves bare saves "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+c[0]+gate)
			r.run(t, nil)
			r.touch(t, "open")
			r.write(t, resumeHead+c[1]+gate)
			for range 2 {
				r.through(t, accept)
				r.log(t, c[2])
			}
		})
	}
}

// TestTakenForDoneStays guards that what a person has taken for done stays so when the run fails and is resumed again.
func TestTakenForDoneStays(t *testing.T) {
	r := newResumable(t, resumeHead+says("bare", "        register: said\n")+gate)
	r.run(t, nil)
	r.cut(t, "bare", "a")
	for _, answer := range []func(*engine.Job){markDone("a/bare"), nil} {
		if out, s := r.on(t, answer); s.Asked() {
			t.Errorf("asked %+v:\n%s", s.Questions, out)
		}
		r.log(t, "bare ")
	}
	r.touch(t, "open")
	r.through(t, nil)
	r.log(t, "bare ")
}

// TestUnderWayWithOthers guards what becomes of a task that was under way when its arguments are others, or cannot be told: the question is about
// what was begun, there where it was begun, and its answer too.
func TestUnderWayWithOthers(t *testing.T) {
	head := strings.Replace(resumeHead, "params:\n", "params:\n  where: {default: b}\n  text: {default: one}\n  n: {type: int, default: 0}\n", 1)
	asked := engine.Question{Host: "a", Task: "bare"}
	died := func(book string) *resumable {
		r := newResumable(t, head+book)
		r.run(t, nil)
		r.cut(t, "bare", "a")
		return r
	}
	r := died(says("bare", "        delegate_to: '{{ where }}'\n"))
	if out, s := r.on(t, with(set("where", "a"), accept)); len(s.Questions) != 1 || s.Questions[0] != asked || !strings.Contains(out, "look on b") {
		t.Errorf("asked %+v:\n%s", s.Questions, out)
	}
	r.log(t, "bare ")

	// What is taken for done is what was under way, not what is to be done now.
	r = died(strings.Replace(says("bare", ""), "echo bare", "echo {{ text }}", 1))
	r.through(t, with(set("text", "two"), accept, markDone("a/bare")))
	r.log(t, "one two ")

	// It rests upon what was looked at before it, and goes on doing so.
	r = died("      - name: look\n" + onA + "        command: {shell: 'cat {{ root }}/log 2>/dev/null; echo end', read: true}\n        register: found\n" +
		"      - name: bare\n        when: inventory_hostname == \"a\" && found.stdout == \"end\"\n        command: {shell: 'echo bare {{ found.stdout_lines[n] }} >>{{ root }}/log'}\n")
	if out, s := r.on(t, set("n", "7")); s.Asked() || !s.Failed() {
		t.Errorf("asked %+v:\n%s", s.Questions, out)
	}
	r.asks(t, asked, nil)
	r.log(t, "bare end ")
	r.through(t, markDone("a/bare"))
	r.log(t, "bare end ")
}

// TestToBeSkipped guards that what was begun is not passed over without a question when its condition does not hold any more.
func TestToBeSkipped(t *testing.T) {
	head := strings.Replace(resumeHead, "params:\n", "params:\n  wanted: {type: bool, default: true}\n", 1)
	wanted := strings.NewReplacer(onA, "        when: wanted && inventory_hostname == \"a\"\n")
	for _, c := range []struct{ name, book, died, want string }{
		{"done", wanted.Replace(says("bare", "")) + gate, "", "bare "},
		{"under way", wanted.Replace(says("bare", "")), "bare", "bare "},
		{"half done", wanted.Replace(strings.Replace(says("bare", ""), "/log'", "/log; exit 1'", 1)), "", "bare "},
		{"a handler, under way", "      - name: file\n" + onA + "        copy: {dest: '{{ root }}/file', content: \"x\\n\"}\n        notify: bare\n    handlers:\n" + wanted.Replace(says("bare", "")), "bare", "bare "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, head+c.book)
			r.on(t, nil)
			if c.died != "" {
				r.cut(t, c.died, "a")
			}
			r.touch(t, "open")
			r.asks(t, engine.Question{Host: "a", Task: "bare", Accept: true}, set("wanted", "false"))
			r.through(t, with(set("wanted", "false"), accept))
			r.log(t, c.want)
		})
	}
}

// TestTakenForDone guards that nobody invents what a command returned that a person took for done: who needs it fails, and it can be done once
// more after all.
func TestTakenForDone(t *testing.T) {
	r := newResumable(t, resumeHead+says("bare", "        register: said\n")+"      - name: needs it\n"+onA+
		"        copy: {dest: '{{ root }}/a', content: \"{{ said.stdout }}|\\n\"}\n      - name: hangs on it\n        when: inventory_hostname == \"a\" and said.rc == 0\n        command: {shell: 'echo hangs >>{{ root }}/log'}\n")
	r.run(t, nil)
	r.cut(t, "bare", "a")
	if err := os.Remove(filepath.Join(r.root, "a")); err != nil {
		t.Fatal(err)
	}
	r.log(t, "bare hangs ")
	out, s := r.run(t, func(job *engine.Job) { job.MarkDone = []string{"a/bare"} })
	if !s.Failed() || !strings.Contains(out, "is not known, for it was taken for done") || r.read("a") != "" {
		t.Errorf("it went on with %q:\n%s", r.read("a"), out)
	}
	if out, s = r.run(t, nil); !s.Failed() || !strings.Contains(out, "is not known, for it was taken for done") {
		t.Errorf("it went on with %q:\n%s", r.read("a"), out)
	}
	r.log(t, "bare hangs ")
	if out, s = r.run(t, func(job *engine.Job) { job.Rerun = []string{"a/bare"} }); s.Failed() || s.Asked() || r.read("a") != "|\n" {
		t.Errorf("done once more, left %q:\n%s", r.read("a"), out)
	}
	r.log(t, "bare hangs bare hangs ")
}

// TestChangedSecret guards that a run does not go on with another secret than it began with without a question; that with the same one nothing
// is done again, over what came after it; and that the record tells nobody the secret.
func TestChangedSecret(t *testing.T) {
	file := func(name string) string {
		return "      - name: " + name + "\n" + onA + "        copy: {dest: '{{ root }}/" + name + "', content: \"{{ password }}\\n\", mode: '0600'}\n"
	}
	r := newResumable(t, resumeHead+file("one")+"      - name: later\n"+onA+"        line: {path: '{{ root }}/one', line: later}\n"+gate+file("two"))
	r.run(t, nil)
	if out, s := r.run(t, set("password", "another-secret")); len(s.Questions) != 1 || !s.Questions[0].Accept || r.read("one") != "hunter2-hunter2\nlater\n" {
		t.Errorf("asked %v, left %q\n%s", s.Questions, r.read("one"), out)
	}
	r.touch(t, "open")
	if out, s := r.run(t, nil); s.Failed() || r.read("one") != "hunter2-hunter2\nlater\n" || r.read("two") != "hunter2-hunter2\n" {
		t.Errorf("one %q, two %q\n%s", r.read("one"), r.read("two"), out)
	}
	if strings.Contains(r.record(t), "hunter2") {
		t.Errorf("a secret is on record:\n%s", r.record(t))
	}
}

// TestPassedOver guards that a change on record is not forgotten because its condition does not hold any more, nor the handler that it notified.
func TestPassedOver(t *testing.T) {
	book := strings.Replace(resumeHead, "params:\n", "params:\n  wanted: {type: bool, default: true}\n", 1) + `      - name: file
        when: wanted && inventory_hostname == "a"
        copy: {dest: '{{ root }}/file', content: "x\n"}
        notify: restart
` + gate + "    handlers:\n      - name: restart\n        command: {shell: 'echo restarted >>{{ root }}/log'}\n"
	r := newResumable(t, book)
	r.run(t, nil)
	r.touch(t, "open")
	if out, s := r.run(t, set("wanted", "false")); len(s.Questions) != 1 || !s.Questions[0].Accept {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
	r.log(t, "")
	if out, s := r.run(t, func(job *engine.Job) { set("wanted", "false")(job); job.AcceptChanges = true }); s.Failed() || s.Asked() {
		t.Errorf("accepted:\n%s", out)
	}
	r.log(t, "restarted ")
}

// TestOwed guards that a handler which was notified stays owed until it has had its turn, however often and wherever the run ends before it.
func TestOwed(t *testing.T) {
	handler := "    handlers:\n      - name: restart\n        command: {shell: 'echo restarted >>{{ root }}/log; test ! -e {{ root }}/broken'}\n"
	notifies := "      - name: file\n" + onA + "        copy: {dest: '{{ root }}/file', content: \"x\\n\"}\n        notify: restart\n"
	closed := strings.ReplaceAll(gate, "open", "open2")
	stop := func(job *engine.Job) {
		ended := make(chan struct{})
		close(ended)
		job.Stop = ended
	}
	for _, c := range []struct {
		name, book string
		again      func(t *testing.T, r *resumable) // what happens after the first run
		log        string                           // when another run of the book has paid
	}{
		{"a resume that ends before it comes there", notifies + closed + handler, func(t *testing.T, r *resumable) { r.run(t, stop) }, "restarted "},
		{"the handler fails", notifies + handler, func(t *testing.T, r *resumable) {
			if err := os.Remove(filepath.Join(r.root, "broken")); err != nil {
				t.Fatal(err)
			}
		}, "restarted restarted "},
		{"the notifier dies", notifies + closed + handler, func(t *testing.T, r *resumable) {
			r.cut(t, "file", "a")
			r.run(t, stop)
		}, "restarted "},
		{"the notifier fails half-way", "      - name: file\n" + onA + "        command: {shell: 'echo half >>{{ root }}/half; test -e {{ root }}/open2', creates: '{{ root }}/half'}\n        notify: restart\n" + handler,
			func(*testing.T, *resumable) {}, "restarted "},
		{"it has run, and the run ends again", notifies + "      - meta: flush_handlers\n" + closed + handler, func(t *testing.T, r *resumable) { r.run(t, stop) }, "restarted "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+c.book)
			if c.name == "the handler fails" {
				r.touch(t, "broken")
			}
			if out, s := r.run(t, nil); !s.Failed() {
				t.Fatalf("the first run should fail:\n%s", out)
			}
			c.again(t, r)
			debts, err := journal.Debts(r.state, nil)
			if err != nil {
				t.Fatal(err)
			}
			if ran := strings.Contains(c.name, "has run"); ran != (len(debts) == 0) {
				t.Errorf("owed %+v\n%s", debts, r.record(t))
			}
			r.touch(t, "open2")
			for range 2 { // once
				r.id = ""
				if debts, err = journal.Debts(r.state, nil); err != nil {
					t.Fatal(err)
				}
				if out, s := r.run(t, func(job *engine.Job) { job.Debts = debts }); s.Failed() {
					t.Errorf("another run:\n%s", out)
				}
			}
			r.log(t, c.log)
		})
	}
}

// TestResumeNotifies guards that a task which failed when it had changed its host notifies, if there is nothing left to do when it is done again.
func TestResumeNotifies(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: file\n"+onA+`        command: {shell: 'echo half >>{{ root }}/half; exit 1', creates: '{{ root }}/half'}
        notify: restart
    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/log'}
`)
	r.run(t, nil)
	if out, s := r.run(t, nil); s.Failed() {
		t.Errorf("not through:\n%s", out)
	}
	r.log(t, "restarted ")
}

// TestWrittenOff guards that a handler which the book no longer has is owed no longer, and that one which is not wanted any more has had its turn.
func TestWrittenOff(t *testing.T) {
	book := resumeHead + "      - name: file\n" + onA + "        copy: {dest: '{{ root }}/file', content: \"x\\n\"}\n        notify: restart\n" + gate +
		"    handlers:\n      - name: restart\n        command: {shell: 'echo restarted >>{{ root }}/log'}\n"
	for name, edit := range map[string]*strings.Replacer{
		"gone":       strings.NewReplacer("restart", "reload"),
		"not wanted": strings.NewReplacer("      - name: restart\n", "      - name: restart\n        when: false\n"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newResumable(t, book)
			r.run(t, nil)
			r.touch(t, "open")
			r.write(t, edit.Replace(book))
			r.id = ""
			debts, err := journal.Debts(r.state, nil)
			if err != nil || len(debts) != 1 {
				t.Fatal(err, debts)
			}
			out, s := r.run(t, func(job *engine.Job) { job.Debts = debts })
			if debts, err = journal.Debts(r.state, nil); err != nil || len(debts) != 0 || s.Failed() {
				t.Errorf("owed %+v %v\n%s", debts, err, out)
			}
			r.log(t, "")
		})
	}
}

// owes counts what runs on record owe.
func (r *resumable) owes(t *testing.T) []journal.Debt {
	t.Helper()
	debts, err := journal.Debts(r.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	return debts
}

// another is an ordinary run.
func (r *resumable) another(t *testing.T) {
	t.Helper()
	r.id = ""
	debts := r.owes(t)
	if out, s := r.run(t, func(job *engine.Job) { job.Debts = debts }); s.Failed() {
		t.Errorf("another run:\n%s", out)
	}
	if debts = r.owes(t); len(debts) > 0 {
		t.Errorf("still owed: %+v", debts)
	}
}

const restarts = "    handlers:\n      - name: restart\n        command: {shell: 'echo restarted >>{{ root }}/log'}\n"

// TestNotifiedAnew guards that a handler whose doing is on record runs again if something notifies it now.
func TestNotifiedAnew(t *testing.T) {
	book := strings.Replace(resumeHead, "params:\n", "params:\n  text: {default: x}\n", 1) +
		"      - name: file\n" + onA + "        copy: {dest: '{{ root }}/file', content: \"{{ text }}\\n\"}\n        notify: restart\n      - meta: flush_handlers\n" + gate +
		"      - name: behind\n" + onA + "        copy: {dest: '{{ root }}/behind', content: \"x\\n\"}\n        notify: restart\n      - meta: flush_handlers\n" + restarts
	for text, want := range map[string]string{"x": "restarted restarted ", "y": "restarted restarted restarted "} {
		r := newResumable(t, book)
		r.run(t, nil)
		r.log(t, "restarted ")
		r.touch(t, "open")
		if out, s := r.run(t, func(job *engine.Job) { set("text", text)(job); job.AcceptChanges = true }); s.Failed() {
			t.Errorf("not through:\n%s", out)
		}
		r.log(t, want)
	}
}

// TestHandlerTurn guards when a handler has had its turn: not before the last of its items, and where it runs once, for all.
func TestHandlerTurn(t *testing.T) {
	notifies := "      - name: file\n        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: \"x\\n\"}\n        notify: restart\n"
	r := newResumable(t, resumeHead+strings.Replace(notifies, "        copy", onA+"        copy", 1)+"    handlers:\n      - name: restart\n        loop: [one, two, three]\n        command: {shell: 'echo {{ item }} >>{{ root }}/log; test {{ item }} != two || test -e {{ root }}/open'}\n")
	r.run(t, nil)
	if len(r.owes(t)) != 1 {
		t.Errorf("an item failed, owed %+v", r.owes(t))
	}
	r.touch(t, "open")
	r.another(t)
	r.log(t, "one two three one two three ")

	r = newResumable(t, resumeHead+notifies+"    handlers:\n      - name: restart\n        run_once: true\n        command: {shell: 'echo restarted >>{{ root }}/log'}\n")
	if out, s := r.run(t, nil); s.Failed() || len(r.owes(t)) > 0 {
		t.Errorf("owed %+v\n%s", r.owes(t), out)
	}
	r.another(t)
	r.log(t, "restarted ")

	r = newResumable(t, resumeHead+notifies+"    handlers:\n      - name: restart\n        loop: []\n        command: {shell: 'echo restarted >>{{ root }}/log'}\n")
	if out, s := r.run(t, nil); s.Failed() || len(r.owes(t)) > 0 {
		t.Errorf("owed %+v\n%s", r.owes(t), out)
	}
}

// TestNotifierGone guards that an edited book does not make a run forget the handlers that it owes.
func TestNotifierGone(t *testing.T) {
	book := resumeHead + "      - name: file\n        loop: '{{ items }}'\n" + onA + "        copy: {dest: '{{ root }}/{{ item }}', content: \"x\\n\"}\n        notify: restart\n" + gate + restarts
	book = strings.NewReplacer("params:\n", "params:\n  items: {type: list, default: [f]}\n", "'{{ items }}'", "items").Replace(book)
	r := newResumable(t, book)
	r.run(t, nil)
	r.touch(t, "open")
	owed := func(job *engine.Job) {
		var err error
		if job.Own, err = job.Journal.Owed(); err != nil {
			t.Fatal(err)
		}
		job.AcceptChanges = true
		job.Settings = append(job.Settings, engine.Setting{Name: "items", Value: &spec.Value{Kind: spec.List}, Origin: "-e"})
	}
	if out, s := r.run(t, owed); s.Failed() {
		t.Errorf("not through:\n%s", out)
	}
	r.log(t, "restarted ")
	if len(r.owes(t)) > 0 {
		t.Errorf("owed %+v", r.owes(t))
	}
}

// TestNotifierGoneLater guards the same for a handler that has run before, for another task.
func TestNotifierGoneLater(t *testing.T) {
	r := newResumable(t, strings.Replace(resumeHead, "params:\n", "params:\n  items: {type: list, default: [f]}\n", 1)+
		"      - name: first\n"+onA+"        copy: {dest: '{{ root }}/first', content: \"x\\n\"}\n        notify: restart\n      - meta: flush_handlers\n"+
		"      - name: file\n        loop: items\n"+onA+"        copy: {dest: '{{ root }}/{{ item }}', content: \"x\\n\"}\n        notify: restart\n"+gate+restarts)
	r.run(t, nil)
	r.touch(t, "open")
	out, s := r.run(t, func(job *engine.Job) {
		var err error
		if job.Own, err = job.Journal.Owed(); err != nil {
			t.Fatal(err)
		}
		job.AcceptChanges = true
		job.Settings = append(job.Settings, engine.Setting{Name: "items", Value: &spec.Value{Kind: spec.List}, Origin: "-e"})
	})
	if s.Failed() || len(r.owes(t)) > 0 {
		t.Errorf("owed %+v\n%s", r.owes(t), out)
	}
	r.log(t, "restarted restarted ")
}

// TestOnceAnew guards that a handler which runs once, for all, runs again if another host notifies it after that.
func TestOnceAnew(t *testing.T) {
	notifies := func(host string) string {
		return "      - name: on " + host + "\n        when: inventory_hostname == \"" + host + "\"\n        copy: {dest: '{{ root }}/" + host + "', content: \"x\\n\"}\n        notify: restart\n"
	}
	r := newResumable(t, resumeHead+notifies("a")+"      - meta: flush_handlers\n"+gate+notifies("b")+strings.Replace(restarts, "        command", "        run_once: true\n        command", 1))
	r.run(t, nil)
	r.log(t, "restarted ")
	r.touch(t, "open")
	if out, s := r.run(t, nil); s.Failed() || len(r.owes(t)) > 0 {
		t.Errorf("owed %+v\n%s", r.owes(t), out)
	}
	r.log(t, "restarted restarted ")
}

// TestTwoDebtors guards that one handler pays for all the runs that owe it.
func TestTwoDebtors(t *testing.T) {
	book := func(text string) string {
		return resumeHead + "      - name: file\n" + onA + "        copy: {dest: '{{ root }}/file', content: \"" + text + "\\n\"}\n        notify: restart\n" + gate + restarts
	}
	r := newResumable(t, book("x"))
	r.run(t, nil)
	r.id = ""
	r.write(t, book("y"))
	r.run(t, nil)
	if len(r.owes(t)) != 2 {
		t.Fatalf("owed %+v", r.owes(t))
	}
	r.touch(t, "open")
	r.another(t)
	r.another(t)
	r.log(t, "restarted ")
}

// TestDoubtPaid guards that what another run has run, as it may have been owed, is not run again when the task that was in doubt is found done.
func TestDoubtPaid(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: file\n"+onA+"        copy: {dest: '{{ root }}/file', content: \"x\\n\"}\n        notify: restart\n"+restarts)
	r.run(t, nil)
	r.cut(t, "file", "a")
	died := r.id
	r.another(t)
	r.log(t, "restarted restarted ")
	r.id = died
	out, s := r.run(t, func(job *engine.Job) {
		if err := journal.Paid(r.state, died, job.Past); err != nil {
			t.Fatal(err)
		}
	})
	if s.Failed() || s.Asked() || len(r.owes(t)) > 0 {
		t.Errorf("owed %+v\n%s", r.owes(t), out)
	}
	r.log(t, "restarted restarted ")
}

// TestTwoPlays guards that of two plays with one name each pays its own debts.
func TestTwoPlays(t *testing.T) {
	r := newResumable(t, resumeHead+says("first", "")+"    handlers:\n      - {name: other, command: {argv: ['true']}}\n  - name: one\n    hosts: web\n    tasks:\n      - name: file\n"+onA+
		"        copy: {dest: '{{ root }}/file', content: \"x\\n\"}\n        notify: restart\n"+gate+restarts)
	r.run(t, nil)
	r.touch(t, "open")
	r.another(t)
	r.log(t, "first first restarted ")
}

// TestItemsUnderWay guards that an item which was under way is known by its arguments.
func TestItemsUnderWay(t *testing.T) {
	book := strings.Replace(resumeHead, "params:\n", "params:\n  items: {type: list, default: [ann, bob]}\n", 1) + "      - name: bare\n" + onA + "        loop: items\n        command: {shell: 'echo {{ item }} >>{{ root }}/log'}\n"
	died := func() *resumable {
		r := newResumable(t, book)
		r.run(t, nil)
		lines := strings.SplitAfter(r.record(t), "\n")
		for i, line := range lines { // in bob
			if strings.Contains(line, `"kind":"end"`) && strings.Contains(line, `"item":"1"`) {
				if err := os.WriteFile(filepath.Join(r.state, "runs", r.id+".jsonl"), []byte(strings.Join(lines[:i], "")), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		return r
	}
	r := died()
	zoe := func(job *engine.Job) { set("items", "zoe,ann,bob")(job); job.AcceptChanges = true }
	if out, s := r.run(t, zoe); len(s.Questions) != 1 || s.Questions[0].Accept {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
	r.log(t, "ann bob zoe ")
	if out, s := r.run(t, func(job *engine.Job) { zoe(job); job.MarkDone = []string{"a/bare"} }); s.Failed() || s.Asked() {
		t.Errorf("answered:\n%s", out)
	}
	r.log(t, "ann bob zoe ")

	r = died()
	if out, s := r.run(t, set("items", "ann")); len(s.Questions) != 1 || !s.Questions[0].Accept || len(s.Failures) != 1 {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
	if out, s := r.run(t, func(job *engine.Job) { set("items", "ann")(job); job.AcceptChanges = true }); s.Failed() || s.Asked() {
		t.Errorf("accepted:\n%s", out)
	}
	r.log(t, "ann bob ")

	r = died()
	none := func(job *engine.Job) {
		job.Settings = append(job.Settings, engine.Setting{Name: "items", Value: &spec.Value{Kind: spec.List}, Origin: "-e"})
	}
	if out, s := r.run(t, none); len(s.Questions) != 1 || !s.Questions[0].Accept || len(s.Failures) != 1 {
		t.Errorf("asked %v:\n%s", s.Questions, out)
	}
}

// TestStopWaiting guards that the first interrupt ends what only waits, and that this counts as no failure which the book might forgive.
func TestStopWaiting(t *testing.T) {
	for name, waits := range map[string]string{
		"until":    "      - name: waits\n" + onA + "        command: {argv: ['false'], read: true}\n        until: false\n        retries: 1000\n        delay: 60\n        ignore_errors: true\n",
		"wait_for": "      - name: waits\n" + onA + "        wait_for: {path: '{{ root }}/never', timeout: 600}\n        ignore_errors: true\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+waits+says("tail", ""))
			ended := make(chan struct{})
			time.AfterFunc(500*time.Millisecond, func() { close(ended) })
			begin := time.Now()
			out, s := r.run(t, func(job *engine.Job) { job.Stop = ended })
			if took := time.Since(begin); took > 20*time.Second || !s.Interrupted || s.Totals[0].Ignored > 0 {
				t.Errorf("after %v: %+v\n%s", took, s.Totals, out)
			}
			r.log(t, "")
		})
	}
}

// waits is a module whose work goes on by itself when it has given up.
type waits struct{}

func (*waits) Check(context.Context, *module.Host) (module.Plan, error) {
	return module.Plan{Act: true, Unknown: "nobody can tell", Changes: []module.Change{{What: "wait"}}}, nil
}

func (*waits) Apply(context.Context, *module.Host, module.Plan) (module.Values, error) {
	return nil, fmt.Errorf("given up: %w", &module.UnderWayError{Err: errors.New("it goes on there")})
}

// TestUnderWay guards that nothing follows from what goes on by itself on its host, and that a person is asked what has become of it.
func TestUnderWay(t *testing.T) {
	r := newResumable(t, resumeHead+`      - block:
          - {name: waits, waits: {}}
        rescue:
          - {name: saves, copy: {dest: '{{ root }}/saved', content: "x\n"}}
      - name: behind
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "x\n"}
`)
	r.more = func(job *engine.Job) { job.Modules["waits"] = func() module.Module { return &waits{} } }
	for i, answer := range []string{"", "", "waits"} {
		out, s := r.run(t, func(job *engine.Job) {
			if answer != "" {
				job.MarkDone = []string{answer}
			}
		})
		if through := i == 2; s.Asked() != (i == 1) || r.read("saved") != "" || (r.read("a") != "") != through || s.Failed() == through {
			t.Fatalf("part %d: asked %v, failed %v\n%s", i+1, s.Asked(), s.Failed(), out)
		}
	}
}
