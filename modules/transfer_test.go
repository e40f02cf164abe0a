package modules

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"runbook/engine/module"
	"runbook/engine/transport"
)

// twoHosts are two names for this machine.
func twoHosts(t *testing.T) (source, dest *labServer) {
	hosts := map[string]*module.Host{}
	for _, name := range []string{"source", "dest"} {
		hosts[name] = labHost(t, name, hosts)
	}
	return &labServer{t: t, host: hosts["source"]}, &labServer{t: t, host: hosts["dest"]}
}

func TestTransfer(t *testing.T) {
	_, dest := twoHosts(t)
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a'b 漢 -x"), filepath.Join(dir, "in", "-c\"d")
	content := bytes.Repeat([]byte("\x00\xff line\n"), 1<<19)
	labFile(t, from, string(content), 0o600)
	sum := sha256.Sum256(content)
	args := map[string]any{"src_host": "source", "src": from, "dest": to}

	// The directory is somebody else's to make: pending in a check, an error in a run.
	plan, err := dest.check("transfer", args)
	if err != nil || len(plan.Changes) != 1 {
		t.Fatalf("%+v, %v", plan, err)
	}
	dest.refused("transfer", args, "directory of the destination")
	if err := os.Mkdir(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	values := dest.changes("transfer", args)
	if values["size"] != len(content) || values["sha256"] != hex.EncodeToString(sum[:]) || values["transferred"] != true {
		t.Errorf("%v", values)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes arrived, %v", len(got), err)
	}
	if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	args["mode"] = "0644"
	if values := dest.changes("transfer", args); values["transferred"] != false {
		t.Errorf("sent again for its mode: %v", values)
	}

	// The same size, other content.
	labFile(t, to, strings.Repeat("x", len(content)), 0o644)
	dest.changes("transfer", args)

	dest.refused("transfer", map[string]any{"src_host": "nobody", "src": from, "dest": to}, "nobody")
	dest.refused("transfer", map[string]any{"src_host": "source", "src": dir, "dest": to}, "not a regular file")
	dest.refused("transfer", map[string]any{"src_host": "source", "src": from, "dest": dir}, "not a regular file")
}

// A transfer that ends early, or whose file changes, leaves what was there, whatever the byte.
func TestTransferCutOff(t *testing.T) {
	_, dest := twoHosts(t)
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	content := strings.Repeat("0123456789", 20_000)
	labFile(t, from, content, 0o600)
	labFile(t, to, "old", 0o600)
	args := map[string]any{"src_host": "source", "src": from, "dest": to}
	plan, err := dest.check("transfer", args)
	if err != nil {
		t.Fatal(err)
	}
	peer, _ := dest.host.PeerFunc(context.Background(), "source")
	honest := peer.Conn
	try := func(what string, conn transport.Conn) {
		t.Helper()
		peer.Conn = conn
		_, err := makeModule(t, "transfer", args).Apply(context.Background(), dest.host, plan)
		if err == nil {
			t.Errorf("%s: succeeds", what)
		}
		if text, _ := os.ReadFile(to); string(text) != "old" {
			t.Fatalf("%s: %d bytes in the destination", what, len(text))
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
	for _, n := range []int{0, 1, 4095, 4096, 65536, len(content) - 1, len(content)} {
		try("link lost", cutConn{honest, n})
		if n < len(content) {
			try("silent end", shortConn{honest, n})
		}
	}
	labFile(t, from, "X"+content[1:], 0o600)
	try("changed meanwhile", honest)
	peer.Conn = honest
	dest.changes("transfer", args)
}

// shortConn ends a bulk stream early and calls that a success.
type shortConn struct {
	transport.Conn
	after int
}

func (c shortConn) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	if cmd.Stdout != nil {
		cmd.Stdout = &limitWriter{w: cmd.Stdout, left: c.after}
	}
	return c.Conn.Run(ctx, cmd)
}

type limitWriter struct {
	mu   sync.Mutex
	w    io.Writer
	left int
}

func (l *limitWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := p[:min(len(p), l.left)]
	l.left -= len(keep)
	_, err := l.w.Write(keep)
	return len(p), err
}
