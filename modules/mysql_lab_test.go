package modules

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

// labServer is a private MariaDB instance that a test started.
type labServer struct {
	t      *testing.T
	dir    string
	socket string
	port   int
	host   *module.Host
	cmd    *exec.Cmd
	args   []string
}

// startPair starts a source and a replica that does not replicate yet, or skips the test where that is not possible.
func startPair(t *testing.T) (source, replica *labServer) {
	t.Helper()
	for _, program := range []string{"mariadbd", "mariadb-install-db", "mariadb-dump", "mariadb"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: needs a real MariaDB server, and %s is not installed (apt-get install mariadb-server)", program)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: starts MariaDB servers whose root account logs in by unix socket, so it must run as root")
	}
	// Short, because a socket's path may have 107 characters only.
	base, err := os.MkdirTemp("", "rbsql")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	seed := filepath.Join(base, "seed")
	install := exec.Command("mariadb-install-db", "--no-defaults", "--datadir="+seed, "--user=root", "--skip-test-db", "--skip-name-resolve",
		"--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M")
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	servers := make([]*labServer, 2)
	hosts := map[string]*module.Host{}
	for i, name := range []string{"source", "replica"} {
		s := &labServer{t: t, dir: filepath.Join(base, name), port: labPort(t)}
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s.socket = filepath.Join(s.dir, "s.sock")
		if out, err := exec.Command("cp", "-a", seed, filepath.Join(s.dir, "data")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		s.args = []string{"--no-defaults", "--user=root", "--datadir=" + s.dir + "/data", "--socket=" + s.socket, "--pid-file=" + s.dir + "/pid",
			"--log-error=" + s.dir + "/err", "--port=" + fmt.Sprint(s.port), "--bind-address=127.0.0.1", "--skip-networking=0", "--skip-name-resolve",
			"--server-id=" + fmt.Sprint(i+1), "--log-bin=" + s.dir + "/data/bin", "--binlog-format=ROW", "--skip-slave-start", "--innodb-log-file-size=4M",
			"--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", "--key-buffer-size=1M", "--performance-schema=OFF", "--slave-net-timeout=5"}
		if name == "replica" {
			s.args = append(s.args, "--read-only=1", "--replicate-wild-do-table=voms\\_lab.%", "--replicate-wild-do-table=o'db.%")
		}
		s.start()
		s.host = labHost(t, name, hosts)
		hosts[name] = s.host
		servers[i] = s
	}
	return servers[0], servers[1]
}

func (s *labServer) start() {
	s.t.Helper()
	s.cmd = exec.Command("mariadbd", s.args...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	cmd := s.cmd
	go func() { _ = cmd.Wait(); close(ended) }()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for range 300 {
		if c, err := net.Dial("unix", s.socket); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, _ := os.ReadFile(s.dir + "/err")
	s.t.Fatalf("mariadbd does not start:\n%s", text)
}

func labPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// labHost is this machine under an inventory name; peers are found in hosts.
func labHost(t *testing.T, name string, hosts map[string]*module.Host) *module.Host {
	t.Helper()
	conn, err := transport.Connect(context.Background(), transport.Config{Name: name, Connection: "local"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &module.Host{Name: name, Conn: conn, PeerFunc: func(_ context.Context, name string) (*module.Host, error) {
		if h, ok := hosts[name]; ok {
			return h, nil
		}
		return nil, fmt.Errorf("no host %s", name)
	}}
}

// make decodes a module's arguments as the engine does.
func makeModule(t *testing.T, name string, args map[string]any) module.Module {
	t.Helper()
	m := All()[name]()
	if err := module.Decode(m, args); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m
}

// on adds the login of the server to args.
func (s *labServer) on(args map[string]any) map[string]any {
	with := map[string]any{"login_socket": s.socket}
	for k, v := range args {
		with[k] = v
	}
	return with
}

func (s *labServer) check(name string, args map[string]any) (module.Plan, error) {
	s.t.Helper()
	return makeModule(s.t, name, args).Check(context.Background(), s.host)
}

// apply does what the engine does with a task: Check, Apply if there is something to do, and Check again, which must find nothing.
func (s *labServer) apply(name string, args map[string]any) (values module.Values, changed bool, err error) {
	s.t.Helper()
	plan, err := s.check(name, args)
	if err != nil {
		return nil, false, err
	}
	if len(plan.Changes) == 0 && plan.Unknown == "" {
		return plan.Values, false, nil
	}
	values, err = makeModule(s.t, name, args).Apply(context.Background(), s.host, plan)
	if err != nil || plan.Act {
		return values, true, err
	}
	again, err := s.check(name, args)
	if err != nil {
		return values, true, fmt.Errorf("check after apply: %w", err)
	}
	if len(again.Changes) > 0 || again.Unknown != "" {
		return values, true, fmt.Errorf("did not converge: %+v %s", again.Changes, again.Unknown)
	}
	return values, true, nil
}

// must applies a task that must succeed, and says whether it changed something.
func (s *labServer) must(name string, args map[string]any) (module.Values, bool) {
	s.t.Helper()
	values, changed, err := s.apply(name, args)
	if err != nil {
		s.t.Fatalf("%s %v: %v", name, args, err)
	}
	return values, changed
}

// changes applies a task that must change something, and then not again.
func (s *labServer) changes(name string, args map[string]any) module.Values {
	s.t.Helper()
	values, changed := s.must(name, args)
	if !changed {
		s.t.Fatalf("%s %v: nothing changed", name, args)
	}
	if _, again := s.must(name, args); again {
		s.t.Fatalf("%s %v: changed again", name, args)
	}
	return values
}

// refused applies a task that must fail with a text.
func (s *labServer) refused(name string, args map[string]any, want string) {
	s.t.Helper()
	_, _, err := s.apply(name, args)
	if err == nil || !strings.Contains(err.Error(), want) {
		s.t.Fatalf("%s %v: %v, want %q", name, args, err, want)
	}
}

// sql runs a statement as root.
func (s *labServer) sql(statements ...string) {
	s.t.Helper()
	var list []any
	for _, q := range statements {
		list = append(list, q)
	}
	if _, _, err := s.apply("sql", s.on(map[string]any{"queries": list})); err != nil {
		s.t.Fatalf("%s: %v", statements, err)
	}
}

// value reads one value as root.
func (s *labServer) value(query string, args ...any) any {
	s.t.Helper()
	plan, err := s.check("sql", s.on(map[string]any{"query": query, "read": true, "args": args}))
	if err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return plan.Values["value"]
}

// eventually waits for a value on a replica.
func (s *labServer) eventually(query string, want any) {
	s.t.Helper()
	var got any
	for range 100 {
		if got = s.value(query); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("%s: %v, want %v", query, got, want)
}
