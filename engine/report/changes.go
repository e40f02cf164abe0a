package report

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// group is what is told together: the changes of one path, or a change of something else.
type group struct {
	path  string
	main  *Change // nil: attributes only
	attrs []Change
}

// attributeOf says which attribute of which path a change is about, content and being there among them; "" for a change of something else.
func attributeOf(c Change) (attribute, path string) {
	for _, attribute := range []string{"create", "content of", "link", "mode of", "owner of", "group of"} {
		if path, is := strings.CutPrefix(c.What, attribute+" "); is && strings.HasPrefix(path, "/") {
			return strings.TrimSuffix(attribute, " of"), path
		}
	}
	return "", ""
}

// groups puts the changes of the same path together, in the order of the first ones.
func groups(changes []Change) []*group {
	var list []*group
	for i := range changes {
		c := &changes[i]
		attribute, path := attributeOf(*c)
		extra := slices.Contains([]string{"mode", "owner", "group"}, attribute)
		at := slices.IndexFunc(list, func(g *group) bool { return path != "" && g.path == path && (extra || g.main == nil) })
		if at < 0 {
			at = len(list)
			list = append(list, &group{path: path})
		}
		if extra {
			list[at].attrs = append(list[at].attrs, Change{What: attribute, Before: c.Before, After: c.After})
		} else {
			list[at].main = c
		}
	}
	for _, g := range list {
		g.joinOwner()
	}
	return list
}

// joinOwner makes one attribute of an owner and a group that both change.
func (g *group) joinOwner() {
	is := func(name string) int { return slices.IndexFunc(g.attrs, func(c Change) bool { return c.What == name }) }
	owner, group := is("owner"), is("group")
	if owner < 0 || group < 0 {
		return
	}
	join := func(a, b string) string { return strings.Trim(a+":"+b, ":") }
	g.attrs[owner].Before = join(g.attrs[owner].Before, g.attrs[group].Before)
	g.attrs[owner].After = join(g.attrs[owner].After, g.attrs[group].After)
	g.attrs = slices.Delete(g.attrs, group, group+1)
}

// isNew reports whether the group is about something that is not there yet.
func (g *group) isNew() bool {
	attribute := ""
	if g.main != nil {
		attribute, _ = attributeOf(*g.main)
	}
	return attribute == "create"
}

// line names the changes on one line; values that are short are shown, texts only with --diff.
func (g *group) line() string {
	attrs := g.attrs
	var text string
	switch {
	case g.isNew():
		var values []string
		if isShort(*g.main) && g.main.After != "" {
			values = append(values, placeholder(g.main.After))
		}
		if made := g.made(); made != "" {
			values = append(values, made)
		}
		text = Clean(g.main.What)
		if len(values) > 0 {
			text += " (" + strings.Join(values, ", ") + ")"
		}
		return text
	case g.main != nil:
		text = Clean(g.main.What) + values(*g.main, " (", ")")
	default:
		text = attrs[0].What + " of " + Clean(g.path) + values(attrs[0], " (", ")")
		attrs = attrs[1:]
	}
	for _, c := range attrs {
		text += ", " + c.What + values(c, " ", "")
	}
	return text
}

// made is the attributes of what is new, as ls would show them.
func (g *group) made() string {
	var list []string
	for _, c := range g.attrs {
		value := Clean(c.After)
		if c.What != "mode" && !strings.Contains(value, ":") {
			value = c.What + " " + value
		}
		list = append(list, value)
	}
	return strings.Join(list, " ")
}

// values are the two values of a change between an opening and a closing text, nothing where they are not for one line.
func values(c Change, opening, closing string) string {
	before, after := placeholder(c.Before), placeholder(c.After)
	switch {
	case !isShort(c) || before+after == "":
		return ""
	case after == "":
		return opening + "was " + before + closing
	case before != "" && before != after:
		after = before + " → " + after
	}
	return opening + after + closing
}

// placeholder is a value to show; one that tells of a content in brackets, as (3 bytes), loses these.
func placeholder(value string) string {
	if inner, is := strings.CutPrefix(value, "("); is && strings.Count(value, "(") == 1 && strings.HasSuffix(inner, ")") {
		value = strings.TrimSuffix(inner, ")")
	}
	return Clean(value)
}

// isShort says that a change's values fit on its line, so that a diff would add nothing.
func isShort(c Change) bool {
	return !strings.Contains(c.Before+c.After, "\n") && width(c.Before)+width(c.After) <= 120
}

// summary names what changed on one line.
func summary(changes []Change) string {
	var parts []string
	for _, g := range groups(changes) {
		parts = append(parts, g.line())
	}
	return strings.Join(parts, ", ")
}

// diffs shows texts that differ, below a line with all that changes of the same thing.
func (t *Text) diffs(p *page, changes []Change) {
	for _, g := range groups(changes) {
		if g.main == nil || isShort(*g.main) {
			continue
		}
		p.indent([]string{t.paint(bold, g.line())})
		for _, line := range diffLines(g.main.Before, g.main.After) {
			t.diffLine(p, line)
		}
	}
}

func (t *Text) diffLine(p *page, l diffLine) {
	colour := map[byte]string{'-': red, '+': green, '@': cyan}[l.sign]
	switch {
	case colour == "":
		p.indent([]string{l.String()})
	case !t.opts.Color || l.words == nil || !slices.ContainsFunc(l.words, func(w part) bool { return w.differs }):
		p.verbatim(t.paint(colour, l.String()))
	default:
		text := t.paint(colour, l.head())
		for _, w := range l.words {
			if w.differs {
				text += t.paint(colour+";"+inverse, w.text)
			} else {
				text += t.paint(colour, w.text)
			}
		}
		p.verbatim(text + t.paint(colour, l.tail()))
	}
}

// ahead is what a check found that has to be read together: what would be interrupted, and on what the other verdicts hang.
type ahead struct {
	interruptions []interruption
	hanging       []*hanging
}

type interruption struct{ host, text string }

// interrupts notes the services that a task of a check would interrupt.
func (a *ahead) interrupts(e Event, r Result) {
	if r.Status != WouldChange && r.Status != Unknown {
		return
	}
	for _, c := range r.Changes {
		if c.Outage == "" {
			continue
		}
		by := "task"
		if e.Handler {
			by, e.Handler = "handler", false
		}
		text := Clean(c.What) + ": down " + Clean(c.Outage) + " (" + by + ` "` + taskName(e) + `"`
		if r.Status == Unknown {
			text += "; perhaps" + after(", because ", Clean(r.Because))
		}
		a.interruptions = append(a.interruptions, interruption{Clean(cmp.Or(e.On, e.Host)), text + ")"})
	}
}

// hanging is a task whose change has not been made, and on which verdicts hang.
type hanging struct {
	number  int
	task    string
	hosts   []string // of these verdicts
	told    map[string]bool
	results int
}

// hangsOn counts a verdict to the task on which it hangs, nil if there is none.
func (a *ahead) hangsOn(host string, r Result) *hanging {
	if r.HangsOn == "" {
		return nil
	}
	at := slices.IndexFunc(a.hanging, func(h *hanging) bool { return h.task == r.HangsOn })
	if at < 0 {
		at = len(a.hanging)
		a.hanging = append(a.hanging, &hanging{number: at + 1, task: r.HangsOn, told: map[string]bool{}})
	}
	h := a.hanging[at]
	h.results++
	if !slices.Contains(h.hosts, host) {
		h.hosts = append(h.hosts, host)
	}
	return h
}

// mention names the task in full the first time on a host, and by its number from then on.
func (h *hanging) mention(host string) string {
	mark := "#" + strconv.Itoa(h.number)
	if h.told[host] {
		return mark
	}
	h.told[host] = true
	return "hangs on " + mark + ` "` + Clean(h.task) + `"`
}

// tell lists it all.
func (a *ahead) tell(t *Text, p *page) {
	if len(a.interruptions) > 0 {
		name := 0
		for _, i := range a.interruptions {
			name = max(name, width(i.host))
		}
		p.add("")
		p.add(t.paint(bold, "services that would be interrupted"))
		for _, i := range slices.SortedStableFunc(slices.Values(a.interruptions), func(a, b interruption) int { return cmp.Compare(a.host, b.host) }) {
			p.add("  " + t.paint(bold, pad(i.host, name)) + "  " + i.text)
		}
	}
	if len(a.hanging) > 0 {
		p.add("")
		p.add(t.paint(bold, "provisional, until these have run"))
		for _, h := range a.hanging {
			slices.Sort(h.hosts)
			p.add("  #" + strconv.Itoa(h.number) + `  "` + Clean(h.task) + `": ` + count(h.results, "verdict") + " on " + hostList(h.hosts))
		}
	}
}
