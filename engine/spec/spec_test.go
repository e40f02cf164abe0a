package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

var testModules = []string{"assert", "command", "copy", "file", "line", "package", "service", "sql", "template"}

func loadArchive(a *txtar.Archive) (*Book, error) {
	fsys := fstest.MapFS{}
	for _, f := range a.Files {
		fsys[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	return Load(fsys, "book.yml", func(name string) bool { return slices.Contains(testModules, name) }, testModules)
}

// golden compares got with the file `want` of an archive, or rewrites it.
func golden(t *testing.T, path string, a *txtar.Archive, got string) {
	t.Helper()
	i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "want" })
	if i < 0 {
		a.Files = append(a.Files, txtar.File{Name: "want"})
		i = len(a.Files) - 1
	}
	if *update {
		a.Files[i].Data = []byte(got)
		if err := os.WriteFile(path, txtar.Format(a), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(a.Files[i].Data), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func eachArchive(t *testing.T, pattern string, test func(t *testing.T, path string, a *txtar.Archive)) {
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in %s: %v", pattern, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			test(t, path, a)
		})
	}
}

// Promise 3: every mistake at once, each with its place and a hint.
func TestBad(t *testing.T) {
	eachArchive(t, "testdata/bad/*.txtar", func(t *testing.T, path string, a *txtar.Archive) {
		_, err := loadArchive(a)
		var errs Errors
		if !errors.As(err, &errs) {
			t.Fatalf("got %v, want Errors", err)
		}
		golden(t, path, a, err.Error()+"\n")
	})
}

func TestGood(t *testing.T) {
	eachArchive(t, "testdata/good/*.txtar", func(t *testing.T, path string, a *txtar.Archive) {
		book, err := loadArchive(a)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, path, a, dump(t, book))
	})
}

// dump shows a book without positions and zero values.
func dump(t *testing.T, book *Book) string {
	t.Helper()
	data, err := json.Marshal(book)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	out, err := json.MarshalIndent(simplify(tree), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out) + "\n"
}

func simplify(tree any) any {
	switch x := tree.(type) {
	case []any:
		if len(x) == 0 {
			return nil
		}
		for i := range x {
			x[i] = simplify(x[i])
		}
		return x
	case map[string]any:
		if kind, ok := x["Kind"].(float64); ok {
			return simplifyValue(Kind(kind), x)
		}
		for key, value := range x {
			value = simplify(value)
			if strings.HasSuffix(key, "Pos") || value == nil || value == "" || value == false || value == 0.0 {
				delete(x, key)
			} else {
				x[key] = value
			}
		}
		return x
	}
	return tree
}

func simplifyValue(kind Kind, x map[string]any) any {
	switch kind {
	case Null:
		return "null"
	case List, Map:
		key := map[Kind]string{List: "List", Map: "Map"}[kind]
		if v := simplify(x[key]); v != nil {
			return v
		}
		return kind.String()
	}
	return kind.String() + " " + x["Str"].(string)
}
