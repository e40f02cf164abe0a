package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"runbook/engine/spec"
)

// Load reads the inventory at path, a file or a directory. The error is spec.Errors: every mistake, in the order of
// their places.
func Load(path string) (*Inventory, error) {
	l := &loader{groups: map[string]*group{}, hosts: map[string]*host{}}
	l.group("all", spec.Pos{File: path}, nil)
	l.load(path)
	l.link()
	if len(l.errs) > 0 {
		return nil, l.errs.Sorted()
	}
	return l.build(), nil
}

type loader struct {
	groups map[string]*group
	hosts  map[string]*host
	order  []*host
	named  int // how often hosts were named
	errs   spec.Errors
}

// holder is what groups and hosts have in common: settings and variables.
type holder struct {
	what, name string
	pos        spec.Pos
	at         *spec.Value // beside pos, for the snippet
	settings   map[string]setting
	vars       map[string]spec.Entry
}

type setting struct {
	entry spec.Entry
	dir   string // that relative paths start from
}

type group struct {
	holder
	children map[string]*spec.Value // by name, with where they were named
	members  map[string]bool        // hosts named in this group itself
	parents  []string
	depth    int // the longest way from all
	visited  visit
}

type visit int

const (
	unvisited visit = iota
	underway
	done
)

type host struct {
	holder
	groups map[string]bool // that name it
}

func newHolder(what, name string, pos spec.Pos, at *spec.Value) holder {
	return holder{what: what, name: name, pos: pos, at: at, settings: map[string]setting{}, vars: map[string]spec.Entry{}}
}

// report adds a mistake; at gives the snippet.
func (l *loader) report(pos spec.Pos, at *spec.Value, hint, format string, args ...any) {
	e := spec.Errorf(pos, hint, format, args...)
	e.Snippet = at.Snippet(pos)
	l.errs = append(l.errs, e)
}

func (l *loader) group(name string, pos spec.Pos, at *spec.Value) *group {
	g := l.groups[name]
	if g == nil {
		g = &group{holder: newHolder("group", name, pos, at), children: map[string]*spec.Value{}, members: map[string]bool{}}
		l.groups[name] = g
	}
	return g
}

// load reads a file or a directory, and the variables beside it.
func (l *loader) load(path string) {
	info, err := os.Stat(path)
	if err != nil {
		l.fileError(path, "", err)
		return
	}
	dir, own := filepath.Dir(path), true
	if info.IsDir() {
		dir = path
		files := yamlFiles(dir)
		if len(files) == 0 {
			l.errs = append(l.errs, spec.Errorf(spec.Pos{File: path}, "put an inventory into it, hosts.yml for one", "cannot find an inventory: the directory has no .yml file"))
		}
		for _, file := range files {
			l.inventory(filepath.Join(dir, file), dir)
		}
	} else {
		// With other inventories around, variables may belong to theirs.
		own = len(yamlFiles(dir)) < 2
		l.inventory(path, dir)
	}
	l.varsDir(filepath.Join(dir, "group_vars"), func(name string) *holder {
		if g := l.groups[name]; g != nil {
			return &g.holder
		}
		return nil
	}, "group", own)
	l.varsDir(filepath.Join(dir, "host_vars"), func(name string) *holder {
		if h := l.hosts[name]; h != nil {
			return &h.holder
		}
		return nil
	}, "host", own)
}

func isYAML(name string) bool {
	return (strings.HasSuffix(name, ".yml") || strings.HasSuffix(name, ".yaml")) && !strings.HasPrefix(name, ".")
}

// yamlFiles lists the YAML files in a directory by name.
func yamlFiles(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if isYAML(e.Name()) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func (l *loader) fileError(path, hint string, err error) {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("it does not exist")
	}
	l.errs = append(l.errs, spec.Errorf(spec.Pos{File: path}, hint, "cannot read the inventory: %s", err))
}

// read parses a file that nobody but its owner and group may write; nil if it has mistakes.
func (l *loader) read(path string) *spec.Value {
	const maxSize = 1<<20 + 1 // one more than LoadValue takes
	for _, p := range []string{path, filepath.Dir(path)} {
		info, err := os.Stat(p)
		if err == nil && info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			l.fileError(path, "chmod o-w "+p, fmt.Errorf("everyone may write to %s", p))
			return nil
		}
		if err == nil && p == path && !info.Mode().IsRegular() {
			l.fileError(path, "", errors.New("it is no regular file"))
			return nil
		}
	}
	f, err := os.Open(path)
	if err != nil {
		l.fileError(path, "", err)
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		l.fileError(path, "", err)
		return nil
	}
	v, err := spec.LoadValue(path, data)
	var errs spec.Errors
	if errors.As(err, &errs) {
		l.errs = append(l.errs, errs...)
		return nil
	}
	return v
}

// varsDir reads NAME.yml files of variables.
func (l *loader) varsDir(dir string, find func(string) *holder, what string, own bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.fileError(dir, "", err)
		}
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") {
			continue
		}
		if !isYAML(e.Name()) || e.IsDir() {
			l.fileError(path, "call it NAME.yml", errors.New("it would not be used"))
			continue
		}
		name := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".yml"), ".yaml")
		h := find(name)
		if h == nil {
			if own {
				l.fileError(path, spec.DidYouMean(name, l.names(what)), fmt.Errorf("there is no %s %q", what, name))
			}
			continue
		}
		if v := l.read(path); v != nil {
			l.vars(h, spec.Entry{Key: "vars", Pos: v.Pos, Value: v})
		}
	}
}

func (l *loader) names(what string) []string {
	if what == "group" {
		return slices.Collect(maps.Keys(l.groups))
	}
	return slices.Collect(maps.Keys(l.hosts))
}

var keyHints = map[string]string{
	"ansible_host": "write `address`", "ansible_ssh_host": "write `address`",
	"ansible_port": "write `port`", "ansible_ssh_port": "write `port`",
	"ansible_user": "write `user`", "ansible_ssh_user": "write `user`", "remote_user": "write `user`",
	"ansible_connection":           "write `connection`",
	"ansible_ssh_private_key_file": "write `identity_file`", "ansible_private_key_file": "write `identity_file`", "key": "write `identity_file`",
	"ansible_become_method": "write `become_method`", "ansible_become_user": "write `become_user`",
	"ansible_become_pass": "write `become_password_file`", "ansible_become_password": "write `become_password_file`",
	"become_password":  "write `become_password_file`, the name of a file with mode 0600",
	"become":           "write it on the play or the task",
	"ansible_become":   "write `become: true` on the play or the task",
	"ansible_ssh_pass": "log in with a key: `identity_file`, or the agent", "ansible_password": "log in with a key: `identity_file`, or the agent",
	"password": "log in with a key: `identity_file`, or the agent; a variable belongs under `vars`",
	"host":     "write `address`", "hostname": "write `address`", "ip": "write `address`",
	"timeout": "write `connect_timeout`", "proxy_jump": "write `jump`", "jump_host": "write `jump`",
	"ansible_python_interpreter": "remove it: hosts need no Python",
	"ansible_ssh_common_args":    "write `jump`, or use ssh's configuration file",
	"ansible_ssh_extra_args":     "write `jump`, or use ssh's configuration file",
}

var rootHints = map[string]string{
	"all": "put groups under `groups:`", "children": "put groups under `groups:`",
	"vars": "put it into the group all: `groups: {all: {vars: …}}`", "user": "put it into the group all: `groups: {all: {user: …}}`",
}

// keys hands each entry of a mapping to its function; connection settings go to h unless it is nil.
func (l *loader) keys(v *spec.Value, what, dir string, h *holder, known map[string]func(spec.Entry), hints map[string]string) {
	if v.Kind == spec.Null {
		return
	}
	if v.Kind != spec.Map {
		hint := ""
		if what == "a group" && v.Kind == spec.List {
			hint = "put hosts under `hosts:`"
		}
		l.report(v.Pos, v, hint, "cannot use %s as %s: it must be a mapping", v.Kind, what)
		return
	}
	names := slices.Collect(maps.Keys(known))
	if h != nil {
		names = slices.AppendSeq(names, maps.Keys(settings))
	}
	for _, e := range v.Map {
		switch {
		case known[e.Key] != nil:
			known[e.Key](e)
		case h != nil && settings[e.Key] != nil:
			l.setting(h, e, dir)
		default:
			hint := hints[e.Key]
			if hint == "" {
				hint = spec.DidYouMean(e.Key, names)
			}
			if hint == "" && h != nil {
				hint = "a variable belongs under `vars`"
			}
			l.report(e.Pos, e.Value, hint, "cannot use %q in %s: unknown key", e.Key, what)
		}
	}
}

func (l *loader) inventory(path, dir string) {
	v := l.read(path)
	if v == nil {
		return
	}
	l.keys(v, "an inventory", dir, nil, map[string]func(spec.Entry){
		"hosts": func(e spec.Entry) { l.addHosts(l.groups["all"], e, dir) },
		"groups": func(e spec.Entry) {
			l.addGroups(e, dir)
		},
	}, rootHints)
}

// addGroups reads groups by name and returns their names.
func (l *loader) addGroups(e spec.Entry, dir string) {
	if e.Value.Kind != spec.Map && e.Value.Kind != spec.Null {
		l.report(e.Value.Pos, e.Value, "write each group as `name:` with its keys below", "cannot use %s as %q: it must be a mapping of groups", e.Value.Kind, e.Key)
		return
	}
	for _, one := range e.Value.Map {
		if l.checkName("group", one.Key, one.Pos, one.Value) {
			l.addGroup(one, dir)
		}
	}
}

func (l *loader) addGroup(e spec.Entry, dir string) {
	g := l.group(e.Key, e.Pos, e.Value)
	l.keys(e.Value, "a group", dir, &g.holder, map[string]func(spec.Entry){
		"hosts":    func(e spec.Entry) { l.addHosts(g, e, dir) },
		"vars":     func(e spec.Entry) { l.vars(&g.holder, e) },
		"children": func(e spec.Entry) { l.addChildren(g, e, dir) },
	}, keyHints)
}

// addChildren reads a list of names, or groups in place.
func (l *loader) addChildren(g *group, e spec.Entry, dir string) {
	if e.Value.Kind != spec.List {
		l.addGroups(e, dir)
		for _, one := range e.Value.Map {
			if l.groups[one.Key] == nil {
				continue // its name is no name
			}
			child := *one.Value
			child.Pos = one.Pos
			g.children[one.Key] = &child
		}
		return
	}
	for _, item := range e.Value.List {
		if item.Kind != spec.String {
			l.report(item.Pos, item, "", "cannot use %s as the name of a group", item.Kind)
			continue
		}
		g.children[item.Str] = item
	}
}

// addHosts reads hosts by name, or a list of names.
func (l *loader) addHosts(g *group, e spec.Entry, dir string) {
	switch e.Value.Kind {
	case spec.Null:
	case spec.Map:
		for _, one := range e.Value.Map {
			l.addHost(g, one.Key, one.Pos, one.Value, one.Value, dir)
		}
	case spec.List:
		for _, item := range e.Value.List {
			if item.Kind != spec.String {
				l.report(item.Pos, item, "write `name:` for a host with settings, and no `- `", "cannot use %s as the name of a host", item.Kind)
				continue
			}
			l.addHost(g, item.Str, item.Pos, nil, item, dir)
		}
	default:
		l.report(e.Value.Pos, e.Value, "write each host as `name:`", "cannot use %s as %q: it must be a mapping or a list", e.Value.Kind, e.Key)
	}
}

const (
	maxHosts = 20000         // in one inventory
	maxNamed = 10 * maxHosts // each as often as it is named
)

// addHost reads the hosts that a name with ranges stands for; v is their settings or nil, at any value beside pos.
func (l *loader) addHost(g *group, pattern string, pos spec.Pos, v, at *spec.Value, dir string) {
	if l.named > maxNamed {
		return // told already, and writing out ranges takes time
	}
	names, err := expand(pattern)
	if err != nil {
		l.report(pos, at, "a range is [1:9], [01:99], [a:f] or [0:8:2]", "cannot use %q as the name of hosts: %s", pattern, err)
		return
	}
	if l.named += len(names); l.named > maxNamed {
		l.report(pos, at, "", "cannot read an inventory that names hosts more than %d times", maxNamed)
		return
	}
	var made []*holder
	for _, name := range names {
		if !l.checkName("host", name, pos, at) {
			return
		}
		h := l.hosts[name]
		if h == nil {
			if len(l.order) == maxHosts {
				l.report(pos, at, "", "cannot hold more than %d hosts", maxHosts)
				return
			}
			h = &host{holder: newHolder("host", name, pos, at), groups: map[string]bool{}}
			l.hosts[name] = h
			l.order = append(l.order, h)
		}
		g.members[name] = true
		h.groups[g.name] = true
		made = append(made, &h.holder)
	}
	if v == nil {
		return
	}
	// A mistake in the settings of a range is told once.
	for i, h := range made {
		before := len(l.errs)
		l.keys(v, "a host", dir, h, map[string]func(spec.Entry){
			"vars": func(e spec.Entry) { l.vars(h, e) },
		}, keyHints)
		if i == 0 && len(l.errs) > before {
			return
		}
	}
}

var nameText = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

func (l *loader) checkName(what, name string, pos spec.Pos, at *spec.Value) bool {
	if len(name) <= 253 && nameText.MatchString(name) {
		return true
	}
	l.report(pos, at, "a name is letters, digits, `_`, `.` and `-`", "cannot use %q as the name of a %s", name, what)
	return false
}

func (l *loader) setting(h *holder, e spec.Entry, dir string) {
	var scratch Connection
	if err := settings[e.Key](&scratch, e.Value, dir); err != nil {
		l.report(e.Value.Pos, e.Value, "", "cannot use this as %q: %s", e.Key, err)
		return
	}
	if old, dup := h.settings[e.Key]; dup && !reflect.DeepEqual(old.entry.Value.Any(), e.Value.Any()) {
		l.conflict(h, e, old.entry)
		return
	}
	h.settings[e.Key] = setting{e, dir}
}

func (l *loader) conflict(h *holder, e, old spec.Entry) {
	l.report(e.Pos, e.Value, "", "cannot set %q of the %s %q twice: it has another value at %s", e.Key, h.what, h.name, old.Pos)
}

func (l *loader) vars(h *holder, e spec.Entry) {
	if e.Value.Kind != spec.Map && e.Value.Kind != spec.Null {
		l.report(e.Value.Pos, e.Value, "write `name: value` lines", "cannot use %s as variables: it must be a mapping", e.Value.Kind)
		return
	}
	for _, v := range e.Value.Map {
		if why := spec.BadName(v.Key); why != "" {
			l.report(v.Pos, v.Value, why, "cannot use %q as the name of a variable", v.Key)
			continue
		}
		if strings.HasPrefix(v.Key, "ansible_") {
			hint := "remove it"
			if keyHints[v.Key] != "" {
				hint = keyHints[v.Key] + ", outside of `vars`"
			}
			l.report(v.Pos, v.Value, hint, "cannot use %q as a variable: it would do nothing", v.Key)
			continue
		}
		if old, dup := h.vars[v.Key]; dup && !reflect.DeepEqual(old.Value.Any(), v.Value.Any()) {
			l.conflict(h, v, old)
			continue
		}
		h.vars[v.Key] = v
	}
}

// link connects groups with their children and finds how far each is from all.
func (l *loader) link() {
	for _, name := range slices.Sorted(maps.Keys(l.groups)) {
		g := l.groups[name]
		if h := l.hosts[name]; h != nil {
			l.report(h.pos, h.at, "give one of them another name", "cannot call a host %q: a group has that name", name)
		}
		for _, child := range slices.Sorted(maps.Keys(g.children)) {
			c, at := l.groups[child], g.children[child]
			switch {
			case c == nil:
				hint := spec.DidYouMean(child, slices.Collect(maps.Keys(l.groups)))
				if hint == "" {
					hint = "add the group under `groups:`"
					if l.hosts[child] != nil {
						hint = "put hosts under `hosts:`"
					}
				}
				l.report(at.Pos, at, hint, "cannot find the group %q", child)
			case c != nil && child == "all":
				l.report(at.Pos, at, "", "cannot make the group all a child: every host is in it")
			case c != nil:
				c.parents = append(c.parents, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.groups)) {
		l.visit(name)
	}
}

// visit sets the depth of a group, after that of its parents.
func (l *loader) visit(name string) int {
	g := l.groups[name]
	switch {
	case name == "all" || g.visited == done:
		return g.depth
	case g.visited == underway:
		l.report(g.pos, g.at, "", "cannot make the group %q its own descendant, through `children`", name)
		g.visited = done
		return g.depth
	}
	g.visited = underway
	depth := 1
	for _, parent := range g.parents {
		depth = max(depth, l.visit(parent)+1)
	}
	g.depth, g.visited = depth, done
	return depth
}

// build makes the inventory out of what was read without mistakes.
func (l *loader) build() *Inventory {
	inv := &Inventory{byName: map[string]*Host{}, groups: map[string][]string{}}
	for name := range l.groups {
		inv.groups[name] = []string{}
	}
	for _, h := range l.order {
		host := &Host{Name: h.name, Pos: h.pos}
		levels := make([]*holder, 0, 8)
		for _, g := range l.ancestors(h) {
			host.Groups = append(host.Groups, g.name)
			inv.groups[g.name] = append(inv.groups[g.name], h.name)
			levels = append(levels, &g.holder)
		}
		for _, level := range append(levels, &h.holder) {
			for _, s := range level.settings {
				// It was checked when it was read.
				_ = settings[s.entry.Key](&host.Connection, s.entry.Value, s.dir)
			}
			groupName := level.name
			if level.what == "host" {
				groupName = ""
			}
			for _, name := range slices.Sorted(maps.Keys(level.vars)) {
				host.Vars = append(host.Vars, Var{Name: name, Value: level.vars[name].Value, Group: groupName})
			}
		}
		inv.hosts = append(inv.hosts, host)
		inv.byName[h.name] = host
	}
	return inv
}

// ancestors lists every group of a host, the farthest first; groups at the same distance by name.
func (l *loader) ancestors(h *host) []*group {
	found := map[string]*group{"all": l.groups["all"]}
	var add func(name string)
	add = func(name string) {
		if found[name] != nil {
			return
		}
		g := l.groups[name]
		found[name] = g
		for _, parent := range g.parents {
			add(parent)
		}
	}
	for name := range h.groups {
		add(name)
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.depth, b.depth), cmp.Compare(a.name, b.name))
	})
}
