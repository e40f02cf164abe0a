package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/engine/vars"
)

// A run writes down what it does, and a resumed one goes through the same program again with what was written as its memo: an item
// that has its end is not done again, its outcome comes from the record. Loops, blocks, rescues, handlers and registered results come
// back by themselves that way. What has a beginning and no end was under way: Check decides, and where it cannot tell, a person does.

// Program describes what a job would run, task by task, and on which hosts, for its record. The error is spec.Errors.
func Program(job Job) (books []journal.Book, hosts []string, err error) {
	if job.Masker == nil {
		job.Masker = &secret.Masker{}
	}
	p, errs := compile(&job)
	if len(errs) > 0 {
		return nil, nil, errs
	}
	used := p.hosts()
	for _, h := range job.Inventory.Hosts() {
		if used[h.Name] {
			hosts = append(hosts, h.Name)
		}
	}
	return p.describe(&job), hosts, nil
}

func (p *program) describe(job *Job) []journal.Book {
	var books []journal.Book
	for i, b := range p.books {
		book := journal.Book{Path: job.Books[i].Path, File: job.Books[i].File, Title: b.spec.Title, Owed: b.owed}
		for _, play := range b.plays {
			p := journal.Play{Name: play.title, Hosts: []string{}}
			for _, h := range play.hosts {
				p.Hosts = append(p.Hosts, h.Name)
			}
			if len(play.spec.Serial) > 0 {
				p.Serial = fmt.Sprint(play.spec.Serial)
			}
			book.Plays = append(book.Plays, p)
			for _, t := range allTasks(play) {
				book.Tasks = append(book.Tasks, journal.Task{ID: recordID(i, t), Play: play.title, Name: t.label(), Digest: taskDigest(t.spec)})
			}
		}
		book.Digest = digestOf(book.Tasks)
		books = append(books, book)
	}
	return books
}

// allTasks lists the tasks of a play and its handlers, those in blocks too.
func allTasks(p *play) []*task {
	var list []*task
	var walk func(tasks []*task)
	walk = func(tasks []*task) {
		for _, t := range tasks {
			list = append(list, t)
			walk(t.block)
			walk(t.rescue)
			walk(t.always)
		}
	}
	walk(p.tasks)
	walk(p.handlers)
	return list
}

// digestOf is a short digest of anything that JSON can hold; a secret counts as its mask.
func digestOf(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		text = fmt.Append(nil, v)
	}
	return fmt.Sprintf("%x", sha256.Sum256(text))[:16]
}

// taskDigest tells two tasks apart that do not do the same; where they stand and what is said about them is no matter.
func taskDigest(ts *spec.Task) string {
	value := func(v *spec.Value) any {
		if v == nil {
			return nil
		}
		return v.Any()
	}
	values := func(list []*spec.Value) []any {
		var out []any
		for _, v := range list {
			out = append(out, value(v))
		}
		return out
	}
	entries := func(list []spec.Entry) []any {
		var out []any
		for _, e := range list {
			out = append(out, e.Key, value(e.Value))
		}
		return out
	}
	return digestOf([]any{ts.Module, value(ts.Args), ts.Meta, values(ts.When), values(ts.ChangedWhen), values(ts.FailedWhen), values(ts.Until),
		value(ts.Loop), ts.LoopVar, ts.IndexVar, ts.Register, values(ts.Notify), values(ts.Listen), value(ts.Become), value(ts.BecomeUser),
		entries(ts.Vars), entries(ts.Environment), value(ts.Retries), value(ts.Delay), value(ts.Timeout), value(ts.IgnoreErrors),
		value(ts.DelegateTo), value(ts.RunOnce), len(ts.Block), len(ts.Rescue), len(ts.Always)})
}

// memo is what the record of an earlier part of the run says.
type memo struct {
	mu    sync.Mutex
	ends  map[journal.Key]*journal.End
	taken map[*journal.End]bool          // those that an item of today has
	begun map[journal.Key]*journal.Begin // without an end
	half  map[journal.Key]*journal.Begin // it failed when it had begun
	at    map[*journal.End]int           // where it stands in the record
	from  map[*journal.Begin]int         // where it stands in the record
	moved []*journal.End                 // of items in whose places others were done since
	facts map[string]*journal.Facts
	boots map[string]string // boot id by host, as it was last
	// what tells a host from others of its name, as it was last
	machines map[string]string
	// tasks, by host and name, of which something was under way: an answer is about that
	doubtful map[string]bool
	turned   map[turn]int // where it says that a handler has had its turn, last
}

// turn is a handler on a host.
type turn struct{ task, host string }

// behind is the record after which a doing of a handler is part of the turn that it has now: what notified it, or, if that was another run, its last
// turn. Who calls it holds mu.
func (m *memo) behind(task, host string, why notice) int {
	if why.debt {
		return max(why.at, m.turned[turn{task, host}])
	}
	return why.at
}

func newMemo(past []journal.Record) *memo {
	m := &memo{ends: map[journal.Key]*journal.End{}, taken: map[*journal.End]bool{}, half: map[journal.Key]*journal.Begin{}, at: map[*journal.End]int{}, from: map[*journal.Begin]int{}, begun: map[journal.Key]*journal.Begin{}, facts: map[string]*journal.Facts{}, boots: map[string]string{}, machines: map[string]string{}, doubtful: map[string]bool{}, turned: map[turn]int{}}
	rests := based(past)
	for _, r := range past {
		switch {
		case r.Begin != nil:
			m.begun[r.Begin.Key], m.from[r.Begin] = r.Begin, r.N
			if old := m.ends[r.Begin.Key]; old != nil && old.Digest != r.Begin.Digest {
				m.moved = append(m.moved, old)
			}
			delete(m.ends, r.Begin.Key)
		case r.End != nil && r.End.Digest == "":
			// It was passed over.
			if r.End.Turn {
				m.turned[turn{r.End.Task, r.End.Host}] = r.N
			}
		case r.End != nil && r.End.Status == string(report.Unreachable) && r.End.Effect && !stands(r.End):
			// It may have happened, so it is still under way.
		case r.End != nil && m.begun[r.End.Key] == nil && !r.End.Effect && !rests(r.End.Host, playOf(r.End.Task), r.N):
			delete(m.ends, r.End.Key)
		case r.End != nil:
			begin := m.begun[r.End.Key]
			delete(m.begun, r.End.Key)
			if old := m.ends[r.End.Key]; old != nil && old.Digest != r.End.Digest {
				m.moved = append(m.moved, old)
			}
			delete(m.ends, r.End.Key)
			switch {
			case stands(r.End):
				m.ends[r.End.Key], m.at[r.End] = r.End, r.N
				delete(m.half, r.End.Key)
			case r.End.Effect:
				m.half[r.End.Key] = begin
			}
			if r.End.Turn {
				m.turned[turn{r.End.Task, r.End.Host}] = r.N
			}
		case r.Facts != nil:
			if len(r.Facts.Values) > 0 && rests(r.Facts.Host, "", r.N) {
				m.facts[r.Facts.Host] = r.Facts
			}
			if r.Facts.BootID != "" {
				m.boots[r.Facts.Host] = r.Facts.BootID
			}
			if r.Facts.Machine != "" {
				m.machines[r.Facts.Host] = r.Facts.Machine
			}
		}
	}
	for key, begin := range m.begun {
		m.doubtful[journal.Answer(key.Host, begin.Name, "")] = true
	}
	return m
}

// based tells of what was only looked at whether a change may rest upon it, so that it has to be remembered as it was. Nothing does upon
// what came after the last change that was made or is under way; and where a host has failed in a play, it is looked again at what the
// host has looked at in that play since its own last change: somebody may have mended it.
func based(past []journal.Record) func(host, play string, n int) bool {
	type place struct{ host, play string }
	open := map[journal.Key]int{}
	last, lastOf := 0, map[string]int{}
	failed := map[journal.Key]bool{}
	change := func(host string, n int) { last, lastOf[host] = max(last, n), max(lastOf[host], n) }
	for _, r := range past {
		switch {
		case r.Begin != nil:
			open[r.Begin.Key] = r.N
		case r.End != nil && r.End.Digest == "":
			// It was passed over.
		case r.End != nil:
			failed[r.End.Key] = r.End.Status == string(report.Failed) && !stands(r.End)
			if n, begun := open[r.End.Key]; (begun || r.End.Effect) && !failed[r.End.Key] {
				change(r.End.Host, max(n, r.N))
			}
			if r.End.Status != string(report.Unreachable) {
				delete(open, r.End.Key)
			}
		}
	}
	for key, n := range open {
		change(key.Host, n)
	}
	anew := map[place]bool{}
	for key, is := range failed {
		if is {
			anew[place{key.Host, playOf(key.Task)}] = true
		}
	}
	return func(host, play string, n int) bool {
		return n < last && !(anew[place{host, play}] && n > lastOf[host])
	}
}

// stands reports whether an outcome on record holds: a failure that nobody forgave is tried again.
func stands(end *journal.End) bool {
	var res report.Result
	if json.Unmarshal(end.Result, &res) != nil {
		return false
	}
	return res.Status != report.Unreachable && res.Status != report.Failed || res.Ignored || res.Rescued
}

// playOf is the part of a task's name in the record that stands for its play.
func playOf(task string) string {
	play, _, _ := strings.Cut(task, "/")
	return play
}

// did reports whether a task was done on a host, or begun.
func (m *memo) did(task, host string, why notice) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, end := range m.ends {
		if key.Task == task && key.Host == host && !why.fresh && m.at[end] > m.behind(task, host, why) {
			return true
		}
	}
	for key, begin := range m.begun {
		if key.Task == task && key.Host == host && !why.fresh && m.from[begin] > why.at {
			return true
		}
	}
	return false
}

// elsewhere is a host on which a task was done, or begun, and that is none of some; "" if there is none.
func (m *memo) elsewhere(task string, none func(host string) bool, why notice) string {
	m.mu.Lock()
	hosts := map[string]bool{}
	for key := range m.ends {
		hosts[key.Host] = hosts[key.Host] || key.Task == task && !none(key.Host)
	}
	for key := range m.begun {
		hosts[key.Host] = hosts[key.Host] || key.Task == task && !none(key.Host)
	}
	m.mu.Unlock()
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		if hosts[host] && m.did(task, host, why) {
			return host
		}
	}
	return ""
}

// values are what a task returned on a host that takes no part any more, nil if they cannot be had from the record.
func (m *memo) values(task, host string, looped, needed bool) map[string]any {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.begun {
		if key.Task == task && key.Host == host {
			return nil
		}
	}
	if looped {
		return nil // how many items it had there is not known
	}
	end := m.ends[journal.Key{Task: task, Host: host, Item: "0", Nth: 1}]
	if end == nil || needed && (end.Withheld || end.Unseen) {
		return nil
	}
	if !needed {
		return map[string]any{}
	}
	values, err := decodeValues(end.Values)
	if err != nil {
		return nil
	}
	return values
}

// doing is one doing of one item of a task on a host.
type doing struct {
	journal.Key
	name    string // as it is called now, and its item
	label   string
	digest  string
	args    map[string]string // digests of the arguments, each by itself
	began   bool              // its beginning is on record: what it does may have happened
	collect bool              // the job of an Apply that was under way has an outcome
	forget  func(context.Context) error
	restore *journal.End
	halfway *journal.Begin // it was under way when an earlier part of the run ended
	half    *journal.Begin // it failed in an earlier part, when it had begun
	look    bool           // what of its values is not on record may be looked at
	anew    bool           // its host has started anew since
	owes    []string       // handlers that it has notified in an earlier part
	at      int            // where the record says so
}

// doingOf counts how often this item of the task is done on the host in this run.
func (p *playRun) doingOf(t *task, h *hostRun, index int) *doing {
	d := &doing{Key: p.next(t, h, index)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done[d.Task+" "+d.Item] = d.Nth
	return d
}

// next is what the next doing of this item of the task will be called. A handler is done again unless all that notified it is on record, and its
// doing behind that.
func (p *playRun) next(t *task, h *hostRun, index int) journal.Key {
	key := journal.Key{Task: p.taskID(t), Host: h.host.Name, Item: fmt.Sprint(index)}
	h.mu.Lock()
	why := h.turn[t]
	key.Nth = h.done[key.Task+" "+key.Item] + 1
	h.mu.Unlock()
	if !slices.Contains(p.play.handlers, t) {
		return key
	}
	m := p.memo
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		end, begun, half := m.ends[key], m.begun[key], m.half[key]
		if end == nil && begun == nil && half == nil {
			return key
		}
		if !why.fresh && (m.from[begun] > why.at || max(m.at[end], m.from[half]) > m.behind(key.Task, key.Host, why)) {
			return key
		}
		key.Nth++
	}
}

// taskID is the name of a task in the record: the runbook's place in the job, and the task's in the runbook.
func (p *playRun) taskID(t *task) string {
	return recordID(slices.Index(p.program.books, p.book), t)
}

func recordID(book int, t *task) string { return fmt.Sprintf("%d:%s", book+1, t.id) }

// recall looks up what the record says of a doing whose arguments are known now. changed are those that were others then.
func (p *playRun) recall(d *doing, t *task, target *hostRun, user string, args map[string]any, late, environment map[string]string) (changed []string, err error) {
	known, err := p.public(args)
	if err != nil {
		return nil, err
	}
	d.args = map[string]string{"delegate_to": digestOf(target.host.Name)[:8], "become_user": digestOf(user)[:8]}
	if len(environment) > 0 {
		d.args["environment"] = digestOf(environment)[:8]
	}
	for name, v := range known {
		d.args[name] = digestOf(v)[:8]
	}
	d.digest = digestOf([]any{t.spec.Module, target.host.Name, user, known, late, environment})
	m := p.memo
	m.mu.Lock()
	defer m.mu.Unlock()
	looped := t.loop != nil
	if looped {
		defer func() {
			if d.restore == nil && d.halfway == nil {
				d.Item = m.room(d)
			}
		}()
	}
	for key, begin := range m.half {
		if key == d.Key && !looped || looped && key.Task == d.Task && key.Host == d.Host && key.Nth == d.Nth && begin.Digest == d.digest {
			d.half = begin
		}
	}
	begun := m.begun[d.Key]
	if begun == nil || begun.Digest != d.digest {
		// It may be an item that stood elsewhere; what a task without a loop has begun with other arguments is what it is asked about.
		if same := m.itemBegun(d); same != nil || looped {
			begun = same
		}
	}
	if begun != nil {
		delete(m.begun, begun.Key)
		d.Key, d.halfway = begun.Key, begun // with other arguments too: nobody knows what it did
		return d.differs(begun.Digest, begun.Args), nil
	}
	end := m.ends[d.Key]
	if end == nil || end.Digest != d.digest {
		if same := m.itemDone(d); same != nil {
			end = same
		}
	}
	if looped && end != nil && m.taken[end] {
		return nil, nil
	}
	if end == nil {
		return nil, nil
	}
	if !looped || end.Digest == d.digest {
		d.owes, d.at = end.Owes(), m.at[end]
	}
	if end.Digest != d.digest {
		return d.differs(end.Digest, end.Args), nil
	}
	m.taken[end] = true
	d.restore = end
	return nil, nil
}

// differs lists the arguments that are not what they were, nil if all are.
func (d *doing) differs(digest string, args map[string]string) (names []string) {
	if digest == d.digest {
		return nil
	}
	for name, was := range args {
		if d.args[name] != was {
			names = append(names, name)
		}
	}
	for name := range d.args {
		if args[name] == "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return []string{"its module"}
	}
	slices.Sort(names)
	return names
}

// itemDone finds an item with the same arguments at another place in the loop, which may have been edited. Who calls it holds mu.
func (m *memo) itemDone(d *doing) *journal.End {
	var found *journal.End
	look := func(end *journal.End) {
		if end.Digest == d.digest && !m.taken[end] && end.Task == d.Task && end.Host == d.Host && end.Nth == d.Nth && (found == nil || m.at[end] < m.at[found]) {
			found = end
		}
	}
	for key, end := range m.ends {
		if key.Item != d.Item {
			look(end)
		}
	}
	for _, end := range m.moved {
		look(end)
	}
	return found
}

// room is the place of an item on record: its place in the loop, or beside it if that is another item's, which the loop had there before. Who calls
// it holds mu.
func (m *memo) room(d *doing) string {
	key := d.Key
	for n := 1; ; n++ {
		end, begun, half := m.ends[key], m.begun[key], m.half[key]
		if (end == nil || end.Digest == d.digest && !m.taken[end]) && (begun == nil || begun.Digest == d.digest) && (half == nil || half.Digest == d.digest) {
			return key.Item
		}
		key.Item = fmt.Sprintf("%s.%d", d.Item, n)
	}
}

// itemBegun finds one that was under way. Who calls it holds mu.
func (m *memo) itemBegun(d *doing) *journal.Begin {
	for key, begin := range m.begun {
		if begin.Digest == d.digest && key.Task == d.Task && key.Host == d.Host && key.Nth == d.Nth {
			return begin
		}
	}
	return nil
}

// labelled is where the record has the item of a loop that is called so, wherever it stands now. Who calls it holds mu.
func (m *memo) labelled(at journal.Key, label string) journal.Key {
	is := func(key journal.Key) bool {
		return key.Task == at.Task && key.Host == at.Host && key.Nth == at.Nth
	}
	for key, end := range m.ends {
		if is(key) && end.Label == label {
			return key
		}
	}
	for _, open := range []map[journal.Key]*journal.Begin{m.begun, m.half} {
		for key, begin := range open {
			if is(key) && begin.Label == label {
				return key
			}
		}
	}
	at.Item = ""
	return at
}

// leftover asks about items of a loop that were under way in its nth turn, or before, and that it does not have any more.
func (p *playRun) leftover(t *task, h *hostRun, nth int) *outcome {
	if p.job.Check || p.job.Journal == nil || h.failure() != nil {
		return nil
	}
	id := p.taskID(t)
	h.mu.Lock()
	why := h.turn[t]
	h.mu.Unlock()
	m := p.memo
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, begin := range m.begun {
		if key.Task != id || key.Host != h.host.Name || key.Nth > nth || why.fresh || m.from[begin] <= why.at {
			continue
		}
		delete(m.begun, key)
		if p.job.AcceptChanges {
			p.notifyOwed(h, begin.Owes(), 0)
			continue
		}
		out := fail("the item %s was under way when the run ended, and the loop has no such item any more: look on %s, and resume with --accept-changes", cmp.Or(begin.Label, key.Item), h.host.Name)
		p.ask(Question{Host: h.host.Name, Task: t.label(), Accept: true})
		out.open = true
		return &out
	}
	return nil
}

// passedOver deals with a task whose condition does not hold although the record says that it was done, or begun: that is asked, and what it has
// notified is owed still.
func (p *playRun) passedOver(t *task, h *hostRun, index int, label string, out *outcome) {
	key := p.next(t, h, index)
	handler := slices.Contains(p.play.handlers, t)
	p.memo.mu.Lock()
	if label != "" {
		key = p.memo.labelled(key, p.job.Masker.Mask(label))
	}
	end, begun := p.memo.ends[key], cmp.Or(p.memo.begun[key], p.memo.half[key])
	at := p.memo.at[end]
	p.memo.mu.Unlock()
	if handler {
		end = nil // its turn has come
	}
	if p.job.Check || begun == nil && (end == nil || !end.Effect) {
		if handler {
			out.doing = p.doingOf(t, h, index)
		}
		return
	}
	if !p.job.AcceptChanges {
		because := out.result.Because
		*out = fail("it is to be skipped now, though the run that is resumed has begun it: resume with --accept-changes if that is meant (%s)", because)
		p.ask(Question{Host: h.host.Name, Task: t.label(), Accept: true})
		out.open = true
		return
	}
	if handler {
		out.doing = p.doingOf(t, h, index)
	}
	if end != nil {
		out.owes, out.owedAt = end.Owes(), at
	} else {
		out.owes = begun.Owes()
	}
}

// public is arguments as a digest may know them: of a secret whether it is the same.
func (p *playRun) public(args map[string]any) (out map[string]any, err error) {
	seal := func(shown, text string) any {
		sealed := ""
		if p.job.Journal != nil && err == nil {
			sealed, err = p.job.Journal.Seal(text)
		}
		return []string{shown, sealed}
	}
	var known func(v any) any
	known = func(v any) any {
		switch v := v.(type) {
		case module.Template:
			if v.Secret {
				return seal(v.Shown, v.Text)
			}
		case secret.Secret:
			return seal(v.Shown(), v.Reveal())
		case []any:
			list := make([]any, len(v))
			for i, one := range v {
				list[i] = known(one)
			}
			return list
		case map[string]any:
			m := map[string]any{}
			for k, one := range v {
				m[k] = known(one)
			}
			return m
		}
		return v
	}
	out = map[string]any{}
	for name, v := range args {
		out[name] = known(v)
	}
	return out, err
}

// past is the outcome on record, if it can be had from there. again says that the host has started anew since, so that Check has to find whether
// it still stands.
func (p *playRun) past(ctx context.Context, d *doing, t *task, target *hostRun, user string, args map[string]any, late, environment map[string]string) (out *outcome, again bool, stop *outcome) {
	if d.Nth == 0 || p.job.Check {
		return nil, false, nil
	}
	changed, err := p.recall(d, t, target, user, args, late, environment)
	if err != nil {
		return nil, false, p.unrecorded(err)
	}
	if len(changed) > 0 && !p.job.AcceptChanges {
		out := fail("its arguments are not what they were in the run that is resumed (%s): resume with --accept-changes if that is meant", strings.Join(changed, ", "))
		p.ask(Question{Host: d.Host, Task: t.label(), Accept: true})
		out.open = true
		return nil, false, &out
	}
	if d.restore == nil {
		return nil, false, nil
	}
	end := d.restore
	out = &outcome{restored: true}
	if err := json.Unmarshal(end.Result, &out.result); err != nil {
		return nil, false, p.unrecorded(fmt.Errorf("cannot read an outcome on record: %w", err))
	}
	out.result.OnRecord = true
	forgiven := out.result.Status == report.Failed || out.result.Status == report.Unreachable
	switch {
	case (end.Unseen || end.Withheld) && p.answers(p.job.Rerun, d) && !p.memo.doubtful[journal.Answer(d.Host, end.Name, "")]:
		d.halfway, d.restore = &journal.Begin{Key: d.Key, Name: end.Name, Label: end.Label, On: end.On, Digest: end.Digest, Paid: end.Paid}, nil
		return nil, false, nil
	case forgiven && !p.forgives(t):
		d.restore = nil // by the book as it was
		return nil, false, nil
	}
	if out.values, err = onRecord(t, end); err != nil {
		return nil, false, p.unrecorded(err)
	}
	out.values = common(out.result, out.values)
	if forgiven {
		return out, false, nil
	}
	// What was only looked at may have lived in memory too, unless it is no state of the host: what a command or a query says is kept.
	d.anew = (end.Effect || !neverChanges(t) && !t.readsOnly()) && p.rebooted(ctx, target, user)
	d.look = end.Withheld && !end.Unseen && t.spec.Register != ""
	return out, d.anew || d.look, nil
}

// forgives reports whether the play may go on after a failure of a task.
func (p *playRun) forgives(t *task) bool {
	flushed := func(meta *task) bool { return meta.spec.Meta == "flush_handlers" && meta.rescued }
	return t.rescued || t.ignoreErrors != nil || slices.Contains(p.play.handlers, t) && slices.ContainsFunc(allTasks(p.play), flushed)
}

// onRecord is what the record has of the values of a task; the others are unknown.
func onRecord(t *task, end *journal.End) (map[string]any, error) {
	values, err := decodeValues(end.Values)
	if err != nil {
		return nil, fmt.Errorf("cannot read values on record: %w", err)
	}
	if end.Unseen || end.Withheld {
		known := values
		values = unseen(t, end.Unseen)
		maps.Copy(values, known)
	}
	return values, nil
}

// lookedUp completes the values of a task that is done by those that Check finds, if it can tell what was returned.
func (p *playRun) lookedUp(past *outcome, d *doing, plan module.Plan) {
	if !d.look || len(plan.Changes) > 0 || plan.Unknown != "" || plan.Idle {
		return
	}
	values := maps.Clone(past.values)
	for name, v := range plan.Values {
		if _, missing := values[name].(vars.Unknown); !missing {
			continue
		}
		// What rests upon it would not fit another one.
		if seal, err := p.sealed(v); err == nil && seal == d.restore.Seals[name] {
			values[name] = v
		}
	}
	past.values = values
}

// missing is the outcome of a task that needs what nobody knows. What a person took for done may be done anew for it.
func (r *run) missing(because string) outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.unseen {
		if q := (Question{Host: d.host, Task: d.name, Item: d.item, Again: true}); strings.Contains(because, notKnown(d.task)) && !slices.Contains(r.asked, q) {
			r.asked = append(r.asked, q)
		}
	}
	return fail("cannot go on without what nobody knows: %s", because)
}

// takenForDone is a task on a host that is done, though what it returned is not known.
type takenForDone struct {
	task             *task
	host, name, item string
}

func notKnown(t *task) string {
	return fmt.Sprintf("what %q returned is not known", t.label())
}

// unseen is what a task returned of which nothing is on record; done says that a person took it for done.
func unseen(t *task, done bool) map[string]any {
	why := "what holds secrets is not on record"
	if done {
		why = "it was taken for done"
	}
	values := unknownFields(t.factory(), notKnown(t)+", for "+why)
	if _, has := values["rc"]; has && done {
		values["rc"] = 0 // done is to say that it went well
	}
	return values
}

// answers reports whether a list of answers names what is done here: by the names that it has or had, on all hosts or this one, with its item or
// without.
func (p *playRun) answers(list []string, d *doing) bool {
	names := [][2]string{{p.job.Masker.Mask(d.name), p.job.Masker.Mask(d.label)}}
	if d.halfway != nil {
		names = append(names, [2]string{d.halfway.Name, d.halfway.Label})
	}
	if d.restore != nil {
		names = append(names, [2]string{d.restore.Name, d.restore.Label})
	}
	for _, n := range names {
		for _, item := range []string{"", n[1]} {
			here := journal.Answer(d.Host, n[0], item)
			if slices.Contains(list, here) || slices.Contains(list, strings.TrimPrefix(here, d.Host+"/")) {
				return true
			}
		}
	}
	return false
}

// mostValues is how many bytes of JSON the values of one doing may have on record: a line of it has room for them.
const mostValues = journal.MaxLine * 3 / 4

// encodeValues puts registered values into an end, less those that hold secrets or are too much, of which their seals must do.
func (p *playRun) encodeValues(end *journal.End, values map[string]any) error {
	public, size := map[string]any{}, 0
	for _, name := range slices.Sorted(maps.Keys(values)) {
		one, err := json.Marshal(exactly(values[name]))
		if err == nil && !holdsSecret(values[name]) && size+len(one) <= mostValues && p.job.Masker.Mask(string(one)) == string(one) {
			public[name], size = json.RawMessage(one), size+len(one)
			continue
		}
		seal, err := p.sealed(values[name])
		if err != nil {
			return err
		}
		if end.Withheld = true; end.Seals == nil {
			end.Seals = map[string]string{}
		}
		end.Seals[name] = seal
	}
	text, err := json.Marshal(public)
	if end.Values = text; err != nil || p.job.Masker.Mask(string(text)) != string(text) {
		end.Values, end.Withheld = nil, true
	}
	return nil
}

// sealed tells whether a value with secrets is the same as another, and no more.
func (p *playRun) sealed(v any) (string, error) {
	text, err := json.Marshal(exactly(revealed(v)))
	if err != nil {
		return "", err
	}
	return p.job.Journal.Seal(string(text))
}

// revealed is a value with its secrets in clear.
func revealed(v any) any {
	switch v := v.(type) {
	case secret.Secret:
		return v.Reveal()
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = revealed(v[i])
		}
		return list
	case map[string]any:
		m := make(map[string]any, len(v))
		for k := range v {
			m[k] = revealed(v[k])
		}
		return m
	}
	return v
}

// bytesKey is the one key of the map that stands for a string which is no text.
const bytesKey = "$bytes"

// exactly is a value in a form that JSON gives back as it was: strings that are no text, and whole numbers that are floats.
func exactly(v any) any {
	switch v := v.(type) {
	case string:
		if !utf8.ValidString(v) || strings.Contains(v, "\x00") {
			return map[string]any{bytesKey: base64.StdEncoding.EncodeToString([]byte(v))}
		}
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1e15 {
			return json.Number(strconv.FormatFloat(v, 'f', 1, 64))
		}
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = exactly(v[i])
		}
		return list
	case map[string]any:
		m := make(map[string]any, len(v))
		for k := range v {
			m[k] = exactly(v[k])
		}
		return m
	}
	return v
}

// decodeValues reads registered values.
func decodeValues(text json.RawMessage) (map[string]any, error) {
	if len(text) == 0 {
		return nil, nil
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	var values map[string]any
	if err := decoder.Decode(&values); err != nil {
		return nil, err
	}
	for name, v := range values {
		values[name] = asItWas(v)
	}
	return values, nil
}

// asItWas undoes exactly.
func asItWas(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = asItWas(v[i])
		}
	case map[string]any:
		if text, ok := v[bytesKey].(string); ok && len(v) == 1 {
			if data, err := base64.StdEncoding.DecodeString(text); err == nil {
				return string(data)
			}
		}
		for k := range v {
			v[k] = asItWas(v[k])
		}
	}
	return v
}

// begin puts on record that a change is about to be made. Nothing is touched if it cannot be.
func (p *playRun) begin(ctx context.Context, d *doing, t *task, m module.Module, env vars.Env, e report.Event, target *hostRun, host *module.Host) *outcome {
	if p.job.Journal == nil {
		return nil
	}
	if stop := p.hold(ctx, target, host.User); stop != nil {
		return stop
	}
	if stop := p.paidMeanwhile(t, p.run.hosts[d.Host]); stop != nil {
		return stop
	}
	if module.IsLong(m) {
		p.longStep(d, host)
	}
	mask := p.job.Masker.Mask
	begin := &journal.Begin{Key: d.Key, Name: mask(e.Task), Label: mask(e.Item), Digest: d.digest, Args: d.args, Job: host.JobID}
	if target.host.Name != d.Host {
		begin.On = target.host.Name
	}
	for _, h := range p.handlersOf(t, env) {
		begin.Notify = append(begin.Notify, p.taskID(h))
	}
	record := journal.Record{Kind: journal.KindBegin, Begin: begin}
	if err := p.job.Journal.Commit(record); err != nil {
		return p.unrecorded(err)
	}
	d.began = true
	return nil
}

// longStep lets Apply leave a job on the host: that of an Apply which was under way, if it is still of use, or a new one.
func (p *playRun) longStep(d *doing, host *module.Host) {
	d.forgetJob()
	if host.JobID == "" {
		host.JobID = transport.NewJobID()
	}
	host.KeepJob = true
	conn, user, me := host.Conn, host.User, transport.Self(p.job.Journal.ID())
	host.HoldFunc = func(ctx context.Context, job transport.Job) error { return transport.HoldJob(ctx, conn, user, me, job) }
	d.forget = host.ForgetLong
}

// forgetJob removes what a job left on the host, when its outcome is on record.
func (d *doing) forgetJob() {
	if d.forget == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = d.forget(ctx) // what stays is removed in a month
	d.forget = nil
}

// await waits for the job of an Apply that was under way. With an outcome to collect Apply follows, whatever Check finds.
func (p *playRun) await(ctx context.Context, d *doing, m module.Module, host *module.Host) (err error) {
	if d.halfway.Job == "" || !module.IsLong(m) {
		return nil
	}
	host.JobID = d.halfway.Job
	state, err := host.AwaitLong(ctx, m)
	switch another := d.halfway.Digest != d.digest; {
	case err != nil:
		return err
	case state == transport.JobEnded && !another:
		d.collect = true
	case state == transport.JobLost, another:
		err = host.ForgetLong(ctx)
		host.JobID = ""
	}
	return err
}

// unrecorded ends the run: what cannot be put on record is not done.
func (p *playRun) unrecorded(err error) *outcome {
	p.unwritable(err)
	out := fail("not done, because it cannot be put on record: %v", err)
	out.open = true
	return &out
}

// end puts the outcome of a doing on record. turn says that it was the last of a handler's items, and all are well; settles is what that has paid
// of earlier runs.
func (p *playRun) end(d *doing, out *outcome, e report.Event, turn bool, settles []journal.Settled) {
	if p.job.Journal == nil || out.restored && (!turn || d.restore.Turn && len(settles) == 0) || out.open || d == nil {
		return
	}
	if d.halfway != nil && !d.began && (out.result.Status == report.Failed || out.result.Status == report.Unreachable) {
		return // nobody could look, so it is under way as before
	}
	mask := p.job.Masker.Mask
	if out.restored { // that it has had its turn is all that is new
		end := &journal.End{Key: d.Key, Name: mask(e.Task), Label: mask(e.Item), On: out.on, Status: string(out.result.Status), Turn: true, Settles: settles}
		if err := p.job.Journal.Commit(journal.Record{Kind: journal.KindEnd, End: end}); err != nil {
			p.unwritable(err)
		}
		return
	}
	end := &journal.End{Key: d.Key, Name: mask(e.Task), Label: mask(e.Item), On: out.on, Digest: d.digest, Args: d.args, Status: string(out.result.Status), Effect: d.began || d.halfway != nil, Turn: turn, Settles: settles}
	end.Result, _ = json.Marshal(p.masked(out.result))
	if end.Unseen = out.unseen; !end.Unseen {
		if err := p.encodeValues(end, out.values); err != nil {
			p.unwritable(err)
			return
		}
	}
	for _, h := range out.notified {
		end.Notified = append(end.Notified, p.taskID(h))
	}
	record := journal.Record{Kind: journal.KindEnd, End: end}
	write := p.job.Journal.Append
	if d.began || turn || len(end.Notified) > 0 {
		write = p.job.Journal.Commit
	}
	if err := write(record); err != nil {
		p.unwritable(err)
		return
	}
	d.forgetJob()
}

// holdsSecret reports whether a secret is anywhere in a value.
func holdsSecret(v any) bool {
	switch v := v.(type) {
	case secret.Secret:
		return true
	case []any:
		return slices.ContainsFunc(v, holdsSecret)
	case map[string]any:
		for _, one := range v {
			if holdsSecret(one) {
				return true
			}
		}
	}
	return false
}

// halfway decides what becomes of a task that was under way when an earlier part of the run ended, by what Check finds now. done says
// that there is no more to do.
func (p *playRun) halfway(d *doing, t *task, plan module.Plan) (out outcome, done bool) {
	another := d.halfway.Digest != d.digest // with other arguments: what is done of that is not what is to be done
	rerun, marked := p.answers(p.job.Rerun, d), p.answers(p.job.MarkDone, d)
	switch {
	case rerun && plan.Idle:
		d.collect = true // somebody wants what it returns
		return out, false
	case len(plan.Changes) == 0 && plan.Unknown == "", marked && !another:
		out.found = true
		out.result.Status, out.values = report.Changed, plan.Values
		out.result.Msg = "it was under way when the run ended, and is done"
		if plan.Unknown != "" || len(plan.Changes) > 0 {
			out.result.Msg = "it was under way when the run ended, and is taken for done"
			out.unseen = true
		}
		if out.unseen = out.unseen || plan.Idle; out.unseen {
			out.values = unseen(t, true)
		}
		out.values = common(out.result, out.values)
		return out, true
	case plan.Unknown == "" && !plan.Act, plan.Again, neverChanges(t), rerun, marked:
		return out, false
	}
	q := Question{Host: d.Host, Task: cmp.Or(d.halfway.Name, p.job.Masker.Mask(d.name)), Item: d.halfway.Label}
	p.ask(q)
	here := transport.Quote(journal.Answer(q.Host, q.Task, q.Item))
	out = fail("it was under way when the run ended, and nobody but you can tell whether it was done: look on %s, then resume with --rerun %s or --mark-done %s",
		cmp.Or(d.halfway.On, d.Host), here, here)
	out.open = true
	return out, true
}

// ask notes that the run cannot go on without a person.
func (r *run) ask(q Question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, q)
}

// rebooted reports whether a host has started anew since the earlier part of the run.
func (p *playRun) rebooted(ctx context.Context, h *hostRun, user string) bool {
	before := p.memo.boots[h.host.Name]
	if before == "" {
		return false
	}
	now, _, err := p.identity(ctx, h, user)
	if err != nil || now == before {
		return false // who cannot be asked will not be changed either
	}
	h.tellReboot.Do(func() {
		e := p.event(report.Warning)
		e.Host, e.Text = h.host.Name, "it has started anew since the run ended: what lived in its memory is checked again"
		p.emit(e)
	})
	return true
}

// identity asks a host, once, which of its starts this is, and for what tells it from other hosts, "" where nothing does.
func (p *playRun) identity(ctx context.Context, h *hostRun, user string) (boot, machine string, err error) {
	h.who.Do(func() {
		conn, err := p.connect(h)
		if err != nil {
			h.whoErr = err
			return
		}
		out, err := conn.Run(ctx, transport.Cmd{User: user, Script: "cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.boottime || exit\n" +
			"cat /etc/machine-id /etc/hostid 2>/dev/null || :"})
		boot, id, _ := strings.Cut(strings.TrimSpace(string(out.Stdout)), "\n")
		h.bootID, h.whoErr = strings.TrimSpace(boot), err
		if id != "" {
			h.machine = digestOf("runbook machine " + id) // the id itself is not for others to see
		}
	})
	return h.bootID, h.machine, h.whoErr
}

// sameMachine asks whether what is on record of a host is meant for the machine that has its name now.
func (p *playRun) sameMachine(ctx context.Context, h *hostRun, user string) *outcome {
	before := p.memo.machines[h.host.Name]
	if before == "" {
		return nil
	}
	_, now, err := p.identity(ctx, h, user)
	if err != nil || now == "" || now == before {
		return nil // who cannot be asked will not be changed either
	}
	if !p.job.AcceptChanges {
		out := fail("%s is another machine than in the run that is resumed, or was installed anew: what is on record was not done there. Resume with --accept-changes to go on as if it were the same", h.host.Name)
		p.ask(Question{Host: h.host.Name, Accept: true})
		out.open = true
		return &out
	}
	h.tellMachine.Do(func() {
		e := p.event(report.Warning)
		e.Host, e.Text = h.host.Name, "it is another machine than in the run that is resumed"
		p.emit(e)
	})
	return nil
}

// hold locks a host for this run before its first change as a user there, for each has a lock of his own, and puts on record which
// start of the host this is. The lock goes with the connection.
func (p *playRun) hold(ctx context.Context, h *hostRun, user string) *outcome {
	h.holding.Lock()
	defer h.holding.Unlock()
	held, tried := h.holds[user]
	if !tried {
		waiting, done := p.untilStop(ctx) // another command may have it for long
		held.release, held.err = p.lock(waiting, h, user)
		if held.err != nil && waiting.Err() != nil && ctx.Err() == nil {
			held.err = errors.New("the run was ended while it waited for the host's lock")
		}
		done()
		h.holds[user] = held
	}
	if held.err == nil {
		return nil
	}
	out := p.failed(ctx, nil, nil, fmt.Errorf("nothing was changed: %w", held.err))
	out.open = !out.lost
	return &out
}

// held is a lock on a host, or why there is none.
type held struct {
	release func(context.Context) error
	err     error
}

func (p *playRun) lock(ctx context.Context, h *hostRun, user string) (release func(context.Context) error, err error) {
	conn, err := p.connect(h)
	if err != nil {
		return nil, err
	}
	release, from, err := transport.Lock(ctx, conn, user, transport.Self(p.job.Journal.ID()))
	if err != nil {
		return nil, err
	}
	if from != nil {
		e := p.event(report.Warning)
		e.Host, e.Text = h.host.Name, fmt.Sprintf("the host's lock is taken over from %s", from)
		p.emit(e)
		note := &journal.Note{Text: h.host.Name + ": " + e.Text}
		if err := p.note(journal.Record{Kind: journal.KindNote, Note: note}); err != nil {
			return release, err
		}
	}
	boot, machine, err := p.identity(ctx, h, user)
	if err != nil {
		return release, err
	}
	return release, p.note(journal.Record{Kind: journal.KindFacts, Facts: &journal.Facts{Host: h.host.Name, BootID: boot, Machine: machine}})
}

// note puts on record what need not be on disk at once. If it cannot be, no further task begins.
func (r *run) note(record journal.Record) error {
	err := r.job.Journal.Append(record)
	if err != nil {
		r.unwritable(err)
	}
	return err
}

// unwritable ends the run, as its record cannot be written.
func (r *run) unwritable(err error) {
	r.halt(fmt.Sprintf("the record of the run cannot be written: %v", err))
}

// unlock gives the locks of a host back, where nothing of the run is under way any more.
func (h *hostRun) unlock() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h.holding.Lock()
	defer h.holding.Unlock()
	for _, held := range h.holds {
		if held.release != nil {
			_ = held.release(ctx) // it goes with the connection at the latest
		}
	}
}

// owes reports whether an earlier run, or an earlier part of this one, owes a handler of the play to a host.
func (p *playRun) owes(h *hostRun) bool {
	debt := func(d journal.Debt) bool {
		return d.Why == "" && d.Host == h.host.Name && d.Book == p.bookKey() && d.Play == p.play.title
	}
	own := func(o journal.Owed) bool {
		return o.Host == h.host.Name && slices.ContainsFunc(p.play.handlers, func(t *task) bool { return p.taskID(t) == o.Handler })
	}
	return h.used && (slices.ContainsFunc(p.debts, debt) || slices.ContainsFunc(p.job.Own, own))
}

// takeDebts notifies the handlers of the play that earlier runs owe its hosts.
func (p *playRun) takeDebts(hosts []*hostRun) {
	p.each(hosts, func(h *hostRun) {
		if slices.ContainsFunc(p.debts, func(d journal.Debt) bool { return d.Host == h.host.Name && d.Machine != "" }) {
			_, _, _ = p.identity(p.ctx, h, "") // all at once; the first task meets the error
		}
	})
	for _, h := range hosts {
		for i, d := range p.debts {
			if d.Host != h.host.Name || d.Machine == "" {
				continue
			}
			if _, machine, err := p.identity(p.ctx, h, ""); err == nil && machine != "" && machine != d.Machine {
				p.debts[i].Why = "that was another machine of this name"
			}
		}
		p.debts = slices.DeleteFunc(p.debts, func(d journal.Debt) bool {
			if d.Host != h.host.Name || d.Book != p.bookKey() || d.Play != p.play.title || d.Why != "" {
				return false
			}
			handler, elsewhere := p.payer(d.Owed)
			if elsewhere {
				return false
			}
			if handler == nil {
				p.writeOff(d)
				return true
			}
			h.mu.Lock()
			h.notice(handler, notice{debt: true})
			h.debts[handler] = append(h.debts[handler], d)
			h.mu.Unlock()
			e := p.event(report.Warning)
			told := "notified"
			if d.Unsure {
				told = "may have notified"
			}
			e.Host, e.Text = h.host.Name, fmt.Sprintf("run %s %s the handler %q and did not come to run it: its turn is in this one", d.Run, told, d.Name)
			p.emit(e)
			return true
		})
	}
}

// payer finds the handler of this play that a debt is about; elsewhere says that another play of the same name has it, which is the one that the
// run was in, or else the first.
func (p *playRun) payer(d journal.Owed) (handler *task, elsewhere bool) {
	var first, same *play
	find := func(play *play) *task {
		for _, t := range play.handlers {
			if t.label() == d.Name {
				return t
			}
		}
		return nil
	}
	for _, other := range p.book.plays {
		if other.title != d.Play || find(other) == nil {
			continue
		}
		if first == nil {
			first = other
		}
		if strings.HasPrefix(d.Handler[strings.Index(d.Handler, ":")+1:], other.handlers[0].id[:strings.Index(other.handlers[0].id, "/")+1]) {
			same = other
		}
	}
	if pays := cmp.Or(same, first); pays != p.play {
		return nil, pays != nil
	}
	return find(p.play), false
}

// takeOwn notifies the handlers that earlier parts of this run owe and that nothing has notified again: what did was edited away, or skipped.
func (p *playRun) takeOwn(hosts []*hostRun) {
	for _, d := range p.job.Own {
		for _, h := range hosts {
			i := slices.IndexFunc(p.play.handlers, func(t *task) bool { return p.taskID(t) == d.Handler })
			if d.Host != h.host.Name || i < 0 {
				continue
			}
			handler := p.play.handlers[i]
			h.mu.Lock()
			_, notified := h.notified[handler]
			was, ran := h.turn[handler]
			ran = ran && (was.fresh || was.debt || was.at >= d.N)
			if !notified && !ran {
				h.notice(handler, notice{at: d.N})
			}
			h.mu.Unlock()
			if !notified && !ran {
				e := p.event(report.Warning)
				told := "was"
				if d.Unsure {
					told = "may have been"
				}
				e.Host, e.Text = h.host.Name, fmt.Sprintf("the handler %q %s notified in an earlier part of the run, and runs now", d.Name, told)
				p.emit(e)
			}
		}
	}
}

// writeOff settles what nobody can do any more.
func (p *playRun) writeOff(d journal.Debt) {
	e := p.event(report.Warning)
	e.Host, e.Text = d.Host, fmt.Sprintf("run %s notified the handler %q and did not come to run it; the play has no such handler any more, so it is owed no longer", d.Run, d.Name)
	p.emit(e)
	if p.job.Journal == nil {
		return
	}
	note := settled(d)
	if err := p.job.Journal.Commit(journal.Record{Kind: journal.KindSettled, Settled: &note}); err != nil {
		p.unwritable(err)
	}
}

// bookKey is what records know the book by.
func (p *playRun) bookKey() string {
	src := p.job.Books[slices.Index(p.program.books, p.book)]
	return journal.Book{Path: src.Path, File: src.File}.Key()
}

// tellDebts warns of what earlier runs owe hosts of this one and none of its plays could pay.
func (r *run) tellDebts() {
	for _, d := range r.debts {
		if h := r.hosts[d.Host]; h != nil && h.used {
			why := ""
			if d.Why != "" {
				why = fmt.Sprintf(" (this one cannot run it: %s)", d.Why)
			}
			r.emit(report.Event{Kind: report.Warning, Host: d.Host, Text: fmt.Sprintf("run %s notified the handler %q of %q and did not come to run it: resume that run, or run that book%s", d.Run, d.Name, d.Book, why)})
		}
	}
}

// hadTurn puts on record that a handler has had its turn on a host where there was nothing to do.
func (p *playRun) hadTurn(t *task, h *hostRun) {
	if p.job.Journal == nil {
		return
	}
	end := &journal.End{Key: p.next(t, h, 0), Name: t.label(), Status: string(report.Skipped), Turn: true, Settles: h.pays(t)}
	if err := p.job.Journal.Commit(journal.Record{Kind: journal.KindEnd, End: end}); err != nil {
		p.unwritable(err)
	}
}

// paidMeanwhile is the outcome of a handler that runs for earlier runs alone, if another run has run it while this one came to have the host's lock.
func (p *playRun) paidMeanwhile(t *task, h *hostRun) *outcome {
	h.mu.Lock()
	debts, why := h.debts[t], h.turn[t]
	h.mu.Unlock()
	if len(debts) == 0 || why.fresh || why.at > 0 {
		return nil
	}
	left, err := p.job.Journal.Unpaid(debts)
	switch {
	case err != nil:
		out := fail("nothing was changed: it cannot be told whether another run has done it meanwhile: %v", err)
		return &out
	case len(left) > 0:
		return nil
	}
	out := outcome{result: report.Result{Status: report.OK, Msg: "another run has done it meanwhile"}}
	out.values = common(out.result, nil)
	return &out
}

// pays is what the turn of a handler pays of earlier runs.
func (h *hostRun) pays(handler *task) (settles []journal.Settled) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.debts[handler] {
		settles = append(settles, settled(d))
	}
	delete(h.debts, handler)
	return settles
}

func settled(d journal.Debt) journal.Settled {
	return journal.Settled{Run: d.Run, Host: d.Host, Handler: d.Handler, N: max(d.N, d.Last)}
}

// whenOwed says how a handler that is owed comes to run.
func (p *playRun) whenOwed() string {
	if p.job.Journal == nil {
		return ", and the next run may not notify it again"
	}
	return "; resume runs it, and so does the next run on that host"
}
