package modules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// iptSave is the output of iptables-save, or a file in its format.
type iptSave struct {
	v6     bool
	lines  []string
	tables map[string]*iptTable
}

type iptTable struct {
	commit int // line of COMMIT
	chains map[string]*iptChain
}

type iptChain struct {
	line   int    // of its declaration, -1 if it has none
	policy string // "-" for a chain that is not built in
	rules  []iptRule
	at     []int // the line of each rule
}

// iptBuiltin are the chains that every table has.
var iptBuiltin = map[string][]string{
	"filter":   {"INPUT", "FORWARD", "OUTPUT"},
	"nat":      {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle":   {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"raw":      {"PREROUTING", "OUTPUT"},
	"security": {"INPUT", "FORWARD", "OUTPUT"},
}

// parseIptSave reads the format of iptables-save. A rule whose options it does not know stands as it is; a line
// that is no rule is an error.
func parseIptSave(text string, v6 bool) (*iptSave, error) {
	s := &iptSave{v6: v6, tables: map[string]*iptTable{}}
	if text == "" {
		return s, nil
	}
	s.lines = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	var table *iptTable
	for i, line := range s.lines {
		bad := func(what string) error { return fmt.Errorf("line %d: %s: %s", i+1, what, line) }
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			name := strings.TrimSpace(line[1:])
			if table != nil {
				return nil, bad("a table begins before COMMIT ended the last")
			}
			if s.tables[name] != nil {
				return nil, bad("the table is there twice")
			}
			table = &iptTable{chains: map[string]*iptChain{}}
			s.tables[name] = table
		case table == nil:
			return nil, bad("it is in no table")
		case line == "COMMIT":
			table.commit = i
			table = nil
		case line[0] == ':':
			words := strings.Fields(line[1:])
			if len(words) < 2 {
				return nil, bad("a chain without a policy")
			}
			c := table.chain(words[0])
			c.line, c.policy = i, words[1]
		default:
			line = withoutCounters(line)
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "-A" && words[0] != "--append" {
				return nil, bad("it is no rule that begins with -A")
			}
			rest := strings.TrimSpace(strings.TrimPrefix(line, words[0]))
			rest = strings.TrimSpace(strings.TrimPrefix(rest, words[1]))
			if strings.HasSuffix(rest, `\`) {
				return nil, bad("iptables-restore does not know continued lines")
			}
			rule, err := parseIptRule(rest, v6)
			if err != nil {
				rule = iptRule{v6: v6, opaque: rest}
			}
			c := table.chain(words[1])
			c.rules = append(c.rules, rule)
			c.at = append(c.at, i)
		}
	}
	if table != nil {
		return nil, fmt.Errorf("line %d: the last table has no COMMIT", len(s.lines))
	}
	return s, nil
}

// withoutCounters drops the [packets:bytes] before a rule.
func withoutCounters(line string) string {
	if strings.HasPrefix(line, "[") {
		if _, rest, ok := strings.Cut(line, "]"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return line
}

// chain is a chain of the table, made if it is not there.
func (t *iptTable) chain(name string) *iptChain {
	c := t.chains[name]
	if c == nil {
		c = &iptChain{line: -1, policy: "-"}
		t.chains[name] = c
	}
	return c
}

// get finds a chain. A built-in one is always there.
func (s *iptSave) get(table, chain string) (c *iptChain, exists bool) {
	if t := s.tables[table]; t != nil && t.chains[chain] != nil {
		return t.chains[chain], true
	}
	if slices.Contains(iptBuiltin[table], chain) {
		return &iptChain{line: -1, policy: "ACCEPT"}, true
	}
	return &iptChain{line: -1, policy: "-"}, false
}

// verdicts are the targets after which no further rule of the chain is looked at.
var verdicts = []string{"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "MASQUERADE", "SNAT", "DNAT", "REDIRECT"}

// verdict is what becomes of every packet that meets a rule's conditions, "" if that depends.
func (s *iptSave) verdict(table string, r *iptRule, depth int) string {
	if slices.Contains(verdicts, r.jump) {
		return r.jump
	}
	t := s.tables[table]
	if depth == 0 || t == nil || r.jump == "" || t.chains[r.jump] == nil {
		return ""
	}
	for _, inner := range t.chains[r.jump].rules {
		if inner.opaque != "" || len(inner.conditions(false)) > 0 {
			continue
		}
		if v := s.verdict(table, &inner, depth-1); v == "RETURN" {
			return ""
		} else if v != "" {
			return v
		}
	}
	return ""
}

// firstShadow is the index of the first rule of the list that leaves nothing for rule to decide, len(list) if there is none.
func (s *iptSave) firstShadow(table string, list []iptRule, rule *iptRule) int {
	own := s.verdict(table, rule, 8)
	for i := range list {
		v := s.verdict(table, &list[i], 8)
		if v == "" || !list[i].coversMatchesOf(rule) {
			continue
		}
		// One that decides the same does no harm ahead of it, except that nothing at all goes behind the end of the chain.
		end := (v == "REJECT" || v == "DROP") && len(list[i].conditions(false)) == 0 && len(rule.conditions(false)) > 0
		if v != own || end {
			return i
		}
	}
	return len(list)
}

// iptEdit is what is to be done to one chain. Indexes are those of its rules as they are.
type iptEdit struct {
	newChain bool
	gone     bool   // the chain goes, with its rules
	policy   string // new policy, "" to leave it
	rule     *iptRule
	insert   int // where rule is inserted, -1 for nowhere
	drop     []int
	position int // where rule is in the end, from 1; 0 if it is not there
}

func (e iptEdit) empty() bool {
	return !e.newChain && !e.gone && e.policy == "" && e.insert < 0 && len(e.drop) == 0
}

// list is the chain as text: its rules, and what else an edit changes of it.
func (c *iptChain) list(name string, e iptEdit, lines []string) string {
	var b strings.Builder
	if e.gone {
		fmt.Fprintf(&b, "-N %s\n", name)
	}
	if e.policy != "" {
		fmt.Fprintf(&b, "-P %s %s\n", name, c.policy)
	}
	for _, at := range c.at {
		b.WriteString(withoutCounters(strings.TrimSpace(lines[at])) + "\n")
	}
	return b.String()
}

// edited is the chain's text after an edit.
func (c *iptChain) edited(name string, e iptEdit, lines []string) string {
	if e.gone {
		return ""
	}
	var b strings.Builder
	if e.newChain {
		fmt.Fprintf(&b, "-N %s\n", name)
	}
	if e.policy != "" {
		fmt.Fprintf(&b, "-P %s %s\n", name, e.policy)
	}
	for i := 0; i <= len(c.at); i++ {
		if i == e.insert {
			fmt.Fprintf(&b, "-A %s %s\n", name, e.rule.print(false))
		}
		if i < len(c.at) && !slices.Contains(e.drop, i) {
			b.WriteString(withoutCounters(strings.TrimSpace(lines[c.at[i]])) + "\n")
		}
	}
	return b.String()
}

// commands are the lines that make iptables-restore --noflush carry out an edit.
func (e iptEdit) commands(name string, oldNegation bool) []string {
	var lines []string
	if e.newChain {
		lines = append(lines, ":"+name+" - [0:0]")
	}
	if e.insert >= 0 {
		lines = append(lines, fmt.Sprintf("-I %s %d %s", name, e.insert+1, e.rule.print(oldNegation)))
	}
	for _, i := range slices.Backward(e.drop) {
		if e.insert >= 0 && i >= e.insert {
			i++
		}
		lines = append(lines, "-D "+name+" "+strconv.Itoa(i+1))
	}
	if e.gone {
		lines = append(lines, "-F "+name, "-X "+name)
	}
	if e.policy != "" {
		lines = append(lines, "-P "+name+" "+e.policy)
	}
	return lines
}

// apply makes the text of the file that an edit leaves; all other lines stay as they are.
func (s *iptSave) apply(table, name string, e iptEdit, oldNegation bool) string {
	t := s.tables[table]
	if t == nil {
		lines := append(slices.Clone(s.lines), "*"+table)
		for _, builtin := range iptBuiltin[table] {
			lines = append(lines, ":"+builtin+" ACCEPT [0:0]")
		}
		lines = append(lines, "COMMIT")
		next, err := parseIptSave(joinLines(lines), s.v6)
		if err != nil {
			return joinLines(lines) // what was parsed before and a table as above: it cannot be
		}
		return next.apply(table, name, e, oldNegation)
	}
	c := t.chains[name]
	if c == nil {
		c = &iptChain{line: -1, policy: "-"}
	}
	before := map[int][]string{} // lines to come before that of the index
	dropped := map[int]bool{}
	if policy := e.policy; policy != "" || e.newChain {
		if policy == "" {
			policy = "-"
		}
		at := c.line
		if at >= 0 {
			dropped[at] = true
		} else {
			at = s.declarationsEnd(t)
		}
		before[at] = append(before[at], ":"+name+" "+policy+" [0:0]")
	}
	if e.insert >= 0 {
		at := t.commit
		if e.insert < len(c.at) {
			at = c.at[e.insert]
		} else if len(c.at) > 0 {
			at = c.at[len(c.at)-1] + 1
		}
		before[at] = append(before[at], "-A "+name+" "+e.rule.print(oldNegation))
	}
	for _, i := range e.drop {
		dropped[c.at[i]] = true
	}
	if e.gone {
		for _, at := range c.at {
			dropped[at] = true
		}
		dropped[c.line] = true
	}
	var kept []string
	for i, line := range s.lines {
		kept = append(kept, before[i]...)
		if !dropped[i] {
			kept = append(kept, line)
		}
	}
	return joinLines(kept)
}

// declarationsEnd is the line behind the last declaration of a chain, or else behind the table's name.
func (s *iptSave) declarationsEnd(t *iptTable) int {
	for i := t.commit - 1; i > 0; i-- {
		line := strings.TrimSpace(s.lines[i])
		if strings.HasPrefix(line, ":") || strings.HasPrefix(line, "*") {
			return i + 1
		}
	}
	return 1
}

func joinLines(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// fresh is the text to save where there is no file yet: without the dates and counters that differ at each save.
func (s *iptSave) fresh() string {
	var lines []string
	for _, line := range s.lines {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == ':' {
			if words := strings.Fields(line); len(words) > 2 {
				line = words[0] + " " + words[1] + " [0:0]"
			}
		}
		lines = append(lines, withoutCounters(line))
	}
	return joinLines(lines)
}
