package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"slices"
	"sort"
	"strings"

	"runbook/engine/module"
	"runbook/engine/spec"
	"runbook/engine/vars"
	"runbook/inventory"
)

// Names that the engine sets and nobody else may.
const (
	nameHost       = "inventory_hostname"
	nameGroupNames = "group_names"
	nameGroups     = "groups"
	nameHosts      = "hosts"
	nameFacts      = "facts"
	namePlayHosts  = "play_hosts"
	nameResult     = "result"  // of the task itself, in until, changed_when and failed_when
	nameFailure    = "failure" // in rescue: what failed
)

// builtins are the types of the names that are known everywhere.
func builtins() map[string]vars.Type {
	facts := map[string]vars.Type{}
	for name, kind := range module.FactTypes() {
		facts[name] = typeOf(kind)
	}
	return map[string]vars.Type{
		nameHost:       vars.String,
		nameGroupNames: vars.ListOf(vars.String),
		nameGroups:     vars.MapOf(vars.ListOf(vars.String)),
		nameHosts:      vars.Any,
		nameFacts:      vars.Object(facts),
		namePlayHosts:  vars.ListOf(vars.String),
	}
}

// typeOf turns a documented type word into a type for the checker.
func typeOf(word string) vars.Type {
	switch word {
	case "string", "path", "hostname":
		return vars.String
	case "int", "port":
		return vars.Int
	case "float", "duration":
		return vars.Float
	case "bool":
		return vars.Bool
	case "list":
		return vars.ListOf(vars.Any)
	case "map":
		return vars.MapOf(vars.Any)
	}
	return vars.Any
}

// compiler compiles one book.
type compiler struct {
	job   *Job
	src   Source
	book  *spec.Book
	errs  *[]*spec.Error
	scope *vars.Scope          // names known in every play
	regs  map[string]vars.Type // what the tasks so far register
	later map[string]bool      // what any task of the book registers, for hints
}

// compile loads and compiles every book of job and checks them for every host that they are for.
func compile(job *Job) (*program, spec.Errors) {
	var errs spec.Errors
	p := &program{}
	names := slices.Sorted(maps.Keys(job.Modules))
	var loaded []*spec.Book
	for _, src := range job.Books {
		b, err := spec.Load(src.FS, src.Path, func(n string) bool { return job.Modules[n] != nil }, names)
		if err != nil {
			errs = append(errs, asErrors(err)...)
		}
		loaded = append(loaded, b)
	}
	asked := len(loaded)
	if i := slices.IndexFunc(job.Books, func(src Source) bool { return src.Owed }); i >= 0 {
		asked = i
	}
	errs = append(errs, selectSettings(job, loaded[:asked])...)
	if len(errs) > 0 {
		return nil, errs
	}
	for i, b := range loaded {
		var own []*spec.Error
		c := &compiler{job: job, src: job.Books[i], book: b, errs: &own, regs: map[string]vars.Type{}, later: map[string]bool{}}
		if c.src.Owed {
			if i == asked && asked > 0 && !p.mayChange(job) {
				break // who only looks does not expect that something is restarted
			}
			c.job = c.src.as(job, b)
		}
		for _, ps := range b.Plays {
			registered(ps.Tasks, c.later)
		}
		p.books = append(p.books, c.compileBook())
		errs = append(errs, own...)
	}
	for i, e := range errs {
		if e.Snippet == "" && e.Pos.Line > 0 {
			errs[i].Snippet = snippet(job, loaded, e.Pos)
		}
	}
	errs = append(errs, unknownTags(job, p.books[:min(asked, len(p.books))])...)
	return p, sortErrors(errs)
}

// registered collects the names that tasks register.
func registered(list []*spec.Task, into map[string]bool) {
	for _, t := range list {
		if t.Register != "" {
			into[t.Register] = true
		}
		registered(t.Block, into)
		registered(t.Rescue, into)
		registered(t.Always, into)
	}
}

func asErrors(err error) spec.Errors {
	var many spec.Errors
	if errors.As(err, &many) {
		return many
	}
	var one *spec.Error
	if errors.As(err, &one) {
		return spec.Errors{one}
	}
	return spec.Errors{{Msg: err.Error()}}
}

// snippet finds the line of e's file in the books' file systems. Lines of the files of -e are not shown: they hold secrets.
func snippet(job *Job, books []*spec.Book, pos spec.Pos) string {
	given := slices.Clone(job.Settings)
	for _, src := range job.Books {
		given = append(given, src.Settings...)
	}
	if slices.ContainsFunc(given, func(s Setting) bool { return s.Value.Pos.File == pos.File }) {
		return ""
	}
	for i := range books {
		data, err := fs.ReadFile(job.Books[i].FS, pos.File)
		if err != nil {
			continue
		}
		lines := strings.Split(string(data), "\n")
		if pos.Line >= 1 && pos.Line <= len(lines) {
			return strings.TrimSuffix(lines[pos.Line-1], "\r")
		}
	}
	return ""
}

// as is the job as the book of a source that nobody has asked for sees it.
func (src Source) as(job *Job, b *spec.Book) *Job {
	own := *job
	known := settable(job.Inventory, b)
	own.Settings = slices.DeleteFunc(slices.Clone(src.Settings), func(s Setting) bool { return !known[s.Name] }) // the run had other books too
	return &own
}

// settable are the names that -e may give: those of books and of the inventory.
func settable(inv *inventory.Inventory, books ...*spec.Book) map[string]bool {
	known := map[string]bool{}
	for _, b := range books {
		for _, p := range b.Params {
			known[p.Name] = true
		}
		for _, e := range b.Vars {
			known[e.Key] = true
		}
	}
	for _, h := range inv.Hosts() {
		for _, v := range h.Vars {
			known[v.Name] = true
		}
	}
	return known
}

// selectSettings refuses names of -e that no book and no inventory knows, and leaves out what its files hold for other books.
func selectSettings(job *Job, books []*spec.Book) spec.Errors {
	if slices.Contains(books, nil) {
		return nil
	}
	known := settable(job.Inventory, books...)
	var errs spec.Errors
	var settings []Setting
	for _, s := range job.Settings {
		if known[s.Name] {
			settings = append(settings, s)
			continue
		}
		names := slices.Collect(maps.Keys(known))
		if !s.Visible {
			if slices.Contains(job.Elsewhere, s.Name) {
				continue
			}
			names = append(names, job.Elsewhere...)
		}
		pos := s.Value.Pos
		if pos.File == "" {
			pos.File = s.Origin
		}
		errs = append(errs, spec.Errorf(pos, spec.DidYouMean(s.Name, names),
			"no runbook of this call and no inventory group or host knows the variable %q", s.Name))
	}
	job.Settings = settings
	return errs
}

// unknownTags refuses tags of the command line that no task carries: a misspelt one would silently run nothing.
func unknownTags(job *Job, books []*book) spec.Errors {
	known := map[string]bool{}
	var collect func(list []*task)
	collect = func(list []*task) {
		for _, t := range list {
			maps.Copy(known, t.tags)
			collect(t.block)
			collect(t.rescue)
			collect(t.always)
		}
	}
	for _, b := range books {
		for _, pl := range b.plays {
			collect(pl.tasks)
			collect(pl.handlers)
		}
	}
	var errs spec.Errors
	for _, given := range []struct {
		option string
		tags   []string
	}{{"--tags", job.Tags}, {"--skip-tags", job.SkipTags}} {
		for _, tag := range given.tags {
			if !known[tag] && tag != "always" && tag != "never" {
				errs = append(errs, spec.Errorf(spec.Pos{File: given.option}, spec.DidYouMean(tag, slices.Collect(maps.Keys(known))), "no task has the tag %q", tag))
			}
		}
	}
	return errs
}

func (c *compiler) errorf(pos spec.Pos, hint, format string, args ...any) {
	*c.errs = append(*c.errs, spec.Errorf(pos, hint, format, args...))
}

// mistake adds an error that an expression's compiler found inside v.
func (c *compiler) mistake(v *spec.Value, err error) {
	var e *vars.Error
	if errors.As(err, &e) {
		hint := e.Hint
		for name := range c.later {
			if e.Msg == fmt.Sprintf("unknown name %q", name) {
				hint = "the task that registers it comes later"
			}
		}
		c.errorf(v.At(e.Line, e.Column), hint, "%s", e.Msg)
		return
	}
	c.errorf(v.Pos, "", "%v", err)
}

func (c *compiler) compileBook() *book {
	b := &book{spec: c.book, owed: c.src.Owed, stacks: map[string]*vars.Stack{}}
	types := builtins()
	for _, h := range c.job.Inventory.Hosts() {
		for _, v := range h.Vars {
			types[v.Name] = vars.Any
		}
	}
	for _, s := range c.job.Settings {
		types[s.Name] = vars.Any
	}
	for _, e := range c.book.Vars {
		types[e.Key] = vars.Any
	}
	for _, p := range c.book.Params {
		types[p.Name] = paramType(p)
	}
	c.scope = vars.NewScope().WithAll(types)
	// A variable of the book that is built from typed names is typed too.
	for _, e := range c.book.Vars {
		if tree := c.quietTree(e.Value); tree != nil && !c.isSetElsewhere(e.Key) {
			c.scope = c.scope.With(e.Key, tree.Type())
		}
	}

	defaults := map[string]vars.Tree{}
	origin := map[string]spec.Pos{}
	for _, e := range c.book.Vars {
		defaults[e.Key], origin[e.Key] = c.tree(e.Value, c.scope), e.Pos
	}
	for _, p := range c.book.Params {
		origin[p.Name] = p.Pos
		switch {
		case p.Default != nil:
			defaults[p.Name] = c.tree(p.Default, c.scope)
		case !p.Required:
			defaults[p.Name] = vars.Const(nil)
		}
	}
	if len(*c.errs) > 0 {
		return b
	}

	build := func(h *inventory.Host) (*vars.Stack, map[string]vars.Tree) {
		return c.stack(h, defaults, origin)
	}
	global, _ := build(nil)
	hostDefs := map[string]map[string]vars.Tree{}
	for i, ps := range c.book.Plays {
		hosts := c.playHosts(ps, global)
		for _, h := range hosts {
			if b.stacks[h.Name] == nil {
				b.stacks[h.Name], hostDefs[h.Name] = build(h)
			}
		}
		b.plays = append(b.plays, c.compilePlay(i+1, ps, hosts))
	}
	// Other hosts' variables are readable too: every host of the inventory has its variables.
	for _, h := range c.job.Inventory.Hosts() {
		if b.stacks[h.Name] == nil {
			b.stacks[h.Name], _ = build(h)
		}
	}
	c.checkConnections(b)
	if len(*c.errs) > 0 {
		return b
	}
	c.bindParams(b)
	if len(*c.errs) == 0 {
		c.checkHosts(b, hostDefs)
	}
	return b
}

// checkConnections reads the become passwords of the hosts of all plays, so that a missing one is found now.
func (c *compiler) checkConnections(b *book) {
	told := map[*inventory.Host]bool{}
	for _, p := range b.plays {
		for _, h := range p.hosts {
			if told[h] {
				continue
			}
			told[h] = true
			password, err := h.Connection.BecomePassword()
			if err != nil {
				*c.errs = append(*c.errs, asErrors(err)...)
			}
			c.job.Masker.Add(password)
		}
	}
}

// isSetElsewhere reports whether the inventory or the command line may override a variable of the book with another type.
func (c *compiler) isSetElsewhere(name string) bool {
	for _, h := range c.job.Inventory.Hosts() {
		for _, v := range h.Vars {
			if v.Name == name {
				return true
			}
		}
	}
	return slices.ContainsFunc(c.job.Settings, func(s Setting) bool { return s.Name == name })
}

func paramType(p *spec.Param) vars.Type {
	if p.Secret {
		return vars.Secret
	}
	if p.Default == nil && !p.Required {
		return vars.Any // may have no value
	}
	return typeOf(p.Type)
}

// stack builds the variables of host (nil: of no host in particular) and returns them with the trees by name.
func (c *compiler) stack(host *inventory.Host, defaults map[string]vars.Tree, origin map[string]spec.Pos) (*vars.Stack, map[string]vars.Tree) {
	s := vars.NewStack()
	defs := map[string]vars.Tree{}
	set := func(layer vars.Layer, name string, t vars.Tree, from string) {
		if t != nil {
			s.Set(layer, name, t, from)
			defs[name] = t
		}
	}
	for name, t := range defaults {
		set(vars.Defaults, name, t, origin[name].String())
	}
	for _, v := range c.inventoryVars(host) {
		layer := vars.Group
		if v.Group == "" {
			layer = vars.HostVars
		}
		set(layer, v.Name, c.tree(v.Value, c.scope), v.Value.Pos.String())
	}
	for _, e := range c.job.Settings {
		set(vars.CommandLine, e.Name, c.tree(e.Value, c.scope), e.Origin)
	}
	if host != nil {
		groups := map[string]any{}
		for name, members := range c.job.Inventory.Groups() {
			groups[name] = anyList(members)
		}
		set(vars.Builtin, nameHost, vars.Const(host.Name), "the engine")
		set(vars.Builtin, nameGroupNames, vars.Const(anyList(host.Groups)), "the engine")
		set(vars.Builtin, nameGroups, vars.Const(groups), "the engine")
	}
	return s, defs
}

// inventoryVars are the variables of a host, weakest first; for nil those that all hosts share.
func (c *compiler) inventoryVars(host *inventory.Host) []inventory.Var {
	if host != nil {
		return host.Vars
	}
	var shared []inventory.Var
	if hosts := c.job.Inventory.Hosts(); len(hosts) > 0 {
		for _, v := range hosts[0].Vars {
			if v.Group == "all" {
				shared = append(shared, v)
			}
		}
	}
	return shared
}

func anyList(names []string) []any {
	list := make([]any, len(names))
	for i, n := range names {
		list[i] = n
	}
	return list
}

// playHosts finds the hosts of a play: what its pattern matches, within the limit.
func (c *compiler) playHosts(ps *spec.Play, global *vars.Stack) []*inventory.Host {
	tree := c.tree(ps.Hosts, c.scope)
	if tree == nil {
		return nil
	}
	value, err := tree.Eval(global)
	if err != nil {
		c.errorf(ps.Hosts.Pos, "the hosts of a play may name parameters, variables of the runbook and of the group `all`", "cannot tell the hosts of the play: %v", err)
		return nil
	}
	patterns, err := stringList(value)
	if err != nil {
		c.errorf(ps.Hosts.Pos, "", "cannot tell the hosts of the play: %v", err)
		return nil
	}
	chosen, err := c.job.Inventory.Match(strings.Join(patterns, ":"))
	if err != nil {
		c.patternError(ps.Hosts.Pos, err)
		return nil
	}
	if c.job.Limit == "" {
		return chosen
	}
	limit, err := c.job.Inventory.Match(c.job.Limit)
	if err != nil {
		c.patternError(spec.Pos{File: "--limit"}, err)
		return nil
	}
	return slices.DeleteFunc(slices.Clone(chosen), func(h *inventory.Host) bool { return !slices.Contains(limit, h) })
}

// patternError tells what the inventory says of a pattern, at the pattern's place.
func (c *compiler) patternError(pos spec.Pos, err error) {
	var e *spec.Error
	if errors.As(err, &e) {
		c.errorf(pos, e.Hint, "%s", e.Msg)
		return
	}
	c.errorf(pos, "", "%v", err)
}

// stringList turns a string or a list of strings into a list.
func stringList(value any) ([]string, error) {
	switch v := value.(type) {
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, len(v))
		for i, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("item %d is %T, not a string", i, item)
			}
			list[i] = s
		}
		return list, nil
	}
	return nil, fmt.Errorf("%v is neither a string nor a list of strings", value)
}

// tree compiles a value: strings become texts with holes. It returns nil after a mistake.
func (c *compiler) tree(v *spec.Value, scope *vars.Scope) vars.Tree {
	switch v.Kind {
	case spec.String:
		t, err := vars.CompileText(v.Str, scope)
		if err != nil {
			c.mistake(v, err)
			return nil
		}
		return t
	case spec.List:
		items := make([]vars.Tree, len(v.List))
		for i, item := range v.List {
			if items[i] = c.tree(item, scope); items[i] == nil {
				items[i] = vars.Const(nil)
			}
		}
		return vars.ListTree(items)
	case spec.Map:
		keys, vals := make([]string, len(v.Map)), make([]vars.Tree, len(v.Map))
		for i, e := range v.Map {
			if keys[i] = e.Key; strings.Contains(e.Key, "{{") {
				c.errorf(e.Pos, `make the whole mapping one expression: "{{ {(name): value} }}"`, "a key cannot hold an expression")
			}
			if vals[i] = c.tree(e.Value, scope); vals[i] == nil {
				vals[i] = vars.Const(nil)
			}
		}
		return vars.MapTree(keys, vals)
	}
	return vars.Const(v.Any())
}

// quietTree compiles a value whose mistakes are reported elsewhere.
func (c *compiler) quietTree(v *spec.Value) vars.Tree {
	var ignored []*spec.Error
	quiet := *c
	quiet.errs = &ignored
	if t := quiet.tree(v, c.scope); len(ignored) == 0 {
		return t
	}
	return nil
}

// optional compiles a value that may be absent.
func (c *compiler) optional(v *spec.Value, scope *vars.Scope) vars.Tree {
	if v == nil {
		return nil
	}
	return c.tree(v, scope)
}

// loop compiles what a task loops over: a bare expression, or a list or map whose texts may have holes.
func (c *compiler) loop(v *spec.Value, scope *vars.Scope) vars.Tree {
	if v == nil || v.Kind != spec.String {
		return c.optional(v, scope)
	}
	e, err := vars.CompileExpr(v.Str, scope)
	if err != nil {
		c.mistake(v, err)
		return nil
	}
	return e
}

// conds compiles bare conditions.
func (c *compiler) conds(list []*spec.Value, scope *vars.Scope) []cond {
	var out []cond
	for _, v := range list {
		if one, ok := c.cond(v, scope); ok {
			out = append(out, one)
		}
	}
	return out
}

func (c *compiler) cond(v *spec.Value, scope *vars.Scope) (cond, bool) {
	source := v.Str
	if v.Kind == spec.Bool {
		source = fmt.Sprint(v.Bool)
	} else if v.Kind != spec.String {
		c.errorf(v.Pos, "write an expression such as x == 1", "a condition is an expression, not %s; quote it if it holds `: ` or `#`", v.Kind)
		return cond{}, false
	}
	e, err := vars.CompileCond(source, scope)
	if err != nil {
		c.mistake(v, err)
		return cond{}, false
	}
	return cond{expr: e, pos: v.Pos}, true
}

// inherited is what a play or a block says of the tasks inside it.
type inherited struct {
	when               []cond
	vars               []map[string]vars.Tree
	env                []envVar
	become, becomeUser vars.Tree
	delegateTo         vars.Tree
	ignoreErrors       vars.Tree
	timeout            vars.Tree
	runOnce            bool
	tags               map[string]bool
	rescued            bool
	inRescue           bool
}

// onFailure reads whether a play is for runs that failed.
func (c *compiler) onFailure(ps *spec.Play) bool {
	if ps.OnFailure == nil {
		return false
	}
	if ps.OnFailure.Kind != spec.Bool {
		c.errorf(ps.OnFailure.Pos, "true, or leave it out", "on_failure is true or false")
	}
	return ps.OnFailure.Bool
}

// readsOnly refuses tasks of a play for failed runs that may change something.
func (c *compiler) readsOnly(p *play) {
	for _, t := range allTasks(p) {
		if !t.isBlock() && t.spec.Meta == "" && !t.readsOnly() {
			c.errorf(t.spec.Pos, "assert, mysql_info, or read: true", "a play with on_failure says how things are: %s may change something", t.spec.Module)
		}
	}
	if len(p.handlers) > 0 {
		c.errorf(p.spec.Pos, "", "a play with on_failure has no handlers: nothing in it changes")
	}
}

func (c *compiler) compilePlay(number int, ps *spec.Play, hosts []*inventory.Host) *play {
	p := &play{spec: ps, title: ps.Name, hosts: hosts, free: ps.Strategy == "free", after: c.onFailure(ps)}
	if p.title == "" {
		p.title = fmt.Sprintf("play %d", number)
	}
	scope := c.scope
	p.vars, scope = c.compileVars(ps.Vars, scope)
	in := inherited{tags: tagSet(nil, ps.Tags)}
	in.become = c.optional(ps.Become, scope)
	in.becomeUser = c.optional(ps.BecomeUser, scope)
	in.env = c.compileEnv(nil, ps.Environment, scope)
	p.tasks = c.compileTasks(fmt.Sprint(number), ps.Tasks, scope, in, p)
	// Handlers run when the tasks have: they see every result. Where those do not run at all, there is none.
	if c.src.Owed {
		c.regs = map[string]vars.Type{}
	}
	p.handlers = c.compileTasks(fmt.Sprintf("%d/handlers", number), ps.Handlers, scope, in, p)
	if p.after {
		c.readsOnly(p)
	}
	return p
}

func tagSet(outer map[string]bool, tags []string) map[string]bool {
	set := maps.Clone(outer)
	if set == nil {
		set = map[string]bool{}
	}
	for _, t := range tags {
		set[t] = true
	}
	return set
}

// compileVars compiles variables of a play, block or task; each sees those before it.
func (c *compiler) compileVars(entries []spec.Entry, scope *vars.Scope) (map[string]vars.Tree, *vars.Scope) {
	if len(entries) == 0 {
		return nil, scope
	}
	out := map[string]vars.Tree{}
	for _, e := range entries {
		if c.isParam(e.Key) {
			c.errorf(e.Pos, "choose another name", "%q is a parameter of this runbook and cannot be set here", e.Key)
			continue
		}
		tree := c.tree(e.Value, scope)
		if tree == nil {
			continue
		}
		out[e.Key] = tree
		scope = scope.With(e.Key, tree.Type())
	}
	return out, scope
}

func (c *compiler) isParam(name string) bool {
	return slices.ContainsFunc(c.book.Params, func(p *spec.Param) bool { return p.Name == name })
}

func (c *compiler) compileEnv(outer []envVar, entries []spec.Entry, scope *vars.Scope) []envVar {
	env := slices.Clone(outer)
	for _, e := range entries {
		tree := c.tree(e.Value, scope)
		if tree == nil {
			continue
		}
		if tree.Type().Kind == vars.SecretKind {
			c.errorf(e.Value.Pos, "give it to the command on its standard input", "a secret cannot be put into the environment, where other processes may read it")
			continue
		}
		env = append(env, envVar{name: e.Key, pos: e.Value.Pos, tree: tree})
	}
	return env
}

func (c *compiler) compileTasks(prefix string, list []*spec.Task, scope *vars.Scope, in inherited, p *play) []*task {
	var out []*task
	for i, ts := range list {
		out = append(out, c.compileTask(fmt.Sprintf("%s/%d", prefix, i+1), ts, scope, in, p))
	}
	return out
}

func (c *compiler) compileTask(id string, ts *spec.Task, scope *vars.Scope, in inherited, p *play) *task {
	scope = scope.WithAll(c.regs).With(nameHosts, c.hostsType())
	if in.inRescue {
		scope = scope.With(nameFailure, vars.Object(map[string]vars.Type{"task": vars.String, "msg": vars.String}))
	}
	t := &task{spec: ts, id: id, tags: tagSet(in.tags, ts.Tags), rescued: in.rescued}
	t.vars = in.vars
	own, scope := c.compileVars(ts.Vars, scope)
	if own != nil {
		t.vars = append(slices.Clone(in.vars), own)
	}
	t.loop = c.loop(ts.Loop, scope)
	if t.loop != nil {
		item := vars.Any
		if typ := t.loop.Type(); typ.Kind == vars.ListKind && typ.Elem != nil {
			item = *typ.Elem
		} else if typ.Kind != vars.AnyKind && typ.Kind != vars.MapKind {
			c.errorf(ts.Loop.Pos, "loop over a list or a map", "cannot loop over this value")
		}
		scope = scope.With(ts.LoopVar, item)
		if ts.IndexVar != "" {
			scope = scope.With(ts.IndexVar, vars.Int)
		}
		t.loopLabel = c.optional(ts.LoopLabel, scope)
	}
	if ts.Name != "" {
		if name, err := vars.CompileText(ts.Name, scope); err != nil {
			c.mistake(&spec.Value{Kind: spec.String, Str: ts.Name, Pos: ts.NamePos}, err)
		} else {
			t.name = name
		}
	}
	t.when = append(slices.Clone(in.when), c.conds(ts.When, scope)...)
	t.env = c.compileEnv(in.env, ts.Environment, scope)
	t.become = orTree(c.optional(ts.Become, scope), in.become)
	t.becomeUser = orTree(c.optional(ts.BecomeUser, scope), in.becomeUser)
	if ts.BecomeUser != nil && ts.Become == nil && in.become == nil {
		c.errorf(ts.BecomeUser.Pos, "add become: true", "become_user without become has no effect")
	}
	t.delegateTo = orTree(c.optional(ts.DelegateTo, scope), in.delegateTo)
	t.ignoreErrors = orTree(c.optional(ts.IgnoreErrors, scope), in.ignoreErrors)
	t.timeout = orTree(c.optional(ts.Timeout, scope), in.timeout)
	t.runOnce = in.runOnce
	if ts.RunOnce != nil {
		if ts.RunOnce.Kind != spec.Bool {
			c.errorf(ts.RunOnce.Pos, "write true or false", "run_once is decided before the run, it cannot be an expression")
		}
		t.runOnce = ts.RunOnce.Bool
		if t.runOnce && p.free {
			c.errorf(ts.RunOnce.Pos, "use strategy: linear", "run_once has no meaning in a play whose hosts go on independently")
		}
	}
	if t.delegateTo != nil {
		p.needs = append(p.needs, t.delegateTo)
	}

	if len(ts.Block) > 0 {
		c.compileBlock(t, ts, scope, in, p)
		return t
	}
	for _, v := range ts.Notify {
		t.notify = append(t.notify, c.tree(v, scope)) // nil after a mistake, and then nothing runs
	}
	for _, v := range ts.Listen {
		t.listen = append(t.listen, v.Str)
	}
	if ts.Meta != "" {
		return t
	}
	c.compileModule(t, ts, scope)

	result := c.resultType(t)
	after := scope.With(nameResult, result)
	if ts.Register != "" {
		if _, declared := c.scope.Lookup(ts.Register); declared {
			c.errorf(ts.RegisterPos, "choose another name", "%q is already a variable or parameter", ts.Register)
		}
		registered := result
		if t.loop != nil {
			registered = commonResult(map[string]vars.Type{"results": vars.ListOf(result)})
		}
		if old, twice := c.regs[ts.Register]; twice && !sameFields(old, registered) {
			registered = vars.Any
		}
		c.regs[ts.Register] = registered
		after = after.With(ts.Register, result)
	}
	t.until = c.conds(ts.Until, after)
	t.changedWhen = c.conds(ts.ChangedWhen, after)
	t.failedWhen = c.conds(ts.FailedWhen, after)
	t.retries = c.optional(ts.Retries, scope)
	t.delay = c.optional(ts.Delay, scope)
	if (ts.Retries != nil || ts.Delay != nil) && len(ts.Until) == 0 {
		c.errorf(ts.Pos, "add until: with the condition to wait for", "retries and delay without until have no effect")
	}
	for _, v := range t.trees() {
		for _, ref := range vars.HostRefs(v.tree) {
			p.needs = append(p.needs, ref)
		}
	}
	return t
}

// hostsType is the type of `hosts`: what can be known of another host is its variables, facts and registered results.
func (c *compiler) hostsType() vars.Type {
	fields := map[string]vars.Type{}
	for _, name := range c.scope.Names() {
		fields[name], _ = c.scope.Lookup(name)
	}
	for name := range c.later {
		fields[name] = vars.Any
	}
	maps.Copy(fields, c.regs)
	return vars.MapOf(vars.Object(fields))
}

func (c *compiler) compileBlock(t *task, ts *spec.Task, scope *vars.Scope, in inherited, p *play) {
	if ts.Loop != nil {
		c.errorf(ts.Loop.Pos, "put the loop on the tasks inside", "a block cannot loop")
	}
	if ts.Register != "" {
		c.errorf(ts.RegisterPos, "register in the tasks inside", "a block has no result to register")
	}
	inner := inherited{when: t.when, vars: t.vars, env: t.env, become: t.become, becomeUser: t.becomeUser, delegateTo: t.delegateTo,
		ignoreErrors: t.ignoreErrors, timeout: t.timeout, runOnce: t.runOnce, tags: t.tags, rescued: in.rescued, inRescue: in.inRescue}
	// A rescue without a task that the tags select rescues nobody.
	t.rescues = c.anySelected(ts.Rescue, t.tags)
	body := inner
	body.rescued = in.rescued || t.rescues
	t.block = c.compileTasks(t.id+"/block", ts.Block, scope, body, p)
	rescue := inner
	rescue.inRescue = true
	t.rescue = c.compileTasks(t.id+"/rescue", ts.Rescue, scope, rescue, p)
	t.always = c.compileTasks(t.id+"/always", ts.Always, scope, inner, p)
}

// anySelected reports whether the run's tags select any task of a list.
func (c *compiler) anySelected(list []*spec.Task, outer map[string]bool) bool {
	return slices.ContainsFunc(list, func(ts *spec.Task) bool {
		tags := tagSet(outer, ts.Tags)
		if len(ts.Block) == 0 {
			return c.job.selects(tags)
		}
		return c.anySelected(slices.Concat(ts.Block, ts.Rescue, ts.Always), tags)
	})
}

func orTree(a, b vars.Tree) vars.Tree {
	if a != nil {
		return a
	}
	return b
}

func sameFields(a, b vars.Type) bool {
	return slices.Equal(slices.Sorted(maps.Keys(a.Fields)), slices.Sorted(maps.Keys(b.Fields)))
}

// commonResult is the type of a result: the fields that every task has, and more.
func commonResult(more map[string]vars.Type) vars.Type {
	fields := map[string]vars.Type{"changed": vars.Bool, "failed": vars.Bool, "skipped": vars.Bool, "msg": vars.String}
	maps.Copy(fields, more)
	return vars.Object(fields)
}

func (c *compiler) resultType(t *task) vars.Type {
	if t.factory == nil {
		return vars.Any
	}
	r, ok := t.factory().(module.Returner)
	more := map[string]vars.Type{}
	if ok {
		for _, f := range r.Returns() {
			more[f.Name] = typeOf(f.Type)
		}
	}
	if t.loop != nil {
		more["item"] = vars.Any
	}
	return commonResult(more)
}

// factory makes the task's modules, each told what the task says of detach.
func (c *compiler) factory(ts *spec.Task) module.Factory {
	plain := c.job.Modules[ts.Module]
	if ts.Detach == nil {
		return plain
	}
	if ts.Detach.Kind != spec.Bool {
		c.errorf(ts.Detach.Pos, "write true or false", "detach is decided before the run, it cannot be an expression")
		return plain
	}
	if _, ok := plain().(module.Long); !ok {
		hint := "remove it, or limit how long the task may take with `timeout`"
		if !ts.Detach.Bool {
			hint = "remove it"
		}
		c.errorf(ts.Detach.Pos, hint, "%s cannot be detached from the connection", ts.Module)
		return plain
	}
	return func() module.Module {
		m := plain()
		m.(module.Long).Detach(ts.Detach.Bool)
		return m
	}
}

// compileModule compiles the arguments of a module task.
func (c *compiler) compileModule(t *task, ts *spec.Task, scope *vars.Scope) {
	t.factory = c.factory(ts)
	sample := t.factory()
	t.fields = map[string]module.Field{}
	short := ""
	for _, f := range module.Fields(sample) {
		t.fields[f.Name] = f
		if f.Short {
			short = f.Name
		}
	}
	broken, misnamed := map[string]bool{}, false // arguments with a mistake that is told already
	var entries []spec.Entry
	switch {
	case ts.Args == nil || ts.Args.Kind == spec.Null:
	case ts.Args.Kind == spec.Map:
		entries = ts.Args.Map
	case short == "":
		c.errorf(ts.Args.Pos, "write "+ts.Module+": {argument: value, ...}", "%s takes named arguments", ts.Module)
		return
	default:
		entries = []spec.Entry{{Key: short, Pos: ts.Args.Pos, Value: ts.Args}}
	}
	for _, e := range entries {
		f, known := t.fields[e.Key]
		if !known {
			c.errorf(e.Pos, spec.DidYouMean(e.Key, slices.Collect(maps.Keys(t.fields))), "%s has no argument %q", ts.Module, e.Key)
			misnamed = true
			continue
		}
		a := arg{name: e.Key, pos: e.Value.Pos, value: e.Value, late: f.Late}
		if c.compileArg(&a, f, scope) {
			t.args = append(t.args, a)
		} else {
			broken[a.name] = true
		}
	}
	if misnamed {
		return // what seems to be missing may only be misspelt
	}
	// What is written out is checked now, once for all hosts.
	known, deferred := map[string]any{}, broken
	for _, a := range t.args {
		if v, ok := a.constant(); ok {
			known[a.name] = v
		} else {
			deferred[a.name] = true
		}
	}
	if err := module.DecodePartial(sample, known, deferred); err != nil {
		c.argErrors(t, err, "")
	}
}

// compileArg compiles one argument by the type of its field.
func (c *compiler) compileArg(a *arg, f module.Field, scope *vars.Scope) bool {
	switch f.GoType {
	case reflect.TypeFor[module.Template]():
		return c.compileTemplate(a, scope)
	case reflect.TypeFor[module.Content]():
		name, data, ok := c.readBeside(a)
		a.fixed = module.Content{Path: name, Data: data}
		return ok
	case reflect.TypeFor[module.Condition](), reflect.TypeFor[[]module.Condition]():
		list := []*spec.Value{a.value}
		if a.value.Kind == spec.List {
			list = a.value.List
		}
		a.list = f.GoType.Kind() == reflect.Slice
		a.conds = c.conds(list, scope)
		return len(a.conds) == len(list)
	}
	a.tree = c.tree(a.value, scope)
	takesSecrets := f.Secret || f.GoType.Kind() == reflect.Interface
	if a.tree != nil && a.tree.Type().Kind == vars.SecretKind && !takesSecrets {
		c.errorf(a.pos, "", "argument %s would show a secret", a.name)
		return false
	}
	return a.tree != nil
}

func (c *compiler) compileTemplate(a *arg, scope *vars.Scope) bool {
	name, data, ok := c.readBeside(a)
	if !ok {
		return false
	}
	tree, err := vars.CompileTemplate(name, string(data), scope)
	if err != nil {
		var e *vars.Error
		if errors.As(err, &e) {
			c.errorf(spec.Pos{File: name, Line: e.Line, Column: e.Column}, e.Hint, "%s", e.Msg)
		} else {
			c.errorf(a.pos, "", "%v", err)
		}
		return false
	}
	a.tree = tree
	a.fixed = module.Template{Path: name}
	return true
}

// readBeside reads a file that an argument names, relative to the runbook.
func (c *compiler) readBeside(a *arg) (string, []byte, bool) {
	if a.value.Kind != spec.String || a.value.HasHole() {
		c.errorf(a.pos, "choose between files with when:", "the file of %s is read when the book is loaded, it cannot be an expression", a.name)
		return "", nil, false
	}
	name := path.Join(path.Dir(c.src.Path), a.value.Str)
	data, err := fs.ReadFile(c.src.FS, name)
	if err != nil {
		c.errorf(a.pos, "paths are relative to the runbook's folder", "cannot read %s: %v", name, errors.Unwrap(err))
		return "", nil, false
	}
	return name, data, true
}

// constant returns the value of an argument that is the same everywhere.
func (a *arg) constant() (any, bool) {
	if a.tree == nil {
		return a.fixed, a.fixed != nil
	}
	if _, isTemplate := a.fixed.(module.Template); isTemplate || len(a.tree.Names()) > 0 {
		return nil, false
	}
	v, err := a.tree.Eval(vars.NewStack())
	return v, err == nil
}

// argErrors places the mistakes that a module found in its arguments. forHost is "" or " for HOST".
func (c *compiler) argErrors(t *task, err error, forHost string) {
	for _, e := range argErrors(err) {
		pos := t.spec.ModulePos
		name, _, _ := strings.Cut(strings.ReplaceAll(e.Path, "[", "."), ".")
		for _, a := range t.args {
			if a.name == name {
				pos = a.pos
			}
		}
		msg := e.Msg
		if e.Path != "" {
			msg = e.Path + ": " + msg
		}
		c.errorf(pos, e.Hint, "%s: %s%s", t.spec.Module, msg, forHost)
	}
}

// argErrors takes apart the joined mistakes of a module.
func argErrors(err error) []*module.ArgError {
	switch e := err.(type) {
	case *module.ArgError:
		return []*module.ArgError{e}
	case interface{ Unwrap() []error }:
		var all []*module.ArgError
		for _, one := range e.Unwrap() {
			all = append(all, argErrors(one)...)
		}
		return all
	}
	return []*module.ArgError{{Msg: err.Error()}}
}

// placed is a compiled value with its place in the book.
type placed struct {
	tree vars.Tree
	pos  spec.Pos
}

// place is where the task says own; what it inherits is placed at the task.
func (t *task) place(own *spec.Value) spec.Pos {
	if own == nil {
		return t.spec.Pos
	}
	return own.Pos
}

// trees lists every compiled value of a task, for the checks of names.
func (t *task) trees() []placed {
	var out []placed
	add := func(tree vars.Tree, pos spec.Pos) {
		if tree != nil {
			out = append(out, placed{tree, pos})
		}
	}
	ts := t.spec
	for _, one := range []struct {
		tree vars.Tree
		own  *spec.Value
	}{{t.loop, ts.Loop}, {t.loopLabel, ts.LoopLabel}, {t.become, ts.Become}, {t.becomeUser, ts.BecomeUser}, {t.delegateTo, ts.DelegateTo},
		{t.ignoreErrors, ts.IgnoreErrors}, {t.retries, ts.Retries}, {t.delay, ts.Delay}, {t.timeout, ts.Timeout}} {
		add(one.tree, t.place(one.own))
	}
	for i, tree := range t.notify {
		add(tree, ts.Notify[i].Pos)
	}
	for _, list := range [][]cond{t.when, t.until, t.changedWhen, t.failedWhen} {
		for _, one := range list {
			add(one.expr, one.pos)
		}
	}
	for _, a := range t.args {
		add(a.tree, a.pos)
		for _, one := range a.conds {
			add(one.expr, one.pos)
		}
	}
	for _, e := range t.env {
		add(e.tree, e.pos)
	}
	for _, layer := range t.vars {
		for _, name := range slices.Sorted(maps.Keys(layer)) {
			add(layer[name], t.spec.Pos)
		}
	}
	return out
}

// sortErrors orders mistakes by place, dropping repetitions.
func sortErrors(errs spec.Errors) spec.Errors {
	seen := map[string]bool{}
	var out spec.Errors
	for _, e := range errs {
		if key := e.Pos.String() + e.Msg; !seen[key] {
			seen[key] = true
			out = append(out, e)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Pos.Compare(out[j].Pos) < 0 })
	return out
}
