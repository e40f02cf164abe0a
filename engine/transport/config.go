package transport

import (
	"time"

	"runbook/engine/secret"
)

// Config says how to reach one host. The zero value of a field means what ssh(1) would do, ~/.ssh/config included.
type Config struct {
	Name       string   // inventory name, for messages
	Connection string   // "ssh" (default) or "local"
	Address    string   // DNS name or IP; "" is Name
	Port       int      // 0: ~/.ssh/config, then 22
	User       string   // login user
	Identities []string // private key files; none: ~/.ssh/config, the agent, then ssh's defaults
	KnownHosts string   // "" is ~/.ssh/known_hosts. Unknown and changed keys are refused, always
	Jump       string   // [user@]host[:port] of a jump host; "" is ~/.ssh/config's ProxyJump, "none" is none
	SSHConfig  string   // "" is ~/.ssh/config, "none" reads none

	BecomeMethod   string        // "sudo" (default) or "su"
	BecomePassword secret.Secret // for sudo or su; sent on standard input or a terminal of the host, never as an argument

	ConnectTimeout time.Duration // TCP, handshake and authentication together; 0 is 20 s
	Keepalive      time.Duration // between keepalive requests; three misses are a lost link; 0 is 15 s

	// LockDir is where on the host Lock keeps its files, in a directory for each user; "" is /run/runbook/lock for root,
	// and .runbook in the home directory for others. It has to exist. It is for tests, which must not exclude each other: a
	// local connection looks at the environment variable RUNBOOK_LOCK_DIR, too.
	LockDir string

	// Passphrase asks a person for the passphrase of an encrypted private key; nil: such a key is an error that says so.
	// It is called only when the host accepts the key, possibly for several hosts at once, and the time it takes does
	// not count against ConnectTimeout.
	Passphrase func(keyFile string) (secret.Secret, error)
	// Warn is told, in a sentence, what was passed over on the way to a connection, such as an agent that does not
	// answer; nil: nobody is.
	Warn func(sentence string)

	interpreter string // for tests: the sh to use, "" is /bin/sh
}
