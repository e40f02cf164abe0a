package vars

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"regexp/syntax"
	"sort"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm/runtime"

	"runbook/engine/secret"
)

// unary applies an operator to one value.
func (x eval) unary(n *ast.UnaryNode, v any) (any, error) {
	if err := x.open(n.Node, v, n.Operator, false); err != nil {
		return nil, err
	}
	switch n.Operator {
	case "!", "not":
		if b, ok := v.(bool); ok {
			return !b, nil
		}
		return nil, x.e.errorf(n, `compare: x == "", or empty(x)`, "%s needs true or false, and %s is %s", n.Operator, n.Node, a(v))
	}
	if !isNumber(v) {
		return nil, x.e.errorf(n, "", "%s needs a number, and %s is %s", n.Operator, n.Node, a(v))
	}
	if n.Operator == "-" {
		return runtime.Negate(v), nil
	}
	return v, nil
}

// operator applies an operator to two values.
func (x eval) operator(n *ast.BinaryNode, l, r any) (v any, err error) {
	comparesNil := (n.Operator == "==" || n.Operator == "!=") && (l == nil || r == nil)
	if err := x.open(n.Left, l, n.Operator, comparesNil); err != nil {
		return nil, err
	}
	_, overKeys := keysOfAny(r)
	if err := x.open(n.Right, r, n.Operator, comparesNil || n.Operator == "in" && overKeys); err != nil {
		return nil, err
	}
	mismatch := func() error {
		hint := ""
		if isScalar(l) && isScalar(r) {
			hint = convertHint
		}
		return x.e.errorf(n, hint, "cannot use %s between %s (%s) and %s (%s)", n.Operator, n.Left, a(l), n.Right, a(r))
	}
	defer func() { // expr's operators panic where they have no result
		if recover() != nil {
			v, err = nil, mismatch()
		}
	}()
	numbers := isNumber(l) && isNumber(r)
	ls, lok := l.(string)
	rs, rok := r.(string)
	texts := lok && rok
	switch n.Operator {
	case "==", "!=":
		if isScalar(l) && isScalar(r) && !numbers && reflect.TypeOf(l) != reflect.TypeOf(r) {
			return nil, mismatch()
		}
		return same(l, r) == (n.Operator == "=="), nil
	case "<", ">", "<=", ">=":
		if !numbers && !texts {
			return nil, mismatch()
		}
		switch n.Operator {
		case "<":
			return runtime.Less(l, r), nil
		case ">":
			return runtime.More(l, r), nil
		case "<=":
			return runtime.LessOrEqual(l, r), nil
		}
		return runtime.MoreOrEqual(l, r), nil
	case "in":
		return x.in(n, l, r)
	case "..":
		if !isInt(l) || !isInt(r) {
			return nil, mismatch()
		}
		from, to := runtime.ToInt(l), runtime.ToInt(r)
		if from <= to && (to-from >= maxItems || to-from < 0) {
			return nil, errTooLarge
		}
		var out []any
		for i := from; i <= to && len(out) <= to-from; i++ {
			out = append(out, i)
		}
		return out, x.made(len(out))
	case "contains", "startsWith", "endsWith", "matches":
		if !texts {
			if _, isList := toList(l); isList && n.Operator == "contains" {
				return nil, x.e.errorf(n, "write x in list", "contains is for strings, and %s is a list", n.Left)
			}
			return nil, mismatch()
		}
		switch n.Operator {
		case "contains":
			return strings.Contains(ls, rs), nil
		case "startsWith":
			return strings.HasPrefix(ls, rs), nil
		case "endsWith":
			return strings.HasSuffix(ls, rs), nil
		}
		return x.matches(n, ls, rs)
	case "+":
		if texts {
			if len(ls)+len(rs) > maxBytes {
				return nil, errTooLarge
			}
			return ls + rs, x.made((len(ls) + len(rs)) / 64)
		}
	}
	if !numbers {
		return nil, mismatch()
	}
	switch n.Operator {
	case "+":
		return runtime.Add(l, r), nil
	case "-":
		return runtime.Subtract(l, r), nil
	case "*":
		return runtime.Multiply(l, r), nil
	case "**", "^":
		return runtime.Exponent(l, r), nil
	}
	if runtime.ToFloat64(r) == 0 {
		return nil, x.e.errorf(n, "", "cannot divide by zero")
	}
	if n.Operator == "/" {
		return runtime.Divide(l, r), nil
	}
	if !isInt(l) || !isInt(r) {
		return nil, mismatch()
	}
	return runtime.Modulo(l, r), nil
}

// in reports whether l is an item of the list r or a key of the map r.
func (x eval) in(n *ast.BinaryNode, l, r any) (any, error) {
	if keys, ok := keysOfAny(r); ok {
		for _, k := range keys {
			if k == l {
				return true, nil
			}
		}
		return false, nil
	}
	items, ok := toList(r)
	if !ok {
		hint := ""
		if _, isText := r.(string); isText {
			hint = "write text contains part"
		}
		return nil, x.e.errorf(n, hint, "in needs a list or a map, and %s is %s", n.Right, a(r))
	}
	for _, item := range items {
		if err := x.work(1); err != nil {
			return nil, err
		}
		if same(l, item) {
			return true, nil
		}
	}
	return false, nil
}

// same compares values whatever Go types hold their numbers and lists.
func same(l, r any) bool {
	if ll, ok := toList(l); ok {
		rl, ok := toList(r)
		if !ok || len(ll) != len(rl) {
			return false
		}
		for i := range ll {
			if !same(ll[i], rl[i]) {
				return false
			}
		}
		return true
	}
	lm, lok := l.(map[string]any)
	rm, rok := r.(map[string]any)
	if lok && rok {
		for k, v := range lm {
			if other, ok := rm[k]; !ok || !same(v, other) {
				return false
			}
		}
		return len(lm) == len(rm)
	}
	return runtime.Equal(l, r)
}

// stableSort sorts, or says that the values have no order among them.
func stableSort(s sort.Interface) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("only numbers, or only strings, can be sorted")
		}
	}()
	sort.Stable(s)
	return nil
}

// pattern is a regular expression that knows how much work it makes.
type pattern struct {
	*regexp.Regexp
	size int
}

// maxMatching bounds the length of a text times the size of a pattern, which is what matching may take.
const maxMatching = 200_000_000

func compilePattern(source string) (*pattern, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("a pattern may have %d bytes", maxSource)
	}
	p, err := regexp.Compile(source)
	if err != nil {
		msg, _ := inPlainWords(err.Error())
		return nil, errors.New(msg)
	}
	parsed, err := syntax.Parse(source, syntax.Perl)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	return &pattern{p, len(program.Inst)}, nil
}

// match gives the first match with its groups, nil if there is none.
func (p *pattern) match(text string) ([]string, error) {
	if len(text) > maxMatching/p.size {
		return nil, errors.New("the text is too long for this pattern")
	}
	return p.FindStringSubmatch(text), nil
}

// Keyer is a Fetcher that can list its keys, for `in`, keys() and hints.
type Keyer interface {
	Keys() []string
}

// keysOfAny lists the keys of a map, not sorted.
func keysOfAny(v any) ([]string, bool) {
	switch v := v.(type) {
	case map[string]any:
		return keysOf(v), true
	case Keyer:
		return v.Keys(), true
	}
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Map || r.Type().Key().Kind() != reflect.String {
		return nil, false
	}
	keys := make([]string, 0, r.Len())
	for _, k := range r.MapKeys() {
		keys = append(keys, k.String())
	}
	return keys, true
}

func keysOf[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// toList gives the items of a list of any Go type.
func toList(v any) ([]any, bool) {
	if items, ok := v.([]any); ok {
		return items, true
	}
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Slice && r.Kind() != reflect.Array {
		return nil, false
	}
	items := make([]any, r.Len())
	for i := range items {
		items[i] = r.Index(i).Interface()
	}
	return items, true
}

func isInt(v any) bool {
	r := reflect.ValueOf(v)
	return r.CanInt() || r.CanUint()
}

func isNumber(v any) bool { return isInt(v) || reflect.ValueOf(v).CanFloat() }

func isScalar(v any) bool {
	switch v.(type) {
	case string, bool:
		return true
	}
	return isNumber(v)
}

// a names the type of a value, with its article, never the value itself.
func a(v any) string {
	switch v.(type) {
	case nil:
		return "nil"
	case Fetcher:
		return "a map"
	}
	t := TypeOf(v).String()
	switch t {
	case "any":
		return "a value of an unknown kind"
	case "int":
		return "an int"
	}
	return "a " + t
}

var (
	errSecret   = errors.New("it holds a secret")
	errTooLarge = errors.New("the value is too large")
)

// inspect walks a value and all below it: an Unknown in it is an *UnknownError, more than a reasonable number of
// values errTooLarge, and a secret, if they matter, errSecret. The weight is about how many there are.
func inspect(v any, secrets bool) (weight int, err error) {
	switch v := v.(type) {
	case nil, bool, int, float64:
		return 1, nil
	case string:
		return 1 + len(v)/64, nil
	}
	items, bytes := 0, 0
	var walk func(v any) error
	walk = func(v any) error {
		if items++; items > maxItems || bytes > 4*maxBytes {
			return errTooLarge
		}
		switch v := v.(type) {
		case nil, bool, int, int64, float64, Fetcher:
			return nil
		case string:
			bytes += len(v)
			return nil
		case secret.Secret:
			if secrets {
				return errSecret
			}
			return nil
		case Unknown:
			return &UnknownError{Because: v.Because}
		case map[string]any:
			for _, e := range v {
				if err := walk(e); err != nil {
					return err
				}
			}
			return nil
		}
		if list, ok := toList(v); ok {
			for _, e := range list {
				if err := walk(e); err != nil {
					return err
				}
			}
			return nil
		}
		if r := reflect.ValueOf(v); r.Kind() == reflect.Map {
			for _, k := range r.MapKeys() {
				if err := walk(r.MapIndex(k).Interface()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err = walk(v)
	return items + bytes/64, err
}
