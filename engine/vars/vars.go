package vars

import "fmt"

// Env gives the values of names while something is evaluated. Lookups happen only for names that are used, so that a
// value which costs a round trip (facts) is fetched only when an expression names it.
type Env interface {
	Lookup(name string) (any, error)
}

// Fetcher is a value whose members are looked up one by one, such as `hosts`; expressions reach them by .name and [key].
type Fetcher interface {
	Fetch(key any) (any, error)
}

// Unknown stands for a value that check mode cannot know. Whatever is computed from it is unknown too.
type Unknown struct{ Because string }

func (u Unknown) String() string { return "not known in check mode: " + u.Because }

// UnknownError is the result of an evaluation that met an Unknown.
type UnknownError struct{ Because string }

func (e *UnknownError) Error() string { return Unknown(*e).String() }

// Tree is a compiled value: a constant, an expression, a text with holes, a template, or a list or map of trees.
type Tree interface {
	// Eval computes the value; the error is *UnknownError when it hangs on an Unknown.
	Eval(env Env) (any, error)
	// Names lists the top-level names that Eval may look up, sorted, each once.
	Names() []string
	// Type is what is known of the value's type at load.
	Type() Type
}

// Error is a mistake in an expression, a text or a template, placed within the source that was compiled.
type Error struct {
	Line, Column int // from 1, in characters
	Msg, Hint    string
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Msg)
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Layer is where a variable was set; a stronger layer wins.
type Layer int

// The layers, weakest first.
const (
	Defaults    Layer = iota // of modules and of the runbook
	Group                    // inventory, per group
	HostVars                 // inventory, per host
	PlayVars                 // play, block and task
	Registered               // results of tasks
	CommandLine              // -e
	Builtin                  // item, facts, hosts and the like: names that nobody may set
)
