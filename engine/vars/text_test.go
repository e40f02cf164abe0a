package vars

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"runbook/engine/secret"
)

var bySecretValue = cmp.Comparer(func(a, b secret.Secret) bool { return a.Reveal() == b.Reveal() })

func TestTexts(t *testing.T) {
	for src, want := range map[string]any{
		``: "", `plain`: "plain", `{{ port }}`: 3307, `{{dbs}}`: []any{"voms_atlas", "voms_cms"}, `{{ nothing }}`: nil, ` {{ port }}`: " 3307", `{{ mode }}:{{ port }}`: "master:3307",
		`{{ "{{" }} x }}`: "{{ x }}", `{{ {"a": {"b": 1}}.a.b }}!`: "1!", `{{ {a: {b: 1}}}}`: map[string]any{"a": map[string]any{"b": 1}}, `{{ "}}" }}`: "}}", `{{ '"}}' + "'" }}-`: `"}}'-`, "{{ `}}\\` }}-": "}}\\-",
		`{{ big }} {{ ratio }} {{ tls }} {{ 1e21 }} {{ 0.1 + 0.2 }}`: "1000000 0.5 true 1000000000000000000000 0.30000000000000004",
		`x{{ password }}`: secret.New("x" + canary), `{{ loose.secret }}y`: secret.New(canary + "y"), `{{ password }}`: secret.New(canary),
		`{% if x %} %{HOST} {# no #}`: `{% if x %} %{HOST} {# no #}`, `a } b }} {`: `a } b }} {`, `ä{{ mode }}ö`: "ämasterö", `{{ join(dbs, ",") }}.`: "voms_atlas,voms_cms.",
	} {
		tree, err := CompileText(src, testScope())
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		if got, err := tree.Eval(testWorld()); err != nil || !cmp.Equal(got, want, bySecretValue) {
			t.Errorf("%s = %#v, %v; want %#v", src, got, err, want)
		}
	}
}

func TestTextMistakes(t *testing.T) {
	for src, want := range map[string]string{
		`a {{ mode`:                      `1:3: {{ is not closed (close it with }}, or write {{ "{{" }} for two braces)`,
		`a {{ }}`:                        `1:3: {{ }} holds no expression`,
		"ä\nö {{ mdoe }}":                `2:6: unknown name "mdoe" (did you mean "mode"?)`,
		"{{ mode }} {{ p\n+ 1}":          `1:12: {{ is not closed (close it with }}, or write {{ "{{" }} for two braces)`,
		"{{ mode }}{{ port +\n  prot }}": `2:3: unknown name "prot" (did you mean "port"?)`,
		`x {{ dbs }}`:                    `1:6: dbs is a list, which is not text (write join(list, ", ") or toJSON(list))`,
		`x {{ options }}`:                `1:6: options is a map, which is not text (write toJSON(map), or name one of its fields)`,
		`x {{ nothing }}`:                `1:6: nothing has no value (write x ?? "…" for a value that may be missing)`,
		`x {{ later }}`:                  `not known in check mode: task a would change it`,
		`x {{ dump.nope }}`:              `1:11: dump has no key "nope" (there is later, log_file, log_pos)`,
		`x {{ facts.os }}`:               `host is unreachable`,
	} {
		tree, err := CompileText(src, testScope())
		var v any
		if err == nil {
			v, err = tree.Eval(testWorld())
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, %v; want %s", src, v, err, want)
		}
	}
}

func TestTemplates(t *testing.T) {
	for name, c := range map[string]struct{ src, want string }{
		"list":     {"[mysqld]\n{% for db in dbs %}\ndo-table = {{ db }}.%\n{% endfor %}\nend\n", "[mysqld]\ndo-table = voms_atlas.%\ndo-table = voms_cms.%\nend\n"},
		"map":      {"{% for k, v in options %}\n{{ k }}={{ v + 1 }}\n{% endfor %}\n", "a=2\nb=3\n"},
		"loop":     {"{% for db in dbs %}\n{{ loop.index }}{{ loop.first }}{{ loop.last }} {{ db }}\n{% endfor %}", "1truefalse voms_atlas\n2falsetrue voms_cms\n"},
		"if":       {"{% if tls %}\nyes\n{% else %}\nno\n{% endif %}\n", "yes\n"},
		"elif":     {"{% if off %}\na\n{% elif port == 3307 %}\nb\n{% elif tls %}\nc\n{% else %}\nd\n{% endif %}\n", "b\n"},
		"else":     {"{% if off %}\na\n{% elif off %}\nb\n{% else %}\nd\n{% endif %}\n", "d\n"},
		"none":     {"{% if off %}\na\n{% endif %}\n", ""},
		"indented": {"a\n  {% if tls %}\t\n  b\n  {% endif %}  \r\nc", "a\n  b\nc"},
		"nested":   {"{% for u in users %}\n{% if u.age > 25 %}\n{% for d in dbs %}\n{{ u.name }} {{ d }}\n{% endfor %}\n{% endif %}\n{% endfor %}\n", "ann voms_atlas\nann voms_cms\n"},
		"shadow":   {"{% for mode in dbs %}\n{{ mode }}\n{% endfor %}\n{{ mode }}", "voms_atlas\nvoms_cms\nmaster"},
		"comment":  {"{# one\ntwo #}\na {# x #}b\n  {# {{ nope }} #}\nc", "a b\nc"},
		"literal":  {"{{ \"{{\" }} {{ '{%' }} { { %} #} }}\n", "{{ {% { { %} #} }}\n"},
		"one hole": {"{{ port }}", "3307"},
		"empty":    {"", ""},
		"no end":   {"{% if tls %}\na\n{% endif %}", "a\n"},
		"holes":    {"{{ mode }}{{ port }}\n{{ mode }}", "master3307\nmaster"},
		"at hole":  {"{{ mode }}\n{% if tls %}\nx\n{% endif %}\n", "master\nx\n"},
		"hosts":    {"{% for name in keys(hosts) %}\n{{ name }}\n{% endfor %}\n", "gone\nvoms1\n"},
		"braces":   {"{% for x in [{\"a\": \"%}\"}] %}\n{{ x.a }}\n{% endfor %}\n", "%}\n"},
		"cr":       {"a\r\n{% if tls %}\r\nb\r\n{% endif %}\r\n", "a\r\nb\r\n"},
	} {
		tree, err := CompileTemplate("t", c.src, testScope())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := tree.Eval(testWorld()); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func TestTemplateMistakes(t *testing.T) {
	for src, want := range map[string]string{
		"{% for x in dbs %}\n":                            `1:1: {% for %} is not closed with {% endfor %}`,
		"\n  {% if tls %}\n{% else %}\n":                  `2:3: {% if %} is not closed with {% endif %}`,
		"{% endif %}\n":                                   `1:1: {% endif %} closes nothing`,
		"{% for x in dbs %}\n{% endif %}\n":               `2:1: {% endif %} within {% for %} (close the for with {% endfor %} first)`,
		"{% if tls %}\n{% endfor %}\n":                    `2:1: {% endfor %} within {% if %} (close the if with {% endif %} first)`,
		"{% if tls %}\n{% else %}\n{% else %}\n":          `3:1: {% else %} after {% else %}`,
		"{% set x = 1 %}\n":                               `1:1: unknown tag "set" (there is for, endfor, if, elif, else and endif)`,
		"{%- if tls -%}\n{% endif %}\n":                   `1:1: unknown tag "-" (there is for, endfor, if, elif, else and endif)`,
		"a {% if tls %} b {% endif %}\n":                  `1:3: a {% … %} tag must be on a line of its own (within a line, write {{ condition ? "a" : "b" }})`,
		"{{ mode }} {% if tls %}\n{% endif %}\n":          `1:12: a {% … %} tag must be on a line of its own (within a line, write {{ condition ? "a" : "b" }})`,
		"{% if tls\n":                                     `1:1: {% is not closed (write {{ "{%" }} for the characters themselves)`,
		"{# x\n":                                          `1:1: {# is not closed (write {{ "{#" }} for the characters themselves)`,
		"{% if mode %}\n{% endif %}":                      `1:7: a condition must be true or false, and this is a value of type string (write mode != "" or len(mode) > 0)`,
		"{% if %}\n{% endif %}":                           `1:1: {% if %} needs a condition`,
		"{% if tls %}\n{%   elif  mdoe %}\n{% endif %}":   `2:12: unknown name "mdoe" (did you mean "mode"?)`,
		"a\n{% for x in dsb %}\n{% endfor %}":             `2:13: unknown name "dsb" (did you mean "dbs"?)`,
		"{% for x in options %}\n{% endfor %}":            `1:13: options is a map, and this for needs a list (over a map, write {% for key, value in map %})`,
		"{% for k, v in dbs %}\n{% endfor %}":             `1:16: dbs is a list, and this for needs a map (over a list, write {% for item in list %}; loop.index counts)`,
		"{% for x on dbs %}\n{% endfor %}":                `1:8: cannot read this for (write {% for item in list %} or {% for key, value in map %})`,
		"{% for u in users %}\n{{ u.nam }}\n{% endfor %}": `2:6: u has no field "nam" (did you mean "name"?)`,
		"{% for u in users %}\n{% endfor %}\n{{ u }}":     `3:4: unknown name "u"`,
		"{% for x in loose %}\n{% endfor %}":              `1:13: loose is a map, which this for cannot go through (over a map, write {% for key, value in map %})`,
		"{% for k, v in loose.text %}\n{% endfor %}":      `1:22: loose.text is a string, which this for cannot go through (over a list, write {% for item in list %}; loop.index counts)`,
		"{% if tls %}\n{% endif tls %}\n":                 `2:10: unexpected "tls" after endif`,
		"{% if later %}\n{% endif %}\n":                   `not known in check mode: task a would change it`,
		strings.Repeat("{% if tls %}\n", 70):              `65:1: the template is nested too deeply`,
	} {
		tree, err := CompileTemplate("t", src, testScope())
		var v any
		if err == nil {
			v, err = tree.Eval(testWorld())
		} else if _, ok := err.(*Error); !ok {
			t.Errorf("%q: %T", src, err)
		}
		if err == nil || err.Error() != want && !strings.HasPrefix(err.Error(), want+" (") {
			t.Errorf("%q: %v, %v; want %s", src, v, err, want)
		}
	}
}

func TestTemplateNames(t *testing.T) {
	tree, err := CompileTemplate("t", "{{ mode }}\n{% for d in dbs %}\n{{ d }} {{ port }} {{ loop.index }}\n{% endfor %}\n{% if tls %}\n{{ let d = 1; d }}\n{% endif %}\n", testScope())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"dbs", "mode", "port", "tls"}, tree.Names()); diff != "" {
		t.Error(diff)
	}
	if tree.Type().Kind != StringKind {
		t.Error(tree.Type())
	}
}

// A password in a configuration file makes the whole file a secret.
func TestSecretTemplate(t *testing.T) {
	tree, err := CompileTemplate("t", "{% for u in users %}\n{{ u.name }} {{ u.password }}\n{% endfor %}\n", testScope())
	if err != nil {
		t.Fatal(err)
	}
	v, err := tree.Eval(testWorld())
	if s, ok := v.(secret.Secret); err != nil || !ok || s.Reveal() != "ann "+canary+"\nbob x"+canary+"\n" {
		t.Errorf("%v, %v", v, err)
	}
}

func TestTrees(t *testing.T) {
	name, _ := CompileText("{{ dump.log_file }}", testScope())
	later, _ := CompileText("{{ dump.later }}-x", testScope())
	tree := MapTree([]string{"file", "list"}, []Tree{name, ListTree([]Tree{Const(int64(1)), Const("a")})})
	if v, err := tree.Eval(testWorld()); err != nil || !cmp.Equal(v, map[string]any{"file": "bin.000003", "list": []any{1, "a"}}) {
		t.Error(v, err)
	}
	if !cmp.Equal(tree.Names(), []string{"dump"}) || !cmp.Equal(tree.Type(), Object(map[string]Type{"file": Any, "list": ListOf(Any)})) {
		t.Error(tree.Names(), tree.Type())
	}
	// What is known of a value can be used although another part of it is not.
	s := NewStack()
	s.Set(Registered, "dump", Const(testWorld().values["dump"]), "")
	s.Set(PlayVars, "loose", MapTree([]string{"known", "later"}, []Tree{name, later}), "")
	if v, err := mustExpr(t, `loose.known`).Eval(s); err != nil || v != "bin.000003" {
		t.Error(v, err)
	}
	for _, src := range []string{`loose.later`, `loose`, `{"x": [loose]}`} {
		if v, err := mustExpr(t, src).Eval(s); !isUnknown(err) {
			t.Error(v, err)
		}
	}
	if v, err := MapTree([]string{"later"}, []Tree{later}).Eval(s); !isUnknown(err) {
		t.Error(v, err)
	}
}

func isUnknown(err error) bool {
	_, ok := errors.AsType[*UnknownError](err)
	return ok
}
