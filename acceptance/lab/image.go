package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Suite is the Debian release of the hosts.
const Suite = "bookworm"

// Installed are the packages that every host has from the start: a small server with a database.
var Installed = []string{
	"systemd", "systemd-sysv", "dbus", "openssh-server", "iproute2", "sudo", "iptables", "iptables-persistent",
	"mariadb-server", "openssl", "ca-certificates", "netcat-openbsd", "less", "procps",
}

// Available are the packages that a host can install without a network, with what they depend on.
var Available = []string{"stunnel4", "voms-server", "voms-mysql-plugin", "voms-clients", "libfaketime", "libpam-systemd", "dbus-user-session"}

// Passwords of the hosts' logins. The hosts cannot be reached from anywhere but their lab.
const (
	RootPassword = "root-of-the-lab-7"
	OpsPassword  = "ops of the lab 7"
)

//go:embed image.sh
var imageScript string

// Cache is the directory that holds images and labs: $RUNBOOK_LAB_CACHE, else runbook-lab in the user's cache.
func Cache() (string, error) {
	if dir := os.Getenv("RUNBOOK_LAB_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cannot tell where to keep images: set RUNBOOK_LAB_CACHE: %w", err)
	}
	return filepath.Join(dir, "runbook-lab"), nil
}

// Unavailable says why this machine cannot make hosts, "" if it can.
func Unavailable() string {
	if os.Geteuid() != 0 {
		return "making hosts needs root"
	}
	for _, program := range []string{"systemd-nspawn", "mmdebstrap", "ip", "nsenter", "openssl", "ssh"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Sprintf("making hosts needs %s, which is not installed (acceptance/lab/deps.sh installs it)", program)
		}
	}
	return ""
}

// Image returns the directory of the hosts' image, building it first if this recipe has not been built yet.
// Progress goes to log.
func Image(ctx context.Context, log io.Writer) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(cache, "image.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	image := filepath.Join(cache, "image-"+recipe())
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	fmt.Fprintln(log, "building the hosts' image, which is done once and takes some minutes")
	partial := image + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := buildImage(ctx, partial); err != nil {
		return "", errors.Join(err, os.RemoveAll(partial))
	}
	if err := os.Rename(partial, image); err != nil {
		return "", err
	}
	return image, prune(ctx, cache, image)
}

// prune removes the images of older recipes that no lab uses.
func prune(ctx context.Context, cache, image string) error {
	unlock, err := lockLabs(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	used := []string{image}
	ids, err := List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		s, err := readState(id)
		if err != nil {
			return nil // a lab that we cannot ask: keep what it may use
		}
		used = append(used, s.Image)
	}
	images, err := filepath.Glob(filepath.Join(cache, "image-*"))
	if err != nil {
		return err
	}
	for _, old := range images {
		if !slices.Contains(used, old) {
			if err := os.RemoveAll(old); err != nil {
				return err
			}
		}
	}
	return nil
}

// recipe is a digest of everything that decides what an image holds, but for the packages' versions.
func recipe() string {
	h := sha256.New()
	fmt.Fprintln(h, Suite, runtime.GOARCH, Installed, Available, RootPassword, OpsPassword, imageScript)
	return fmt.Sprintf("%x", h.Sum(nil))[:12]
}

func buildImage(ctx context.Context, dir string) error {
	sources, err := sources()
	if err != nil {
		return err
	}
	options, err := aptOptions()
	if err != nil {
		return err
	}
	script, err := os.CreateTemp("", "image-*.sh")
	if err != nil {
		return err
	}
	defer os.Remove(script.Name())
	if _, err := script.WriteString(imageScript); err != nil {
		return err
	}
	if err := script.Close(); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--skip=cleanup/apt", "--include=" + strings.Join(Installed, ","),
		"--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=force-unsafe-io",
	}
	for _, o := range options {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, "--customize-hook=sh "+script.Name()+" \"$1\"", Suite, dir)
	args = append(args, sources...)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = append(os.Environ(), "AVAILABLE="+strings.Join(Available, " "),
		"ROOT_PASSWORD="+RootPassword, "OPS_PASSWORD="+OpsPassword)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // so that it unmounts what it mounted
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the hosts' image: mmdebstrap: %w\n%s", err, tail(out, 30))
	}
	return nil
}

// sources returns the machine's own Debian package sources, turned to the hosts' release.
func sources() ([]string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, err
	}
	m := regexp.MustCompile(`(?m)^VERSION_CODENAME="?(\w+)"?$`).FindSubmatch(release)
	if m == nil {
		return nil, errors.New("cannot build the hosts' image: /etc/os-release names no release (a Debian machine is needed)")
	}
	codename := string(m[1])
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot read the machine's package sources: apt-get indextargets: %w", err)
	}
	var lines []string
	for scan := bufio.NewScanner(bytes.NewReader(out)); scan.Scan(); {
		f := strings.Fields(scan.Text())
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		pocket, ok := strings.CutPrefix(f[1], codename)
		if !ok || !slices.Contains([]string{"", "-updates", "-security"}, pocket) {
			continue // another distributor's repository
		}
		if line := fmt.Sprintf("deb %s %s%s main", f[0], Suite, pocket); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("cannot build the hosts' image: the machine's package sources have no Debian %s", codename)
	}
	return lines, nil
}

// aptOptions returns those of the machine's apt settings that say how packages are fetched: proxies and the like.
func aptOptions() ([]string, error) {
	out, err := exec.Command("apt-config", "dump").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot read the machine's apt settings: apt-config dump: %w", err)
	}
	fetching := regexp.MustCompile(`^(Acquire::(https?|Check-Valid-Until|Check-Date|Retries|ForceIPv4|Max-FutureTime)(::\S*)? .+);$`)
	var options []string
	for scan := bufio.NewScanner(bytes.NewReader(out)); scan.Scan(); {
		if m := fetching.FindStringSubmatch(scan.Text()); m != nil && !strings.HasSuffix(m[1], `""`) {
			options = append(options, m[1])
		}
	}
	return options, nil
}

// tail returns the last n lines of out.
func tail(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
