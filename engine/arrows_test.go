package engine_test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestArrows keeps the picture of the packages in HACKING.md true: who may import whom, and which library has one importer.
func TestArrows(t *testing.T) {
	may := map[string][]string{
		"runbook/cmd/runbook":              {"runbook/engine", "runbook/engine/...", "runbook/modules", "runbook/inventory", "runbook/runbooks"},
		"runbook/modules":                  {"runbook/engine/module", "runbook/engine/transport", "runbook/engine/secret"},
		"runbook/engine":                   {"runbook/engine/...", "runbook/inventory"},
		"runbook/engine/module":            {"runbook/engine/transport", "runbook/engine/secret"},
		"runbook/engine/module/moduletest": {"runbook/engine/module", "runbook/engine/transport", "runbook/engine/spec", "runbook/engine/secret"},
		"runbook/engine/vars":              {"runbook/engine/secret"},
		"runbook/engine/transport":         {"runbook/engine/secret", "runbook/engine/transport/..."},
		"runbook/engine/spec":              {},
		"runbook/engine/report":            {},
		"runbook/engine/secret":            {},
		"runbook/engine/journal":           {},
		"runbook/runbooks":                 {},
		"runbook/inventory":                {"runbook/engine/spec", "runbook/engine/secret"},
	}
	only := map[string]string{
		"gopkg.in/yaml.v3":                 "runbook/engine/spec",
		"github.com/expr-lang/expr":        "runbook/engine/vars",
		"github.com/melbahja/goph":         "runbook/engine/transport",
		"github.com/go-sql-driver/mysql":   "runbook/modules",
		"github.com/sirupsen/logrus":       "runbook/cmd/runbook",
		"github.com/spf13/cobra":           "runbook/cmd/runbook",
		"github.com/kevinburke/ssh_config": "runbook/engine/transport",
	}
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "runbook/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec, seen, imported := json.NewDecoder(strings.NewReader(string(out))), map[string]bool{}, map[string]bool{}
	for dec.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		seen[p.ImportPath] = true
		if strings.HasPrefix(p.ImportPath, "runbook/acceptance") || strings.Contains(p.ImportPath, "/transport/") {
			continue
		}
		allowed, known := may[p.ImportPath]
		if !known {
			t.Errorf("%s is in nobody's picture: add it to HACKING.md and here, or put its code where it belongs", p.ImportPath)
		}
		for _, i := range p.Imports {
			for lib, importer := range only {
				if i == lib || strings.HasPrefix(i, lib+"/") {
					imported[lib] = true
					if p.ImportPath != importer {
						t.Errorf("%s imports %s: only %s may", p.ImportPath, i, importer)
					}
				}
			}
			if !strings.HasPrefix(i, "runbook/") {
				continue
			}
			if !slices.ContainsFunc(allowed, func(a string) bool {
				return a == i || strings.HasSuffix(a, "/...") && strings.HasPrefix(i, strings.TrimSuffix(a, "..."))
			}) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
	for name := range may {
		if !seen[name] {
			t.Errorf("there is no package %s any more", name)
		}
	}
	for lib := range only {
		if !imported[lib] {
			t.Errorf("nobody imports %s", lib)
		}
	}
	for name := range seen {
		for _, word := range []string{"util", "common", "helper", "manager"} {
			if strings.Contains(name[strings.LastIndex(name, "/")+1:], word) {
				t.Errorf("package %s has a name that says nothing", name)
			}
		}
	}
}
