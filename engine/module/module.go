// Package module says what a module is: a struct whose exported fields are its arguments, with a Check that only reads
// and an Apply that carries out what Check found.
//
// A module never learns whether it runs in check mode. It gets a Host, on which it runs commands as the task's user, and
// returns a Plan; only the engine decides whether Apply follows. After Apply the engine calls Check on a fresh copy of
// the module again: a Change that is left is the error "did not converge".
//
// A field is an argument when it has a yaml tag. Its comment is its help, its value in the constructor its default.
// Further tags: required:"true", choices:"a,b,c", secret:"true" (implied by the type secret.Secret), short:"true" (the field that
// a scalar or list given instead of a mapping is for), late:"true" (Check can do without its value where an earlier task of the same
// check has yet to find it: see Host.Late). Decode lists the types that fields may have.
package module

import (
	"context"
)

// Module is one kind of task.
type Module interface {
	// Check finds what Apply would have to do. It reads only; what it reads in one round trip is one round trip.
	Check(ctx context.Context, host *Host) (Plan, error)
	// Apply carries out what Check found and returns what register binds.
	Apply(ctx context.Context, host *Host, plan Plan) (Values, error)
}

// UnderWayError is how Apply says that what it began goes on by itself, and that nobody knows yet how it will come out. Nothing follows from it,
// and a resumed run looks, or asks, what has become of it.
type UnderWayError struct{ Err error }

func (e *UnderWayError) Error() string { return e.Err.Error() }

func (e *UnderWayError) Unwrap() error { return e.Err }

// Factory makes a module with its defaults.
type Factory func() Module

// Validator is a module that can refuse its arguments before any host is touched. Arguments that depend on a
// host's variables are validated when they are known, still before Check.
type Validator interface {
	// Validate returns an *ArgError, or several joined, where arguments contradict each other or cannot be meant.
	Validate() error
}

// Reader is a module that knows whether, with its arguments, it only reads.
type Reader interface {
	ReadsOnly() bool
}

// Returner is a module that documents what it returns beyond the common fields.
type Returner interface {
	Returns() []Return
}

// Return is one field of a module's result.
type Return struct {
	Name string
	Type string // string, int, float, bool, list, map or any
	Help string
}

// Values is what a module returns: data only (strings, numbers, booleans, lists and maps of them, secret.Secret).
type Values map[string]any

// Plan is what Check found.
type Plan struct {
	Changes []Change // empty: the host is as declared
	Unknown string   // why Check cannot tell, "" if it can. With Changes also set, these are certain and more may follow
	Values  Values   // what register binds when nothing is applied
	// State carries what Check read over to Apply of the same module; the engine does not look at it.
	State any
	// Act says that the change is an act, such as a restart, rather than a state: no second Check follows its Apply.
	Act bool
	// Again says that doing an act once more does no harm: a run that is resumed repeats it where it cannot tell whether it was done.
	Again bool
	// Wait says that Apply only waits until the changes have come about by themselves.
	Wait bool
	// Pending says that Values are placeholders until Apply has run: in check mode they are unknown to later tasks.
	Pending bool
	// Idle says that Values tell that nothing was to be done, which is not what Apply returns.
	Idle bool
	// Effects are what Changes would make of things on the host that other modules look at. A plan with changes and without
	// effects may touch anything.
	Effects []Effect
	// Foreseen says of a Check that fails that Apply would find the same after all changes that are pending.
	Foreseen bool
	// Hangs names the task of this check on whose effect Values or Unknown hang, "" if on none.
	Hangs string
	// Hanging are the fields of Values that hang on it; none means all of them.
	Hanging []string
}

// Change is one difference between the host and what was declared. Before and After are whole texts when a diff
// makes sense (file contents, rule lists), else short values; secrets are masked by value wherever they are shown.
// Outage says how long a service that answers now will not, "" if none is interrupted.
type Change struct{ What, Before, After, Outage string }
