package engine

import (
	"slices"

	"runbook/engine/module"
	"runbook/engine/spec"
	"runbook/engine/vars"
	"runbook/inventory"
)

// program is a job whose books are compiled and whose hosts have their variables.
type program struct {
	books []*book
}

// hosts are those that some play is for, but for plays that only look when the run has failed, and for books that nobody has asked for.
func (p *program) hosts() map[string]bool {
	used := map[string]bool{}
	for _, b := range p.books {
		if b.owed {
			continue
		}
		for _, play := range b.plays {
			for _, h := range play.hosts {
				used[h.Name] = used[h.Name] || !play.after
			}
		}
	}
	return used
}

// book is a compiled runbook.
type book struct {
	spec   *spec.Book
	owed   bool // only the handlers are run that earlier runs of it owe
	plays  []*play
	stacks map[string]*vars.Stack // variables by host; registered results are added to them as the book runs
}

// mayChange reports whether a task of the books that the job selects may change a host.
func (p *program) mayChange(job *Job) bool {
	for _, b := range p.books {
		for _, play := range b.plays {
			for _, t := range allTasks(play) {
				if !t.isBlock() && !slices.Contains(play.handlers, t) && job.selects(t.tags) && t.spec.Meta == "" && !neverChanges(t) && !t.readsOnly() {
					return true
				}
			}
		}
	}
	return false
}

// play is a compiled play with the hosts that it is for.
type play struct {
	spec     *spec.Play
	title    string
	hosts    []*inventory.Host
	vars     map[string]vars.Tree
	tasks    []*task
	handlers []*task
	free     bool
	after    bool        // it runs when the run has failed, to say how things are
	needs    []vars.Tree // host names that tasks of this play reach for: other hosts must not have been lost
}

// batches are the hosts of the play that take part in it at once, batch after batch. They are the same however the run goes: when it is
// resumed, each host is where it was.
func (p *play) batches() (all [][]*inventory.Host) {
	if len(p.spec.Serial) == 0 {
		return [][]*inventory.Host{p.hosts}
	}
	rest := p.hosts
	for i := 0; len(rest) > 0; i++ {
		size := p.spec.Serial[min(i, len(p.spec.Serial)-1)]
		n := size.Hosts
		if size.Percent > 0 {
			n = max(1, len(p.hosts)*size.Percent/100)
		}
		n = min(n, len(rest))
		all, rest = append(all, rest[:n]), rest[n:]
	}
	return all
}

// isFor reports whether the play is for a host.
func (p *play) isFor(host string) bool {
	return slices.ContainsFunc(p.hosts, func(h *inventory.Host) bool { return h.Name == host })
}

// named returns the handlers that a notification of name is for.
func (p *play) named(name string) []*task {
	var found []*task
	for _, h := range p.handlers {
		if h.spec.Name == name || slices.Contains(h.listen, name) {
			found = append(found, h)
		}
	}
	return found
}

// handlerNames lists what can be notified.
func (p *play) handlerNames() []string {
	var names []string
	for _, h := range p.handlers {
		names = append(append(names, h.spec.Name), h.listen...)
	}
	return names
}

// cond is one condition with its place.
type cond struct {
	expr *vars.Expr
	pos  spec.Pos
}

// arg is one argument of a module.
type arg struct {
	name  string
	pos   spec.Pos
	value *spec.Value
	tree  vars.Tree // of an ordinary argument or a template
	conds []cond    // of conditions
	list  bool      // conds are a list
	late  bool      // Check can do without its value
	fixed any       // of a file read at load
}

// envVar is one variable of the environment of a task's commands.
type envVar struct {
	name string
	pos  spec.Pos
	tree vars.Tree
}

// task is a compiled task or block. What a block says of its tasks is already merged into them.
type task struct {
	spec *spec.Task
	id   string
	name vars.Tree // nil: no name was given

	factory module.Factory // nil: a block or a meta action
	fields  map[string]module.Field
	args    []arg

	when, changedWhen, failedWhen, until []cond
	loop                                 vars.Tree
	loopLabel                            vars.Tree
	vars                                 []map[string]vars.Tree // of blocks, outermost first, then the task's own
	env                                  []envVar
	become, becomeUser                   vars.Tree
	delegateTo                           vars.Tree
	ignoreErrors                         vars.Tree
	retries, delay, timeout              vars.Tree
	runOnce                              bool
	notify                               []vars.Tree
	listen                               []string
	tags                                 map[string]bool
	rescued                              bool // inside a block that has a rescue

	block, rescue, always []*task
	rescues               bool // a block: the run's tags select a task of its rescue
}

func (t *task) isBlock() bool { return len(t.block) > 0 }

// label is how the task is called when its name cannot be evaluated.
func (t *task) label() string {
	switch {
	case t.spec.Name != "":
		return t.spec.Name
	case t.spec.Meta != "":
		return t.spec.Meta
	}
	return t.spec.Module
}
