package vars

import (
	"maps"
	"slices"
)

// Scope is the names an expression may use, with their types. It does not change once made.
type Scope struct {
	up    *Scope
	names map[string]Type
}

// NewScope is a scope without names.
func NewScope() *Scope { return &Scope{} }

// With is the scope with one more name, which hides an outer one of the same name.
func (s *Scope) With(name string, t Type) *Scope { return s.WithAll(map[string]Type{name: t}) }

// WithAll is the scope with more names, which hide outer ones of the same names.
func (s *Scope) WithAll(names map[string]Type) *Scope {
	return &Scope{up: s, names: maps.Clone(names)}
}

// Lookup gives the type of a name.
func (s *Scope) Lookup(name string) (Type, bool) {
	for ; s != nil; s = s.up {
		if t, ok := s.names[name]; ok {
			return t, true
		}
	}
	return Type{}, false
}

// Names lists the names, sorted.
func (s *Scope) Names() []string {
	all := map[string]bool{}
	for ; s != nil; s = s.up {
		for name := range s.names {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
