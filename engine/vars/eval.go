package vars

import (
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm/runtime"

	"runbook/engine/secret"
)

// Bounds on one evaluation.
const (
	maxItems = 1_000_000 // values held by one list or map, with all below it
	maxBytes = 16 << 20  // of one text
)

// evalTime is how long one evaluation may compute; waiting for a Lookup or a Fetch does not count.
var evalTime = 2 * time.Second

// run is one evaluation of a tree.
type run struct {
	env      Env
	seen     []locals // names looked up so far: within one evaluation a name has one value
	deadline time.Time
	steps    int // taken so far, and when the clock is read next
	nextLook int
	items    int // made so far
	operands *[]Operand
}

func newRun(env Env) *run { return &run{env: env, deadline: time.Now().Add(evalTime), nextLook: 256} }

var errTooLong = errors.New("the evaluation takes too long")

// work counts steps, of about the work of a comparison each, so that no evaluation goes on for ever.
func (r *run) work(steps int) error {
	if r.steps += steps; r.steps >= r.nextLook {
		r.nextLook = r.steps + 256
		if time.Now().After(r.deadline) {
			return errTooLong
		}
	}
	return nil
}

func (r *run) lookup(name string) (any, error) {
	for _, s := range r.seen {
		if s.name == name {
			return s.value, nil
		}
	}
	v, err := r.waiting(func() (any, error) { return r.env.Lookup(name) })
	if err == nil {
		r.seen = append(r.seen, locals{name: name, value: v})
	}
	return v, err
}

// waiting runs what may take its time without being the evaluation's fault.
func (r *run) waiting(f func() (any, error)) (any, error) {
	begun := time.Now()
	v, err := f()
	r.deadline = r.deadline.Add(time.Since(begun))
	if err != nil {
		return nil, err
	}
	return known(v)
}

// A missing value is an error that ?. and ?? forgive.
type missing struct {
	told  *Error
	node  ast.Node
	cause error // what Fetch returned, if that was the reason
}

func (m *missing) Error() string { return m.told.Error() }

// errChain ends a chain of members at a ?. that found nothing.
var errChain = errors.New("nothing there")

// surface is the error as callers see it.
func surface(err error) error {
	if m, ok := err.(*missing); ok {
		if m.cause != nil {
			return m.cause
		}
		return m.told
	}
	if err == errTooLong || err == errTooLarge {
		return start.errorf("", "%v", err)
	}
	return err
}

// Eval implements Tree.
func (e *Expr) Eval(env Env) (any, error) { return evaluate(e, env) }

// EvalBool evaluates a condition. A value that is not boolean is an error.
func (e *Expr) EvalBool(env Env) (bool, error) {
	v, err := e.Eval(env)
	if err != nil {
		return false, err
	}
	b, ok := v.(bool)
	if !ok {
		return false, e.notBool(v)
	}
	return b, nil
}

func (e *Expr) notBool(v any) error {
	return e.errorf(e.root, `compare: x == "true", x != "", len(x) > 0`, "a condition must be true or false, and %s is %s", e.root, a(v))
}

// Operand is a part of a condition with its value.
type Operand struct {
	Source string
	Value  any // Unknown if check mode cannot know it, nil if there is none
}

// Operands evaluates the condition again and gives the variables and members it read on the way, in order: what
// a person needs to see why it came out as it did.
func (e *Expr) Operands(env Env) []Operand {
	var read []Operand
	r := newRun(env)
	r.operands = &read
	_, _ = e.eval(r, nil)
	var once []Operand
	for _, o := range read {
		if !slices.ContainsFunc(once, func(x Operand) bool { return x.Source == o.Source }) {
			once = append(once, o)
		}
	}
	return once
}

func (e *Expr) eval(r *run, bound *locals) (any, error) {
	v, err := eval{r, e}.node(e.root, bound)
	if err == errTooLong || err == errTooLarge {
		return nil, e.errorf(e.root, "", "%v", err)
	}
	if _, isBool := v.(bool); e.cond && err == nil && !isBool {
		return nil, e.notBool(v)
	}
	return v, err
}

// eval walks the syntax tree of one expression.
type eval struct {
	*run
	e *Expr
}

func (x eval) node(n ast.Node, bound *locals) (any, error) {
	if err := x.work(1); err != nil {
		return nil, err
	}
	v, err := x.plainNode(n, bound)
	if x.operands != nil {
		if src, ok := x.e.operands[n]; ok {
			o := Operand{Source: src, Value: v}
			if unknown, ok := errors.AsType[*UnknownError](err); ok {
				o.Value = Unknown{Because: unknown.Because}
			}
			*x.operands = append(*x.operands, o)
		}
	}
	return v, err
}

func (x eval) plainNode(n ast.Node, bound *locals) (any, error) {
	switch n := n.(type) {
	case *ast.NilNode:
		return nil, nil
	case *ast.IntegerNode:
		return n.Value, nil
	case *ast.FloatNode:
		return n.Value, nil
	case *ast.BoolNode:
		return n.Value, nil
	case *ast.StringNode:
		return n.Value, nil
	case *ast.IdentifierNode:
		if v, ok := bound.find(n.Value); ok {
			return known(v)
		}
		return x.lookup(n.Value)
	case *ast.PointerNode:
		v, _ := bound.find("#" + n.Name)
		return known(v)
	case *ast.MemberNode:
		return x.member(n, bound)
	case *ast.ChainNode:
		v, err := x.node(n.Node, bound)
		if err == errChain {
			return nil, nil
		}
		return v, err
	case *ast.UnaryNode:
		v, err := x.node(n.Node, bound)
		if err != nil {
			return nil, err
		}
		return x.unary(n, v)
	case *ast.BinaryNode:
		return x.binary(n, bound)
	case *ast.ConditionalNode:
		yes, err := x.condition(n.Cond, bound)
		if err != nil {
			return nil, err
		}
		if yes {
			return x.node(n.Exp1, bound)
		}
		return x.node(n.Exp2, bound)
	case *ast.VariableDeclaratorNode:
		v, err := x.node(n.Value, bound)
		if err != nil {
			return nil, err
		}
		return x.node(n.Expr, &locals{n.Name, v, bound})
	case *ast.SequenceNode:
		var v any
		for _, one := range n.Nodes {
			var err error
			if v, err = x.node(one, bound); err != nil {
				return nil, err
			}
		}
		return v, nil
	case *ast.ArrayNode:
		return x.list(n.Nodes, bound)
	case *ast.MapNode:
		return x.mapping(n, bound)
	case *ast.SliceNode:
		return x.slice(n, bound)
	case *ast.PredicateNode:
		return x.node(n.Node, bound)
	case *ast.BuiltinNode:
		if table[n.Name].overItems {
			return x.overItems(n, bound)
		}
		return x.call(n, table[n.Name], n.Arguments, bound)
	case *ast.CallNode:
		return x.call(n, table[n.Callee.(*ast.IdentifierNode).Value], n.Arguments, bound)
	}
	return nil, x.e.errorf(n, "", "cannot evaluate %s", n)
}

// known is v, with plain types for scalars, or the error that it is not known.
func known(v any) (any, error) {
	switch v := v.(type) {
	case nil, string, int, bool, float64, []any, map[string]any, secret.Secret:
		return v, nil
	case Unknown:
		return nil, &UnknownError{Because: v.Because}
	}
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return int(r.Int()), nil
	case r.CanUint() && r.Uint() <= math.MaxInt:
		return int(r.Uint()), nil
	case r.CanUint():
		return float64(r.Uint()), nil
	case r.CanFloat():
		return r.Float(), nil
	case r.Kind() == reflect.String:
		return r.String(), nil
	case r.Kind() == reflect.Bool:
		return r.Bool(), nil
	}
	return v, nil
}

// soft evaluates n, giving nil where n's own chain of names and members leads to nothing.
func (x eval) soft(n ast.Node, bound *locals) (any, error) {
	v, err := x.node(n, bound)
	if err == nil || !missesItself(n, err) {
		return v, err
	}
	return nil, nil
}

// missesItself reports whether err says that a name or member of n's chain is missing, as opposed to one used in an
// index along the way.
func missesItself(n ast.Node, err error) bool {
	for {
		if m, ok := err.(*missing); ok && m.node == n {
			return true
		}
		switch on := n.(type) {
		case *ast.MemberNode:
			n = on.Node
		case *ast.ChainNode:
			n = on.Node
		case *ast.IdentifierNode:
			u, ok := err.(*UndefinedError)
			return ok && u.Name == on.Value
		default:
			return false
		}
	}
}

func (x eval) member(n *ast.MemberNode, bound *locals) (any, error) {
	evalBase := x.node
	if n.Optional {
		evalBase = x.soft
	}
	base, err := evalBase(n.Node, bound)
	if err != nil {
		return nil, err
	}
	key, err := x.node(n.Property, bound)
	if err != nil {
		return nil, err
	}
	v, err := x.fetch(n, base, key)
	if m, ok := err.(*missing); ok && m.node == n && n.Optional {
		return nil, errChain
	}
	return v, err
}

// fetch gives the member of base at key.
func (x eval) fetch(n *ast.MemberNode, base, key any) (any, error) {
	absent := func(hint, format string, args ...any) error {
		return &missing{told: x.e.errorf(n.Property, hint, format, args...), node: n}
	}
	const lenient = "write ?. or ?? if it may be missing"
	switch b := base.(type) {
	case nil:
		return nil, absent(lenient, "%s has no value, so %s has none", n.Node, n)
	case Fetcher:
		v, err := x.waiting(func() (any, error) { return b.Fetch(key) })
		if u, ok := err.(*UndefinedError); ok {
			return nil, &missing{told: x.e.errorf(n.Property, u.Hint, "%s", u.message()), node: n, cause: err}
		}
		return v, err
	case secret.Secret:
		return nil, x.e.errorf(n, secretHint, "%s is a secret: it has no fields", n.Node)
	case map[string]any:
		name, ok := key.(string)
		if !ok {
			return nil, x.e.errorf(n.Property, "", "%s is a map: its keys are strings, not %s", n.Node, a(key))
		}
		v, ok := b[name]
		if !ok {
			hint := near(name, keysOf(b))
			if hint == "" {
				hint = lenient
			}
			return nil, absent(hint, "%s has no key %q", n.Node, name)
		}
		return known(v)
	}
	r := reflect.ValueOf(base)
	switch {
	case r.Kind() == reflect.Map && r.Type().Key().Kind() == reflect.String:
		name, ok := key.(string)
		if !ok {
			return nil, x.e.errorf(n.Property, "", "%s is a map: its keys are strings, not %s", n.Node, a(key))
		}
		if v := r.MapIndex(reflect.ValueOf(name).Convert(r.Type().Key())); v.IsValid() {
			return known(v.Interface())
		}
		return nil, absent(lenient, "%s has no key %q", n.Node, name)
	case r.Kind() == reflect.Slice || r.Kind() == reflect.Array:
		if !isInt(key) {
			return nil, x.e.errorf(n.Property, "", "%s is a list: it is indexed by a number, not by %s", n.Node, a(key))
		}
		i := runtime.ToInt(key)
		if i < 0 {
			i += r.Len()
		}
		if i < 0 || i >= r.Len() {
			return nil, absent("", "%s has %d items, so there is none at [%v]", n.Node, r.Len(), key)
		}
		return known(r.Index(i).Interface())
	}
	return nil, x.e.errorf(n.Property, "", "%s is %s: it has no fields", n.Node, a(base))
}

func (x eval) condition(n ast.Node, bound *locals) (bool, error) {
	v, err := x.node(n, bound)
	if err != nil {
		return false, err
	}
	b, ok := v.(bool)
	if !ok {
		return false, x.e.errorf(n, `compare: x == "true", x != "", len(x) > 0`, "%s must be true or false, and is %s", n, a(v))
	}
	return b, nil
}

// either evaluates l && r (decides false) or l || r (decides true). A side that is not known does not matter when
// the other one decides.
func (x eval) either(l, r ast.Node, decides bool, bound *locals) (any, error) {
	left, err := x.condition(l, bound)
	unknown, isUnknown := errors.AsType[*UnknownError](err)
	switch {
	case err != nil && !isUnknown:
		return nil, err
	case err == nil && left == decides:
		return decides, nil
	}
	right, err := x.condition(r, bound)
	if isUnknown && (err != nil || right != decides) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	return right, nil
}

func (x eval) binary(n *ast.BinaryNode, bound *locals) (any, error) {
	switch n.Operator {
	case "&&", "and":
		return x.either(n.Left, n.Right, false, bound)
	case "||", "or":
		return x.either(n.Left, n.Right, true, bound)
	case "??":
		v, err := x.soft(n.Left, bound)
		if err != nil || v != nil {
			return v, err
		}
		return x.node(n.Right, bound)
	}
	l, err := x.node(n.Left, bound)
	if err != nil {
		return nil, err
	}
	r, err := x.node(n.Right, bound)
	if err != nil {
		return nil, err
	}
	return x.operator(n, l, r)
}

func (x eval) list(nodes []ast.Node, bound *locals) (any, error) {
	out := make([]any, len(nodes))
	for i, n := range nodes {
		var err error
		if out[i], err = x.node(n, bound); err != nil {
			return nil, err
		}
	}
	return out, x.made(len(out))
}

func (x eval) mapping(n *ast.MapNode, bound *locals) (any, error) {
	out := make(map[string]any, len(n.Pairs))
	for _, p := range n.Pairs {
		pair := p.(*ast.PairNode)
		k, err := x.node(pair.Key, bound)
		if err != nil {
			return nil, err
		}
		key, ok := k.(string)
		if !ok {
			return nil, x.e.errorf(pair.Key, "", "the key of a map must be a string, not %s", a(k))
		}
		if out[key], err = x.node(pair.Value, bound); err != nil {
			return nil, err
		}
	}
	return out, x.made(len(out))
}

func (x eval) slice(n *ast.SliceNode, bound *locals) (any, error) {
	v, err := x.node(n.Node, bound)
	if err != nil {
		return nil, err
	}
	text, isText := v.(string)
	items, isList := toList(v)
	runes := []rune(text)
	length := len(runes)
	if isList {
		length = len(items)
	} else if !isText {
		return nil, x.e.errorf(n, "", "only a list or a string has a part [from:to]; %s is %s", n.Node, a(v))
	}
	end := func(n ast.Node, otherwise int) (int, error) {
		if n == nil {
			return otherwise, nil
		}
		v, err := x.node(n, bound)
		if err != nil {
			return 0, err
		}
		if !isInt(v) {
			return 0, x.e.errorf(n, "", "%s must be a whole number, and is %s", n, a(v))
		}
		i := runtime.ToInt(v)
		if i < 0 {
			i += length
		}
		return min(max(i, 0), length), nil
	}
	from, err := end(n.From, 0)
	if err != nil {
		return nil, err
	}
	to, err := end(n.To, length)
	if err != nil {
		return nil, err
	}
	from = min(from, to)
	if isText {
		return string(runes[from:to]), nil
	}
	return items[from:to:to], nil
}

// call evaluates the arguments and calls f. Functions see neither secrets nor unknown values, unless they only
// move values around and there are none at the top.
func (x eval) call(n ast.Node, f *function, nodes []ast.Node, bound *locals) (any, error) {
	args := make([]any, len(nodes))
	for i, arg := range nodes {
		evalArg := x.node
		if f.lenient {
			evalArg = x.soft
		}
		var err error
		if args[i], err = evalArg(arg, bound); err != nil {
			return nil, err
		}
		if !f.secrets {
			if err := x.open(arg, args[i], f.Name+"()", f.shallow); err != nil {
				return nil, err
			}
		}
	}
	v, err := f.apply(args)
	if err != nil {
		return nil, x.e.errorf(n, "it is "+f.Signature, "%s: %v", f.Name, err)
	}
	if items, ok := v.([]any); ok {
		return v, x.made(len(items))
	}
	return v, nil
}

// open makes sure that v holds neither secrets nor unknown values and is of reasonable size.
func (x eval) open(n ast.Node, v any, what string, shallow bool) error {
	if _, ok := v.(secret.Secret); ok {
		return x.e.errorf(n, secretHint, "%s is a secret: it cannot be used with %s", n, what)
	}
	if shallow {
		return nil
	}
	weight, err := inspect(v, true)
	if err == errSecret {
		return x.e.errorf(n, secretHint, "%s holds a secret: it cannot be used with %s", n, what)
	}
	if err != nil {
		return err
	}
	return x.work(weight)
}

// made counts items that the evaluation made, so that it cannot fill the memory.
func (r *run) made(n int) error {
	if r.items += n; r.items > maxItems {
		return errTooLarge
	}
	return r.work(n)
}

// overItems evaluates a function that has a condition or expression for every item.
func (x eval) overItems(n *ast.BuiltinNode, bound *locals) (any, error) {
	collection, err := x.node(n.Arguments[0], bound)
	if err != nil {
		return nil, err
	}
	items, ok := toList(collection)
	if !ok {
		return nil, x.e.errorf(n.Arguments[0], "it is "+table[n.Name].Signature, "%s needs a list, and %s is %s", n.Name, n.Arguments[0], a(collection))
	}
	// item evaluates the expression for one item, the item itself if there is none.
	item := func(i int) (any, error) {
		if err := x.work(1); err != nil {
			return nil, err
		}
		if len(n.Arguments) < 2 {
			return known(items[i])
		}
		return x.node(n.Arguments[1], &locals{"#", items[i], &locals{"#index", i, bound}})
	}
	holds := func(i int) (bool, error) {
		v, err := item(i)
		if err != nil {
			return false, err
		}
		b, ok := v.(bool)
		if !ok {
			return false, x.e.errorf(n, "it is "+table[n.Name].Signature, "the condition inside %s must be true or false, and is %s", n.Name, a(v))
		}
		return b, nil
	}
	switch n.Name {
	case "any", "all":
		// As with || and &&, an unknown condition does not matter when another one decides.
		decides := n.Name == "any"
		var unknown error
		for i := range items {
			b, err := holds(i)
			if _, ok := errors.AsType[*UnknownError](err); ok {
				unknown = err
				continue
			}
			if err != nil {
				return nil, err
			}
			if b == decides {
				return decides, nil
			}
		}
		return !decides, unknown
	case "map":
		out := make([]any, len(items))
		for i := range items {
			if out[i], err = item(i); err != nil {
				return nil, err
			}
		}
		return out, x.made(len(out))
	case "sum":
		var total any = 0
		for i := range items {
			v, err := item(i)
			if err != nil {
				return nil, err
			}
			if !isNumber(v) {
				return nil, x.e.errorf(n, "", "sum needs numbers, and found %s", a(v))
			}
			total = runtime.Add(total, v)
		}
		return total, nil
	case "sortBy":
		return x.sortBy(n, items, item, bound)
	}
	var kept []int // indices of the items for which the condition holds
	backwards := n.Name == "findLast" || n.Name == "findLastIndex"
	for step := range items {
		i := step
		if backwards {
			i = len(items) - 1 - step
		}
		b, err := holds(i)
		if err != nil {
			return nil, err
		}
		if b {
			kept = append(kept, i)
			if strings.HasPrefix(n.Name, "find") {
				break
			}
		}
	}
	switch n.Name {
	case "filter":
		out := make([]any, len(kept))
		for i, k := range kept {
			out[i] = items[k]
		}
		return out, x.made(len(out))
	case "find", "findLast":
		if len(kept) == 0 {
			return nil, nil
		}
		return items[kept[0]], nil
	case "findIndex", "findLastIndex":
		if len(kept) == 0 {
			return nil, nil
		}
		return kept[0], nil
	case "none":
		return len(kept) == 0, nil
	case "one":
		return len(kept) == 1, nil
	}
	return len(kept), nil // count
}

func (x eval) sortBy(n *ast.BuiltinNode, items []any, item func(int) (any, error), bound *locals) (any, error) {
	sorted := &runtime.SortBy{Array: slices.Clone(items), Values: make([]any, len(items))}
	for i := range items {
		var err error
		if sorted.Values[i], err = item(i); err != nil {
			return nil, err
		}
		if err := x.open(n, sorted.Values[i], "sortBy()", false); err != nil {
			return nil, err
		}
	}
	if len(n.Arguments) == 3 {
		order, err := x.node(n.Arguments[2], bound)
		if err != nil {
			return nil, err
		}
		if order != "asc" && order != "desc" {
			return nil, x.e.errorf(n.Arguments[2], "", `the order must be "asc" or "desc"`)
		}
		sorted.Desc = order == "desc"
	}
	if err := stableSort(sorted); err != nil {
		return nil, x.e.errorf(n, "", "sortBy: %v", err)
	}
	return sorted.Array, x.made(len(items))
}

// matches applies the compiled right side of matches, or compiles it now.
func (x eval) matches(n *ast.BinaryNode, text, source string) (bool, error) {
	p := x.e.patterns[n]
	if p == nil {
		var err error
		if p, err = compilePattern(source); err != nil {
			return false, x.e.errorf(n.Right, "", "%v", err)
		}
	}
	m, err := p.match(text)
	if err != nil {
		return false, x.e.errorf(n, "", "%v", err)
	}
	return m != nil, nil
}
