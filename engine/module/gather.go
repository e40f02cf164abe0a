package module

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"runbook/engine/transport"
)

// gatherScript prints one section per question, each after a line of a record separator and its name. Whatever is missing
// on a host leaves its section empty.
const gatherScript = `PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec:/usr/local/mysql/bin
LC_ALL=C
export PATH LC_ALL
has() { command -v "$1" >/dev/null 2>&1; }
section() { printf '\036%s\n' "$1"; }
exec 2>/dev/null
section os; cat /etc/os-release || cat /usr/lib/os-release
section redhat; cat /etc/redhat-release
section debian; cat /etc/debian_version
section init
if [ -d /run/systemd/system ]; then echo systemd
elif has openrc-run; then echo openrc
elif [ -d /etc/init.d ]; then echo sysv
fi
section packages
for p in apt-get dnf yum zypper; do if has $p; then echo $p; break; fi; done
section hostname; cat /proc/sys/kernel/hostname || hostname || uname -n
section fqdn; if has timeout; then timeout 3 hostname -f; else hostname -f; fi
section addresses; ip -o addr show scope global || hostname -I
section kernel; uname -r
section machine; uname -m
section boot; cat /proc/sys/kernel/random/boot_id
section mysql
for p in mariadbd mysqld; do if has $p; then $p --no-defaults --version; break; fi; done
exit 0
`

// GatherFacts asks a host for all facts in one round trip.
func GatherFacts(ctx context.Context, r transport.Runner) (Facts, error) {
	out, err := r.Run(ctx, transport.Cmd{Script: gatherScript})
	if err != nil {
		return Facts{}, fmt.Errorf("cannot gather facts: %w", err)
	}
	return parseFacts(string(out.Stdout)), nil
}

func parseFacts(text string) Facts {
	sections := map[string]string{}
	for part := range strings.SplitSeq(text, "\x1e") {
		name, body, _ := strings.Cut(part, "\n")
		sections[name] = strings.TrimSpace(body)
	}
	word := func(name string) string {
		if f := strings.Fields(sections[name]); len(f) == 1 {
			return f[0]
		}
		return ""
	}
	f := Facts{
		Init:      orUnknown(word("init")),
		Hostname:  word("hostname"),
		FQDN:      word("fqdn"),
		Addresses: parseAddresses(sections["addresses"]),
		Kernel:    word("kernel"),
		Machine:   word("machine"),
		BootID:    word("boot"),
	}
	f.PackageManager = orUnknown(strings.TrimSuffix(word("packages"), "-get"))
	if f.FQDN == "" || strings.HasPrefix(f.FQDN, "localhost") {
		f.FQDN = f.Hostname
	}
	f.Distribution, f.Version, f.Family = distribution(sections)
	f.Major, _ = strconv.Atoi(digits.FindString(f.Version))
	f.MySQLFlavour, f.MySQLVersion = parseServerVersion(sections["mysql"])
	return f
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

var (
	digits        = regexp.MustCompile(`^\d+`)
	redhatRelease = regexp.MustCompile(`^(\w+).* release (\d[\d.]*)`)
	serverVersion = regexp.MustCompile(`\bVer (\d+(?:\.\d+)+)`)
)

// distribution reads the distribution, its version and family from os-release, and for older systems from the
// files that came before it.
func distribution(sections map[string]string) (id, version, family string) {
	release := parseOSRelease(sections["os"])
	id, version = release["ID"], release["VERSION_ID"]
	if id == "" {
		if m := redhatRelease.FindStringSubmatch(sections["redhat"]); m != nil {
			id, version = strings.ToLower(m[1]), m[2]
			if id == "red" {
				id = "rhel"
			}
			return id, version, "rhel"
		}
		if v := sections["debian"]; v != "" {
			return "debian", v, "debian"
		}
		return "unknown", "", "unknown"
	}
	for _, name := range append([]string{id}, strings.Fields(release["ID_LIKE"])...) {
		if known, ok := families[name]; ok {
			return id, version, known
		}
	}
	return id, version, id
}

var families = map[string]string{
	"debian": "debian", "ubuntu": "debian",
	"rhel": "rhel", "fedora": "rhel", "centos": "rhel", "rocky": "rhel", "almalinux": "rhel", "scientific": "rhel", "ol": "rhel",
	"suse": "suse", "opensuse": "suse", "sles": "suse", "opensuse-leap": "suse",
	"arch": "arch", "alpine": "alpine",
}

// parseOSRelease reads the shell-like assignments of os-release(5). It takes any text: what it cannot read it leaves out.
func parseOSRelease(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		values[name] = unquote(value)
	}
	return values
}

// unquote removes one pair of shell quotes, and in double quotes the backslashes.
func unquote(s string) string {
	if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '"' && s[0] != '\'' {
		return s
	}
	quote, s := s[0], s[1:len(s)-1]
	if quote == '\'' {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseAddresses reads the output of `ip -o addr` or `hostname -I`.
func parseAddresses(text string) []string {
	addresses := []string{}
	add := func(a string) {
		a, _, _ = strings.Cut(a, "/")
		if a != "" && !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if i := slices.IndexFunc(words, func(w string) bool { return w == "inet" || w == "inet6" }); i >= 0 {
			if i+1 < len(words) {
				add(words[i+1])
			}
			continue
		}
		for _, w := range words {
			if strings.ContainsAny(w, ".:") && !strings.HasSuffix(w, ":") {
				add(w)
			}
		}
	}
	return addresses
}

func parseServerVersion(text string) (flavour, version string) {
	m := serverVersion.FindStringSubmatch(text)
	if m == nil {
		return "", ""
	}
	if strings.Contains(strings.ToLower(text), "mariadb") {
		return "mariadb", m[1]
	}
	return "mysql", m[1]
}

// Map returns the facts under the names that expressions use.
func (f Facts) Map() map[string]any {
	addresses := make([]any, len(f.Addresses))
	for i, a := range f.Addresses {
		addresses[i] = a
	}
	return map[string]any{
		"os_family": f.Family, "distribution": f.Distribution, "version": f.Version, "version_major": f.Major,
		"init": f.Init, "package_manager": f.PackageManager,
		"hostname": f.Hostname, "fqdn": f.FQDN, "addresses": addresses,
		"kernel": f.Kernel, "machine": f.Machine, "boot_id": f.BootID,
		"mysql_flavour": f.MySQLFlavour, "mysql_version": f.MySQLVersion,
	}
}

// FactTypes gives the type of each fact that Map returns, in the words of Field.Type.
func FactTypes() map[string]string {
	types := map[string]string{}
	for name, value := range (Facts{}).Map() {
		switch value.(type) {
		case int:
			types[name] = "int"
		case []any:
			types[name] = "list of string"
		default:
			types[name] = "string"
		}
	}
	return types
}
