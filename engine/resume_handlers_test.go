package engine_test

import (
	"context"
	"strings"
	"testing"

	"runbook/engine"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/inventory"
)

// notifier makes a file on a and notifies restart.
func notifier(name string) string {
	return "      - name: " + name + "\n" + onA + "        copy: {dest: '{{ root }}/" + name + "', content: \"x\\n\"}\n        notify: restart\n"
}

const flush = "      - meta: flush_handlers\n"

// TestHandlersBackwards guards that a handler which one behind it has notified, and which failed, runs once when the run goes on.
func TestHandlersBackwards(t *testing.T) {
	r := newResumable(t, resumeHead+strings.Replace(notifier("file"), "restart", "second", 1)+
		"    handlers:\n      - name: first\n        command: {shell: 'test -e {{ root }}/open && echo first >>{{ root }}/log'}\n"+
		"      - name: second\n        command: {shell: 'echo second >>{{ root }}/log'}\n        notify: first\n")
	if out, s := r.on(t, nil); !s.Failed() {
		t.Fatalf("the first handler should fail:\n%s", out)
	}
	r.touch(t, "open")
	r.through(t, nil)
	r.log(t, "second first ")
}

// TestHandlerItems guards that items of a handler that were done are not done again: in its second turn, and by who pays for another run.
func TestHandlerItems(t *testing.T) {
	r := newResumable(t, resumeHead+notifier("one")+flush+notifier("two")+"    handlers:\n      - name: restart\n        loop: [x, y]\n        command: {shell: 'echo {{ item }} >>{{ root }}/log'}\n")
	r.on(t, nil)
	r.log(t, "x y x y ")
	r.cutBefore(t, `"kind":"end"`, `"name":"restart"`, `"item":"0"`, `"nth":2`)
	r.lay(t, "log", "x\ny\nx\n")
	r.asks(t, engine.Question{Host: "a", Task: "restart", Item: "x"}, nil)
	r.log(t, "x y x ")
	r.through(t, markDone("a/restart"))
	r.log(t, "x y x y ")

	r = newResumable(t, resumeHead+notifier("file")+gate+
		"    handlers:\n      - name: restart\n        loop: [one, two]\n        command: {shell: '{ test {{ item }} = one || test -e {{ root }}/two; } && echo {{ item }} >>{{ root }}/log'}\n")
	r.on(t, nil)
	r.touch(t, "open")
	r.id = ""
	r.on(t, nil) // two fails
	r.log(t, "one ")
	r.touch(t, "two")
	r.through(t, nil)
	r.log(t, "one two ")
	if owed := r.owes(t); len(owed) > 0 {
		t.Errorf("owed %+v", owed)
	}
}

// TestNotifierInDoubt guards that a handler which may be owed stays so, whatever the notifier finds when it is done once more, and is paid once: that
// nothing changes now is no wonder.
func TestNotifierInDoubt(t *testing.T) {
	for name, make := range map[string]string{
		"nothing to do now": "        command: {shell: 'if test -e {{ root }}/made; then echo was there; else touch {{ root }}/made; echo made; fi'}\n        register: said\n        changed_when: said.stdout == \"made\"\n",
		"it fails now":      "        command: {shell: 'mkdir {{ root }}/made'}\n        ignore_errors: true\n",
	} {
		for _, next := range []string{"resumed", "another run"} {
			t.Run(name+", "+next, func(t *testing.T) {
				t.Parallel()
				r := newResumable(t, resumeHead+"      - name: make\n"+onA+make+"        notify: restart\n"+gate+restarts)
				r.on(t, nil)
				r.cut(t, "make", "a")
				for _, answer := range []func(*engine.Job){nil, rerun("a/make")} { // the gate is closed still
					if out, _ := r.on(t, answer); len(r.owes(t)) != 1 {
						t.Errorf("owed %+v\n%s", r.owes(t), out)
					}
				}
				r.touch(t, "open")
				if next == "another run" {
					r.id = ""
				}
				r.through(t, nil)
				r.log(t, "restarted ")
			})
		}
	}
}

// TestHalfDoneNotifies guards that the handler of a task which failed when it had begun runs, though the task changes nothing any more when it is
// done again.
func TestHalfDoneNotifies(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: make\n"+onA+"        command: {shell: 'test -e {{ root }}/made && echo was there || { touch {{ root }}/made; exit 1; }'}\n        register: said\n"+
		"        changed_when: said.stdout == \"made\"\n        notify: restart\n"+gate+restarts)
	for range 3 { // it fails itself, and then the gate
		if out, s := r.on(t, nil); !s.Failed() || len(r.owes(t)) != 1 {
			t.Errorf("owed %+v:\n%s", r.owes(t), out)
		}
	}
	r.touch(t, "open")
	r.through(t, nil)
	r.log(t, "restarted ")
}

// TestPaidByAnother guards that what another run has paid is not paid again when the run that died in the notifier is resumed, whatever has become
// of the notifier meanwhile.
func TestPaidByAnother(t *testing.T) {
	head := strings.Replace(resumeHead, "params:\n", "params:\n  wanted: {type: bool, default: true}\n  items: {type: list, default: [f]}\n", 1)
	file := strings.Replace(notifier("file"), onA, "        when: wanted && inventory_hostname == \"a\"\n", 1)
	items := "      - name: file\n        loop: items\n" + onA + "        copy: {dest: '{{ root }}/{{ item }}', content: \"x\\n\"}\n        notify: restart\n"
	none := func(job *engine.Job) {
		job.Settings = append(job.Settings, engine.Setting{Name: "items", Value: &spec.Value{Kind: spec.List}, Origin: "-e"})
	}
	for _, c := range []struct {
		name, tasks string
		died        string // in this task
		now         func(*engine.Job)
		want        string
	}{
		{"the same", file, "file", nil, "restarted "},
		{"the second of two", notifier("other") + file, "file", nil, "restarted "},
		{"skipped now", file, "file", with(set("wanted", "false"), accept), "restarted "},
		{"no such item now", items, "file", with(none, accept), "restarted "},
		{"another item now", items, "file", with(set("items", "g"), accept), "restarted restarted "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, head+c.tasks+gate+restarts)
			r.touch(t, "open")
			r.on(t, nil)
			r.cut(t, c.died, "a")
			r.lay(t, "log", "")
			died := r.id
			r.id = ""
			r.through(t, nil)
			r.log(t, "restarted ")
			r.id = died
			r.remove(t, "open")
			for range 2 {
				if out, s := r.on(t, c.now); !s.Failed() || s.Asked() {
					t.Errorf("the gate should fail, asked %+v:\n%s", s.Questions, out)
				}
			}
			r.touch(t, "open")
			r.through(t, c.now)
			r.log(t, c.want)
		})
	}
}

// TestHandlerRescued guards that a failure of a handler which a rescue has forgiven is on record, so that the rescue goes on where it was.
func TestHandlerRescued(t *testing.T) {
	r := newResumable(t, resumeHead+"      - block:\n"+strings.TrimRight(indented(notifier("file")+flush+says("behind", "")), " ")+"        rescue:\n"+strings.TrimRight(indented(says("one", "")+says("two", "")), " ")+
		"    handlers:\n      - name: restart\n        command: {shell: 'test -e {{ root }}/open && echo restarted >>{{ root }}/log'}\n")
	r.on(t, nil)
	r.log(t, "one two ")
	r.cutBefore(t, `"kind":"begin"`, `"name":"two"`)
	r.lay(t, "log", "one\n")
	r.touch(t, "open")
	r.through(t, nil)
	r.log(t, "one two ")
}

// TestHalfDoneUnreachable guards that a task which had begun is not forgotten because the next attempt could not reach its host: its handler runs
// though there is nothing left to do.
func TestHalfDoneUnreachable(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: file\n"+onA+`        command: {shell: 'touch {{ root }}/half; test -e {{ root }}/open', unless: 'test -e {{ root }}/half'}
        notify: restart
      - name: later
        when: inventory_hostname == "b"
        command: {shell: 'touch {{ root }}/later'}
`+strings.ReplaceAll(gate, "open", "open2")+restarts)
	r.on(t, nil) // fails on a when it has begun; b comes to its gate
	r.cutBefore(t, `"kind":"begin"`, `"name":"later"`)
	lost := func(job *engine.Job) {
		job.Dial = func(ctx context.Context, h *inventory.Host) (transport.Conn, error) {
			if h.Name == "a" {
				return nil, &transport.UnreachableError{Host: "a"}
			}
			return r.dial(ctx, h)
		}
	}
	for _, change := range []func(*engine.Job){lost, nil} { // the gate is closed still
		if out, s := r.on(t, change); !s.Failed() || len(r.owes(t)) != 1 {
			t.Errorf("owed %+v:\n%s", r.owes(t), out)
		}
	}
	r.touch(t, "open2")
	r.through(t, nil)
	r.log(t, "restarted ")
}

// TestBookTwice guards that of a book which is run twice in one run each time has its own handlers.
func TestBookTwice(t *testing.T) {
	r := newResumable(t, resumeHead+says("bare", "        notify: restart\n")+flush+restarts)
	r.more = func(job *engine.Job) { job.Books = append(job.Books, job.Books[0]) }
	r.through(t, nil)
	r.log(t, "bare restarted bare restarted ")
	r.cutBefore(t, `"kind":"begin"`, `"name":"restart"`)
	r.lay(t, "log", "bare\nrestarted\nbare\n")
	r.through(t, nil)
	r.log(t, "bare restarted bare restarted ")
}
