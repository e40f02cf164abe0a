package vars

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustText(t testing.TB, src string) Tree {
	t.Helper()
	scope := NewScope().WithAll(map[string]Type{"a": Any, "b": Any, "c": Any, "d": Any, "x": Any})
	tree, err := CompileText(src, scope)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestLayers(t *testing.T) {
	s := NewStack()
	want := func(s *Stack, value any, layer Layer, origin string) {
		t.Helper()
		v, err := s.Lookup("x")
		l, o, ok := s.Origin("x")
		if err != nil || v != value || l != layer || o != origin || !ok {
			t.Errorf("%v, %v from %v %q; want %v from %v %q", v, err, l, o, value, layer, origin)
		}
	}
	s.Set(Group, "x", Const("group"), "g")
	want(s, "group", Group, "g")
	s.Set(Defaults, "x", Const("default"), "d")
	want(s, "group", Group, "g")
	s.Set(Group, "x", Const("later group"), "g2")
	want(s, "later group", Group, "g2")
	play := s.With(PlayVars, map[string]Tree{"x": Const("play")}, "p")
	task := play.With(PlayVars, map[string]Tree{"x": Const("task")}, "t")
	want(play, "play", PlayVars, "p")
	want(task, "task", PlayVars, "t")
	want(s, "later group", Group, "g2")
	s.Set(CommandLine, "x", Const("cli"), "-e")
	want(task, "cli", CommandLine, "-e")
	s.Set(Defaults, "y", Const(1), "")
	if diff := cmp.Diff([]string{"x", "y"}, task.Names()); diff != "" {
		t.Error(diff)
	}
	if _, _, ok := s.Origin("z"); ok {
		t.Error("z has an origin")
	}
}

func TestLookup(t *testing.T) {
	s := NewStack()
	s.Set(Defaults, "a", mustText(t, "{{ b }}-{{ c }}"), "defaults.yml:1:1")
	s.Set(Group, "b", mustText(t, "{{ c }}"), "")
	s.Set(HostVars, "c", Const("host"), "")
	if v, err := s.Lookup("a"); err != nil || v != "host-host" {
		t.Error(v, err)
	}
	// A variable is evaluated where it is used.
	if v, err := s.With(PlayVars, map[string]Tree{"c": Const("task")}, "").Lookup("a"); err != nil || v != "task-task" {
		t.Error(v, err)
	}
	s.Set(HostVars, "c", Const("new"), "")
	if v, err := s.Lookup("a"); err != nil || v != "new-new" {
		t.Error(v, err)
	}
	_, err := s.Lookup("aa")
	if u, ok := errors.AsType[*UndefinedError](err); !ok || u.Name != "aa" || err.Error() != `"aa" is not defined (did you mean "a"?)` {
		t.Error(err)
	}
	s.Set(Defaults, "a", mustText(t, "{{ d }}"), "defaults.yml:1:1")
	_, err = s.Lookup("a")
	if u, ok := errors.AsType[*UndefinedError](err); !ok || u.Name != "d" || !strings.HasPrefix(err.Error(), `variable "a" (defaults.yml:1:1): "d" is not defined`) {
		t.Error(err)
	}
	// ?? is for the variable itself, not for a mistake in its value.
	e, _ := CompileExpr(`a ?? 1`, NewScope().With("a", Any))
	if v, err := e.Eval(s); err == nil {
		t.Error(v)
	}
	s.Set(Defaults, "a", mustText(t, "x{{ x.y.z }}"), "defaults.yml:1:1")
	s.Set(Defaults, "x", Const(map[string]any{}), "")
	_, err = s.Lookup("a")
	if _, placed := errors.AsType[*Error](err); placed || err.Error() != `variable "a" (defaults.yml:1:1): 1:7: x has no key "y" (write ?. or ?? if it may be missing)` {
		t.Error("the place in another source must not be taken for one in this:", err)
	}
}

func TestCycles(t *testing.T) {
	s := NewStack()
	s.Set(Defaults, "a", mustText(t, "{{ b }}"), "a.yml")
	s.Set(Defaults, "b", mustText(t, "x{{ c }}"), "")
	s.Set(Defaults, "c", Const(1), "")
	if err := s.Cycles(); err != nil {
		t.Error(err)
	}
	s.Set(Group, "c", ListTree([]Tree{mustText(t, "{{ a }}")}), "")
	if err := s.Cycles(); err == nil || !strings.Contains(err.Error(), "a → b → c → a") {
		t.Error(err)
	}
	if _, err := s.Lookup("b"); err == nil || !strings.Contains(err.Error(), "b → c → a → b") {
		t.Error(err)
	}
	s.Set(HostVars, "c", mustText(t, "{{ c }}1"), "")
	if _, err := s.Lookup("c"); err == nil || !strings.Contains(err.Error(), "c → c") {
		t.Error(err)
	}
}

// A chain of variables that doubles at every step is evaluated once per variable, and its size is bounded.
func TestDoublingVariables(t *testing.T) {
	s := NewStack()
	scope := NewScope()
	s.Set(Defaults, "v0", Const("0123456789"), "")
	for i := 1; i < 60; i++ {
		scope = scope.With(fmt.Sprintf("v%d", i-1), Any)
		tree, err := CompileText(fmt.Sprintf("{{ v%d }}{{ v%[1]d }}", i-1), scope)
		if err != nil {
			t.Fatal(err)
		}
		s.Set(Defaults, fmt.Sprintf("v%d", i), tree, "")
	}
	if v, err := s.Lookup("v10"); err != nil || len(v.(string)) != 10240 {
		t.Error(err)
	}
	if _, err := s.Lookup("v59"); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Error(err)
	}
}

func TestSetDuringLookups(t *testing.T) {
	s := NewStack()
	s.Set(Defaults, "a", mustText(t, "{{ b }}{{ b }}"), "")
	s.Set(Defaults, "b", Const("0"), "")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			child := s.With(PlayVars, map[string]Tree{"c": Const(1)}, "")
			for range 500 {
				// Within one Lookup a variable has one value.
				if v, err := child.Lookup("a"); err != nil || len(v.(string))%2 != 0 || v.(string)[:len(v.(string))/2] != v.(string)[len(v.(string))/2:] {
					t.Error(v, err)
					return
				}
				child.Names()
			}
		})
	}
	for i := range 500 {
		s.Set(Layer(i%4), "b", Const(fmt.Sprint(i)), "")
	}
	all.Wait()
}
