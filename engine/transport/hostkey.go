package transport

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

// HostKeyError says that a host showed a key that is not the one on record. Nothing that could help an impostor had been sent.
type HostKeyError struct {
	Host        string // as known_hosts would name it
	Problem     string // "unknown", "changed" or "revoked"
	KeyType     string
	Fingerprint string   // of the key shown, SHA256:…
	Where       []string // file:line of the entries that speak against it, or the files that have none
}

func (e *HostKeyError) Error() string {
	what := fmt.Sprintf("%s key of %s (%s)", e.KeyType, e.Host, e.Fingerprint)
	where := strings.Join(e.Where, ", ")
	switch e.Problem {
	case "revoked":
		return fmt.Sprintf("the %s is marked as revoked in %s", what, where)
	case "changed":
		return fmt.Sprintf("the %s is not the one in %s: the host was set up anew, or somebody is in between", what, where)
	}
	return fmt.Sprintf("the %s is not in %s", what, where)
}

// hostKeys returns the check of a hop's host key and the key types that its record allows, none if it has no record.
func (h *hop) hostKeys() (ssh.HostKeyCallback, []string, error) {
	var files []string
	for _, f := range h.knownHosts {
		if _, err := os.Stat(f); err == nil {
			files = append(files, f)
		} else if !os.IsNotExist(err) {
			return nil, nil, fmt.Errorf("cannot read the known hosts: %w", err)
		}
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the known hosts: %w", err)
	}
	check := db.HostKeyCallback()
	return func(_ string, remote net.Addr, key ssh.PublicKey) error {
		err := check(h.keyName, remote, key)
		if err == nil {
			return nil
		}
		e := &HostKeyError{Host: xknownhosts.Normalize(h.keyName), KeyType: strings.TrimPrefix(key.Type(), "ssh-"), Fingerprint: ssh.FingerprintSHA256(key)}
		var revoked *xknownhosts.RevokedError
		var bad *xknownhosts.KeyError
		switch {
		case errors.As(err, &revoked):
			e.Problem = "revoked"
			e.Where = []string{fmt.Sprintf("%s:%d", revoked.Revoked.Filename, revoked.Revoked.Line)}
		case errors.As(err, &bad) && len(bad.Want) > 0:
			e.Problem = "changed"
			for _, k := range bad.Want {
				e.Where = append(e.Where, fmt.Sprintf("%s:%d", k.Filename, k.Line))
			}
		case errors.As(err, &bad):
			e.Problem = "unknown"
			e.Where = files
			if len(files) == 0 {
				e.Where = []string{cmp.Or(h.knownHosts[0], "known_hosts") + " (no such file)"}
			}
		default:
			return err // a certificate that is out of date, or for another name
		}
		return e
	}, db.HostKeyAlgorithms(h.keyName), nil
}

// advice is what the operator may do about err.
func advice(h *hop, err error) string {
	var key *HostKeyError
	switch {
	case errors.As(err, &key) && key.Problem == "unknown":
		return fmt.Sprintf("compare the fingerprint with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_%s_key.pub on its console), then log in once with ssh to record it", strings.ToLower(strings.SplitN(key.KeyType, "-", 2)[0]))
	case errors.As(err, &key) && key.Problem == "changed":
		return fmt.Sprintf("if it was set up anew, compare the fingerprint on its console, then forget the old key with ssh-keygen -R %s", Quote(key.Host))
	case strings.Contains(err.Error(), "no common algorithm for host key"):
		return fmt.Sprintf("%s has keys of other types for this host than the host has", strings.Join(h.knownHosts[:1], ""))
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Sprintf("is one of the keys offered in the authorized_keys of %s?", h.user)
	}
	return ""
}
