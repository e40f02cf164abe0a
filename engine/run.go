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
	"time"

	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/engine/vars"
	"runbook/inventory"
)

// run is one execution of a program.
type run struct {
	job     *Job
	program *program
	hosts   map[string]*hostRun // every host of the inventory
	forks   chan struct{}       // holds a token for each host that is at work
	started time.Time
	ctx     context.Context // of the whole run: a connection outlives the task that first needs it

	memo  *memo          // what is on record of the run that is resumed
	debts []journal.Debt // handlers that earlier runs owe, and that this one has not taken over yet

	mu      sync.Mutex // guards the reporter and the fields below
	stopped bool
	asked   []Question
	unseen  []takenForDone
	halted  string // why no further task may begin, "" if they may
}

// failure is why a host can not go on.
type failure struct {
	task        string
	item        string // label of the loop's item
	msg         string
	unreachable bool
	counted     bool   // as a failure of its host
	forgive     func() // puts on record that a rescue follows, where that was not known in time
	final       bool   // no rescue and no always follows: it was lost, or the run ends here
	heldBack    string // the play that could not go on: nothing was done here
}

func (f *failure) String() string {
	if f.heldBack != "" {
		return fmt.Sprintf("was held back in %q: %s", f.heldBack, f.msg)
	}
	if f.unreachable {
		return fmt.Sprintf("was lost at %q: %s", f.task, firstLine(f.msg))
	}
	return fmt.Sprintf("failed at %q: %s", f.task, firstLine(f.msg))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// hostRun is one host during a run. The fields below mu are guarded by it; the others belong to whoever runs the
// host's current task.
type hostRun struct {
	host  *inventory.Host
	total report.Total
	used  bool   // a play was for it
	doubt string // check mode: the task that may notify the handler under way, "" if it is certain

	dial  sync.Once
	conn  transport.Conn
	lost  error // of dial
	facts struct {
		sync.Mutex
		known *module.Facts
	}
	who         sync.Once // guards the next three
	bootID      string
	machine     string
	whoErr      error
	holding     sync.Mutex      // guards holds
	holds       map[string]held // by the user as whom the host was locked
	tellReboot  sync.Once
	tellMachine sync.Once

	mu       sync.Mutex
	failed   *failure                 // set: it takes no further part, unless a rescue clears it
	effects  module.Effects           // check mode: what changes that have not been made would make of the host
	notified map[*task]notice         // the handlers owed
	turn     map[*task]notice         // those whose turn it is
	done     map[string]int           // doings by task and item
	debts    map[*task][]journal.Debt // handlers notified in the place of an earlier run
}

// notice is why a handler is owed.
type notice struct {
	maybe string // check mode: the unknown task that may notify it; "" if it is certain
	fresh bool   // something of this run notified it, so that what the record says of its earlier doings does not count
	at    int    // otherwise: the last record in which something notified it
	debt  bool   // another run owes it: its earlier doings do not count, but one that is under way does
}

// notice notes why a handler is owed. Who calls it holds mu.
func (h *hostRun) notice(handler *task, n notice) {
	if had, owed := h.notified[handler]; owed {
		if had.maybe == "" {
			n.maybe = ""
		}
		n.fresh, n.at, n.debt = n.fresh || had.fresh, max(n.at, had.at), n.debt || had.debt
	}
	h.notified[handler] = n
}

func newRun(job *Job, p *program) *run {
	forks := job.Forks
	if forks <= 0 {
		forks = DefaultForks
	}
	r := &run{job: job, program: p, hosts: map[string]*hostRun{}, forks: make(chan struct{}, forks), started: time.Now(), memo: newMemo(job.Past), debts: slices.Clone(job.Debts)}
	for _, h := range job.Inventory.Hosts() {
		r.hosts[h.Name] = &hostRun{host: h, total: report.Total{Host: h.Name}, notified: map[*task]notice{}, turn: map[*task]notice{}, done: map[string]int{}, debts: map[*task][]journal.Debt{}, holds: map[string]held{}}
	}
	return r
}

func (r *run) run(ctx context.Context) Summary {
	r.ctx = ctx
	var names []string
	for name, used := range r.program.hosts() {
		r.hosts[name].used = used
	}
	for _, h := range r.job.Inventory.Hosts() {
		if r.hosts[h.Name].used {
			names = append(names, h.Name)
		}
	}
	r.emit(report.Event{Kind: report.RunStart, Check: r.job.Check, Hosts: names})
	var begun []*book
	for _, b := range r.program.books {
		if r.stopping(ctx) {
			break
		}
		if !b.owed {
			r.emit(report.Event{Kind: report.BookStart, Book: b.spec.Title})
			begun = append(begun, b)
		}
		for _, p := range b.plays {
			if r.stopping(ctx) {
				break
			}
			if p.after {
				continue
			}
			(&playRun{run: r, book: b, play: p}).execute(ctx)
		}
	}
	r.tellDebts()
	state := r.aftermath(ctx, begun)
	summary := Summary{Interrupted: r.stopping(ctx), Stopped: r.stopped, Questions: r.asked, Halted: r.halted, State: state, Elapsed: time.Since(r.started)}
	r.close()
	for _, h := range r.job.Inventory.Hosts() {
		if hr := r.hosts[h.Name]; hr.used {
			summary.Totals = append(summary.Totals, hr.total)
			if f := hr.failure(); f != nil {
				summary.Failures = append(summary.Failures, Failure{Host: h.Name, Task: f.task, Item: f.item, Msg: f.msg, Unreachable: f.unreachable, HeldBack: f.heldBack})
			}
		}
	}
	r.emit(report.Event{Kind: report.RunEnd, Check: r.job.Check, Totals: summary.Totals, Elapsed: summary.Elapsed.Seconds()})
	return summary
}

// aftermath runs the plays that say how things are after a run that failed or was ended, of the books that it came to, on all hosts
// that can be reached. It returns what their asserts said, and counts for nothing else.
func (r *run) aftermath(ctx context.Context, begun []*book) (state []string) {
	failed := r.stopped || r.stopping(ctx)
	for _, h := range r.hosts {
		failed = failed || h.failure() != nil
	}
	if !failed || r.job.Check || ctx.Err() != nil {
		return nil
	}
	quiet := *r.job
	quiet.Stop, quiet.Journal, quiet.Tags, quiet.SkipTags = nil, nil, nil, nil
	quiet.Dial = func(_ context.Context, h *inventory.Host) (transport.Conn, error) { return r.connect(r.hosts[h.Name]) }
	var mu sync.Mutex
	quiet.Reporter = report.Func(func(e report.Event) {
		if e.Kind != report.TaskEnd || e.Module != "assert" && e.Result.Status != report.Unreachable {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, text := range append(e.Result.Warnings, e.Result.Msg) {
			sentence := e.Host + ": " + firstLine(text)
			if text != "" && !slices.Contains(state, sentence) {
				state = append(state, sentence)
			}
		}
	})
	after := &run{job: &quiet, program: r.program, hosts: map[string]*hostRun{}, forks: r.forks, started: r.started, ctx: r.ctx, memo: newMemo(nil)}
	for name, h := range r.hosts {
		again := &hostRun{host: h.host, total: report.Total{Host: name}, notified: map[*task]notice{}, turn: map[*task]notice{}, done: map[string]int{}, debts: map[*task][]journal.Debt{}}
		if f := h.failure(); f != nil && f.unreachable {
			again.failed = f
		}
		after.hosts[name] = again
	}
	for _, h := range r.job.Inventory.Hosts() {
		if after.hosts[h.Name].failed != nil && looksAt(begun, h) {
			state = append(state, h.Name+": it was lost, so nothing is known of it")
		}
	}
	for _, b := range begun {
		for _, p := range b.plays {
			if p.after {
				(&playRun{run: after, book: b, play: p}).execute(ctx)
			}
		}
	}
	return state
}

// looksAt reports whether a play that says how things are is for a host.
func looksAt(books []*book, h *inventory.Host) bool {
	for _, b := range books {
		for _, p := range b.plays {
			if p.after && slices.Contains(p.hosts, h) {
				return true
			}
		}
	}
	return false
}

// close ends all connections at once.
func (r *run) close() {
	var wg sync.WaitGroup
	for _, h := range r.hosts {
		wg.Go(func() {
			if h.dial.Do(func() {}); h.conn != nil {
				if r.ctx.Err() == nil {
					h.unlock()
				}
				_ = h.conn.Close()
			}
		})
	}
	wg.Wait()
}

// emit hands an event to the reporter, masked.
func (r *run) emit(e report.Event) {
	e.Time = time.Now()
	mask := r.job.Masker.Mask
	e.Text, e.Task, e.Item, e.Why = mask(e.Text), mask(e.Task), mask(e.Item), mask(e.Why)
	if e.Result != nil {
		res := r.masked(*e.Result)
		e.Result = &res
	}
	if r.job.Reporter == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job.Reporter.Event(e)
}

// masked is a result without secrets.
func (r *run) masked(res report.Result) report.Result {
	mask := r.job.Masker.Mask
	res.Because, res.Msg, res.HangsOn = mask(res.Because), mask(res.Msg), mask(res.HangsOn)
	res.Changes = slices.Clone(res.Changes)
	for i, c := range res.Changes {
		res.Changes[i] = report.Change{What: mask(c.What), Before: mask(c.Before), After: mask(c.After), Outage: c.Outage}
	}
	res.Warnings = slices.Clone(res.Warnings)
	for i, w := range res.Warnings {
		res.Warnings[i] = mask(w)
	}
	return res
}

// stopping reports whether no further task may begin.
func (r *run) stopping(ctx context.Context) bool {
	select {
	case <-r.job.Stop:
		return true
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.halted != "" || ctx.Err() != nil
}

// halt lets no further task begin.
func (r *run) halt(why string) {
	r.mu.Lock()
	first := r.halted == ""
	if first {
		r.halted = why
	}
	r.mu.Unlock()
	if first {
		r.emit(report.Event{Kind: report.Warning, Text: why + "; no further task begins"})
	}
}

// connect returns the connection of a host, made on first use.
func (r *run) connect(h *hostRun) (transport.Conn, error) {
	h.dial.Do(func() { h.conn, h.lost = r.job.Dial(r.ctx, h.host) })
	return h.conn, h.lost
}

// playRun is one play during a run.
type playRun struct {
	*run
	book *book
	play *play
	all  []*hostRun // the hosts of the batch, whatever became of them
}

func (p *playRun) event(kind report.Kind) report.Event {
	return report.Event{Kind: kind, Book: p.book.spec.Title, Play: p.play.title}
}

// stop ends the play with a sentence that says why.
func (p *playRun) stop(format string, args ...any) {
	p.stopped = true
	e := p.event(report.PlayStopped)
	e.Text = fmt.Sprintf(format, args...)
	p.emit(e)
}

func (p *playRun) execute(ctx context.Context) {
	if len(p.play.hosts) == 0 {
		return // all of them are outside the limit
	}
	if hosts, gone := p.left(p.play.hosts); len(hosts) == 0 {
		if p.book.owed {
			return // nothing is, or it stays owed
		}
		p.stop("play %q has no host left: %s", p.play.title, strings.Join(gone, "; "))
		return
	}
	batches := p.play.batches()
	for i, batch := range batches {
		hosts, _ := p.left(batch)
		if len(hosts) == 0 {
			continue
		}
		if i > 0 && p.stopping(ctx) {
			return
		}
		if lost, f := p.lostNeed(ctx, hosts); lost != "" && !p.book.owed {
			why := fmt.Sprintf("it needs %s, which %s", lost, f)
			p.stop("play %q stops: %s%s", p.play.title, why, p.holdBack(slices.Concat(batches[i:]...), why))
			return
		}
		p.batch(ctx, hosts)
		if len(alive(hosts)) == 0 && !p.stopping(ctx) {
			var names []string
			for _, h := range hosts {
				names = append(names, h.host.Name)
			}
			lost := strings.Join(names, ", ")
			if spared := p.holdBack(slices.Concat(batches[i+1:]...), "the batch before it was lost: "+lost); spared != "" {
				p.stop("play %q stops: no host of the batch %s is left%s", p.play.title, lost, spared)
			}
			return
		}
	}
}

// left are those of some hosts that take part still, and what became of the others. In a play that nobody has asked for those take part to which
// something is owed.
func (p *playRun) left(all []*inventory.Host) (hosts []*hostRun, gone []string) {
	for _, h := range all {
		hr := p.hosts[h.Name]
		if f := hr.failure(); f != nil {
			gone = append(gone, h.Name+" "+f.String())
		} else if !p.book.owed || p.owes(hr) {
			hosts = append(hosts, hr)
		}
	}
	return hosts, gone
}

// batch runs the play on hosts, with its handlers.
func (p *playRun) batch(ctx context.Context, hosts []*hostRun) {
	p.all = hosts
	p.takeDebts(hosts)
	e := p.event(report.PlayStart)
	for _, h := range hosts {
		e.Hosts = append(e.Hosts, h.host.Name)
		go func() {
			p.forks <- struct{}{}
			defer func() { <-p.forks }()
			_, _ = p.connect(h) // the first task meets the error
		}()
	}
	if p.book.owed {
		p.emit(report.Event{Kind: report.BookStart, Book: p.book.spec.Title})
	}
	p.emit(e)
	if p.book.owed {
		// Nobody has asked for its tasks.
	} else if p.play.free {
		p.each(hosts, func(h *hostRun) { p.tasks(ctx, p.play.tasks, []*hostRun{h}) })
	} else {
		p.tasks(ctx, p.play.tasks, hosts)
	}
	p.flush(ctx, hosts)
	if !p.stopping(ctx) {
		p.takeOwn(alive(hosts)) // behind those that are notified by what is on record
		p.flush(ctx, hosts)
	}
	p.tellOwed(hosts)
}

// holdBack spares the hosts whose turn in the play is still to come what others have not survived: nothing that follows the play is for
// them either, as it would come before the play when the run is resumed. It returns what to say of them.
func (p *playRun) holdBack(later []*inventory.Host, why string) string {
	hosts, _ := p.left(later)
	if len(hosts) == 0 || p.play.after {
		return "" // who only looks does no harm
	}
	var spared []string
	for _, h := range hosts {
		spared = append(spared, h.host.Name)
		h.setFailure(&failure{heldBack: p.play.title, final: true, msg: why})
	}
	return "; held back: " + strings.Join(spared, ", ")
}

// lostNeed looks for a host that the play reaches for, by hosts[…] or delegate_to, and that has dropped out.
func (p *playRun) lostNeed(ctx context.Context, hosts []*hostRun) (string, *failure) {
	for _, h := range hosts {
		env := p.env(ctx, nil, h, nil, &reach{})
		for _, need := range p.play.needs {
			name, err := need.Eval(env)
			if err != nil {
				continue // it depends on what the play has yet to find out
			}
			other := p.run.hosts[fmt.Sprint(name)]
			if other == nil || other == h {
				continue
			}
			if f := other.failure(); f != nil {
				return other.host.Name, f
			}
		}
	}
	return "", nil
}

func (h *hostRun) failure() *failure {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

func (h *hostRun) setFailure(f *failure) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = f
}

// each runs f for every host, as many at once as forks allow.
func (p *playRun) each(hosts []*hostRun, f func(h *hostRun)) {
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() { f(h) })
	}
	wg.Wait()
}

func alive(hosts []*hostRun) []*hostRun {
	return slices.DeleteFunc(slices.Clone(hosts), func(h *hostRun) bool { return h.failure() != nil })
}

// tasks runs a list of tasks on hosts, one task at a time; who fails drops out.
func (p *playRun) tasks(ctx context.Context, list []*task, hosts []*hostRun) {
	for _, t := range list {
		if hosts = alive(hosts); len(hosts) == 0 || p.stopping(ctx) {
			return
		}
		switch {
		case t.isBlock():
			p.blocks(ctx, t, hosts)
		case !p.job.selects(t.tags):
		case t.spec.Meta != "":
			p.meta(ctx, t, hosts)
		default:
			p.start(ctx, t, hosts)
		}
	}
}

// start runs a module's task on hosts.
func (p *playRun) start(ctx context.Context, t *task, hosts []*hostRun) {
	if t.runOnce {
		p.once(ctx, t, hosts)
		return
	}
	p.each(hosts, func(h *hostRun) { p.task(ctx, t, h) })
}

// once runs a task on the first host; what it registers, and a failure, is for all of them.
func (p *playRun) once(ctx context.Context, t *task, hosts []*hostRun) {
	first := hosts[0]
	var why notice
	if slices.Contains(p.play.handlers, t) {
		why = sharedTurn(t, hosts)
	}
	for _, h := range p.all {
		if p.memo.did(p.taskID(t), h.host.Name, why) {
			first = h // when it ran, those before it took no part
			break
		}
	}
	on, id := first.host.Name, p.taskID(t)
	if !p.memo.did(id, on, why) && len(p.play.batches()) == 1 {
		on = cmp.Or(p.memo.elsewhere(id, p.play.isFor, why), on) // on a host that has left the play
	}
	gone := &doing{Key: journal.Key{Task: id, Host: on}, name: t.label()}
	var values map[string]any
	var f *failure
	switch past := p.memo.values(id, on, t.loop != nil, t.spec.Register != ""); {
	case on == first.host.Name && slices.Contains(hosts, first), on != first.host.Name && p.answers(p.job.Rerun, gone):
		on = first.host.Name
		values = p.task(ctx, t, first)
		f = first.failure()
	case past != nil:
		values = past
	case on != first.host.Name && p.answers(p.job.MarkDone, gone):
		values = unseen(t, true)
	default:
		f = &failure{task: t.label(), msg: "what became of it there is not known", final: true}
		if on != first.host.Name {
			p.ask(Question{Host: on, Task: t.label()})
		}
	}
	others := slices.DeleteFunc(slices.Clone(hosts), func(h *hostRun) bool { return h.host.Name == on })
	if f != nil && len(others) > 0 && !t.rescued {
		var names []string
		for _, h := range others {
			names = append(names, h.host.Name)
		}
		e := p.event(report.Warning)
		e.Text = fmt.Sprintf("%s takes no further part either: %q runs on %s for all", strings.Join(names, ", "), f.task, on)
		p.emit(e)
	}
	for _, h := range others {
		if f != nil {
			h.setFailure(&failure{task: f.task, msg: "run once on " + on + ", for all: " + f.msg, final: f.final && !f.unreachable})
			continue
		}
		if t.spec.Register != "" {
			p.register(t, h, values)
		}
		if slices.Contains(p.play.handlers, t) {
			p.hadTurn(t, h)
		}
	}
}

// sharedTurn makes what notified a handler on any of some hosts its turn on all of them.
func sharedTurn(t *task, hosts []*hostRun) (all notice) {
	for _, h := range hosts {
		h.mu.Lock()
		n := h.turn[t]
		h.mu.Unlock()
		all.fresh, all.debt, all.at = all.fresh || n.fresh, all.debt || n.debt, max(all.at, n.at)
	}
	for _, h := range hosts {
		h.mu.Lock()
		n := h.turn[t]
		n.fresh, n.debt, n.at = all.fresh, all.debt, all.at
		h.turn[t] = n
		h.mu.Unlock()
	}
	return all
}

// blocks runs a block. The truth table: who fails a task of the block goes through rescue, if there is one, and is
// sound again if that succeeds; who is unreachable cannot be rescued; always runs for everybody still reachable, and
// does not undo a failure.
func (p *playRun) blocks(ctx context.Context, t *task, hosts []*hostRun) {
	p.tasks(ctx, t.block, hosts)
	if t.rescues && !p.stopping(ctx) {
		var failing []*hostRun
		for _, h := range hosts {
			f := h.failure()
			if f == nil || f.final {
				continue
			}
			failing = append(failing, h)
			if f.counted {
				h.total.Failed-- // a handler, of which nobody knew in time where it would be flushed
				f.forgive()
			}
			h.setFailure(nil)
			p.book.stacks[h.host.Name].Set(vars.Builtin, nameFailure, vars.Const(map[string]any{"task": f.task, "msg": strings.ToValidUTF8(f.msg, "\uFFFD")}), "the engine")
		}
		p.tasks(ctx, t.rescue, failing)
	}
	if len(t.always) > 0 && !p.stopping(ctx) {
		before := map[*hostRun]*failure{}
		var reachable []*hostRun
		for _, h := range hosts {
			f := h.failure()
			if f != nil && f.final {
				continue
			}
			before[h] = f
			h.setFailure(nil)
			reachable = append(reachable, h)
		}
		p.tasks(ctx, t.always, reachable)
		for _, h := range reachable {
			if h.failure() == nil {
				h.setFailure(before[h])
			}
		}
	}
}

func (p *playRun) meta(ctx context.Context, t *task, hosts []*hostRun) {
	if t.spec.Meta == "flush_handlers" {
		p.flush(ctx, hosts)
	}
}

// flush runs the handlers that were notified, in the order in which the play lists them, whatever their tags: a change
// without its restart is half a change. A handler may notify one that is listed before it, hence the passes.
func (p *playRun) flush(ctx context.Context, hosts []*hostRun) {
	for range len(p.play.handlers) + 1 { // handlers that notify each other must not go on for ever
		ran := false
		for _, handler := range p.play.handlers {
			if p.stopping(ctx) {
				return
			}
			if owed := takeOwed(handler, alive(hosts)); len(owed) > 0 {
				ran = true
				p.start(ctx, handler, owed)
				for _, h := range owed {
					h.doubt = ""
				}
			}
		}
		if !ran {
			return
		}
	}
}

// takeOwed returns the hosts that owe a handler, which they then no longer do.
func takeOwed(handler *task, hosts []*hostRun) []*hostRun {
	var owed []*hostRun
	for _, h := range hosts {
		h.mu.Lock()
		if n, notified := h.notified[handler]; notified {
			delete(h.notified, handler)
			h.doubt, h.turn[handler] = n.maybe, n
			owed = append(owed, h)
		}
		h.mu.Unlock()
	}
	return owed
}

// tellOwed warns of handlers that were notified and have not run, because their host dropped out or the run was ended.
func (p *playRun) tellOwed(hosts []*hostRun) {
	for _, handler := range p.play.handlers {
		var names []string
		for _, h := range takeOwed(handler, hosts) {
			if h.doubt == "" {
				names = append(names, h.host.Name)
			}
			h.doubt = ""
		}
		if len(names) > 0 && !p.job.Check {
			e := p.event(report.Warning)
			e.Text = fmt.Sprintf("handler %q was notified and has not run on %s: what it does is still to be done%s",
				handler.label(), strings.Join(names, ", "), p.whenOwed())
			p.emit(e)
		}
	}
}

// notify marks the handlers that a task names, and returns them. by is "", or the task if it is unknown whether it will change anything. paid
// are the names on record of those that have run already.
func (p *playRun) notify(t *task, h *hostRun, env vars.Env, by string, paid []string) (all []*task, err error) {
	for _, tree := range t.notify {
		value, err := tree.Eval(env)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprint(value)
		handlers := p.play.named(name)
		if len(handlers) == 0 {
			return nil, fmt.Errorf("no handler of the play is named %q%s", name, dashed(spec.DidYouMean(name, p.play.handlerNames())))
		}
		all = append(all, handlers...)
	}
	all = slices.DeleteFunc(all, func(handler *task) bool { return slices.Contains(paid, p.taskID(handler)) })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, handler := range all {
		h.notice(handler, notice{maybe: by, fresh: true})
	}
	return all, nil
}

// notifyOwed marks the handlers that a task notified in an earlier part of the run, as the record at says, and returns them.
func (p *playRun) notifyOwed(h *hostRun, ids []string, at int) (all []*task) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, handler := range p.play.handlers {
		if slices.Contains(ids, p.taskID(handler)) {
			h.notice(handler, notice{fresh: at == 0, at: at})
			all = append(all, handler)
		}
	}
	return all
}

// handlersOf are the handlers that a task would notify, as far as their names are known.
func (p *playRun) handlersOf(t *task, env vars.Env) (all []*task) {
	for _, tree := range t.notify {
		if value, err := tree.Eval(env); err == nil {
			all = append(all, p.play.named(fmt.Sprint(value))...)
		}
	}
	return all
}

// register binds a task's result for a host.
func (p *playRun) register(t *task, h *hostRun, values map[string]any) {
	if t.spec.Register == "" {
		return
	}
	p.book.stacks[h.host.Name].Set(vars.Registered, t.spec.Register, vars.Const(values), t.label())
}

// env is what the expressions of a task see on a host. t is nil before any task of the play; user tells as whom
// facts are gathered, nil for the login user; reached notes the hosts that expressions look at.
func (p *playRun) env(ctx context.Context, t *task, h *hostRun, user *string, reached *reach) *vars.Stack {
	env := p.book.stacks[h.host.Name].With(vars.PlayVars, p.play.vars, p.play.title)
	if t != nil {
		for _, layer := range t.vars {
			env = env.With(vars.PlayVars, layer, t.label())
		}
	}
	as := func() string {
		if user == nil {
			return ""
		}
		return *user
	}
	var playHosts []any
	for _, other := range p.play.hosts {
		playHosts = append(playHosts, other.Name)
	}
	own := map[string]vars.Tree{
		nameFacts:     vars.Lazy(vars.Any, func() (any, error) { return p.factsMap(ctx, h, as()) }),
		nameHosts:     vars.Const(&hostsView{p, ctx, as, reached}),
		namePlayHosts: vars.Const(playHosts),
	}
	return env.With(vars.Builtin, own, "the engine")
}

// gather returns the facts of a host, in one round trip the first time.
func (r *run) gather(ctx context.Context, h *hostRun, user string) (module.Facts, error) {
	conn, err := r.connect(h)
	if err != nil {
		return module.Facts{}, err
	}
	h.facts.Lock()
	defer h.facts.Unlock()
	if past := r.memo.facts[h.host.Name]; h.facts.known == nil && past != nil {
		var f module.Facts
		if err := json.Unmarshal(past.Values, &f); err != nil {
			return module.Facts{}, fmt.Errorf("cannot read the facts on record: %w", err)
		}
		h.facts.known = &f
	}
	if h.facts.known == nil {
		f, err := module.GatherFacts(ctx, &module.Host{Name: h.host.Name, Conn: conn, User: user})
		if err != nil {
			return module.Facts{}, err
		}
		h.facts.known = &f
		if r.job.Journal != nil {
			values, err := json.Marshal(f)
			if err != nil {
				return module.Facts{}, fmt.Errorf("cannot put the facts on record: %w", err)
			}
			_ = r.note(journal.Record{Kind: journal.KindFacts, Facts: &journal.Facts{Host: h.host.Name, BootID: f.BootID, Values: values}}) // the run ends if it cannot
		}
	}
	return *h.facts.known, nil
}

func (r *run) factsMap(ctx context.Context, h *hostRun, user string) (any, error) {
	f, err := r.gather(ctx, h, user)
	if err != nil {
		return nil, err
	}
	m := f.Map()
	if install, pending := h.pending().Of("package"); pending && f.MySQLFlavour == "" {
		for _, name := range []string{"mysql_flavour", "mysql_version"} {
			m[name] = vars.Unknown{Because: hasYetToRun(install.Task)}
		}
	}
	return m, nil
}

// hostsView is the value of `hosts`: the other hosts' variables, facts and results.
type hostsView struct {
	p       *playRun
	ctx     context.Context
	user    func() string
	reached *reach
}

// reach is the other hosts that a task has looked at.
type reach struct {
	mu    sync.Mutex
	hosts []*hostRun
	maybe bool // check mode: it is not known whether the task will run
}

func (r *reach) add(h *hostRun) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.hosts, h) {
		r.hosts = append(r.hosts, h)
	}
}

func (r *reach) all() []*hostRun {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.hosts)
}

// Keys lists the hosts.
func (v *hostsView) Keys() []string { return slices.Sorted(maps.Keys(v.p.run.hosts)) }

// Fetch returns the view of one host.
func (v *hostsView) Fetch(key any) (any, error) {
	name := fmt.Sprint(key)
	h := v.p.run.hosts[name]
	if h == nil {
		return nil, noHost(name, v.p.job.Inventory.Hosts())
	}
	v.reached.add(h)
	return &hostView{v, h}, nil
}

// hostView is another host as expressions see it.
type hostView struct {
	all *hostsView
	h   *hostRun
}

// Fetch returns a variable, the facts or a registered result of the host.
func (v *hostView) Fetch(key any) (any, error) {
	name := fmt.Sprint(key)
	if name == nameFacts {
		return v.all.p.factsMap(v.all.ctx, v.h, v.all.user())
	}
	stack := v.all.p.book.stacks[v.h.host.Name]
	if _, _, ok := stack.Origin(name); !ok {
		if f := v.h.failure(); f != nil {
			return nil, fmt.Errorf("%s is needed, but that host %s", v.h.host.Name, f)
		}
		hint := spec.DidYouMean(name, stack.Names())
		if hint == "" {
			hint = "if a task registers it: no play of this run has come that far on that host"
		}
		return nil, &vars.UndefinedError{Name: name, Of: "host " + v.h.host.Name, Hint: hint}
	}
	return stack.Lookup(name)
}
