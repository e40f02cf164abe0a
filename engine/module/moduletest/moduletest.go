// Package moduletest holds modules to their contract, with cases that are data.
//
// A case is a txtar file DIR/MODULE/CASE.txtar. Its comment says what it guards; its files are:
//
//	task            the arguments, as YAML. $ROOT, here and in every other file, is the case's temporary root
//	files/NAME      what an argument that names a file beside the runbook finds
//	before/PATH     the tree below $ROOT at the start
//	after/PATH      the tree after Apply; no after/ at all: the same as before
//	links           lines `before/PATH -> TARGET`
//	modes           lines `before/PATH MODE [OWNER:GROUP]`; a PATH with a final / is a directory. Else 0644 and 0755 hold
//	bin/NAME        commands that come first in PATH
//	flags           lines `root` (skipped for other users), `user NAME` (the task's become user; implies root),
//	                `trips N` (round trips that Check may take where it finds no change; 1 unless said)
//	plan            golden: what Check returns
//	values          golden, optional: what Apply returns, as JSON
//	error           golden, instead of or after plan: `arguments:`, `check:` or `apply:` and the error. At its end `...` stands for
//	                whatever follows
//
// A name in Go quotes may hold any characters. A name that is followed by the word quoted has content in Go quotes, line by line:
// for files without a final newline, or with bytes that are no text. An argument `$SECRET(text)` is a secret; so is
// a template's text that holds one.
//
// Every case asserts that Check changes nothing (content, modes, owners, links and times), that the plan is the golden one,
// that Apply leaves the tree after and changes something if the plan has changes (acts and waits apart), that a second Check of a fresh module finds nothing more, and that no secret
// is in a plan, an error, a script, an argument or the environment. `go test -update` rewrites the goldens.
package moduletest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"runbook/engine/module"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
)

var update = flag.Bool("update", false, "rewrite the golden parts of the contract cases")

// Run runs every case below dir, whose folders are named after the modules.
func Run(t *testing.T, factories map[string]module.Factory, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases below %s: %v", dir, err)
	}
	for _, file := range files {
		name := filepath.Base(filepath.Dir(file))
		t.Run(name+"/"+strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			factory := factories[name]
			if factory == nil {
				t.Fatalf("there is no module %s", name)
			}
			c := load(t, file)
			c.run(t, factory)
			if *update {
				c.save(t)
			}
		})
	}
}

type testCase struct {
	file    string
	archive *txtar.Archive
	root    string // of the tree
	bin     string
	user    string
	trips   int
	secrets []string
}

func load(t *testing.T, file string) *testCase {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCase{file: file, archive: archive, trips: 1}
	needsRoot := false
	for line := range strings.Lines(c.text("flags")) {
		words := append(strings.Fields(line), "", "")
		switch words[0] {
		case "":
		case "root":
			needsRoot = true
		case "user":
			needsRoot, c.user = true, words[1]
		case "trips":
			c.trips, _ = strconv.Atoi(words[1])
		default:
			t.Fatalf("unknown flag %q", line)
		}
	}
	if needsRoot && os.Getuid() != 0 {
		t.Skip("needs root")
	}
	top, err := os.MkdirTemp("", "runbook-case-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	c.root, c.bin = filepath.Join(top, "root"), filepath.Join(top, "bin")
	for _, dir := range []string{top, c.root, c.bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// text is a file of the archive, "" if it is not there.
func (c *testCase) text(name string) string {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func (c *testCase) has(name string) bool {
	return slices.ContainsFunc(c.archive.Files, func(f txtar.File) bool { return f.Name == name })
}

// golden compares got with a file of the archive, or puts it there.
func (c *testCase) golden(t *testing.T, name, got string) {
	t.Helper()
	c.noSecrets(t, name, got)
	got = strings.ReplaceAll(got, c.root, "$ROOT")
	if !strings.HasSuffix(got, "\n") {
		got += "\n"
	}
	if begin, open := strings.CutSuffix(c.text(name), "...\n"); open && strings.HasPrefix(got, begin) {
		return
	}
	if *update {
		for i := range c.archive.Files {
			if c.archive.Files[i].Name == name {
				c.archive.Files[i].Data = []byte(got)
				return
			}
		}
		c.archive.Files = append(c.archive.Files, txtar.File{Name: name, Data: []byte(got)})
		return
	}
	if diff := cmp.Diff(c.text(name), got); diff != "" {
		t.Errorf("%s differs from the golden one (-golden +got):\n%s", name, diff)
	}
}

func (c *testCase) save(t *testing.T) {
	if err := os.WriteFile(c.file, txtar.Format(c.archive), 0o644); err != nil {
		t.Error(err)
	}
}

func (c *testCase) noSecrets(t *testing.T, where, text string) {
	t.Helper()
	for _, s := range c.secrets {
		if strings.Contains(text, s) {
			t.Errorf("a secret is shown in %s:\n%s", where, text)
		}
	}
}

// fails compares err with the golden error. It reports whether the case ends here.
func (c *testCase) fails(t *testing.T, phase string, err error) bool {
	t.Helper()
	if err != nil {
		c.golden(t, "error", phase+": "+err.Error())
	}
	return err != nil
}

func (c *testCase) run(t *testing.T, factory module.Factory) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if *update {
		c.archive.Files = slices.DeleteFunc(c.archive.Files, func(f txtar.File) bool {
			return f.Name == "plan" || f.Name == "error" && !bytes.HasSuffix(f.Data, []byte("...\n"))
		})
	}
	wantErr := c.has("error")
	args := c.args(t, factory())
	m := factory()
	if c.fails(t, "arguments", module.Decode(m, args)) {
		return
	}

	before := c.tree(t, "before")
	after := before
	if c.mentions("after/") {
		after = c.tree(t, "after")
	}
	before.write(t, c.root)
	c.writeStubs(t)
	conn, err := transport.Connect(ctx, transport.Config{Connection: "local", Name: "local"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	spy := &spy{Conn: conn, t: t, c: c}
	host := &module.Host{
		Name: "local", Conn: spy, User: c.user,
		Env: map[string]string{"PATH": c.bin + ":" + os.Getenv("PATH"), "ROOT": c.root, "LC_ALL": "C"},
	}
	host.FactsFunc = func(ctx context.Context) (module.Facts, error) { return module.GatherFacts(ctx, conn) }

	start := snapshot(t, c.root)
	plan, err := m.Check(ctx, host)
	same(t, "Check changed the tree", start, snapshot(t, c.root))
	if c.fails(t, "check", err) {
		return
	}
	if len(plan.Changes) == 0 && spy.trips > c.trips {
		t.Errorf("Check took %d round trips, want %d at most", spy.trips, c.trips)
	}
	c.golden(t, "plan", planText(plan))

	if len(plan.Changes) > 0 || plan.Unknown != "" {
		values, err := m.Apply(ctx, host, plan)
		after.compare(t, c.root)
		if c.fails(t, "apply", err) {
			return
		}
		c.noSecrets(t, "the values", valuesText(values))
		if c.has("values") {
			c.golden(t, "values", valuesText(values))
		}
	} else {
		after.compare(t, c.root)
	}
	if wantErr && (!*update || c.has("error")) {
		t.Errorf("no error, want: %s", c.text("error"))
	}
	if plan.Unknown != "" || plan.Act {
		return
	}
	if applied := snapshot(t, c.root); len(plan.Changes) > 0 && !plan.Wait && cmp.Equal(start, applied) {
		t.Errorf("the plan has changes, and Apply changed nothing:\n%s", planText(plan))
	}
	again := factory()
	if err := module.Decode(again, args); err != nil {
		t.Fatal(err)
	}
	applied := snapshot(t, c.root)
	second, err := again.Check(ctx, host)
	if err != nil {
		t.Fatalf("second check: %v", err)
	}
	if len(second.Changes) > 0 || second.Unknown != "" {
		t.Errorf("did not converge: a second check finds\n%s", planText(second))
	}
	same(t, "the second Check changed the tree", applied, snapshot(t, c.root))
}

// args reads the task, with the types that the engine would make of it.
func (c *testCase) args(t *testing.T, m module.Module) map[string]any {
	value, err := spec.LoadValue("task", []byte(c.expand(c.text("task"))))
	if err != nil {
		t.Fatal(err)
	}
	fields := module.Fields(m)
	args, ok := value.Any().(map[string]any)
	if !ok {
		i := slices.IndexFunc(fields, func(f module.Field) bool { return f.Short })
		if i < 0 {
			t.Fatal("the task is no mapping, and the module has no short form")
		}
		args = map[string]any{fields[i].Name: value.Any()}
	}
	for _, f := range fields {
		if given, ok := args[f.Name]; ok {
			args[f.Name] = c.engineType(t, f, given)
		}
	}
	return args
}

func (c *testCase) engineType(t *testing.T, f module.Field, value any) any {
	switch reflect.Zero(f.GoType).Interface().(type) {
	case module.Template:
		text := c.attachment(t, value)
		rendered := secretHole.ReplaceAllStringFunc(text, func(hole string) string { return c.reveal(hole) })
		shown := secretHole.ReplaceAllLiteralString(text, secret.Mask)
		return module.Template{Path: fmt.Sprint(value), Text: rendered, Secret: rendered != text, Shown: shown}
	case module.Content:
		return module.Content{Path: fmt.Sprint(value), Data: []byte(c.attachment(t, value))}
	case []module.Condition:
		items, ok := value.([]any)
		if !ok {
			items = []any{value}
		}
		conditions := make([]any, len(items))
		for i, item := range items {
			fields, ok := item.(map[string]any)
			if !ok {
				return value
			}
			source, _ := fields["source"].(string)
			holds, _ := fields["value"].(bool)
			operands, _ := fields["operands"].(string)
			conditions[i] = module.Condition{Source: source, Value: holds, Operands: operands}
		}
		return conditions
	}
	return c.withSecrets(value)
}

func (c *testCase) attachment(t *testing.T, name any) string {
	path := "files/" + fmt.Sprint(name)
	for _, f := range c.archive.Files {
		if base, ok := entryName(f.Name); base == path {
			return c.content(t, f, ok)
		}
	}
	t.Fatalf("the case has no %s", path)
	return ""
}

// spy counts round trips, and looks for secrets where they must not be.
type spy struct {
	transport.Conn
	t     *testing.T
	c     *testCase
	trips int
}

func (s *spy) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	s.trips++
	s.c.noSecrets(s.t, "an argument list", strings.Join(cmd.Args, " "))
	s.c.noSecrets(s.t, "a script", cmd.Script)
	s.c.noSecrets(s.t, "the environment", fmt.Sprint(cmd.Env))
	return s.Conn.Run(ctx, cmd)
}

// planText is a plan as the goldens have it.
func planText(p module.Plan) string {
	var b strings.Builder
	if len(p.Changes) == 0 && p.Unknown == "" {
		b.WriteString("ok\n")
	}
	for _, change := range p.Changes {
		fmt.Fprintf(&b, "change %s\n", change.What)
		for _, side := range []struct{ mark, text string }{{"-", change.Before}, {"+", change.After}} {
			for line := range strings.Lines(side.text) {
				fmt.Fprintf(&b, "  %s %s\n", side.mark, strings.TrimSuffix(line, "\n"))
			}
		}
	}
	if p.Unknown != "" {
		fmt.Fprintf(&b, "unknown because %s\n", p.Unknown)
	}
	if p.Act {
		b.WriteString("an act\n")
	}
	if p.Pending {
		b.WriteString("values are pending\n")
	}
	if len(p.Values) > 0 {
		fmt.Fprintf(&b, "values %s", valuesText(p.Values))
	}
	return b.String()
}

func valuesText(v module.Values) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err.Error() + "\n"
	}
	return b.String()
}
