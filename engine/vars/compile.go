package vars

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/checker"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/types"
)

// Bounds on a source, so that no parser below is driven into its depths.
const (
	maxSource   = 4 << 10 // bytes of one expression
	maxBrackets = 64      // open at once
	maxUnary    = 16      // signs and negations in a row
	maxVisits   = 20_000  // of nodes: a < b < c shares b, so that nested ones have many more nodes than characters
	maxTemplate = 1 << 20 // bytes of a text or template
)

var compiled atomic.Int64

// Compiled counts the expressions compiled since the program began. It stands still once a book is loaded.
func Compiled() int64 { return compiled.Load() }

// Expr is a compiled expression. It is a Tree, and safe for concurrent use.
type Expr struct {
	src      string
	at       place
	root     ast.Node
	typ      Type
	cond     bool
	names    []string
	hosts    []*Expr
	operands map[ast.Node]string
	patterns map[ast.Node]*pattern
}

// CompileExpr compiles an expression. Errors are *Error.
func CompileExpr(src string, s *Scope) (*Expr, error) { return compileAt(src, s, start) }

// CompileCond compiles a condition: an expression that is true or false. What is known only when it is
// evaluated must then be boolean; nothing is taken for true because it is not empty.
func CompileCond(src string, s *Scope) (*Expr, error) { return compileCondAt(src, s, start) }

func compileCondAt(src string, s *Scope, at place) (*Expr, error) {
	e, err := compileAt(src, s, at)
	if err != nil {
		return nil, err
	}
	hints := map[TypeKind]string{
		StringKind: fmt.Sprintf(`write %[1]s != "" or len(%[1]s) > 0`, e.root), ListKind: fmt.Sprintf("write len(%s) > 0", e.root), MapKind: fmt.Sprintf("write len(%s) > 0", e.root),
		IntKind: fmt.Sprintf("write %s != 0", e.root), FloatKind: fmt.Sprintf("write %s != 0", e.root), SecretKind: fmt.Sprintf("write !empty(%s)", e.root),
	}
	if k := e.typ.Kind; k != BoolKind && k != AnyKind {
		return nil, e.errorf(e.root, hints[k], "a condition must be true or false, and this is a value of type %s", e.typ)
	}
	if _, isNil := e.root.(*ast.NilNode); isNil {
		return nil, e.errorf(e.root, "", "a condition must be true or false, and this is nil")
	}
	e.cond, e.typ = true, Bool
	return e, nil
}

func compileAt(src string, s *Scope, at place) (e *Expr, err error) {
	if err := guard(src, at); err != nil {
		return nil, err
	}
	compiled.Add(1)
	defer func() {
		if r := recover(); r != nil {
			e, err = nil, at.errorf("", "cannot compile this expression: %v", r)
		}
	}()
	config := newConfig()
	tree, err := parser.ParseWithConfig(src, config)
	if err != nil {
		return nil, explain(err, tree, src, at)
	}
	e = &Expr{src: src, at: at, root: tree.Node, operands: map[ast.Node]string{}, patterns: map[ast.Node]*pattern{}}
	r := resolver{Expr: e, scope: s, used: types.Map{}}
	if err := r.resolve(tree.Node, nil, true); err != nil {
		return nil, err
	}
	config.WithEnv(r.used)
	if _, err := checker.Check(tree, config); err != nil {
		return nil, explain(err, tree, src, at)
	}
	if err := e.checkSecrets(tree.Node); err != nil {
		return nil, err
	}
	e.typ = typeFrom(*tree.Node.Nature())
	for name := range r.used {
		e.names = append(e.names, name)
	}
	slices.Sort(e.names)
	for _, index := range r.hosts {
		e.hosts = append(e.hosts, &Expr{src: index.String(), at: at, root: index, typ: typeFrom(*index.Nature()), names: r.namesIn(index), patterns: e.patterns})
	}
	return e, nil
}

// newConfig knows no names yet: a variable may share its name with a function, and the call still means the function.
func newConfig() *conf.Config {
	c := conf.New(types.Map{})
	for name := range c.Builtins {
		c.Disabled[name] = true
	}
	c.Builtins = conf.FunctionsTable{}
	for _, f := range table {
		if f.builtin {
			delete(c.Disabled, f.Name)
		} else {
			c.Functions[f.Name] = f.call
		}
	}
	return c
}

// guard refuses sources that are too long or too deep before a parser sees them.
func guard(src string, at place) *Error {
	switch {
	case len(src) > maxSource:
		return at.errorf("", "an expression may have %d bytes, this one has %d", maxSource, len(src))
	case strings.TrimSpace(src) == "":
		return at.errorf("", "the expression is empty")
	case strings.HasPrefix(strings.TrimSpace(src), "{{"):
		return at.errorf("write the expression without {{ }}", "this is an expression already")
	}
	depth, unary := 0, 0
	for i, word := 0, false; i < len(src); i++ {
		c := src[i]
		switch {
		case c == '"' || c == '\'' || c == '`':
			i = skipString(src, i)
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		}
		isWord := c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80
		switch {
		case c == '!' || c == '-' || c == '+' || c == 't' && word && strings.HasSuffix(src[:i+1], "not"):
			unary++
		case !isWord && c > ' ' || isWord && c != 'n' && c != 'o':
			unary = 0
		}
		word = isWord
		if depth > maxBrackets || unary > maxUnary {
			return at.after(src[:min(i, len(src))]).errorf("", "the expression is nested too deeply")
		}
	}
	return nil
}

// skipString gives the index of the quote that closes the one at i, or the end of src.
func skipString(src string, i int) int {
	for quote := src[i]; ; {
		if i++; i >= len(src) || src[i] == quote {
			return i
		}
		if src[i] == '\\' && quote != '`' {
			i++
		}
	}
}

// explain turns an error of expr into ours.
func explain(err error, tree *parser.Tree, src string, at place) *Error {
	var of *file.Error
	if !errors.As(err, &of) {
		return at.errorf("", "%s", typeNames.Replace(err.Error()))
	}
	msg, hint := inPlainWords(of.Message)
	if field, ok := strings.CutPrefix(of.Message, "unknown field "); ok && tree != nil {
		ast.Walk(&tree.Node, visit(func(n ast.Node) {
			m, ok := n.(*ast.MemberNode)
			if !ok || m.Property.Location() != of.Location {
				return
			}
			msg = fmt.Sprintf("%s has no field %q", m.Node, field)
			if data := m.Node.Nature().TypeData; data != nil {
				hint = near(field, keysOf(data.Fields))
			}
		}))
	}
	p := at.afterRunes(src, of.From)
	return &Error{Line: p.line, Column: p.column, Msg: msg, Hint: hint}
}

type visit func(ast.Node)

func (v visit) Visit(n *ast.Node) { v(*n) }

// locals are the names that an expression binds itself.
type locals struct {
	name  string
	value any
	up    *locals
}

func (l *locals) find(name string) (any, bool) {
	for ; l != nil; l = l.up {
		if l.name == name {
			return l.value, true
		}
	}
	return nil, false
}

// resolver checks names and calls of a parsed expression, which expr's checker does only in part, and collects
// the variables it uses.
type resolver struct {
	*Expr
	scope  *Scope
	used   types.Map
	hosts  []ast.Node
	visits int
}

// resolve walks n; top says that n is not the base of a longer chain of members.
func (r *resolver) resolve(n ast.Node, bound *locals, top bool) error {
	if r.visits++; r.visits > maxVisits {
		return r.at.errorf("", "the expression is nested too deeply")
	}
	all := func(nodes ...ast.Node) error {
		for _, n := range nodes {
			if n == nil {
				continue
			}
			if err := r.resolve(n, bound, true); err != nil {
				return err
			}
		}
		return nil
	}
	switch n := n.(type) {
	case *ast.IdentifierNode:
		if _, local := bound.find(n.Value); local {
			return nil
		}
		t, ok := r.scope.Lookup(n.Value)
		if !ok {
			return r.unknownName(n, n.Value)
		}
		r.used[n.Value] = natures{t}
		r.operand(n, bound, top)
	case *ast.MemberNode:
		if err := r.resolve(n.Node, bound, false); err != nil {
			return err
		}
		if err := all(n.Property); err != nil {
			return err
		}
		r.operand(n, bound, top)
		if id, ok := n.Node.(*ast.IdentifierNode); ok && id.Value == "hosts" && !usesLocals(n.Property, bound) {
			r.hosts = append(r.hosts, n.Property)
		}
	case *ast.ChainNode:
		if err := r.resolve(n.Node, bound, false); err != nil {
			return err
		}
		r.operand(n, bound, top)
	case *ast.CallNode:
		id, ok := n.Callee.(*ast.IdentifierNode)
		if !ok {
			return r.errorf(n, "values have no methods; call a function: f(x)", "cannot call %s", n.Callee)
		}
		if f := table[id.Value]; f == nil || f.builtin {
			return r.unknownFunction(n, id.Value)
		}
		if id.Value == "capture" && len(n.Arguments) == 2 {
			if s, ok := n.Arguments[1].(*ast.StringNode); ok {
				if _, err := compilePattern(s.Value); err != nil {
					return r.errorf(s, "", "%v", err)
				}
			}
		}
		return all(n.Arguments...)
	case *ast.BuiltinNode:
		if table[n.Name] == nil {
			return r.unknownFunction(n, n.Name)
		}
		return all(n.Arguments...)
	case *ast.PredicateNode:
		return r.resolve(n.Node, &locals{name: "#", up: bound}, true)
	case *ast.VariableDeclaratorNode:
		if err := all(n.Value); err != nil {
			return err
		}
		return r.resolve(n.Expr, &locals{name: n.Name, up: bound}, true)
	case *ast.BytesNode:
		return r.errorf(n, "write a string", "there are no byte strings here")
	case *ast.BinaryNode:
		if s, ok := n.Right.(*ast.StringNode); ok && n.Operator == "matches" {
			// A pattern that does not compile is reported by the checker.
			if p, err := compilePattern(s.Value); err == nil {
				r.patterns[n] = p
			}
		}
		return all(n.Left, n.Right)
	case *ast.UnaryNode:
		return all(n.Node)
	case *ast.SliceNode:
		return all(n.Node, n.From, n.To)
	case *ast.ConditionalNode:
		return all(n.Cond, n.Exp1, n.Exp2)
	case *ast.SequenceNode:
		return all(n.Nodes...)
	case *ast.ArrayNode:
		return all(n.Nodes...)
	case *ast.MapNode:
		return all(n.Pairs...)
	case *ast.PairNode:
		return all(n.Key, n.Value)
	}
	return nil
}

func (r *resolver) operand(n ast.Node, bound *locals, top bool) {
	if top && !usesLocals(n, bound) {
		r.operands[n] = n.String()
	}
}

// usesLocals reports whether n reads a name that the expression itself binds.
func usesLocals(n ast.Node, bound *locals) bool {
	uses := false
	ast.Walk(&n, visit(func(n ast.Node) {
		switch n := n.(type) {
		case *ast.PointerNode, *ast.VariableDeclaratorNode:
			uses = true
		case *ast.IdentifierNode:
			if _, local := bound.find(n.Value); local {
				uses = true
			}
		}
	}))
	return uses
}

// namesIn lists the variables that a part of the expression uses.
func (r *resolver) namesIn(n ast.Node) []string {
	var names []string
	ast.Walk(&n, visit(func(n ast.Node) {
		if id, ok := n.(*ast.IdentifierNode); ok && r.used[id.Value] != nil {
			names = append(names, id.Value)
		}
	}))
	slices.Sort(names)
	return slices.Compact(names)
}

func (r *resolver) unknownName(n ast.Node, name string) error {
	hint := foreign[name]
	if f := table[name]; f != nil {
		hint = "it is a function: " + f.Signature
	}
	if hint == "" {
		hint = near(name, r.scope.Names())
	}
	return r.errorf(n, hint, "unknown name %q", name)
}

func (r *resolver) unknownFunction(n ast.Node, name string) error {
	hint := foreign[name]
	if hint == "" {
		if hint = near(name, keysOf(table)); hint == "" {
			hint = "there is " + strings.Join(functionNames(), ", ")
		}
	}
	return r.errorf(n, hint, "unknown function %q", name)
}

// checkSecrets refuses whatever would look into a value that is known to be a secret.
func (e *Expr) checkSecrets(root ast.Node) error {
	isSecret := func(n ast.Node) bool { return typeFrom(*n.Nature()).Kind == SecretKind }
	var err error
	refuse := func(n ast.Node, what string) {
		if err == nil && isSecret(n) {
			err = e.errorf(n, secretHint, "%s is a secret: it cannot be used with %s", n, what)
		}
	}
	ast.Walk(&root, visit(func(n ast.Node) {
		switch n := n.(type) {
		case *ast.BinaryNode:
			if n.Operator != "??" {
				refuse(n.Left, n.Operator)
				refuse(n.Right, n.Operator)
			}
		case *ast.MemberNode:
			refuse(n.Node, "a field")
		case *ast.BuiltinNode:
			for _, arg := range n.Arguments {
				refuse(arg, n.Name+"()")
			}
		case *ast.CallNode:
			name := n.Callee.(*ast.IdentifierNode).Value
			for _, arg := range n.Arguments {
				if !table[name].secrets {
					refuse(arg, name+"()")
				}
			}
		}
	}))
	return err
}

func (e *Expr) errorf(n ast.Node, hint, format string, args ...any) *Error {
	from := 0
	if n != nil {
		from = n.Location().From
	}
	return e.at.afterRunes(e.src, from).errorf(hint, format, args...)
}

// Source is the expression as written.
func (e *Expr) Source() string { return strings.TrimSpace(e.src) }

// Names implements Tree.
func (e *Expr) Names() []string { return e.names }

// Type implements Tree.
func (e *Expr) Type() Type { return e.typ }

// HostRefs are the index expressions of every hosts[…] in it, so that the hosts a play needs can be known when it
// starts. One that depends on a name bound within the expression (#, let) is not among them.
func (e *Expr) HostRefs() []*Expr { return e.hosts }

var builtins = func() map[string]*builtin.Function {
	m := map[string]*builtin.Function{}
	for _, f := range builtin.Builtins {
		m[f.Name] = f
	}
	return m
}()
