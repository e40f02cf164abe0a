package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"runbook/engine"
	"runbook/engine/report"
	"runbook/engine/transport"
	"runbook/inventory"
	"runbook/modules"
	"runbook/runbooks"
)

// exampleSite and exampleBook are what the modules' examples take for granted: a pair of hosts, and a dump that the master has made.
// An example is the rest of the play on the slave.
const exampleSite = `
groups:
  all: {vars: {databases: [voms_myvo, cns_db], replication_password: sixteen letters., query_password: sixteen letters.}}
  master: {hosts: {voms1.example.org: {}}}
  slave: {hosts: {voms2.example.org: {}}}
`

const exampleBook = `
runbook: An example
params:
  databases: {type: list}
  replication_password: {secret: true}
  query_password: {secret: true}
plays:
  - hosts: master
    tasks:
      - name: The dump
        mysql_dump: {databases: '{{ databases }}', dest: /var/lib/runbook/man06/dump.sql}
        register: dump
  - hosts: slave
`

// TestExamples: every module's page has an example, it is about that module, and it is free of mistakes.
func TestExamples(t *testing.T) {
	pages, err := modulePages("../../modules", modules.All())
	if err != nil {
		t.Fatal(err)
	}
	for name := range modules.All() {
		t.Run(name, func(t *testing.T) {
			_, example, _ := strings.Cut(pages["modules/"+name+".md"], "\n## Example\n\n```yaml\n")
			example, rest, ended := strings.Cut(example, "```\n")
			if !ended || rest != "" {
				t.Fatalf("the page does not end in one example: %q", example+rest)
			}
			if !strings.HasPrefix(example, "tasks:\n") || !strings.Contains(example, "\n    "+name+":") {
				t.Errorf("the example is not tasks of a play with the module in it:\n%s", example)
			}
			if err := checkExample(t, example); err != nil {
				t.Errorf("the example has mistakes:\n%v", err)
			}
		})
	}
	if err := checkExample(t, "tasks:\n  - name: x\n    service: {name: x, stat: started}\n"); err == nil || !strings.Contains(err.Error(), `did you mean "state"`) {
		t.Errorf("a mistake in an example is not found: %v", err)
	}
}

// checkExample compiles an example as a check would, without any host to connect to.
func checkExample(t *testing.T, example string) error {
	t.Helper()
	site := filepath.Join(t.TempDir(), "site.yml")
	if err := os.WriteFile(site, []byte(exampleSite), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load(site)
	if err != nil {
		t.Fatal(err)
	}
	book := exampleBook
	for line := range strings.Lines(example) {
		book += "    " + line
	}
	files := fstest.MapFS{
		"example.yml":            {Data: []byte(book)},
		"files/vomses":           {Data: []byte("\"myvo\" \"voms1.example.org\" \"15000\" \"/DC=org/DC=example/CN=voms1.example.org\" \"myvo\"\n")},
		"templates/stunnel.conf": {Data: []byte("[mysql]\naccept = 3307\n")},
	}
	_, err = engine.Run(t.Context(), engine.Job{
		Books: []engine.Source{{FS: files, Path: "example.yml"}}, Inventory: inv, Modules: modules.All(), Check: true, Reporter: silent{},
		Dial: func(_ context.Context, h *inventory.Host) (transport.Conn, error) {
			return nil, &transport.UnreachableError{Host: h.Name, Err: errors.New("there is no host")}
		},
	})
	return err
}

// TestMAN06Page: the tasks that docs/man06.md names are in the books, and it names every parameter of theirs and every task that
// carries out a step of the manual.
func TestMAN06Page(t *testing.T) {
	data, err := os.ReadFile("../../docs/man06.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	var books string
	for _, name := range []string{"master", "slave", "verify"} {
		data, err := runbooks.FS.ReadFile("man06/" + name + ".yml")
		if err != nil {
			t.Fatal(err)
		}
		books += string(data)
	}
	tasks := regexp.MustCompile(`"((?:Before step|Step|Master|Slave)[^"]*: [^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(tasks) < 50 {
		t.Errorf("the page names %d tasks only", len(tasks))
	}
	for _, task := range tasks {
		if !strings.Contains(books, `- name: "`+task[1]+`"`) {
			t.Errorf("no book has the task %q", task[1])
		}
	}
	for _, task := range regexp.MustCompile(`- name: "((?:Before step|Step) [^"]+)"`).FindAllStringSubmatch(books, -1) {
		if !strings.Contains(page, `"`+task[1]+`"`) {
			t.Errorf("the task %q is not on the page", task[1])
		}
	}
	for _, param := range regexp.MustCompile(`(?m)^  ([a-z_]+): \{`).FindAllStringSubmatch(books, -1) {
		if !strings.Contains(page, "`"+param[1]+"`") {
			t.Errorf("the parameter %s is not on the page", param[1])
		}
	}
}

type silent struct{}

func (silent) Event(report.Event) {}
