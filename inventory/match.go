package inventory

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"runbook/engine/spec"
)

// Match returns the hosts that a pattern names, in the order of the inventory. A pattern is terms with `:` or `,`
// between them. A term is a host, a group, all, a glob over both (voms*), a regular expression over both (~voms[0-9]+),
// or some hosts of a group (voms[0], voms[-1], voms[1:], voms[0:2] with its end included). Terms are united; after
// that &term keeps only what it names, and !term removes it. A term that names nothing is an error, and so is an empty
// result: it is a *spec.Error without a place.
func (inv *Inventory) Match(pattern string) ([]*Host, error) {
	terms, err := split(pattern)
	if err != nil {
		return nil, err
	}
	var united, kept map[string]bool
	removed := map[string]bool{}
	for _, term := range terms {
		sign, body := byte(0), term
		if term[0] == '!' || term[0] == '&' {
			sign, body = term[0], strings.TrimSpace(term[1:])
		}
		names, err := inv.term(body)
		if err != nil {
			return nil, err
		}
		if len(names) == 0 && sign != '!' {
			return nil, mistake("", "cannot find a host for %q: nothing matches", body)
		}
		set := map[string]bool{}
		for _, name := range names {
			set[name] = true
		}
		switch {
		case sign == '!':
			maps.Copy(removed, set)
		case sign == 0 && united == nil:
			united = set
		case sign == 0:
			maps.Copy(united, set)
		case kept == nil:
			kept = set
		default:
			maps.DeleteFunc(kept, func(name string, _ bool) bool { return !set[name] })
		}
	}
	var hosts []*Host
	for _, h := range inv.hosts {
		if (united == nil || united[h.Name]) && (kept == nil || kept[h.Name]) && !removed[h.Name] {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return nil, mistake("", "cannot find a host for %q: nothing is left", pattern)
	}
	return hosts, nil
}

func mistake(hint, format string, args ...any) error {
	return spec.Errorf(spec.Pos{}, hint, format, args...)
}

// split parts a pattern at colons and commas that are in no bracket.
func split(pattern string) ([]string, error) {
	var terms []string
	depth, start := 0, 0
	add := func(end int) {
		if term := strings.TrimSpace(pattern[start:end]); term != "" {
			terms = append(terms, term)
		}
		start = end + 1
	}
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		case (c == ':' || c == ',') && depth <= 0:
			add(i)
		}
	}
	add(len(pattern))
	if len(terms) == 0 {
		return nil, mistake("write `all` for every host", "cannot use an empty pattern of hosts")
	}
	return terms, nil
}

var subscript = regexp.MustCompile(`^(.+)\[(-?[0-9]+|[0-9]*:[0-9]*)\]$`)

// term lists the names of the hosts that one term stands for.
func (inv *Inventory) term(term string) ([]string, error) {
	switch {
	case term == "":
		return nil, mistake("put a name behind ! or &", "cannot use an empty pattern of hosts")
	case term[0] == '~':
		re, err := regexp.Compile(term[1:])
		if err != nil {
			return nil, mistake("", "cannot use %q as a pattern of hosts: %s", term, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
		return inv.named(re.MatchString), nil
	}
	if m := subscript.FindStringSubmatch(term); m != nil {
		names, err := inv.term(m[1])
		if err != nil {
			return nil, err
		}
		return slice(term, names, m[2])
	}
	if strings.ContainsAny(term, "*?[") {
		if _, err := path.Match(term, ""); err != nil {
			return nil, mistake("", "cannot use %q as a pattern of hosts: a bracket is not closed", term)
		}
		return inv.named(func(name string) bool { ok, _ := path.Match(term, name); return ok }), nil
	}
	if hosts, ok := inv.groups[term]; ok {
		return hosts, nil
	}
	if inv.byName[term] != nil {
		return []string{term}, nil
	}
	hint := inv.byShortName(term)
	if hint == "" {
		hint = spec.DidYouMean(term, slices.AppendSeq(slices.Collect(maps.Keys(inv.groups)), maps.Keys(inv.byName)))
	}
	return nil, mistake(hint, "cannot find %q in the inventory: it is neither a host nor a group", term)
}

// byShortName is a hint for a host that was named without its domain.
func (inv *Inventory) byShortName(term string) string {
	for _, h := range inv.hosts {
		if strings.HasPrefix(h.Name, term+".") {
			return fmt.Sprintf("did you mean %q?", h.Name)
		}
	}
	return ""
}

// named lists hosts whose own name or a group of theirs is wanted.
func (inv *Inventory) named(wanted func(string) bool) []string {
	var names []string
	for _, h := range inv.hosts {
		// The first group is all: a* must not mean every host.
		if wanted(h.Name) || slices.ContainsFunc(h.Groups[1:], wanted) {
			names = append(names, h.Name)
		}
	}
	return names
}

// slice takes the hosts at an index, or from one to another.
func slice(term string, names []string, index string) ([]string, error) {
	outside := mistake(fmt.Sprintf("indexes go from 0 to %d", len(names)-1), "cannot find a host for %q: there are %d", term, len(names))
	if len(names) == 0 {
		return nil, mistake("", "cannot find a host for %q: the group is empty", term)
	}
	from, to, isRange := strings.Cut(index, ":")
	if !isRange {
		n, err := strconv.Atoi(index)
		if n < 0 {
			n += len(names)
		}
		if err != nil || n < 0 || n >= len(names) {
			return nil, outside
		}
		return names[n : n+1], nil
	}
	first, last := 0, len(names)-1
	var err error
	if from != "" {
		if first, err = strconv.Atoi(from); err != nil {
			return nil, outside
		}
	}
	if to != "" {
		if last, err = strconv.Atoi(to); err != nil {
			return nil, outside
		}
	}
	last = min(last, len(names)-1)
	if first > last {
		return nil, outside
	}
	return names[first : last+1], nil
}
