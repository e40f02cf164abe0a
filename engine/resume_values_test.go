package engine_test

import (
	"context"
	"strings"
	"testing"

	"runbook/engine"
	"runbook/engine/module"
)

// gives is a module that returns numbers of all kinds.
type gives struct{}

func (*gives) Check(context.Context, *module.Host) (module.Plan, error) {
	return module.Plan{Act: true, Changes: []module.Change{{What: "give"}}}, nil
}

func (*gives) Returns() []module.Return {
	return []module.Return{{Name: "f", Type: "float"}, {Name: "g", Type: "float"}, {Name: "h", Type: "float"}, {Name: "u", Type: "int"}, {Name: "n", Type: "any"}, {Name: "l", Type: "list"}}
}

func (*gives) Apply(context.Context, *module.Host, module.Plan) (module.Values, error) {
	return module.Values{"f": 1000000.0, "g": 2.0, "h": 1e22, "u": 9007199254740993, "n": nil, "l": []any{1, 2.0, nil, []any{"x"}, map[string]any{"k": 3.0}}}, nil
}

// TestValuesExactly guards that values from the record are what they were, to the type and the byte.
func TestValuesExactly(t *testing.T) {
	var numbers strings.Builder
	for _, expr := range []string{"said.f", "said.g", "said.h", "said.u", "said.n == nil", "toJSON(said.l)", "said.g / 4", "7 / said.g", "said.g == 2", "type(said.g)", "round(said.g)", "int(said.g) % 2",
		`said.l == [1, 2.0, nil, ["x"], {"k": 3.0}]`} {
		numbers.WriteString("{{ " + expr + " }} | ")
	}
	bare := func(command string) string {
		return "      - name: bare\n" + onA + "        command: {shell: '" + command + "'}\n        register: said\n"
	}
	for _, c := range []struct{ name, task, text string }{
		{"numbers", "      - name: give\n" + onA + "        gives: {}\n        register: said\n", numbers.String()},
		{"bytes", bare(`printf "\351t\351 <&>\342\200\250"`), "{{ said.stdout }} {{ len(said.stdout_lines) }}"},
		{"much", bare(`head -c 300000 /dev/zero | tr "\0" x`), "n {{ len(said.stdout) }}"},
		{"items", "      - name: bare\n" + onA + "        loop: [ann, bob]\n        command: {shell: 'echo {{ item }}; test {{ item }} != bob'}\n        ignore_errors: true\n        register: said\n",
			"{{ toJSON(said.results) }}"},
		{"failure", "      - block:\n          - name: fails\n            when: inventory_hostname == \"a\"\n            command: {shell: 'printf \"\\351\" >&2; exit 1'}\n" +
			"        rescue:\n          - {name: says, command: {shell: 'cat', stdin: '{{ failure.msg }}'}, register: said}\n", "{{ said.stdout }}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			note := func(name string) string {
				return "      - name: " + name + "\n" + onA + "        copy: {dest: '{{ root }}/" + name + "', content: '" + c.text + "'}\n"
			}
			r := newResumable(t, resumeHead+c.task+note("one")+gate+note("two"))
			r.more = func(job *engine.Job) { job.Modules["gives"] = func() module.Module { return &gives{} } }
			r.on(t, nil)
			r.touch(t, "open")
			r.through(t, nil)
			if one, two := r.read("one"), r.read("two"); one == "" || one != two {
				t.Errorf("before %q, from the record %q", one, two)
			}
		})
	}
}

// TestValuesFound guards that nobody invents what a command returned that was under way and is found done, and that no judgement of it is passed
// upon that.
func TestValuesFound(t *testing.T) {
	made := "      - name: made\n" + onA + "        command: {shell: 'echo made >>{{ root }}/log; echo OK', creates: '{{ root }}/log'}\n"
	r := newResumable(t, resumeHead+made+"        register: made\n      - name: use\n"+onA+"        copy: {dest: '{{ root }}/use', content: 'token={{ made.stdout }}'}\n")
	r.on(t, nil)
	if r.read("use") != "token=OK" {
		t.Fatalf("left %q", r.read("use"))
	}
	r.cut(t, "made", "a")
	r.remove(t, "use")
	if out, s := r.on(t, nil); r.read("use") != "" || !s.Failed() {
		t.Errorf("it went on with %q:\n%s", r.read("use"), out)
	}

	r = newResumable(t, resumeHead+made+"        failed_when: '!(result.stdout contains \"OK\")'\n"+says("tail", ""))
	r.on(t, nil)
	r.cut(t, "made", "a")
	r.lay(t, "log", "made\n")
	r.through(t, nil)
	r.log(t, "made tail ")
}

// TestUntilRerun guards that a task which was under way and is done once more has all its attempts.
func TestUntilRerun(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: bare\n"+onA+"        until: result.stdout == \"3\"\n        delay: 0\n        retries: 5\n        command: {shell: 'echo x >>{{ root }}/log; grep -c x {{ root }}/log'}\n        register: said\n"+
		"      - name: use\n"+onA+"        copy: {dest: '{{ root }}/use', content: 'n={{ said.stdout }}'}\n")
	r.on(t, nil)
	r.log(t, "x x x ")
	r.cutBehind(t, `"kind":"begin"`, `"name":"bare"`)
	r.lay(t, "log", "x\n")
	r.remove(t, "use")
	r.asks(t, engine.Question{Host: "a", Task: "bare"}, nil)
	r.through(t, rerun("a/bare"))
	r.log(t, "x x x ")
	if r.read("use") != "n=3" {
		t.Errorf("left %q", r.read("use"))
	}
}

// secretly is a command that says a secret, behind what it does.
func secretly(does, more string) string {
	return "      - name: bare\n" + onA + "        command: {shell: '" + does + "; cat', stdin: '{{ password }}'" + more + "}\n        register: said\n"
}

// TestWithheld guards that a task which was done is neither done again nor asked about because what it returned held a secret, and that what it
// returned otherwise is known, however often the run is resumed.
func TestWithheld(t *testing.T) {
	creates := ", creates: '{{ root }}/made'"
	makes := "echo bare >>{{ root }}/log; echo x >{{ root }}/made"
	handler := "      - meta: flush_handlers\n"
	behind := func(when string) string {
		return "      - name: behind\n        when: inventory_hostname == \"a\" && " + when + "\n        command: {shell: 'echo behind >>{{ root }}/log'}\n"
	}
	for _, c := range []struct{ name, before, after, want string }{
		{"bare", secretly("echo bare >>{{ root }}/log", ""), "", "bare "},
		{"changed", secretly(makes, creates), behind("said.changed && !said.failed"), "bare behind "},
		{"exit status", secretly(makes, creates+", ok_codes: [0, 3]") + "", behind("said.rc == 0"), "bare behind "},
		{"undone by a later task", secretly(makes, creates) + "      - name: used\n" + onA + "        command: {shell: 'rm {{ root }}/made'}\n", "", "bare "},
		{"its handler has run", secretly(makes, creates) + "        notify: restart\n" + handler, restarts, "bare restarted "},
		{"rescued", "      - block:\n" + strings.TrimRight(indented(secretly(makes, creates)), " ") + "            failed_when: true\n" + strings.TrimRight(indented(says("never", "")), " ") +
			"        rescue:\n" + strings.TrimRight(indented(says("rescue", "")), " "), "", "bare rescue "},
		{"bare and rescued", "      - block:\n" + strings.TrimRight(indented(secretly("echo bare >>{{ root }}/log", "")), " ") + "            failed_when: true\n" + strings.TrimRight(indented(says("never", "")), " ") +
			"        rescue:\n" + strings.TrimRight(indented(says("rescue", "")), " "), "", "bare rescue "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+c.before+gate+c.after)
			r.on(t, nil)
			was := r.read("log")
			for range 2 { // the gate is closed still
				if out, s := r.on(t, nil); s.Asked() || r.read("log") != was {
					t.Errorf("asked %+v, the log has %q, before %q:\n%s", s.Questions, r.read("log"), was, out)
				}
			}
			r.touch(t, "open")
			r.through(t, nil)
			r.log(t, c.want)
		})
	}
}

// TestWithheldNeeded guards that what was withheld is known again only if the same is found, that a task which needs it fails otherwise, and that
// this can be answered.
func TestWithheldNeeded(t *testing.T) {
	look := "      - name: bare\n" + onA + "        command: {shell: 'cat {{ root }}/state 2>/dev/null; cat', stdin: '{{ password }}', read: true}\n        register: said\n"
	behind := func(name, when string) string {
		return "      - name: " + name + "\n        when: inventory_hostname == \"a\" && " + when + "\n        command: {shell: 'echo " + name + " >>{{ root }}/log'}\n"
	}
	asked := engine.Question{Host: "a", Task: "bare", Again: true}
	for _, c := range []struct {
		name, book string
		asked      engine.Question
		want, then string // with the answer
	}{
		{"found again", look + says("other", "") + gate + behind("behind", `said.stdout contains "hunter2"`), engine.Question{}, "other behind ", ""},
		{"another is found", look + "      - name: state\n" + onA + "        copy: {dest: '{{ root }}/state', content: \"set\\n\"}\n" + gate + behind("behind", `(said.stdout contains "set")`), asked, "", "behind "},
		{"another is found, and what needed it is done", look + behind("first", `!(said.stdout contains "set")`) + "      - name: state\n" + onA + "        copy: {dest: '{{ root }}/state', content: \"set\\n\"}\n" + gate, engine.Question{}, "first ", ""},
		{"it cannot be looked at", secretly("echo x >>{{ root }}/file", ", creates: '{{ root }}/file'") + says("other", "") + gate + behind("behind", `said.stdout contains "hunter2"`), asked, "other ", "other behind "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, resumeHead+c.book)
			r.on(t, nil)
			r.touch(t, "open")
			if c.asked == (engine.Question{}) {
				r.through(t, nil)
				r.log(t, c.want)
				return
			}
			r.asks(t, c.asked, nil)
			r.log(t, c.want)
			r.through(t, with(rerun("a/bare"), accept))
			r.log(t, c.then)
		})
	}
}

// TestWithheldItem guards that an item whose values were withheld is not asked about in place of one that was under way, nor answered with it.
func TestWithheldItem(t *testing.T) {
	for answer, want := range map[string]string{"done": "one ", "again": "one two "} {
		r := newResumable(t, resumeHead+strings.Replace(secretly("echo {{ item }} >>{{ root }}/log", ""), "        command", "        loop: [one, two]\n        command", 1))
		r.on(t, nil)
		r.cutBefore(t, underWay("1")...)
		r.lay(t, "log", "one\n") // two was not done
		r.asks(t, engine.Question{Host: "a", Task: "bare", Item: "two"}, nil)
		r.through(t, map[string]func(*engine.Job){"done": markDone("a/bare"), "again": rerun("a/bare")}[answer])
		r.log(t, want)
	}
}

// TestWithheldUsed guards that what is done is not asked about because what it was given held a secret, which is not on record.
func TestWithheldUsed(t *testing.T) {
	r := newResumable(t, resumeHead+secretly("echo bare >>{{ root }}/log", "")+"      - name: use\n"+onA+"        command: {shell: 'cat >/dev/null; echo use >>{{ root }}/log', stdin: '{{ said.stdout }}'}\n"+gate)
	r.on(t, nil)
	r.touch(t, "open")
	r.through(t, nil)
	r.log(t, "bare use ")
}
