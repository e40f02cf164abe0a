package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/engine/vars"
	"runbook/inventory"
)

// Defaults of until, as Ansible has them.
const (
	defaultRetries = 3
	defaultDelay   = 5 * time.Second
)

// task runs a task on one host, with its loop, and returns what it registered.
func (p *playRun) task(ctx context.Context, t *task, h *hostRun) map[string]any {
	p.forks <- struct{}{}
	defer func() { <-p.forks }()
	begin := time.Now()
	var user string
	reached := &reach{}
	env := p.env(ctx, t, h, &user, reached)
	items, looped, stop := p.items(t, env)
	if stop != nil {
		if stop.result.Status == report.Unknown && !p.job.Check {
			*stop = p.missing(t, h, stop.result.Because)
		}
		*stop = p.provisional(*stop, h, reached)
		name := p.taskName(t, env)
		if stop.result.Status == report.Unknown {
			_, _ = p.notify(t, h, env, name, nil) // a name that hangs on the loop's item is not known either
			p.mayDo(t, h, *stop, name)
		}
		e := p.taskEvent(report.TaskEnd, t, h, name, "")
		e.Result = &stop.result
		p.emit(e)
		if stop.result.Status == report.Skipped {
			if out := p.leftover(t, h, p.next(t, h, 0).Nth); out != nil {
				e.Result = &out.result
				p.emit(e)
				return p.finish(ctx, t, h, env, []outcome{*out}, looped, begin)
			}
			if slices.Contains(p.play.handlers, t) {
				p.hadTurn(t, h)
			}
			return p.finish(ctx, t, h, env, nil, looped, begin)
		}
		return p.finish(ctx, t, h, env, []outcome{*stop}, looped, begin)
	}
	var all []outcome
	through := true // all items were come to
	nth := 1
	for i, item := range items {
		if i > 0 && p.stopping(ctx) {
			through = false
			break
		}
		itemEnv, label := env, ""
		if looped {
			own := map[string]vars.Tree{t.spec.LoopVar: vars.Const(item)}
			if t.spec.IndexVar != "" {
				own[t.spec.IndexVar] = vars.Const(i)
			}
			itemEnv = env.With(vars.Builtin, own, "the loop")
			label = itemLabel(t, itemEnv, item)
		}
		name := p.taskName(t, itemEnv)
		e := p.taskEvent(report.TaskStart, t, h, name, label)
		p.emit(e)
		start := time.Now()
		out := p.elsewhere(p.attempt(ctx, t, h, i, itemEnv, &user, reached, e), h, e)
		out = p.provisional(out, h, reached)
		out.result.Seconds = time.Since(start).Seconds()
		if h.doubt != "" && out.changed() {
			out.result.Status, out.result.Maybe = report.Unknown, true
			out.result.Because = fmt.Sprintf("it runs only if %q changes something", h.doubt)
			out.values["changed"] = vars.Unknown{Because: out.result.Because}
		}
		if out.result.Status == report.Unknown && !p.job.Check {
			if past := p.believed(t, h, i, label, out.doing); past != nil {
				out = *past
			} else {
				out = p.missing(t, h, out.result.Because) // a person took for done what was to tell it
			}
		}
		p.notifyAfter(t, h, itemEnv, &out, name)
		if out.doing != nil {
			nth = max(nth, out.doing.Nth)
		}
		if out.unseen || out.restored && (out.doing.restore.Unseen || out.doing.restore.Withheld) {
			p.mu.Lock()
			p.unseen = append(p.unseen, takenForDone{t, h.host.Name, p.job.Masker.Mask(name), p.job.Masker.Mask(label)})
			p.mu.Unlock()
		}
		out.item, out.more = label, i < len(items)-1
		if out.result.Status == report.Unreachable && !out.final() {
			out.result.Rescued = t.rescued // it is another host that was lost
		}
		if out.result.Status == report.Failed && !out.final() {
			if ignored, err := evalBool(t.ignoreErrors, itemEnv); err != nil {
				out.result.Msg += fmt.Sprintf("\nignore_errors: %v", err)
			} else {
				out.result.Ignored = ignored
			}
			out.result.Rescued = t.rescued && !out.result.Ignored
		}
		turn := slices.Contains(p.play.handlers, t) && !out.more && out.had() && !slices.ContainsFunc(all, func(o outcome) bool { return !o.had() })
		var settles []journal.Settled
		if turn {
			settles = h.pays(t)
		}
		p.end(out.doing, &out, e, turn, settles)
		if out.result.Status == report.Unknown && !out.planned {
			out.values = unknownResult(t, out.result.Because)
			if !out.foreseen {
				p.mayDo(t, h, out, name)
			}
		}
		if looped && out.values != nil {
			out.values["item"] = item
		}
		e.Kind, e.Result, e.On = report.TaskEnd, &out.result, out.on
		p.emit(e)
		e.On = ""
		all = append(all, out)
		if ctx.Err() != nil || out.final() {
			through = false
			break
		}
	}
	// Of an item that could not even be evaluated it is not known what it was called.
	if nameless := slices.ContainsFunc(all, func(o outcome) bool {
		return o.result.Status == report.Failed && (o.doing == nil || o.doing.digest == "")
	}); through && !nameless {
		if out := p.leftover(t, h, nth); out != nil {
			e := p.taskEvent(report.TaskEnd, t, h, p.taskName(t, env), "")
			e.Result = &out.result
			p.emit(e)
			all = append(all, *out)
		}
	}
	return p.finish(ctx, t, h, env, all, looped, begin)
}

// mayDo notes that nobody knows what a task will make of its host.
func (p *playRun) mayDo(t *task, h *hostRun, out outcome, name string) {
	if target := p.run.hosts[out.on]; target != nil {
		h = target
	}
	if !neverChanges(t) && !t.readsOnly() {
		h.setPending(name, nil, true)
	}
}

// readsOnly reports whether a task changes nothing, by the arguments that are written out.
func (t *task) readsOnly() bool {
	m := t.factory()
	args := map[string]any{}
	for _, a := range t.args {
		if v, ok := a.constant(); ok {
			args[a.name] = v
		}
	}
	_ = module.DecodePartial(m, args, nil) // what is missing is no matter here
	reader, ok := m.(module.Reader)
	return ok && reader.ReadsOnly()
}

// notifyAfter notifies the handlers of a task that changed something, or may.
func (p *playRun) notifyAfter(t *task, h *hostRun, env vars.Env, out *outcome, name string) {
	if out.doing != nil && !out.final() {
		out.notified = p.notifyOwed(h, out.doing.owes, out.doing.at)
	}
	if len(out.owes) > 0 {
		_ = p.notifyOwed(h, out.owes, out.owedAt)
	}
	add := func(handlers []*task) {
		for _, handler := range handlers {
			if !slices.Contains(out.notified, handler) {
				out.notified = append(out.notified, handler)
			}
		}
	}
	if out.doing != nil && !out.final() {
		// What was begun earlier may have changed the host, whatever is found now.
		add(p.notifyOwed(h, out.doing.halfway.Owes(), 0))
		add(p.notifyOwed(h, out.doing.half.Owes(), 0))
	}
	by := ""
	switch {
	case out.restored:
		return // the record says whom it has notified
	case out.result.Status == report.Unknown:
		by = name
	case !out.changed():
		return
	}
	more, err := p.notify(t, h, env, by, out.paid())
	add(more)
	if err != nil && by == "" {
		out.result.Status, out.result.Msg = report.Failed, fmt.Sprintf("cannot notify: %v", err)
		out.values = common(out.result, out.values)
	}
}

// finish counts a task's outcomes, registers them, and drops the host where they say so.
func (p *playRun) finish(ctx context.Context, t *task, h *hostRun, env *vars.Stack, all []outcome, looped bool, begin time.Time) map[string]any {
	h.total.Seconds += time.Since(begin).Seconds()
	worst := outcome{result: report.Result{Status: report.Skipped}}
	for _, o := range all {
		if rank(o) > rank(worst) {
			worst = o
		}
	}
	res := worst.result
	switch {
	case res.Status == report.Failed && res.Ignored:
		h.total.Ignored++
	case res.Status == report.Failed && res.Rescued:
	case res.Status == report.Failed:
		h.total.Failed++
	case res.Status == report.Unreachable && res.Rescued && res.OnRecord:
	case res.Status == report.Unreachable:
		h.total.Unreachable++
	case res.Status == report.Skipped && (len(all) > 0 || looped):
		h.total.Skipped++
	case res.Status == report.Unknown:
		h.total.Unknown++
	case worst.changed():
		h.total.Changed++
	case res.Status == report.OK:
		h.total.OK++
	}
	values := combine(all, looped)
	if res.Status == report.Unknown && looped && len(all) == 1 && all[0].values == nil {
		values = unknownResult(t, res.Because) // it is not known what to loop over
		values["results"] = vars.Unknown{Because: res.Because}
	}
	p.register(t, h, values)
	name := p.taskName(t, env)
	if res.Status == report.Unreachable || res.Status == report.Failed && !res.Ignored {
		f := &failure{task: name, item: p.job.Masker.Mask(worst.item), msg: p.job.Masker.Mask(res.Msg), unreachable: worst.lost, final: worst.final(), counted: res.Status == report.Failed && !res.Rescued}
		f.forgive = func() {
			worst.result.Rescued = true
			p.end(worst.doing, &worst, p.taskEvent(report.TaskEnd, t, h, name, worst.item), false, nil)
		}
		h.setFailure(f)
		if f.unreachable {
			e := p.taskEvent(report.HostLost, t, h, name, "")
			e.Text = res.Msg
			p.emit(e)
		}
	}
	return values
}

func (p *playRun) taskEvent(kind report.Kind, t *task, h *hostRun, name, label string) report.Event {
	e := p.event(kind)
	e.TaskID, e.Task, e.Why, e.Module = t.id, name, t.spec.Why, t.spec.Module
	e.Place = fmt.Sprintf("%s:%d", t.spec.Pos.File, t.spec.Pos.Line)
	e.Handler = slices.Contains(p.play.handlers, t)
	e.Host, e.Item = h.host.Name, label
	return e
}

// taskName evaluates the name of a task; where it cannot be evaluated it is shown as written.
func (p *playRun) taskName(t *task, env vars.Env) string {
	if t.name == nil {
		return t.label()
	}
	v, err := t.name.Eval(env)
	if err != nil {
		return t.spec.Name
	}
	return fmt.Sprint(v)
}

// attempt runs one item of a task, again and again where until says so.
func (p *playRun) attempt(ctx context.Context, t *task, h *hostRun, index int, env *vars.Stack, user *string, reached *reach, e report.Event) (out outcome) {
	var doubtful *outcome // it is not known whether the task is to run
	for _, w := range t.when {
		holds, err := w.expr.EvalBool(env)
		if err != nil {
			out := evaluation("when", w.pos, err)
			if out.result.Status != report.Unknown {
				return out
			}
			doubtful = cmp.Or(doubtful, &out)
			continue
		}
		if !holds {
			out := skipped(because(w, env))
			if mayChange(w.expr, env) {
				out.result.HangsOn = p.pendingAnywhere(h, reached)
			}
			p.passedOver(t, h, index, e.Item, &out)
			return out
		}
	}
	if doubtful != nil && !p.job.Check {
		return *doubtful
	}
	if doubtful != nil {
		reached.maybe = true
		would := p.perform(ctx, t, h, env, user, reached, e, &doing{}) // for what it may make of the host
		reached.maybe = false
		doubtful.foreseen = would.planned || would.result.Status == report.OK
		return *doubtful
	}
	d := p.doingOf(t, h, index)
	defer func() { out.doing = d }()
	attempts, delay, err := p.patience(t, env)
	if err != nil {
		return fail("%v", err)
	}
	for n := 1; ; n++ {
		out := p.perform(ctx, t, h, env, user, reached, e, d)
		if out.restored || out.unseen {
			return out
		}
		p.judge(t, env, &out)
		if len(t.until) == 0 || out.final() || out.result.Status == report.Unknown || ctx.Err() != nil {
			return out
		}
		out.result.Attempts = n
		done, why, stop := p.until(t, env, out)
		if stop != nil {
			return *stop
		}
		if done {
			return out
		}
		if p.job.Check {
			return unknown(fmt.Sprintf("not so yet: %s; a run would try again, up to %d times", why, attempts))
		}
		if n >= attempts {
			last := out.result.Msg
			out.result.Status = report.Failed
			out.result.Msg = fmt.Sprintf("not so after %d attempts: %s", n, why)
			if last != "" {
				out.result.Msg += "\nlast: " + last
			}
			out.values = common(out.result, out.values)
			return out
		}
		e.Kind, e.Text = report.Progress, fmt.Sprintf("attempt %d of %d: %s", n, attempts, why)
		p.emit(e)
		select {
		case <-ctx.Done():
		case <-p.job.Stop:
		case <-time.After(delay):
			continue
		}
		out = fail("the run was ended while it waited for the next attempt")
		out.ended = true
		return out
	}
}

// perform evaluates a task's arguments for a host, checks, and unless this is check mode applies and checks again.
func (p *playRun) perform(ctx context.Context, t *task, h *hostRun, env *vars.Stack, user *string, reached *reach, e report.Event, d *doing) (out outcome) {
	defer func() {
		if r := recover(); r != nil {
			out = fail("the module crashed, please report it: %v\n%s", r, debug.Stack())
		}
	}()
	target, stop := p.target(t, h, env)
	if stop != nil {
		return *stop
	}
	reached.add(target)
	if stop := p.sameMachine(ctx, target, ""); stop != nil {
		return *stop
	}
	if target != h {
		defer func() { out.on = target.host.Name }()
	}
	if *user, stop = becomeUser(t, target, env); stop != nil {
		return *stop
	}
	args, late, stop := p.arguments(t, env)
	if stop != nil {
		return *stop
	}
	m := t.factory()
	if err := decode(m, args, late); err != nil {
		var texts []string
		for _, one := range argErrors(err) {
			texts = append(texts, one.Error())
		}
		return fail("%s: %s: %s", t.spec.Pos, t.spec.Module, strings.Join(texts, "; "))
	}
	environment, stop := p.environment(t, env)
	if stop != nil {
		return *stop
	}
	d.name, d.label = p.job.Masker.Mask(e.Task), p.job.Masker.Mask(e.Item)
	past, again, stop := p.past(ctx, d, t, target, *user, args, late, environment)
	if stop != nil || past != nil && !again {
		return *cmp.Or(stop, past)
	}
	host, cancel, ctx, stop := p.moduleHost(ctx, t, target, env, environment, *user, e)
	if stop != nil {
		return *stop
	}
	defer cancel()
	if p.job.Check {
		host.Effects, host.Late, host.Awaited = target.pending(), late, p.awaited()
	}

	if d.halfway != nil {
		// What was begun may still go on there. The lock is to be had when it is over, and only then can Check tell what has become of it.
		if stop := p.hold(ctx, target, *user); stop != nil {
			return *stop
		}
		if err := p.await(ctx, d, m, host); err != nil {
			out := p.failed(ctx, t, nil, err)
			out.open = true
			return out
		}
	}
	plan, err := m.Check(ctx, host)
	if err != nil {
		if past != nil && !d.anew {
			return *past // what it returned stays unknown
		}
		out = p.failed(ctx, t, plan.Values, err)
		out.certain = plan.Foreseen
		out.open = out.open || past != nil // it was done, but how things are now could not be looked at
		return out
	}
	if past != nil {
		p.lookedUp(past, d, plan)
		if !d.anew || len(plan.Changes) == 0 || plan.Act || plan.Unknown != "" {
			return *past // of what the host lost when it started anew it is nothing
		}
	}
	if d.halfway != nil && !d.collect {
		out, done := p.halfway(d, t, plan)
		if done {
			return out
		}
	}
	out = outcome{values: plan.Values}
	out.result.Changes = changes(plan.Changes)
	out.result.Warnings = warnings(plan.Values)
	if len(plan.Changes) == 0 && plan.Unknown == "" && !d.collect {
		out.result.Status = report.OK
		out.result.HangsOn = cmp.Or(plan.Hangs, p.pendingAnywhere(target, reached))
		out.result.Msg, _ = plan.Values["msg"].(string)
		if d.half != nil {
			out.result.Status, out.result.Msg = report.Changed, "it had failed after it began, and is done now"
		}
		if plan.Hangs != "" {
			out.values = hangingFields(m, plan)
		}
		out.values = common(out.result, out.values)
		return out
	}
	if p.job.Check {
		return p.predict(t, m, target, reached, plan, e.Task)
	}
	if plan.Wait {
		var done context.CancelFunc
		ctx, done = p.untilStop(ctx)
		defer done()
	} else if stop := p.begin(ctx, d, t, m, env, e, target, host); stop != nil {
		return *stop
	}
	return p.apply(ctx, t, m, args, host, plan)
}

// untilStop is a context that ends with the run's first interrupt too: who waits changes nothing, and may be away for long.
func (p *playRun) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-p.job.Stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// predict is the verdict of check mode on a plan that a run would apply.
func (p *playRun) predict(t *task, m module.Module, target *hostRun, reached *reach, plan module.Plan, name string) outcome {
	out := outcome{values: plan.Values, planned: true}
	out.result.Changes = changes(plan.Changes)
	out.result.HangsOn = cmp.Or(plan.Hangs, p.pendingAnywhere(target, reached))
	if plan.Wait {
		return p.predictWait(out, m, plan)
	}
	out.result.Status = report.WouldChange
	if plan.Unknown != "" {
		out.result.Status, out.result.Because = report.Unknown, plan.Unknown
	}
	if plan.Unknown != "" && len(plan.Changes) == 0 && neverChanges(t) {
		// It is declared to change nothing, so nothing that follows hangs on it but its own values.
		out.notRun = true
		out.result = report.Result{Status: report.OK, Because: "declared to change nothing; not run in check mode", HangsOn: out.result.HangsOn}
	} else {
		mayNotRun := target.doubt != "" || reached.maybe
		effects := slices.Clone(plan.Effects)
		for i := range effects {
			one := &effects[i]
			one.Maybe = one.Maybe || mayNotRun || plan.Unknown != "" && (!one.Sure || t.ignoreErrors != nil)
		}
		target.setPending(name, effects, plan.Unknown != "" || mayNotRun)
	}
	yetToRun := vars.Unknown{Because: hasYetToRun(name)}
	if plan.Pending || plan.Unknown != "" {
		out.values = unknownFields(m, yetToRun.Because)
	}
	out.values = common(out.result, out.values)
	if plan.Pending && t.ignoreErrors != nil {
		out.values["failed"], out.values["msg"] = yetToRun, yetToRun // where it fails without that, nothing follows
	}
	if plan.Unknown != "" {
		out.values["failed"], out.values["msg"] = yetToRun, yetToRun
		if len(plan.Changes) == 0 && !out.notRun {
			out.values["changed"] = yetToRun
		}
	}
	return out
}

// predictWait is the verdict on what a run would wait for: it is expected to come about if something is still to be done, here or
// on another host. Otherwise nobody knows whether it will.
func (p *playRun) predictWait(out outcome, m module.Module, plan module.Plan) outcome {
	var now []string
	for _, c := range plan.Changes {
		now = append(now, fmt.Sprintf("%s: %s", c.What, cmp.Or(c.Before, "not so")))
	}
	out.result.Changes = nil
	out.result.Status, out.result.Because = report.Unknown, "not so yet ("+strings.Join(now, "; ")+"); a run would wait for it"
	if awaited := p.awaited(); awaited != "" {
		out.result.Status, out.result.HangsOn = report.OK, awaited
		out.result.Because = fmt.Sprintf("not so yet (%s), and expected", strings.Join(now, "; "))
	}
	out.values = common(out.result, unknownFields(m, out.result.Because))
	return out
}

func hasYetToRun(task string) string { return fmt.Sprintf("%q has yet to run", task) }

// elsewhere looks whether it is another host that was lost, which the task worked on or reached for: that one drops out, and this
// one has not been lost.
func (p *playRun) elsewhere(out outcome, h *hostRun, e report.Event) outcome {
	other := p.run.hosts[out.away]
	if !out.lost || other == nil || other == h {
		return out
	}
	if other.failure() == nil {
		other.setFailure(&failure{task: e.Task, msg: p.job.Masker.Mask(out.result.Msg), unreachable: true, final: true})
		e.Kind, e.Host, e.Item, e.Text = report.HostLost, other.host.Name, "", out.result.Msg
		p.emit(e)
	}
	out.lost = false
	return out
}

// provisional turns a failure in check mode into unknown where it may come from changes that are still pending, on this
// host or on one that the task reached for.
func (p *playRun) provisional(out outcome, h *hostRun, reached *reach) outcome {
	if !p.job.Check || out.result.Status != report.Failed || out.certain && h.doubt == "" {
		return out
	}
	if h.doubt != "" {
		return unknown(fmt.Sprintf("it runs only if %q changes something (now: %s)", h.doubt, firstLine(out.result.Msg)))
	}
	if pending := p.pendingAnywhere(h, reached); pending != "" {
		return unknown(fmt.Sprintf("%s (now: %s)", hasYetToRun(pending), firstLine(out.result.Msg)))
	}
	return out
}

// pendingAnywhere returns a task whose change is pending, on h or on a host that its task reached for; "" if there is none.
func (p *playRun) pendingAnywhere(h *hostRun, reached *reach) string {
	for _, other := range append([]*hostRun{h}, reached.all()...) {
		if pending := other.pendingTask(); pending != "" {
			return pending
		}
	}
	return ""
}

// failed turns a module's error into an outcome; values are what it found out all the same.
func (p *playRun) failed(ctx context.Context, t *task, values module.Values, err error) outcome {
	var lost *transport.UnreachableError
	var exit *transport.ExitError
	switch {
	case errors.As(err, &lost):
		return outcome{result: report.Result{Status: report.Unreachable, Msg: err.Error()}, lost: true, away: lost.Host}
	case ctx.Err() != nil && context.Cause(ctx) == errTaskTimeout:
		return fail("timed out: the task's limit has passed")
	case ctx.Err() != nil:
		out := fail("interrupted")
		out.open = true
		return out
	case errors.As(err, &exit):
		err = fmt.Errorf("%w%s", err, stderrTail(exit.Output.Stderr))
	}
	out := fail("%v", err)
	out.values = common(out.result, values)
	return out
}

// target finds the host that a task works on.
func (p *playRun) target(t *task, h *hostRun, env vars.Env) (*hostRun, *outcome) {
	if t.delegateTo == nil {
		return h, nil
	}
	v, err := t.delegateTo.Eval(env)
	if err != nil {
		out := evaluation("delegate_to", t.spec.Pos, err)
		return nil, &out
	}
	other, err := p.other(fmt.Sprint(v))
	if err != nil {
		out := fail("%s: delegate_to: %v", t.spec.Pos, err)
		return nil, &out
	}
	return other, nil
}

func noHost(name string, hosts []*inventory.Host) error {
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	return fmt.Errorf("the inventory has no host %q%s", name, dashed(spec.DidYouMean(name, names)))
}

// other finds another host of the inventory that has not been lost.
func (p *playRun) other(name string) (*hostRun, error) {
	h := p.run.hosts[name]
	if h == nil {
		return nil, noHost(name, p.job.Inventory.Hosts())
	}
	if f := h.failure(); f != nil && f.unreachable {
		return nil, fmt.Errorf("%s is needed, but that host %s", name, f)
	}
	return h, nil
}

func becomeUser(t *task, target *hostRun, env vars.Env) (string, *outcome) {
	become, err := evalBool(t.become, env)
	if err != nil {
		out := evaluation("become", t.spec.Pos, err)
		return "", &out
	}
	if !become {
		return "", nil
	}
	if t.becomeUser == nil {
		return cmp.Or(target.host.Connection.BecomeUser, "root"), nil
	}
	v, err := t.becomeUser.Eval(env)
	if err != nil {
		out := evaluation("become_user", t.spec.Pos, err)
		return "", &out
	}
	return fmt.Sprint(v), nil
}

var errTaskTimeout = errors.New("the task's timeout has passed")

// environment evaluates the environment of a task's commands.
func (p *playRun) environment(t *task, env *vars.Stack) (map[string]string, *outcome) {
	environment := map[string]string{}
	for _, v := range t.env {
		value, err := v.tree.Eval(env)
		if err == nil {
			err = knownValue(value)
		}
		if err != nil {
			out := evaluation("environment", v.pos, err)
			return nil, &out
		}
		if _, isSecret := value.(secret.Secret); isSecret {
			out := fail("%s: a secret cannot be put into the environment, where other processes may read it", v.pos)
			return nil, &out
		}
		switch value.(type) {
		case string, bool, int, float64:
			environment[v.name] = fmt.Sprint(value)
		case nil:
			out := fail("%s: environment: %s has no value; write x ?? \"\" for one that may be missing", v.pos, v.name)
			return nil, &out
		default:
			out := fail("%s: environment: %s must be a text; write join(list, \" \") or toJSON(x)", v.pos, v.name)
			return nil, &out
		}
	}
	return environment, nil
}

// moduleHost is what a module sees of the host it works on.
func (p *playRun) moduleHost(ctx context.Context, t *task, target *hostRun, env *vars.Stack, environment map[string]string, user string, e report.Event) (*module.Host, context.CancelFunc, context.Context, *outcome) {
	limit, err := duration(t.timeout, env)
	if err != nil {
		out := evaluation("timeout", t.spec.Pos, err)
		return nil, nil, nil, &out
	}
	cancel := context.CancelFunc(func() {})
	if limit > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errTaskTimeout)
	}
	conn, err := p.connect(target)
	if err != nil {
		cancel()
		out := p.failed(ctx, t, nil, err)
		return nil, nil, nil, &out
	}
	host := &module.Host{Name: target.host.Name, Conn: conn, User: user, Env: environment, Timeout: limit, Secrets: p.job.Masker}
	host.FactsFunc = func(ctx context.Context) (module.Facts, error) { return p.gather(ctx, target, user) }
	host.ProgressFunc = func(text string) {
		progress := e
		progress.Kind, progress.Text = report.Progress, text
		p.emit(progress)
	}
	host.PeerFunc = func(ctx context.Context, name string) (*module.Host, error) {
		other, err := p.other(name)
		if err != nil {
			return nil, err
		}
		conn, err := p.connect(other)
		if err != nil {
			return nil, err
		}
		peer := *host
		peer.Name, peer.Conn, peer.Effects = other.host.Name, conn, other.pending()
		peer.FactsFunc = func(ctx context.Context) (module.Facts, error) { return p.gather(ctx, other, user) }
		return &peer, nil
	}
	return host, cancel, ctx, nil
}

// pending is what changes that have not been made would make of the host.
func (h *hostRun) pending() module.Effects {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.effects)
}

// pendingTask is the first task whose change has not been made, "" if there is none.
func (h *hostRun) pendingTask() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.effects) == 0 {
		return ""
	}
	return h.effects[0].Task
}

// setPending notes what a task would make of the host: anything, if its module does not say what; maybe is about that.
func (h *hostRun) setPending(task string, effects []module.Effect, maybe bool) {
	if len(effects) == 0 {
		effects = []module.Effect{{Kind: module.Anything, Maybe: maybe}}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range effects {
		e.Task, e.Order = task, len(h.effects)+1
		h.effects = append(h.effects, e)
	}
}

// awaited is a task of this check whose change has not been made, on whatever host; "" if there is none.
func (r *run) awaited() string {
	for _, h := range r.job.Inventory.Hosts() {
		if task := r.hosts[h.Name].pendingTask(); task != "" {
			return task
		}
	}
	return ""
}
