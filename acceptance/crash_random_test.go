package acceptance

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"runbook/engine/journal"
)

// randomCrash is a runbook that is made from a seed, of what a resume has to bear: loops over lists, over what a task has said, and with an item
// twice; registered values in conditions, arguments and loops; blocks with rescue and always; handlers; run_once, delegate_to, serial. It is
// run without a kill in one place, and with kills, answers and perhaps an edit in another: bare commands are done as often in both, once more only
// where --rerun said so, and what is registered is the same.
type randomCrash struct {
	*rand.Rand
	n        int
	known    []known
	handlers int
	gated    bool
	items    bool            // a loop over the parameter items
	secrets  int             // so many of a hundred commands say a secret
	once     map[string]bool // on any host
	plain    map[string]bool // it neither loops nor registers
}

// known is a name that is registered on all hosts.
type known struct {
	name, task    string
	looped, lines bool
}

func (b *randomCrash) chance(percent int) bool { return b.IntN(100) < percent }

func (b *randomCrash) pick(list ...string) string { return list[b.IntN(len(list))] }

// list makes tasks, with the indent of their list.
func (b *randomCrash) list(indent string, n, depth int) string {
	var out strings.Builder
	for range n {
		if depth < 2 && b.chance(18) {
			// What a block registers is not known on all hosts behind it.
			known := slices.Clone(b.known)
			more := indent + "    "
			out.WriteString(indent + "- block:\n" + b.list(more, 1+b.IntN(2), depth+1))
			rescued := b.chance(65)
			if rescued && b.chance(70) {
				out.WriteString(b.task(more, true))
			}
			if rescued {
				out.WriteString(indent + "  rescue:\n" + b.list(more, 1+b.IntN(2), depth+1))
			}
			if !rescued || b.chance(50) {
				out.WriteString(indent + "  always:\n" + b.list(more, 1+b.IntN(2), depth+1))
			}
			b.known = known
			continue
		}
		if b.handlers > 0 && b.chance(8) {
			out.WriteString(indent + "- meta: flush_handlers\n")
			continue
		}
		out.WriteString(b.task(indent, false))
	}
	return out.String()
}

// task makes one task; fails says that it is to.
func (b *randomCrash) task(indent string, fails bool) string {
	b.n++
	name := fmt.Sprintf("t%02d", b.n)
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, indent+"  "+format+"\n", args...) }
	fmt.Fprintf(&out, "%s- name: %s\n", indent, name)
	k := known{name: "r" + name, task: name}
	item, where := "", "{{ inventory_hostname }}"
	anywhere := where
	loop := func() {
		if !b.chance(40) {
			return
		}
		var over []string
		for _, other := range b.known {
			if other.lines && !other.looped {
				over = append(over, other.name+".stdout_lines")
			}
		}
		of := b.pick(append(over, "[x, y]", "[x, y, x]", "[p, q, r]", "items")...)
		b.items = b.items || of == "items"
		line("loop: %s", of)
		if of != "items" && b.chance(15) {
			line("loop_control: {index_var: i}")
		}
		item, k.looped = "{{ item }}", true
	}
	when := func() {
		if len(b.known) == 0 || !b.chance(30) {
			return
		}
		r := b.known[b.IntN(len(b.known))]
		conds := []string{r.name + ".changed", "!" + r.name + ".changed", "!" + r.name + ".failed"}
		if r.lines && !r.looped {
			conds = append(conds, fmt.Sprintf("(%s?.stdout ?? \"\") contains \"p\"", r.name), fmt.Sprintf("(%s?.stdout ?? \"\") == \"\"", r.name))
		}
		line("when: '%s'", b.pick(conds...))
	}
	once := func() {
		if b.chance(12) {
			line("run_once: true")
			b.once[name], anywhere = true, "any"
		} else if b.chance(10) {
			line("delegate_to: b")
		}
	}
	notify := func() {
		if b.handlers > 0 && !b.once[name] && b.chance(30) { // on which host that was is chance
			line("notify: h%d", b.IntN(b.handlers))
		}
	}
	switch kind := b.IntN(100); {
	case fails || kind < 50:
		k.lines = true
		loop()
		when()
		once()
		notify()
		end := "printf \"p\\nq\\n\""
		if !fails && b.chance(b.secrets) {
			end = "cat', stdin: '{{ password }}"
			k.lines = false
		} else if fails {
			end = "exit 3"
		} else if b.chance(10) {
			end = "exit 3"
			line("ignore_errors: true")
		} else if b.chance(10) {
			line("until: result.rc == 0")
			line("delay: 0")
		}
		line("command: {shell: 'echo %s %s %s >>{{ root }}/once; %s'}", name, cmp.Or(item, "-"), where, end)
	case kind < 75:
		loop()
		when()
		once()
		notify()
		text := "v"
		for range b.IntN(3) {
			if len(b.known) > 0 {
				r := b.known[b.IntN(len(b.known))]
				text += fmt.Sprintf(" {{ %s.changed }} {{ %s.failed }}", r.name, r.name)
				if r.lines && !r.looped {
					text += fmt.Sprintf(" {{ (%s?.stdout ?? \"\") }}", r.name)
				}
			}
		}
		line("copy: {dest: '{{ root }}/f.%s.%s.%s', content: \"%s\\n\"}", name, anywhere, item, strings.ReplaceAll(text, `"`, `\"`))
	default:
		k.lines = true
		when()
		line("command: {shell: 'ls {{ root }} | grep \"f\\.t[0-9]*\\.%s\\.$\"; true', read: true}", where)
	}
	if b.chance(60) && !fails {
		line("register: %s", k.name)
		b.known = append(b.known, k)
	} else if !k.looped && !fails && !strings.Contains(out.String(), "ignore_errors") {
		b.plain[name] = true
	}
	return out.String()
}

// newRandomCrash makes the runbook, and the same with a task more in it, "" if nobody edits it.
func newRandomCrash(seed uint64) (b *randomCrash, book, edited string) {
	b = &randomCrash{Rand: rand.New(rand.NewPCG(seed, 5)), once: map[string]bool{}, plain: map[string]bool{}}
	b.handlers = b.IntN(3)
	b.secrets = 4
	if os.Getenv("RUNBOOK_SECRETS") != "" {
		b.secrets = 30
	}
	head := "runbook: random\nparams:\n  password: {secret: true, required: true}\n  root: {type: path, required: true}\n  items: {type: list, default: [ann, bob]}\nplays:\n  - name: one\n    hosts: all\n"
	if b.chance(15) {
		head += "    serial: 1\n"
	}
	head += "    tasks:\n"
	const indent = "      "
	first := b.list(indent, 2+b.IntN(4), 0)
	if b.chance(35) {
		b.gated = true
		first += indent + "- name: gate\n" + indent + "  command: {argv: [test, -e, '{{ root }}/open'], read: true}\n"
	}
	old, new := first, first
	if b.chance(30) {
		new += indent + "- name: new\n" + indent + "  loop: [x, y]\n" + indent + "  command: {shell: 'echo new {{ item }} {{ inventory_hostname }} >>{{ root }}/once'}\n"
	}
	rest := b.list(indent, 1+b.IntN(4), 0)
	rest += indent + "- name: last\n" + indent + "  copy:\n" + indent + "    dest: '{{ root }}/last.{{ inventory_hostname }}'\n" + indent + "    content: |\n"
	rest += indent + "      what is known\n"
	for _, k := range b.known {
		rest += fmt.Sprintf("%s      %s {{ %s.changed }} {{ %s.failed }} {{ %s.skipped }}", indent, k.name, k.name, k.name, k.name)
		if k.looped {
			rest += fmt.Sprintf(" {{ len(%s?.results ?? []) }}", k.name)
		} else if k.lines {
			rest += fmt.Sprintf(" {{ toJSON(%s?.stdout_lines ?? []) }}", k.name)
		}
		rest += "\n"
	}
	if b.handlers > 0 {
		rest += "    handlers:\n"
	}
	for i := range b.handlers {
		rest += fmt.Sprintf("      - name: h%d\n", i)
		if b.chance(20) {
			b.once[fmt.Sprintf("h%d", i)] = true
			rest += "        run_once: true\n"
		} else if b.chance(25) {
			rest += "        loop: [one, two]\n"
		}
		rest += fmt.Sprintf("        command: {shell: 'echo h%d - {{ inventory_hostname }} >>{{ root }}/once'}\n", i)
	}
	if old == new {
		return b, head + old + rest, ""
	}
	return b, head + old + rest, head + new + rest
}

// count is how often each line was written.
func (b *randomCrash) count(t *testing.T, root string) map[string]int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "once"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	n := map[string]int{}
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if b.once[words[0]] {
			words[2] = "any"
		}
		n[strings.Join(words, " ")]++
	}
	return n
}

// files are those that the run has left, but for the list of what was done once.
func files(t *testing.T, root string) string {
	t.Helper()
	return treeOf(t, root, func(name, path string) (string, error) {
		if name == "once" || name == "open" {
			return "", nil
		}
		data, err := os.ReadFile(path)
		return string(data), err
	})
}

// randomTrial is a random book, what has become of it, and what is wrong with that.
type randomTrial struct {
	*randomCrash
	book, edited string // "" if nobody edits it
	items, more  string // the list that it is called with, and the one that it is resumed with, "" for the same
	log          strings.Builder
	problems     []string
	kills        int
	accept       bool           // a person has said that what differs is meant
	reruns       map[string]int // how often, by HOST/TASK
}

func (r *randomTrial) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// place is one for a run; open says that its gate is.
func (r *randomTrial) place(t *testing.T, book string, open bool) *crash {
	t.Helper()
	c := newCrash(t)
	c.write(t, "book.yml", book)
	c.write(t, "secrets.yml", "password: hunter2-hunter2\n")
	c.write(t, "inv.yml", "groups: {all: {connection: local, hosts: {a: {}, b: {}}}}\n")
	if open {
		c.write(t, "root/open", "")
	}
	return c
}

func (c *crash) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// call calls the program and kills it at a moment of its record; 0 does not. A code below 0 says that it was killed.
func (r *randomTrial) call(t *testing.T, c *crash, kill int, args ...string) (string, int) {
	t.Helper()
	cmd := c.command(t, crashing, append(args, "--state-dir", c.state)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("RUNBOOK_CRASH=%d", kill), "RUNBOOK_CRASH_LOG="+filepath.Join(c.dir, "moments"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	code := cmd.ProcessState.ExitCode()
	if code < 0 {
		r.kills++
	}
	fmt.Fprintf(&r.log, "$ %s  (kill at %d): %d\n%s\n", strings.Join(args, " "), kill, code, out)
	return string(out), code
}

func runArgs(c *crash, items string) []string {
	return []string{"run", "book.yml", "-i", "inv.yml", "-e", "@secrets.yml", "-e", "root=" + c.root, "-e", "items=" + items}
}

// tryRandomCrash makes a trial of a seed.
func tryRandomCrash(t *testing.T, seed uint64) *randomTrial {
	t.Helper()
	b, book, edited := newRandomCrash(seed)
	r := &randomTrial{randomCrash: b, book: book, edited: edited, items: "[ann, bob]", reruns: map[string]int{}}
	if b.items && b.chance(40) { // an item more, put anywhere, is an edit too
		r.more = b.pick("[bob, ann]", "[zoe, ann, bob]", "[ann, zoe, bob]", "[bob, ann, zoe]")
	}
	whole := r.place(t, cmp.Or(edited, book), true)
	switch _, code := r.call(t, whole, 0, runArgs(whole, cmp.Or(r.more, r.items))...); code {
	case 0:
	case 1:
		return r // a book that fails says nothing
	default:
		t.Fatalf("an uninterrupted run ended with %d:\n%s\n%s", code, r.log.String(), book)
	}
	r.log.Reset()
	moments, err := os.ReadFile(filepath.Join(whole.dir, "moments"))
	if err != nil {
		t.Fatal(err)
	}
	c := r.place(t, book, !b.gated)
	_, code := r.call(t, c, 1+b.IntN(strings.Count(string(moments), "\n")), runArgs(c, r.items)...)
	if code == 0 && r.differs() {
		return r // it was through before the edit
	}
	c.write(t, "root/open", "")
	if edited != "" {
		c.write(t, "book.yml", edited)
	}
	if code != 0 && !r.goOn(t, c) {
		return r
	}
	r.compare(t, whole, c)
	return r
}

// differs tells whether what is resumed is not what was begun.
func (r *randomTrial) differs() bool { return r.edited != "" || r.more != "" }

var answerable = regexp.MustCompile(`--rerun (?:'([^']+)'|(\S+))`)

// answered is the task on a host that an answer is about, whichever item of it.
func (r *randomTrial) answered(answer string) (host, task string) {
	host, task, _ = strings.Cut(answer, "/")
	task, _, _ = strings.Cut(task, " ")
	if r.once[task] {
		host = "any"
	}
	return host, task
}

// goOn resumes the run until it is through, with the answers that are asked for, and kills it some times more. It is false if there is nothing to compare.
func (r *randomTrial) goOn(t *testing.T, c *crash) bool {
	t.Helper()
	var answer []string
	for n := range 13 {
		runs, err := journal.List(c.state)
		if err != nil {
			t.Fatal(err)
		}
		var args []string
		switch {
		case len(runs) > 0 && runs[0].Status == "done":
			return n > 0 || !r.differs() // the kill came too late for the edit
		case len(runs) == 0 || !runs[0].Resumable:
			args = runArgs(c, cmp.Or(r.more, r.items)) // it had not begun
		default:
			args = []string{"resume"}
			if r.more != "" {
				args = append(args, "-e", "items="+r.more)
			}
			if r.accept {
				args = append(args, "--accept-changes")
			}
			args = append(args, answer...)
		}
		for i, word := range answer {
			if word == "--rerun" {
				host, task := r.answered(answer[i+1])
				r.reruns[host+"/"+task]++
			}
		}
		kill := 0
		if r.chance(40) && n < 3 {
			kill = 10 + r.IntN(80)
		}
		out, code := r.call(t, c, kill, args...)
		switch {
		case code == 0:
			return true
		case code < 0:
			answer = nil // what was answered may be on record, or not
		case code == 3 && strings.Contains(out, "--accept-changes goes on") && r.edited != "":
			r.accept = true
		case code == 4:
			if answer = r.answer(t, c, out); answer == nil && !r.accept {
				r.problem("it asks what cannot be answered")
				return false
			}
		default:
			r.problem("it ended with %d", code)
			return false
		}
	}
	r.problem("it does not come to an end")
	return false
}

// answer is what a person says who has looked on the hosts.
func (r *randomTrial) answer(t *testing.T, c *crash, out string) (answer []string) {
	t.Helper()
	_, page, _ := strings.Cut(out, "To go on")
	page, _, _ = strings.Cut(page, "To look closer")
	_, first, _ := strings.Cut(page, "\n")
	first, _, _ = strings.Cut(first, "\n")
	if strings.Contains(first, "--accept-changes") {
		if r.accept = true; !r.differs() {
			r.problem("nothing has changed, and it asks whether that is meant")
		}
	}
	for _, m := range answerable.FindAllStringSubmatch(first, -1) {
		name := cmp.Or(m[1], m[2])
		host, task := r.answered(name)
		how := "--rerun"
		if r.plain[task] && r.count(t, c.root)[task+" - "+host] > 0 && r.chance(70) {
			how = "--mark-done" // nothing rests upon what it returned
		}
		answer = append(answer, how, name)
	}
	return answer
}

// compare finds what a run that was killed has left otherwise than a whole one.
func (r *randomTrial) compare(t *testing.T, whole, killed *crash) {
	t.Helper()
	want, got := r.count(t, whole.root), r.count(t, killed.root)
	for _, line := range slices.Sorted(maps.Keys(want)) {
		if got[line] < want[line] {
			r.problem("%q: %d times, want %d", line, got[line], want[line])
		}
	}
	tooMany := map[string]int{}
	for _, line := range slices.Sorted(maps.Keys(got)) {
		words := strings.Fields(line)
		if want[line] == 0 && words[0][0] != 'h' {
			r.problem("%q: %d times, want none", line, got[line])
		}
		tooMany[words[2]+"/"+words[0]] += max(0, got[line]-want[line])
	}
	for _, at := range slices.Sorted(maps.Keys(tooMany)) {
		host, task, _ := strings.Cut(at, "/")
		most := r.reruns[at]
		if task[0] == 'h' {
			most += 2 * r.kills // a restart too many is better than one too few
		}
		if tooMany[at] > most {
			r.problem("%s on %s: %d times too many, %d were allowed", task, host, tooMany[at], most)
		}
	}
	if w, g := files(t, whole.root), files(t, killed.root); w != g {
		r.problem("files: want\n%s\ngot\n%s", w, g)
	}
	if len(r.problems) > 0 {
		fmt.Fprintf(&r.log, "%s\n%s", r.book, killed.records(t))
	}
}

// TestCrashRandom kills runs of random books. RUNBOOK_SEEDS says how many books, or which: FROM-TO; with RUNBOOK_SECRETS more of their commands say a
// secret.
func TestCrashRandom(t *testing.T) {
	t.Parallel()
	from, to := uint64(1), uint64(6)
	if text := os.Getenv("RUNBOOK_SEEDS"); text != "" {
		first, last, ranged := strings.Cut(text, "-")
		if !ranged {
			first, last = "1", text
		}
		var errs [2]error
		from, errs[0] = strconv.ParseUint(first, 10, 32)
		to, errs[1] = strconv.ParseUint(last, 10, 32)
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatalf("RUNBOOK_SEEDS: neither a number nor FROM-TO: %v", err)
		}
	}
	var kills atomic.Int64
	t.Run("seed", func(t *testing.T) {
		for seed := from; seed <= to; seed++ {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				r := tryRandomCrash(t, seed)
				kills.Add(int64(r.kills))
				if len(r.problems) > 0 {
					t.Errorf("%s\n%s", strings.Join(r.problems, "\n"), r.log.String())
				}
			})
		}
	})
	if kills.Load() == 0 && !t.Failed() {
		t.Error("nothing was killed")
	}
}
