package spec

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ParamTypes are the types that a param may have.
var ParamTypes = []string{"string", "int", "float", "bool", "list", "map", "port", "path", "hostname", "duration"}

// params reads `name: {type: …}` entries, or a list of mappings with a `name`.
func (l *loader) params(e Entry) []*Param {
	var params []*Param
	switch e.Value.Kind {
	case List:
		for _, item := range e.Value.List {
			params = append(params, l.param("", item))
		}
	default:
		for _, one := range l.entries(e) {
			l.checkName(one.Key, one.Pos)
			p := l.param(one.Key, one.Value)
			p.Pos = one.Pos
			params = append(params, p)
		}
	}
	first := map[string]Pos{}
	for _, p := range params {
		if pos, dup := first[p.Name]; dup && p.Name != "" {
			l.errorf(p.Pos, "", "cannot declare the param %q twice: it is also declared on line %d", p.Name, pos.Line)
		} else {
			first[p.Name] = p.Pos
		}
	}
	return params
}

func (l *loader) param(name string, v *Value) *Param {
	p := &Param{Pos: v.Pos, Name: name, Type: "string"}
	if v.Kind == Null && name != "" {
		return p
	}
	before := len(l.errs)
	known := fields{
		"type":       func(e Entry) { p.Type = l.oneOf(e, ParamTypes...) },
		"default":    func(e Entry) { p.Default = e.Value },
		"required":   func(e Entry) { p.Required = l.flag(e) },
		"secret":     func(e Entry) { p.Secret = l.flag(e) },
		"pattern":    func(e Entry) { p.Pattern = l.pattern(e) },
		"choices":    func(e Entry) { p.Choices = l.list(e) },
		"min_length": func(e Entry) { p.MinLen = l.length(e) },
		"help":       func(e Entry) { p.Help = l.text(e) },
	}
	if name == "" {
		known["name"] = func(e Entry) { p.Name = l.name(e) }
	}
	if !l.fields(v, "param", known, paramHints) {
		return p
	}
	if name == "" {
		l.required(v, "param", "name")
	}
	if len(l.errs) > before {
		return p
	}
	if p.Pattern != "" && slices.Contains([]string{"int", "float", "bool", "map", "port", "duration"}, p.Type) {
		l.errorf(v.Get("pattern").Pos, "", "cannot match a pattern against the type %s", p.Type)
	}
	if p.MinLen > 0 && !slices.Contains([]string{"string", "list", "path", "hostname"}, p.Type) {
		l.errorf(v.Get("min_length").Pos, "", "cannot ask for a length of the type %s", p.Type)
	}
	bare := *p
	bare.Choices = nil
	for _, choice := range p.Choices {
		if _, err := bare.Convert(choice.Any()); err != nil {
			l.errorf(choice.Pos, "", "cannot use this choice: %s", err)
		}
	}
	l.checkDefault(p)
	return p
}

func (l *loader) checkDefault(p *Param) {
	d := p.Default
	switch {
	case d == nil:
	case p.Required:
		l.errorf(d.Pos, "remove `default` or `required`", "cannot give a required param a default")
	case d.HasHole():
	case p.Secret && d.Str != "":
		l.errs = append(l.errs, &Error{Pos: d.Pos, Snippet: "***", Msg: "cannot keep the value of a secret in a runbook",
			Hint: "make it `required: true` and give it with `-e @file.yml`"})
	case d.Kind == Null:
		l.errorf(d.Pos, "remove the key, or give it a value", "cannot leave %q empty", "default")
	case d.Kind == String && d.Str == "" && p.Pattern == "" && p.MinLen == 0 && p.Type == "string" && p.Choices == nil:
	default:
		if d.Kind == String && slices.Contains([]string{"int", "float", "bool", "port"}, p.Type) {
			hint := yesNo(d)
			if hint == "" {
				hint = "write it without quotes"
			}
			l.errorf(d.Pos, hint, "cannot use the default: a string is no %s", p.Type)
			return
		}
		if _, err := p.Convert(d.Any()); err != nil {
			l.errorf(d.Pos, "", "cannot use the default: %s", err)
		}
	}
}

func (l *loader) pattern(e Entry) string {
	text := l.text(e)
	if _, err := compilePattern(text); err != nil {
		l.errorf(e.Value.Pos, "it is a regular expression as Go and RE2 have them", "cannot use the pattern: %s", err)
	}
	return text
}

func compilePattern(text string) (*regexp.Regexp, error) {
	// Alone first: a stray parenthesis must not close the group below.
	if _, err := regexp.Compile(text); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return regexp.Compile(`\A(?:` + text + `)\z`)
}

func (l *loader) length(e Entry) int {
	if e.Value.Kind != Int || e.Value.Int < 0 || e.Value.Int > maxSize {
		l.errorf(e.Value.Pos, "write a number of characters or items", "cannot use %s as %q", e.Value.Kind, e.Key)
		return 0
	}
	return int(e.Value.Int)
}

// Convert makes of value what the param's type says and checks it against pattern, choices and length. From the
// command line every value is a string: one that is written like the type becomes it, "3306" a port. A duration
// becomes seconds, an int if they are whole. Errors never quote the value of a secret.
func (p *Param) Convert(value any) (any, error) {
	v, err := p.convert(value)
	if err != nil {
		return nil, err
	}
	if len(p.Choices) > 0 && !slices.ContainsFunc(p.Choices, func(c *Value) bool { return p.same(c, v) }) {
		var words []string
		for _, c := range p.Choices {
			words = append(words, c.Str)
		}
		return nil, fmt.Errorf("%s is none of %s", p.show(v), strings.Join(words, ", "))
	}
	if err := p.checkLength(v); err != nil {
		return nil, err
	}
	return v, p.checkPattern(v)
}

func (p *Param) same(choice *Value, v any) bool {
	c, err := p.convert(choice.Any())
	return err == nil && fmt.Sprint(c) == fmt.Sprint(v)
}

func (p *Param) show(v any) string {
	if p.Secret {
		return "the value"
	}
	text := fmt.Sprintf("%v", v)
	if s, ok := v.(string); ok {
		text = strconv.Quote(s)
	}
	if len(text) > 60 {
		return "the value"
	}
	return text
}

func (p *Param) checkLength(v any) error {
	unit, n := "characters", p.MinLen
	switch v := v.(type) {
	case string:
		n = utf8.RuneCountInString(v)
	case []any:
		unit, n = "items", len(v)
	}
	if n < p.MinLen {
		return fmt.Errorf("it has %d %s, and needs %d", n, unit, p.MinLen)
	}
	return nil
}

func (p *Param) checkPattern(v any) error {
	if p.Pattern == "" {
		return nil
	}
	pattern, err := compilePattern(p.Pattern)
	if err != nil {
		return err
	}
	items := []any{v}
	if list, ok := v.([]any); ok {
		items = list
	}
	for _, item := range items {
		text, ok := item.(string)
		if !ok {
			text = fmt.Sprint(item)
		}
		if !pattern.MatchString(text) {
			return fmt.Errorf("%s does not match %s", p.show(item), p.Pattern)
		}
	}
	return nil
}

var hostLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func (p *Param) convert(value any) (any, error) {
	text, isText := value.(string)
	switch p.Type {
	case "int", "port":
		n, ok := wholeNumber(value)
		switch {
		case !ok:
			return nil, p.mismatch(value, "an integer")
		case p.Type == "port" && (n < 1 || n > 65535):
			return nil, fmt.Errorf("%s is no port: it must be 1 to 65535", p.show(n))
		}
		return n, nil
	case "float":
		return p.convertFloat(value)
	case "bool":
		if b, ok := value.(bool); ok {
			return b, nil
		}
		if text == "true" || text == "false" {
			return text == "true", nil
		}
		return nil, p.mismatch(value, "true or false")
	case "list":
		if list, ok := value.([]any); ok {
			return list, nil
		}
		return nil, p.mismatch(value, "a list")
	case "map":
		if m, ok := value.(map[string]any); ok {
			return m, nil
		}
		return nil, p.mismatch(value, "a mapping")
	case "duration":
		return p.convertDuration(value)
	}
	if !isText {
		return nil, p.mismatch(value, "a string")
	}
	switch p.Type {
	case "path":
		if !strings.HasPrefix(text, "/") || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, p.mismatch(value, "an absolute path")
		}
	case "hostname":
		if !isHostname(text) {
			return nil, p.mismatch(value, "a host name or an address")
		}
	}
	return text, nil
}

func (p *Param) mismatch(value any, want string) error {
	if _, ok := value.(string); !ok && want == "a string" {
		return fmt.Errorf("%s is not %s: put quotes around it", p.show(value), want)
	}
	return fmt.Errorf("%s is not %s", p.show(value), want)
}

func wholeNumber(value any) (int, bool) {
	switch n := value.(type) {
	case int:
		return n, true
	case int64:
		return int(n), true
	case float64:
		return int(n), n == math.Trunc(n) && math.Abs(n) < 1<<53
	case string:
		if !intText.MatchString(n) {
			return 0, false
		}
		i, err := strconv.Atoi(n)
		return i, err == nil
	}
	return 0, false
}

func (p *Param) convertFloat(value any) (any, error) {
	if n, ok := wholeNumber(value); ok {
		return float64(n), nil
	}
	switch n := value.(type) {
	case float64:
		return n, nil
	case string:
		if f, err := strconv.ParseFloat(n, 64); err == nil && floatText.MatchString(n) {
			return f, nil
		}
	}
	return nil, p.mismatch(value, "a number")
}

func (p *Param) convertDuration(value any) (any, error) {
	seconds, ok := Seconds(value)
	switch {
	case !ok:
		return nil, p.mismatch(value, "a duration, such as 90, 90s or 1m30s")
	case seconds == math.Trunc(seconds):
		return int(seconds), nil
	}
	return seconds, nil
}

// Seconds reads a duration: a number of seconds that is not negative, or a string such as 90, 90s or 1m30s.
func Seconds(value any) (float64, bool) {
	var seconds float64
	switch n := value.(type) {
	case int:
		seconds = float64(n)
	case int64:
		seconds = float64(n)
	case float64:
		seconds = n
	case string:
		if floatText.MatchString(n) {
			seconds, _ = strconv.ParseFloat(n, 64)
			break
		}
		d, err := time.ParseDuration(n)
		if err != nil {
			return 0, false
		}
		seconds = d.Seconds()
	default:
		return 0, false
	}
	return seconds, seconds >= 0 && seconds <= (math.MaxInt64/float64(time.Second))
}

func isHostname(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	if len(text) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(text, "."), ".") {
		if !hostLabel.MatchString(label) {
			return false
		}
	}
	return true
}
