package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Identity is the file with the key that opens every login of the hosts.
func (l *Lab) Identity() string { return filepath.Join(l.Dir, "id_ed25519") }

// KnownHosts is the file with the hosts' keys, by name and address.
func (l *Lab) KnownHosts() string { return filepath.Join(l.Dir, "known_hosts") }

// SSH returns the argument list of an ssh command to a host, to be run with Command: ssh, its options, login@address.
func (l *Lab) SSH(login string, h *Host) []string {
	return []string{"ssh", "-F", "none", "-i", l.Identity(), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + l.KnownHosts(), "-o", "GlobalKnownHostsFile=none",
		"-o", "ConnectTimeout=10", login + "@" + h.Address()}
}

func (l *Lab) makeUserKey() error {
	public, err := makeKey(l.Identity(), "the lab's operator")
	if err != nil {
		return err
	}
	return os.WriteFile(l.Identity()+".pub", []byte(public+"\n"), 0o644)
}

// trust gives the host a key of its own, writes it into the lab's known_hosts, and lets the lab's operator in.
func (h *Host) trust() error {
	public, err := makeKey(filepath.Join(h.Root(), "etc/ssh/ssh_host_ed25519_key"), h.FQDN())
	if err != nil {
		return err
	}
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	known, err := os.OpenFile(h.lab.KnownHosts(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer known.Close()
	// Without the comment: known_hosts has no place for it.
	key := strings.Join(strings.Fields(public)[:2], " ")
	if _, err := fmt.Fprintf(known, "%s,%s %s\n", h.FQDN(), h.Address(), key); err != nil {
		return err
	}
	allowed, err := os.ReadFile(h.lab.Identity() + ".pub")
	if err != nil {
		return err
	}
	for _, login := range []struct {
		home string
		id   int
	}{{"root", 0}, {"home/ops", 2001}, {"home/opspw", 2002}} {
		dir := filepath.Join(h.Root(), login.home, ".ssh")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "authorized_keys"), allowed, 0o600); err != nil {
			return err
		}
		for _, path := range []string{dir, filepath.Join(dir, "authorized_keys")} {
			if err := os.Chown(path, login.id, login.id); err != nil {
				return err
			}
		}
	}
	return known.Close()
}

// makeKey writes a new key pair's private half and returns the public one as a line without its end.
func makeKey(file, comment string) (string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + strings.ReplaceAll(comment, " ", "-"), nil
}
