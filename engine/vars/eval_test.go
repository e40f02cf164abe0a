package vars

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"runbook/engine/secret"
)

func mustExpr(t testing.TB, src string) *Expr {
	t.Helper()
	e, err := CompileExpr(src, testScope())
	if err != nil {
		t.Fatalf("%s: %v", src, err)
	}
	return e
}

func TestExprMistakesInEvaluation(t *testing.T) {
	for src, want := range map[string]string{
		`dump.log_fil`:                        `1:6: dump has no key "log_fil" (did you mean "log_file"?)`,
		`loose.zzz`:                           `1:7: loose has no key "zzz" (there is a, none, secret, text)`,
		`loose.none.x`:                        `1:12: loose.none has no value, so loose.none.x has none (write ?. or ?? if it may be missing)`,
		`loose.text.x`:                        `1:12: loose.text is a string: it has no fields`,
		`dbs[2]`:                              `1:5: dbs has 2 items, so there is none at [2]`,
		`loose.text == 3`:                     `1:12: cannot use == between loose.text (a string) and 3 (an int) (convert one side with int(x) or string(x))`,
		`loose.text + 1`:                      `1:12: cannot use + between loose.text (a string) and 1 (an int) (convert one side with int(x) or string(x))`,
		`!loose.text`:                         `1:1: ! needs true or false, and loose.text is a string (compare: x == "", or empty(x))`,
		`loose.text && tls`:                   `1:7: loose.text must be true or false, and is a string (compare: x == "true", x != "", len(x) > 0)`,
		`upper(loose.a)`:                      `1:1: upper: cannot take a map (it is upper(text) string)`,
		`int(mode)`:                           `1:1: int: the string is not a whole number (it is int(x) int)`,
		`len(loose.none)`:                     `1:1: len: cannot take nil (it is len(x) int)`,
		`port / 0`:                            `1:6: cannot divide by zero`,
		`port % 0`:                            `1:6: cannot divide by zero`,
		`sort([1, "a"])`:                      `1:1: sort: cannot take a list (it is sort(list, order?) list)`,
		`loose.secret == "x"`:                 `1:7: loose.secret is a secret: it cannot be used with == (` + secretHint + `)`,
		`"x" + loose.secret`:                  `1:13: loose.secret is a secret: it cannot be used with + (` + secretHint + `)`,
		`toJSON(loose)`:                       `1:8: loose holds a secret: it cannot be used with toJSON() (` + secretHint + `)`,
		`join(map(users, .password))`:         `1:6: map(users, .password) holds a secret: it cannot be used with join() (` + secretHint + `)`,
		`loose.secret.Reveal`:                 `1:14: loose.secret is a secret: it has no fields (` + secretHint + `)`,
		`sortBy([loose.secret], #)`:           `1:1: sortBy([loose.secret], #) is a secret: it cannot be used with sortBy() (` + secretHint + `)`,
		`undefined_here`:                      `"undefined_here" is not defined`,
		`hosts.nobody`:                        `"nobody" is not defined (no such host)`,
		`dump.later`:                          `not known in check mode: the dump is not made in check mode`,
		`dump`:                                `not known in check mode: the dump is not made in check mode`,
		`toJSON(dump)`:                        `not known in check mode: the dump is not made in check mode`,
		`later ?? 1`:                          `not known in check mode: task a would change it`,
		`later && tls`:                        `not known in check mode: task a would change it`,
		`tls && later`:                        `not known in check mode: task a would change it`,
		`any(dbs, # == "x" || later)`:         `not known in check mode: task a would change it`,
		`later ? 1 : 1`:                       `not known in check mode: task a would change it`,
		`mode matches loose.text + "("`:       "1:25: the pattern is not a regular expression: missing closing ): `3(`",
		`dump[undefined_here] ?? 1`:           `"undefined_here" is not defined`,
		`dump[loose.zzz] ?? 1`:                `1:12: loose has no key "zzz" (there is a, none, secret, text)`,
		`(dump.nope + 1) ?? 1`:                `1:7: dump has no key "nope" (there is later, log_file, log_pos)`,
		`1..2000000`:                          `1:2: the value is too large`,
		`repeat("x", 20000000)`:               `1:1: repeat: the value is too large (it is repeat(text, n) string)`,
		`map(1..1000, map(1..1000, 1..1000))`: `1:1: the value is too large`,
	} {
		v, err := mustExpr(t, src).Eval(testWorld())
		if err == nil || err.Error() != want {
			t.Errorf("%s = %v, %v; want %s", src, v, err, want)
		}
	}
}

func TestErrorsStayReachable(t *testing.T) {
	for _, src := range []string{`facts.os`, `hosts.gone.addr`, `hosts["gone"] ?? 1`, `len(hosts.gone)`, `facts ?? 1`} {
		if _, err := mustExpr(t, src).Eval(testWorld()); !errors.Is(err, errUnreachable) {
			t.Errorf("%s: %v", src, err)
		}
	}
	s := NewStack()
	s.Set(Builtin, "facts", Lazy(Any, func() (any, error) { return nil, errUnreachable }), "")
	s.Set(PlayVars, "os", mustExpr(t, `facts.os`), "play.yml:3:5")
	if _, err := s.Lookup("os"); !errors.Is(err, errUnreachable) {
		t.Error(err)
	}
}

func TestNamesAreLookedUpOnlyWhenReached(t *testing.T) {
	w := testWorld()
	e := mustExpr(t, `off && facts.os == "x" || tls`)
	if diff := cmp.Diff([]string{"facts", "off", "tls"}, e.Names()); diff != "" {
		t.Error(diff)
	}
	if v, err := e.EvalBool(w); err != nil || !v {
		t.Error(v, err)
	}
	if w.asked["facts"] != 0 {
		t.Error("facts were fetched though nothing depended on them")
	}
	if ops := e.Operands(w); w.asked["facts"] != 0 || len(ops) != 2 {
		t.Error("to explain a condition must fetch nothing new:", ops)
	}
}

func TestConditions(t *testing.T) {
	for src, want := range map[string]string{
		`mode`:               `1:1: a condition must be true or false, and this is a value of type string (write mode != "" or len(mode) > 0)`,
		`dbs`:                `1:1: a condition must be true or false, and this is a value of type list (write len(dbs) > 0)`,
		`port`:               `1:1: a condition must be true or false, and this is a value of type int (write port != 0)`,
		`conf.port`:          `1:6: a condition must be true or false, and this is a value of type int (write conf.port != 0)`,
		`password`:           `1:1: a condition must be true or false, and this is a value of type secret (write !empty(password))`,
		`nil`:                `1:1: a condition must be true or false, and this is nil`,
		`tls ? mode : "sla"`: `a condition must be true or false, and this is a value of type string`,
	} {
		if _, err := CompileCond(src, testScope()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", src, err, want)
		}
	}
	// What is not known at load must be boolean when it is evaluated; nothing is true for being there.
	for _, src := range []string{`loose.text`, `loose.a`, `loose.none`, `nothing`, `undefined_here ?? 0`} {
		c, err := CompileCond(src, testScope())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := c.EvalBool(testWorld()); err == nil || b || !strings.Contains(err.Error(), "must be true or false") {
			t.Errorf("%s = %v, %v", src, b, err)
		}
	}
}

func TestOperands(t *testing.T) {
	c, err := CompileCond(`mode == "slave" && port > 1 || hosts[undefined_here ?? "voms1"].dump.log_file == "" || any(users, .age > 90) || mode == "x" || empty(password) || later == 1`, testScope())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range c.Operands(testWorld()) {
		value := fmt.Sprint(o.Value)
		if o.Source == "users" {
			value = "…"
		}
		got = append(got, o.Source+"="+value)
	}
	want := []string{"mode=master", "undefined_here=<nil>", `hosts[undefined_here ?? "voms1"].dump.log_file=bin.1`, "users=…", "password=***", "later=not known in check mode: task a would change it"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHostRefs(t *testing.T) {
	compileTemplate := func(src string) Tree {
		tree, err := CompileTemplate("t", src, testScope())
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	for name, c := range map[string]struct {
		tree Tree
		want []any
	}{
		"members":  {mustExpr(t, `hosts.voms1.addr + hosts["a" + "b"].addr`), []any{"voms1", "ab"}},
		"nested":   {mustExpr(t, `hosts[hosts.voms1.addr]`), []any{"voms1", "10.0.0.1"}},
		"bound":    {mustExpr(t, `map(dbs, hosts[#])`), nil},
		"list":     {ListTree([]Tree{mustExpr(t, `hosts[mode]`), MapTree([]string{"a"}, []Tree{mustExpr(t, `hosts[dbs[0]]`)})}), []any{"master", "voms_atlas"}},
		"template": {compileTemplate("{{ hosts[mode] }}\n{% for d in dbs %}\n{{ hosts[d].x }}{{ hosts[mode + \"1\"] }}\n{% endfor %}\n"), []any{"master", "master1"}},
	} {
		var got []any
		for _, ref := range HostRefs(c.tree) {
			v, err := ref.Eval(testWorld())
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = append(got, v)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Error(name, diff)
		}
	}
	if names := HostRefs(mustExpr(t, `hosts[mode + upper(dbs[0])]`))[0].Names(); !cmp.Equal(names, []string{"dbs", "mode"}) {
		t.Error(names)
	}
}

func TestTypes(t *testing.T) {
	for src, want := range map[string]Type{
		`mode`: String, `port + 1`: Int, `ratio`: Float, `tls && off`: Bool, `password`: Secret, `loose.x`: Any, `dbs`: ListOf(String), `dbs[0]`: String, `options`: MapOf(Int), `options.a`: Int,
		`conf`: Object(map[string]Type{"path": String, "port": Int}), `users[0].password`: Secret, `split(mode, ",")`: ListOf(String), `keys(options)`: ListOf(String), `string(port)`: String, `map(users, .age)`: ListOf(Int),
		`undefined_text ?? "x"`: String,
	} {
		if got := mustExpr(t, src).Type(); !cmp.Equal(got, want) {
			t.Errorf("%s is %v, want %v", src, got, want)
		}
	}
	if got, want := TypeOf(map[string]any{"a": []any{1, 2}, "b": []any{1, "x"}}), Object(map[string]Type{"a": ListOf(Int), "b": ListOf(Any)}); !cmp.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := Join(TypeOf(map[string]any{"a": 1}), TypeOf(map[string]any{"b": 2})), MapOf(Int); !cmp.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// T-inj: what hosts return is data. It comes out as it came in, and nothing is compiled after the book was loaded.
func TestValuesAreNeverExpanded(t *testing.T) {
	hostile := []string{"{{ password }}", "{{", "}}", "{% for x in dbs %}\n", "{% endfor %}", "{# c #}", "${HOME} $(id) `id`", "!!python/object:os.system", "mode == 'x'", "'; DROP TABLE x; --", "\x00\xff\r\n\t", "{{ '{{' }}", "#{1}", "%{x}"}
	single, err := CompileText("{{ loose }}", testScope())
	if err != nil {
		t.Fatal(err)
	}
	several, _ := CompileText("<{{ loose }}|{{ loose + loose }}>", testScope())
	template, _ := CompileTemplate("t", "{% for l in [loose] %}\n{{ l }}\n{% endfor %}\n", testScope())
	stack := NewStack()
	before := Compiled()
	for _, h := range hostile {
		w := testWorld()
		w.values["loose"] = h
		stack.Set(Registered, "loose", Const(h), "")
		for _, env := range []Env{w, stack} {
			for tree, want := range map[Tree]string{single: h, several: "<" + h + "|" + h + h + ">", template: h + "\n"} {
				if got, err := tree.Eval(env); err != nil || got != want {
					t.Errorf("%q: %q, %v", h, got, err)
				}
			}
		}
	}
	if Compiled() != before {
		t.Error("a value was compiled")
	}
}

// No secret shows in any error, value description or operand, whatever an expression tries.
func TestSecretsNeverShow(t *testing.T) {
	operators := []string{"==", "!=", "<", "+", "-", "*", "/", "%", "**", "..", "in", "matches", "contains", "startsWith", "endsWith", "&&", "||", "??"}
	var sources []string
	for _, s := range []string{"password", "loose.secret", "users[0].password", "first([password])", "[password]", "{a: password}", "loose", "users"} {
		for _, op := range operators {
			for _, other := range []string{`"x"`, "1", s} {
				sources = append(sources, s+" "+op+" "+other, other+" "+op+" "+s)
			}
		}
		for _, f := range Functions {
			sources = append(sources, f.Name+"("+s+")", f.Name+"("+s+", "+s+")", f.Name+`("x", `+s+")", f.Name+"("+s+", 1)", f.Name+"(["+s+"], #)", f.Name+"(["+s+"], # == 1)")
		}
		sources = append(sources, "!"+s, "-"+s, s+".x", s+"?.x", s+"[0]", s+"[0:2]", "dump["+s+"]", s+" ? 1 : 2", "("+s+").Reveal()", "{("+s+"): 1}", "dbs["+s+":]")
	}
	w := testWorld()
	check := func(src string, what any) {
		text := fmt.Sprintf("%v %+v %#v %s %q", what, what, what, what, what)
		j, _ := json.Marshal(what)
		for _, shown := range []string{text, string(j)} {
			if strings.Contains(shown, canary) {
				t.Errorf("%s shows a secret: %s", src, shown)
			}
		}
	}
	for _, src := range sources {
		e, err := CompileExpr(src, testScope())
		check(src, err)
		if err == nil {
			v, err := e.Eval(w)
			check(src, v)
			check(src, err)
			check(src, e.Operands(w))
			_, err = e.EvalBool(w)
			check(src, err)
		}
		for _, text := range []string{"x {{ " + src + " }}", "{{ " + src + " }}"} {
			tree, err := CompileText(text, testScope())
			check(src, err)
			if err == nil {
				v, err := tree.Eval(w)
				check(src, v)
				check(src, err)
			}
		}
	}
}

func TestEvaluationEndsInTime(t *testing.T) {
	defer func(d time.Duration) { evalTime = d }(evalTime)
	evalTime = 50 * time.Millisecond
	items := make([]any, 20000)
	for i := range items {
		items[i] = i
	}
	w := &world{values: map[string]any{"loose": items}}
	begun := time.Now()
	for _, src := range []string{
		`all(loose, all(loose, all(loose, true)))`,
		`map(loose, map(loose, len(filter(loose, true))))`,
		`any(1..200000, len(sort(loose)) == 0)`,
		`any(1..200000, repeat("x", 1000000) == "")`,
		`repeat("a", 10000000) matches "(a{1,900}|b{1,900})*c"`,
	} {
		if _, err := mustExpr(t, src).Eval(w); err == nil || !strings.Contains(err.Error(), "too long") && !strings.Contains(err.Error(), "too large") && !strings.Contains(err.Error(), "pattern") {
			t.Error(err)
		}
	}
	tree, err := CompileTemplate("t", strings.Repeat("{% for x in loose %}\n", 5)+strings.Repeat("{% endfor %}\n", 5), testScope())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Eval(w); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
	// Doubling must not fill the memory either.
	var lets, lists strings.Builder
	for i := range 40 {
		fmt.Fprintf(&lets, "let v%d = %s; ", i, map[bool]string{true: `"xxxxxxxxxxxxxxxx"`, false: fmt.Sprintf("v%d + v%[1]d", i-1)}[i == 0])
		fmt.Fprintf(&lists, "let v%d = %s; ", i, map[bool]string{true: `[1]`, false: fmt.Sprintf("[v%d, v%[1]d]", i-1)}[i == 0])
	}
	for _, src := range []string{lets.String() + "v39", lists.String() + "v39", lists.String() + "v39 == v38", lists.String() + "flatten(v39)", lists.String() + "toJSON(v39)"} {
		if _, err := mustExpr(t, src).Eval(w); err == nil || !strings.Contains(err.Error(), "too large") && !strings.Contains(err.Error(), "too long") {
			t.Error(err)
		}
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	// Waiting for a host is not computing.
	slow := envFunc(func(string) (any, error) { time.Sleep(2 * evalTime); return items[:1000], nil })
	if _, err := mustExpr(t, `len(map(loose, # + 1))`).Eval(slow); err != nil {
		t.Error(err)
	}
}

type envFunc func(name string) (any, error)

func (f envFunc) Lookup(name string) (any, error) { return f(name) }

func TestFunctionsAreDocumented(t *testing.T) {
	if len(Functions) != len(table) {
		t.Errorf("%d functions, %d documented", len(table), len(Functions))
	}
	for _, f := range Functions {
		if !strings.HasPrefix(f.Signature, f.Name+"(") || f.Help == "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestSecretText(t *testing.T) {
	tree, err := CompileText("user=voms password={{ password }}", testScope())
	if err != nil {
		t.Fatal(err)
	}
	v, err := tree.Eval(testWorld())
	if s, ok := v.(secret.Secret); !ok || err != nil || s.Reveal() != "user=voms password="+canary {
		t.Errorf("%v, %v", v, err)
	}
	if tree.Type().Kind != SecretKind {
		t.Error(tree.Type())
	}
}

// Values may come as any Go types that hold them.
func TestGoTypes(t *testing.T) {
	type port uint16
	for src, want := range map[string]any{
		`loose.words[1]`: "b", `loose.words[-1]`: "b", `"b" in loose.words`: true, `join(loose.words, ",")`: "a,b", `len(loose.words)`: 2, `map(loose.words, upper(#))`: []any{"A", "B"}, `loose.words == ["a", "b"]`: true,
		`loose.tags.x`: "y", `"x" in loose.tags`: true, `keys(loose.tags)`: []any{"x"}, `loose.tags.z ?? 1`: 1, `empty(loose.tags)`: false, `type(loose.tags)`: "map", `loose.size + 1`: 6, `loose.size == 5`: true, `string(loose.port)`: "3306",
		`string(loose.size)`: "5", `loose.port > 3000`: true, `float(loose.size)`: 5.0, `float(" 2.5 ")`: 2.5, `type(hosts)`: "map", `type(nil)`: "nil", `empty(hosts)`: false, `lines("")`: []any{}, `fromJSON("{\"a\": null}").a`: nil, `-loose.size`: -5,
		`loose.mixed == loose.mixed`: true, `{"a": 1} == {"b": 1}`: false, `[1] == [1, 2]`: false, `"x" + "y" in loose.words`: false, `int(2.9)`: 2, `string(0.1)`: "0.1",
	} {
		w := testWorld()
		w.values["loose"] = map[string]any{"words": []string{"a", "b"}, "tags": map[string]string{"x": "y"}, "size": int64(5), "port": port(3306), "mixed": []any{map[string]string{"a": "b"}}}
		if got, err := mustExpr(t, src).Eval(w); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s = %#v, %v; want %#v", src, got, err, want)
		}
	}
	for _, src := range []string{`loose.words.x`, `loose.tags[1]`, `loose.words["0"]`, `int(loose.words)`, `float("x")`, `float("NaN")`, `float(loose.words)`, `empty(1)`, `fromJSON("{")`, `fromJSON("1 2")`, `fromJSON("1e999")`, `string(1e308 * 10)`,
		`repeat("x", -1)`, `indent("x", -1)`, `indent("x", 5000)`, `replace(repeat("a", 100000), "a", repeat("b", 100000))`, `join([repeat("a", 10000000), repeat("a", 10000000)])`, `join([[1]])`, `capture("x", "(")`, `versionAtLeast("x", "1")`,
		`keys(1..2)`, `sortBy([1, 2], #, "up")`, `sortBy([1, "a"], #)`, `sum(["a"])`, `map(1, #)`, `filter([1], 1)`, `mode[loose.tags:]`, `port[0:1]`, `1.."x"`, `-loose.words`, `loose.words contains "a"`, `"a" in loose.size`, `{(loose.size): 1}`, `fromBase64("!")`} {
		w := testWorld()
		w.values["loose"] = map[string]any{"words": []string{"a", "b"}, "tags": map[string]string{"x": "y"}, "size": int64(5)}
		e, err := CompileExpr(src, testScope())
		if err == nil {
			_, err = e.Eval(w)
		}
		if _, placed := err.(*Error); !placed {
			t.Errorf("%s: %v", src, err)
		}
	}
}
