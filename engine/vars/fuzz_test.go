package vars

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Whatever is written in a book, loading and evaluating it neither panics nor hangs, and mistakes have a place.
func FuzzExpr(f *testing.F) {
	for _, src := range []string{`mode == "x" && len(dbs) > 0`, `hosts["voms1"].dump?.log_file ?? "x"`, `map(filter(users, .age > 1), .name)[0]`, `let x = 1; x + port`, `if tls { 1 } else { 2 }`, `{"a": [1, 2.5e3]}.a[0:1]`,
		`dump.later or not off`, "`raw`", `1..3 | map(# * 2) | join(",")`, `capture(mode, "(a+)+")`, `-(-1)`, `toJSON(loose)`, `"\u{1F600}"`, `sortBy(users, .age, "desc")`, `[[[[((((1))))]]]]`, `a//b`, `/* x */ mode`, `mode not in dbs`, `#`, `::len(dbs)`} {
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src string) {
		begun := time.Now()
		e, err := CompileExpr(src, testScope())
		if err != nil {
			checkError(t, src, err)
			return
		}
		_, err = e.Eval(testWorld())
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%q shows a secret: %v", src, err)
		}
		e.Operands(testWorld())
		for _, h := range HostRefs(e) {
			_, _ = h.Eval(testWorld())
		}
		if took := time.Since(begun); took > 3*evalTime {
			t.Errorf("%q took %v", src, took)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, src := range []string{"{% for d in dbs %}\n{{ d }}{{ loop.index }}\n{% endfor %}\n", "{% if tls %}\na\n{% elif off %}\n{% else %}\n{% endif %}", "{{ \"{{\" }}{# x #}", "{% for k, v in options %}\r\n{{ k }}\n{% endfor %}", "{{", "{%%}", "{# #} {% if %}"} {
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src string) {
		for _, compile := range []func() (Tree, error){
			func() (Tree, error) { return CompileTemplate("t", src, testScope()) },
			func() (Tree, error) { return CompileText(src, testScope()) },
		} {
			tree, err := compile()
			if err != nil {
				checkError(t, src, err)
				continue
			}
			v, err := tree.Eval(testWorld())
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("%q shows a secret: %v", src, err)
			}
			if err == nil && !strings.Contains(src, "{") && v != src {
				t.Errorf("%q became %q", src, v)
			}
		}
	})
}

func checkError(t *testing.T, src string, err error) {
	placed, ok := errors.AsType[*Error](err)
	lines := strings.Split(src, "\n")
	if !ok || placed.Line < 1 || placed.Line > len(lines) || placed.Column < 1 || placed.Column > len(lines[placed.Line-1])+2 || placed.Msg == "" {
		t.Errorf("%q: %v", src, err)
	}
	if strings.Contains(err.Error(), "goroutine") || strings.Contains(err.Error(), "cannot compile this") {
		t.Errorf("%q panicked: %v", src, err)
	}
}

func BenchmarkEval(b *testing.B) {
	w := testWorld()
	stack := NewStack()
	for name, v := range w.values {
		if err, ok := v.(error); ok {
			stack.Set(Builtin, name, Lazy(Any, func() (any, error) { return nil, err }), "")
			continue
		}
		stack.Set(HostVars, name, Const(v), "")
	}
	text, _ := CompileText("{{ mode }}:{{ port }}", testScope())
	template, _ := CompileTemplate("t", "{% for d in dbs %}\nreplicate-wild-do-table = {{ d }}.%\n{% endfor %}\n", testScope())
	for name, tree := range map[string]Tree{
		"condition": mustExpr(b, `mode == "master" && port > 1`), "members": mustExpr(b, `hosts["voms1"].dump.log_file`), "filter": mustExpr(b, `map(filter(users, .age > 25), .name)`),
		"text": text, "template": template,
	} {
		for envName, env := range map[string]Env{"env": w, "stack": stack} {
			b.Run(name+"/"+envName, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := tree.Eval(env); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	s := testScope()
	for b.Loop() {
		if _, err := CompileCond(`mode == "master" && port > 1`, s); err != nil {
			b.Fatal(err)
		}
	}
}
