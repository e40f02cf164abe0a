package vars

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"runbook/engine/secret"
)

// CompileText compiles a string that may hold holes. Without one it is a constant; a single hole and nothing else
// keeps the value's type; anything else makes text. Errors are *Error.
func CompileText(src string, s *Scope) (Tree, error) {
	if len(src) > maxTemplate {
		return nil, start.errorf("", "a text may have %d bytes, this one has %d", maxTemplate, len(src))
	}
	var parts []part
	for rest, at := src, start; rest != ""; {
		plain, _, found := strings.Cut(rest, "{{")
		if plain != "" {
			parts = append(parts, literal(plain))
		}
		if !found {
			break
		}
		at, rest = at.after(plain), rest[len(plain):]
		hole, length, err := compileHole(rest, s, at)
		if err != nil {
			return nil, err
		}
		parts = append(parts, hole)
		at, rest = at.after(rest[:length]), rest[length:]
	}
	if len(parts) == 0 {
		return Const(""), nil
	}
	if len(parts) == 1 {
		switch only := parts[0].(type) {
		case literal:
			return Const(string(only)), nil
		case *Expr:
			return only, nil
		}
	}
	return newText(parts), nil
}

// compileHole compiles the hole at the start of src and gives its length.
func compileHole(src string, s *Scope, at place) (*Expr, int, error) {
	end := closing(src, 2, "}}")
	if end < 0 {
		return nil, 0, at.errorf(`close it with }}, or write {{ "{{" }} for two braces`, "{{ is not closed")
	}
	inner := src[2:end]
	if strings.TrimSpace(inner) == "" {
		return nil, 0, at.errorf("", "{{ }} holds no expression")
	}
	e, err := compileAt(inner, s, at.after("{{"))
	return e, end + 2, err
}

// closing finds the mark that ends the tag whose content starts at from, outside of quotes and brackets; -1 if none.
func closing(src string, from int, mark string) int {
	depth := 0
	for i := from; i < len(src); i++ {
		switch c := src[i]; {
		case depth <= 0 && strings.HasPrefix(src[i:], mark):
			return i
		case c == '"' || c == '\'' || c == '`':
			i = skipString(src, i)
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		}
	}
	return -1
}

// part is a piece of a text or template.
type part interface {
	write(r *run, bound *locals, out *output) error
	// exprs calls f for every expression in the piece, with the names that the template binds around it.
	exprs(bound *locals, f func(e *Expr, bound *locals))
}

// literal is text as written.
type literal string

func (l literal) write(_ *run, _ *locals, out *output) error { return out.add(string(l)) }
func (literal) exprs(*locals, func(e *Expr, bound *locals))  {}

func (e *Expr) exprs(bound *locals, f func(*Expr, *locals)) { f(e, bound) }

// write makes an expression a hole.
func (e *Expr) write(r *run, bound *locals, out *output) error {
	v, err := e.eval(r, bound)
	if err != nil {
		return err
	}
	if err := out.add(v); err != nil {
		if _, unknown := err.(*UnknownError); unknown || err == errTooLarge {
			return err
		}
		hint := ""
		if v == nil {
			hint = `write x ?? "…" for a value that may be missing`
		} else if _, isList := toList(v); isList {
			hint = `write join(list, ", ") or toJSON(list)`
		} else {
			hint = "write toJSON(map), or name one of its fields"
		}
		return e.errorf(e.root, hint, "%s %v", e.Source(), err)
	}
	return nil
}

// text is a Tree of several pieces.
type text struct {
	parts []part
	names []string
	typ   Type
	hosts []*Expr
}

func newText(parts []part) *text {
	t := &text{parts: parts, typ: String}
	used := map[string]bool{}
	for _, p := range parts {
		p.exprs(nil, func(e *Expr, bound *locals) {
			for _, name := range e.names {
				if _, local := bound.find(name); !local {
					used[name] = true
				}
			}
			for _, h := range e.hosts {
				if !slices.ContainsFunc(h.names, func(name string) bool { _, local := bound.find(name); return local }) {
					t.hosts = append(t.hosts, h)
				}
			}
			// Only where no piece can be a secret is the text known to be none.
			switch e.typ.Kind {
			case SecretKind:
				t.typ = Secret
			case AnyKind:
				if t.typ.Kind != SecretKind {
					t.typ = Any
				}
			}
		})
	}
	t.names = slices.Sorted(maps.Keys(used))
	return t
}

// Eval implements Tree.
func (t *text) Eval(env Env) (any, error) { return evaluate(t, env) }

// Names implements Tree.
func (t *text) Names() []string { return t.names }

// Type implements Tree.
func (t *text) Type() Type { return t.typ }

func (t *text) eval(r *run, bound *locals) (any, error) {
	var out output
	for _, p := range t.parts {
		if err := p.write(r, bound, &out); err != nil {
			return nil, err
		}
	}
	return out.value(), nil
}

// output collects text, whether a secret went into it, and the text without the secrets.
type output struct {
	strings.Builder
	shown  strings.Builder
	secret bool
}

// add writes the value of a piece.
func (o *output) add(v any) error {
	s, isSecret := v.(secret.Secret)
	if isSecret {
		o.secret = true
		o.WriteString(s.Reveal())
		o.shown.WriteString(s.Shown())
	} else {
		text, err := render(v)
		if err != nil {
			return err
		}
		o.WriteString(text)
		o.shown.WriteString(text)
	}
	if o.Len() > maxBytes {
		return errTooLarge
	}
	return nil
}

func (o *output) value() any {
	if o.secret {
		return secret.Within(o.String(), o.shown.String())
	}
	return o.String()
}

// render writes a scalar plainly. Its errors read after the source of the value.
func render(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case int:
		return strconv.Itoa(v), nil
	case nil:
		return "", errors.New("has no value")
	case secret.Secret:
		return "", errors.New("is a secret")
	case Unknown:
		return "", &UnknownError{Because: v.Because}
	}
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return strconv.FormatInt(r.Int(), 10), nil
	case r.CanUint():
		return strconv.FormatUint(r.Uint(), 10), nil
	case r.CanFloat():
		if math.IsNaN(r.Float()) || math.IsInf(r.Float(), 0) {
			return "", errors.New("is not a finite number")
		}
		return strconv.FormatFloat(r.Float(), 'f', -1, r.Type().Bits()), nil
	}
	return "", fmt.Errorf("is %s, which is not text", a(v))
}
