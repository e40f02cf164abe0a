package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

func TestScalars(t *testing.T) {
	for _, test := range []struct {
		text string
		want any
	}{
		{"", nil}, {"~", nil}, {"null", nil},
		{"true", true}, {"False", false}, {"yes", "yes"}, {"off", "off"}, {"y", "y"},
		{"0", 0}, {"-7", -7}, {"+7", 7}, {"3306", 3306},
		{"0640", "0640"}, {"00", "00"}, {"0x1F", "0x1F"}, {"0o17", "0o17"}, {"0b1", "0b1"}, {"1_000", "1_000"},
		{"1.5", 1.5}, {"1e3", 1000.0}, {".5", 0.5}, {"5.", 5.0}, {"10.11", 10.11}, {"10.11.6", "10.11.6"}, {"00.5", "00.5"},
		{".inf", ".inf"}, {".nan", ".nan"},
		{"2020-01-02", "2020-01-02"}, {"2020-01-02T03:04:05Z", "2020-01-02T03:04:05Z"}, {"1:30", "1:30"},
		{`"5"`, "5"}, {"'true'", "true"}, {"|\n  5\n", "5\n"},
		{"[1, [a], {}]", []any{1, []any{"a"}, map[string]any{}}},
		{"{1: a, true: b, 0x1: c}", map[string]any{"1": "a", "true": "b", "0x1": "c"}},
		{"\ufeffa: 1\r\nb: 2\r\n", map[string]any{"a": 1, "b": 2}},
		{"---\na\n", "a"},
	} {
		v, err := LoadValue("f.yml", []byte(test.text))
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		if diff := cmp.Diff(test.want, v.Any()); diff != "" {
			t.Errorf("%q (-want +got)\n%s", test.text, diff)
		}
	}
	if v := ParseScalar("5"); v.Any() != "5" {
		t.Errorf("ParseScalar: %v", v.Any())
	}
}

func TestModeKeepsItsText(t *testing.T) {
	v, err := LoadValue("f", []byte("1.10"))
	if err != nil || v.Str != "1.10" {
		t.Errorf("got %q, %v", v.Str, err)
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"size", "a: " + strings.Repeat("x", maxSize), "cannot read a file of more than 1048576 bytes"},
		{"depth", strings.Repeat("[", 65) + strings.Repeat("]", 65), "f.yml:1:65: cannot read values nested more than 64 deep"},
		{"UTF-8", "a: b\nc: d\xffe\n", "f.yml:2:5: cannot read byte 0xFF: the file is not UTF-8"},
		{"UTF-16", "\xff\xfea\x00", "f.yml:1:1: cannot read byte 0xFF"},
		{"NUL", "a: \x00", "f.yml:1:4: cannot read the character U+0000"},
		{"escape", "a: \x1b[31m", "f.yml:1:4: cannot read the character U+001B"},
		{"return", "a: 1\rb: 2", "f.yml:1:5: cannot read the character U+000D"},
	} {
		_, err := LoadValue("f.yml", []byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %.200v, want %s", test.name, err, test.want)
		}
	}
	if _, err := LoadValue("f", []byte(strings.Repeat("[", 64)+strings.Repeat("]", 64))); err != nil {
		t.Error(err)
	}
}

// Promise 4: an error does not show a password that stands on its line.
func TestErrorsHideSecrets(t *testing.T) {
	for _, text := range []string{
		"password: @hunter2\n", "db_password: *hunter2\n", "vars: {secret: true, root_password: !hunter2 }\n",
		"TOKEN: \"hunter2\\q\"\n", "api_token: hunter2: x\n", "password: &hunter2\n",
		"password: hunter2\npassword: hunter2\n",
	} {
		_, err := LoadValue("f", []byte(text))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
	errs := Errors{Errorf(Pos{"book.yml", 2, 1}, "", "x")}
	book, err := loadArchive(txtar.Parse([]byte("-- book.yml --\nrunbook: x\nparams: {password: {secret: true, required: true}}\nplays: [{hosts: all, tasks: [command: x]}]\n")))
	if err != nil {
		t.Fatal(err)
	}
	if book.FillSnippets(errs); errs[0].Snippet != "params: {password: {secret: true, required: true}}" {
		t.Errorf("nothing to hide: %s", errs[0].Snippet)
	}
}

func TestErrorText(t *testing.T) {
	long := strings.Repeat("x", 200) + "HERE" + strings.Repeat("y", 200)
	got := (&Error{Pos: Pos{"f", 1, 201}, Msg: "bad\x1b[2J", Snippet: long}).Error()
	lines := strings.Split(got, "\n")
	if lines[0] != "f:1:201: bad [2J" || len(lines) != 3 || len([]rune(lines[1])) > 130 {
		t.Fatalf("got %q", got)
	}
	caret := strings.IndexByte(lines[2], '^')
	if at := string([]rune(lines[1])[caret:]); !strings.HasPrefix(at, "HERE") {
		t.Errorf("the caret is under %q", at)
	}
	if got := (&Error{Pos: Pos{File: "f"}, Msg: "gone"}).Error(); got != "f: gone" {
		t.Errorf("got %q", got)
	}
}

// The place of an expression's mistake within a value is the place in the file, however the value is written.
func TestAt(t *testing.T) {
	const mark = "@"
	for _, text := range []string{
		"k: a @b\n",
		"k: é𝄞 @b\n",
		"k: \"a @b\"\n",
		"k: 'a @b'\n",
		"k: 'it''s @b'\n",
		"k: \"a \\\"q\\\" \\\\ \\t@b\"\n",
		"k: \"a\\n @b\"\n",
		"k: |\n  one\n  two @b\n",
		"k: |\n  one\n    two\n\n  @three\n",
		"k: |2\n    one\n   @b\n",
		"k: |-\n  @one\n",
		"k: >\n  one\n  two @b\n  three\n",
		"k: >-\n  one\n\n  two\n  @b\n",
		"k: one\n  two\n  @b\n",
		"k: \"one\n  two\n  @b\"\n",
		"k: \"one \\\n  two @b\"\n",
		"k:\n  one @b\n",
		"{k: [x, one @b]}\n",
		"k: a @b\r\nl: 1\r\n",
		"k: |\r\n  a\r\n  @b\r\n",
	} {
		v, err := LoadValue("f", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		s := v.Get("k")
		if s.Kind == List {
			s = s.List[1]
		}
		at := func(text string) (line, column int) {
			before, _, _ := strings.Cut(text, mark)
			last := before[strings.LastIndexByte(before, '\n')+1:]
			return strings.Count(before, "\n") + 1, len([]rune(last)) + 1
		}
		line, column := at(text)
		want := Pos{"f", line, column}
		if got := s.At(at(s.Str)); got != want {
			if text == "k: \"one \\\n  two @b\"\n" && got == s.Pos {
				continue // an escaped line end: the place of the value will do
			}
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
		if got := s.Snippet(want); !strings.Contains(got, mark) {
			t.Errorf("%q: snippet %q", text, got)
		}
	}
	v := ParseScalar("a b")
	if got := v.At(1, 3); got != v.Pos {
		t.Errorf("without a file: %v", got)
	}
	for _, text := range []string{"k: abc", `k: "\x41bc"`, "k: ''", "k: |\n", "k: |\n\n", "k: \"\""} {
		v, err := LoadValue("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for line := -1; line < 4; line++ {
			for column := -1; column < 9; column++ {
				_ = v.Get("k").At(line, column)
			}
		}
	}
}

func TestNearest(t *testing.T) {
	for _, test := range []struct{ word, want string }{
		{"taks", "tasks"}, {"tag", "tags"}, {"hsots", "hosts"}, {"HOSTS", "hosts"}, {"xyzzy", ""}, {"", ""}, {"become_usr", "become_user"},
	} {
		if got := Nearest(test.word, []string{"tags", "tasks", "hosts", "become_user"}); got != test.want {
			t.Errorf("Nearest(%q) = %q, want %q", test.word, got, test.want)
		}
	}
}

func TestConvert(t *testing.T) {
	for _, test := range []struct {
		kind string
		in   any
		want any // an error if it is one
	}{
		{"string", "x", "x"}, {"string", 5, errors.New("5 is not a string: put quotes around it")},
		{"int", 5, 5}, {"int", "5", 5}, {"int", 5.0, 5}, {"int", "05", errors.New(`"05" is not an integer`)}, {"int", 5.5, errors.New("5.5 is not an integer")},
		{"port", "3307", 3307}, {"port", 0, errors.New("0 is no port: it must be 1 to 65535")},
		{"float", "1.5", 1.5}, {"float", 2, 2.0}, {"float", "x", errors.New(`"x" is not a number`)},
		{"bool", "true", true}, {"bool", false, false}, {"bool", "yes", errors.New(`"yes" is not true or false`)},
		{"list", []any{1}, []any{1}}, {"list", "a,b", errors.New(`"a,b" is not a list`)},
		{"map", map[string]any{"a": 1}, map[string]any{"a": 1}}, {"map", nil, errors.New("<nil> is not a mapping")},
		{"path", "/a", "/a"}, {"path", "a", errors.New(`"a" is not an absolute path`)},
		{"hostname", "a.b-c.", "a.b-c."}, {"hostname", "10.0.0.1", "10.0.0.1"}, {"hostname", "::1", "::1"}, {"hostname", "-a", errors.New(`"-a" is not a host name or an address`)},
		{"duration", "1m30s", 90}, {"duration", 1.5, 1.5}, {"duration", "90", 90}, {"duration", -1, errors.New("-1 is not a duration, such as 90, 90s or 1m30s")},
	} {
		got, err := (&Param{Type: test.kind}).Convert(test.in)
		if want, ok := test.want.(error); ok {
			if err == nil || err.Error() != want.Error() {
				t.Errorf("%s %v: got %v, %v, want %v", test.kind, test.in, got, err, want)
			}
		} else if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%s %v: %v %s", test.kind, test.in, err, diff)
		}
	}
}

func TestConvertHidesSecrets(t *testing.T) {
	for _, p := range []*Param{
		{Type: "int", Secret: true}, {Type: "path", Secret: true}, {Type: "string", Secret: true, MinLen: 16},
		{Type: "string", Secret: true, Pattern: "x"}, {Type: "string", Secret: true, Choices: []*Value{ParseScalar("x")}},
	} {
		if _, err := p.Convert("hunter2"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := (&Param{Type: "port", Secret: true}).Convert("70707"); err == nil || strings.Contains(err.Error(), "70707") {
		t.Error(err)
	}
}

// A hostile book must not take the memory or the time of the one who lints it.
func TestImportsAreBounded(t *testing.T) {
	fsys := fstest.MapFS{"book.yml": {Data: []byte("runbook: x\nplays: [{hosts: all, tasks: [import_tasks: f0.yml]}]\n")}}
	for i := range 20 {
		fsys[fmt.Sprintf("f%d.yml", i)] = &fstest.MapFile{Data: []byte(strings.Repeat(fmt.Sprintf("- import_tasks: f%d.yml\n", i+1), 10))}
	}
	_, err := Load(fsys, "book.yml", func(string) bool { return false }, nil)
	if err == nil || !strings.Contains(err.Error(), "imports more than 1000 files") || !strings.Contains(err.Error(), "nested more than 16 deep") {
		t.Errorf("got %.300v", err)
	}
}

func TestUnder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "book.yml"), []byte("runbook: x\nplays: [{hosts: all, tasks: [import_tasks: more.yml]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(Under("some/dir", os.DirFS(dir)), "book.yml", func(string) bool { return false }, nil)
	if err == nil || !strings.HasPrefix(err.Error(), "some/dir/book.yml:2:") {
		t.Errorf("got %v", err)
	}
	_, err = Load(Under("some/dir", os.DirFS(dir)), "bok.yml", func(string) bool { return false }, nil)
	if want := "some/dir/bok.yml: cannot read the file: it does not exist\n    hint: did you mean \"book.yml\"?"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

// Inputs that grow faster in a careless reader than in the file.
func TestLargeFiles(t *testing.T) {
	for name, unit := range map[string]string{
		"brackets": "[", "braces": "{", "dashes": "- ", "keys": "? ", "comments": "#\n", "quotes": "\"\n", "items": "- a\n",
		"anchors": "- &a b\n", "same key": "a: 1\n", "tabs": "\t", "colons": "a: ", "literal": "- |\n  x\n", "spaces": " ", "lines": "\n",
		"comment after": "a: # x\n", "flow": "[a, ", "words": "a b ", "percent": "%a\n", "documents": "---\n", "indent": "a:\n ",
	} {
		start := time.Now()
		_, err := LoadValue(name, []byte(strings.Repeat(unit, maxSize/32/len(unit))))
		if d := time.Since(start); d > 30*time.Second { // what is not linear takes minutes
			t.Errorf("%s: %v (%.200v)", name, d, err)
		} else if testing.Verbose() {
			t.Logf("%s: %v", name, d)
		}
	}
}

func FuzzLoad(f *testing.F) {
	paths, _ := filepath.Glob("testdata/*/*.txtar")
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := fstest.MapFS{"book.yml": {Data: data}, "more.yml": {Data: data}}
		load := func() (string, *Book, error) {
			book, err := Load(fs.FS(fsys), "book.yml", func(name string) bool { return name == "command" }, testModules)
			data, _ := json.Marshal(book)
			return string(data) + fmt.Sprint(err), book, err
		}
		one, book, err := load()
		two, _, _ := load()
		if one != two {
			t.Fatalf("not the same twice:\n%s\n%s", one, two)
		}
		if (err == nil) == (book == nil) {
			t.Fatal("a book and an error, or neither")
		}
		var errs Errors
		if err != nil && (!errors.As(err, &errs) || len(errs) == 0) {
			t.Fatalf("not Errors: %v", err)
		}
		for _, e := range errs {
			if e.Pos.File == "" || e.Pos.Line < 0 || e.Pos.Line > strings.Count(string(data), "\n")+1 {
				t.Fatalf("no such place: %v", e)
			}
		}
		if v, err := LoadValue("book.yml", data); err == nil {
			walk(v)
		}
	})
}

// walk asks every string for places within it.
func walk(v *Value) {
	for line := 1; line < 4; line++ {
		_ = v.At(line, 3)
	}
	for _, item := range v.List {
		walk(item)
	}
	for _, e := range v.Map {
		walk(e.Value)
	}
}
