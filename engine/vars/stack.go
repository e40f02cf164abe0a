package vars

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// UndefinedError says that a variable has no value here.
type UndefinedError struct {
	Name, Hint string
	Of         string // whose variable it is, "" for the variables here
}

func (e *UndefinedError) Error() string {
	if e.Hint != "" {
		return e.message() + " (" + e.Hint + ")"
	}
	return e.message()
}

func (e *UndefinedError) message() string {
	if e.Of != "" {
		return fmt.Sprintf("%s has no variable or result %q", e.Of, e.Name)
	}
	return fmt.Sprintf("%q is not defined", e.Name)
}

// VariableError is a mistake in the value of a variable, found when it was used.
type VariableError struct {
	Name   string
	Origin string // where the variable was set
	Err    error
}

func (e *VariableError) Error() string {
	if e.Origin == "" {
		return fmt.Sprintf("variable %q: %v", e.Name, e.Err)
	}
	return fmt.Sprintf("variable %q (%s): %v", e.Name, e.Origin, e.Err)
}

// Unwrap gives the cause, but not an *Error: its place is in the variable's source, not in the one being evaluated.
func (e *VariableError) Unwrap() error {
	if _, ok := e.Err.(*Error); ok {
		return nil
	}
	return e.Err
}

// Stack is the variables of one host, in layers. A child, made by With, sees what its parent holds, also what is set
// there later. It is an Env. Lookup may be called while another goroutine calls Set.
type Stack struct {
	up   *Stack
	mu   sync.RWMutex
	defs map[string][]definition // strongest last; of equal layers the latest
}

type definition struct {
	layer  Layer
	tree   Tree
	origin string
}

// NewStack is a stack without variables.
func NewStack() *Stack { return &Stack{defs: map[string][]definition{}} }

// Set defines a variable in a layer, replacing what that layer of this stack had for it. Origin says where, for people.
func (s *Stack) Set(layer Layer, name string, t Tree, origin string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearchFunc(s.defs[name], layer, func(d definition, l Layer) int { return int(d.layer - l) })
	def := definition{layer, t, origin}
	// Readers may hold the old slice.
	defs := slices.Clone(s.defs[name])
	if found {
		defs[i] = def
	} else {
		defs = slices.Insert(defs, i, def)
	}
	s.defs[name] = defs
}

// With is a child with more variables in a layer, for the scope of a play, block, task or loop: within the same
// layer a child's variable wins over its parent's. The parent is not touched.
func (s *Stack) With(layer Layer, defs map[string]Tree, origin string) *Stack {
	child := &Stack{up: s, defs: make(map[string][]definition, len(defs))}
	for name, t := range defs {
		child.defs[name] = []definition{{layer, t, origin}}
	}
	return child
}

// find gives the strongest definition.
func (s *Stack) find(name string) (best definition, ok bool) {
	for ; s != nil; s = s.up {
		s.mu.RLock()
		defs := s.defs[name]
		s.mu.RUnlock()
		if len(defs) > 0 && (!ok || defs[len(defs)-1].layer > best.layer) {
			best, ok = defs[len(defs)-1], true
		}
	}
	return best, ok
}

// Lookup evaluates a variable in the whole stack. The value may hold Unknown in lists and maps. Errors are
// *UndefinedError, *UnknownError, or a *VariableError that wraps what a Lazy or Fetch returned.
func (s *Stack) Lookup(name string) (any, error) {
	return (&lookups{stack: s, done: map[string]result{}}).Lookup(name)
}

// lookups is the Env of one Lookup: it remembers values and what is being looked up.
type lookups struct {
	stack *Stack
	chain []string
	done  map[string]result
}

type result struct {
	value any
	err   error
}

func (l *lookups) Lookup(name string) (any, error) {
	if r, ok := l.done[name]; ok {
		return r.value, r.err
	}
	def, ok := l.stack.find(name)
	if !ok {
		return nil, &UndefinedError{Name: name, Hint: near(name, l.stack.Names())}
	}
	if i := slices.Index(l.chain, name); i >= 0 {
		return nil, cycleError(append(slices.Clone(l.chain[i:]), name))
	}
	v, err := partial(def.tree, &lookups{l.stack, append(slices.Clip(l.chain), name), l.done})
	switch err.(type) {
	case nil, *UnknownError, *VariableError:
	default:
		err = &VariableError{Name: name, Origin: def.origin, Err: err}
	}
	l.done[name] = result{v, err}
	return v, err
}

func cycleError(chain []string) error {
	return fmt.Errorf("it is defined by itself: %s", strings.Join(chain, " → "))
}

// Origin says in which layer the variable that wins was set, and where.
func (s *Stack) Origin(name string) (layer Layer, origin string, ok bool) {
	def, ok := s.find(name)
	return def.layer, def.origin, ok
}

// Names lists the variables, sorted.
func (s *Stack) Names() []string {
	all := map[string]bool{}
	for ; s != nil; s = s.up {
		s.mu.RLock()
		for name := range s.defs {
			all[name] = true
		}
		s.mu.RUnlock()
	}
	return slices.Sorted(maps.Keys(all))
}

// Cycles is an error if a variable is defined by itself, in whatever way its value comes out.
func (s *Stack) Cycles() error {
	const visiting, clean = 1, 2
	state := map[string]int{}
	var chain []string
	var visit func(name string) error
	visit = func(name string) error {
		def, ok := s.find(name)
		if !ok || state[name] == clean {
			return nil
		}
		chain = append(chain, name)
		defer func() { chain = chain[:len(chain)-1] }()
		if state[name] == visiting {
			return &VariableError{Name: name, Origin: def.origin, Err: cycleError(slices.Clone(chain[slices.Index(chain, name):]))}
		}
		state[name] = visiting
		for _, used := range def.tree.Names() {
			if err := visit(used); err != nil {
				return err
			}
		}
		state[name] = clean
		return nil
	}
	for _, name := range s.Names() {
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
}
