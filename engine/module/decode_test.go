package module

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"runbook/engine/secret"
)

type shared struct {
	Mode  Mode   `yaml:"mode"`
	Owner string `yaml:"owner"`
}

type everything struct {
	Path string `yaml:"path" required:"true" short:"true"`
	shared
	State    string              `yaml:"state" choices:"present,absent"`
	Force    bool                `yaml:"force"`
	Count    int                 `yaml:"count"`
	Big      int64               `yaml:"big"`
	Ratio    float64             `yaml:"ratio"`
	Wait     time.Duration       `yaml:"wait"`
	Names    []string            `yaml:"names"`
	Codes    []int               `yaml:"codes"`
	Labels   map[string]string   `yaml:"labels"`
	Grants   map[string][]string `yaml:"grants"`
	Extra    map[string]any      `yaml:"extra"`
	List     []any               `yaml:"list"`
	Whatever any                 `yaml:"whatever"`
	Password secret.Secret       `yaml:"password"`
	That     []Condition         `yaml:"that"`
	Src      Template            `yaml:"src"`
	File     Content             `yaml:"file"`

	NotAnArgument string
	validated     bool
}

func (*everything) Check(context.Context, *Host) (Plan, error)         { return Plan{}, nil }
func (*everything) Apply(context.Context, *Host, Plan) (Values, error) { return nil, nil }
func (e *everything) Validate() error {
	e.validated = true
	if e.Path == "/refused" {
		return &ArgError{Path: "path", Msg: "refused"}
	}
	return nil
}

func TestDecodeEveryType(t *testing.T) {
	m := &everything{State: "present", Count: 7}
	hush := secret.New("hush")
	err := Decode(m, map[string]any{
		"path": 5, "mode": "0640", "owner": "root", "force": true, "big": int64(9), "ratio": 2, "wait": "1m30s",
		"names": "one", "codes": []any{1, int64(2)}, "labels": map[string]any{"a": "b"},
		"grants": map[string]any{"db.*": []any{"SELECT", "INSERT"}, "x.*": "ALL"},
		"extra":  map[string]any{"p": hush}, "list": []any{1, "a"}, "whatever": hush, "password": hush,
		"that": []any{Condition{Source: "a", Value: true}}, "src": Template{Text: "t"}, "file": Content{Data: []byte("d")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &everything{
		Path: "5", shared: shared{Mode: Mode{true, 0o640}, Owner: "root"}, State: "present", Force: true, Count: 7, Big: 9, Ratio: 2,
		Wait: 90 * time.Second, Names: []string{"one"}, Codes: []int{1, 2}, Labels: map[string]string{"a": "b"},
		Grants: map[string][]string{"db.*": {"SELECT", "INSERT"}, "x.*": {"ALL"}}, Extra: map[string]any{"p": hush},
		List: []any{1, "a"}, Whatever: hush, Password: hush,
		That: []Condition{{Source: "a", Value: true}}, Src: Template{Text: "t"}, File: Content{Data: []byte("d")}, validated: true,
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
	if m.Password.Reveal() != "hush" {
		t.Error("the secret was not kept")
	}
}

func TestDecodeMistakes(t *testing.T) {
	hush := secret.New("hush")
	for name, c := range map[string]struct {
		args map[string]any
		want []string // all of these errors, and no other
	}{
		"missing":       {map[string]any{}, []string{"path: required argument is missing"}},
		"empty":         {map[string]any{"path": ""}, []string{"path: must not be empty"}},
		"unknown":       {map[string]any{"path": "p", "onwer": "root"}, []string{"onwer: unknown argument (did you mean owner?)"}},
		"far off":       {map[string]any{"path": "p", "zzzzzz": 1}, []string{"zzzzzz: unknown argument (arguments are path, mode, owner"}},
		"several":       {map[string]any{"x": 1, "force": "yes"}, []string{"x: unknown", "path: required", `force: expected true or false, got the string "yes" (write true`}},
		"choice":        {map[string]any{"path": "p", "state": "here"}, []string{`state: cannot be "here" (one of present, absent)`}},
		"bool string":   {map[string]any{"path": true}, []string{"path: expected a string, got true"}},
		"float string":  {map[string]any{"path": 1.5}, []string{"path: expected a string, got 1.5 (put it in quotes"}},
		"nothing":       {map[string]any{"path": nil}, []string{"path: expected a string, got nothing (leave the argument out"}},
		"string int":    {map[string]any{"path": "p", "count": "5"}, []string{`count: expected a whole number, got the string "5"`}},
		"float int":     {map[string]any{"path": "p", "count": 1.5}, []string{"count: expected a whole number, got 1.5"}},
		"duration":      {map[string]any{"path": "p", "wait": "soon"}, []string{`wait: expected a duration, got the string "soon" (such as 30s`}},
		"negative":      {map[string]any{"path": "p", "wait": -1}, []string{"wait: expected a duration, got -1"}},
		"decimal mode":  {map[string]any{"path": "p", "mode": 644}, []string{"mode: the number 644 is not a file mode (write 0644"}},
		"slipped mode":  {map[string]any{"path": "p", "mode": 420}, []string{"mode: the number 420 is not a file mode"}},
		"word mode":     {map[string]any{"path": "p", "mode": "u=rw"}, []string{`mode: "u=rw" is not a file mode`}},
		"list item":     {map[string]any{"path": "p", "names": []any{"a", true}}, []string{"names[1]: expected a string, got true"}},
		"list of map":   {map[string]any{"path": "p", "names": map[string]any{}}, []string{"names: expected a list of string, got a map"}},
		"one for list":  {map[string]any{"path": "p", "codes": "x"}, []string{`codes: expected a list of int, got the string "x"`}},
		"map value":     {map[string]any{"path": "p", "labels": map[string]any{"a": []any{}}}, []string{"labels.a: expected a string, got a list"}},
		"deep":          {map[string]any{"path": "p", "grants": map[string]any{"d": []any{false}}}, []string{"grants.d[0]: expected a string, got false"}},
		"secret string": {map[string]any{"path": hush}, []string{"path: would show a secret"}},
		"secret int":    {map[string]any{"path": "p", "count": hush}, []string{"count: would show a secret"}},
		"secret item":   {map[string]any{"path": "p", "names": []any{hush}}, []string{"names[0]: would show a secret"}},
		"secret list":   {map[string]any{"path": "p", "names": hush}, []string{"names: would show a secret"}},
		"secret label":  {map[string]any{"path": "p", "labels": map[string]any{"k": hush}}, []string{"labels.k: would show a secret"}},
		"template":      {map[string]any{"path": "p", "src": "x"}, []string{`src: expected a template, got the string "x"`}},
		"condition":     {map[string]any{"path": "p", "that": []any{true}}, []string{"that[0]: expected a condition, got true"}},
		"validated":     {map[string]any{"path": "/refused"}, []string{"path: refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := Decode(&everything{State: "present"}, c.args)
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(c.want) {
				t.Errorf("got %q", lines)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hush") {
				t.Error("the secret is shown")
			}
		})
	}
}

func TestDecodePartial(t *testing.T) {
	m := &everything{State: "present"}
	if err := DecodePartial(m, map[string]any{"count": 1}, map[string]bool{"path": true}); err != nil {
		t.Error(err)
	}
	if m.validated {
		t.Error("validated before all arguments were known")
	}
	err := DecodePartial(m, map[string]any{"count": "x"}, map[string]bool{"paht": true})
	for _, want := range []string{"paht: unknown argument (did you mean path?)", "path: required", "count: expected"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestFields(t *testing.T) {
	fields := Fields(&everything{State: "present"})
	words := map[string]string{}
	for _, f := range fields {
		words[f.Name] = f.Type
	}
	for name, want := range map[string]string{
		"path": "string", "mode": "mode", "wait": "duration", "names": "list of string", "grants": "map of list of string",
		"extra": "map", "list": "list", "whatever": "any", "password": "secret", "that": "list of condition", "src": "template", "file": "file",
	} {
		if words[name] != want {
			t.Errorf("%s is %q, want %q", name, words[name], want)
		}
	}
	if f := fields[0]; !f.Required || !f.Short || f.Name != "path" {
		t.Errorf("first field is %+v", f)
	}
	if f := fields[3]; f.Name != "state" || f.Default != "present" || !reflect.DeepEqual(f.Choices, []string{"present", "absent"}) {
		t.Errorf("fourth field is %+v", f)
	}
	if _, listed := words["NotAnArgument"]; listed || len(fields) != 20 {
		t.Errorf("%d fields: %v", len(fields), words)
	}
}
