package vars

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"runbook/engine/secret"
)

const canary = "c4nary-Passw0rd"

// world is an Env for tests; it counts lookups.
type world struct {
	values map[string]any
	asked  map[string]int
}

func (w *world) Lookup(name string) (any, error) {
	if w.asked == nil {
		w.asked = map[string]int{}
	}
	w.asked[name]++
	v, ok := w.values[name]
	if !ok {
		return nil, &UndefinedError{Name: name}
	}
	if err, ok := v.(error); ok {
		return nil, err
	}
	return v, nil
}

var errUnreachable = errors.New("host is unreachable")

// hostTable is a Fetcher, like hosts.
type hostTable map[string]any

func (h hostTable) Fetch(key any) (any, error) {
	v, ok := h[fmt.Sprint(key)]
	if !ok {
		return nil, &UndefinedError{Name: fmt.Sprint(key), Hint: "no such host"}
	}
	if err, ok := v.(error); ok {
		return nil, err
	}
	return v, nil
}

func (h hostTable) Keys() []string { return keysOf(h) }

func testWorld() *world {
	return &world{values: map[string]any{
		"mode": "master", "port": 3307, "ratio": 0.5, "big": 1e6, "tls": true, "off": false, "nothing": nil,
		"dbs":      []any{"voms_atlas", "voms_cms"},
		"options":  map[string]any{"b": 2, "a": 1},
		"users":    []any{map[string]any{"name": "ann", "age": 30, "password": secret.New(canary)}, map[string]any{"name": "bob", "age": 20, "password": secret.New("x" + canary)}},
		"password": secret.New(canary), "unset": secret.New(""),
		"dump":  map[string]any{"log_file": "bin.000003", "log_pos": 154, "later": Unknown{Because: "the dump is not made in check mode"}},
		"later": Unknown{Because: "task a would change it"},
		"hosts": hostTable{"voms1": map[string]any{"dump": map[string]any{"log_file": "bin.1"}, "addr": "10.0.0.1"}, "gone": errUnreachable},
		"facts": errUnreachable,
		"conf":  map[string]any{"path": "/etc/my.cnf", "port": 1},
		"loose": map[string]any{"a": map[string]any{"b": 1}, "text": "3", "secret": secret.New(canary), "none": nil},
		"type":  "kind",
	}}
}

func testScope() *Scope {
	return NewScope().WithAll(map[string]Type{
		"mode": String, "port": Int, "ratio": Float, "big": Float, "tls": Bool, "off": Bool, "nothing": Any, "dbs": ListOf(String), "options": MapOf(Int),
		"users":    ListOf(Object(map[string]Type{"name": String, "age": Int, "password": Secret})),
		"password": Secret, "unset": Secret, "dump": MapOf(Any), "later": Any, "hosts": Any, "facts": Any,
		"conf": Object(map[string]Type{"path": String, "port": Int}), "loose": Any, "undefined_here": Any, "undefined_text": String, "type": String,
	})
}

func TestExprValues(t *testing.T) {
	for src, want := range map[string]any{
		`1 + 2 * 3`: 7, `mode == "master"`: true, `port + 1`: 3308, `ratio * 2`: 1.0, `7 / 2`: 3.5, `7 % 2`: 1, `-port`: -3307, `2 ** 3`: 8.0,
		`mode + "-1"`: "master-1", `!tls`: false, `not off and tls`: true, `tls ? 1 : 2`: 1, `if off { 1 } else { 2 }`: 2,
		`"voms_cms" in dbs`: true, `"x" not in dbs`: true, `"a" in options`: true, `"voms1" in hosts`: true, `"z" in hosts`: false, `"log_pos" in dump`: true, `"nope" in dump`: false,
		`dump.log_file`: "bin.000003", `dump["log_pos"]`: 154, `options.a + options["b"]`: 3, `dbs[0]`: "voms_atlas", `dbs[-1]`: "voms_cms",
		`hosts.voms1.addr`: "10.0.0.1", `hosts["voms1"].dump.log_file`: "bin.1",
		`dbs[5] ?? "none"`: "none", `dump.nope ?? 1`: 1, `dump?.nope`: nil, `dump?.nope.more.still`: nil, `undefined_here ?? "d"`: "d", `undefined_here?.x.y ?? 4`: 4,
		`undefined_here.x.y ?? 4`: 4, `loose.a.b ?? 0`: 1, `loose.z.b ?? 0`: 0, `loose.none.b ?? 0`: 0, `nothing ?? 2`: 2, `nothing == nil`: true, `hosts.nobody.addr ?? "?"`: "?",
		`undefined_text ?? ""`: "", `loose?.["a"]?.b`: 1,
		`len(dbs)`: 2, `len("äöü")`: 3, `upper(mode)`: "MASTER", `mode | upper() | lower()`: "master", `split("a,b", ",")`: []any{"a", "b"}, `join(dbs, " ")`: "voms_atlas voms_cms", `join([1, true], "-")`: "1-true",
		`filter(dbs, # contains "cms")`: []any{"voms_cms"}, `map(users, .name)`: []any{"ann", "bob"}, `map(dbs, #index)`: []any{0, 1}, `filter(users, .age > 25)[0].name`: "ann", `len(users)`: 2,
		`any(dbs, # == "voms_cms")`: true, `all(dbs, # startsWith "voms")`: true, `none(dbs, # == "")`: true, `one(dbs, # endsWith "cms")`: true, `count(dbs, # != "")`: 2,
		`find(users, .name == "bob").age`: 20, `find(users, .name == "eve") ?? "nobody"`: "nobody", `findIndex(dbs, # == "voms_cms")`: 1, `findLastIndex(dbs, # == "no")`: nil, `sum(users, .age)`: 50, `sum([1, 2.5])`: 3.5,
		`map(sortBy(users, .age), .name)`: []any{"bob", "ann"}, `map(sortBy(users, .name, "desc"), .name)`: []any{"bob", "ann"}, `map(dbs, {let x = #; x + "!"})`: []any{"voms_atlas!", "voms_cms!"},
		`keys(options)`: []any{"a", "b"}, `values(options)`: []any{1, 2}, `merge(options, {"c": 3})`: map[string]any{"a": 1, "b": 2, "c": 3}, `keys(hosts)[0]`: "gone",
		`basename(conf.path)`: "my.cnf", `dirname(conf.path)`: "/etc", `indent("a\n\nb\n", 2)`: "  a\n\n  b\n", `unique([1, 2, 1, [1], [1]])`: []any{1, 2, []any{1}}, `unique([1, 1.0, "1"])`: []any{1, 1.0, "1"},
		`sha256("")`: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", `lines("a\nb\n")`: []any{"a", "b"}, `capture("mysqld Ver 10.11.2", "Ver (\\S+)")`: "10.11.2", `capture("x", "y") ?? "none"`: "none",
		`versionAtLeast("10.11.2-MariaDB", "10.5")`: true, `versionAtLeast("8.0", "8.0.0")`: true, `versionAtLeast("5.7.44", "8")`: false,
		`int(" 42\n")`: 42, `int(loose.text) + 1`: 4, `float("1.5")`: 1.5, `string(port)`: "3307", `string(big)`: "1000000", `round(2.5)`: 3, `ceil(ratio)`: 1, `floor(2)`: 2, `type(dbs)`: "list", `type(password)`: "secret",
		`toJSON({"a": [1, "<"]})`: `{"a":[1,"<"]}`, `fromJSON("{\"a\": [1, 1.5]}").a[0]`: 1, `toBase64("a")`: "YQ==", `fromBase64("YQ==")`: "a", `first(dbs)`: "voms_atlas", `last([]) ?? 0`: 0, `take(dbs, 1)`: []any{"voms_atlas"},
		`replace("a.b", ".", "-")`: "a-b", `repeat("ab", 2)`: "abab", `trim("  x ")`: "x", `trimPrefix("voms_x", "voms_")`: "x", `sort(["b", "a"])`: []any{"a", "b"}, `max([1, 3, 2])`: 3, `min([4, 2])`: 2, `abs(-2)`: 2, `reverse([1, 2])`: []any{2, 1}, `concat([1], [2])`: []any{1, 2}, `flatten([[1], [2, [3]]])`: []any{1, 2, 3},
		`empty("")`: true, `empty(password)`: false, `empty(unset)`: true, `empty(dump.nope)`: true, `empty([])`: true, `empty(options)`: false,
		`1..3`: []any{1, 2, 3}, `3..1`: []any(nil), `dbs[0:1]`: []any{"voms_atlas"}, `mode[1:3]`: "as", `mode[-2:]`: "er", `[1, "a", [true]]`: []any{1, "a", []any{true}}, `{"a": 1, b: {c: 2}}.b.c`: 2,
		`mode matches "^mas"`: true, `mode matches ("^" + "sla")`: false, `let x = port; x + x`: 6614, `1 < 2 < 3`: true, `[1, 2] == [1, 2]`: true, `{"a": 1} == {"a": 1.0}`: true, `"a" < "b"`: true, `tls || facts.x == 1`: true, `off && facts.x == 1`: false,
		`password`: secret.New(canary), `tls ? password : ""`: secret.New(canary), `unset ?? password`: secret.New(""), `users[0].password`: secret.New(canary), `loose.a == nil`: false,
		`off && later`: false, `later && off`: false, `tls || later`: true, `later || tls`: true, `any(dbs, # == "voms_cms" || later)`: true, `all(dbs, # == "x" && later)`: false, `[dump.log_file]`: []any{"bin.000003"},
		"`raw \\n`": `raw \n`, `"{{ mode }}"`: "{{ mode }}",
	} {
		e, err := CompileExpr(src, testScope())
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		got, err := e.Eval(testWorld())
		if err != nil || !cmp.Equal(got, want, cmp.Comparer(func(a, b secret.Secret) bool { return a.Reveal() == b.Reveal() })) {
			t.Errorf("%s = %#v, %v; want %#v", src, got, err, want)
		}
	}
}

func TestExprMistakesAtLoad(t *testing.T) {
	for src, want := range map[string]string{
		`mdoe == "x"`:                     `1:1: unknown name "mdoe" (did you mean "mode"?)`,
		`tls and prot > 1`:                `1:9: unknown name "prot" (did you mean "port"?)`,
		"tls and\n  prot > 1":             `2:3: unknown name "prot" (did you mean "port"?)`,
		`conf.prot`:                       `1:6: conf has no field "prot" (did you mean "port"?)`,
		`users[0].nam`:                    `1:10: users[0] has no field "nam" (did you mean "name"?)`,
		`map(users, .nam)`:                `1:13: # has no field "nam" (did you mean "name"?)`,
		`port == "1"`:                     `1:6: cannot use == between int and string (convert one side with int(x) or string(x))`,
		`mode == 1`:                       `1:6: cannot use == between string and int (convert one side with int(x) or string(x))`,
		`mode = "x"`:                      `1:6: unexpected = (write == to compare)`,
		`mode is defined`:                 `1:6: unexpected "is" (write x ?? other for a value that may be missing, or "key" in map)`,
		`mode ==`:                         `1:7: the expression ends too early`,
		`"abc`:                            `1:5: a quoted string is not closed`,
		`{{ mode }}`:                      `1:1: this is an expression already (write the expression without {{ }})`,
		``:                                `1:1: the expression is empty`,
		`mode | default("x")`:             `1:8: unknown function "default" (write x ?? "value")`,
		`uper(mode)`:                      `1:1: unknown function "uper" (did you mean "upper"?)`,
		`now()`:                           `1:1: unknown function "now" (there is no clock here, so that check and resume repeat; use a parameter)`,
		`reduce(dbs, #acc + #)`:           `1:1: unknown function "reduce"`,
		`get(conf, "path")`:               `1:1: unknown function "get"`,
		`mode.upper()`:                    `1:6: cannot call mode.upper (values have no methods; call a function: f(x))`,
		`password.Reveal()`:               `1:10: cannot call password.Reveal (values have no methods; call a function: f(x))`,
		`$env`:                            `1:1: unknown name "$env"`,
		`$env.mode`:                       `1:1: unknown name "$env"`,
		`loose[nmae:1]`:                   `1:7: unknown name "nmae"`,
		`dbs["x"]`:                        `1:5: a list is indexed by a number, not by a string`,
		`dbs contains "x"`:                `1:5: contains is for strings (write x in list)`,
		`"a" in mode`:                     `1:5: in is for lists and maps (write text contains part)`,
		`!mode`:                           `1:1: ! needs a condition, not a value of type string (compare: x == "", or empty(x))`,
		`upper(port)`:                     `1:7: upper cannot take an int (it is upper(text) string)`,
		`upper()`:                         `1:1: not enough arguments to call upper (it is upper(text) string)`,
		`filter(mode, # == "x")`:          `1:8: filter needs a list, not a string (it is filter(list, condition) list)`,
		`mode matches "("`:                "1:6: the pattern is not a regular expression: missing closing ): `(`",
		`capture(mode, "(")`:              "1:15: the pattern is not a regular expression: missing closing ): `(`",
		`password == "x"`:                 `1:10: a secret cannot be used with == (` + secretHint + `)`,
		`"x" + password`:                  `1:5: a secret cannot be used with + (` + secretHint + `)`,
		`password == password`:            `1:1: password is a secret: it cannot be used with == (` + secretHint + `)`,
		`len(password)`:                   `1:1: len cannot take a secret (` + secretHint + `)`,
		`string(password)`:                `1:8: password is a secret: it cannot be used with string() (` + secretHint + `)`,
		`sha256(password)`:                `1:8: sha256 cannot take a secret (` + secretHint + `)`,
		`password.x`:                      `1:10: a secret has no field "x" (` + secretHint + `)`,
		`filter(users, .password == "x")`: `1:25: a secret cannot be used with == (` + secretHint + `)`,
		`password in dbs`:                 `1:10: a list of string cannot hold a secret (` + secretHint + `)`,
		`password ? 1 : 2`:                `1:1: the condition gives a secret, not true or false (` + secretHint + `)`,
		`type(type)`:                      `1:1: a variable has the name of this function (rename the variable)`,
		`mode | upper`:                    `1:12: the expression ends too early`,
		`mode | upper | lower()`:          `1:14: unexpected | (a function after | is called: x | lower())`,
		`b"x"`:                            `1:1: there are no byte strings here (write a string)`,
		strings.Repeat("(", 65) + "1" + strings.Repeat(")", 65):          `1:65: the expression is nested too deeply`,
		strings.Repeat("!", 17) + "tls":                                  `1:17: the expression is nested too deeply`,
		strings.Repeat("not ", 17) + "tls":                               `1:67: the expression is nested too deeply`,
		`"` + strings.Repeat("x", maxSource) + `"`:                       `1:1: an expression may have 4096 bytes, this one has 4098`,
		strings.Repeat("(1 < ", 60) + "1" + strings.Repeat(" < 2)", 60):  `1:1: the expression is nested too deeply`,
		strings.Repeat("(", 60) + "tls" + strings.Repeat(" ?: off)", 60): `1:1: the expression is nested too deeply`,
		`mode ?? "a" + "b"`:                                              `1:13: ?? cannot be mixed with + (put parentheses around (x ?? y))`,
		`foo§`:                                                           `1:4: unexpected character §`,
	} {
		e, err := CompileExpr(src, testScope())
		var placed *Error
		if err == nil || !errors.As(err, &placed) || err.Error() != want && !strings.HasPrefix(err.Error(), want+" (") {
			t.Errorf("%.60q: %v, %v; want %s", src, e, err, want)
		}
	}
}
