package engine

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/engine/vars"
)

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
	if out.final() || out.unseen || out.notRun || out.result.Status == report.Unknown || out.result.Status == report.Skipped {
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

// neverChanges reports whether a task says changed_when: false.
func neverChanges(t *task) bool {
	result := vars.Const(vars.Unknown{Because: "any"})
	env := vars.NewStack().With(vars.Builtin, map[string]vars.Tree{nameResult: result, cmp.Or(t.spec.Register, nameResult): result}, "the task")
	for _, c := range t.changedWhen {
		if v, err := c.expr.Eval(env); err == nil && v == false {
			return true
		}
	}
	return false
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

// arguments evaluates the arguments of a task for a host. late says why some are not known yet, which the module can do without.
func (p *playRun) arguments(t *task, env *vars.Stack) (args map[string]any, late map[string]string, stop *outcome) {
	args, late = map[string]any{}, map[string]string{}
	for _, a := range t.args {
		switch {
		case a.conds != nil:
			list, stop := conditions(a, env)
			if stop != nil {
				return nil, nil, stop
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
			if notKnown := (*vars.UnknownError)(nil); errors.As(err, &notKnown) && a.late && p.job.Check {
				late[a.name] = notKnown.Because
				continue
			}
			if err != nil {
				out := evaluation("argument "+a.name, a.pos, err)
				return nil, nil, &out
			}
			args[a.name] = asArgument(a.fixed, v)
		}
	}
	return args, late, nil
}

// decode is module.Decode with some arguments that are not known yet.
func decode(m module.Module, args map[string]any, late map[string]string) error {
	deferred := map[string]bool{}
	for name := range late {
		deferred[name] = true
	}
	return module.DecodePartial(m, args, deferred)
}

// asArgument gives a rendered template its type; other values stay as they are.
func asArgument(fixed, value any) any {
	tmpl, ok := fixed.(module.Template)
	if !ok {
		return value
	}
	if s, isSecret := value.(secret.Secret); isSecret {
		tmpl.Text, tmpl.Secret, tmpl.Shown = s.Reveal(), true, s.Shown()
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
			if slices.ContainsFunc(list, func(c module.Condition) bool { return !c.Value }) {
				break // what this one needs may be what the false one before it asks for
			}
			out := evaluation(a.name, one.pos, err)
			return nil, &out
		}
		list = append(list, module.Condition{Source: one.expr.Source(), Value: holds, Operands: operands(one.expr, env)})
	}
	return list, nil
}
