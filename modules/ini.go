package modules

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"runbook/engine/module"
	"runbook/engine/secret"
)

func init() {
	register("ini", func() module.Module { return &ini{State: "present", Exclusive: true} })
}

// ini sets an option in a section of a file such as my.cnf or stunnel.conf, or removes it.
//
// Keys may be repeated: the option then has a list of values. Every byte that is not part of the option stays as it is:
// comments (# and ;), blank lines, indentation, include directives, and the spacing of lines whose value is right. A section that
// occurs several times counts as one. A symbolic link is followed.
//
//	tasks:
//	  - name: the slave takes the tables of two databases, and no others
//	    ini:
//	      path: /etc/my.cnf
//	      section: mysqld
//	      option: replicate-wild-do-table
//	      values: ['voms\_myvo.%', 'cns\_db.%']
//	      dash_is_underscore: true
//	    notify: restart mysql
//	handlers:
//	  - name: restart mysql
//	    service: {name: mysqld, state: restarted}
type ini struct {
	// Path of the file.
	Path string `yaml:"path" required:"true"`
	// Name of the section, without brackets. Without it, the lines before the first section are meant.
	Section string `yaml:"section"`
	// Name of the option. Without it, the section as a whole is meant.
	Option string `yaml:"option"`
	// Its value. With neither value nor values the option stands alone on its line. A secret is never shown.
	Value any `yaml:"value" late:"true"`
	// Its values, for a key that is repeated: one line for each, in this order.
	Values []string `yaml:"values" late:"true"`
	// Whether the option, or the section, is to be there. Absent with values removes only the lines with these.
	State string `yaml:"state" choices:"present,absent"`
	// Remove lines of the option with other values. With false, values are only added.
	Exclusive bool `yaml:"exclusive"`
	// Take - and _ in option names as the same, as MySQL does.
	DashIsUnderscore bool `yaml:"dash_is_underscore"`
	// Make a missing file.
	Create bool `yaml:"create"`
	// Write key=value, not key = value, where a line is added.
	NoExtraSpaces bool `yaml:"no_extra_spaces"`
	written
}

// Validate refuses what cannot be meant, and values that would smuggle in lines of their own.
func (m *ini) Validate() error {
	errs := []error{m.written.validate(m.Path, "path")}
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	if strings.ContainsAny(m.Section, "[]\n\r") {
		refuse("section", "cannot hold brackets or newlines", "")
	}
	if strings.ContainsAny(m.Option, "=\n\r") || m.Option != strings.TrimSpace(m.Option) || m.Option != "" && strings.ContainsAny(m.Option[:1], "#;[!") {
		refuse("option", fmt.Sprintf("%q is not the name of an option", m.Option), "")
	}
	switch m.Value.(type) {
	case nil, string, int, int64, secret.Secret:
	default:
		refuse("value", fmt.Sprintf("expected a text, a whole number or a secret, got %v", m.Value), "put it in quotes")
	}
	for _, v := range m.wanted() {
		if strings.ContainsAny(v, "\n\r") {
			refuse("value", "cannot hold a newline", "")
		} else if v != strings.TrimSpace(v) {
			refuse("value", "cannot begin or end with a blank", "quotes within the value keep it")
		}
	}
	switch {
	case m.Value != nil && m.Values != nil:
		refuse("values", "cannot be given together with value", "")
	case m.Option == "" && (m.Value != nil || m.Values != nil):
		refuse("option", "is needed for a value", "")
	case m.Option == "" && m.Section == "":
		refuse("", "nothing to set", "give section or option")
	case m.Values != nil && len(m.Values) == 0 && m.State == "present":
		refuse("values", "is empty", "state: absent removes the option")
	}
	return errors.Join(errs...)
}

// wanted is the values as text; nil for an option that stands alone.
func (m *ini) wanted() []string {
	switch v := m.Value.(type) {
	case string:
		return []string{v}
	case int:
		return []string{strconv.Itoa(v)}
	case int64:
		return []string{strconv.FormatInt(v, 10)}
	case secret.Secret:
		return []string{v.Reveal()}
	}
	return m.Values
}

var (
	sectionHeader = regexp.MustCompile(`^\s*\[([^\]]*)\]`)
	// What stands before the value, in it the key; the value; what follows it. A quoted value may hold what looks like a comment.
	assignedOption = regexp.MustCompile(`^(\s*([^=\s#;\[!][^=#]*?)\s*=[ \t]*)((?:"[^"]*"|'[^']*')?.*?)(\s+#.*|\s*)$`)
	aloneOption    = regexp.MustCompile(`^(\s*([^=\s#;\[!].*?))(\s+#.*|\s*)$`)
)

// iniLine is one line that sets an option.
type iniLine struct {
	at            int // index in the file
	key           string
	before, after string
	value         string
	assigned      bool // there is a =
}

func optionLine(s string) (iniLine, bool) {
	if m := assignedOption.FindStringSubmatch(s); m != nil {
		return iniLine{key: m[2], before: m[1], value: m[3], after: m[4], assigned: true}, true
	}
	if m := aloneOption.FindStringSubmatch(s); m != nil {
		return iniLine{key: m[2], before: m[1], after: m[3]}, true
	}
	return iniLine{}, false
}

// with is the line with another value. Its comment stays, unless the value would run into it.
func (l iniLine) with(value, equals string) string {
	if strings.Contains(value, "#") {
		l.after = ""
	}
	if !l.assigned {
		l.before += equals
	}
	return l.before + value + l.after
}

// has reports whether the line has the value: as it stands, or with what looks like a comment after it.
func (l iniLine) has(value string) bool {
	return l.assigned && (l.value == value || strings.TrimRight(l.value+l.after, " \t\r") == value)
}

func (m *ini) sameKey(key string) bool {
	if m.DashIsUnderscore {
		return strings.ReplaceAll(key, "-", "_") == strings.ReplaceAll(m.Option, "-", "_")
	}
	return key == m.Option
}

// iniScan is where things of the section are in a file.
type iniScan struct {
	found  bool // the section is there
	mine   []iniLine
	end    int      // where a line is added: after the last option, or the header
	blocks [][2]int // first and last+1 line of each occurrence of the section
}

func (m *ini) scan(lines []string) iniScan {
	var s iniScan
	within := m.Section == ""
	if within {
		s.found, s.blocks = true, [][2]int{{0, len(lines)}}
	}
	for i, text := range lines {
		if h := sectionHeader.FindStringSubmatch(text); h != nil {
			if within {
				s.blocks[len(s.blocks)-1][1] = i
			}
			if within = m.Section != "" && strings.TrimSpace(h[1]) == m.Section; within {
				s.found, s.end = true, i+1
				s.blocks = append(s.blocks, [2]int{i, len(lines)})
			}
			continue
		}
		if !within {
			continue
		}
		if l, ok := optionLine(text); ok {
			s.end = i + 1
			if l.at = i; m.Option != "" && m.sameKey(l.key) {
				s.mine = append(s.mine, l)
			}
		}
	}
	if n := len(s.mine); n > 0 {
		s.end = s.mine[n-1].at + 1
	}
	return s
}

func (m *ini) edit(old []byte) ([]byte, error) {
	t := splitText(old)
	s := m.scan(t.lines)
	switch {
	case m.Option == "" && m.State == "absent":
		for _, b := range slices.Backward(s.blocks) {
			t.lines = slices.Delete(t.lines, b[0], b[1])
		}
	case m.State == "absent":
		m.remove(&t, s)
	default:
		m.set(&t, s)
	}
	return t.join(), nil
}

func (m *ini) remove(t *text, s iniScan) {
	wanted := m.wanted()
	for _, l := range slices.Backward(s.mine) {
		if wanted == nil || slices.ContainsFunc(wanted, l.has) {
			t.lines = slices.Delete(t.lines, l.at, l.at+1)
		}
	}
}

// set leaves the lines alone that are right, rewrites those that are not and adds what is missing.
func (m *ini) set(t *text, s iniScan) {
	if !s.found {
		lines := []string{"[" + m.Section + "]"}
		if n := len(t.lines); n > 0 && strings.TrimSpace(t.lines[n-1]) != "" {
			lines = append([]string{""}, lines...)
		}
		t.insert(len(t.lines), lines...)
		s.end = len(t.lines)
	}
	if m.Option == "" {
		return
	}
	wanted := m.wanted()
	if !m.Exclusive {
		wanted = slices.DeleteFunc(slices.Clone(wanted), func(v string) bool {
			return slices.ContainsFunc(s.mine, func(l iniLine) bool { return l.has(v) })
		})
		if m.wanted() == nil && len(s.mine) == 0 {
			t.insert(s.end, m.Option)
		}
		t.insert(s.end, m.lines(wanted)...)
		return
	}
	if wanted == nil {
		m.setAlone(t, s)
		return
	}
	for i, l := range slices.Backward(s.mine) {
		switch {
		case i >= len(wanted):
			t.lines = slices.Delete(t.lines, l.at, l.at+1)
		case !l.has(wanted[i]):
			t.lines[l.at] = l.with(wanted[i], m.equals())
		}
	}
	if len(wanted) > len(s.mine) {
		t.insert(s.end, m.lines(wanted[len(s.mine):])...)
	}
}

// setAlone leaves one line with the option and no value.
func (m *ini) setAlone(t *text, s iniScan) {
	if len(s.mine) == 0 {
		t.insert(s.end, m.Option)
		return
	}
	for i, l := range slices.Backward(s.mine) {
		if i > 0 {
			t.lines = slices.Delete(t.lines, l.at, l.at+1)
		} else if l.assigned {
			t.lines[l.at] = m.Option + l.after
		}
	}
}

func (m *ini) equals() string {
	if m.NoExtraSpaces {
		return "="
	}
	return " = "
}

func (m *ini) lines(values []string) []string {
	lines := make([]string, len(values))
	for i, v := range values {
		lines[i] = m.Option + m.equals() + v
	}
	return lines
}

func (m *ini) content() content {
	_, isSecret := m.Value.(secret.Secret)
	c := content{path: m.Path, attrs: m.written, edit: m.edit, secret: isSecret, missing: missingIsError, late: []string{"value", "values"}}
	switch {
	case m.State == "absent":
		c.missing = missingIsFine
	case m.Create:
		c.missing = createIt
	}
	return c
}

// Check makes the edit in memory.
func (m *ini) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	return m.content().check(ctx, host)
}

// Apply writes the edited file.
func (m *ini) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	return m.content().apply(ctx, host, plan)
}

// Returns documents the result.
func (*ini) Returns() []module.Return { return contentReturns() }
