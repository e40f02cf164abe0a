package modules

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"runbook/engine/module"
	"runbook/engine/module/moduletest"
)

func TestContract(t *testing.T) { moduletest.Run(t, All(), "testdata") }

// testedElsewhere are the modules that need more than a shell and a tree of files: a server, or a second host.
var testedElsewhere = []string{
	"iptables", "mysql_database", "mysql_dump", "mysql_import", "mysql_info", "mysql_replication", "mysql_user", "mysql_wait_position", "sql", "transfer",
}

func TestEveryModuleHasCases(t *testing.T) {
	const least = 6
	for name := range All() {
		cases, err := filepath.Glob(filepath.Join("testdata", name, "*.txtar"))
		if err != nil {
			t.Fatal(err)
		}
		if len(cases) < least && !slices.Contains(testedElsewhere, name) {
			t.Errorf("%s has %d contract cases, want %d", name, len(cases), least)
		}
	}
}

// The generated pages are made of the comments.
func TestEveryArgumentIsDocumented(t *testing.T) {
	docs := argumentDocs(t)
	for name, factory := range All() {
		m := factory()
		of := reflect.TypeOf(m).Elem()
		seen := map[string]bool{}
		for _, f := range module.Fields(m) {
			if seen[f.Name] {
				t.Errorf("%s has two arguments %s", name, f.Name)
			}
			seen[f.Name] = true
			owner := of
			if sf, ok := fieldByTag(of, f.Name); ok {
				owner = sf
			}
			if doc := docs[owner.Name()+"."+f.Name]; !strings.HasSuffix(doc, ".") {
				t.Errorf("argument %s of %s has no help that ends a sentence: %q", f.Name, name, doc)
			}
		}
		if r, ok := m.(module.Returner); ok {
			for _, ret := range r.Returns() {
				if ret.Name == "" || !slices.Contains([]string{"string", "int", "float", "bool", "list", "map", "any"}, ret.Type) {
					t.Errorf("%s: returned field %+v", name, ret)
				}
			}
		}
	}
}

// fieldByTag is the struct, of itself or an embedded one, that holds the argument.
func fieldByTag(of reflect.Type, name string) (reflect.Type, bool) {
	for sf := range of.Fields() {
		if sf.Tag.Get("yaml") == name {
			return of, true
		}
		if sf.Anonymous && sf.Type.Kind() == reflect.Struct {
			if owner, ok := fieldByTag(sf.Type, name); ok {
				return owner, true
			}
		}
	}
	return nil, false
}

// argumentDocs reads the comments of all struct fields with a yaml tag: STRUCT.ARGUMENT to text.
func argumentDocs(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if st, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					if f.Tag != nil {
						tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
						docs[spec.Name.Name+"."+tag.Get("yaml")] = strings.TrimSpace(f.Doc.Text())
					}
				}
			}
			return true
		})
	}
	return docs
}
