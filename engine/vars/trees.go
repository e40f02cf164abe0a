package vars

import (
	"errors"
	"reflect"
	"slices"
)

// inner is a Tree of this package. Its values may hold Unknown in lists and maps, so that what is known of them can
// still be used; Eval of a whole Tree never gives such a value out.
type inner interface {
	eval(r *run, bound *locals) (any, error)
}

// partial evaluates a tree, giving a value that may hold Unknown.
func partial(t Tree, env Env) (any, error) {
	if t, ok := t.(inner); ok {
		v, err := t.eval(newRun(env), nil)
		return v, surface(err)
	}
	return t.Eval(env)
}

func evaluate(t inner, env Env) (any, error) {
	v, err := t.eval(newRun(env), nil)
	if err != nil {
		return nil, surface(err)
	}
	switch v.(type) {
	case string, bool, int, nil:
		return v, nil
	}
	if _, err := inspect(v, false); err != nil {
		return nil, surface(err)
	}
	return v, nil
}

// constant is a value known at load.
type constant struct {
	value any
	typ   Type
}

// Const is a tree whose value is v. Its type is v's: a map has exactly the keys it has.
func Const(v any) Tree {
	if r := reflect.ValueOf(v); r.Kind() == reflect.Int64 {
		v = int(r.Int())
	}
	return constant{v, TypeOf(v)}
}

func (c constant) Eval(Env) (any, error)           { return evaluate(c, nil) }
func (c constant) Names() []string                 { return nil }
func (c constant) Type() Type                      { return c.typ }
func (c constant) eval(*run, *locals) (any, error) { return known(c.value) }

// Lazy is a tree whose value f computes, each time it is asked for.
func Lazy(t Type, f func() (any, error)) Tree { return lazy{t, f} }

type lazy struct {
	typ Type
	f   func() (any, error)
}

func (l lazy) Eval(env Env) (any, error)           { return evaluate(l, env) }
func (l lazy) Names() []string                     { return nil }
func (l lazy) Type() Type                          { return l.typ }
func (l lazy) eval(r *run, _ *locals) (any, error) { return r.waiting(l.f) }

// ListTree is a list of the trees' values.
func ListTree(items []Tree) Tree {
	l := &listTree{items: items}
	types := make([]Type, len(items))
	for i, t := range items {
		l.names = append(l.names, t.Names()...)
		types[i] = t.Type()
	}
	slices.Sort(l.names)
	l.names = slices.Compact(l.names)
	l.typ = ListOf(joinAll(types))
	return l
}

type listTree struct {
	items []Tree
	names []string
	typ   Type
}

func (l *listTree) Eval(env Env) (any, error) { return evaluate(l, env) }
func (l *listTree) Names() []string           { return l.names }
func (l *listTree) Type() Type                { return l.typ }

func (l *listTree) eval(r *run, _ *locals) (any, error) {
	out := make([]any, len(l.items))
	for i, t := range l.items {
		var err error
		if out[i], err = element(t, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// element is the value of a tree within a list or map, where an unknown one has its place as well.
func element(t Tree, r *run) (any, error) {
	v, err := partial(t, r.env)
	if u, ok := errors.AsType[*UnknownError](err); ok {
		return Unknown{Because: u.Because}, nil
	}
	return v, err
}

// MapTree is a map of the trees' values under the keys.
func MapTree(keys []string, vals []Tree) Tree {
	m := &mapTree{keys: slices.Clone(keys), vals: vals}
	fields := make(map[string]Type, len(keys))
	for i, t := range vals {
		m.names = append(m.names, t.Names()...)
		fields[keys[i]] = t.Type()
	}
	slices.Sort(m.names)
	m.names = slices.Compact(m.names)
	m.typ = Object(fields)
	return m
}

type mapTree struct {
	keys  []string
	vals  []Tree
	names []string
	typ   Type
}

func (m *mapTree) Eval(env Env) (any, error) { return evaluate(m, env) }
func (m *mapTree) Names() []string           { return m.names }
func (m *mapTree) Type() Type                { return m.typ }

func (m *mapTree) eval(r *run, _ *locals) (any, error) {
	out := make(map[string]any, len(m.keys))
	for i, t := range m.vals {
		var err error
		if out[m.keys[i]], err = element(t, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// entry is what a map or Keyer holds under a key it has.
func entry(r *run, m any, key string) (any, error) {
	switch m := m.(type) {
	case map[string]any:
		return m[key], nil
	case Fetcher:
		return r.waiting(func() (any, error) { return m.Fetch(key) })
	}
	v := reflect.ValueOf(m)
	return v.MapIndex(reflect.ValueOf(key).Convert(v.Type().Key())).Interface(), nil
}

// HostRefs are the index expressions of every hosts[…] in a tree. One that depends on a name bound within its
// expression or template is not among them.
func HostRefs(t Tree) []*Expr {
	switch t := t.(type) {
	case *Expr:
		return t.hosts
	case *text:
		return t.hosts
	case *listTree:
		return refsOf(t.items)
	case *mapTree:
		return refsOf(t.vals)
	}
	return nil
}

func refsOf(trees []Tree) []*Expr {
	var refs []*Expr
	for _, t := range trees {
		refs = append(refs, HostRefs(t)...)
	}
	return refs
}
