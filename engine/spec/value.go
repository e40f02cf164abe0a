package spec

import (
	"strings"
	"unicode/utf8"
)

func (k Kind) String() string {
	switch k {
	case Null:
		return "nothing"
	case Bool:
		return "a boolean"
	case Int, Float:
		return "a number"
	case String:
		return "a string"
	case List:
		return "a list"
	default:
		return "a mapping"
	}
}

// Any returns the value as nil, bool, int, float64, string, []any or map[string]any.
func (v *Value) Any() any {
	if v == nil {
		return nil
	}
	switch v.Kind {
	case Bool:
		return v.Bool
	case Int:
		return int(v.Int)
	case Float:
		return v.Float
	case String:
		return v.Str
	case List:
		list := make([]any, len(v.List))
		for i, item := range v.List {
			list[i] = item.Any()
		}
		return list
	case Map:
		m := make(map[string]any, len(v.Map))
		for _, e := range v.Map {
			m[e.Key] = e.Value.Any()
		}
		return m
	default:
		return nil
	}
}

// Get returns the value of a key, nil if v is no mapping or lacks it.
func (v *Value) Get(key string) *Value {
	if v == nil {
		return nil
	}
	for _, e := range v.Map {
		if e.Key == key {
			return e.Value
		}
	}
	return nil
}

// HasHole reports whether v is a string that holds `{{`.
func (v *Value) HasHole() bool {
	return v != nil && v.Kind == String && strings.Contains(v.Str, "{{")
}

// Snippet is the line of the file that p, a place within v's file, is on; "" if unknown.
func (v *Value) Snippet(p Pos) string {
	if v == nil || v.src == nil || v.src.name != p.File {
		return ""
	}
	return v.src.line(p.Line)
}

// At maps a place within the text of a string, as written in Str, to its place in the file. Where an escape makes
// that impossible it is the place of the value.
func (v *Value) At(line, column int) Pos {
	if v.src == nil || v.Kind != String || line < 1 || column < 1 {
		return v.Pos
	}
	want := offset(v.Str, line, column)
	text := strings.Join(v.src.lines[min(v.Pos.Line-1, len(v.src.lines)):], "\n")
	start := skip(text, v.Pos.Column-1)
	var quote byte
	switch {
	case start >= len(text):
		return v.Pos
	case text[start] == '"' || text[start] == '\'':
		quote = text[start]
		start++
	case v.block:
		newline := strings.IndexByte(text[start:], '\n')
		if newline < 0 {
			return v.Pos
		}
		start += newline + 1
	}
	at, ok := follow(v.Str, text, start, want, quote)
	if !ok {
		return v.Pos
	}
	before := text[:at]
	pos := Pos{File: v.Pos.File, Line: v.Pos.Line + strings.Count(before, "\n")}
	pos.Column = utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:]) + 1
	return pos
}

// follow walks value and the text it was written as side by side and returns where in text the byte value[want] is.
// A run of white space on either side answers one on the other: YAML folds and indents lines.
func follow(value, text string, at, want int, quote byte) (int, bool) {
	i := 0
	for {
		if i < len(value) && at < len(text) && isSpace(value[i]) && isSpace(text[at]) {
			if i == want {
				return at, true
			}
			i, at = i+1, at+1
			continue
		}
		// One side may have more white space than the other.
		for at < len(text) && isSpace(text[at]) && (i >= len(value) || !isSpace(value[i])) {
			at++
		}
		for i < len(value) && isSpace(value[i]) && at < len(text) && !isSpace(text[at]) && text[at] != '\\' {
			if i == want {
				return at, true
			}
			i++
		}
		if i >= want || i >= len(value) || at >= len(text) {
			return at, i == want && at < len(text)
		}
		switch {
		case quote == '"' && text[at] == '\\':
			if at+1 >= len(text) || !escapes(text[at+1], value[i]) {
				return 0, false
			}
			at++
		case value[i] != text[at]:
			return 0, false
		case quote == '\'' && value[i] == '\'':
			at++
		}
		i, at = i+1, at+1
	}
}

// escapes reports whether a backslash and code stand for char.
func escapes(code, char byte) bool {
	switch code {
	case 'n':
		return char == '\n'
	case 't':
		return char == '\t'
	case '"', '\\', '/', ' ':
		return char == code
	}
	return false
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' }

// offset is the index of a place in text, its length if it lies beyond.
func offset(text string, line, column int) int {
	start := 0
	for ; line > 1; line-- {
		newline := strings.IndexByte(text[start:], '\n')
		if newline < 0 {
			return len(text)
		}
		start += newline + 1
	}
	return start + skip(text[start:], column-1)
}

// skip is the length in bytes of the first n characters of text.
func skip(text string, n int) int {
	for i := range text {
		if n == 0 {
			return i
		}
		n--
	}
	return len(text)
}
