package engine_test

import (
	"strings"
	"testing"

	"runbook/engine"
)

// looped is a book whose bare command is done for each of the items, which are a parameter.
func looped(items, when, behind string) string {
	return strings.Replace(resumeHead, "params:\n", "params:\n  no: {default: nobody}\n  items: {type: list, default: "+items+"}\n", 1) +
		"      - name: bare\n        when: inventory_hostname == \"a\" && " + when + "\n        loop: items\n        command: {shell: 'echo {{ item }} >>{{ root }}/log'}\n" + behind
}

// underWay is what a cut has behind it: the item of a loop, by its place, that the program died in.
func underWay(item string) []string {
	return []string{`"kind":"end"`, `"name":"bare"`, `"host":"a"`, `"item":"` + item + `"`}
}

// TestItemsElsewhere guards that an item which was done is not done again wherever it stands now, and that one which was under way is asked about
// until somebody answers, whatever has been put in its place.
func TestItemsElsewhere(t *testing.T) {
	bob := engine.Question{Host: "a", Task: "bare", Item: "bob"}
	for _, c := range []struct {
		name, items, when string
		died              string // in the item of this place; "" failed at the gate
		log               string // as it was then
		now               func(*engine.Job)
		asked             engine.Question
		answers           func(*engine.Job)
		want              string
	}{
		{"moved", "[ann, bob]", "true", "", "ann bob ", set("items", "bob,ann"), engine.Question{}, nil, "ann bob "},
		{"fewer", "[ann, bob]", "true", "", "ann bob ", set("items", "bob"), engine.Question{}, nil, "ann bob "},
		{"one that was skipped has moved", "[ann, bob]", `item != "bob"`, "", "ann ", set("items", "bob,ann"), engine.Question{}, nil, "ann "},
		{"another in its place", "[ann, bob]", "true", "1", "ann bob ", with(set("items", "ann,zoe,bob"), accept), bob, markDone("a/bare [bob]"), "ann bob zoe "},
		{"another in its place, not done", "[ann, bob]", "true", "1", "ann ", with(set("items", "ann,zoe,bob"), accept), bob, rerun("bare [bob]"), "ann zoe bob "},
		{"the same thrice", "[ann, ann, ann]", "true", "1", "ann ", nil, engine.Question{Host: "a", Task: "bare", Item: "ann"}, rerun("a/bare"), "ann ann ann "},
		{"one that was done is to be skipped", "[ann, bob]", "item != no", "", "ann bob ", with(set("items", "zoe,ann,bob"), set("no", "bob")),
			engine.Question{Host: "a", Task: "bare", Accept: true}, accept, "ann bob zoe "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, looped(c.items, c.when, gate))
			r.on(t, nil)
			if c.died != "" {
				r.cutBefore(t, underWay(c.died)...)
				r.lay(t, "log", strings.ReplaceAll(c.log, " ", "\n"))
			}
			r.log(t, c.log)
			r.touch(t, "open")
			if c.now == nil {
				c.now = func(*engine.Job) {}
			}
			if c.answers == nil {
				r.through(t, c.now)
				r.log(t, c.want)
				return
			}
			r.asks(t, c.asked, c.now)
			between := r.read("log")
			r.asks(t, c.asked, c.now) // it is not forgotten
			if r.read("log") != between {
				t.Errorf("asked for the second time, the log has %q, before %q", r.read("log"), between)
			}
			r.through(t, with(c.now, c.answers))
			r.log(t, c.want)
		})
	}
}

// TestAnswersOfOthers guards that an answer is about what was under way when it was given, not about what has the same name and was answered before.
func TestAnswersOfOthers(t *testing.T) {
	for name, book := range map[string]string{
		"items":     resumeHead + "      - name: bare\n" + onA + "        loop: [one, two]\n        command: {shell: 'echo {{ item }} >>{{ root }}/log'}\n",
		"two tasks": resumeHead + strings.Replace(says("bare", ""), "echo bare", "echo one", 1) + strings.Replace(says("bare", ""), "echo bare", "echo two", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResumable(t, book)
			r.on(t, nil)
			r.cut(t, "bare", "a") // one is done
			r.lay(t, "log", "one\n")
			r.through(t, markDone("a/bare"))
			r.log(t, "one two ")
			r.cutBefore(t, `"kind":"end"`, `"name":"bare"`, `"host":"a"`) // two is not
			r.lay(t, "log", "one\n")
			two := engine.Question{Host: "a", Task: "bare"}
			if name == "items" {
				two.Item = "two"
			}
			r.asks(t, two, nil)
			r.log(t, "one ")
			r.through(t, rerun("a/bare"))
			r.log(t, "one two ")
		})
	}
}

// TestLoopTakenAway guards that an item which was under way is asked about when its task loops no more.
func TestLoopTakenAway(t *testing.T) {
	r := newResumable(t, looped("[ann, bob]", "true", ""))
	r.on(t, nil)
	r.cutBefore(t, underWay("1")...)
	r.write(t, strings.NewReplacer("        loop: items\n", "", "{{ item }}", "bob").Replace(looped("[ann, bob]", "true", "")))
	if out, s := r.on(t, accept); len(s.Questions) != 1 {
		t.Errorf("asked %+v:\n%s", s.Questions, out)
	}
	r.log(t, "ann bob ")
}

// TestItemHalfDone guards that the handler of an item which failed when it had begun runs, though another item was put in its place and the run
// died behind that one.
func TestItemHalfDone(t *testing.T) {
	book := strings.Replace(resumeHead, "params:\n", "params:\n  items: {type: list, default: [ann, bob]}\n", 1) + "      - name: half\n" + onA + `        loop: items
        command: {shell: 'echo {{ item }} >>{{ root }}/{{ item }}; test {{ item }} != bob', creates: '{{ root }}/{{ item }}'}
        notify: '{{ item == "bob" ? "restart" : "other" }}'
` + restarts + "      - name: other\n        command: {argv: ['true']}\n"
	for _, items := range []string{"ann,bob", "ann,zoe,bob"} {
		r := newResumable(t, book)
		r.on(t, nil)
		now := with(set("items", items), accept)
		if items != "ann,bob" {
			r.on(t, now)
			r.cutBehind(t, `"kind":"end"`, `"label":"zoe"`)
			r.lay(t, "log", "")
		}
		r.through(t, now)
		r.log(t, "restarted ")
	}
}

// TestChangedBack guards that a task whose arguments were others in between, which was accepted and done, or begun, is done anew when they are again
// what they were: what is on record of them does not hold any more.
func TestChangedBack(t *testing.T) {
	for _, loop := range []string{"", "        loop: [x]\n"} {
		for _, became := range []string{"done", "under way", "failed half-way"} {
			t.Run(map[bool]string{true: "task ", false: "item "}[loop == ""]+became, func(t *testing.T) {
				t.Parallel()
				r := newResumable(t, strings.Replace(resumeHead, "params:\n", "params:\n  text: {default: one}\n", 1)+"      - name: file\n"+onA+loop+
					"        command: {shell: 'echo {{ text }} >{{ root }}/file; test {{ text }} = one || test ! -e {{ root }}/broken', unless: 'grep -qx {{ text }} {{ root }}/file'}\n"+gate)
				r.on(t, nil)
				if became == "failed half-way" {
					r.touch(t, "broken")
				}
				two := with(set("text", "two"), accept)
				r.on(t, two)
				if became == "under way" {
					r.cutBefore(t, `"kind":"end"`, `"name":"file"`, `"host":"a"`)
				}
				if r.read("file") != "two\n" {
					t.Fatalf("left %q", r.read("file"))
				}
				r.touch(t, "open")
				out, s := r.on(t, with(set("text", "one"), accept))
				if s.Failed() || s.Asked() || r.read("file") != "one\n" {
					t.Errorf("failed %v, asked %+v, left %q:\n%s", s.Failed(), s.Questions, r.read("file"), out)
				}
			})
		}
	}
}

// TestSkippedNamesake guards that an item which is skipped, as it was, is not taken for one that was done because both are called the same.
func TestSkippedNamesake(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: bare\n        loop: [ann, ann]\n        loop_control: {index_var: i}\n        when: inventory_hostname == \"a\" && i == 0\n        command: {shell: 'echo bare >>{{ root }}/log'}\n"+gate)
	r.on(t, nil)
	r.log(t, "bare ")
	r.touch(t, "open")
	r.through(t, nil)
	r.log(t, "bare ")
}
