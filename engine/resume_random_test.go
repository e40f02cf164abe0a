package engine_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"runbook/engine"
	"runbook/engine/journal"
)

// Random books, whose runs are killed, fail, and are resumed. RUNBOOK_SEEDS says how many a test makes, or which: FROM-TO. RUNBOOK_WITHOUT names
// features that the books are not to have, with commas between them, to make one that fails smaller; the words are those of allowed.

// eachSeed is a test for each seed, two at a time.
func eachSeed(t *testing.T, most uint64, try func(t *testing.T, seed uint64)) {
	from, to := uint64(1), most+1
	if text := os.Getenv("RUNBOOK_SEEDS"); text != "" {
		first, last, ranged := strings.Cut(text, "-")
		a, errA := strconv.ParseUint(first, 10, 32)
		b, errB := a, error(nil)
		if ranged {
			b, errB = strconv.ParseUint(last, 10, 32)
		}
		if errA != nil || errB != nil {
			t.Fatalf("RUNBOOK_SEEDS: neither a number nor FROM-TO: %q", text)
		}
		if from, to = 1, a+1; ranged {
			from, to = a, b+1
		}
	}
	for seed := from; seed < to; seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			try(t, seed)
		})
	}
}

// world is what a random book does to two hosts: each command that is begun adds one line to the log of its host. A line that begins with ! is of
// one that failed; it may be tried again, the others may not.
type world struct {
	*resumable
	rnd  *rand.Rand
	done map[string]bool // whether what was under way at a kill was done, by its run and the number of its beginning
	told []string        // what has been done to it
}

func newWorld(t *testing.T, book string, rnd *rand.Rand) *world {
	return &world{resumable: newResumable(t, book), rnd: rnd, done: map[string]bool{}}
}

// gates is how many files there are that commands of a book may wait for.
const gates = 12

// open opens all gates, and openSome those that chance will have.
func (w *world) open(t *testing.T) {
	for i := range gates {
		w.touch(t, "open"+strconv.Itoa(i))
	}
}

func (w *world) openSome(t *testing.T) {
	for i := range gates {
		if w.rnd.IntN(3) > 0 {
			w.touch(t, "open"+strconv.Itoa(i))
		}
	}
}

func (w *world) openOne(t *testing.T) { w.touch(t, "open"+strconv.Itoa(w.rnd.IntN(gates))) }

// lines are those of a host's log.
func (w *world) lines(host string) []string {
	return slices.Collect(strings.Lines(w.read("log." + host)))
}

// deeds are the lines of a host's log that are not of failures.
func (w *world) deeds(host string) string {
	var out []string
	for _, line := range w.lines(host) {
		if !strings.HasPrefix(line, "!") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, " ")
}

func (w *world) records(t *testing.T) (list []journal.Record) {
	t.Helper()
	for line := range strings.Lines(w.record(t)) {
		var r journal.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// part is where a part of a run begins: in its record, and in the logs of the hosts.
type part struct {
	record int
	logs   map[string]int
}

// kill makes of a run that has ended one that was killed in its last part: its record ends at a random place, and the logs end where they were then.
func (w *world) kill(t *testing.T, last part) {
	t.Helper()
	records, from := w.records(t), max(last.record, 1)
	if len(records) <= from {
		return
	}
	at := from + w.rnd.IntN(len(records)-from)
	n := maps.Clone(last.logs)
	open := map[string]journal.Record{} // what each host is doing
	for _, r := range records[from:at] {
		switch {
		case r.Begin != nil:
			n[r.Begin.Host]++
			open[r.Begin.Host] = r
		case r.End != nil && r.End.Effect && open[r.End.Host].Begin != nil && open[r.End.Host].Begin.Key == r.End.Key:
			delete(open, r.End.Host)
		}
	}
	for _, host := range []string{"a", "b"} {
		lines := w.lines(host)
		if r, is := open[host]; is {
			w.told = append(w.told, "killed in "+host)
			done := w.rnd.IntN(2) == 0
			if !done {
				n[host]--
			}
			w.done[w.doing(r)] = done && !strings.HasPrefix(lines[n[host]-1], "!")
		}
		w.lay(t, "log."+host, strings.Join(lines[:n[host]], ""))
	}
	w.keep(t, strings.SplitAfter(w.record(t), "\n")[:at])
	w.told = append(w.told, fmt.Sprintf("killed behind record %d; done %v", at, w.done))
}

func (w *world) doing(begin journal.Record) string { return fmt.Sprintf("%s:%d", w.id, begin.N) }

// truth answers a question as somebody would who has looked. There may be no cause to ask.
func (w *world) truth(t *testing.T, q engine.Question) (done, known bool) {
	t.Helper()
	open := map[journal.Key]journal.Record{}
	for _, r := range w.records(t) {
		switch {
		case r.Begin != nil:
			open[r.Begin.Key] = r
		case r.End != nil && r.End.Digest != "":
			delete(open, r.End.Key)
		}
	}
	for _, r := range open {
		if b := r.Begin; b.Host == q.Host && b.Name == q.Task && b.Label == q.Item {
			return w.done[w.doing(r)], !q.Accept && !q.Again
		}
	}
	return false, false
}

// step begins a run, or goes on with one, and answers what it asks. It returns the summary of the last part, and where that began.
func (w *world) step(t *testing.T) (s engine.Summary, last part) {
	t.Helper()
	var rerun, mark []string
	for range 8 {
		last = part{0, map[string]int{"a": len(w.lines("a")), "b": len(w.lines("b"))}}
		if w.id != "" {
			last.record = len(w.records(t))
		}
		var out string
		out, s = w.on(t, func(job *engine.Job) { job.Rerun, job.MarkDone = rerun, mark })
		w.told = append(w.told, fmt.Sprintf("run %s, rerun %v, mark %v, from record %d, failed %v, asked %+v:\n%s  a: %s\n  b: %s", w.id, rerun, mark, last.record, s.Failed(), s.Questions, out,
			strings.Join(strings.Fields(w.read("log.a")), " "), strings.Join(strings.Fields(w.read("log.b")), " ")))
		begun := maps.Clone(last.logs)
		for _, r := range w.records(t)[last.record:] {
			if r.Begin != nil {
				begun[r.Begin.Host]++
			}
		}
		for host, n := range begun {
			if n != len(w.lines(host)) {
				t.Fatalf("on %s %d commands were begun, and %d are done:\n%s", host, n, len(w.lines(host)), strings.Join(w.told, "\n"))
			}
		}
		if len(s.Questions) == 0 {
			return s, last
		}
		rerun, mark = nil, nil
		for _, q := range s.Questions {
			done, known := w.truth(t, q)
			switch {
			case !known:
				w.told = append(w.told, fmt.Sprintf("ASKED WITHOUT CAUSE: %+v", q))
				return s, last
			case done:
				mark = append(mark, journal.Answer(q.Host, q.Task, q.Item))
			default:
				rerun = append(rerun, journal.Answer(q.Host, q.Task, q.Item))
			}
		}
	}
	return s, last
}

// TestRandomResume kills random books or lets them fail at random places, and resumes them: in the end each host has seen what it would have seen in
// a run that nothing happened to.
func TestRandomResume(t *testing.T) {
	eachSeed(t, 4, func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		book := newRandomBook(rnd, "once", "handler once").text // what runs once for all runs once for those that came to it
		plain := newWorld(t, book, rnd)
		plain.open(t)
		if s, _ := plain.step(t); s.Failed() || s.Asked() || len(plain.owes(t)) > 0 {
			t.Fatalf("an undisturbed run should go through and owe nothing: %+v\n%s\n%s", plain.owes(t), book, strings.Join(plain.told, "\n"))
		}
		for range 4 {
			w := newWorld(t, book, rnd)
			w.openSome(t)
			for range 1 + rnd.IntN(3) {
				_, last := w.step(t)
				if rnd.IntN(4) > 0 {
					w.kill(t, last)
				}
				if rnd.IntN(2) > 0 {
					w.openOne(t)
				}
			}
			w.open(t)
			var wrong []string
			if s, _ := w.step(t); s.Failed() || s.Asked() {
				wrong = append(wrong, "not through")
			}
			for _, host := range []string{"a", "b"} {
				if got, want := w.deeds(host), plain.deeds(host); got != want {
					wrong = append(wrong, fmt.Sprintf("%s has %s\n  want  %s", host, got, want))
				}
			}
			if owed := w.owes(t); len(owed) > 0 {
				wrong = append(wrong, fmt.Sprintf("owed %+v", owed))
			}
			if len(wrong) > 0 {
				t.Fatalf("%s\n%s\n%s", strings.Join(wrong, "\n"), book, strings.Join(w.told, "\n"))
			}
		}
	})
}

// TestRandomDebts runs random books whose tasks are done once, kills these runs, lets them fail, resumes them and runs others, in random order. In
// the end each handler has run behind what notified it, and not more often than it was notified or may have been.
func TestRandomDebts(t *testing.T) {
	eachSeed(t, 4, func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		b := newRandomBook(rnd, "once", "handler once", "bare", "ignored", "fails", "handler fails")
		for range 3 {
			w := newWorld(t, b.text, rnd)
			w.openSome(t)
			var ids []string
			through := map[string]bool{}
			for range 1 + rnd.IntN(4) {
				if w.id = ""; len(ids) > 0 && rnd.IntN(2) == 0 {
					if id := ids[rnd.IntN(len(ids))]; !through[id] {
						w.id = id
					}
				}
				another := w.id == ""
				s, last := w.step(t)
				if another {
					ids = append(ids, w.id)
				}
				through[w.id] = !s.Failed() && !s.Asked()
				if rnd.IntN(3) > 0 {
					w.kill(t, last)
					through[w.id] = false
				}
				w.openOne(t)
			}
			w.open(t)
			var wrong []string
			w.id = ""
			if s, _ := w.step(t); s.Failed() || s.Asked() {
				wrong = append(wrong, "not through")
			}
			deeds := w.deeds("a") + "|" + w.deeds("b")
			if owed := w.owes(t); len(owed) > 0 {
				wrong = append(wrong, fmt.Sprintf("owed %+v", owed))
			}
			// Now nothing is to be done, neither in another run nor in those that did not come to their end.
			for _, id := range append([]string{""}, slices.DeleteFunc(ids, func(id string) bool { return through[id] })...) {
				w.id = id
				w.step(t)
				if again := w.deeds("a") + "|" + w.deeds("b"); again != deeds {
					wrong = append(wrong, fmt.Sprintf("not at rest, run %q: %s", id, again))
				}
			}
			for _, host := range []string{"a", "b"} {
				wrong = append(wrong, w.unpaid(b, host)...)
			}
			if len(wrong) > 0 {
				t.Fatalf("%s\n%s\n%s", strings.Join(wrong, "\n"), b.text, strings.Join(w.told, "\n"))
			}
		}
	})
}

// unpaid are handlers that did not run on a host behind what notified them, or too often.
func (w *world) unpaid(b *randomBook, host string) (wrong []string) {
	deeds := strings.Fields(w.deeds(host))
	times, most := map[string]int{}, map[string]int{}
	for i, line := range deeds {
		times[line]++
		for _, handler := range b.follow(line, host) {
			if most[handler]++; !slices.Contains(deeds[i+1:], handler) {
				wrong = append(wrong, fmt.Sprintf("%s: no %s behind %s", host, handler, line))
			}
		}
	}
	told := strings.Join(w.told, "\n")
	kills, doubts := strings.Count(told, "killed behind"), strings.Count(told, "killed in "+host)
	for _, handler := range slices.Sorted(maps.Keys(most)) {
		may := doubts
		if strings.Contains(handler, "-") {
			may += kills // who pays for a run that died between the items does all of them
		}
		if n := times[handler]; n > most[handler]+may {
			wrong = append(wrong, fmt.Sprintf("%s: %d times %s, for %d notifications and %d doubts", host, n, handler, most[handler], may))
		}
	}
	return wrong
}

// randomBook is a book of one play or two, whose commands say in the logs of their hosts what they do.
type randomBook struct {
	text    string
	rnd     *rand.Rand
	without []string
	out     strings.Builder

	notes  map[string][]string // handlers, as NAME.PLAY, that what has a line of that name notifies
	marks  map[string][]string // lines of a handler
	only   map[string]string   // the host that a handler is for
	listen map[string]bool     // handlers of the topic

	n        int // tasks
	play     int
	handlers []string
	free     bool // each host goes on by itself
	fails    bool // handlers may fail; then none are flushed where a rescue would forgive that
	chained  bool // a handler notifies one before it
}

func newRandomBook(rnd *rand.Rand, without ...string) *randomBook {
	b := &randomBook{rnd: rnd, without: append(without, strings.Split(os.Getenv("RUNBOOK_WITHOUT"), ",")...),
		notes: map[string][]string{}, marks: map[string][]string{}, only: map[string]string{}, listen: map[string]bool{}}
	b.out.WriteString(strings.Replace(resumeHead[:strings.Index(resumeHead, "  - name")], "resume", "random", 1))
	b.fails = rnd.IntN(2) == 0
	names := []string{"one"}
	if b.maybe(5, "second play") {
		names = append(names, []string{"one", "two"}[rnd.IntN(2)])
	}
	for i, name := range names {
		b.addPlay(i, name)
	}
	b.text = b.out.String()
	return b
}

// allowed tells whether books have a feature.
func (b *randomBook) allowed(feature string) bool { return !slices.Contains(b.without, feature) }

// maybe is true once in n times, if books have the feature.
func (b *randomBook) maybe(n int, feature string) bool {
	return b.rnd.IntN(n) == 0 && b.allowed(feature)
}

func (b *randomBook) line(format string, args ...any) { fmt.Fprintf(&b.out, format+"\n", args...) }

func (b *randomBook) addPlay(i int, name string) {
	b.line("  - name: %s\n    hosts: web", name)
	b.play, b.free, b.chained, b.handlers = i, false, false, nil
	switch {
	case b.maybe(5, "serial"):
		b.line("    serial: 1")
	case b.maybe(6, "free"):
		b.line("    strategy: free")
		b.free = true
	}
	for j := range 1 + b.rnd.IntN(3) {
		b.handlers = append(b.handlers, fmt.Sprintf("h%d", j+1))
	}
	b.line("    tasks:")
	for range 2 + b.rnd.IntN(4) {
		b.addTask("      ", false)
	}
	b.line("    handlers:")
	for j := range b.handlers {
		b.addHandler(j)
	}
}

// logs is a command that says what it does, and mayFail one that fails as long as its gate is closed.
func logs(what string) string { return "echo '" + what + "' >>{{ root }}/log.{{ inventory_hostname }}" }

func mayFail(what string, gate int) string {
	return fmt.Sprintf("test -e {{ root }}/open%d && %s || { %s; exit 1; }", gate, logs(what), logs("!"+what))
}

func (b *randomBook) addHandler(j int) {
	name := b.handlers[j]
	id := fmt.Sprintf("%s.%d", name, b.play)
	b.line("      - name: %s", name)
	what := id
	b.marks[id] = []string{id}
	if b.maybe(4, "handler loops") {
		b.line("        loop: [x, y]")
		what = id + "-{{ item }}"
		b.marks[id] = []string{id + "-x", id + "-y"}
	}
	shell, ignored := logs(what), false
	if b.fails && b.maybe(3, "handler fails") {
		shell = mayFail(what, gates/2+b.rnd.IntN(gates/2))
	} else if b.maybe(6, "handler ignored") {
		shell, ignored = shell+"; exit 1", true
		b.line("        ignore_errors: true")
	}
	b.line("        command: {shell: \"%s\"}", shell)
	if !b.free && b.maybe(5, "handler once") {
		b.line("        run_once: true")
	} else if b.maybe(5, "handler when") {
		b.line("        when: inventory_hostname == 'b'")
		b.only[id] = "b"
	}
	if b.maybe(8, "handler delegated") {
		b.line("        delegate_to: b")
	}
	if len(b.handlers) > 1 && !ignored && b.maybe(3, "chain") {
		to := b.rnd.IntN(len(b.handlers))
		if to > j || to < j && j == len(b.handlers)-1 && !b.chained { // not to each other
			b.chained = true
			b.line("        notify: %s", b.handlers[to])
			for _, m := range b.marks[id] {
				b.notes[m] = []string{fmt.Sprintf("%s.%d", b.handlers[to], b.play)}
			}
		}
	}
	if j == 0 || b.rnd.IntN(3) == 0 {
		b.line("        listen: [topic]")
		b.listen[id] = true
	}
}

// notify is what a task notifies.
func (b *randomBook) notify() (names []string) {
	switch {
	case b.rnd.IntN(3) == 0:
		return nil
	case b.maybe(5, "topic"):
		return []string{"topic"}
	}
	names = []string{b.handlers[b.rnd.IntN(len(b.handlers))]}
	if b.rnd.IntN(3) == 0 {
		if other := b.handlers[b.rnd.IntN(len(b.handlers))]; other != names[0] {
			names = append(names, other)
		}
	}
	return names
}

func (b *randomBook) addTask(in string, nested bool) {
	b.n++
	id := fmt.Sprintf("t%d", b.n)
	switch k := b.rnd.IntN(10); {
	case k == 0 && !nested && b.allowed("gate"):
		b.line("%s- name: %s\n%s  command: {argv: [test, -e, '{{ root }}/open%d'], read: true}", in, id, in, b.rnd.IntN(gates/2))
		if b.rnd.IntN(2) == 0 {
			b.line("%s  when: inventory_hostname == 'a'", in)
		}
		return
	case k == 1 && b.allowed("flush") && (!nested || !b.fails):
		b.line("%s- meta: flush_handlers", in)
		return
	case k <= 3 && !nested && b.allowed("block"):
		b.addBlock(in)
		return
	}
	b.line("%s- name: %s", in, id)
	what, lines := id, []string{id}
	if b.maybe(5, "loop") {
		b.line("%s  loop: [x, y]", in)
		what, lines = id+"-{{ item }}", []string{id + "-x", id + "-y"}
	}
	shell, more, fails := logs(what), "", false
	switch {
	case !nested && b.maybe(8, "fails"):
		shell = mayFail(what, b.rnd.IntN(gates/2))
	case b.maybe(10, "ignored"):
		shell, fails = logs("!"+what)+"; exit 1", true
		b.line("%s  ignore_errors: true", in)
	case b.maybe(6, "secret"):
		shell, more = shell+"; cat", ", stdin: '{{ password }}'"
		b.line("%s  register: s%d", in, b.n)
		b.line("%s  failed_when: result.rc != 0", in)
	}
	if !fails && (b.rnd.IntN(2) == 0 || !b.allowed("bare")) {
		more += fmt.Sprintf(", unless: \"grep -qx '%s' {{ root }}/log.{{ inventory_hostname }}\"", what)
	}
	b.line("%s  command: {shell: \"%s\"%s}", in, shell, more)
	switch {
	case !b.free && b.maybe(6, "once"):
		b.line("%s  run_once: true", in)
	case b.maybe(4, "when"):
		b.line("%s  when: inventory_hostname == '%s'", in, []string{"a", "b"}[b.rnd.IntN(2)])
	}
	if b.maybe(8, "delegated") {
		b.line("%s  delegate_to: b", in)
	}
	if names := b.notify(); names != nil && !fails { // killed in what fails, it would owe a handler for the doubt alone
		b.line("%s  notify: [%s]", in, strings.Join(names, ", "))
		for _, line := range lines {
			for _, name := range names {
				b.notes[line] = append(b.notes[line], fmt.Sprintf("%s.%d", name, b.play))
			}
		}
	}
}

func (b *randomBook) addBlock(in string) {
	b.line("%s- block:", in)
	for range 1 + b.rnd.IntN(2) {
		b.addTask(in+"    ", true)
	}
	if b.rnd.IntN(2) == 0 {
		b.n++
		b.line("%s    - name: t%d\n%s      command: {shell: \"%s; exit 1\"}", in, b.n, in, logs(fmt.Sprintf("!t%d", b.n)))
		if b.rnd.IntN(2) == 0 {
			b.line("%s      when: inventory_hostname == 'a'", in)
		}
	}
	b.line("%s  rescue:", in)
	b.addTask(in+"    ", true)
	if b.rnd.IntN(3) == 0 {
		b.line("%s  always:", in)
		b.addTask(in+"    ", true)
	}
}

// follow are the lines that have to come on a host behind one.
func (b *randomBook) follow(line, host string) (all []string) {
	for _, handler := range b.notes[line] {
		ids := []string{handler}
		if play, is := strings.CutPrefix(handler, "topic."); is {
			ids = slices.DeleteFunc(slices.Sorted(maps.Keys(b.listen)), func(id string) bool { return !strings.HasSuffix(id, "."+play) })
		}
		for _, id := range ids {
			if b.only[id] == "" || b.only[id] == host {
				all = append(all, b.marks[id]...)
			}
		}
	}
	return all
}
