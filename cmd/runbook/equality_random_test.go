package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// randomTask is what the harness knows of a task beyond what the book says.
type randomTask struct {
	touches []string // paths below the root that it may change
	reads   []string // of a reading command: the paths it declares; nil if it declares none
	reading bool     // it changes nothing: a reading command, an assertion, a wait
	opaque  bool     // a command that does not declare what it writes
	act     bool     // what it does is no state that a second check can find
	mayFail bool     // a command whose failure nobody can foresee
	handler bool
	dynamic bool // what it does hangs on what other tasks registered
}

// randomBook is a runbook and a tree that it works on, made from a seed.
type randomBook struct {
	*rand.Rand
	names    []string // paths below the root, relative, parents first
	tree     map[string]randomEntry
	tasks    map[string]*randomTask // by name
	handlers []string
	topics   []string
	book     map[string]any
	files    fstest.MapFS
	links    [][2]string
	opaque   bool // commands may do anything, undeclared
}

type randomEntry struct {
	kind, text string
	mode       os.FileMode
}

var (
	randomTexts = []string{"one\n", "one\ntwo\n", "[s]\nkey = 1\n", "[s]\nkey = 2\n[t]\n", "", "no end", "{{ word }}\n"}
	randomWords = []string{"one", "two", "key = 1", "# x"}
)

func newRandomBook(seed uint64) *randomBook {
	b := &randomBook{Rand: rand.New(rand.NewPCG(seed, 1)), tree: map[string]randomEntry{}, tasks: map[string]*randomTask{}, files: fstest.MapFS{}}
	all := []string{"d0", "f0", "f1", "l0", "d0/f2", "d0/d1", "d0/d1/f3", "d2", "d2/f4", "f5", "d2/l1", "f6", "d3", "d3/d4/f7", "f8", "l2"}
	b.names = all[:4+b.IntN(len(all)-4)]
	b.opaque = b.chance(15)
	for _, name := range b.names {
		b.grow(name)
	}
	for i, text := range randomTexts {
		b.files[fmt.Sprintf("t%d", i)] = &fstest.MapFile{Data: []byte(text)}
	}
	play := map[string]any{"hosts": "a", "vars": map[string]any{"word": "word", "list": []any{"x", "y"}}}
	for i := range b.IntN(4) {
		name := fmt.Sprintf("h%d", i)
		b.handlers = append(b.handlers, name)
	}
	if len(b.handlers) > 1 {
		b.topics = []string{"topic"}
	}
	play["tasks"] = b.list("", 2+b.IntN(9), 0, nil)
	var handlers []any
	for i, name := range b.handlers {
		h := b.module(name, nil)
		if i > 0 && b.chance(60) {
			h["listen"] = "topic"
		}
		if len(b.topics) > 0 && i == len(b.handlers)-1 {
			h["listen"] = "topic"
		}
		if i > 0 && b.chance(20) {
			h["notify"] = b.handlers[b.IntN(i)]
		}
		b.tasks[name].handler = true
		handlers = append(handlers, h)
	}
	if handlers != nil {
		play["handlers"] = handlers
	}
	b.book = map[string]any{"runbook": "random", "params": map[string]any{"root": map[string]any{"type": "path", "required": true}}, "plays": []any{play}}
	data, err := json.MarshalIndent(b.book, "", " ")
	if err != nil {
		panic(err)
	}
	b.files["book.yml"] = &fstest.MapFile{Data: data}
	return b
}

func (b *randomBook) chance(percent int) bool { return b.IntN(100) < percent }

func pick[T any](b *randomBook, list ...T) T { return list[b.IntN(len(list))] }

// grow puts something at a path of the tree, of the kind that its name suggests, mostly.
func (b *randomBook) grow(name string) {
	if b.chance(35) {
		return
	}
	if dir := path.Dir(name); dir != "." && b.tree[dir].kind != "directory" {
		return
	}
	kind := path.Base(name)[:1]
	if b.chance(6) {
		kind = pick(b, "d", "f", "l")
	}
	if kind == "l" && b.isDir(name) {
		return // what is one file under two names is a matter of its own
	}
	switch kind {
	case "d":
		b.tree[name] = randomEntry{kind: "directory", mode: pick(b, os.FileMode(0o755), 0o755, 0o700)}
	case "f":
		b.tree[name] = randomEntry{kind: "file", text: pick(b, randomTexts...), mode: pick(b, os.FileMode(0o644), 0o644, 0o600, 0o755)}
	case "l":
		to := b.name()
		b.tree[name] = randomEntry{kind: "link", text: to}
		b.links = append(b.links, [2]string{name, to})
	}
}

// isDir reports whether paths of the pool lie below a name.
func (b *randomBook) isDir(name string) bool {
	return slices.ContainsFunc(b.names, func(other string) bool { return strings.HasPrefix(other, name+"/") })
}

// plant makes the tree below a root.
func (b *randomBook) plant(root string) error {
	for _, name := range b.names {
		full := filepath.Join(root, name)
		var err error
		switch e := b.tree[name]; e.kind {
		case "directory":
			if err = os.Mkdir(full, 0o700); err == nil {
				err = os.Chmod(full, e.mode)
			}
		case "file":
			if err = os.WriteFile(full, []byte(e.text), 0o600); err == nil {
				err = os.Chmod(full, e.mode)
			}
		case "link":
			err = os.Symlink(filepath.Join(root, e.text), full)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// name is a path of the pool; one of a kind if kinds are given, mostly.
func (b *randomBook) name(kinds ...string) string {
	var fitting []string
	for _, name := range b.names {
		if slices.Contains(kinds, path.Base(name)[:1]) {
			fitting = append(fitting, name)
		}
	}
	if len(fitting) == 0 || b.chance(3) {
		return pick(b, b.names...)
	}
	return pick(b, fitting...)
}

func at(name string) string { return "{{ root }}/" + name }

// list makes a list of tasks. known are the results that they may look at.
func (b *randomBook) list(prefix string, n, depth int, known []result) []any {
	var list []any
	known = slices.Clone(known)
	for i := range n {
		name := fmt.Sprintf("%st%02d", prefix, i)
		if depth < 2 && b.chance(9) {
			block := map[string]any{"block": b.list(name+"b", 1+b.IntN(3), depth+1, known)}
			if b.chance(60) {
				block["rescue"] = b.list(name+"r", 1+b.IntN(2), depth+1, known)
			}
			if b.chance(50) || block["rescue"] == nil {
				block["always"] = b.list(name+"a", 1+b.IntN(2), depth+1, known)
			}
			list = append(list, block)
			continue
		}
		if b.chance(4) {
			list = append(list, map[string]any{"meta": "flush_handlers"})
			continue
		}
		t := b.module(name, known)
		b.adorn(name, t, known)
		if b.chance(45) {
			r := result{name: "r" + strings.ReplaceAll(name, "t", "_"), looped: t["loop"] != nil, command: t["command"] != nil}
			t["register"] = r.name
			known = append(known, r)
		}
		list = append(list, t)
	}
	return list
}

// result is a registered name.
type result struct {
	name            string
	looped, command bool
}

// condition is an expression about what tasks registered.
func (b *randomBook) condition(known []result) string {
	r := known[max(0, len(known)-1-b.IntN(3))]
	options := []string{r.name + ".changed", "!" + r.name + ".changed", r.name + ".skipped", "!" + r.name + ".failed"}
	if r.command && !r.looped {
		options = append(options, fmt.Sprintf(`(%s?.stdout ?? "") == "one"`, r.name), fmt.Sprintf(`(%s?.stdout ?? "") != ""`, r.name), fmt.Sprintf(`(%s?.rc ?? 0) == 0`, r.name))
	}
	return pick(b, options...)
}

// adorn adds the keys that any task may have.
func (b *randomBook) adorn(name string, t map[string]any, known []result) {
	if len(known) > 0 && b.chance(30) {
		t["when"], b.tasks[name].dynamic = b.condition(known), true
	} else if b.chance(4) {
		t["when"] = pick(b, "word == \"word\"", "word == \"other\"")
	}
	if len(b.handlers) > 0 && b.chance(30) {
		h := pick(b, append(slices.Clone(b.handlers), b.topics...)...)
		t["notify"] = h
	}
	if b.chance(12) {
		t["ignore_errors"] = true
	}
	if _, isCommand := t["command"]; isCommand {
		switch {
		case b.chance(5):
			t["changed_when"] = pick[any](b, `(result?.stdout ?? "") contains "one"`, "result.rc == 0", false)
			b.tasks[name].act = true
		case b.chance(5):
			t["failed_when"] = pick(b, `(result?.stdout ?? "") contains "two"`, "result.rc > 1")
			b.tasks[name].mayFail = true
		case b.chance(5):
			t["until"] = pick(b, `(result?.stdout ?? "") contains "one"`, "result.rc == 0")
			t["retries"], t["delay"] = 1, 0
		}
	}
	if info := b.tasks[name]; t["changed_when"] != nil {
		if t["changed_when"] == false && !info.reading { // a book must not lie
			t["command"] = map[string]any{"argv": []any{"true"}}
			*info = randomTask{act: true}
		}
		info.reading, info.act = t["changed_when"] == false, true
	}
}

// module makes a task of some module.
func (b *randomBook) module(name string, known []result) map[string]any {
	info := &randomTask{}
	b.tasks[name] = info
	t := map[string]any{"name": name}
	touch := func(names ...string) { info.touches = append(info.touches, names...) }
	text := func() string {
		for range 3 {
			if len(known) > 0 && b.chance(12) {
				if r := pick(b, known...); r.command && !r.looped {
					info.dynamic = true
					return fmt.Sprintf(`{{ %s?.stdout ?? "none" }}`, r.name)
				}
			}
		}
		return pick(b, randomTexts...)
	}
	word := func(words ...string) string {
		if len(known) > 0 && b.chance(12) {
			if r := pick(b, known...); !r.looped {
				info.dynamic = true
				return fmt.Sprintf(`is {{ %s.changed }}`, r.name)
			}
		}
		return pick(b, words...)
	}
	mode := func(args map[string]any, percent int, modes ...string) {
		if b.chance(percent) {
			args["mode"] = pick(b, modes...)
		}
	}
	switch kind := b.IntN(100); {
	case kind < 11:
		p := b.name("d")
		touch(p)
		args := map[string]any{"path": at(p), "state": "directory"}
		mode(args, 40, "0755", "0700")
		if args["mode"] != nil && b.chance(30) {
			args["recurse"] = true
		}
		t["file"] = args
	case kind < 17:
		p := b.name("f")
		touch(p)
		args := map[string]any{"path": at(p), "state": pick(b, "touch", "touch", "file")}
		mode(args, 40, "0644", "0600", "0755")
		t["file"] = args
	case kind < 23:
		p, src := b.name("l"), b.name("f", "d", "l")
		if b.isDir(p) {
			p = "l0"
		}
		for src == p {
			src = pick(b, b.names...)
		}
		touch(p)
		b.links = append(b.links, [2]string{p, src})
		args := map[string]any{"path": at(p), "state": "link", "src": at(src)}
		if b.chance(20) && path.Base(src) != path.Base(p) {
			args["src"] = path.Base(src)
			b.links = append(b.links, [2]string{p, path.Join(path.Dir(p), path.Base(src))})
		}
		if b.chance(50) {
			args["force"] = true
		}
		t["file"] = args
	case kind < 32:
		p := b.name()
		touch(p)
		args := map[string]any{"path": at(p), "state": "absent"}
		if len(known) > 0 && b.chance(10) {
			if r, other := pick(b, known...), b.name(); !r.looped {
				touch(other)
				info.dynamic, info.opaque = true, true
				args["path"] = fmt.Sprintf("{{ root }}/{{ %s.changed ? %q : %q }}", r.name, p, other)
			}
		}
		if b.chance(75) {
			args["recurse"] = true
		}
		t["file"] = args
	case kind < 43:
		p := b.name("f", "f", "l")
		touch(p)
		args := map[string]any{"dest": at(p), "content": text()}
		mode(args, 35, "0644", "0600")
		if b.chance(12) {
			args["force"] = false
		}
		t["copy"] = args
		if b.chance(15) {
			other := b.name("f")
			touch(other)
			args["dest"] = "{{ root }}/{{ item }}"
			t["loop"] = []any{p, other}
		}
	case kind < 50:
		p := b.name("f", "f", "l")
		touch(p)
		args := map[string]any{"src": fmt.Sprintf("t%d", b.IntN(len(randomTexts))), "dest": at(p)}
		if len(known) > 0 && b.chance(35) {
			if r := pick(b, known...); r.command && !r.looped {
				info.dynamic = true
				src := "t-" + r.name
				b.files[src] = &fstest.MapFile{Data: fmt.Appendf(nil, "said: {{ %s?.stdout ?? \"\" }}\n", r.name)}
				args["src"] = src
			}
		}
		mode(args, 35, "0644", "0600")
		t["template"] = args
	case kind < 58:
		p := b.name("f", "f", "l")
		touch(p)
		args := map[string]any{"path": at(p), "line": word(randomWords...)}
		if b.chance(30) {
			args["regexp"] = pick(b, "^one", "^key")
		}
		if b.chance(30) {
			args["state"] = "absent"
		} else if b.chance(75) {
			args["create"] = true
		}
		mode(args, 20, "0644", "0600")
		t["line"] = args
	case kind < 64:
		p := b.name("f", "f", "l")
		touch(p)
		args := map[string]any{"path": at(p), "name": pick(b, "A", "B"), "block": word("one\n", "x\ny\n")}
		if b.chance(25) {
			args["state"] = "absent"
		} else if b.chance(75) {
			args["create"] = true
		}
		mode(args, 20, "0644", "0600")
		t["blockinfile"] = args
	case kind < 70:
		p := b.name("f", "f", "l")
		touch(p)
		args := map[string]any{"path": at(p), "section": pick(b, "s", "t"), "option": "key", "value": word("1", "2")}
		if b.chance(25) {
			args["state"] = "absent"
			delete(args, "value")
		} else if b.chance(75) {
			args["create"] = true
		}
		t["ini"] = args
	case kind < 77 && len(known) > 0:
		info.reading = true
		args := map[string]any{"that": b.condition(known)}
		if b.chance(50) {
			args["severity"] = "warn"
		}
		t["assert"] = args
	case kind < 80:
		info.reading = true
		args := map[string]any{"path": at(b.name()), "timeout": "20ms", "sleep": "10ms"}
		if b.chance(30) {
			args["state"] = "absent"
		} else if b.chance(20) {
			args["search_regex"] = "one"
		}
		t["wait_for"] = args
	default:
		t["command"] = b.command(info)
	}
	return t
}

// command makes the arguments of a command: its text does what its arguments say that it does.
func (b *randomBook) command(info *randomTask) map[string]any {
	p := b.name("f", "d", "l")
	full := `"` + at(p) + `"`
	info.mayFail = strings.Contains(p, "/")
	args := map[string]any{}
	declared := func() (list []any) {
		for _, name := range b.about([]string{p}) {
			list = append(list, at(name))
		}
		return list
	}
	writes := func() {
		info.touches = append(info.touches, p)
		if b.chance(70) || !b.opaque {
			args["writes"] = declared()
		} else {
			info.opaque = true
		}
	}
	reads := func() {
		if b.chance(70) {
			args["reads"], info.reads = declared(), b.about([]string{p})
		}
	}
	switch b.IntN(8) {
	case 0:
		args["shell"], args["creates"] = "echo one > "+full, at(p)
		writes()
	case 1:
		args["shell"], args["removes"], info.mayFail = "rm -rf "+full, at(p), false
		writes()
	case 2:
		args["shell"], args["unless"] = fmt.Sprintf("rm -rf %[1]s; echo one > %[1]s", full), "grep -qx one "+full
		writes()
		reads()
	case 3:
		args["shell"], args["onlyif"], info.act = "echo two >> "+full, "test -f "+full, true
		writes()
		reads()
	case 4:
		args["shell"], info.act = fmt.Sprintf("rm -rf %[1]s; echo two > %[1]s", full), true
		writes()
	case 5:
		args["shell"], args["read"], info.reading = "test -e "+full, true, true
		args["ok_codes"] = []any{0, 1}
		reads()
	case 6:
		args["shell"], args["read"], info.reading = fmt.Sprintf("cat %s 2>/dev/null || true", full), true, true
		reads()
	case 7:
		args["shell"], args["read"], info.reading = "cat "+full, true, true
		reads()
	}
	return args
}

// about is what a task touches, with all that links may lead to.
func (b *randomBook) about(names []string) []string {
	seen := map[string]bool{}
	var follow func(name string)
	follow = func(name string) {
		if seen[name] || len(seen) > 200 {
			return
		}
		seen[name] = true
		for _, l := range b.links {
			if name == l[0] || strings.HasPrefix(name, l[0]+"/") {
				follow(path.Join(l[1], strings.TrimPrefix(name, l[0])))
			}
		}
	}
	for _, name := range names {
		follow(name)
	}
	return slices.Sorted(maps.Keys(seen))
}

// related reports whether one of some paths is, or lies above or below, one of others.
func related(some, others []string) bool {
	for _, a := range some {
		for _, o := range others {
			if a == o || strings.HasPrefix(a, o+"/") || strings.HasPrefix(o, a+"/") {
				return true
			}
		}
	}
	return false
}

// String is the book, a task on a line, and the tree.
func (b *randomBook) String() string {
	var out strings.Builder
	for _, name := range b.names {
		if e := b.tree[name]; e.kind != "" {
			fmt.Fprintf(&out, "%s: %s %04o %q\n", name, e.kind, e.mode, e.text)
		}
	}
	var show func(indent string, list any)
	show = func(indent string, list any) {
		tasks, _ := list.([]any)
		for _, item := range tasks {
			t := maps.Clone(item.(map[string]any))
			if t["block"] == nil {
				data, _ := json.Marshal(t)
				fmt.Fprintf(&out, "%s- %s\n", indent, data)
				continue
			}
			for _, part := range []string{"block", "rescue", "always"} {
				if t[part] != nil {
					fmt.Fprintf(&out, "%s- %s:\n", indent, part)
					show(indent+"  ", t[part])
				}
			}
		}
	}
	play := b.book["plays"].([]any)[0].(map[string]any)
	show("", play["tasks"])
	if play["handlers"] != nil {
		out.WriteString("handlers:\n")
		show("", play["handlers"])
	}
	return out.String()
}

// prepare makes a root with the tree in it.
func (b *randomBook) prepare(t testing.TB) string {
	t.Helper()
	root, err := os.MkdirTemp("", "runbook-equality-")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.plant(root); err != nil {
		os.RemoveAll(root)
		t.Fatal(err)
	}
	return root
}
