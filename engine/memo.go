package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"runbook/engine/journal"
	"runbook/engine/report"
)

// memo is what the record of an earlier part of the run says.
type memo struct {
	mu    sync.Mutex
	ends  map[journal.Key]*journal.End
	taken map[*journal.End]bool          // those that an item of today has
	begun map[journal.Key]*journal.Begin // without an end
	half  map[journal.Key]*journal.Begin // it failed when it had begun
	at    map[*journal.End]int           // where it stands in the record
	from  map[*journal.Begin]int         // where it stands in the record
	facts map[string]*journal.Facts
	boots map[string]string // boot id by host, as it was last
	// what tells a host from others of its name, as it was last
	machines map[string]string
	// tasks, by host and name, of which something was under way: an answer is about that
	doubtful map[string]bool
	turned   map[turn]int // where it says that a handler has had its turn, last
	items    map[itemOf][]journal.Key
	jobs     map[*journal.End]string // of the long step that it ended, which may be on the host still
}

// itemOf is an item of one doing of a task on a host: by its label, or by the digest of its arguments.
type itemOf struct {
	task, host string
	nth        int
	by, is     string
}

// index notes where an item of a loop stands.
func (m *memo) index(key journal.Key, label, digest string) {
	for _, item := range []itemOf{{key.Task, key.Host, key.Nth, "label", label}, {key.Task, key.Host, key.Nth, "digest", digest}} {
		m.items[item] = append(m.items[item], key)
	}
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
	m := &memo{ends: map[journal.Key]*journal.End{}, taken: map[*journal.End]bool{}, half: map[journal.Key]*journal.Begin{}, at: map[*journal.End]int{}, from: map[*journal.Begin]int{}, begun: map[journal.Key]*journal.Begin{}, facts: map[string]*journal.Facts{}, boots: map[string]string{}, machines: map[string]string{}, doubtful: map[string]bool{}, turned: map[turn]int{}, items: map[itemOf][]journal.Key{}, jobs: map[*journal.End]string{}}
	rests := based(past)
	for _, r := range past {
		switch {
		case r.Begin != nil:
			m.begun[r.Begin.Key], m.from[r.Begin] = r.Begin, r.N
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
			delete(m.ends, r.End.Key)
			switch {
			case stands(r.End):
				m.ends[r.End.Key], m.at[r.End] = r.End, r.N
				if begin != nil && begin.Job != "" {
					m.jobs[r.End] = begin.Job
				}
				delete(m.half, r.End.Key)
			case r.End.Effect && begin != nil:
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
		m.index(key, begin.Label, begin.Digest)
	}
	for key, begin := range m.half {
		m.index(key, begin.Label, begin.Digest)
	}
	for key, end := range m.ends {
		m.index(key, end.Label, end.Digest)
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
	defer func() {
		if d.restore == nil && d.halfway == nil {
			d.Item = m.room(d)
		}
	}()
	if begin := m.half[d.Key]; begin != nil && begin.Label == d.label {
		d.half = begin
	}
	for _, key := range m.items[itemOf{d.Task, d.Host, d.Nth, "digest", d.digest}] {
		d.half = cmp.Or(m.half[key], d.half)
	}
	begun := m.begun[d.Key]
	if begun == nil || begun.Digest != d.digest {
		// It may be an item that stood elsewhere. What this one has begun with other arguments is what it is asked about; another's place is its own.
		if same := m.itemBegun(d); same != nil || begun != nil && begun.Label != d.label {
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
	if end == nil || m.taken[end] {
		return nil, nil
	}
	if end.Label == d.label || end.Digest == d.digest {
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
	for _, key := range m.items[itemOf{d.Task, d.Host, d.Nth, "digest", d.digest}] {
		end := m.ends[key]
		if key.Item != d.Item && end != nil && end.Digest == d.digest && !m.taken[end] && (found == nil || m.at[end] < m.at[found]) {
			found = end
		}
	}
	return found
}

// room is the place of an item on record: its place in the loop, or beside it if that is another item's, which the loop had there before. Who calls
// it holds mu.
func (m *memo) room(d *doing) string {
	key := d.Key
	for n := 1; ; n++ {
		end, begun, half := m.ends[key], m.begun[key], m.half[key]
		own := func(digest, label string) bool { return digest == d.digest || label == d.label } // with other arguments it takes the place of what it was
		if (end == nil || own(end.Digest, end.Label) && !m.taken[end]) && (begun == nil || own(begun.Digest, begun.Label)) && (half == nil || own(half.Digest, half.Label)) {
			return key.Item
		}
		key.Item = fmt.Sprintf("%s.%d", d.Item, n)
	}
}

// itemBegun finds one that was under way. Who calls it holds mu.
func (m *memo) itemBegun(d *doing) *journal.Begin {
	for _, key := range m.items[itemOf{d.Task, d.Host, d.Nth, "digest", d.digest}] {
		if begin := m.begun[key]; begin != nil && begin.Digest == d.digest {
			return begin
		}
	}
	return nil
}

// labelled is where the record has the item of a loop that is called so, wherever it stands now. Who calls it holds mu.
func (m *memo) labelled(at journal.Key, label string) journal.Key {
	for _, key := range m.items[itemOf{at.Task, at.Host, at.Nth, "label", label}] {
		if end := m.ends[key]; end != nil && !m.taken[end] || m.begun[key] != nil || m.half[key] != nil {
			return key
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
