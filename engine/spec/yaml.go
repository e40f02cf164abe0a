package spec

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const (
	maxSize  = 1 << 20 // bytes of one file
	maxDepth = 64      // values within values
)

// LoadValue reads one YAML document of any shape; name is the file's name in messages. The error is Errors.
func LoadValue(name string, data []byte) (*Value, error) {
	v, src, errs := parse(name, data)
	if len(errs) > 0 {
		src.fill(errs)
		return nil, errs.Sorted()
	}
	return v, nil
}

// ParseScalar is the value of `-e name=value`: always a String. The declared type of a param makes more of it.
func ParseScalar(text string) *Value { return &Value{Kind: String, Str: text} }

// parse reads one document. The value is usable even with errors, unless the text is no YAML at all: then it is nil.
func parse(name string, data []byte) (*Value, *source, Errors) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	src := newSource(name, data)
	if len(data) > maxSize {
		return nil, src, Errors{Errorf(Pos{File: name}, "", "cannot read a file of more than %d bytes", maxSize)}
	}
	if err := checkText(src, data); err != nil {
		return nil, src, Errors{err}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return &Value{Pos: Pos{name, 1, 1}, src: src}, src, nil
	} else if err != nil {
		return nil, src, Errors{syntaxError(src, data, err)}
	}
	var next yaml.Node
	if err := decoder.Decode(&next); err == nil {
		pos := Pos{name, next.Line, next.Column}
		return nil, src, Errors{Errorf(pos, "remove what follows the line `---`", "cannot read a second document in one file")}
	} else if !errors.Is(err, io.EOF) {
		return nil, src, Errors{syntaxError(src, data, err)}
	}
	c := converter{src: src}
	return c.value(doc.Content[0], 0), src, c.errs
}

// checkText refuses what is no UTF-8, and characters on which editors and YAML disagree.
func checkText(src *source, data []byte) *Error {
	line, column := 1, 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		pos := Pos{src.name, line, column}
		switch {
		case r == utf8.RuneError && size == 1:
			return Errorf(pos, "save the file as UTF-8", "cannot read byte 0x%02X: the file is not UTF-8", data[i])
		case r == '\n':
			line, column = line+1, 0
		case r == '\r' && (i+1 == len(data) || data[i+1] != '\n'),
			r == '\u0085', r == '\u2028', r == '\u2029', r == '\ufeff',
			r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0:
			return Errorf(pos, "write it as an escape in double quotes", "cannot read the character U+%04X in a file", r)
		}
		column++
		i += size
	}
	return nil
}

// converter turns YAML nodes into values.
type converter struct {
	src  *source
	errs Errors
}

func (c *converter) errorf(pos Pos, hint, format string, args ...any) {
	c.errs = append(c.errs, Errorf(pos, hint, format, args...))
}

func (c *converter) value(n *yaml.Node, depth int) *Value {
	v := &Value{Pos: Pos{c.src.name, n.Line, n.Column}, src: c.src}
	if depth == maxDepth {
		c.errorf(v.Pos, "", "cannot read values nested more than %d deep", maxDepth)
		return v
	}
	// Names of aliases and tags are not repeated: an unquoted password may start with * or !.
	switch mark := c.src.runeAt(n.Line, n.Column); {
	case n.Kind == yaml.AliasNode:
		c.errorf(v.Pos, "write the value in full; put quotes around a string that starts with *", "cannot use a YAML alias")
		return v
	case n.Anchor != "" || mark == '&':
		c.errorf(v.Pos, "remove it; put quotes around a string that starts with &", "cannot use a YAML anchor")
	case n.Style&yaml.TaggedStyle != 0 || mark == '!':
		c.errorf(v.Pos, "put quotes around a string that starts with !; in an expression write `not`", "cannot use a YAML tag")
		return v
	}
	switch n.Kind {
	case yaml.MappingNode:
		c.mapping(v, n, depth)
	case yaml.SequenceNode:
		v.Kind = List
		for _, item := range n.Content {
			v.List = append(v.List, c.value(item, depth+1))
		}
	default:
		v.block = n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
		v.Kind, v.Str = String, n.Value
		if n.Style == 0 {
			if err := resolve(v); err != "" {
				c.errorf(v.Pos, "put quotes around it", "cannot hold %s", err)
			}
		}
	}
	return v
}

func (c *converter) mapping(v *Value, n *yaml.Node, depth int) {
	v.Kind = Map
	seen := map[string]Pos{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		pos := Pos{c.src.name, key.Line, key.Column}
		if key.Kind == yaml.MappingNode && key.Style&yaml.FlowStyle != 0 && n.Style&yaml.FlowStyle != 0 {
			c.errorf(v.Pos, `put quotes around it: "{{ … }}"`, "cannot read a value that starts with {{ without quotes")
			return
		}
		if key.Kind != yaml.ScalarNode || key.Style == 0 && key.Tag == "!!null" {
			c.errorf(pos, "", "cannot use a key that is not a string")
			continue
		}
		if key.Tag == "!!merge" {
			c.errorf(pos, "write the keys out", "cannot use a YAML merge key")
			continue
		}
		if mark := c.src.runeAt(key.Line, key.Column); key.Anchor != "" || mark == '&' || mark == '!' {
			c.errorf(pos, "put quotes around the key", "cannot use a YAML anchor or tag on a key")
			continue
		}
		if first, dup := seen[key.Value]; dup {
			c.errorf(pos, "", "cannot set %q twice: it is also set on line %d", key.Value, first.Line)
			continue
		}
		seen[key.Value] = pos
		v.Map = append(v.Map, Entry{Key: key.Value, Pos: pos, Value: c.value(value, depth+1)})
	}
}

var (
	intText   = regexp.MustCompile(`^[-+]?(0|[1-9][0-9]*)$`)
	floatText = regexp.MustCompile(`^[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$`)
)

// resolve gives a plain scalar its kind. Anything but a null, true or false, a decimal integer or a decimal fraction
// stays a string: file modes, 0x1F, 1_000, yes, dates. It returns what a number is too large for, "" if all is well.
func resolve(v *Value) string {
	switch v.Str {
	case "", "~", "null", "Null", "NULL":
		v.Kind = Null
		return ""
	case "true", "True", "TRUE":
		v.Kind, v.Bool = Bool, true
		return ""
	case "false", "False", "FALSE":
		v.Kind = Bool
		return ""
	}
	var err error
	switch {
	case intText.MatchString(v.Str):
		v.Kind = Int
		if v.Int, err = strconv.ParseInt(v.Str, 10, 64); err != nil {
			return "an integer of more than 64 bits"
		}
	case floatText.MatchString(v.Str):
		v.Kind = Float
		if v.Float, err = strconv.ParseFloat(v.Str, 64); err != nil {
			return "a number this large"
		}
	}
	return ""
}

// lookahead is how many characters the YAML scanner reads beyond the one it complains of.
const lookahead = 4

// syntaxError places and explains what the YAML parser refused.
func syntaxError(src *source, data []byte, err error) *Error {
	msg, line := yamlMessage(err)
	pos := Pos{File: src.name, Line: line}
	switch {
	case strings.HasPrefix(msg, "did not find expected"), strings.HasPrefix(msg, "unknown anchor"):
		// The parser names the line where the enclosing list or mapping began.
		pos.Line, pos.Column = firstFailure(src, msg)
	default:
		pos.Column = src.firstColumn(pos.Line)
		r := &slowReader{data: append(slices.Clip(data), "\n\n\n\n\n"...)}
		_ = yaml.NewDecoder(r).Decode(new(yaml.Node))
		read := string(r.data[:r.next])
		for range lookahead {
			_, size := utf8.DecodeLastRuneInString(read)
			read = read[:len(read)-size]
		}
		if strings.Count(read, "\n")+1 == pos.Line {
			pos.Column = utf8.RuneCountInString(read[strings.LastIndexByte(read, '\n')+1:]) + 1
		}
	}
	if strings.HasPrefix(msg, "unknown anchor") {
		return Errorf(pos, "put quotes around a string that starts with *", "cannot use a YAML alias")
	}
	return Errorf(pos, syntaxHint(src, pos, msg), "cannot read YAML: %s", msg)
}

// yamlMessage takes the line off an error of the YAML library; it counts from 1.
func yamlMessage(err error) (string, int) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				return text, line
			}
		}
	}
	return msg, 1
}

// firstFailure finds where the shortest beginning of the file ends that fails with the same message: first the line,
// then the word on it.
func firstFailure(src *source, want string) (line, column int) {
	fails := func(text string) bool {
		err := yaml.NewDecoder(strings.NewReader(text)).Decode(new(yaml.Node))
		if err == nil || errors.Is(err, io.EOF) {
			return false
		}
		msg, _ := yamlMessage(err)
		return msg == want
	}
	line = sort.Search(len(src.lines), func(i int) bool { return fails(strings.Join(src.lines[:i+1], "\n") + "\n") }) + 1
	if line > len(src.lines) {
		return len(src.lines), 1
	}
	before := strings.Join(src.lines[:line-1], "\n") + "\n"
	runes := []rune(src.lines[line-1])
	end := sort.Search(len(runes), func(i int) bool { return fails(before + string(runes[:i+1])) })
	end = min(end, len(runes)-1)
	for end > 0 && runes[end-1] != ' ' {
		end--
	}
	return line, max(end+1, src.firstColumn(line))
}

// slowReader gives one byte at a time, so that it knows how far a parser came.
type slowReader struct {
	data []byte
	next int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.next == len(r.data) {
		return 0, io.EOF
	}
	n := copy(p, r.data[r.next:r.next+1])
	r.next += n
	return n, nil
}

var (
	bareHole   = regexp.MustCompile(`(^|[:-])\s+\{\{`)
	quotedPart = regexp.MustCompile(`[:-]\s+["']`)
)

func syntaxHint(src *source, pos Pos, msg string) string {
	text := ""
	if pos.Line >= 1 && pos.Line <= len(src.lines) {
		text = src.lines[pos.Line-1]
	}
	indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
	switch {
	case strings.Contains(indent, "\t"):
		return "indent with spaces, not with tabs"
	case bareHole.MatchString(text):
		return `put quotes around a value that starts with {{: "{{ … }}"`
	case strings.Contains(msg, "cannot start any token"):
		return "put quotes around the value"
	case strings.Contains(msg, "mapping values are not allowed"):
		if strings.Count(text, ": ") > 1 {
			return "put quotes around a value that holds `: `"
		}
		return "check the indentation: keys of one mapping start in the same column"
	case strings.Contains(msg, "escape character"):
		return `write \\ for a backslash in double quotes, or use single quotes`
	case strings.Contains(msg, "end of stream"):
		return "close the quote that begins here"
	case strings.Contains(msg, "',' or"):
		return "close the bracket, and put commas between the items"
	case strings.Contains(msg, "could not find expected ':'"):
		return "a key ends in a colon and a space; a text of several lines starts with `|`"
	case quotedPart.MatchString(text):
		return "put quotes around the whole value, not around its beginning"
	case strings.Contains(msg, "expected key"), strings.Contains(msg, "'-' indicator"):
		return "check the indentation: keys of one mapping, and items of one list, start in the same column"
	}
	return ""
}
