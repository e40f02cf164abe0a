package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"runbook/engine/module"
	"runbook/engine/spec"
	"runbook/engine/vars"
	"runbook/inventory"
)

// hostCheck finds, for one host, names without a value and arguments of the wrong type, before any connection.
type hostCheck struct {
	*compiler
	host  *inventory.Host
	stack *vars.Stack
	defs  map[string]vars.Tree // host variables
	play  *play
	regs  map[string]bool // names that tasks so far have registered
}

// checkHosts checks every play for every host that it is for. The same mistake on many hosts is told once.
func (c *compiler) checkHosts(b *book, defs map[string]map[string]vars.Tree) {
	told := complaints{}
	for _, h := range c.job.Inventory.Hosts() {
		regs := map[string]bool{}
		for _, p := range b.plays {
			if !slices.Contains(p.hosts, h) {
				continue
			}
			var mine []*spec.Error
			scoped := *c
			scoped.errs = &mine
			hc := &hostCheck{compiler: &scoped, host: h, stack: b.stacks[h.Name], defs: defs[h.Name], play: p, regs: regs}
			if err := hc.stack.With(vars.PlayVars, p.vars, p.title).Cycles(); err != nil {
				hc.errorf(p.spec.Pos, "", "%v", err)
			} else {
				hc.tasks(p.tasks)
				hc.tasks(p.handlers)
			}
			for _, e := range mine {
				told.add(e.Pos, e.Hint, e.Msg, h.Name)
			}
		}
	}
	*c.errs = append(*c.errs, told.errors()...)
}

func (hc *hostCheck) tasks(list []*task) {
	for _, t := range list {
		hc.tasks(t.block)
		hc.tasks(t.rescue)
		hc.tasks(t.always)
		if t.isBlock() {
			continue
		}
		hc.task(t)
		if t.spec.Register != "" {
			hc.regs[t.spec.Register] = true
		}
	}
}

// known is what a name is at load.
type known int

const (
	undefined known = iota
	static          // has its value now
	dynamic         // gets it during the run
)

// state tells what name is for a task, following the variables that a value is made of.
func (hc *hostCheck) state(t *task, name string, seen map[string]bool) known {
	if name == t.spec.LoopVar || name == t.spec.IndexVar || name == t.spec.Register {
		return dynamic
	}
	switch name {
	case nameHosts, nameFacts, namePlayHosts, nameResult, nameFailure:
		return dynamic
	}
	if seen[name] {
		return static // a cycle is told elsewhere
	}
	seen[name] = true
	var tree vars.Tree
	for _, layer := range slices.Backward(t.vars) {
		if tree == nil {
			tree = layer[name]
		}
	}
	if tree == nil {
		tree = hc.play.vars[name]
	}
	if tree == nil {
		tree = hc.defs[name]
	}
	if tree == nil {
		if hc.regs[name] {
			return dynamic
		}
		return undefined
	}
	return hc.treeState(t, tree, seen)
}

func (hc *hostCheck) treeState(t *task, tree vars.Tree, seen map[string]bool) known {
	worst := static
	for _, n := range tree.Names() {
		switch hc.state(t, n, maps.Clone(seen)) {
		case undefined:
			return undefined
		case dynamic:
			worst = dynamic
		}
	}
	return worst
}

// task checks one task.
func (hc *hostCheck) task(t *task) {
	env := hc.stack.With(vars.PlayVars, hc.play.vars, hc.play.title)
	for _, layer := range t.vars {
		env = env.With(vars.PlayVars, layer, t.label())
	}
	if len(t.vars) > 0 {
		if err := env.Cycles(); err != nil {
			hc.errorf(t.spec.Pos, "give one of them another name", "%v", err)
			return
		}
	}
	// What a condition excludes on this host is not checked further.
	for _, w := range t.when {
		if hc.treeState(t, w.expr, map[string]bool{}) != static {
			continue
		}
		if holds, err := w.expr.EvalBool(env); err == nil && !holds {
			return
		}
	}
	for _, v := range t.trees() {
		for _, n := range v.tree.Names() {
			if hc.state(t, n, map[string]bool{}) == undefined {
				hc.errorf(v.pos, hc.undefinedHint(n), "%q has no value here", n)
			}
		}
	}
	hc.keywords(t, env)
	if t.factory == nil {
		return
	}
	args, deferred := map[string]any{}, map[string]bool{}
	for _, a := range t.args {
		if a.tree == nil {
			if a.fixed != nil {
				args[a.name] = a.fixed
			} else {
				deferred[a.name] = true
			}
			continue
		}
		if hc.treeState(t, a.tree, map[string]bool{}) != static {
			deferred[a.name] = true
			continue
		}
		v, err := a.tree.Eval(env)
		if err != nil {
			hc.errorf(a.pos, "", "cannot evaluate argument %s: %v", a.name, err)
			deferred[a.name] = true
			continue
		}
		args[a.name] = asArgument(a.fixed, v)
	}
	if err := module.DecodePartial(t.factory(), args, deferred); err != nil {
		hc.argErrors(t, err, "")
	}
}

// keywords checks the keywords of a task whose values are known now.
func (hc *hostCheck) keywords(t *task, env *vars.Stack) {
	known := func(tree vars.Tree) bool {
		return tree != nil && hc.treeState(t, tree, map[string]bool{}) == static
	}
	asBool := func(tree vars.Tree) error { _, err := evalBool(tree, env); return err }
	asDuration := func(tree vars.Tree) error { _, err := duration(tree, env); return err }
	asCount := func(tree vars.Tree) error {
		v, err := tree.Eval(env)
		if err == nil {
			_, err = toInt(v)
		}
		return err
	}
	asHost := func(tree vars.Tree) error { return hc.hostExists(tree, env) }
	for _, one := range []struct {
		word  string
		tree  vars.Tree
		own   *spec.Value
		check func(vars.Tree) error
	}{
		{"become", t.become, t.spec.Become, asBool}, {"ignore_errors", t.ignoreErrors, t.spec.IgnoreErrors, asBool},
		{"delay", t.delay, t.spec.Delay, asDuration}, {"timeout", t.timeout, t.spec.Timeout, asDuration},
		{"retries", t.retries, t.spec.Retries, asCount}, {"delegate_to", t.delegateTo, t.spec.DelegateTo, asHost},
	} {
		if !known(one.tree) {
			continue
		}
		if err := one.check(one.tree); err != nil {
			hc.errorf(t.place(one.own), "", "%s: %v", one.word, err)
		}
	}
	for _, v := range t.trees() {
		if e, ok := v.tree.(*vars.Expr); ok && strings.Contains(e.Source(), " in ") {
			continue // it may ask first whether there is such a host
		}
		for _, ref := range vars.HostRefs(v.tree) {
			if !known(ref) {
				continue
			}
			if err := hc.hostExists(ref, env); err != nil {
				hc.errorf(v.pos, "", "hosts[%s]: %v", ref.Source(), err)
			}
		}
	}
	for i, tree := range t.notify {
		if known(tree) {
			if name, err := tree.Eval(env); err == nil && len(hc.play.named(fmt.Sprint(name))) == 0 {
				hc.errorf(t.spec.Notify[i].Pos, spec.DidYouMean(fmt.Sprint(name), hc.play.handlerNames()), "no handler of the play is named %q", name)
			}
		}
	}
}

// hostExists is an error if the inventory does not have the host. What cannot be evaluated is told where it is used.
func (hc *hostCheck) hostExists(name vars.Tree, env *vars.Stack) error {
	v, err := name.Eval(env)
	if err != nil || hc.job.Inventory.Host(fmt.Sprint(v)) != nil {
		return nil
	}
	return noHost(fmt.Sprint(v), hc.job.Inventory.Hosts())
}

func (hc *hostCheck) undefinedHint(name string) string {
	if _, registered := hc.compiler.regs[name]; registered {
		return "the task that registers it comes later, or runs in a play that this host is not in: hosts[\"NAME\"]." + name + " reads another host's"
	}
	return "set it for this host or a group of it in the inventory"
}
