package vars

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
	Fields map[string]Type // of a map with known keys: naming another is an error
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
