package engine

import (
	"maps"
	"slices"

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
			hc.tasks(p.tasks)
			hc.tasks(p.handlers)
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

func (hc *hostCheck) undefinedHint(name string) string {
	if _, registered := hc.compiler.regs[name]; registered {
		return "the task that registers it comes later, or runs in a play that this host is not in: hosts[\"NAME\"]." + name + " reads another host's"
	}
	return "set it for this host or a group of it in the inventory"
}
