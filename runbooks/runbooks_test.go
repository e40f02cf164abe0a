package runbooks_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"runbook/engine"
	"runbook/engine/report"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/engine/vars"
	"runbook/inventory"
	"runbook/modules"
	"runbook/runbooks"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// books lists every shipped runbook.
func books(t *testing.T) []string {
	t.Helper()
	var names []string
	err := fs.WalkDir(runbooks.FS, ".", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".yml") && !strings.Contains(path, "/tasks/") {
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	return names
}

func load(t *testing.T, text string) *inventory.Inventory {
	t.Helper()
	file := filepath.Join(t.TempDir(), "inventory.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

const pair = `
groups:
  all: {vars: {databases: [voms_myvo, cns_db], replication_password: "sixteen characters",
    vos: [{name: myvo, port: 15000}, {name: other.example.org, port: 15010, database: others}], voms_password: "eight characters"}}
  master: {hosts: {voms1.example.org: {}}}
  slave: {hosts: {voms2.example.org: {}, voms3.example.org: {vars: {server_id: 3}}}}
  ui: {hosts: {ui.example.org: {}}}
`

type events struct{}

func (e *events) Event(report.Event) {}

// check compiles books for the hosts of an inventory, without any host to connect to.
func check(t *testing.T, inv *inventory.Inventory, names ...string) (engine.Summary, error) {
	job := engine.Job{Inventory: inv, Modules: modules.All(), Check: true, Reporter: &events{}}
	for _, name := range names {
		job.Books = append(job.Books, engine.Source{FS: runbooks.FS, Path: name})
	}
	job.Dial = func(_ context.Context, h *inventory.Host) (transport.Conn, error) {
		return nil, &transport.UnreachableError{Host: h.Name, Err: errors.New("there is no host")}
	}
	return engine.Run(t.Context(), job)
}

// TestBooksCompile: every shipped book is free of mistakes for a pair of hosts, alone and together with the others.
func TestBooksCompile(t *testing.T) {
	for _, name := range books(t) {
		if _, err := check(t, load(t, pair), name); err != nil {
			t.Errorf("%s:\n%v", name, err)
		}
	}
	if _, err := check(t, load(t, pair), books(t)...); err != nil {
		t.Error(err)
	}
}

// TestBadParameters: what a site forgets or mistypes is told before any connection.
func TestBadParameters(t *testing.T) {
	for _, c := range []struct{ name, from, to, want string }{
		{"short password", "sixteen characters", "fifteen letters", "needs 16"},
		{"no password", `, replication_password: "sixteen characters"`, "", "is required and has no value"},
		{"no databases", "databases: [voms_myvo, cns_db]", "databases: []", "it has 0 items"},
		{"a quote in a database's name", "cns_db", "cns'db", "does not match"},
		{"unknown filters", "databases:", "filters: all, databases:", "none of slave, as-printed"},
		{"no slave", "slave:", "slaves:", "slave"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := check(t, load(t, strings.Replace(pair, c.from, c.to, 1)), "man06/slave.yml")
			var bad spec.Errors
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a mistake that says %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "fifteen letters") {
				t.Errorf("the password is in the message: %v", err)
			}
		})
	}
}

// TestFamilies: what differs between the families of distributions and of servers is chosen by the books, as testdata/families.golden says.
func TestFamilies(t *testing.T) {
	all := modules.All()
	var got strings.Builder
	for _, family := range []struct{ os, server string }{{"debian", "mariadb"}, {"debian", "mysql"}, {"rhel", "mariadb"}, {"rhel", "mysql"}} {
		fmt.Fprintf(&got, "%s, %s\n", family.os, family.server)
		seen := map[string]string{}
		for _, name := range books(t) {
			book, err := spec.Load(runbooks.FS, name, func(name string) bool { return all[name] != nil }, slices.Sorted(maps.Keys(all)))
			if err != nil {
				t.Fatal(err)
			}
			scope, env := vars.NewScope().With("facts", vars.Any), vars.NewStack()
			env.Set(vars.Defaults, "facts", vars.Const(map[string]any{"os_family": family.os, "mysql_flavour": family.server, "mysql_version": "8.0.40"}), "the test")
			for _, param := range book.Params {
				scope = scope.With(param.Name, vars.Any)
				env.Set(vars.Defaults, param.Name, vars.Const(nil), "the test")
			}
			for _, play := range book.Plays {
				for _, v := range play.Vars {
					if !strings.Contains(v.Value.Str, "facts.os_family") {
						continue
					}
					tree, err := vars.CompileText(v.Value.Str, scope)
					if err != nil {
						t.Fatalf("%s: %s: %v", name, v.Key, err)
					}
					value, err := tree.Eval(env)
					if err != nil {
						t.Fatalf("%s: %s: %v", name, v.Key, err)
					}
					if before, ok := seen[v.Key]; ok && before != value.(string) {
						t.Errorf("%s on %s: %s is %v, in another play %s", name, family.os, v.Key, value, before)
					}
					seen[v.Key] = value.(string)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(seen)) {
			fmt.Fprintf(&got, "  %s = %s\n", name, seen[name])
		}
	}
	const golden = "testdata/families.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("-golden +books:\n%s", diff)
	}
}

func defaultFirst(a, b string) int {
	if (a == "default") != (b == "default") {
		return map[bool]int{true: -1, false: 1}[a == "default"]
	}
	return strings.Compare(a, b)
}

// TestTemplates renders every shipped template for the sites of sites, and compares with a golden file; a site that has none gets
// the same as the default one.
func TestTemplates(t *testing.T) {
	base := map[string]any{
		"stunnel_user": "stunnel4", "stunnel_group": "stunnel4", "stunnel_program": "/usr/bin/stunnel", "stunnel_conf": "/etc/stunnel/man06/stunnel.conf",
		"tunnel_port": 3307, "tunnel_local_port": 3307, "mysql_port": 3306, "tls_cert": "/etc/grid-security/hostcert.pem", "tls_key": "/etc/grid-security/hostkey.pem",
		"tls_ca_dir": "/etc/grid-security/certificates", "tls_crls": false, "slave_tls_names": []any{"voms2.example.org"}, "master_host": "voms1.example.org",
		"master_tls_name": "voms1.example.org", "server_id": 1, "log_bin": "/var/lib/mysql/mysql-bin", "relay_log": "/var/lib/mysql/relay-bin",
		"binlog_keep_days": 14, "filters": "slave", "replicated": []any{"voms_my_vo", "man06_canary"},
		"facts": map[string]any{"mysql_flavour": "mariadb", "mysql_version": "10.11.19"},
		"item":  map[string]any{"name": "my.vo", "database": "voms_my_vo", "port": 15000}, "voms_user": "voms_query", "voms_conf_dir": "/etc/voms", "voms_account": "voms",
		"voms_cert_dir": "/etc/grid-security/voms", "voms_log_dir": "/var/log/voms", "voms_max_seconds": 86400, "inventory_hostname": "voms1.example.org",
		"mysql_socket_path": "/run/mysqld/mysqld.sock", "voms_library_path": "/usr/lib/voms/libvomsmysql.so", "mysql_unit": "mariadb",
		"connection_name": "", "tunnel_unit": "man06-stunnel", "read_only": true, "voms_host": "voms1.example.org", "voms_sysconfig_path": "/etc/default/voms",
		"voms_servers": []any{"voms1.example.org", "voms2.example.org"},
		"hosts": map[string]any{
			"voms1.example.org": map[string]any{"voms_host": "voms1.example.org", "voms_names": map[string]any{"stdout": "subject=/DC=org/DC=example/CN=voms1.example.org\nissuer=/DC=org/CN=CA"}},
			"voms2.example.org": map[string]any{"voms_host": "voms.example.com", "voms_names": map[string]any{"stdout": "subject= /C=XY/O=Éx/CN=host/voms2.example.org\nissuer= /DC=org/CN=CA"}},
		},
	}
	sites := map[string]map[string]any{
		"default": {},
		"other": {"voms_conf_dir": "/opt/grid/voms", "voms_account": "vomsd", "voms_sysconfig_path": "/etc/sysconfig/voms", "filters": "as-printed", "tls_crls": true, "slave_tls_names": []any{"a.example.org", "b.example.org"}, "tunnel_port": 13307,
			"facts":             map[string]any{"mysql_flavour": "mysql", "mysql_version": "8.0.40"},
			"voms_library_path": "/usr/lib64/voms/libvomsmysql.so", "mysql_socket_path": "/var/lib/mysql/mysql.sock", "mysql_unit": "mysqld"},
		"rhel": {"stunnel_user": "nobody", "stunnel_group": "nobody", "voms_library_path": "/usr/lib64/voms/libvomsmysql.so", "voms_sysconfig_path": "/etc/sysconfig/voms",
			"mysql_socket_path": "/var/lib/mysql/mysql.sock"},
		"named": {"connection_name": "second_1", "server_id": 2, "tunnel_unit": "man06-stunnel-second_1", "stunnel_conf": "/etc/stunnel/man06/second_1.conf", "tunnel_local_port": 3308,
			"replicated": []any{"voms_my_vo", "man06_canary_second_1"}, "voms_host": "voms.example.com"},
		"named-mysql": {"connection_name": "second_1", "read_only": false, "facts": map[string]any{"mysql_flavour": "mysql", "mysql_version": "8.4.2"},
			"replicated": []any{"voms_my_vo", "man06_canary_second_1"}},
	}
	files, err := fs.Glob(runbooks.FS, "*/templates/*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		for _, site := range slices.SortedFunc(maps.Keys(sites), defaultFirst) {
			changes := sites[site]
			t.Run(filepath.Base(file)+"/"+site, func(t *testing.T) {
				source, err := fs.ReadFile(runbooks.FS, file)
				if err != nil {
					t.Fatal(err)
				}
				scope, env := vars.NewScope(), vars.NewStack()
				for name, value := range base {
					if changed, ok := changes[name]; ok {
						value = changed
					}
					scope = scope.With(name, vars.Any)
					env.Set(vars.Defaults, name, vars.Const(value), "the test")
				}
				tree, err := vars.CompileTemplate(file, string(source), scope)
				if err != nil {
					t.Fatal(err)
				}
				got, err := tree.Eval(env)
				if err != nil {
					t.Fatal(err)
				}
				golden := filepath.Join("testdata", filepath.Base(file)+"."+site+".golden")
				same := filepath.Join("testdata", filepath.Base(file)+".default.golden")
				if *update {
					if err := os.WriteFile(golden, []byte(got.(string)), 0o644); err != nil {
						t.Fatal(err)
					}
					if text, err := os.ReadFile(same); err == nil && golden != same && string(text) == got.(string) {
						if err := os.Remove(golden); err != nil {
							t.Fatal(err)
						}
					}
				}
				if _, err := os.Stat(golden); errors.Is(err, fs.ErrNotExist) {
					golden = same
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got); diff != "" {
					t.Errorf("-golden +rendered:\n%s", diff)
				}
			})
		}
	}
}
