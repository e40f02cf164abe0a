package transport_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"runbook/engine/secret"
	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A host that does not show the key on record gets no authentication request, and the error says what is wrong.
func TestHostKeys(t *testing.T) {
	t.Parallel()
	s := startServer(t, sshtest.Options{})
	good, err := os.ReadFile(s.KnownHosts())
	if err != nil {
		t.Fatal(err)
	}
	other := sshtest.KnownHostsLine(s.Addr(), newSigner(t).PublicKey())
	for _, test := range []struct{ name, known, problem string }{
		{"right", string(good), ""},
		{"right, with others", other + string(good), ""},
		{"unknown", "", "unknown"},
		{"unknown port", strings.Replace(string(good), "]:", "]:1", 1), "unknown"},
		{"changed", other, "changed"},
		{"revoked", string(good) + "@revoked " + string(good), "revoked"},
	} {
		file := filepath.Join(t.TempDir(), "known_hosts")
		if err := os.WriteFile(file, []byte(test.known), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := s.Config()
		cfg.KnownHosts = file
		before := s.Authentications()
		c, err := transport.Connect(ctx(t), cfg)
		if test.problem == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			} else {
				_ = c.Close()
			}
			continue
		}
		lost := wantUnreachable(t, err)
		var key *transport.HostKeyError
		if !errors.As(err, &key) || key.Problem != test.problem || key.Fingerprint != ssh.FingerprintSHA256(s.HostKey()) {
			t.Errorf("%s: %v", test.name, err)
		}
		if lost.MayHave || test.problem != "revoked" && lost.Advice == "" {
			t.Errorf("%s: %+v", test.name, lost)
		}
		if s.Authentications() != before {
			t.Errorf("%s: authentication was attempted", test.name)
		}
		if now, _ := os.ReadFile(file); string(now) != test.known {
			t.Errorf("%s: known_hosts was written", test.name)
		}
	}
	cfg := s.Config()
	cfg.KnownHosts = filepath.Join(t.TempDir(), "none")
	_, err = transport.Connect(ctx(t), cfg)
	if lost := wantUnreachable(t, err); !strings.Contains(lost.Error(), "no such file") {
		t.Errorf("without a file: %v", err)
	}
}

// Keys: encrypted ones ask once the host wants them, the agent is used, and one that does not answer is mentioned.
func TestKeys(t *testing.T) {
	s := startServer(t, sshtest.Options{})
	dir := t.TempDir()
	locked := filepath.Join(dir, "locked")
	public, err := sshtest.NewKey(locked, "open sesame")
	if err != nil {
		t.Fatal(err)
	}
	stranger := filepath.Join(dir, "stranger")
	if _, err := sshtest.NewKey(stranger, "never asked for"); err != nil {
		t.Fatal(err)
	}
	s.Allow(public)
	asked := 0
	passphrase := func(text string) func(string) (secret.Secret, error) {
		return func(file string) (secret.Secret, error) {
			asked++
			if file != locked {
				t.Errorf("asked for %s", file)
			}
			return secret.New(text), nil
		}
	}
	try := func(change func(*transport.Config)) error {
		asked = 0
		cfg := s.Config()
		cfg.Identities = []string{stranger, locked}
		change(&cfg)
		c, err := transport.Connect(ctx(t), cfg)
		if err == nil {
			script(t, c, "true")
			_ = c.Close()
		}
		return err
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	if err := try(func(c *transport.Config) { c.Passphrase = passphrase("open sesame") }); err != nil || asked != 1 {
		t.Errorf("an encrypted key: %v, asked %d times", err, asked)
	}
	if err := try(func(c *transport.Config) { c.Passphrase = passphrase("wrong") }); err == nil || !strings.Contains(err.Error(), "cannot open the private key "+locked) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if err := try(func(c *transport.Config) {}); err == nil || !strings.Contains(err.Error(), "is encrypted, and there is nobody to ask") {
		t.Errorf("nobody to ask: %v", err)
	}
	if err := try(func(c *transport.Config) { c.Identities = []string{dir + "/none"} }); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a key file that is not there: %v", err)
	}
	if err := try(func(c *transport.Config) { c.Identities = []string{stranger} }); err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("a key that is not let in: %v", err)
	}

	// The agent has the key open: nobody is asked.
	socket := serveAgent(t, locked, "open sesame")
	t.Setenv("SSH_AUTH_SOCK", socket)
	if err := try(func(c *transport.Config) { c.Passphrase = passphrase("never") }); err != nil || asked != 0 {
		t.Errorf("with an agent: %v, asked %d times", err, asked)
	}
	t.Setenv("HOME", dir)
	if err := try(func(c *transport.Config) { c.Identities = nil }); err != nil {
		t.Errorf("with nothing but an agent: %v", err)
	}
	t.Setenv("SSH_AUTH_SOCK", dir+"/no-agent")
	var warnings []string
	warn := func(s string) { warnings = append(warnings, s) }
	if err := try(func(c *transport.Config) { c.Warn = warn; c.Identities = []string{s.KeyFile()} }); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "agent") {
		t.Errorf("an agent that is not there: %v, warned %q", err, warnings)
	}
	if err := try(func(c *transport.Config) { c.Identities = nil }); err == nil || !strings.Contains(err.Error(), "agent cannot be reached") {
		t.Errorf("nothing but an agent that is not there: %v", err)
	}
}

func serveAgent(t *testing.T, key, passphrase string) string {
	t.Helper()
	b, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ssh.ParseRawPrivateKeyWithPassphrase(b, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() }) // waits for ever if a connection to the agent leaks
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() { defer wg.Done(); defer conn.Close(); _ = agent.ServeAgent(ring, conn) }()
		}
	}()
	return socket
}

// ~/.ssh/config means what it means to ssh, and jump hosts are checked as strictly as hosts.
func TestSSHConfigAndJump(t *testing.T) {
	t.Parallel()
	host, jump, second := startServer(t, sshtest.Options{}), startServer(t, sshtest.Options{}), startServer(t, sshtest.Options{})
	dir := t.TempDir()
	var known []byte
	for _, s := range []*sshtest.Server{host, jump, second} {
		b, err := os.ReadFile(s.KnownHosts())
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, b...)
	}
	knownHosts := filepath.Join(dir, "known")
	if err := os.WriteFile(knownHosts, known, 0o600); err != nil {
		t.Fatal(err)
	}
	port := func(s *sshtest.Server) string { _, p, _ := net.SplitHostPort(s.Addr()); return p }
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf(`
Host web
  HostName 127.0.0.1
  Port %s
  IdentityFile %s
  ProxyJump gate
Host gate
  HostName 127.0.0.1
  Port %s
  IdentityFile %s
  ProxyJump outer
Host outer
  HostName 127.0.0.1
  Port %s
  IdentityFile %s
Host loop1
  ProxyJump loop2
Host loop2
  ProxyJump loop1
Host command
  ProxyCommand nc %%h %%p
Host *
  UserKnownHostsFile %s
  StrictHostKeyChecking no
`, port(host), host.KeyFile(), port(jump), jump.KeyFile(), port(second), second.KeyFile(), knownHosts)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := transport.Config{Name: "web", SSHConfig: config}
	c, err := transport.Connect(ctx(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := script(t, c, "echo there"); got != "there\n" {
		t.Errorf("%q", got)
	}
	for what, s := range map[string]*sshtest.Server{"host": host, "jump host": jump, "jump host's jump host": second} {
		want := sshtest.Counts{Connections: 1}
		got := s.Counts()
		got.Flights = 0
		if s == host {
			want.Sessions = 1
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	// A jump host that goes away takes the connection with it.
	second.Close()
	_, err = c.Run(ctx(t), transport.Cmd{Args: []string{"true"}})
	wantUnreachable(t, err)
	_ = c.Close()

	// The configuration cannot turn off the check of host keys; a jump host with a wrong one gets nothing either.
	wrong := bytes.Replace(known, []byte(port(jump)), []byte("1"), 1)
	if err := os.WriteFile(knownHosts, wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	direct := cfg
	direct.Jump = fmt.Sprintf("127.0.0.1:%s", port(jump))
	direct.Identities = []string{jump.KeyFile(), host.KeyFile()}
	before := jump.Authentications()
	_, err = transport.Connect(ctx(t), direct)
	lost := wantUnreachable(t, err)
	var key *transport.HostKeyError
	if !errors.As(err, &key) || !strings.Contains(lost.Error(), "jump host 127.0.0.1") || jump.Authentications() != before {
		t.Errorf("a jump host with an unknown key: %v", err)
	}

	for name, want := range map[string]string{"loop1": "jump hosts", "command": "ProxyCommand"} {
		_, err := transport.Connect(ctx(t), transport.Config{Name: name, SSHConfig: config})
		if lost := wantUnreachable(t, err); !strings.Contains(lost.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	none := cfg
	none.Jump, none.Address, none.SSHConfig = "none", "127.0.0.1", dir+"/no-config"
	if _, err := transport.Connect(ctx(t), none); err == nil || !strings.Contains(err.Error(), "no-config") {
		t.Errorf("a configuration that is not there: %v", err)
	}
}

func TestConfigRefused(t *testing.T) {
	for _, cfg := range []transport.Config{
		{Name: "a", Connection: "telnet"},
		{Name: "a", Connection: "local", BecomeMethod: "doas"},
		{Name: "a", Connection: "local", BecomePassword: secret.New("two\nlines")},
		{SSHConfig: "none"},
		{Name: "a", SSHConfig: "none", Jump: "user@"},
		{Name: "a", SSHConfig: "none", Jump: "host:x"},
	} {
		if c, err := transport.Connect(ctx(t), cfg); err == nil {
			t.Errorf("%+v was not refused", cfg)
			_ = c.Close()
		} else if strings.Contains(err.Error(), "two") {
			t.Errorf("a secret is in %v", err)
		}
	}
}
