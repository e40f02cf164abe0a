package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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

// outcome is how one task, or one item of its loop, ended on a host.
type outcome struct {
	result  report.Result
	values  map[string]any // what register binds
	lost    bool           // the host could not be reached
	away    string         // the host that could not be reached
	planned bool           // check mode: Check returned a plan, so the values are what is known
	notRun  bool           // check mode: declared to change nothing, so there is nothing to judge
}

func (o *outcome) changed() bool {
	return o.result.Status == report.Changed || o.result.Status == report.WouldChange
}

func fail(format string, args ...any) outcome {
	return outcome{result: report.Result{Status: report.Failed, Msg: fmt.Sprintf(format, args...)}}
}

func skipped(because string) outcome {
	out := outcome{result: report.Result{Status: report.Skipped, Because: because}}
	out.values = common(out.result, nil)
	return out
}

func unknown(because string) outcome {
	return outcome{result: report.Result{Status: report.Unknown, Because: because}}
}

// evaluation turns the error of an evaluation into an outcome.
func evaluation(what string, pos spec.Pos, err error) outcome {
	var u *vars.UnknownError
	if errors.As(err, &u) {
		return unknown(u.Because)
	}
	var lost *transport.UnreachableError
	if errors.As(err, &lost) {
		return outcome{result: report.Result{Status: report.Unreachable, Msg: lost.Error()}, lost: true, away: lost.Host}
	}
	return fail("%s: cannot evaluate %s: %v", pos, what, err)
}

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
		*stop = p.provisional(*stop, h, reached)
		name := p.taskName(t, env)
		if stop.result.Status == report.Unknown {
			_ = p.notify(t, h, env, name) // a name that hangs on the loop's item is not known either
		}
		e := p.taskEvent(report.TaskEnd, t, h, name, "")
		e.Result = &stop.result
		p.emit(e)
		if stop.result.Status == report.Skipped {
			return p.finish(ctx, t, h, env, nil, looped, begin)
		}
		return p.finish(ctx, t, h, env, []outcome{*stop}, looped, begin)
	}
	var all []outcome
	for i, item := range items {
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
		out := p.elsewhere(p.attempt(ctx, t, h, itemEnv, &user, reached, e), h, e)
		out = p.provisional(out, h, reached)
		out.result.Seconds = time.Since(start).Seconds()
		if h.doubt != "" && out.changed() {
			out.result.Status, out.result.Because = report.Unknown, fmt.Sprintf("it runs only if %q changes something", h.doubt)
			out.values["changed"] = vars.Unknown{Because: out.result.Because}
		}
		p.notifyAfter(t, h, itemEnv, &out, name)
		if out.result.Status == report.Failed {
			if ignored, err := evalBool(t.ignoreErrors, itemEnv); err != nil {
				out.result.Msg += fmt.Sprintf("\nignore_errors: %v", err)
			} else {
				out.result.Ignored = ignored
			}
			out.result.Rescued = t.rescued && !out.result.Ignored
		}
		if out.result.Status == report.Unknown && !out.planned {
			out.values = unknownResult(t, out.result.Because)
		}
		if looped && out.values != nil {
			out.values["item"] = item
		}
		e.Kind, e.Result = report.TaskEnd, &out.result
		p.emit(e)
		all = append(all, out)
		if ctx.Err() != nil || out.lost {
			break
		}
	}
	return p.finish(ctx, t, h, env, all, looped, begin)
}

// notifyAfter notifies the handlers of a task that changed something, or may.
func (p *playRun) notifyAfter(t *task, h *hostRun, env vars.Env, out *outcome, name string) {
	by := ""
	switch {
	case out.result.Status == report.Unknown:
		by = name
	case !out.changed():
		return
	}
	if err := p.notify(t, h, env, by); err != nil && by == "" {
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
		f := &failure{task: name, msg: p.job.Masker.Mask(res.Msg), unreachable: worst.lost}
		h.setFailure(f)
		if f.unreachable {
			e := p.taskEvent(report.HostLost, t, h, name, "")
			e.Text = res.Msg
			p.emit(e)
		}
	}
	return values
}

// rank orders outcomes by how much they say of the whole task.
func rank(o outcome) int {
	switch o.result.Status {
	case report.Unreachable:
		return 6
	case report.Failed:
		if o.result.Ignored {
			return 2
		}
		return 5
	case report.Unknown:
		return 4
	case report.Changed, report.WouldChange:
		return 3
	case report.OK:
		return 1
	}
	return 0
}

// combine makes what register binds of the outcomes of a task.
func combine(all []outcome, looped bool) map[string]any {
	if !looped {
		if len(all) == 1 && all[0].values != nil {
			return all[0].values
		}
		var o outcome
		if len(all) == 1 {
			o = all[0]
		}
		return common(o.result, nil)
	}
	results := []any{}
	for _, o := range all {
		values := o.values
		if values == nil {
			values = common(o.result, nil)
		}
		results = append(results, values)
	}
	return map[string]any{
		"changed": foldResults(results, "changed", true),
		"failed":  foldResults(results, "failed", true),
		"skipped": foldResults(results, "skipped", false),
		"msg":     "", "results": results,
	}
}

// foldResults is what a field of all items says of the loop: decides if one item has that value, unknown if one may have it.
func foldResults(results []any, field string, decides bool) any {
	var fold any = !decides
	for _, values := range results {
		switch v := values.(map[string]any)[field].(type) {
		case bool:
			if v == decides {
				return decides
			}
		case vars.Unknown:
			fold = v
		}
	}
	return fold
}

// common adds the fields that every result has to those of the module.
func common(res report.Result, values map[string]any) map[string]any {
	out := map[string]any{}
	maps.Copy(out, values)
	delete(out, "warnings")
	out["changed"] = res.Status == report.Changed || res.Status == report.WouldChange
	out["failed"] = res.Status == report.Failed || res.Status == report.Unreachable
	out["skipped"] = res.Status == report.Skipped
	if _, has := out["msg"]; !has || res.Msg != "" {
		out["msg"] = res.Msg
	}
	return out
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

func itemLabel(t *task, env vars.Env, item any) string {
	if t.loopLabel != nil {
		if v, err := t.loopLabel.Eval(env); err == nil {
			return fmt.Sprint(v)
		}
	}
	return fmt.Sprint(item)
}

// items evaluates the loop. Without one there is a single item and looped is false.
func (p *playRun) items(t *task, env vars.Env) (items []any, looped bool, stop *outcome) {
	if t.loop == nil {
		return []any{nil}, false, nil
	}
	value, err := t.loop.Eval(env)
	if err == nil {
		err = knownValue(value)
	}
	if err != nil {
		// A condition that is false without the loop's item saves the task from a loop that has no value.
		for _, w := range t.when {
			if holds, condErr := w.expr.EvalBool(env); condErr == nil && !holds {
				out := skipped(because(w, env))
				return nil, true, &out
			}
		}
		out := evaluation("loop", t.spec.Loop.Pos, err)
		return nil, true, &out
	}
	switch v := value.(type) {
	case []any:
		items = v
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			items = append(items, map[string]any{"key": k, "value": v[k]})
		}
	case nil:
	default:
		out := fail("%s: cannot loop over %T", t.spec.Loop.Pos, value)
		return nil, true, &out
	}
	if len(items) == 0 {
		out := skipped("there is nothing to loop over")
		return nil, true, &out
	}
	return items, true, nil
}

// knownValue returns an UnknownError if an Unknown is anywhere in value.
func knownValue(value any) error {
	switch v := value.(type) {
	case vars.Unknown:
		return &vars.UnknownError{Because: v.Because}
	case []any:
		for _, item := range v {
			if err := knownValue(item); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if err := knownValue(v[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

func evalBool(tree vars.Tree, env vars.Env) (bool, error) {
	if tree == nil {
		return false, nil
	}
	v, err := tree.Eval(env)
	if err != nil {
		return false, err
	}
	if b, ok := v.(bool); ok {
		return b, nil
	}
	return false, fmt.Errorf("%v is neither true nor false", v)
}

// attempt runs one item of a task, again and again where until says so.
func (p *playRun) attempt(ctx context.Context, t *task, h *hostRun, env *vars.Stack, user *string, reached *reach, e report.Event) outcome {
	for _, w := range t.when {
		holds, err := w.expr.EvalBool(env)
		if err != nil {
			return evaluation("when", w.pos, err)
		}
		if !holds {
			out := skipped(because(w, env))
			out.result.Provisional = p.pendingAnywhere(h, reached) != "" && mayChange(w.expr, env)
			return out
		}
	}
	attempts, delay, err := p.patience(t, env)
	if err != nil {
		return fail("%v", err)
	}
	for n := 1; ; n++ {
		out := p.perform(ctx, t, h, env, user, reached, e)
		p.judge(t, env, &out)
		if len(t.until) == 0 || out.lost || out.result.Status == report.Unknown || ctx.Err() != nil {
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
			return fail("interrupted while waiting for the next attempt")
		case <-time.After(delay):
		}
	}
}

// because says why a condition is false, with the values that made it so.
func because(w cond, env vars.Env) string {
	text := w.expr.Source()
	if values := operands(w.expr, env); values != "" {
		text += ": " + values
	}
	return text
}

func operands(e *vars.Expr, env vars.Env) string {
	var parts []string
	for _, op := range e.Operands(env) {
		if len(parts) == 6 {
			parts = append(parts, "…")
			break
		}
		parts = append(parts, fmt.Sprintf("%s is %s", op.Source, shortValue(op.Value)))
	}
	return strings.Join(parts, ", ")
}

func shortValue(v any) string {
	if v == nil {
		return "not set"
	}
	text := fmt.Sprint(v)
	if s, ok := v.(string); ok {
		text = fmt.Sprintf("%q", s)
	}
	if r := []rune(text); len(r) > 80 {
		text = string(r[:77]) + "…"
	}
	return text
}

func (p *playRun) patience(t *task, env vars.Env) (attempts int, delay time.Duration, err error) {
	if len(t.until) == 0 {
		return 1, 0, nil
	}
	attempts, delay = defaultRetries+1, defaultDelay
	if t.retries != nil {
		v, err := t.retries.Eval(env)
		if err != nil {
			return 0, 0, err
		}
		n, err := toInt(v)
		if err != nil {
			return 0, 0, fmt.Errorf("retries: %w", err)
		}
		attempts = n + 1
	}
	if t.delay != nil {
		if delay, err = duration(t.delay, env); err != nil {
			return 0, 0, fmt.Errorf("delay: %w", err)
		}
	}
	return attempts, delay, nil
}

// duration evaluates a number of seconds or a text such as 5m.
func duration(tree vars.Tree, env vars.Env) (time.Duration, error) {
	if tree == nil {
		return 0, nil
	}
	v, err := tree.Eval(env)
	if err != nil {
		return 0, err
	}
	switch n := v.(type) {
	case string:
		return time.ParseDuration(n)
	case float64:
		return time.Duration(n * float64(time.Second)), nil
	}
	n, err := toInt(v)
	return time.Duration(n) * time.Second, err
}

// until evaluates the conditions to wait for.
func (p *playRun) until(t *task, env *vars.Stack, out outcome) (done bool, why string, stop *outcome) {
	after := resultEnv(t, env, out.values)
	for _, u := range t.until {
		holds, err := u.expr.EvalBool(after)
		var notKnown *vars.UnknownError
		switch {
		case err != nil && out.result.Status == report.Failed:
			return false, firstLine(out.result.Msg), nil // a failed attempt has no values to look at
		case errors.As(err, &notKnown):
			o := unknown(notKnown.Because)
			return false, "", &o
		case err != nil:
			o := fail("%s: cannot evaluate until: %v", u.pos, err)
			return false, "", &o
		case !holds:
			return false, because(u, after), nil
		}
	}
	return out.result.Status != report.Failed || len(t.failedWhen) > 0, firstLine(out.result.Msg), nil
}

// resultEnv adds a task's own result to what its conditions see.
func resultEnv(t *task, env *vars.Stack, values map[string]any) *vars.Stack {
	own := map[string]vars.Tree{nameResult: vars.Const(values)}
	if t.spec.Register != "" {
		own[t.spec.Register] = vars.Const(values)
	}
	return env.With(vars.Builtin, own, "the task")
}

// judge applies failed_when and changed_when to an outcome.
func (p *playRun) judge(t *task, env *vars.Stack, out *outcome) {
	if out.values == nil {
		out.values = common(out.result, nil)
	}
	if out.lost || out.notRun || out.result.Status == report.Unknown || out.result.Status == report.Skipped {
		return
	}
	after := resultEnv(t, env, out.values)
	if len(t.failedWhen) > 0 {
		failed, why, err := conjunction(t.failedWhen, after)
		switch {
		case err != nil && out.result.Status == report.Failed:
			// It failed before it had the values to judge it by: it stays failed.
		case err != nil:
			*out = evaluation("failed_when", t.failedWhen[0].pos, err)
			out.values = common(out.result, nil)
			return
		case failed && out.result.Status != report.Failed:
			out.result.Status, out.result.Msg = report.Failed, "failed_when: "+why
		case !failed && out.result.Status == report.Failed:
			out.result.Status = report.OK
			if len(out.result.Changes) > 0 {
				out.result.Status = report.Changed
			}
		}
	}
	if len(t.changedWhen) > 0 && out.result.Status != report.Failed {
		changed, _, err := conjunction(t.changedWhen, after)
		switch {
		case err != nil:
			*out = evaluation("changed_when", t.changedWhen[0].pos, err)
			out.values = common(out.result, nil)
			return
		case !changed:
			out.result.Status, out.result.Changes = report.OK, nil
		case p.job.Check:
			out.result.Status = report.WouldChange
		default:
			out.result.Status = report.Changed
		}
	}
	out.values = common(out.result, out.values)
}

// conjunction evaluates conditions that must all hold and tells of the last what it was computed from.
func conjunction(list []cond, env vars.Env) (holds bool, why string, err error) {
	holds = true
	for _, c := range list {
		one, err := c.expr.EvalBool(env)
		if err != nil {
			return false, "", err
		}
		holds, why = holds && one, because(c, env)
	}
	return holds, why, nil
}

// perform evaluates a task's arguments for a host, checks, and unless this is check mode applies and checks again.
func (p *playRun) perform(ctx context.Context, t *task, h *hostRun, env *vars.Stack, user *string, reached *reach, e report.Event) (out outcome) {
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
	if *user, stop = becomeUser(t, target, env); stop != nil {
		return *stop
	}
	args, stop := p.arguments(t, env)
	if stop != nil {
		return *stop
	}
	m := t.factory()
	if err := module.Decode(m, args); err != nil {
		var texts []string
		for _, one := range argErrors(err) {
			texts = append(texts, one.Error())
		}
		return fail("%s: %s: %s", t.spec.Pos, t.spec.Module, strings.Join(texts, "; "))
	}
	host, cancel, ctx, stop := p.moduleHost(ctx, t, target, env, *user, e)
	if stop != nil {
		return *stop
	}
	defer cancel()

	plan, err := m.Check(ctx, host)
	if err != nil {
		return p.failed(ctx, t, plan.Values, err)
	}
	out = outcome{values: plan.Values}
	out.result.Changes = changes(plan.Changes)
	out.result.Warnings = warnings(plan.Values)
	if len(plan.Changes) == 0 && plan.Unknown == "" {
		out.result.Status = report.OK
		out.result.Provisional = p.pendingAnywhere(target, reached) != ""
		out.result.Msg, _ = plan.Values["msg"].(string)
		out.values = common(out.result, out.values)
		return out
	}
	if p.job.Check {
		return p.predict(t, m, target, reached, plan, e.Task)
	}
	return p.apply(ctx, t, m, args, host, plan)
}

// predict is the verdict of check mode on a plan that a run would apply.
func (p *playRun) predict(t *task, m module.Module, target *hostRun, reached *reach, plan module.Plan, name string) outcome {
	out := outcome{values: plan.Values, planned: true}
	out.result.Changes = changes(plan.Changes)
	out.result.Provisional = p.pendingAnywhere(target, reached) != ""
	out.result.Status = report.WouldChange
	if plan.Unknown != "" {
		out.result.Status, out.result.Because = report.Unknown, plan.Unknown
	}
	if plan.Unknown != "" && len(plan.Changes) == 0 && neverChanges(t) {
		// It is declared to change nothing, so nothing that follows hangs on it but its own values.
		out.notRun = true
		out.result = report.Result{Status: report.OK, Because: "declared to change nothing; not run in check mode", Provisional: true}
	} else {
		target.setPending(name)
	}
	yetToRun := vars.Unknown{Because: fmt.Sprintf("%q has yet to run", name)}
	if plan.Pending || plan.Unknown != "" {
		out.values = unknownFields(m, yetToRun.Because)
	}
	out.values = common(out.result, out.values)
	if plan.Unknown != "" {
		out.values["failed"], out.values["msg"] = yetToRun, yetToRun
		if len(plan.Changes) == 0 && !out.notRun {
			out.values["changed"] = yetToRun
		}
	}
	return out
}

// unknownFields is what a module returns, none of it known yet.
func unknownFields(m module.Module, because string) map[string]any {
	values := map[string]any{}
	if r, ok := m.(module.Returner); ok {
		for _, f := range r.Returns() {
			values[f.Name] = vars.Unknown{Because: because}
		}
	}
	return values
}

// unknownResult is what register binds when it is not known what a task will do.
func unknownResult(t *task, because string) map[string]any {
	values := unknownFields(t.factory(), because)
	for _, name := range []string{"changed", "failed", "skipped", "msg"} {
		values[name] = vars.Unknown{Because: because}
	}
	return values
}

// neverChanges reports whether a task says changed_when: false.
func neverChanges(t *task) bool {
	for _, c := range t.changedWhen {
		if v, err := c.expr.Eval(vars.NewStack()); err == nil && v == false {
			return true
		}
	}
	return false
}

// elsewhere looks whether it is another host that was lost, which the task worked on or reached for: that one drops out, and this
// one has not been lost.
func (p *playRun) elsewhere(out outcome, h *hostRun, e report.Event) outcome {
	other := p.run.hosts[out.away]
	if !out.lost || other == nil || other == h {
		return out
	}
	if other.failure() == nil {
		other.setFailure(&failure{task: e.Task, msg: p.job.Masker.Mask(out.result.Msg), unreachable: true})
		e.Kind, e.Host, e.Item, e.Text = report.HostLost, other.host.Name, "", out.result.Msg
		p.emit(e)
	}
	out.lost = false
	return out
}

// provisional turns a failure in check mode into unknown where it may come from changes that are still pending, on this
// host or on one that the task reached for.
func (p *playRun) provisional(out outcome, h *hostRun, reached *reach) outcome {
	if !p.job.Check || out.result.Status != report.Failed {
		return out
	}
	if pending := p.pendingAnywhere(h, reached); pending != "" {
		return unknown(fmt.Sprintf("%q has yet to run (now: %s)", pending, firstLine(out.result.Msg)))
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

// mayChange reports whether a condition hangs on what hosts say, which a pending change may change.
func mayChange(e *vars.Expr, env *vars.Stack) bool {
	return slices.ContainsFunc(e.Operands(env), func(op vars.Operand) bool {
		name := op.Source
		if end := strings.IndexAny(name, ".[?"); end >= 0 {
			name = name[:end]
		}
		layer, _, _ := env.Origin(name)
		return name == nameFacts || name == nameHosts || layer == vars.Registered || layer == vars.PlayVars
	})
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
		return fail("interrupted")
	case errors.As(err, &exit):
		err = fmt.Errorf("%w%s", err, stderrTail(exit.Output.Stderr))
	}
	out := fail("%v", err)
	out.values = common(out.result, values)
	return out
}

// stderrTail is what a command said beyond its first line, which is in the error already.
func stderrTail(stderr []byte) string {
	lines := strings.Split(strings.TrimRight(string(stderr), "\n"), "\n")
	if len(lines) < 2 {
		return ""
	}
	if lines = lines[1:]; len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return "\n" + strings.Join(lines, "\n")
}

func changes(list []module.Change) []report.Change {
	var out []report.Change
	for _, c := range list {
		out = append(out, report.Change(c))
	}
	return out
}

func warnings(values module.Values) []string {
	var out []string
	switch list := values["warnings"].(type) {
	case []string:
		out = list
	case []any:
		for _, w := range list {
			out = append(out, fmt.Sprint(w))
		}
	}
	return out
}

// apply carries out a plan and checks that the host has converged.
func (p *playRun) apply(ctx context.Context, t *task, m module.Module, args map[string]any, host *module.Host, plan module.Plan) outcome {
	verifies := !plan.Act && plan.Unknown == ""
	var guess *speculation
	applying := host
	var count counter
	if verifies {
		applying, guess = p.speculate(ctx, t, args, host, &count)
	}
	values, err := m.Apply(ctx, applying, plan)
	var after module.Plan
	if guess != nil {
		var sure bool
		if after, sure = guess.wait(); err == nil && (!sure || count.runs.Load() != 1 || count.other.Load() > 0) {
			guess = nil
		}
	}
	if err != nil {
		out := p.failed(ctx, t, values, err)
		out.result.Changes = changes(plan.Changes)
		return out
	}
	out := outcome{values: values, result: report.Result{Status: report.Changed, Changes: changes(plan.Changes), Warnings: warnings(values)}}
	out.result.Msg, _ = values["msg"].(string)
	if verifies && guess == nil {
		fresh := t.factory()
		if err := module.Decode(fresh, args); err != nil {
			return fail("%v", err)
		}
		if after, err = fresh.Check(ctx, host); err != nil {
			out = p.failed(ctx, t, values, fmt.Errorf("applied, but cannot check the result: %w", err))
			out.result.Changes = changes(plan.Changes)
			return out
		}
	}
	if verifies && len(after.Changes) > 0 {
		var left []string
		for _, c := range after.Changes {
			left = append(left, c.What)
		}
		out := fail("did not converge: after it was applied, this is still to do: %s", strings.Join(left, "; "))
		out.result.Changes = changes(plan.Changes)
		return out
	}
	if verifies && values == nil {
		out.values = after.Values
	}
	if verifies && after.Unknown != "" {
		out.result.Warnings = append(out.result.Warnings, "applied, but it cannot be told whether the host is as declared now: "+after.Unknown)
	}
	out.values = common(out.result, out.values)
	return out
}

// speculation is a verifying Check that is sent right behind its Apply, in the same flight. It counts only if the
// Apply was one command in the queue and the Check read through the same queue.
type speculation struct {
	done  chan struct{}
	start sync.Once
	begun chan struct{}
	plan  module.Plan
	err   error
	reads counter
}

// counter counts what a module did on its host.
type counter struct{ runs, other atomic.Int32 }

// counted is a connection that counts its use: commands that wait their turn in the queue, and everything else.
type counted struct {
	transport.Conn
	n *counter
}

func (c counted) Dial(ctx context.Context, user, network, addr string) (net.Conn, error) {
	c.n.other.Add(1)
	return c.Conn.Dial(ctx, user, network, addr)
}

func (c counted) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	if cmd.Stdout != nil || cmd.Bulk {
		c.n.other.Add(1)
	} else {
		c.n.runs.Add(1)
	}
	return c.Conn.Run(ctx, cmd)
}

func (p *playRun) speculate(ctx context.Context, t *task, args map[string]any, host *module.Host, count *counter) (*module.Host, *speculation) {
	fresh := t.factory()
	if module.Decode(fresh, args) != nil {
		return host, nil
	}
	s := &speculation{done: make(chan struct{}), begun: make(chan struct{})}
	watched, reader := *host, *host
	watched.Conn = counted{host.Conn, count}
	reader.Conn = counted{host.Conn, &s.reads}
	watched.PeerFunc = func(ctx context.Context, name string) (*module.Host, error) {
		count.other.Add(1)
		return host.PeerFunc(ctx, name)
	}
	watched.SentFunc = func() {
		s.start.Do(func() {
			close(s.begun)
			go func() {
				defer close(s.done)
				defer func() {
					if r := recover(); r != nil {
						s.err = fmt.Errorf("the module crashed: %v", r) // the Check that counts will tell
					}
				}()
				s.plan, s.err = fresh.Check(ctx, &reader)
			}()
		})
	}
	return &watched, s
}

// wait returns the plan of the Check, and whether it can be believed.
func (s *speculation) wait() (module.Plan, bool) {
	s.start.Do(func() { close(s.done) }) // never sent
	<-s.done
	select {
	case <-s.begun:
	default:
		return module.Plan{}, false
	}
	return s.plan, s.err == nil && len(s.plan.Changes) == 0 && s.reads.other.Load() == 0
}

// arguments evaluates the arguments of a task for a host.
func (p *playRun) arguments(t *task, env *vars.Stack) (map[string]any, *outcome) {
	args := map[string]any{}
	for _, a := range t.args {
		switch {
		case a.conds != nil:
			list, stop := conditions(a, env)
			if stop != nil {
				return nil, stop
			}
			if args[a.name] = list; !a.list {
				args[a.name] = list[0]
			}
		case a.tree == nil:
			args[a.name] = a.fixed
		default:
			v, err := a.tree.Eval(env)
			if err == nil {
				err = knownValue(v)
			}
			if err != nil {
				out := evaluation("argument "+a.name, a.pos, err)
				return nil, &out
			}
			args[a.name] = asArgument(a.fixed, v)
		}
	}
	return args, nil
}

// asArgument gives a rendered template its type; other values stay as they are.
func asArgument(fixed, value any) any {
	tmpl, ok := fixed.(module.Template)
	if !ok {
		return value
	}
	if s, isSecret := value.(secret.Secret); isSecret {
		tmpl.Text, tmpl.Secret = s.Reveal(), true
	} else {
		tmpl.Text = fmt.Sprint(value)
	}
	return tmpl
}

func conditions(a arg, env *vars.Stack) ([]module.Condition, *outcome) {
	var list []module.Condition
	for _, one := range a.conds {
		holds, err := one.expr.EvalBool(env)
		if err != nil {
			out := evaluation(a.name, one.pos, err)
			return nil, &out
		}
		list = append(list, module.Condition{Source: one.expr.Source(), Value: holds, Operands: operands(one.expr, env)})
	}
	return list, nil
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

// moduleHost is what a module sees of the host it works on.
func (p *playRun) moduleHost(ctx context.Context, t *task, target *hostRun, env *vars.Stack, user string, e report.Event) (*module.Host, context.CancelFunc, context.Context, *outcome) {
	environment := map[string]string{}
	for _, v := range t.env {
		value, err := v.tree.Eval(env)
		if err == nil {
			err = knownValue(value)
		}
		if err != nil {
			out := evaluation("environment", v.pos, err)
			return nil, nil, nil, &out
		}
		if _, isSecret := value.(secret.Secret); isSecret {
			out := fail("%s: a secret cannot be put into the environment, where other processes may read it", v.pos)
			return nil, nil, nil, &out
		}
		switch value.(type) {
		case string, bool, int, float64:
			environment[v.name] = fmt.Sprint(value)
		case nil:
			out := fail("%s: environment: %s has no value; write x ?? \"\" for one that may be missing", v.pos, v.name)
			return nil, nil, nil, &out
		default:
			out := fail("%s: environment: %s must be a text; write join(list, \" \") or toJSON(x)", v.pos, v.name)
			return nil, nil, nil, &out
		}
	}
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
		peer.Name, peer.Conn = other.host.Name, conn
		peer.FactsFunc = func(ctx context.Context) (module.Facts, error) { return p.gather(ctx, other, user) }
		return &peer, nil
	}
	return host, cancel, ctx, nil
}

func (h *hostRun) pendingTask() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pending
}

func (h *hostRun) setPending(task string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pending == "" {
		h.pending = task
	}
}
