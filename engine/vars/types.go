package vars

import (
	"reflect"

	"github.com/expr-lang/expr/checker/nature"
	"github.com/expr-lang/expr/types"

	"runbook/engine/secret"
)

// TypeKind is the kind of a Type.
type TypeKind int

// The kinds of types.
const (
	AnyKind TypeKind = iota
	StringKind
	IntKind
	FloatKind
	BoolKind
	SecretKind
	ListKind
	MapKind
)

// Type is what is known of a value when a book is loaded.
type Type struct {
	Kind   TypeKind
	Elem   *Type           // of a list, or of a map with any keys; nil is any
	Fields map[string]Type // of a map with known keys: naming another is an error, unless Elem is set as well
}

// Types without further detail.
var (
	Any    = Type{Kind: AnyKind}
	String = Type{Kind: StringKind}
	Int    = Type{Kind: IntKind}
	Float  = Type{Kind: FloatKind}
	Bool   = Type{Kind: BoolKind}
	Secret = Type{Kind: SecretKind}
)

// ListOf is a list of elem.
func ListOf(elem Type) Type { return Type{Kind: ListKind, Elem: &elem} }

// MapOf is a map from any string to elem.
func MapOf(elem Type) Type { return Type{Kind: MapKind, Elem: &elem} }

// Object is a map with exactly these keys.
func Object(fields map[string]Type) Type { return Type{Kind: MapKind, Fields: fields} }

// String names the type for messages.
func (t Type) String() string {
	return [...]string{"any", "string", "int", "float", "bool", "secret", "list", "map"}[t.Kind]
}

// TypeOf is the type of a value; a map has exactly the keys it has.
func TypeOf(v any) Type {
	switch v := v.(type) {
	case string:
		return String
	case bool:
		return Bool
	case float32, float64:
		return Float
	case secret.Secret:
		return Secret
	case map[string]any:
		fields := make(map[string]Type, len(v))
		for k, e := range v {
			fields[k] = TypeOf(e)
		}
		return Object(fields)
	case nil, Unknown, Fetcher:
		return Any
	}
	switch r := reflect.ValueOf(v); {
	case r.CanInt() || r.CanUint():
		return Int
	case r.Kind() == reflect.Slice || r.Kind() == reflect.Array:
		elems := make([]Type, r.Len())
		for i := range elems {
			elems[i] = TypeOf(r.Index(i).Interface())
		}
		return ListOf(joinAll(elems))
	case r.Kind() == reflect.Map:
		return Type{Kind: MapKind}
	}
	return Any
}

// Join is the type of a value that is one of a or b, such as a variable that two groups set.
func Join(a, b Type) Type {
	if a.Kind != b.Kind {
		return Any
	}
	switch a.Kind {
	case ListKind:
		return ListOf(Join(elemOf(a), elemOf(b)))
	case MapKind:
		if a.Fields == nil || b.Fields == nil || !sameKeys(a.Fields, b.Fields) {
			return MapOf(Join(elemOf(a), elemOf(b)))
		}
		fields := make(map[string]Type, len(a.Fields))
		for k := range a.Fields {
			fields[k] = Join(a.Fields[k], b.Fields[k])
		}
		return Object(fields)
	}
	return a
}

func joinAll(types []Type) Type {
	if len(types) == 0 {
		return Any
	}
	all := types[0]
	for _, t := range types[1:] {
		all = Join(all, t)
	}
	return all
}

func sameKeys(a, b map[string]Type) bool {
	for k := range a {
		if _, ok := b[k]; !ok {
			return false
		}
	}
	return len(a) == len(b)
}

// elemOf is the type of what a list or map holds, as far as it is the same for all of it.
func elemOf(t Type) Type {
	if t.Elem != nil {
		return *t.Elem
	}
	fields := make([]Type, 0, len(t.Fields))
	for _, f := range t.Fields {
		fields = append(fields, f)
	}
	return joinAll(fields)
}

// opaque is the type that a secret has for expr's checker: it has no fields and fits no operator.
type opaque struct{}

// natures lets a Type stand in an environment of expr's checker.
type natures struct{ Type }

func (n natures) Equal(types.Type) bool { return false }

func (n natures) Nature() nature.Nature {
	switch n.Kind {
	case StringKind:
		return types.String.Nature()
	case IntKind:
		return types.Int.Nature()
	case FloatKind:
		return types.Float64.Nature()
	case BoolKind:
		return types.Bool.Nature()
	case SecretKind:
		return types.TypeOf(opaque{}).Nature()
	case ListKind:
		return types.Array(natures{elemOf(n.Type)}).Nature()
	case MapKind:
		m := make(types.Map, len(n.Fields)+1)
		for k, t := range n.Fields {
			m[k] = natures{t}
		}
		if n.Fields == nil || n.Elem != nil {
			m[types.Extra] = natures{elemOf(n.Type)}
		}
		return m.Nature()
	}
	return types.Any.Nature()
}

// typeFrom is what expr's checker found of a node.
func typeFrom(n nature.Nature) Type {
	switch {
	case n.Type == nil:
		return Any
	case n.Type == reflect.TypeFor[opaque]():
		return Secret
	case n.IsInteger:
		return Int
	case n.IsFloat:
		return Float
	case n.IsBool():
		return Bool
	case n.IsString():
		return String
	case n.IsArray():
		if n.Ref != nil {
			return ListOf(typeFrom(*n.Ref))
		}
		return ListOf(typeFrom(nature.FromType(n.Type.Elem())))
	case n.IsMap():
		t := Type{Kind: MapKind}
		if n.TypeData == nil {
			return t
		}
		if n.DefaultMapValue != nil {
			elem := typeFrom(*n.DefaultMapValue)
			t.Elem = &elem
		}
		if n.Fields != nil && (n.Strict || len(n.Fields) > 0) {
			t.Fields = make(map[string]Type, len(n.Fields))
			for k, f := range n.Fields {
				t.Fields[k] = typeFrom(f)
			}
		}
		return t
	}
	return Any
}
