package transport

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kevinburke/ssh_config"
)

// hop is one SSH server to log in to, with all that ~/.ssh/config has to say about it.
type hop struct {
	alias      string // as the inventory or ProxyJump names it
	address    string
	port       int
	user       string
	keyName    string // what known_hosts calls it
	keys       []keyFile
	onlyKeys   bool   // offer no key of the agent but those of keys
	agent      string // socket, "" if there is none
	knownHosts []string
}

// keyFile is a private key file. One that was asked for must be there.
type keyFile struct {
	path string
	must bool
}

func (h *hop) hostPort() string { return net.JoinHostPort(h.address, strconv.Itoa(h.port)) }

// maxJumps bounds a chain of jump hosts, which two entries of ~/.ssh/config could make endless.
const maxJumps = 8

// route resolves the way to cfg's host: jump hosts in the order of travel, then the host.
func route(cfg Config) ([]*hop, error) {
	files, err := readSSHConfig(cfg)
	if err != nil {
		return nil, err
	}
	target, jump, err := files.hop(cfg, cmp.Or(cfg.Address, cfg.Name), cfg.User, cfg.Port)
	if err != nil {
		return nil, err
	}
	hops := []*hop{target}
	for jump != "" && jump != "none" {
		// "a,b" goes through a to b; how to get to a is a's own affair. A host that "Host *" sends through itself is the way.
		list := strings.Split(jump, ",")
		for i := len(list) - 1; i >= 0; i-- {
			name, user, port, err := parseJump(strings.TrimSpace(list[i]))
			if err != nil {
				return nil, err
			}
			if name == hops[0].alias {
				return hops, nil
			}
			h, next, err := files.hop(Config{Identities: cfg.Identities, KnownHosts: cfg.KnownHosts}, name, user, port)
			if err != nil {
				return nil, err
			}
			hops, jump = append([]*hop{h}, hops...), next
		}
		if len(hops) > maxJumps {
			return nil, fmt.Errorf("more than %d jump hosts: do two of them name each other?", maxJumps-1)
		}
	}
	return hops, nil
}

// parseJump reads [user@]host[:port], with or without ssh:// before it.
func parseJump(s string) (host, user string, port int, err error) {
	rest := strings.TrimPrefix(s, "ssh://")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user, rest = rest[:i], rest[i+1:]
	}
	host = rest
	if h, p, splitErr := net.SplitHostPort(rest); splitErr == nil {
		host = h
		if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
			return "", "", 0, fmt.Errorf("jump host %q: %q is not a port", s, p)
		}
	}
	host = strings.Trim(host, "[]")
	if host == "" {
		return "", "", 0, fmt.Errorf("jump host %q names no host", s)
	}
	return host, user, port, nil
}

// sshConfig is the client configuration of ssh, the user's first.
type sshConfig []*ssh_config.Config

func readSSHConfig(cfg Config) (sshConfig, error) {
	switch cfg.SSHConfig {
	case "none":
		return nil, nil
	case "":
		var files sshConfig
		c, err := parseSSHConfig(homePath(".ssh/config"))
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		if err == nil {
			files = append(files, c)
		}
		// The distribution's file may use what our reader does not know; nothing in it says where a host is.
		switch c, err := parseSSHConfig("/etc/ssh/ssh_config"); {
		case err == nil:
			files = append(files, c)
		case !os.IsNotExist(err):
			cfg.warn(fmt.Sprintf("%v; it is passed over", err))
		}
		return files, nil
	}
	c, err := parseSSHConfig(expandHome(cfg.SSHConfig))
	if err != nil {
		return nil, err
	}
	return sshConfig{c}, nil
}

func parseSSHConfig(path string) (*ssh_config.Config, error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, err
	}
	var c *ssh_config.Config
	if err == nil {
		c, err = ssh_config.DecodeBytes(b)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the ssh configuration %s: %w", path, err)
	}
	return c, nil
}

func (cfg *Config) warn(sentence string) {
	if cfg.Warn != nil {
		cfg.Warn(sentence)
	}
}

// all returns the values of key for alias in the first file that has any.
func (files sshConfig) all(alias, key string) ([]string, error) {
	for _, c := range files {
		values, err := c.GetAll(alias, key)
		if err != nil || len(values) > 0 {
			return values, err
		}
	}
	return nil, nil
}

// hop resolves one host. What cfg, user and port say goes before the files. It also returns the host's own ProxyJump.
func (files sshConfig) hop(cfg Config, alias, login string, port int) (*hop, string, error) {
	if alias == "" {
		return nil, "", fmt.Errorf("it has neither a name nor an address")
	}
	var firstErr error
	get := func(key string) string {
		values, err := files.all(alias, key)
		if err != nil && firstErr == nil {
			firstErr = err
		}
		if len(values) == 0 {
			return ""
		}
		return values[0]
	}
	h := &hop{alias: alias, user: cmp.Or(login, get("User")), port: port}
	if h.user == "" {
		if u, err := user.Current(); err == nil {
			h.user = u.Username
		}
	}
	h.address = strings.ReplaceAll(cmp.Or(get("HostName"), alias), "%h", alias)
	if p := get("Port"); h.port == 0 && p != "" {
		n, err := strconv.Atoi(p)
		if err != nil || n < 1 || n > 65535 {
			return nil, "", fmt.Errorf("the ssh configuration's port %q is not one", p)
		}
		h.port = n
	}
	h.port = cmp.Or(h.port, 22)
	h.keyName = h.hostPort()
	if name := get("HostKeyAlias"); name != "" {
		h.keyName = net.JoinHostPort(name, "22")
	}
	expand := func(path string) string {
		local, _ := user.Current()
		name := ""
		if local != nil {
			name = local.Username
		}
		path = strings.NewReplacer("%%", "%", "%d", homePath(""), "%h", h.address, "%r", h.user, "%u", name,
			"%p", strconv.Itoa(h.port), "%n", alias).Replace(path)
		return expandHome(path)
	}

	for _, k := range cfg.Identities {
		h.keys = append(h.keys, keyFile{expandHome(k), true})
	}
	h.onlyKeys = len(h.keys) > 0
	if len(h.keys) == 0 {
		values, err := files.all(alias, "IdentityFile")
		if err != nil {
			return nil, "", err
		}
		for _, k := range values {
			h.keys = append(h.keys, keyFile{expand(k), false})
		}
		h.onlyKeys = strings.EqualFold(get("IdentitiesOnly"), "yes")
	}
	if len(h.keys) == 0 {
		for _, k := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			h.keys = append(h.keys, keyFile{homePath(".ssh/" + k), false})
		}
	}
	switch agent := get("IdentityAgent"); {
	case agent == "" || agent == "SSH_AUTH_SOCK":
		h.agent = os.Getenv("SSH_AUTH_SOCK")
	case agent == "none":
	case strings.HasPrefix(agent, "$"):
		h.agent = os.Getenv(strings.Trim(agent, "${}"))
	default:
		h.agent = expand(agent)
	}

	switch known := get("UserKnownHostsFile"); {
	case cfg.KnownHosts != "":
		h.knownHosts = []string{expandHome(cfg.KnownHosts)}
	case known != "":
		for _, f := range strings.Fields(known) {
			h.knownHosts = append(h.knownHosts, expand(f))
		}
	default:
		h.knownHosts = []string{homePath(".ssh/known_hosts"), homePath(".ssh/known_hosts2")}
	}
	if cfg.KnownHosts == "" {
		h.knownHosts = append(h.knownHosts, "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
	}

	jump := cmp.Or(cfg.Jump, get("ProxyJump"))
	if command := get("ProxyCommand"); jump == "" && command != "" && command != "none" {
		return nil, "", fmt.Errorf("the ssh configuration reaches it by ProxyCommand, which is not supported; use ProxyJump")
	}
	return h, jump, firstErr
}

// homePath returns name under the user's home directory.
func homePath(name string) string {
	home, err := os.UserHomeDir()
	if err != nil {
		if u, uErr := user.Current(); uErr == nil {
			home = u.HomeDir
		}
	}
	return filepath.Join(home, name)
}

func expandHome(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return homePath(rest)
	}
	return path
}
