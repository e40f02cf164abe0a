package inventory

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"runbook/engine/secret"
	"runbook/engine/spec"
)

// Connection says how to reach a host and how to become another user there. A zero field means what ssh(1) would do.
type Connection struct {
	Connection         string // "ssh" (default) or "local"
	Address            string // DNS name or IP; "" is the host's name
	Port               int
	User               string
	Identities         []string // private key files; key `identity_file`
	KnownHosts         string
	Jump               string // [user@]host[:port], or "none"
	SSHConfig          string // a path, or "none"
	BecomeMethod       string // "sudo" (default) or "su"
	BecomeUser         string // whom to become where a runbook names nobody; "" is root
	BecomePasswordFile string
	ConnectTimeout     time.Duration
	Keepalive          time.Duration

	passwordPos     spec.Pos
	passwordSnippet string
}

// BecomePassword reads the password file, which only its owner may be able to read; the empty secret if none is set.
// It is read when a host is about to be used, for a site's inventory may name files that not everyone has. The error
// is *spec.Error.
func (c *Connection) BecomePassword() (secret.Secret, error) {
	if c.BecomePasswordFile == "" {
		return secret.Secret{}, nil
	}
	password, hint, err := readPassword(c.BecomePasswordFile)
	if err != nil {
		e := spec.Errorf(c.passwordPos, hint, "cannot read the become password: %s", err)
		e.Snippet = c.passwordSnippet
		return secret.Secret{}, e
	}
	return password, nil
}

func readPassword(path string) (password secret.Secret, hint string, err error) {
	const maxPassword = 4096
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return password, "", err
	case !info.Mode().IsRegular():
		return password, "", fmt.Errorf("%s is no regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return password, "chmod 600 " + path, fmt.Errorf("%s can be read by others than its owner: its mode is %04o", path, info.Mode().Perm())
	}
	f, err := os.Open(path)
	if err != nil {
		return password, "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	if err != nil {
		return password, "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" || len(data) > maxPassword || strings.ContainsAny(text, "\n\x00") {
		return password, "the file holds the password on one line", fmt.Errorf("%s does not hold one line of text", path)
	}
	return secret.New(text), "", nil
}

// settings has a function for each connection setting that checks its value and puts it into a Connection.
var settings = map[string]func(c *Connection, v *spec.Value, dir string) error{
	"connection": func(c *Connection, v *spec.Value, _ string) error {
		return choice(&c.Connection, v, "ssh", "local")
	},
	"address": func(c *Connection, v *spec.Value, _ string) error { return word(&c.Address, v) },
	"port": func(c *Connection, v *spec.Value, _ string) error {
		if v.Kind != spec.Int || v.Int < 1 || v.Int > 65535 {
			return errors.New("it must be a number from 1 to 65535")
		}
		c.Port = int(v.Int)
		return nil
	},
	"user": func(c *Connection, v *spec.Value, _ string) error { return word(&c.User, v) },
	"identity_file": func(c *Connection, v *spec.Value, dir string) error {
		items := v.List
		if v.Kind != spec.List {
			items = []*spec.Value{v}
		}
		c.Identities = nil
		for _, item := range items {
			var path string
			if err := file(&path, item, dir); err != nil {
				return err
			}
			c.Identities = append(c.Identities, path)
		}
		return nil
	},
	"known_hosts": func(c *Connection, v *spec.Value, dir string) error { return file(&c.KnownHosts, v, dir) },
	"jump":        func(c *Connection, v *spec.Value, _ string) error { return word(&c.Jump, v) },
	"ssh_config": func(c *Connection, v *spec.Value, dir string) error {
		if v.Str == "none" {
			c.SSHConfig = v.Str
			return nil
		}
		return file(&c.SSHConfig, v, dir)
	},
	"become_method": func(c *Connection, v *spec.Value, _ string) error {
		return choice(&c.BecomeMethod, v, "sudo", "su")
	},
	"become_user": func(c *Connection, v *spec.Value, _ string) error { return word(&c.BecomeUser, v) },
	"become_password_file": func(c *Connection, v *spec.Value, dir string) error {
		c.passwordPos, c.passwordSnippet = v.Pos, v.Snippet(v.Pos)
		return file(&c.BecomePasswordFile, v, dir)
	},
	"connect_timeout": func(c *Connection, v *spec.Value, _ string) error { return duration(&c.ConnectTimeout, v) },
	"keepalive":       func(c *Connection, v *spec.Value, _ string) error { return duration(&c.Keepalive, v) },
}

// text reads a string that is not empty and has no holes: variables never change where we connect.
func text(to *string, v *spec.Value) error {
	switch {
	case v.Kind != spec.String:
		return fmt.Errorf("it must be a string, not %s", v.Kind)
	case v.Str == "":
		return errors.New("it is empty")
	case v.HasHole():
		return errors.New("a connection setting cannot hold {{ }}")
	case strings.ContainsFunc(v.Str, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("it holds a control character")
	}
	*to = v.Str
	return nil
}

// word is a text that ssh cannot take for an option or for two words.
func word(to *string, v *spec.Value) error {
	if err := text(to, v); err != nil {
		return err
	}
	if strings.HasPrefix(v.Str, "-") || strings.Contains(v.Str, " ") {
		return errors.New("it must be one word and not start with -")
	}
	return nil
}

func choice(to *string, v *spec.Value, words ...string) error {
	if err := text(to, v); err != nil {
		return err
	}
	for _, w := range words {
		if v.Str == w {
			return nil
		}
	}
	return fmt.Errorf("it must be %s", strings.Join(words, " or "))
}

// file is a path, relative to dir or to the user's home directory.
func file(to *string, v *spec.Value, dir string) error {
	if err := text(to, v); err != nil {
		return err
	}
	switch path := v.Str; {
	case strings.HasPrefix(path, "~/"):
		home, err := os.UserHomeDir()
		if err != nil {
			return fmt.Errorf("the home directory is not known: %s", err)
		}
		*to = filepath.Join(home, path[2:])
	case !filepath.IsAbs(path):
		*to = filepath.Join(dir, path)
	}
	return nil
}

func duration(to *time.Duration, v *spec.Value) error {
	seconds, ok := spec.Seconds(v.Any())
	if !ok || seconds == 0 {
		return errors.New("it must be seconds, or a string such as 1m30s")
	}
	*to = time.Duration(seconds * float64(time.Second))
	return nil
}
