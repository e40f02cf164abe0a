package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Load reads the book at path and every file that it imports. The error is Errors: every structural mistake, in the
// order of their places. isModule tells which task keys are modules; modules lists them, for hints.
func Load(fsys fs.FS, path string, isModule func(name string) bool, modules []string) (*Book, error) {
	l := &loader{fsys: fsys, isModule: isModule, modules: modules, files: map[string]*file{}, sources: map[string]*source{}, broken: map[Pos]bool{}}
	if u, ok := fsys.(under); ok {
		l.dir = u.dir
	}
	book := l.book(path)
	if len(l.errs) > 0 {
		for _, src := range l.sources {
			src.fill(l.errs)
		}
		return nil, l.errs.Sorted()
	}
	return book, nil
}

// Under is fsys for a Load that names files in messages as lying in dir.
func Under(dir string, fsys fs.FS) fs.FS { return under{fsys, dir} }

type under struct {
	fs.FS
	dir string
}

// Snippet is the line that p is on, "" if p is in none of the book's files.
func (b *Book) Snippet(p Pos) string { return b.sources[p.File].line(p.Line) }

// FillSnippets gives errors in the book's files the line they are about.
func (b *Book) FillSnippets(errs Errors) {
	for _, src := range b.sources {
		src.fill(errs)
	}
}

// loader collects a book and the mistakes in it.
type loader struct {
	fsys     fs.FS
	dir      string
	isModule func(string) bool
	modules  []string
	files    map[string]*file   // by path in fsys
	sources  map[string]*source // by name in messages
	imports  int
	broken   map[Pos]bool // places that YAML mistakes were told of
	errs     Errors
}

type file struct {
	value *Value
	err   *Error // the file cannot be opened
}

func (l *loader) errorf(pos Pos, hint, format string, args ...any) {
	if !l.broken[pos] {
		l.errs = append(l.errs, Errorf(pos, hint, format, args...))
	}
}

// read parses a file once; a file that is no YAML has a nil value and its mistakes are already told.
func (l *loader) read(name string) *file {
	if f := l.files[name]; f != nil {
		return f
	}
	shown := path.Join(l.dir, name)
	f := &file{}
	l.files[name] = f
	data, err := readFile(l.fsys, name)
	if err != nil {
		f.err = Errorf(Pos{File: shown}, "", "cannot read the file: %s", reason(err))
		return f
	}
	value, src, errs := parse(shown, data)
	l.sources[shown] = src
	l.errs = append(l.errs, errs...)
	for _, e := range errs {
		l.broken[e.Pos] = true
	}
	f.value = value
	return f
}

func readFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, errors.New("it is a directory")
	}
	return io.ReadAll(io.LimitReader(f, maxSize+1))
}

// reason is an error without the path that its message already begins with.
func reason(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "it does not exist"
	}
	return err.Error()
}

func (l *loader) book(name string) *Book {
	f := l.read(name)
	if f.err != nil {
		f.err.Hint = l.fileHint(name)
		l.errs = append(l.errs, f.err)
	}
	if f.value == nil {
		return nil
	}
	v := f.value
	b := &Book{Path: path.Join(l.dir, name), sources: l.sources}
	if v.Kind != Map {
		hint := "begin with `runbook: what it achieves`"
		if v.Kind == List {
			hint = "begin with `runbook: what it achieves` and put the plays under `plays:`"
		}
		l.errorf(v.Pos, hint, "cannot read a runbook from %s: it must be a mapping", v.Kind)
		return nil
	}
	l.fields(v, "runbook", fields{
		"runbook":     func(e Entry) { b.Title = l.text(e) },
		"description": func(e Entry) { b.Description = l.text(e) },
		"params":      func(e Entry) { b.Params = l.params(e) },
		"vars":        func(e Entry) { b.Vars = l.vars(e) },
		"plays": func(e Entry) {
			for _, item := range l.list(e) {
				b.Plays = append(b.Plays, l.play(item, trail{name}))
			}
		},
	}, bookHints)
	l.required(v, "runbook", "runbook", "plays")
	for _, e := range b.Vars {
		for _, p := range b.Params {
			if p.Name == e.Key {
				l.errorf(e.Pos, "keep the `default` of the param, or the variable", "cannot use %q as a variable: a param has that name", e.Key)
			}
		}
	}
	return b
}

func (l *loader) play(v *Value, from trail) *Play {
	p := &Play{Pos: v.Pos, Strategy: "linear"}
	if !l.fields(v, "play", fields{
		"name":        func(e Entry) { p.Name = l.text(e) },
		"hosts":       func(e Entry) { p.Hosts = l.hosts(e) },
		"strategy":    func(e Entry) { p.Strategy = l.oneOf(e, "linear", "free") },
		"serial":      func(e Entry) { p.Serial = l.serial(e) },
		"vars":        func(e Entry) { p.Vars = l.vars(e) },
		"become":      func(e Entry) { p.Become = l.boolean(e) },
		"become_user": func(e Entry) { p.BecomeUser = l.stringValue(e) },
		"environment": func(e Entry) { p.Environment = l.environment(e) },
		"tags":        func(e Entry) { p.Tags = l.tags(e) },
		"tasks":       func(e Entry) { p.Tasks = l.tasks(l.list(e), from) },
		"handlers":    func(e Entry) { p.Handlers = l.handlers(l.list(e), from) },
		"on_failure":  func(e Entry) { p.OnFailure = e.Value },
	}, playHints) {
		return p
	}
	l.required(v, "play", "hosts", "tasks")
	l.checkNotify(p)
	return p
}

// hosts reads a pattern, or a list of them.
func (l *loader) hosts(e Entry) *Value {
	items := []*Value{e.Value}
	if e.Value.Kind == List {
		items = e.Value.List
	}
	if len(items) == 0 {
		l.errorf(e.Value.Pos, "write `hosts: all` for every host", "cannot use an empty list of hosts")
	}
	for _, item := range items {
		l.stringValue(Entry{e.Key, e.Pos, item})
	}
	return e.Value
}

var percentage = regexp.MustCompile(`^([1-9][0-9]?|100)%$`)

// serial reads the size of a play's batches, or a list of them.
func (l *loader) serial(e Entry) (batches []Batch) {
	items := []*Value{e.Value}
	if e.Value.Kind == List {
		items = e.Value.List
	}
	if len(items) == 0 {
		l.errorf(e.Value.Pos, "leave it out for all hosts at once", "cannot use an empty list as %q", e.Key)
	}
	for _, item := range items {
		if item.Kind == Int && item.Int >= 1 {
			batches = append(batches, Batch{Hosts: int(item.Int)})
		} else if share := percentage.FindStringSubmatch(item.Str); item.Kind == String && share != nil {
			percent, _ := strconv.Atoi(share[1])
			batches = append(batches, Batch{Percent: percent})
		} else {
			l.errorf(item.Pos, `write a number of hosts, at least 1, a share such as "25%", or a list of these`, "cannot use this as %q", e.Key)
		}
	}
	return batches
}

// checkNotify finds handlers of the same name, and notifications that reach none.
func (l *loader) checkNotify(p *Play) {
	var names []string
	first := map[string]Pos{}
	for _, h := range p.Handlers {
		if h.Name != "" {
			if pos, dup := first[h.Name]; dup {
				l.errorf(h.NamePos, "give it another name, and the same `listen` if both should run",
					"cannot have two handlers called %q: the other is on line %d", h.Name, pos.Line)
			} else {
				first[h.Name] = h.NamePos
			}
			names = append(names, h.Name)
		}
		for _, topic := range h.Listen {
			names = append(names, topic.Str)
		}
	}
	var check func(tasks []*Task)
	check = func(tasks []*Task) {
		for _, t := range tasks {
			for _, n := range t.Notify {
				if n.Kind != String || n.HasHole() || slices.Contains(names, n.Str) {
					continue
				}
				hint := DidYouMean(n.Str, names)
				if hint == "" {
					hint = fmt.Sprintf("add a handler with `name: %s` to the play's `handlers`", n.Str)
				}
				l.errorf(n.Pos, hint, "cannot notify %q: the play has no such handler", n.Str)
			}
			check(t.Block)
			check(t.Rescue)
			check(t.Always)
		}
	}
	check(p.Tasks)
	check(p.Handlers)
}

// fields says what to do with each key of a mapping.
type fields map[string]func(Entry)

// fields hands the entries of v to their functions. It reports whether v is a mapping at all.
func (l *loader) fields(v *Value, what string, known fields, hints map[string]string) bool {
	if v.Kind != Map {
		l.errorf(v.Pos, "", "cannot use %s as a %s: it must be a mapping", v.Kind, what)
		return false
	}
	var names []string
	for name := range known {
		names = append(names, name)
	}
	for _, e := range v.Map {
		if set := known[e.Key]; set != nil {
			set(e)
			continue
		}
		hint := hints[e.Key]
		if hint == "" {
			hint = DidYouMean(e.Key, names)
		}
		if hint == "" {
			slices.Sort(names)
			hint = "a " + what + " has " + strings.Join(names, ", ")
		}
		l.errorf(e.Pos, hint, "cannot use %q in a %s: unknown key", e.Key, what)
	}
	return true
}

func (l *loader) required(v *Value, what string, keys ...string) {
	for _, key := range keys {
		if v.Get(key) == nil {
			l.errorf(v.Pos, "", "cannot use a %s without %q", what, key)
		}
	}
}

// text reads a string that is not empty.
func (l *loader) text(e Entry) string {
	switch v := e.Value; {
	case v.Kind == String && strings.TrimSpace(v.Str) != "":
		return v.Str
	case v.Kind == String || v.Kind == Null:
		l.errorf(v.Pos, "", "cannot leave %q empty", e.Key)
	case v.Kind == Map || v.Kind == List:
		l.errorf(v.Pos, "", "cannot use %s as %q: it must be a string", v.Kind, e.Key)
	default:
		l.errorf(v.Pos, fmt.Sprintf("put quotes around it: %q", v.Str), "cannot use %s as %q: it must be a string", v.Kind, e.Key)
	}
	return ""
}

// stringValue reads a string that may have holes.
func (l *loader) stringValue(e Entry) *Value {
	l.text(e)
	return e.Value
}

// literal reads a string without holes.
func (l *loader) literal(e Entry) string {
	text := l.text(e)
	if e.Value.HasHole() {
		l.errorf(e.Value.Pos, "write it out", "cannot use {{ }} in %q: it must be known when the runbook is loaded", e.Key)
		return ""
	}
	return text
}

func (l *loader) oneOf(e Entry, words ...string) string {
	text := l.literal(e)
	if text != "" && !slices.Contains(words, text) {
		hint := DidYouMean(text, words)
		if hint == "" {
			hint = "write " + strings.Join(words, ", ")
		}
		l.errorf(e.Value.Pos, hint, "cannot use %q as %q", text, e.Key)
	}
	return text
}

// name reads the name of a variable to be.
func (l *loader) name(e Entry) string {
	text := l.literal(e)
	if text != "" {
		l.checkName(text, e.Value.Pos)
	}
	return text
}

func (l *loader) checkName(name string, pos Pos) {
	if why := BadName(name); why != "" {
		l.errorf(pos, why, "cannot use %q as the name of a variable", name)
	}
}

// boolean reads true, false, or a string with a hole.
func (l *loader) boolean(e Entry) *Value {
	if e.Value.Kind != Bool && !e.Value.HasHole() {
		hint := yesNo(e.Value)
		if hint == "" {
			hint = `write true, false or "{{ an expression }}"`
		}
		l.errorf(e.Value.Pos, hint, "cannot use %s as %q: it must be a boolean", e.Value.Kind, e.Key)
	}
	return e.Value
}

// flag reads true or false.
func (l *loader) flag(e Entry) bool {
	if e.Value.Kind != Bool {
		hint := yesNo(e.Value)
		if hint == "" {
			hint = "write true or false"
		}
		l.errorf(e.Value.Pos, hint, "cannot use %s as %q: it must be a boolean", e.Value.Kind, e.Key)
	}
	return e.Value.Bool
}

// yesNo is the hint for a boolean that was written as YAML 1.1 had it.
func yesNo(v *Value) string {
	if v.Kind != String {
		return ""
	}
	switch strings.ToLower(v.Str) {
	case "yes", "on", "y", "true":
		return "write true"
	case "no", "off", "n", "false":
		return "write false"
	}
	return ""
}

// list reads a list that is not empty.
func (l *loader) list(e Entry) []*Value {
	switch {
	case e.Value.Kind == Null, e.Value.Kind == List && len(e.Value.List) == 0:
		l.errorf(e.Pos, "remove the key, or add an item", "cannot leave %q empty", e.Key)
	case e.Value.Kind != List:
		l.errorf(e.Value.Pos, "put `- ` before each item", "cannot use %s as %q: it must be a list", e.Value.Kind, e.Key)
	}
	return e.Value.List
}

// entries reads a mapping, which may be empty.
func (l *loader) entries(e Entry) []Entry {
	if e.Value.Kind != Map && e.Value.Kind != Null {
		l.errorf(e.Value.Pos, "write `name: value` lines", "cannot use %s as %q: it must be a mapping", e.Value.Kind, e.Key)
	}
	return e.Value.Map
}

func (l *loader) vars(e Entry) []Entry {
	entries := l.entries(e)
	for _, v := range entries {
		l.checkName(v.Key, v.Pos)
	}
	return entries
}

func (l *loader) environment(e Entry) []Entry {
	entries := l.entries(e)
	for _, v := range entries {
		if !identifier.MatchString(v.Key) {
			l.errorf(v.Pos, "a name is letters, digits and _, and starts with no digit", "cannot use %q as the name of an environment variable", v.Key)
		}
		if v.Value.Kind == Null || v.Value.Kind == List || v.Value.Kind == Map {
			l.errorf(v.Value.Pos, `write a string; "" is the empty one`, "cannot use %s as the value of %q", v.Value.Kind, v.Key)
		}
	}
	return entries
}

// tags reads a list of words, or words with commas.
func (l *loader) tags(e Entry) []string {
	var tags []string
	if e.Value.Kind == List {
		for _, item := range l.list(e) {
			tags = append(tags, l.literal(Entry{e.Key, e.Pos, item}))
		}
	} else {
		tags = strings.Split(l.literal(e), ",")
	}
	for i, tag := range tags {
		tags[i] = strings.TrimSpace(tag)
		if strings.ContainsAny(tags[i], " \t\n,") || tags[i] == "" && len(tags) > 1 {
			l.errorf(e.Value.Pos, "a tag is one word; commas part several", "cannot use %q as a tag", tags[i])
		}
	}
	return tags
}

// strings reads a string, or a list of strings.
func (l *loader) strings(e Entry) []*Value {
	items := []*Value{e.Value}
	if e.Value.Kind == List {
		items = l.list(e)
	}
	for _, item := range items {
		l.stringValue(Entry{e.Key, e.Pos, item})
	}
	return items
}

// conditions reads an expression, a boolean, or a list of them.
func (l *loader) conditions(e Entry) []*Value {
	items := []*Value{e.Value}
	if e.Value.Kind == List {
		items = l.list(e)
	}
	for _, item := range items {
		l.expression(e.Key, item)
		if item.Kind != String && item.Kind != Bool && item.Kind != Null {
			l.errorf(item.Pos, "write an expression that is true or false", "cannot use %s as the condition %q", item.Kind, e.Key)
		} else if hint := yesNo(item); hint != "" {
			l.errorf(item.Pos, hint, "cannot use %q as the condition %q", item.Str, e.Key)
		}
	}
	return items
}

// expression refuses an empty expression, and one in braces.
func (l *loader) expression(key string, v *Value) {
	text := strings.TrimSpace(v.Str)
	switch {
	case v.Kind == Null || v.Kind == String && text == "":
		l.errorf(v.Pos, "remove the key, or write an expression", "cannot leave %q empty", key)
	case v.Kind == String && strings.HasPrefix(text, "{{"):
		hint := "remove the braces"
		if inner, ok := strings.CutSuffix(text[2:], "}}"); ok && !strings.Contains(inner, "{{") {
			hint = "write it without braces: " + strings.TrimSpace(inner)
		}
		l.errorf(v.Pos, hint, "cannot use {{ }} in %q: it is an expression already", key)
	}
}
