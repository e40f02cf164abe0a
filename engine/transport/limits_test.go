package transport_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// What a host costs, counted by the server: these are promises, on any machine and any line.
func TestCounted(t *testing.T) {
	t.Parallel()
	s := startServer(t, sshtest.Options{RTT: 20 * time.Millisecond})
	c := connect(t, s.Config())
	if got := s.Counts(); got.Connections != 1 || got.Sessions != 0 || got.Flights > 8 {
		t.Errorf("connecting cost %+v, want one connection, no session and at most 8 round trips", got)
	}
	s.Reset()
	script(t, c, "echo first")
	if got := s.Counts(); got.Sessions != 1 || got.Flights > 2 {
		t.Errorf("the first command cost %+v, want one session and at most 2 round trips", got)
	}

	s.Reset()
	const n = 30
	for i := range n {
		run(t, c, transport.Cmd{Script: "echo \"$1\"; cat; echo words >&2", Stdin: strings.NewReader(strings.Repeat("input", i*20))})
	}
	if got := s.Counts(); got != (sshtest.Counts{Flights: n}) {
		t.Errorf("%d commands one after the other cost %+v, want as many round trips and nothing else", n, got)
	}

	s.Reset()
	var wg sync.WaitGroup
	for range 10 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"true"}}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if got := s.Counts(); got.Flights > 3 || got.Sessions != 0 {
		t.Errorf("10 commands at once cost %+v, want at most 3 round trips", got)
	}

	s.Reset()
	for range 5 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Run(ctx(t), transport.Cmd{Args: []string{"sleep", "0.1"}, Bulk: true}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if got := s.Counts(); got.Sessions != 5 || got.Connections != 0 {
		t.Errorf("5 bulk commands cost %+v, want a session each", got)
	}
	if most := s.MostSessions(); most != 2 {
		t.Errorf("%d sessions were open at once, want the shell and one for bulk data", most)
	}
}

// A flood is cut at the limit, counted to the byte, and costs no memory to speak of.
func TestFlood(t *testing.T) {
	s := startServer(t, sshtest.Options{})
	c := connect(t, s.Config())
	script(t, c, ":")
	const flood = 100 << 20
	for _, cmd := range []transport.Cmd{
		{Script: fmt.Sprintf("head -c %d /dev/zero", flood)},
		{Script: fmt.Sprintf("head -c %d /dev/zero", flood), Bulk: true},
	} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		cmd.Limit = 1 << 20
		out := run(t, c, cmd)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if len(out.Stdout) != 1<<20 || out.Dropped != flood-1<<20 {
			t.Errorf("bulk %v: kept %d, dropped %d", cmd.Bulk, len(out.Stdout), out.Dropped)
		}
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 32<<20 {
			t.Errorf("bulk %v: the heap grew by %d MiB", cmd.Bulk, grown>>20)
		}
	}
}

// slowWriter takes its time.
type slowWriter struct{ n int }

func (w *slowWriter) Write(p []byte) (int, error) {
	w.n += len(p)
	time.Sleep(time.Millisecond)
	return len(p), nil
}

// A receiver that is slower than the host slows the host down: what is under way is bounded by SSH's window.
func TestBackpressure(t *testing.T) {
	// Not in parallel: the heap that is measured is the whole program's.
	c := connect(t, startServer(t, sshtest.Options{}).Config())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w := &slowWriter{}
	run(t, c, transport.Cmd{Script: "head -c 50000000 /dev/zero", Stdout: w})
	runtime.ReadMemStats(&after)
	if w.n != 50_000_000 {
		t.Errorf("%d bytes arrived", w.n)
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

func benchmarkConn(b *testing.B) transport.Conn {
	s, err := sshtest.Start(b.TempDir(), sshtest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	c, err := transport.Connect(b.Context(), s.Config())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}

// A framed request to a running sh; true as a builtin starts no process but the fork that every command is.
func BenchmarkRequest(b *testing.B) {
	for name, conn := range map[string]func(*testing.B) transport.Conn{"ssh": benchmarkConn, "local": func(b *testing.B) transport.Conn {
		c, err := transport.Connect(b.Context(), transport.Config{Connection: "local"})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		return c
	}} {
		for what, cmd := range map[string]transport.Cmd{
			"builtin": {Script: "true"}, "program": {Args: []string{"true"}}, "output": {Script: "echo output"}, "own-shell": {Script: ": $$"},
		} {
			b.Run(name+"/"+what, func(b *testing.B) {
				c := conn(b)
				for b.Loop() {
					if _, err := c.Run(b.Context(), cmd); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// The same in a session of its own, for comparison.
func BenchmarkSession(b *testing.B) {
	c := benchmarkConn(b)
	for b.Loop() {
		if _, err := c.Run(b.Context(), transport.Cmd{Script: "true", Bulk: true}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	const size = 64 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	for name, cmd := range map[string]func() transport.Cmd{
		"out": func() transport.Cmd {
			return transport.Cmd{Script: fmt.Sprintf("head -c %d /dev/zero", size), Stdout: io.Discard}
		},
		"in": func() transport.Cmd {
			return transport.Cmd{Script: "cat >/dev/null", Stdin: bytes.NewReader(data), Bulk: true}
		},
	} {
		b.Run(name, func(b *testing.B) {
			c := benchmarkConn(b)
			b.SetBytes(size)
			for b.Loop() {
				if _, err := c.Run(b.Context(), cmd()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
