package engine

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/vars"
)

// bindParams gives every parameter its value for every host, checked and typed, at the layer where it was set.
func (c *compiler) bindParams(b *book) {
	visible := map[string]bool{}
	for _, s := range c.job.Settings {
		visible[s.Name] = s.Visible
	}
	for _, p := range c.book.Params {
		if p.Secret && visible[p.Name] {
			c.errorf(spec.Pos{File: "-e", Line: 1, Column: 1}, fmt.Sprintf("write `%s: ...` into a file with mode 0600 and give -e @FILE", p.Name),
				"parameter %q is a secret: on the command line every user of this machine could read it", p.Name)
		}
	}
	inPlays := map[string]bool{}
	for _, pl := range b.plays {
		for _, h := range pl.hosts {
			inPlays[h.Name] = true
		}
	}
	for _, h := range c.job.Inventory.Hosts() {
		stack := b.stacks[h.Name]
		// All values are evaluated before any is set, so that none sees another's checked form.
		type bound struct {
			layer  vars.Layer
			origin string
			value  any
		}
		values := map[string]bound{}
		for _, p := range c.book.Params {
			layer, origin, given := stack.Origin(p.Name)
			if !given {
				if inPlays[h.Name] {
					c.errorf(p.Pos, fmt.Sprintf("set it in the inventory or with -e %s=…%s", p.Name, secretHint(p)),
						"parameter %q is required and has no value for %s%s", p.Name, h.Name, helpText(p))
				}
				continue
			}
			value, err := stack.Lookup(p.Name)
			if err == nil {
				value, err = coerce(p, value)
			}
			if err != nil {
				if inPlays[h.Name] {
					c.errorf(p.Pos, helpText(p), "parameter %q for %s: %v (set by %s)", p.Name, h.Name, err, origin)
				}
				continue
			}
			if s, ok := value.(secret.Secret); ok {
				c.job.Masker.Add(s)
			}
			values[p.Name] = bound{layer, origin, value}
		}
		for name, v := range values {
			stack.Set(v.layer, name, vars.Const(v.value), v.origin)
		}
	}
}

func secretHint(p *spec.Param) string {
	if p.Secret {
		return " in a file: -e @FILE"
	}
	return ""
}

func helpText(p *spec.Param) string {
	if p.Help == "" {
		return ""
	}
	return " (" + strings.TrimSuffix(p.Help, ".") + ")"
}

// coerce checks a parameter's value and gives it its type. Errors never show a secret.
func coerce(p *spec.Param, value any) (any, error) {
	if value == nil {
		return nil, nil // not required, and not given
	}
	if p.Secret {
		text, ok := value.(string)
		if s, already := value.(secret.Secret); already {
			text, ok = s.Reveal(), true
		}
		if n, number := value.(int64); number {
			text, ok = strconv.FormatInt(n, 10), true
		}
		if !ok {
			return nil, errors.New("a secret is a string")
		}
		if err := checkText(p, text); err != nil {
			return nil, err
		}
		return secret.New(text), nil
	}
	if _, isSecret := value.(secret.Secret); isSecret {
		return nil, errors.New("its value is made from a secret: declare it with secret: true")
	}
	typed, err := coerceType(p.Type, value)
	if err != nil {
		return nil, err
	}
	switch v := typed.(type) {
	case string:
		err = checkText(p, v)
	case []any:
		if len(v) < p.MinLen {
			err = fmt.Errorf("it has %d items, at least %d are needed", len(v), p.MinLen)
		}
		for _, item := range v {
			if text, ok := item.(string); ok && err == nil && p.Pattern != "" {
				err = checkPattern(p, text)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if len(p.Choices) > 0 {
		var words []string
		for _, choice := range p.Choices {
			if fmt.Sprint(choice.Any()) == fmt.Sprint(typed) {
				return typed, nil
			}
			words = append(words, fmt.Sprint(choice.Any()))
		}
		return nil, fmt.Errorf("%v is none of %s%s", typed, strings.Join(words, ", "), dashed(spec.DidYouMean(fmt.Sprint(typed), words)))
	}
	return typed, nil
}

func dashed(hint string) string {
	if hint == "" {
		return ""
	}
	return "; " + hint
}

func checkText(p *spec.Param, text string) error {
	if n := utf8.RuneCountInString(text); n < p.MinLen {
		if p.Secret {
			return fmt.Errorf("it is shorter than %d characters", p.MinLen)
		}
		return fmt.Errorf("it has %d characters, at least %d are needed", n, p.MinLen)
	}
	return checkPattern(p, text)
}

func checkPattern(p *spec.Param, text string) error {
	if p.Pattern == "" {
		return nil
	}
	re, err := regexp.Compile(`^(?:` + p.Pattern + `)$`)
	if err != nil {
		return err
	}
	if re.MatchString(text) {
		return nil
	}
	if p.Secret {
		return fmt.Errorf("it does not match the pattern %s", p.Pattern)
	}
	return fmt.Errorf("%q does not match the pattern %s", text, p.Pattern)
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$|^[0-9A-Fa-f:.]+$`)

// coerceType turns what YAML or the command line gave into the type of a parameter.
func coerceType(kind string, value any) (any, error) {
	text, isText := value.(string)
	switch kind {
	case "int", "port":
		n, err := toInt(value)
		if err != nil {
			return nil, err
		}
		if kind == "port" && (n < 1 || n > 65535) {
			return nil, fmt.Errorf("%d is no port: 1 to 65535", n)
		}
		return n, nil
	case "float":
		switch v := value.(type) {
		case float64:
			return v, nil
		case int, int64:
			return strconv.ParseFloat(fmt.Sprint(v), 64)
		case string:
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				return f, nil
			}
		}
		return nil, fmt.Errorf("%v is not a number", value)
	case "bool":
		if b, ok := value.(bool); ok {
			return b, nil
		}
		if isText && slices.Contains([]string{"true", "false"}, text) {
			return text == "true", nil
		}
		return nil, fmt.Errorf("%v is neither true nor false", value)
	case "list":
		if isText {
			var list []any
			for _, item := range strings.Split(text, ",") {
				if item = strings.TrimSpace(item); item != "" {
					list = append(list, item)
				}
			}
			return list, nil
		}
		if list, ok := value.([]any); ok {
			return list, nil
		}
		return nil, fmt.Errorf("%v is not a list", value)
	case "map":
		if m, ok := value.(map[string]any); ok {
			return m, nil
		}
		return nil, fmt.Errorf("%v is not a mapping", value)
	}
	if !isText {
		switch value.(type) {
		case int, int64, float64:
			text = fmt.Sprint(value)
		default:
			return nil, fmt.Errorf("it must be a %s", kind)
		}
	}
	switch kind {
	case "path":
		if !strings.HasPrefix(text, "/") || strings.ContainsAny(text, "\x00\n") {
			return nil, fmt.Errorf("%q is not an absolute path", text)
		}
	case "hostname":
		if !hostname.MatchString(text) {
			return nil, fmt.Errorf("%q is neither a host name nor an address", text)
		}
	case "duration":
		if _, err := time.ParseDuration(text); err != nil {
			return nil, fmt.Errorf("%q is not a duration such as 30s or 5m", text)
		}
	}
	return text, nil
}

func toInt(value any) (int, error) {
	switch v := value.(type) {
	case int:
		return v, nil
	case int64:
		return int(v), nil
	case float64:
		if v == math.Trunc(v) {
			return int(v), nil
		}
	case string:
		if n, err := strconv.Atoi(v); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%v is not a whole number", value)
}
