package spec

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

const (
	maxImportDepth = 16
	maxImports     = 1000 // files imported into one book, each as often as it is named
)

// trail is the files that led to a task through imports, its own last.
type trail []string

func (l *loader) tasks(items []*Value, from trail) []*Task {
	tasks := make([]*Task, 0, len(items))
	for _, item := range items {
		tasks = append(tasks, l.task(item, from))
		for _, e := range item.Map {
			if e.Key == "listen" {
				l.errorf(e.Pos, "put the task under `handlers`", "cannot listen in a task: only handlers are notified")
			}
		}
	}
	return tasks
}

// handlers reads tasks that notifications start: modules only, each with a name or topics to listen to.
func (l *loader) handlers(items []*Value, from trail) []*Task {
	var handlers []*Task
	for _, item := range items {
		if imported := item.Get("import_tasks"); imported != nil && len(item.Map) == 1 {
			more, next := l.imported(Entry{"import_tasks", item.Map[0].Pos, imported}, from)
			handlers = append(handlers, l.handlers(more, next)...)
			continue
		}
		h := l.task(item, from)
		switch {
		case item.Kind != Map:
		case item.Get("block") != nil || item.Get("meta") != nil || item.Get("import_tasks") != nil:
			l.errorf(h.Pos, "make each task a handler, with the same `listen` if they belong together", "cannot use anything but a module in a handler")
		case h.Name == "" && item.Get("listen") == nil:
			l.errorf(h.Pos, "give it a `name`", "cannot notify a handler without a name")
		}
		for _, v := range append(slices.Clone(h.Listen), item.Get("name")) {
			if v.HasHole() {
				l.errorf(v.Pos, "write it out", "cannot use {{ }} in the name of a handler: a mistake in `notify` could not be found")
			}
		}
		handlers = append(handlers, h)
	}
	return handlers
}

func (l *loader) task(v *Value, from trail) *Task {
	t := &Task{Pos: v.Pos, LoopVar: "item"}
	if v.Kind != Map {
		hint := "write `module: arguments`, with `name: …` before it"
		l.errorf(v.Pos, hint, "cannot use %s as a task: it must be a mapping", v.Kind)
		return t
	}
	known := l.taskFields(t, from)
	var kinds []Entry // the keys that say what the task is
	unknown := false
	for _, e := range v.Map {
		switch set := known[e.Key]; {
		case set != nil:
			set(e)
			if slices.Contains([]string{"block", "meta", "import_tasks"}, e.Key) {
				kinds = append(kinds, e)
			}
		case l.isModule(e.Key):
			t.Module, t.ModulePos = e.Key, e.Pos
			if e.Value.Kind != Null {
				t.Args = e.Value
			}
			kinds = append(kinds, e)
		default:
			unknown = true
			l.errorf(e.Pos, l.taskHint(e.Key, known), "cannot use %q in a task: unknown module or key", e.Key)
		}
	}
	switch {
	case len(kinds) > 1:
		for _, e := range kinds[1:] {
			l.errorf(e.Pos, "make it a task of its own: put `- ` before it", "cannot use %q here: the task already has %q on line %d", e.Key, kinds[0].Key, kinds[0].Pos.Line)
		}
	case len(kinds) == 0 && (v.Get("rescue") != nil || v.Get("always") != nil):
		l.errorf(v.Pos, "put the tasks that may fail under `block`", "cannot use rescue or always without a block")
	case len(kinds) == 0 && !unknown:
		l.errorf(v.Pos, "add a module with its arguments, or a block", "cannot tell what the task should do: it has no module")
	case len(kinds) == 1:
		l.checkKeys(v, kinds[0], known)
	}
	return t
}

func (l *loader) taskFields(t *Task, from trail) fields {
	tasks := func(to *[]*Task) func(Entry) {
		return func(e Entry) { *to = l.tasks(l.list(e), from) }
	}
	conditions := func(to *[]*Value) func(Entry) {
		return func(e Entry) { *to = l.conditions(e) }
	}
	return fields{
		"name":          func(e Entry) { t.Name, t.NamePos = l.text(e), e.Value.Pos },
		"why":           func(e Entry) { t.Why = l.text(e) },
		"when":          conditions(&t.When),
		"changed_when":  conditions(&t.ChangedWhen),
		"failed_when":   conditions(&t.FailedWhen),
		"until":         conditions(&t.Until),
		"loop":          func(e Entry) { t.Loop = l.loop(e) },
		"loop_control":  func(e Entry) { l.loopControl(t, e) },
		"register":      func(e Entry) { t.Register, t.RegisterPos = l.name(e), e.Value.Pos },
		"notify":        func(e Entry) { t.Notify = l.strings(e) },
		"listen":        func(e Entry) { t.Listen = l.strings(e) },
		"become":        func(e Entry) { t.Become = l.boolean(e) },
		"become_user":   func(e Entry) { t.BecomeUser = l.stringValue(e) },
		"vars":          func(e Entry) { t.Vars = l.vars(e) },
		"environment":   func(e Entry) { t.Environment = l.environment(e) },
		"tags":          func(e Entry) { t.Tags = l.tags(e) },
		"retries":       func(e Entry) { t.Retries = l.count(e) },
		"delay":         func(e Entry) { t.Delay = l.duration(e) },
		"timeout":       func(e Entry) { t.Timeout = l.duration(e) },
		"ignore_errors": func(e Entry) { t.IgnoreErrors = l.boolean(e) },
		"delegate_to":   func(e Entry) { t.DelegateTo = l.stringValue(e) },
		"run_once":      func(e Entry) { t.RunOnce = l.boolean(e) },
		"detach":        func(e Entry) { t.Detach = l.boolean(e) },
		"block":         tasks(&t.Block),
		"rescue":        tasks(&t.Rescue),
		"always":        tasks(&t.Always),
		"meta":          func(e Entry) { t.Meta = l.oneOf(e, "flush_handlers") },
		"import_tasks": func(e Entry) {
			items, next := l.imported(e, from)
			t.Block = l.tasks(items, next)
		},
	}
}

// Keys that go with each kind of task. What a block has, its tasks inherit.
var (
	blockKeys  = strings.Fields("name why when become become_user vars environment tags ignore_errors delegate_to run_once block rescue always")
	importKeys = strings.Fields("name why when become become_user vars environment tags ignore_errors delegate_to run_once import_tasks")
	metaKeys   = strings.Fields("name why tags meta")
)

// checkKeys finds keys that would do nothing.
func (l *loader) checkKeys(v *Value, kind Entry, known fields) {
	var allowed []string
	hint := "put it on the tasks inside"
	switch kind.Key {
	case "block":
		allowed = blockKeys
	case "import_tasks":
		allowed = importKeys
	case "meta":
		allowed, hint = metaKeys, "remove it"
	}
	has := map[string]Entry{}
	for _, e := range v.Map {
		has[e.Key] = e
		switch {
		case e.Key == kind.Key || l.isModule(e.Key) || allowed == nil && e.Key != "rescue" && e.Key != "always":
		case allowed == nil:
			l.errorf(e.Pos, "put the task under `block`", "cannot use %q without a block", e.Key)
		case !slices.Contains(allowed, e.Key) && known[e.Key] != nil:
			l.errorf(e.Pos, hint, "cannot use %q together with %q", e.Key, kind.Key)
		}
	}
	if allowed != nil {
		return
	}
	for _, pair := range [][2]string{{"loop_control", "loop"}, {"retries", "until"}, {"delay", "until"}} {
		if e, ok := has[pair[0]]; ok && has[pair[1]].Value == nil {
			l.errorf(e.Pos, fmt.Sprintf("add `%s`, or remove it", pair[1]), "cannot use %q without %q", pair[0], pair[1])
		}
	}
}

// taskHint says what to write instead of a key that no task has.
func (l *loader) taskHint(key string, known fields) string {
	if short := key[strings.LastIndexByte(key, '.')+1:]; short != key && l.isModule(short) {
		return "write " + short + ": modules have short names here"
	}
	if module := renamed[key]; module != "" && l.isModule(module) {
		return "use the module " + module
	}
	if hint := taskHints[key]; hint != "" {
		return hint
	}
	if strings.HasPrefix(key, "with_") {
		return "write `loop` with an expression, a list or a mapping"
	}
	if hint := DidYouMean(key, append(slices.Collect(maps.Keys(known)), l.modules...)); hint != "" || len(l.modules) == 0 {
		return hint
	}
	return "modules are " + strings.Join(slices.Sorted(slices.Values(l.modules)), ", ")
}

// imported reads the list of tasks in another file, named relative to the file that names it.
func (l *loader) imported(e Entry, from trail) ([]*Value, trail) {
	target := l.literal(e)
	if target == "" {
		return nil, nil
	}
	pos := e.Value.Pos
	name := path.Join(path.Dir(from[len(from)-1]), target)
	if path.IsAbs(target) || !fs.ValidPath(name) {
		l.errorf(pos, "name a file beside this one, or in a directory beside it", "cannot import %q: it lies outside the directory of the runbook", target)
		return nil, nil
	}
	switch l.imports++; {
	case l.imports > maxImports:
		if l.imports == maxImports+1 {
			l.errorf(pos, "", "cannot import %q: the runbook imports more than %d files", target, maxImports)
		}
		return nil, nil
	case slices.Contains(from, name):
		l.errorf(pos, "", "cannot import %q: it would import itself: %s", target, strings.Join(append(slices.Clone(from), name), " → "))
		return nil, nil
	case len(from) > maxImportDepth:
		l.errorf(pos, "", "cannot import %q: imports are nested more than %d deep", target, maxImportDepth)
		return nil, nil
	}
	f := l.read(name)
	switch {
	case f.err != nil:
		l.errorf(pos, l.fileHint(name), "cannot import %q: %s", target, strings.TrimPrefix(f.err.Msg, "cannot read the file: "))
		return nil, nil
	case f.value == nil:
		return nil, nil
	case f.value.Kind != List:
		l.errorf(f.value.Pos, "begin each task with `- `", "cannot import %s: the file must be a list of tasks", f.value.Kind)
	}
	return f.value.List, append(slices.Clone(from), name)
}

// fileHint names a file that may have been meant.
func (l *loader) fileHint(name string) string {
	files, _ := fs.ReadDir(l.fsys, path.Dir(name))
	var names []string
	for _, f := range files {
		if !f.IsDir() {
			names = append(names, f.Name())
		}
	}
	return DidYouMean(path.Base(name), names)
}

func (l *loader) loop(e Entry) *Value {
	switch e.Value.Kind {
	case List, Map:
	case String, Null:
		l.expression(e.Key, e.Value)
	default:
		l.errorf(e.Value.Pos, "write an expression, a list or a mapping", "cannot loop over %s", e.Value.Kind)
	}
	return e.Value
}

func (l *loader) loopControl(t *Task, e Entry) {
	l.fields(e.Value, "loop_control", fields{
		"loop_var": func(e Entry) {
			if e.Value.Str != "item" {
				t.LoopVar = l.name(e)
			}
		},
		"index_var": func(e Entry) { t.IndexVar = l.name(e) },
		"label":     func(e Entry) { t.LoopLabel = l.stringValue(e) },
	}, loopHints)
	if t.IndexVar != "" && t.IndexVar == t.LoopVar {
		l.errorf(e.Pos, "", "cannot use %q for both the item and its index", t.IndexVar)
	}
}

// count reads a whole number from 1, or a string with a hole.
func (l *loader) count(e Entry) *Value {
	if !e.Value.HasHole() && (e.Value.Kind != Int || e.Value.Int < 1) {
		l.errorf(e.Value.Pos, "write a whole number, at least 1", "cannot use this as %q", e.Key)
	}
	return e.Value
}

// duration reads seconds, a string such as 1m30s, or a string with a hole.
func (l *loader) duration(e Entry) *Value {
	if _, ok := Seconds(e.Value.Any()); !ok && !e.Value.HasHole() {
		l.errorf(e.Value.Pos, "write seconds, or a string such as 1m30s", "cannot use this as %q", e.Key)
	}
	return e.Value
}
