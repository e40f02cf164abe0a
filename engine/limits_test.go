package engine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"runbook/engine"
	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
	"runbook/inventory"
	"runbook/modules"
)

// thirty is a book of 30 idempotent tasks under root: folders, modes, templates, copies, lines, packages, commands, looks.
func thirty(root string) fstest.MapFS {
	var b strings.Builder
	fmt.Fprintf(&b, "runbook: thirty\nvars: {root: %q, port: 3307}\nplays:\n  - name: all\n    hosts: all\n    tasks:\n", root)
	task := func(format string, args ...any) { fmt.Fprintf(&b, "      - "+format+"\n", args...) }
	for i := range 4 {
		task(`file: {path: '{{ root }}/d%d', state: directory}`, i)
	}
	for i := range 3 {
		task(`file: {path: '{{ root }}/d%d', state: directory, mode: "0700"}`, i)
	}
	for i := range 5 {
		task(`template: {src: t.conf, dest: '{{ root }}/t%d', mode: "0644"}`, i)
	}
	for i := range 3 {
		task(`copy: {content: "copy %d\n", dest: '{{ root }}/c%d'}`, i, i)
	}
	for i := range 5 {
		task(`line: {path: '{{ root }}/lines', line: 'line %d', create: true}`, i)
	}
	for _, name := range []string{"bash", "coreutils", "dpkg", "tar"} {
		task(`package: {name: %s}`, name)
	}
	for i := range 3 {
		task(`command: {argv: [echo, "%d"], read: true}`, i)
	}
	for i := range 2 {
		task(`wait_for: {path: '{{ root }}/c%d'}`, i)
	}
	task(`command: {shell: 'ls /proc/$$/status', read: true}`)
	return fstest.MapFS{"book.yml": {Data: []byte(b.String())}, "t.conf": {Data: []byte("port = {{ port }}\n")}}
}

// measured runs a book over the in-process SSH server and returns what the engine counted and what the server did.
func measured(t testing.TB, server *sshtest.Server, book fstest.MapFS, check bool) (engine.Summary, sshtest.Counts) {
	file := filepath.Join(t.TempDir(), "inventory.yml")
	if err := os.WriteFile(file, []byte("hosts: {a.example.org: {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	server.Reset()
	rec := &recorder{}
	summary, err := engine.Run(t.Context(), engine.Job{
		Books: []engine.Source{{FS: book, Path: "book.yml"}}, Inventory: inv, Modules: modules.All(), Reporter: rec, Check: check,
		Dial: func(ctx context.Context, _ *inventory.Host) (transport.Conn, error) {
			return transport.Connect(ctx, server.Config())
		},
	})
	if err != nil || summary.Failed() {
		t.Fatalf("%v\n%s", err, rec.lines())
	}
	return summary, server.Counts()
}

func start(t testing.TB, opts sshtest.Options) *sshtest.Server {
	server, err := sshtest.Start(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

// TestCountedLimits holds what speed.md promises on any machine: one connection, two sessions at most, and round trips.
func TestCountedLimits(t *testing.T) {
	if _, err := os.Stat("/usr/bin/dpkg-query"); err != nil {
		t.Skip("needs dpkg for the package tasks")
	}
	server := start(t, sshtest.Options{})
	book := thirty(t.TempDir())

	// What connecting and opening the shell cost, with a single task: the handshake's packets meet in more than one way.
	connecting := 0
	for range 3 {
		_, one := measured(t, server, fstest.MapFS{"book.yml": {Data: []byte("runbook: one\nplays: [{hosts: all, tasks: [{command: {argv: ['true'], read: true}}]}]\n")}}, false)
		connecting = max(connecting, one.Flights-1)
	}

	// A verifying check shares its apply's flight unless this machine is too busy to send it in time: the best of a few.
	first, changing := measured(t, server, book, false)
	for try := 1; try < 5 && changing.Flights-connecting > 10+2*20; try++ {
		book = thirty(t.TempDir())
		if _, counts := measured(t, server, book, false); counts.Flights < changing.Flights {
			changing = counts
		}
	}
	if first.Totals[0].Changed != 20 || first.Totals[0].OK != 10 {
		t.Errorf("the first run changed %d of 30 tasks, %d were ok", first.Totals[0].Changed, first.Totals[0].OK)
	}
	if got, limit := changing.Flights-connecting, 10+2*20; got > limit {
		t.Errorf("20 changing and 10 unchanged tasks took %d round trips, the limit is %d", got, limit)
	}
	for _, check := range []bool{false, true} {
		again, counts := measured(t, server, book, check)
		if again.Totals[0].OK != 30 {
			t.Errorf("check %v: only %d of 30 tasks were ok", check, again.Totals[0].OK)
		}
		if got := counts.Flights - connecting; got > 33 {
			t.Errorf("check %v: 30 unchanged tasks took %d round trips, the limit is 33", check, got)
		}
		if counts.Connections != 1 || counts.Sessions > 2 {
			t.Errorf("check %v: %d connections and %d sessions, the limits are 1 and 2", check, counts.Connections, counts.Sessions)
		}
		t.Logf("check %v: %d round trips for 30 unchanged tasks, and %d to connect", check, counts.Flights-connecting, connecting)
	}
	t.Logf("%d round trips for 20 changing and 10 unchanged tasks", changing.Flights-connecting)
}

// BenchmarkThirtyUnchanged is an audit of one converged host, connecting included, without and with a slow line.
func BenchmarkThirtyUnchanged(b *testing.B) {
	for _, rtt := range []time.Duration{0, 50 * time.Millisecond} {
		b.Run(fmt.Sprintf("rtt=%s", rtt), func(b *testing.B) {
			server := start(b, sshtest.Options{})
			book := thirty(b.TempDir())
			measured(b, server, book, false)
			slow := start(b, sshtest.Options{RTT: rtt})
			for b.Loop() {
				measured(b, slow, book, true)
			}
		})
	}
}

// BenchmarkThirtyChanges is 20 changes and 10 looks on a fresh host.
func BenchmarkThirtyChanges(b *testing.B) {
	for _, rtt := range []time.Duration{0, 50 * time.Millisecond} {
		b.Run(fmt.Sprintf("rtt=%s", rtt), func(b *testing.B) {
			server := start(b, sshtest.Options{RTT: rtt})
			for b.Loop() {
				measured(b, server, thirty(b.TempDir()), false)
			}
		})
	}
}
