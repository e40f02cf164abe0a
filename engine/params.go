package engine

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

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
	refused := false
	for _, p := range c.book.Params {
		if p.Secret && visible[p.Name] {
			refused = true
			c.errorf(spec.Pos{File: "-e"}, fmt.Sprintf("write `%s: ...` into a file with mode 0600 and give -e @FILE", p.Name),
				"parameter %q is a secret: on the command line every user of this machine could read it", p.Name)
		}
	}
	if refused {
		return
	}
	inPlays := map[string]bool{}
	for _, pl := range b.plays {
		for _, h := range pl.hosts {
			inPlays[h.Name] = true
		}
	}
	told := complaints{}
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
					told.add(p.Pos, whereToSet(p),
						fmt.Sprintf("parameter %q is required and has no value%s", p.Name, helpText(p)), h.Name)
				}
				continue
			}
			value, err := stack.Lookup(p.Name)
			if err == nil {
				value, err = coerce(p, value)
			}
			if err != nil {
				if inPlays[h.Name] {
					told.add(p.Pos, p.Help, fmt.Sprintf("parameter %q: %v (set by %s)", p.Name, err, origin), h.Name)
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
	*c.errs = append(*c.errs, told.errors()...)
}

// complaints are mistakes that several hosts may share; each is told once, with the hosts.
type complaints struct {
	list  []*spec.Error
	hosts [][]string
}

func (c *complaints) add(pos spec.Pos, hint, msg, host string) {
	for i, e := range c.list {
		if e.Pos == pos && e.Msg == msg {
			c.hosts[i] = append(c.hosts[i], host)
			return
		}
	}
	c.list = append(c.list, spec.Errorf(pos, hint, "%s", msg))
	c.hosts = append(c.hosts, []string{host})
}

func (c *complaints) errors() []*spec.Error {
	for i, e := range c.list {
		e.Msg += " (for " + strings.Join(c.hosts[i], ", ") + ")"
	}
	return c.list
}

func whereToSet(p *spec.Param) string {
	if p.Secret {
		return "set it in a file that only you can read: -e @FILE"
	}
	return fmt.Sprintf("set it in the inventory or with -e %s=…", p.Name)
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
	if s, isSecret := value.(secret.Secret); isSecret && p.Secret {
		value = s.Reveal()
	}
	if p.Secret {
		typed, err := p.Convert(value)
		if err != nil {
			return nil, err
		}
		return secret.New(fmt.Sprint(typed)), nil
	}
	if _, isSecret := value.(secret.Secret); isSecret {
		return nil, errors.New("its value is made from a secret: declare it with secret: true")
	}
	if text, ok := value.(string); ok && p.Type == "list" {
		value = splitList(text) // -e databases=one,two
	}
	return p.Convert(value)
}

func splitList(text string) []any {
	list := []any{}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

func dashed(hint string) string {
	if hint == "" {
		return ""
	}
	return "; " + hint
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
