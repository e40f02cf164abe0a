package module

import "fmt"

// Mode is a file mode argument: octal such as "0644" (quoted or not). A number without a leading zero is refused as a decimal
// slip. The zero value means that the argument was not given.
type Mode struct {
	Set  bool
	Bits uint32
}

func (m Mode) String() string {
	if !m.Set {
		return ""
	}
	return fmt.Sprintf("%04o", m.Bits)
}

// Template is an argument that names a template file beside the runbook. The engine compiles the file when the book is
// loaded and renders it for each host; modules see the text.
type Template struct {
	Path   string // as written
	Text   string // rendered
	Secret bool   // the text holds a secret, and is never shown
	Shown  string // of a text that holds a secret: the same with a mask in its places
}

// Content is an argument that names a file beside the runbook, read when the book is loaded.
type Content struct {
	Path string // as written
	Data []byte
}

// Condition is an argument that is a bare expression. The engine evaluates it before Check.
type Condition struct {
	Source   string
	Value    bool
	Operands string // "a is 1, b is 2": the values that it was computed from
}

// ArgError is a mistake in an argument. The engine adds the place in the file.
type ArgError struct {
	Path string // argument, with .key and [index] below it; "" for the arguments as a whole
	Msg  string
	Hint string
}

func (e *ArgError) Error() string {
	text := e.Msg
	if e.Path != "" {
		text = e.Path + ": " + text
	}
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}
