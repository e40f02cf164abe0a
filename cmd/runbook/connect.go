package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"runbook/engine/secret"
	"runbook/engine/transport"
	"runbook/inventory"
)

// dialer connects to hosts as the inventory says.
type dialer struct {
	prompt prompter
	log    *logger
	masker *secret.Masker
	become secret.Secret // of --ask-become-pass; a host's own password wins

	mu          sync.Mutex
	passphrases map[string]secret.Secret // by key file
}

func (d *dialer) dial(ctx context.Context, host *inventory.Host) (transport.Conn, error) {
	config, err := d.config(ctx, host)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	d.log.WithField("host", host.Name).Debugf("connecting to %s", target(config))
	conn, err := transport.Connect(ctx, config)
	if err != nil {
		d.log.WithField("host", host.Name).Debugf("cannot connect: %v", err)
		return nil, err
	}
	d.log.WithField("host", host.Name).Debugf("connected in %s", time.Since(start).Round(time.Millisecond))
	return conn, nil
}

func target(c transport.Config) string {
	if c.Connection == "local" {
		return "this machine"
	}
	text := c.Address
	if text == "" {
		text = c.Name
	}
	if c.User != "" {
		text = c.User + "@" + text
	}
	if c.Port != 0 {
		text += fmt.Sprintf(" port %d", c.Port)
	}
	if c.Jump != "" && c.Jump != "none" {
		text += " through " + c.Jump
	}
	return text
}

// config is what the inventory says of how to reach host, in the transport's terms.
func (d *dialer) config(ctx context.Context, host *inventory.Host) (transport.Config, error) {
	c := &host.Connection
	password, err := c.BecomePassword()
	if err != nil {
		return transport.Config{}, err
	}
	if password.IsZero() {
		password = d.become
	}
	d.masker.Add(password)
	return transport.Config{
		Name: host.Name, Connection: c.Connection, Address: c.Address, Port: c.Port, User: c.User,
		Identities: c.Identities, KnownHosts: c.KnownHosts, Jump: c.Jump, SSHConfig: c.SSHConfig,
		BecomeMethod: c.BecomeMethod, BecomePassword: password,
		ConnectTimeout: c.ConnectTimeout, Keepalive: c.Keepalive,
		Passphrase: func(keyFile string) (secret.Secret, error) { return d.passphrase(ctx, keyFile) },
		Warn:       func(sentence string) { d.log.WithField("host", host.Name).Warn(sentence) },
	}, nil
}

// passphrase asks for the passphrase of a private key, once for all hosts that use it and up to three times until
// it fits.
func (d *dialer) passphrase(ctx context.Context, keyFile string) (secret.Secret, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, ok := d.passphrases[keyFile]; ok {
		return known, nil
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return secret.Secret{}, fmt.Errorf("cannot read the key: %w", err)
	}
	question := fmt.Sprintf("Passphrase for %s: ", keyFile)
	for range 3 {
		passphrase, err := d.prompt(ctx, question)
		if err != nil {
			return secret.Secret{}, fmt.Errorf("%w (load the key into ssh-agent, or start from a terminal)", err)
		}
		if _, err := ssh.ParseRawPrivateKeyWithPassphrase(key, []byte(passphrase.Reveal())); err == nil {
			if d.passphrases == nil {
				d.passphrases = map[string]secret.Secret{}
			}
			d.masker.Add(passphrase)
			d.passphrases[keyFile] = passphrase
			return passphrase, nil
		}
		question = fmt.Sprintf("That does not open it. Passphrase for %s: ", keyFile)
	}
	return secret.Secret{}, fmt.Errorf("cannot open %s: three passphrases did not fit", keyFile)
}
