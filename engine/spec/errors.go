package spec

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Error is one mistake in a file, told so that its author can mend it without a search.
type Error struct {
	Pos     Pos
	Msg     string
	Hint    string // what to write instead, "" if unknown
	Snippet string // the line of the file, "" if unknown
}

// Errorf makes an Error without a snippet; hint may be "".
func Errorf(pos Pos, hint, format string, args ...any) *Error {
	return &Error{Pos: pos, Hint: hint, Msg: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Pos.File != "" && e.Pos.Line > 0:
		fmt.Fprintf(&b, "%s:%d:%d: ", e.Pos.File, e.Pos.Line, e.Pos.Column)
	case e.Pos.File != "":
		fmt.Fprintf(&b, "%s: ", e.Pos.File)
	}
	b.WriteString(printable(e.Msg))
	if e.Snippet != "" {
		line, column := window(e.Snippet, e.Pos.Column)
		fmt.Fprintf(&b, "\n    %s", line)
		if column > 0 {
			fmt.Fprintf(&b, "\n    %s^", strings.Repeat(" ", column-1))
		}
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "\n    hint: %s", printable(e.Hint))
	}
	return b.String()
}

// window cuts a long line around column and makes every character one column wide.
func window(line string, column int) (string, int) {
	const before, width = 70, 110
	runes := []rune(printable(line))
	start := 0
	if column > before {
		start = min(column-before, len(runes))
	}
	end := min(start+width, len(runes))
	text := string(runes[start:end])
	if end < len(runes) {
		text += "…"
	}
	if start > 0 {
		return "…" + text, column - start + 1
	}
	return text, column
}

// printable puts a space for what a terminal might obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
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

// Sorted returns the errors in the order of file, line and column, each once.
func (e Errors) Sorted() Errors {
	sorted := slices.Clone(e)
	slices.SortStableFunc(sorted, func(a, b *Error) int { return a.Pos.Compare(b.Pos) })
	return slices.CompactFunc(sorted, func(a, b *Error) bool { return a.Pos == b.Pos && a.Msg == b.Msg })
}

// Compare orders places by file, line and column.
func (p Pos) Compare(q Pos) int {
	if c := strings.Compare(p.File, q.File); c != 0 {
		return c
	}
	if p.Line != q.Line {
		return p.Line - q.Line
	}
	return p.Column - q.Column
}

func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }
