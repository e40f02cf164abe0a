package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"runbook/engine/secret"
	"runbook/inventory"
)

func testDialer(answers ...string) (*dialer, *int) {
	asked := 0
	masker := &secret.Masker{}
	return &dialer{masker: masker, log: newLogger(io.Discard, 0, masker), prompt: func(context.Context, string) (secret.Secret, error) {
		if asked == len(answers) {
			return secret.Secret{}, errors.New("there is no terminal")
		}
		asked++
		return secret.New(answers[asked-1]), nil
	}}, &asked
}

// TestConfig asserts that nothing the inventory says of a connection gets lost on the way to the transport.
func TestConfig(t *testing.T) {
	passwordFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(passwordFile, []byte("from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, _ := testDialer()
	d.become = secret.New("from the prompt")
	host := &inventory.Host{Name: "voms1", Connection: inventory.Connection{Connection: "ssh", Address: "10.0.0.1", Port: 2222,
		User: "admin", Identities: []string{"key"}, KnownHosts: "hosts", Jump: "bastion", SSHConfig: "none", BecomeMethod: "su",
		BecomePasswordFile: passwordFile, ConnectTimeout: time.Second, Keepalive: time.Minute}}
	config, err := d.config(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(config)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; name == "LockDir" {
			continue // where locks are is not for a site to choose
		}
		if v.Type().Field(i).IsExported() && v.Field(i).IsZero() {
			t.Errorf("%s is not set", v.Type().Field(i).Name)
		}
	}
	if got := config.BecomePassword.Reveal(); got != "from the file" {
		t.Errorf("a host's own password must win, got %q", got)
	}
	if got := d.masker.Mask("it is from the file"); got != "it is ***" {
		t.Errorf("the password is not masked: %q", got)
	}
	if got := target(config); got != "admin@10.0.0.1 port 2222 through bastion" {
		t.Errorf("target: %q", got)
	}
	host.Connection.BecomePasswordFile = ""
	if config, err = d.config(t.Context(), host); err != nil || config.BecomePassword.Reveal() != "from the prompt" {
		t.Errorf("without a file the password that was asked for is used: %v", err)
	}
}

func TestPassphrase(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}

	// Asked again until it fits, and once for all hosts.
	d, asked := testDialer("wrong", "open sesame")
	for range 2 {
		passphrase, err := d.passphrase(t.Context(), file)
		if err != nil || passphrase.Reveal() != "open sesame" {
			t.Fatalf("passphrase: %v", err)
		}
	}
	if *asked != 2 {
		t.Errorf("asked %d times, want 2", *asked)
	}
	if got := d.masker.Mask("open sesame"); got != "***" {
		t.Errorf("the passphrase is not masked: %q", got)
	}

	d, _ = testDialer("a", "b", "c", "open sesame")
	if _, err := d.passphrase(t.Context(), file); err == nil || !strings.Contains(err.Error(), "three passphrases did not fit") {
		t.Errorf("after three: %v", err)
	}
	d, _ = testDialer()
	if _, err := d.passphrase(t.Context(), file); err == nil || !strings.Contains(err.Error(), "ssh-agent") {
		t.Errorf("without a terminal: %v", err)
	}
}
