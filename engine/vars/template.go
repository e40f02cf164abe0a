package vars

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// CompileTemplate compiles the text of a template file; name is what messages call it. The value is always text: a
// string, or a secret if one went into it. Errors are *Error.
func CompileTemplate(name, src string, s *Scope) (Tree, error) {
	if len(src) > maxTemplate {
		return nil, start.errorf("", "a template may have %d bytes, %s has %d", maxTemplate, name, len(src))
	}
	p := &templateParser{src: src, at: start}
	parts, end, err := p.parse(s, nil)
	if err != nil {
		return nil, err
	}
	if end != nil {
		return nil, end.at.errorf("", "{%% %s %%} closes nothing", end.word)
	}
	return newText(parts), nil
}

// templateParser reads a template from front to back.
type templateParser struct {
	src string // what is left
	at  place  // where it starts
	// depth counts the open for and if tags.
	depth int
}

// tag is a {% … %} with its first word and the rest.
type tag struct {
	at         place // of {%
	word, rest string
	restAt     place
}

func (p *templateParser) advance(n int) string {
	taken := p.src[:n]
	p.at, p.src = p.at.after(taken), p.src[n:]
	return taken
}

// parse reads pieces up to the end or a tag that opens nothing, which it returns.
func (p *templateParser) parse(s *Scope, open *tag) ([]part, *tag, error) {
	if p.depth++; p.depth > maxBrackets {
		return nil, nil, p.at.errorf("", "the template is nested too deeply")
	}
	defer func() { p.depth-- }()
	var parts []part
	for p.src != "" {
		i := nextMark(p.src)
		if i < 0 {
			parts = append(parts, literal(p.advance(len(p.src))))
			break
		}
		before := p.src[:i]
		if p.src[i+1] == '{' {
			parts = append(parts, literal(p.advance(i)))
			hole, length, err := compileHole(p.src, s, p.at)
			if err != nil {
				return nil, nil, err
			}
			p.advance(length)
			parts = append(parts, hole)
			continue
		}
		comment := p.src[i+1] == '#'
		at, mark := p.at.after(before), p.src[i:i+2]
		end := -1
		if comment {
			if end = strings.Index(p.src[i+2:], "#}"); end >= 0 {
				end += i + 2
			}
		} else {
			end = closing(p.src, i+2, "%}")
		}
		if end < 0 {
			return nil, nil, at.errorf(fmt.Sprintf(`write {{ "%s" }} for the characters themselves`, mark), "%s is not closed", mark)
		}
		own, from, to := ownLine(p.src, i, end+2, p.at.column == 1 || len(parts) == 0)
		if !own && !comment {
			return nil, nil, at.errorf(`within a line, write {{ condition ? "a" : "b" }}`, "a {%% … %%} tag must be on a line of its own")
		}
		content := p.src[i+2 : end]
		if text := p.src[:from]; text != "" {
			parts = append(parts, literal(text))
		}
		contentAt := at.after(mark)
		p.advance(to)
		if comment {
			continue
		}
		t := newTag(content, at, contentAt)
		switch t.word {
		case "for":
			f, err := p.parseFor(t, s)
			if err != nil {
				return nil, nil, err
			}
			parts = append(parts, f)
		case "if":
			c, err := p.parseIf(t, s)
			if err != nil {
				return nil, nil, err
			}
			parts = append(parts, c)
		case "elif", "else", "endif", "endfor":
			if t.word != "elif" && t.rest != "" {
				return nil, nil, t.restAt.errorf("", "unexpected %q after %s", t.rest, t.word)
			}
			return parts, t, nil
		default:
			return nil, nil, t.at.errorf("there is for, endfor, if, elif, else and endif", "unknown tag %q", t.word)
		}
	}
	if open != nil {
		return nil, nil, open.at.errorf("", "{%% %s %%} is not closed with {%% end%s %%}", open.word, open.word)
	}
	return parts, nil, nil
}

// nextMark finds the next {{, {% or {#, -1 if there is none.
func nextMark(src string) int {
	for i := 0; i+1 < len(src); i++ {
		if src[i] == '{' && strings.IndexByte("{%#", src[i+1]) >= 0 {
			return i
		}
	}
	return -1
}

// ownLine widens a tag at [from, to) to its line, with its end, if nothing else is on it; fresh says that src starts
// at the beginning of a line.
func ownLine(src string, from, to int, fresh bool) (own bool, lineFrom, lineTo int) {
	lineFrom = strings.LastIndexByte(src[:from], '\n') + 1
	if lineFrom == 0 && !fresh || strings.Trim(src[lineFrom:from], " \t") != "" {
		return false, from, to
	}
	rest, _, ended := strings.Cut(src[to:], "\n")
	if strings.Trim(rest, " \t\r") != "" {
		return false, from, to
	}
	lineTo = to + len(rest)
	if ended {
		lineTo++
	}
	return true, lineFrom, lineTo
}

func newTag(content string, at, contentAt place) *tag {
	trimmed := strings.TrimLeft(content, " \t\r\n")
	contentAt = contentAt.after(content[:len(content)-len(trimmed)])
	end := strings.IndexAny(trimmed, " \t\r\n(")
	if end < 0 {
		end = len(trimmed)
	}
	word, rest := trimmed[:end], trimmed[end:]
	blank := len(rest) - len(strings.TrimLeft(rest, " \t\r\n"))
	return &tag{at: at, word: word, rest: strings.TrimSpace(rest), restAt: contentAt.after(word + rest[:blank])}
}

// forPart repeats its body for every item of a list or entry of a map.
type forPart struct {
	keyName, name string // keyName is "" over a list
	over          *Expr
	body          []part
}

var forSyntax = regexp.MustCompile(`^([A-Za-z_]\w*)(?:\s*,\s*([A-Za-z_]\w*))?\s+in\s+`)

var loopType = Object(map[string]Type{"index": Int, "first": Bool, "last": Bool})

func (p *templateParser) parseFor(t *tag, s *Scope) (part, error) {
	m := forSyntax.FindStringSubmatch(t.rest)
	if m == nil {
		return nil, t.restAt.errorf("write {% for item in list %} or {% for key, value in map %}", "cannot read this for")
	}
	for _, name := range m[1:] {
		if slices.Contains([]string{"in", "not", "and", "or", "true", "false", "nil", "let", "if", "else", "matches", "contains", "startsWith", "endsWith", "loop"}, name) {
			return nil, t.restAt.errorf("", "%q cannot name a variable", name)
		}
	}
	over, err := compileAt(t.rest[len(m[0]):], s, t.restAt.after(m[0]))
	if err != nil {
		return nil, err
	}
	f := &forPart{name: m[1], over: over}
	names := map[string]Type{"loop": loopType}
	want := ListKind
	if m[2] != "" {
		f.keyName, f.name = m[1], m[2]
		names[f.keyName], want = String, MapKind
	}
	if k := over.typ.Kind; k != want && k != AnyKind {
		return nil, over.errorf(over.root, f.hint(), "%s is a %s, and this for needs a %s", over.Source(), over.typ, Type{Kind: want})
	}
	names[f.name] = elemOf(over.typ)
	body, end, err := p.parse(s.WithAll(names), t)
	if err != nil {
		return nil, err
	}
	if end.word != "endfor" {
		return nil, end.at.errorf("close the for with {% endfor %} first", "{%% %s %%} within {%% for %%}", end.word)
	}
	f.body = body
	return f, nil
}

func (f *forPart) hint() string {
	if f.keyName == "" {
		return "over a map, write {% for key, value in map %}"
	}
	return "over a list, write {% for item in list %}; loop.index counts"
}

func (f *forPart) write(r *run, bound *locals, out *output) error {
	v, err := f.over.eval(r, bound)
	if err != nil {
		return err
	}
	items, ok := toList(v)
	var keys []string
	if f.keyName != "" {
		if keys, ok = keysOfAny(v); ok {
			slices.Sort(keys)
			items = make([]any, len(keys))
			for i, key := range keys {
				if items[i], err = entry(r, v, key); err != nil {
					return err
				}
			}
		}
	}
	if !ok {
		return f.over.errorf(f.over.root, f.hint(), "%s is %s, which this for cannot go through", f.over.Source(), a(v))
	}
	for i, item := range items {
		if err := r.work(1); err != nil {
			return f.over.errorf(f.over.root, "", "%v", err)
		}
		inner := &locals{f.name, item, &locals{"loop", map[string]any{"index": i + 1, "first": i == 0, "last": i == len(items)-1}, bound}}
		if keys != nil {
			inner = &locals{f.keyName, keys[i], inner}
		}
		for _, p := range f.body {
			if err := p.write(r, inner, out); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *forPart) exprs(bound *locals, visit func(*Expr, *locals)) {
	visit(f.over, bound)
	bound = &locals{name: f.name, up: &locals{name: "loop", up: bound}}
	if f.keyName != "" {
		bound = &locals{name: f.keyName, up: bound}
	}
	for _, p := range f.body {
		p.exprs(bound, visit)
	}
}

// ifPart is the first of its branches whose condition holds.
type ifPart struct {
	branches []branch
}

type branch struct {
	cond *Expr // nil: else
	body []part
}

func (p *templateParser) parseIf(t *tag, s *Scope) (part, error) {
	c := &ifPart{}
	for open := t; ; {
		var b branch
		if open.word != "else" {
			if open.rest == "" {
				return nil, open.at.errorf("", "{%% %s %%} needs a condition", open.word)
			}
			var err error
			if b.cond, err = compileCondAt(open.rest, s, open.restAt); err != nil {
				return nil, err
			}
		}
		body, end, err := p.parse(s, t)
		if err != nil {
			return nil, err
		}
		b.body = body
		c.branches = append(c.branches, b)
		switch {
		case end.word == "endif":
			return c, nil
		case end.word == "endfor":
			return nil, end.at.errorf("close the if with {% endif %} first", "{%% endfor %%} within {%% if %%}")
		case b.cond == nil:
			return nil, end.at.errorf("", "{%% %s %%} after {%% else %%}", end.word)
		}
		open = end
	}
}

func (c *ifPart) write(r *run, bound *locals, out *output) error {
	for _, b := range c.branches {
		if b.cond != nil {
			v, err := b.cond.eval(r, bound)
			if err != nil {
				return err
			}
			if v != true {
				continue
			}
		}
		for _, p := range b.body {
			if err := p.write(r, bound, out); err != nil {
				return err
			}
		}
		break
	}
	return nil
}

func (c *ifPart) exprs(bound *locals, visit func(*Expr, *locals)) {
	for _, b := range c.branches {
		if b.cond != nil {
			visit(b.cond, bound)
		}
		for _, p := range b.body {
			p.exprs(bound, visit)
		}
	}
}
