package inventory

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"runbook/engine/spec"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

// eachArchive writes the files of each archive into a directory, loads the path that is the first line of its
// comment, and compares what show makes of it with the file `want`.
func eachArchive(t *testing.T, pattern string, show func(t *testing.T, inv *Inventory, err error) string) {
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
			dir := t.TempDir()
			want := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "want" })
			if want < 0 {
				a.Files = append(a.Files, txtar.File{Name: "want"})
				want = len(a.Files) - 1
			}
			for i, f := range a.Files {
				if i != want {
					write(t, filepath.Join(dir, f.Name), string(f.Data), 0o644)
				}
			}
			first, _, _ := strings.Cut(string(a.Comment), "\n")
			inv, err := Load(filepath.Join(dir, first))
			got := strings.ReplaceAll(show(t, inv, err), dir+"/", "")
			if *update {
				a.Files[want].Data = []byte(got)
				if err := os.WriteFile(path, txtar.Format(a), 0o666); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(a.Files[want].Data), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestGood(t *testing.T) {
	eachArchive(t, "testdata/good/*.txtar", func(t *testing.T, inv *Inventory, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return describe(inv)
	})
}

// Promise 3: every mistake at once, each with its place and a hint.
func TestBad(t *testing.T) {
	eachArchive(t, "testdata/bad/*.txtar", func(t *testing.T, _ *Inventory, err error) string {
		var errs spec.Errors
		if !errors.As(err, &errs) {
			t.Fatalf("got %v, want spec.Errors", err)
		}
		return err.Error() + "\n"
	})
}

// describe writes an inventory as text.
func describe(inv *Inventory) string {
	var b strings.Builder
	for _, h := range inv.Hosts() {
		fmt.Fprintf(&b, "%s %v\n", h.Name, h.Groups)
		c := reflect.ValueOf(h.Connection)
		for field, value := range c.Fields() {
			if field.IsExported() && !value.IsZero() {
				fmt.Fprintf(&b, "  %s: %v\n", field.Name, value)
			}
		}
		for _, v := range h.Vars {
			fmt.Fprintf(&b, "  %s = %v (%s)\n", v.Name, v.Value.Any(), v.Group)
		}
	}
	groups := inv.Groups()
	for name := range groups {
		groups[name] = append([]string{name}, groups[name]...)
	}
	lines := make([]string, 0, len(groups))
	for _, members := range groups {
		lines = append(lines, strings.Join(members, " "))
	}
	slices.Sort(lines)
	return b.String() + strings.Join(lines, "\n") + "\n"
}

// The documentation shows these.
func TestExamples(t *testing.T) {
	for _, name := range []string{"site.yml", "two-sites"} {
		inv, err := Load(filepath.Join("examples", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := inv.Match("master[0]:slave"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Examples.Open("examples/" + name); err != nil {
			t.Error(err)
		}
	}
}

func loadText(t testing.TB, text string) *Inventory {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hosts.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

const sample = `
hosts: [lone]
groups:
  web: {hosts: ["web[1:4].x.org"]}
  db: {hosts: [db1, db2], children: [replica]}
  replica: {hosts: [db3, web1.x.org]}
  empty:
`

func TestMatch(t *testing.T) {
	inv := loadText(t, sample)
	for _, test := range []struct{ pattern, want string }{
		{"all", "lone web1.x.org web2.x.org web3.x.org web4.x.org db1 db2 db3"},
		{"*", "lone web1.x.org web2.x.org web3.x.org web4.x.org db1 db2 db3"},
		{"db", "web1.x.org db1 db2 db3"},
		{"db1", "db1"},
		{"db2, lone", "lone db2"},
		{"lone:db2", "lone db2"},
		{"db:!replica", "db1 db2"},
		{"!replica:db", "db1 db2"},
		{"db:&web", "web1.x.org"},
		{"&web:&db", "web1.x.org"},
		{"!db", "lone web2.x.org web3.x.org web4.x.org"},
		{"all:!web:!db", "lone"},
		{"~web[12]", "web1.x.org web2.x.org"},
		{"~^(?:db|lone)$,web4*", "lone web1.x.org web4.x.org db1 db2 db3"},
		{"web[0]", "web1.x.org"},
		{"web[-1]", "web4.x.org"},
		{"web[1:2]", "web2.x.org web3.x.org"},
		{"web[2:]", "web3.x.org web4.x.org"},
		{"web[:1]", "web1.x.org web2.x.org"},
		{"web[2:99]", "web3.x.org web4.x.org"},
		{"web[a-z]*,web[0-9]*", "ERROR cannot find a host for \"web[a-z]*\": nothing matches"},
		{"web[1-2].*", "web1.x.org web2.x.org"},
		{"a*", "ERROR cannot find a host for \"a*\": nothing matches"},
		{"rep*:!web*", "db3"},
		{"", "ERROR cannot use an empty pattern of hosts\n    hint: write `all` for every host"},
		{":,", "ERROR cannot use an empty pattern of hosts\n    hint: write `all` for every host"},
		{"!", "ERROR cannot use an empty pattern of hosts\n    hint: put a name behind ! or &"},
		{"bd1", "ERROR cannot find \"bd1\" in the inventory: it is neither a host nor a group\n    hint: did you mean \"db1\"?"},
		{"all:!bd1", "ERROR cannot find \"bd1\" in the inventory: it is neither a host nor a group\n    hint: did you mean \"db1\"?"},
		{"web3", "ERROR cannot find \"web3\" in the inventory: it is neither a host nor a group\n    hint: did you mean \"web3.x.org\"?"},
		{"empty", "ERROR cannot find a host for \"empty\": nothing matches"},
		{"empty[0]", "ERROR cannot find a host for \"empty[0]\": the group is empty"},
		{"web:!web", "ERROR cannot find a host for \"web:!web\": nothing is left"},
		{"web[4]", "ERROR cannot find a host for \"web[4]\": there are 4\n    hint: indexes go from 0 to 3"},
		{"web[-5]", "ERROR cannot find a host for \"web[-5]\": there are 4\n    hint: indexes go from 0 to 3"},
		{"web[2:1]", "ERROR cannot find a host for \"web[2:1]\": there are 4\n    hint: indexes go from 0 to 3"},
		{"web[99999999999999999999]", "ERROR cannot find a host for \"web[99999999999999999999]\": there are 4\n    hint: indexes go from 0 to 3"},
		{"web[1", "ERROR cannot use \"web[1\" as a pattern of hosts: a bracket is not closed"},
		{"~(", "ERROR cannot use \"~(\" as a pattern of hosts: missing closing ): `(`"},
	} {
		hosts, err := inv.Match(test.pattern)
		var names []string
		for _, h := range hosts {
			names = append(names, h.Name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = "ERROR " + err.Error()
		}
		if got != test.want {
			t.Errorf("Match(%q)\n got %s\nwant %s", test.pattern, got, test.want)
		}
	}
}

// Reliability T-cwd: what others can write must not say where we connect.
func TestWritableByOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hosts.yml")
	write(t, path, "hosts: [a]\n", 0o666)
	_, err := Load(path)
	if err == nil || !strings.Contains(err.Error(), "everyone may write to "+path) || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(path, 0o664); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(dir, "group_vars/all.yml"), "x: 1\n", 0o602)
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "everyone may write") {
		t.Errorf("group_vars: got %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "group_vars/all.yml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "everyone may write to "+dir) {
		t.Errorf("directory: got %v", err)
	}
}

func TestBecomePassword(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hosts.yml")
	write(t, path, "hosts:\n  a: {become_password_file: secret/pw}\n  b:\n", 0o600)
	inv, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	a := &inv.Host("a").Connection
	if p, err := inv.Host("b").Connection.BecomePassword(); err != nil || !p.IsZero() {
		t.Errorf("without a file: %v", err)
	}
	if _, err := a.BecomePassword(); err == nil || !strings.Contains(err.Error(), "hosts.yml:2:29: cannot read the become password: ") {
		t.Errorf("missing file: %v", err)
	}
	for _, test := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{"hunter2\n", 0o600, ""},
		{"hunter2", 0o400, ""},
		{"hunter2\r\n", 0o600, ""},
		{"hunter2\n", 0o640, "can be read by others than its owner: its mode is 0640"},
		{"hunter2\n", 0o604, "can be read by others"},
		{"", 0o600, "does not hold one line"},
		{"\n", 0o600, "does not hold one line"},
		{"one\nhunter2\n", 0o600, "does not hold one line"},
		{strings.Repeat("x", 5000), 0o600, "does not hold one line"},
	} {
		write(t, filepath.Join(dir, "secret/pw"), "", 0o600)
		write(t, filepath.Join(dir, "secret/pw"), test.text, test.mode)
		p, err := a.BecomePassword()
		switch {
		case test.want == "" && (err != nil || p.Reveal() != "hunter2"):
			t.Errorf("%q %04o: %v", test.text, test.mode, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2")):
			t.Errorf("%q %04o: got %v, want %s", test.text, test.mode, err, test.want)
		}
	}
}

// A hostile inventory must not take the time of the one who lints it.
func TestRangesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.yml")
	text := "groups:\n"
	for i := range 5000 {
		text += fmt.Sprintf("  g%d: {hosts: ['h[1:20000]', 'i[1:20000]']}\n", i)
	}
	write(t, path, text, 0o600)
	_, err := Load(path)
	var errs spec.Errors
	if !errors.As(err, &errs) || len(errs) > 20 || !strings.Contains(err.Error(), "cannot hold more than 20000 hosts") || !strings.Contains(err.Error(), "names hosts more than 200000 times") {
		t.Errorf("%d errors: %.300v", len(errs), err)
	}
}

func FuzzMatch(f *testing.F) {
	inv := loadText(f, sample)
	for _, pattern := range []string{"all:!web", "~a(b", "web[1:2],db", "w*[a", `\`, "&x:&", "web[0][0]"} {
		f.Add(pattern)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		hosts, err := inv.Match(pattern)
		again, _ := inv.Match(pattern)
		if (err == nil) != (len(hosts) > 0) || !slices.Equal(hosts, again) {
			t.Fatalf("%q: %d hosts, %v", pattern, len(hosts), err)
		}
	})
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
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "hosts.yml")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		inv, err := Load(path)
		again, err2 := Load(path)
		if fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("not the same twice:\n%v\n%v", err, err2)
		}
		if err == nil && describe(inv) != describe(again) {
			t.Fatal("not the same twice")
		}
	})
}
