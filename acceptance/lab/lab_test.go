package lab

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// need skips a test on a machine that cannot make hosts, and fails it where skipping is not allowed.
func need(t *testing.T) {
	t.Helper()
	why := Unavailable()
	switch {
	case why == "":
	case os.Getenv("CI") == "true" || os.Getenv("RUNBOOK_NO_SKIP") != "":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

func newLab(t *testing.T, hosts ...string) *Lab {
	t.Helper()
	need(t)
	l, err := New(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := l.Up(t.Context(), hosts...); err != nil {
		t.Fatal(err)
	}
	return l
}

// login runs a command on a host as its user would: from the controller, through sshd.
func login(t *testing.T, h *Host, user, command string) (string, error) {
	t.Helper()
	argv := append(h.lab.SSH(user, h), command)
	out, err := h.lab.Command(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

func mustSSH(t *testing.T, h *Host, user, command string) string {
	t.Helper()
	out, err := login(t, h, user, command)
	if err != nil {
		t.Fatalf("%s@%s: %s: %v\n%s", user, h.Name, command, err, out)
	}
	return out
}

// greeting returns what a server says first, "" if there is no connection.
func greeting(t *testing.T, l *Lab, addr string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	conn, err := l.Dial(ctx, "tcp", addr)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	data := make([]byte, 64)
	n, _ := conn.Read(data)
	return string(data[:n])
}

func TestHosts(t *testing.T) {
	t.Parallel()
	l := newLab(t, "voms1", "voms2")
	one, two := l.Host("voms1"), l.Host("voms2.example.org")

	t.Run("logins", func(t *testing.T) {
		for user, want := range map[string]string{"root": "root bash", "ops": "ops bash", "opspw": "opspw dash"} {
			if got := strings.TrimSpace(mustSSH(t, one, user, `echo $(id -un) ${0##*/}`)); got != want {
				t.Errorf("login %s: got %q, want %q", user, got, want)
			}
		}
		if got := mustSSH(t, one, "ops", "sudo -n id -u"); got != "0\n" {
			t.Errorf("sudo of ops: %s", got)
		}
		if out, err := login(t, one, "opspw", "sudo -n true"); err == nil {
			t.Errorf("sudo of opspw wants no password: %s", out)
		}
		mustSSH(t, one, "opspw", "echo '"+OpsPassword+"' | sudo -S -p '' true")
	})

	t.Run("host keys are checked", func(t *testing.T) {
		argv := l.SSH("root", one)
		for i, a := range argv {
			if strings.HasPrefix(a, "UserKnownHostsFile=") {
				argv[i] = "UserKnownHostsFile=/dev/null"
			}
		}
		out, err := l.Command(t.Context(), argv[0], append(argv[1:], "true")...).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("Host key verification failed")) {
			t.Errorf("without a known key: %v: %s", err, out)
		}
	})

	t.Run("packet filter", func(t *testing.T) {
		mustSSH(t, one, "root", "systemd-run --quiet --unit=answer nc -lkp 3307")
		if out, err := login(t, two, "root", "nc -zw3 "+one.Address()+" 3307"); err == nil {
			t.Errorf("port 3307 is open: %s", out)
		}
		mustSSH(t, one, "root", "iptables -I INPUT -p tcp --dport 3307 -j ACCEPT")
		mustSSH(t, two, "root", "nc -zw3 "+one.Address()+" 3307")
		rules := mustSSH(t, one, "root", "iptables -S INPUT")
		if !strings.HasSuffix(rules, "-j REJECT --reject-with icmp-host-prohibited\n") {
			t.Errorf("the last rule is not a REJECT:\n%s", rules)
		}
	})

	t.Run("certificates", func(t *testing.T) {
		mustSSH(t, one, "root", "openssl verify -x509_strict -CApath "+CertificateDir+" /etc/grid-security/hostcert.pem")
		got := mustSSH(t, one, "root", "openssl x509 -in /etc/grid-security/hostcert.pem -noout -subject -nameopt compat -ext subjectAltName; stat -c '%a %U' /etc/grid-security/hostkey.pem")
		for _, want := range []string{"subject=/DC=org/DC=example/CN=voms1.example.org\n", "DNS:voms1.example.org\n", "400 root\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in:\n%s", want, got)
			}
		}
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		if err := l.Issue(Request{Name: "old.example.org", DNS: []string{"old.example.org"}, NotAfter: time.Now().Add(-time.Hour)}, cert, key); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("openssl", "verify", "-CApath", filepath.Join(l.Dir, "certificates"), cert).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("certificate has expired")) {
			t.Errorf("an expired certificate: %v: %s", err, out)
		}
		if err := l.Issue(Request{Name: "voms1.example.org", DNS: []string{"voms1.example.org"}, Forged: true}, cert, key); err != nil {
			t.Fatal(err)
		}
		out, err = exec.Command("openssl", "verify", "-CApath", filepath.Join(l.Dir, "certificates"), cert).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("certificate signature failure")) {
			t.Errorf("a forged certificate: %v: %s", err, out)
		}
	})

	t.Run("databases", func(t *testing.T) {
		if err := one.Seed(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := one.SQL(t.Context(), "SELECT institution, voms_lab_vo.member_count() FROM voms_lab_vo.usr WHERE userid IN (2, 4, 5)")
		if err != nil {
			t.Fatal(err)
		}
		if want := "Łódź\t5\n漢字研究所\t5\nStraße 1\t5\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := mustSSH(t, two, "root", "mariadb -NBe 'SHOW DATABASES LIKE \"cns_db\"'"); got != "" {
			t.Errorf("the other host has the databases too")
		}
	})

	t.Run("packages without a network", func(t *testing.T) {
		mustSSH(t, one, "root", "! command -v stunnel && apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y stunnel4 && command -v stunnel")
	})

	t.Run("fingerprint", func(t *testing.T) {
		before, err := two.Fingerprint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// What only reads must not show.
		mustSSH(t, two, "root", "dpkg -l; apt-cache policy stunnel4; systemctl status mariadb; iptables -S; mysqldump --all-databases >/dev/null")
		same, err := two.Fingerprint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := before.Diff(same); len(diff) > 0 || before.Hash() != same.Hash() {
			t.Errorf("reading changed:\n%s", strings.Join(diff, "\n"))
		}
		mustSSH(t, two, "root", "touch /etc/issue; mariadb -e 'CREATE DATABASE x; SET GLOBAL read_only = 1'; iptables -I INPUT -j ACCEPT; systemctl -q disable ssh; echo >/tmp/x")
		after, err := two.Fingerprint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		diff := strings.Join(before.Diff(after), "\n")
		for _, want := range []string{"file /etc/issue ", "+ sql CREATE DATABASE ", "+ variable read_only\tON", "+ iptables -A INPUT -j ACCEPT", "+ unit-file ssh.service disabled", "+ file /tmp/x "} {
			if !strings.Contains(diff, want) {
				t.Errorf("the fingerprint does not show %q:\n%s", want, diff)
			}
		}
		mustSSH(t, two, "root", "systemctl -q enable ssh; mariadb -e 'SET GLOBAL read_only = 0'; iptables -D INPUT 1")
	})

	t.Run("watch", func(t *testing.T) {
		w, control := one.Watch("canary-in-argv", "canary-in-env"), l.WatchController("canary-in-argv")
		mustSSH(t, one, "root", "env A=canary-in-env sleep 0.2; sh -c 'sleep 0.2 # canary-in-argv'; true")
		seen, err := w.Stop()
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(seen.Hits)
		if !strings.Contains(got, "string 1 in cmdline") || !strings.Contains(got, "string 2 in environ") || strings.Contains(got, "canary-in-argv") {
			t.Errorf("hits: %s", got)
		}
		if seen.Samples < 20 || seen.Processes < 10 {
			t.Errorf("looked %d times at %d processes", seen.Samples, seen.Processes)
		}
		// The controller's ssh has the command in its arguments.
		if seen, err := control.Stop(); err != nil || len(seen.Hits) == 0 {
			t.Errorf("the controller showed nothing: %v, %v", seen, err)
		}
	})

	t.Run("reboot, crash and stop keep files", func(t *testing.T) {
		mustSSH(t, one, "root", "echo kept >/etc/kept; id -u >/run/lost")
		for what, restart := range map[string]func() error{
			"reboot": func() error { return one.Reboot(t.Context()) },
			"reboot from inside": func() error {
				pid, err := one.PID()
				if err != nil {
					return err
				}
				_, _ = login(t, one, "root", "systemctl reboot") // the connection may or may not survive the answer
				return one.awaitBoot(t.Context(), pid)
			},
			"crash": func() error {
				if err := one.Crash(t.Context()); err != nil {
					return err
				}
				return one.Start(t.Context())
			},
			"stop": func() error {
				if err := one.Stop(t.Context()); err != nil {
					return err
				}
				return one.Start(t.Context())
			},
		} {
			before := mustSSH(t, one, "root", "cat /proc/sys/kernel/random/boot_id; cat /run/systemd/container /etc/kept; stat -c %W /proc/1; ls -i /proc/1/ns/pid")
			if err := restart(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			after := mustSSH(t, one, "root", "cat /proc/sys/kernel/random/boot_id; cat /run/systemd/container /etc/kept; stat -c %W /proc/1; ls -i /proc/1/ns/pid")
			if before == after {
				t.Errorf("%s: the host did not restart:\n%s", what, after)
			}
			mustSSH(t, one, "root", "grep -q kept /etc/kept && test ! -e /run/lost && systemctl is-active mariadb ssh && iptables -S INPUT | tail -1 | grep -q REJECT && mariadb -e 'SELECT 1 FROM cns_db.Cns_file_replica LIMIT 1'")
		}
	})

	t.Run("unplug", func(t *testing.T) {
		if err := one.Unplug(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := greeting(t, l, one.Address()+":22"); got != "" {
			t.Errorf("an unplugged host says %q", got)
		}
		if err := one.Plug(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := greeting(t, l, one.Address()+":22"); !strings.HasPrefix(got, "SSH-") {
			t.Errorf("the host says %q", got)
		}
	})

	t.Run("nothing leaves the lab", func(t *testing.T) {
		routes := mustSSH(t, one, "root", "ip route")
		if strings.Contains(routes, "default") {
			t.Errorf("a host has a way out:\n%s", routes)
		}
	})
}

// A lab leaves nothing, whether it ends in good order or its owner is killed.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	need(t)
	// The owner must be another process, to be killed.
	labctl := filepath.Join(t.TempDir(), "labctl")
	if out, err := exec.Command("go", "build", "-o", labctl, "./labctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	id := "left" + fmt.Sprint(os.Getpid()%1000)
	left := func() []string {
		var found []string
		roots, err := hierarchies()
		if err != nil {
			t.Fatal(err)
		}
		dir, err := labDir(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range append(roots, "/run/netns", "/run/systemd/nspawn/propagate", filepath.Dir(dir)) {
			entries, err := os.ReadDir(path)
			if err != nil {
				continue
			}
			for _, e := range entries {
				if strings.Contains(e.Name(), id) {
					found = append(found, filepath.Join(path, e.Name()))
				}
			}
		}
		mounts, err := os.ReadFile("/proc/mounts")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(mounts, []byte("/labs/"+id+"/")) {
			found = append(found, "a mount")
		}
		processes, err := fs.Glob(os.DirFS("/proc"), "[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range processes {
			if cmdline, err := os.ReadFile("/proc/" + p); err == nil && bytes.Contains(cmdline, []byte("rb-"+id+"-")) {
				found = append(found, "process "+string(cmdline))
			}
		}
		return found
	}
	for _, end := range []string{"down", "killed"} {
		cmd := exec.CommandContext(t.Context(), labctl, "-id", id, "up", "voms1")
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if end == "down" {
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if len(left()) < 5 {
				t.Errorf("cannot see a lab that is up: %q", left())
			}
			if out, err := exec.Command(labctl, "-id", id, "down").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		} else {
			dir, err := labDir(id)
			if err != nil {
				t.Fatal(err)
			}
			for { // until the host is booting
				if _, err := os.Stat(filepath.Join(dir, "hosts/voms1/nspawn.pid")); err == nil {
					break
				}
				if err := sleep(t.Context(), 10*time.Millisecond); err != nil {
					t.Fatal(err)
				}
			}
			cmd.Process.Kill()
			cmd.Wait()
			if err := Sweep(t.Context(), t.Output()); err != nil {
				t.Error(err)
			}
		}
		if found := left(); len(found) > 0 {
			t.Errorf("%s: left:\n%s", end, strings.Join(found, "\n"))
		}
	}
}

// Labs come and go beside each other while somebody sweeps away what the dead left.
func TestLabsSideBySide(t *testing.T) {
	need(t)
	// A cache of their own, so that they sweep nobody else's.
	image, err := Image(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	if err := os.Symlink(image, filepath.Join(cache, filepath.Base(image))); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RUNBOOK_LAB_CACHE", cache)
	var makers, sweepers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		sweepers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := Sweep(t.Context(), t.Output()); err != nil {
					t.Error(err)
					return
				}
			}
		})
		makers.Go(func() {
			for range 10 {
				l, err := New(t.Context(), Options{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := l.Down(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	makers.Wait()
	close(done)
	sweepers.Wait()
}
