package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Host is one of a lab's hosts.
type Host struct {
	Name string // voms1
	lab  *Lab
}

// supervisor keeps one host running across its reboots, which systemd-nspawn announces with status 133. Its arguments:
// the directory for pid files, the number of control groups, those, and the command.
const supervisor = `
dir=$1 groups=$2
shift 2
echo $$ >"$dir/supervisor.pid"
while [ "$groups" -gt 0 ]; do
	echo $$ >"$1/cgroup.procs" || exit
	shift
	groups=$((groups - 1))
done
while :; do
	"$@" &
	echo $! >"$dir/nspawn.pid"
	wait $!
	status=$?
	[ $status = 133 ] || exit $status
done
`

// FQDN is the host's full name.
func (h *Host) FQDN() string { return h.Name + "." + Domain }

// Address is the host's address in its lab.
func (h *Host) Address() string { return addresses[h.Name] }

// Root is the host's root directory as the machine sees it, also while the host is down. What the host mounts over it, such
// as /run and /tmp, is not in it.
func (h *Host) Root() string { return filepath.Join(h.dir(), "root") }

func (h *Host) dir() string     { return filepath.Join(h.lab.Dir, "hosts", h.Name) }
func (h *Host) machine() string { return h.lab.namespace() + "-" + h.Name }

// make lays out the host's file system: the shared image, and over it what makes this host itself.
func (h *Host) make(ctx context.Context) error {
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(h.dir(), dir), 0o755); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", h.lab.image, h.dir(), h.dir())
	if err := syscall.Mount("overlay", h.Root(), "overlay", 0, layers); err != nil {
		return fmt.Errorf("cannot mount an overlay for %s: %w", h.Name, err)
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	var names strings.Builder
	names.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\n")
	for _, name := range []string{"voms1", "voms2", "ui", "stranger"} {
		fmt.Fprintf(&names, "%s\t%s.%s %s\n", addresses[name], name, Domain, name)
	}
	for _, f := range []struct{ name, text string }{
		{"etc/machine-id", fmt.Sprintf("%x\n", id)},
		{"etc/hosts", names.String()},
		{"etc/systemd/network/10-host0.network", "[Match]\nName=host0\n\n[Network]\nAddress=" + h.Address() + "/24\nLinkLocalAddressing=no\n"},
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(h.Root(), f.name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(h.Root(), f.name), []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	if err := h.trust(); err != nil {
		return err
	}
	grid := filepath.Join(h.Root(), "etc/grid-security")
	if err := os.MkdirAll(grid, 0o755); err != nil {
		return err
	}
	if err := run(ctx, "cp", "-a", filepath.Join(h.lab.Dir, "certificates"), grid); err != nil {
		return err
	}
	if err := h.lab.Issue(Request{Name: h.FQDN(), DNS: []string{h.FQDN()}},
		filepath.Join(grid, "hostcert.pem"), filepath.Join(grid, "hostkey.pem")); err != nil {
		return err
	}
	if h.Name != "ui" {
		return nil
	}
	// A person works there, with a certificate of her own and no passphrase on its key, and a way to ask for proxies that can be counted on.
	if err := os.WriteFile(filepath.Join(h.Root(), "usr/local/bin/proxy"), []byte(proxyScript), 0o755); err != nil {
		return err
	}
	globus := filepath.Join(h.Root(), "home", "alice", ".globus")
	if err := h.lab.Issue(Request{Name: User}, filepath.Join(globus, "usercert.pem"), filepath.Join(globus, "userkey.pem")); err != nil {
		return err
	}
	for _, path := range []string{globus, filepath.Join(globus, "usercert.pem"), filepath.Join(globus, "userkey.pem")} {
		if err := os.Chown(path, aliceID, aliceID); err != nil {
			return err
		}
	}
	return nil
}

//go:embed proxy.sh
var proxyScript string

// User is the common name of the person whose certificate is in /home/alice/.globus on ui.
const User = "Alice Researcher"

// aliceID is the number of the login alice and of its group.
const aliceID = 2003

// Start boots a host that is down and returns when its boot has come to an end and its sshd answers.
func (h *Host) Start(ctx context.Context) error {
	if h.supervised() {
		return fmt.Errorf("cannot start %s: it is running", h.Name)
	}
	groups, err := makeControlGroups(h.lab.controlGroup() + "/" + h.Name)
	if err != nil {
		return err
	}
	console, err := os.OpenFile(filepath.Join(h.dir(), "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	args := append([]string{"-c", supervisor, "runbook-lab", h.dir(), strconv.Itoa(len(groups))}, groups...)
	args = append(args, h.lab.Controller("systemd-nspawn", "--quiet", "--directory="+h.Root(), "--machine="+h.machine(),
		"--hostname="+h.FQDN(), "--boot", "--network-bridge="+bridge, "--register=no", "--keep-unit", "--console=pipe",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no")...)
	cmd := exec.Command("sh", args...)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := os.Remove(filepath.Join(h.dir(), "nspawn.pid")); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeoutCause(ctx, 90*time.Second, errors.New("not up after 90 s"))
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- h.awaitBoot(ctx, 0) }()
	select {
	case err = <-ready:
	case err = <-ended:
		err = fmt.Errorf("systemd-nspawn ended: %w", err)
	}
	if err != nil {
		return fmt.Errorf("cannot boot %s: %w\n%s", h.Name, err, h.consoleTail())
	}
	return nil
}

// awaitBoot waits until a PID 1 other than the given one has finished its boot and sshd answers.
func (h *Host) awaitBoot(ctx context.Context, not int) error {
	for ; ; sleep(ctx, 20*time.Millisecond) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pid, err := h.PID()
		if err != nil || pid == not {
			continue
		}
		// "degraded" is a finished boot too: what failed is the caller's to find. Who begins to wait at the wrong moment of a boot
		// is never told of its end.
		out, _ := h.Command(ctx, "timeout", "5", "systemctl", "is-system-running", "--wait").Output()
		if s := strings.TrimSpace(string(out)); s != "running" && s != "degraded" {
			continue
		}
		conn, err := h.lab.Dial(ctx, "tcp", h.Address()+":22")
		if err != nil {
			continue
		}
		banner := make([]byte, 4)
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, err = conn.Read(banner)
		conn.Close()
		if err == nil && string(banner) == "SSH-" {
			return nil
		}
	}
}

// PID returns the pid, on the machine, of the host's PID 1.
func (h *Host) PID() (int, error) {
	nspawn, err := h.nspawn()
	if err != nil {
		return 0, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nspawn, nspawn))
	if err != nil {
		return 0, err
	}
	for _, child := range strings.Fields(string(children)) {
		// Its children that set the container up come and go; PID 1 is the one that became systemd.
		if comm, err := os.ReadFile("/proc/" + child + "/comm"); err == nil && string(comm) == "systemd\n" {
			return strconv.Atoi(child)
		}
	}
	return 0, fmt.Errorf("host %s has no PID 1 yet", h.Name)
}

// rootOf is the file system of a process as this machine sees it.
func rootOf(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid), "root") }

// nspawn returns the pid of the host's systemd-nspawn.
func (h *Host) nspawn() (int, error) {
	if pid := h.pid("nspawn.pid"); pid != 0 {
		return pid, nil
	}
	return 0, fmt.Errorf("host %s is not running", h.Name)
}

// supervised tells whether the host's supervisor runs.
func (h *Host) supervised() bool { return h.pid("supervisor.pid") != 0 }

// pid reads a pid file and makes sure that the process is this host's, 0 if there is none.
func (h *Host) pid(file string) int {
	data, err := os.ReadFile(filepath.Join(h.dir(), file))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte("\x00--machine="+h.machine()+"\x00")) {
		return 0
	}
	return pid
}

// Argv returns the argument list that runs a program on the host from outside, as root, not by way of sshd.
func (h *Host) Argv(args ...string) ([]string, error) {
	pid, err := h.PID()
	if err != nil {
		return nil, err
	}
	return slices.Concat([]string{"nsenter", "--target=" + strconv.Itoa(pid), "--all", "--", "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}, args), nil
}

// Command makes a command of Argv. If the host is down, the command will fail to start and say so.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	argv, err := h.Argv(args...)
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second // what dies with ctx is nsenter; its child may live on and hold the pipes
	return cmd
}

// Exec runs a program on the host from outside and returns what it printed. Its error holds what it complained about.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	return h.exec(ctx, "", args...)
}

func (h *Host) exec(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := h.Command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s on %s: %w: %s", args[0], h.Name, err, tail(stderr.Bytes(), 10))
	}
	return stdout.String(), nil
}

// Reboot restarts the host in good order and waits for it.
func (h *Host) Reboot(ctx context.Context) error {
	pid, err := h.PID()
	if err != nil {
		return err
	}
	if _, err := h.Exec(ctx, "systemctl", "reboot"); err != nil && !strings.Contains(err.Error(), "signal") {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not up again after two minutes"))
	defer cancel()
	if err := h.awaitBoot(ctx, pid); err != nil {
		return fmt.Errorf("cannot reboot %s: %w\n%s", h.Name, err, h.consoleTail())
	}
	return nil
}

// Stop shuts the host down in good order.
func (h *Host) Stop(ctx context.Context) error {
	pid, err := h.nspawn()
	if err != nil {
		return err
	}
	return h.end(ctx, pid, syscall.SIGTERM)
}

// Crash ends the host as a power cut would, but for what its disks had not written yet: that is kept.
func (h *Host) Crash(ctx context.Context) error {
	pid, err := h.PID()
	if err != nil {
		return err
	}
	// The kernel ends everything in a PID namespace with its PID 1. Killing systemd-nspawn would leave the host running.
	return h.end(ctx, pid, syscall.SIGKILL)
}

// end sends a signal to one of the host's processes and waits until nothing of the host is running.
func (h *Host) end(ctx context.Context, pid int, signal syscall.Signal) error {
	if err := syscall.Kill(pid, signal); err != nil && err != syscall.ESRCH {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 90*time.Second, errors.New("still there after 90 s"))
	defer cancel()
	for h.supervised() {
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("cannot stop %s: %w\n%s", h.Name, err, h.consoleTail())
		}
	}
	return nil
}

// Unplug pulls the host's network cable.
func (h *Host) Unplug(ctx context.Context) error { return h.link(ctx, "down") }

// Plug puts it back.
func (h *Host) Plug(ctx context.Context) error { return h.link(ctx, "up") }

// link sets the bridge's end of the host's cable up or down. Its name depends on the version of systemd; its number does not.
func (h *Host) link(ctx context.Context, state string) error {
	pid, err := h.PID()
	if err != nil {
		return err
	}
	index, err := os.ReadFile(filepath.Join(rootOf(pid), "sys/class/net/host0/iflink"))
	if err != nil {
		return err
	}
	links, err := exec.CommandContext(ctx, "ip", "-n", h.lab.namespace(), "-o", "link").Output()
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`(?m)^` + strings.TrimSpace(string(index)) + `: ([^@:\s]+)`).FindSubmatch(links)
	if m == nil {
		return fmt.Errorf("cannot find the cable of %s among:\n%s", h.Name, links)
	}
	return run(ctx, "ip", "-n", h.lab.namespace(), "link", "set", "dev", string(m[1]), state)
}

// remove ends the host without ceremony and unmounts its root.
func (h *Host) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("still there after 20 s"))
	defer cancel()
	if pid, err := h.PID(); err == nil {
		if err := h.end(ctx, pid, syscall.SIGKILL); err != nil {
			return err
		}
	}
	// What is left of a start that did not get far, or of a host whose supervisor was killed.
	if err := removeControlGroups(h.lab.controlGroup() + "/" + h.Name); err != nil {
		return err
	}
	for {
		err := syscall.Unmount(h.Root(), 0)
		if err == nil || err == syscall.EINVAL || err == syscall.ENOENT { // unmounted, or never was mounted
			break
		}
		if waited := sleep(ctx, 20*time.Millisecond); waited != nil {
			return fmt.Errorf("cannot unmount the root of %s: %w", h.Name, err)
		}
	}
	// Where systemd-nspawn passes mounts into a container; it leaves the directory behind when it is killed.
	err := os.Remove("/run/systemd/nspawn/propagate/" + h.machine())
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func (h *Host) consoleTail() string {
	data, err := os.ReadFile(filepath.Join(h.dir(), "console.log"))
	if err != nil {
		return err.Error()
	}
	return "its console says:\n" + tail(data, 15)
}
