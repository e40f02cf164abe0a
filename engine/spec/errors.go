package spec

import (
	"fmt"
	"strings"
)

// Error is one mistake in a file, told so that its author can mend it without a search.
type Error struct {
	Pos     Pos
	Msg     string
	Hint    string // what to write instead, "" if unknown
	Snippet string // the line of the file, "" if unknown
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Pos.File != "" {
		fmt.Fprintf(&b, "%s:%d:%d: ", e.Pos.File, e.Pos.Line, e.Pos.Column)
	}
	b.WriteString(e.Msg)
	if e.Snippet != "" {
		fmt.Fprintf(&b, "\n    %s", e.Snippet)
		if e.Pos.Column > 0 {
			fmt.Fprintf(&b, "\n    %s^", strings.Repeat(" ", e.Pos.Column-1))
		}
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "\n    hint: %s", e.Hint)
	}
	return b.String()
}

// Errors is every mistake found, in the order of their places.
type Errors []*Error

func (e Errors) Error() string {
	parts := make([]string, len(e))
	for i, one := range e {
		parts[i] = one.Error()
	}
	return strings.Join(parts, "\n")
}
