package transport_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"runbook/engine/secret"
	"runbook/engine/transport"
	"runbook/engine/transport/sshtest"
)

// openssh is a real sshd on a loopback port, with users whose login shells the suite needs. It is started by the first
// test that wants it and ended by TestMain.
type openssh struct {
	dir, addr string
	cmd       *exec.Cmd
	alive     io.Closer
	log       bytes.Buffer
	users     []string
	sudoers   string
	madeRun   bool
	password  string
}

var (
	sshdOnce sync.Once
	sshd     *openssh
	sshdErr  error
)

// opensshConfig is how to log in to sshd as a user with that login shell, rbtest-dash for /bin/dash.
func opensshConfig(t *testing.T, shell string) transport.Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a real sshd with users of its own needs root")
	}
	if _, err := os.Stat("/usr/sbin/sshd"); err != nil {
		t.Skip("there is no /usr/sbin/sshd here")
	}
	if _, err := os.Stat(shell); err != nil {
		t.Skipf("there is no %s here", shell)
	}
	sshdOnce.Do(func() { sshd, sshdErr = startOpenssh() })
	if sshdErr != nil {
		t.Fatal(sshdErr)
	}
	host, port, _ := net.SplitHostPort(sshd.addr)
	var n int
	_, _ = fmt.Sscan(port, &n)
	return transport.Config{Name: "openssh", Address: host, Port: n, User: userWith(shell),
		Identities: []string{filepath.Join(sshd.dir, "client_key")}, KnownHosts: filepath.Join(sshd.dir, "known_hosts"), SSHConfig: "none", Jump: "none"}
}

// userWith is the user of this test run with that login shell. Several runs may be on a machine at a time.
func userWith(shell string) string {
	return fmt.Sprintf("rbtest-%d-%s", os.Getpid(), filepath.Base(shell))
}

// removeStale removes the users of runs that were killed.
func removeStale() {
	passwd, _ := os.ReadFile("/etc/passwd")
	for _, line := range strings.Split(string(passwd), "\n") {
		name, _, _ := strings.Cut(line, ":")
		var pid int
		if n, _ := fmt.Sscanf(name, "rbtest-%d-", &pid); n == 1 {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); os.IsNotExist(err) {
				_ = exec.Command("userdel", "-f", "-r", name).Run()
				_ = os.Remove(fmt.Sprintf("/etc/sudoers.d/rbtest-%d", pid))
			}
		}
	}
}

// becomePassword is the password of every user of ours.
func becomePassword() secret.Secret { return secret.New(sshd.password) }

func startOpenssh() (o *openssh, err error) {
	o = &openssh{password: "pass 'w\"ord\\"}
	defer func() {
		if err != nil {
			o.stop()
		}
	}()
	removeStale()
	if o.dir, err = os.MkdirTemp("", "rbtest-sshd-"); err != nil {
		return o, err
	}
	if err = os.Chmod(o.dir, 0o755); err != nil {
		return o, err
	}
	for _, shell := range []string{"/bin/dash", "/bin/bash", "/bin/csh"} {
		if _, err := os.Stat(shell); err != nil {
			continue
		}
		name := userWith(shell)
		if out, err := exec.Command("useradd", "-m", "-s", shell, name).CombinedOutput(); err != nil {
			return o, fmt.Errorf("cannot add a user: %w: %s", err, out)
		}
		o.users = append(o.users, name)
		set := exec.Command("chpasswd")
		set.Stdin = strings.NewReader(name + ":" + o.password + "\n")
		if out, err := set.CombinedOutput(); err != nil {
			return o, fmt.Errorf("cannot set a password: %w: %s", err, out)
		}
	}
	// A login file that makes noise, as they do.
	u, err := user.Lookup(userWith("/bin/bash"))
	if err != nil {
		return o, err
	}
	if err = os.WriteFile(filepath.Join(u.HomeDir, ".bashrc"), []byte("echo welcome; printf 'no newline' >&2; printf noise\n"), 0o644); err != nil {
		return o, err
	}
	if _, err := os.Stat("/etc/sudoers.d"); err == nil {
		o.sudoers = fmt.Sprintf("/etc/sudoers.d/rbtest-%d", os.Getpid())
		rules := fmt.Sprintf("%[1]s ALL=(ALL) ALL\nDefaults:%[1]s timestamp_timeout=0, lecture=always\n%[2]s ALL=(ALL) NOPASSWD: ALL\n", userWith("/bin/dash"), userWith("/bin/bash"))
		if err := os.WriteFile(o.sudoers, []byte(rules), 0o440); err != nil {
			return o, err
		}
	}

	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return o, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return o, err
	}
	hostKeyFile := filepath.Join(o.dir, "host_key")
	if err = os.WriteFile(hostKeyFile, pem.EncodeToMemory(block), 0o600); err != nil {
		return o, err
	}
	hostKey, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return o, err
	}
	public, err := sshtest.NewKey(filepath.Join(o.dir, "client_key"), "")
	if err != nil {
		return o, err
	}
	if err = os.WriteFile(filepath.Join(o.dir, "authorized_keys"), ssh.MarshalAuthorizedKey(public), 0o644); err != nil {
		return o, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return o, err
	}
	o.addr = l.Addr().String()
	_ = l.Close()
	host, port, _ := net.SplitHostPort(o.addr)
	if err = os.WriteFile(filepath.Join(o.dir, "known_hosts"), []byte(sshtest.KnownHostsLine(o.addr, hostKey.PublicKey())), 0o644); err != nil {
		return o, err
	}
	config := fmt.Sprintf("Port %s\nListenAddress %s\nHostKey %s\nPidFile none\nUsePAM no\nStrictModes no\nAuthorizedKeysFile %s\nMaxStartups 100\nLogLevel ERROR\n",
		port, host, hostKeyFile, filepath.Join(o.dir, "authorized_keys"))
	configFile := filepath.Join(o.dir, "sshd_config")
	if err = os.WriteFile(configFile, []byte(config), 0o644); err != nil {
		return o, err
	}
	if err := os.Mkdir("/run/sshd", 0o755); err == nil {
		o.madeRun = true
	}
	// It ends with our end of the pipe, even if this program is killed.
	o.cmd = exec.Command("/bin/sh", "-c", `/usr/sbin/sshd -D -e -f "$1" </dev/null & read -r _; kill $!; wait`, "-", configFile)
	o.cmd.Stderr = &o.log
	if o.alive, err = o.cmd.StdinPipe(); err != nil {
		return o, err
	}
	if err = o.cmd.Start(); err != nil {
		return o, err
	}
	for range 100 {
		if conn, err := net.Dial("tcp", o.addr); err == nil {
			_ = conn.Close()
			return o, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return o, fmt.Errorf("sshd does not answer: %s", o.log.String())
}

func (o *openssh) stop() {
	if o.cmd != nil && o.cmd.Process != nil {
		_ = o.alive.Close()
		_ = o.cmd.Wait()
	}
	if o.sudoers != "" {
		_ = os.Remove(o.sudoers)
	}
	for _, name := range o.users {
		_ = exec.Command("userdel", "-f", "-r", name).Run()
	}
	if o.madeRun {
		_ = os.Remove("/run/sshd")
	}
	_ = os.RemoveAll(o.dir)
}
