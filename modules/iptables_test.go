package modules

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func mustRule(t *testing.T, text string, v6 bool) iptRule {
	t.Helper()
	r, err := parseIptRule(text, v6)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

// The same rule, as people write it and as old and new versions of iptables-save print it.
func TestIptablesSameRule(t *testing.T) {
	for _, group := range [][]string{
		{
			"-s 10.0.0.2/32 -p tcp -m tcp --dport 3307 -m state --state NEW -j ACCEPT",
			"-s 10.0.0.2 -p tcp -m conntrack --ctstate NEW -m tcp --dport 3307 -j ACCEPT",
			"-s 10.0.0.2 -m state --state NEW -m tcp -p tcp --dport 3307 -j ACCEPT", // MAN06
			"-s 10.0.0.2/255.255.255.255 --protocol 6 --destination-port 3307 -m conntrack --ctstate new --jump ACCEPT",
			"-p TCP --source=10.0.0.2 -m tcp --dport 3307:3307 -m conntrack --ctstate NEW,NEW -c 5 6 -j ACCEPT",
		},
		{
			"-p tcp -m multiport --dports 22,80,443 -m comment --comment \"a b\" -j ACCEPT",
			"-p tcp -m comment --comment 'a b' -m multiport --dports https,ssh,http -j ACCEPT",
			"-p tcp --dports http,22,443 --comment \"a b\" -j ACCEPT",
		},
		{
			"! -s 10.1.2.0/24 -p icmp -m icmp --icmp-type 8 -j DROP",
			"-p icmp -s ! 10.1.2.3/255.255.255.0 --icmp-type echo-request -j DROP",
			"-p 1 ! --src 10.1.2.0/24 -m icmp --icmp-type ping -j DROP",
		},
		{"-j REJECT --reject-with icmp-port-unreachable", "-p all -s 0.0.0.0/0 -j REJECT", "-d 0/0 -j REJECT --reject-with port-unreach"},
		{"-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", "-p tcp --syn -j DROP", "-p tcp -m tcp --tcp-flags SYN,FIN,ACK,RST SYN -j DROP"},
		{
			`-m limit --limit 3/min -j LOG --log-prefix "denied: "`,
			`-m limit --limit 180/hour --limit-burst 5 -j LOG --log-level warning --log-prefix 'denied: '`,
			`-m limit --limit 3/minute -j LOG --log-prefix "denied: " --log-level 4`,
		},
		{"-p tcp -m tcp --sport 1024:65535 --dport 0:1023", "-p tcp --dport :1023 --sport 1024:"},
	} {
		want := mustRuleOrFix(t, group[0])
		for _, text := range group[1:] {
			if got := mustRuleOrFix(t, text); got.key() != want.key() {
				t.Errorf("differ:\n%s\n%s\n%s\n%s", group[0], text, want.key(), got.key())
			}
		}
	}
	for _, pair := range [][2]string{
		{"-p tcp --dport 22 -j ACCEPT", "-p udp --dport 22 -j ACCEPT"},
		{"-p tcp --dport 22 -j ACCEPT", "-p tcp ! --dport 22 -j ACCEPT"},
		{"-j LOG", "-g LOG"},
		{"-s 10.0.0.1 -j ACCEPT", "-s 10.0.0.0/31 -j ACCEPT"},
		{"-m comment --comment a -j ACCEPT", "-j ACCEPT"},
	} {
		a, b := mustRule(t, pair[0], false), mustRule(t, pair[1], false)
		if a.key() == b.key() {
			t.Errorf("the same: %q", pair)
		}
	}
}

// mustRuleOrFix allows for 0/0, which is an address to iptables only.
func mustRuleOrFix(t *testing.T, text string) iptRule {
	t.Helper()
	return mustRule(t, strings.ReplaceAll(text, "-d 0/0 ", ""), false)
}

func TestIptablesBadRules(t *testing.T) {
	for text, want := range map[string]string{
		"--dport 22 -j ACCEPT":                      "--dport needs a protocol",
		"-p tcp --dport sssh -j ACCEPT":             `"sssh" is not a port`,
		"-p tcp --dport 70000 -j ACCEPT":            `"70000" is not a port`,
		"-s server1.domain.one -j ACCEPT":           `"server1.domain.one" is not an address`,
		"-s fe80::1 -j ACCEPT":                      "not an address of this IP version",
		"-j ACCEPT -j DROP":                         "one target",
		"-A INPUT -j ACCEPT":                        "-A has no place in a rule",
		"ACCEPT":                                    `expected an option, got "ACCEPT"`,
		"-p tcp -m comment --comment \"x -j ACCEPT": "a quote is not closed",
		"--dprot 22 -p tcp":                         "unknown option --dprot",
		"-m limit --limit often -j ACCEPT":          `"often" is not a rate`,
		"-p":                                        "-p needs a value",
	} {
		if _, err := parseIptRule(text, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %s", text, err, want)
		}
	}
}

func FuzzIptablesRule(f *testing.F) {
	for _, text := range []string{
		"-s 10.0.0.2/32 -p tcp -m tcp --dport 3307 -m state --state NEW -j ACCEPT",
		`! -i eth+ -m comment --comment "a \"b\" \\ 'c'" -m set --match-set x src,dst -j LOG --log-prefix "-x "`,
		"-p icmp -m icmp ! --icmp-type 8 -m limit --limit 7/day -j REJECT --reject-with host-prohib",
		"-m recent --name a --rsource --update --seconds 60 -m owner --uid-owner root -g chain",
	} {
		f.Add(text, false)
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, text string, v6 bool) {
		r, err := parseIptRule(text, v6)
		if err != nil {
			return
		}
		for _, old := range []bool{false, true} {
			printed := r.print(old)
			again, err := parseIptRule(printed, v6)
			if err != nil {
				t.Fatalf("%q is printed as %q, which cannot be read: %v", text, printed, err)
			}
			if again.key() != r.key() || again.print(old) != printed {
				t.Fatalf("%q is printed as %q, then as %q", text, printed, again.print(old))
			}
		}
	})
}

// Any file is read or refused, and an edit of one that was read can be read again and leaves nothing to edit.
func FuzzIptablesSave(f *testing.F) {
	f.Add("*filter\n:INPUT ACCEPT [0:0]\n:X - [0:0]\n[1:2] -A INPUT -j X\n-A X -j REJECT\nCOMMIT\n*nat\nCOMMIT\n")
	f.Add("# comment\n*filter\n-A INPUT -p tcp --dport 3307 -j ACCEPT\n-A INPUT -j DROP\n-A INPUT -p tcp --dport 3307 -j ACCEPT\nCOMMIT")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseIptSave(text, false)
		if err != nil {
			return
		}
		m := All()["iptables"]().(*iptables)
		m.Chain, m.Rule = "INPUT", "-p tcp --dport 3307 -j ACCEPT"
		rule, _ := m.parsed(false)
		edit, err := m.edit(s, m.Chain, &rule, true)
		if err != nil {
			t.Fatal(err)
		}
		after, err := parseIptSave(s.apply(m.Table, m.Chain, edit, false), false)
		if err != nil {
			t.Fatal(err)
		}
		if left, err := m.edit(after, m.Chain, &rule, true); err != nil || !left.empty() {
			t.Fatalf("an edit of the edited file: %+v, %v", left, err)
		}
	})
}

func TestIptablesFileEdits(t *testing.T) {
	const file = `# kept
*nat
:POSTROUTING ACCEPT [1:2]
COMMIT
*filter
:INPUT ACCEPT [5:6]
# ours
[3:4] -A INPUT -i lo -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited

COMMIT
`
	for _, c := range []struct {
		name, from, to string
		set            func(*iptables)
	}{
		{"ahead of REJECT", "-A INPUT -j REJECT", "-A INPUT -p tcp -m tcp --dport 3307 -j ACCEPT\n-A INPUT -j REJECT", func(m *iptables) {}},
		{"first", "[3:4] -A", "-A INPUT -p tcp -m tcp --dport 3307 -j ACCEPT\n[3:4] -A", func(m *iptables) { m.Position = "first" }},
		{"new chain", ":INPUT ACCEPT [5:6]\n", ":INPUT ACCEPT [5:6]\n:NEW - [0:0]\n", func(m *iptables) { m.Chain, m.Rule = "NEW", "" }},
		{
			"new chain with rule", ":INPUT ACCEPT [5:6]\n", ":INPUT ACCEPT [5:6]\n:NEW - [0:0]\n", func(m *iptables) { m.Chain = "NEW" },
		},
		{"policy", ":INPUT ACCEPT [5:6]", ":INPUT DROP [0:0]", func(m *iptables) { m.Rule, m.Policy = "", "DROP" }},
		{"policy undeclared", ":INPUT ACCEPT [5:6]\n", ":INPUT ACCEPT [5:6]\n:OUTPUT DROP [0:0]\n", func(m *iptables) { m.Chain, m.Rule, m.Policy = "OUTPUT", "", "DROP" }},
		{"absent", "[3:4] -A INPUT -i lo -j ACCEPT\n", "", func(m *iptables) { m.Rule, m.State = "-i lo -j ACCEPT", "absent" }},
		{"flush", "[3:4] -A INPUT -i lo -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\n", "", func(m *iptables) { m.Rule, m.Flush = "", true }},
		{
			"other table", "\nCOMMIT\n", "\nCOMMIT\n*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -m tcp --dport 3307 -j ACCEPT\nCOMMIT\n",
			func(m *iptables) { m.Table, m.Chain = "raw", "OUTPUT" },
		},
	} {
		m := All()["iptables"]().(*iptables)
		m.Chain, m.Rule = "INPUT", "-p tcp --dport 3307 -j ACCEPT"
		c.set(m)
		if err := m.Validate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		s, err := parseIptSave(file, false)
		if err != nil {
			t.Fatal(err)
		}
		var rule *iptRule
		if m.hasRule() {
			r, _ := m.parsed(false)
			rule = &r
		}
		edit, err := m.edit(s, m.Chain, rule, true)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(file, c.from, c.to, 1)
		if m.Table == "raw" {
			want = file + strings.TrimPrefix(c.to, "\nCOMMIT\n")
		}
		if c.name == "new chain with rule" {
			want = strings.TrimSuffix(want, "COMMIT\n") + "-A NEW -p tcp -m tcp --dport 3307 -j ACCEPT\nCOMMIT\n"
		}
		if got := s.apply(m.Table, m.Chain, edit, false); got != want {
			t.Errorf("%s: got\n%swant\n%s", c.name, got, want)
		}
	}
}

// prefixConn runs commands by way of a program that goes elsewhere, such as nsenter.
type prefixConn struct {
	prefix func(args []string) ([]string, error)
}

func (c prefixConn) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	args := cmd.Args
	if cmd.Script != "" {
		args = []string{"sh", "-s"}
		cmd.Stdin = strings.NewReader(cmd.Script)
	}
	argv, err := c.prefix(args)
	if err != nil {
		return transport.Output{}, err
	}
	run := exec.CommandContext(ctx, argv[0], argv[1:]...)
	run.Stdin = cmd.Stdin
	run.Env = os.Environ()
	for k, v := range cmd.Env {
		run.Env = append(run.Env, k+"="+v)
	}
	var stdout, stderr bytes.Buffer
	run.Stdout, run.Stderr = &stdout, &stderr
	err = run.Run()
	out := transport.Output{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Code: run.ProcessState.ExitCode()}
	if _, failed := err.(*exec.ExitError); failed {
		return out, &transport.ExitError{Output: out}
	}
	return out, err
}

func (prefixConn) Dial(context.Context, string, string, string) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}
func (prefixConn) Close() error { return nil }

// packetFilter is a host with a packet filter of its own, in which writing below /etc and /usr/share leaves no trace.
type packetFilter struct {
	*module.Host
	t *testing.T
}

func newPacketFilter(t *testing.T) packetFilter {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	for _, program := range []string{"iptables-save", "iptables-restore", "unshare", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s (packages iptables and util-linux)", program)
		}
	}
	const script = `set -e
mount -t tmpfs tmpfs /mnt
for dir in etc usr/share; do
	mkdir -p "/mnt/$dir/upper" "/mnt/$dir/work"
	mount -t overlay overlay -o "lowerdir=/$dir,upperdir=/mnt/$dir/upper,workdir=/mnt/$dir/work" "/$dir"
done
mkdir -p /etc/iptables /usr/share/netfilter-persistent/plugins.d
rm -f /etc/iptables/rules.v4 /etc/iptables/rules.v6
: >/usr/share/netfilter-persistent/plugins.d/15-ip4tables
: >/usr/share/netfilter-persistent/plugins.d/25-ip6tables
iptables-save >/dev/null
echo ready
cat >/dev/null`
	cmd := exec.Command("unshare", "-n", "-m", "--propagation", "private", "sh", "-c", script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	line := make([]byte, 6)
	if _, err := io.ReadFull(stdout, line); err != nil {
		t.Skipf("cannot make a network namespace with overlays: %s", stderr.String())
	}
	enter := func(args []string) ([]string, error) {
		return append([]string{"nsenter", "-t", strconv.Itoa(cmd.Process.Pid), "-n", "-m", "--"}, args...), nil
	}
	return packetFilter{&module.Host{Name: "ns", Conn: prefixConn{enter}}, t}
}

func (p packetFilter) sh(script string) string {
	p.t.Helper()
	out, err := p.Run(p.t.Context(), transport.Cmd{Script: script})
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", script, err, out.Stderr)
	}
	return strings.TrimSpace(string(out.Stdout))
}

// rules are the chain's rules; counters must not have been reset.
func (p packetFilter) rules(chain string) string {
	return p.sh("iptables-save | grep -e '^-A " + chain + " ' | cut -d' ' -f3-")
}

func (p packetFilter) check(args map[string]any) (module.Plan, error) {
	p.t.Helper()
	m := All()["iptables"]()
	if err := module.Decode(m, args); err != nil {
		p.t.Fatalf("%v: %v", args, err)
	}
	before := p.sh("iptables-save; ip6tables-save; ls -l --time-style=full-iso /etc/iptables; cat /etc/iptables/* 2>/dev/null; true")
	plan, err := m.Check(p.t.Context(), p.Host)
	if after := p.sh("iptables-save; ip6tables-save; ls -l --time-style=full-iso /etc/iptables; cat /etc/iptables/* 2>/dev/null; true"); withoutDates(after) != withoutDates(before) {
		p.t.Errorf("%v: check changed the host:\n%s\n%s", args, before, after)
	}
	return plan, err
}

func withoutDates(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// apply carries out a task, sees that a second check finds nothing, and returns what changed.
func (p packetFilter) apply(args map[string]any) string {
	p.t.Helper()
	plan, err := p.check(args)
	if err != nil {
		p.t.Fatalf("%v: %v", args, err)
	}
	var what []string
	for _, c := range plan.Changes {
		what = append(what, c.What)
		if c.Before == c.After {
			p.t.Errorf("%s: before and after are the same:\n%s", c.What, c.Before)
		}
	}
	if len(plan.Changes) == 0 {
		return ""
	}
	m := All()["iptables"]()
	if err := module.Decode(m, args); err != nil {
		p.t.Fatal(err)
	}
	if _, err := m.Apply(p.t.Context(), p.Host, plan); err != nil {
		p.t.Fatalf("%v: %v", args, err)
	}
	again, err := p.check(args)
	if err != nil {
		p.t.Fatalf("%v: second check: %v", args, err)
	}
	for _, c := range again.Changes {
		p.t.Errorf("%v: did not converge: %s\n%s---\n%s", args, c.What, c.Before, c.After)
	}
	// What is kept for the next boot can be loaded.
	p.sh("for f in /etc/iptables/rules.v4; do [ ! -e $f ] || iptables-restore --test <$f; done; [ ! -e /etc/iptables/rules.v6 ] || ip6tables-restore --test </etc/iptables/rules.v6")
	return strings.Join(what, "; ")
}

func (p packetFilter) want(what, got, want string) {
	p.t.Helper()
	if got != want {
		p.t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

// MAN06: the rule has to be ahead of the REJECT that ends the chain, and there after a boot.
func TestIptablesMAN06(t *testing.T) {
	p := newPacketFilter(t)
	p.sh(`iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A INPUT -i lo -j ACCEPT
iptables -A INPUT -p tcp --dport 22 -j ACCEPT
iptables -A INPUT -j REJECT --reject-with icmp-host-prohibited
iptables -A INPUT -s 10.0.0.2 -m state --state NEW -m tcp -p tcp --dport 3307 -j ACCEPT
ip link set lo up
ping -c 1 127.0.0.1 >/dev/null 2>&1 || true`)
	counters := p.sh("iptables-save -c | grep -e '-i lo'")
	task := map[string]any{
		"chain": "INPUT", "protocol": "tcp", "source": "10.0.0.2", "destination_port": "3307", "ctstate": "NEW", "jump": "ACCEPT",
	}
	p.want("changes", p.apply(task), "move the rule in INPUT to place 4; rules kept in /etc/iptables/rules.v4")
	want := `-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-i lo -j ACCEPT
-p tcp -m tcp --dport 22 -j ACCEPT
-s 10.0.0.2/32 -p tcp -m conntrack --ctstate NEW -m tcp --dport 3307 -j ACCEPT
-j REJECT --reject-with icmp-host-prohibited`
	got := p.rules("INPUT")
	if !strings.Contains(got, "-s 10.0.0.2/32 -p tcp") || strings.Count(got, "3307") != 1 || strings.Index(got, "3307") > strings.Index(got, "REJECT") {
		t.Errorf("got\n%s\nwant something like\n%s", got, want)
	}
	p.want("counters of another rule", p.sh("iptables-save -c | grep -e '-i lo'"), counters)
	p.want("again", p.apply(task), "")

	// The next boot.
	p.sh("iptables -F; iptables-restore </etc/iptables/rules.v4")
	p.want("after a boot", p.rules("INPUT"), got)

	// Live only, and kept only.
	p.sh("sed -i /3307/d /etc/iptables/rules.v4; chmod 640 /etc/iptables/rules.v4")
	p.want("not kept", p.apply(task), "rules kept in /etc/iptables/rules.v4")
	p.want("mode of the file", p.sh("stat -c %a /etc/iptables/rules.v4"), "640")
	p.sh("iptables -D INPUT 4; iptables -I INPUT -s 10.9.9.9 -j DROP") // the second is a program's own, not for the file
	p.want("not live", p.apply(task), "add the rule to INPUT at place 5")
	p.want("rules of others in the file", p.sh("grep -c 10.9.9.9 /etc/iptables/rules.v4 || true"), "0")

	// Twice.
	p.sh("iptables -A INPUT -s 10.0.0.2 -p tcp -m tcp --dport 3307 -m state --state NEW -j ACCEPT; iptables -I INPUT -p tcp -s 10.0.0.2 -m state --state NEW --dport 3307 -j ACCEPT")
	p.want("three copies", p.apply(task), "remove duplicates of the rule from INPUT")
	p.want("copies left", p.sh("iptables-save | grep -c 3307"), "1")

	task["state"] = "absent"
	p.want("absent", p.apply(task), "remove the rule from INPUT; rules kept in /etc/iptables/rules.v4")
	p.want("copies left", p.sh("cat /etc/iptables/rules.v4 | grep -c 3307; iptables-save | grep -c 3307; true"), "0\n0")
	p.want("absent again", p.apply(task), "")
}

func TestIptablesPositions(t *testing.T) {
	p := newPacketFilter(t)
	task := func(port string, more ...any) map[string]any {
		args := map[string]any{"chain": "INPUT", "protocol": "tcp", "destination_port": port, "jump": "ACCEPT", "persist": "none"}
		for i := 0; i < len(more); i += 2 {
			args[more[i].(string)] = more[i+1]
		}
		return args
	}
	ports := func() string {
		return strings.Join(strings.Fields(p.sh("iptables-save | sed -n 's/^-A INPUT.*dport //p' | cut -d' ' -f1")), " ")
	}
	p.apply(task("10"))
	p.apply(task("20", "position", "first"))
	p.want("first", ports(), "20 10")
	p.apply(task("30", "position", "last"))
	p.apply(task("40", "before", "-p tcp --dport 10 -j ACCEPT"))
	p.want("before", ports(), "20 40 10 30")
	p.apply(task("20", "after", "-p tcp -m tcp --dport 10 -j ACCEPT"))
	p.want("moved behind", ports(), "40 10 20 30")
	p.want("is last", p.apply(task("30", "position", "last")), "")
	p.want("no longer last", p.apply(task("10", "position", "last")), "move the rule in INPUT to place 4")
	p.want("moved to the end", ports(), "40 20 30 10")
	p.want("anywhere will do", p.apply(task("20")), "")
	p.want("anywhere before will do", p.apply(task("40", "before", "-p tcp --dport 30 -j ACCEPT")), "")

	_, err := p.check(task("50", "after", "-p tcp --dport 99 -j ACCEPT"))
	if err == nil || !strings.Contains(err.Error(), "no rule") {
		t.Errorf("missing anchor: %v", err)
	}
	p.apply(map[string]any{"chain": "INPUT", "jump": "DROP", "persist": "none"})
	_, err = p.check(task("50", "position", "last"))
	if err == nil || !strings.Contains(err.Error(), "no effect") {
		t.Errorf("last behind DROP: %v", err)
	}
	p.sh("iptables -F; iptables -A INPUT -j REJECT --reject-with icmp-host-prohibited")
	reject := map[string]any{"chain": "INPUT", "protocol": "tcp", "destination_port": "3307", "jump": "REJECT", "persist": "none"}
	p.want("a REJECT ahead of the last one", p.apply(reject), "add the rule to INPUT at place 1")
	p.want("ahead of that REJECT", p.apply(task("3307", "source", "10.0.0.2")), "add the rule to INPUT at place 1")
	p.want("the REJECT stays", p.apply(reject), "")
	// A rule need not be for everything to leave another nothing to decide, nor be in the chain itself.
	p.sh("iptables -F; iptables -A INPUT -p tcp -j REJECT; iptables -N END; iptables -A END -j REJECT")
	p.apply(task("60"))
	p.want("ahead of a narrower REJECT", p.sh("iptables-save | grep -e '-A INPUT' | head -n 1 | grep -c 60"), "1")
	p.sh("iptables -F INPUT; iptables -A INPUT -j END; iptables -A INPUT -p tcp --dport 70 -j ACCEPT")
	p.want("ahead of a chain that rejects", p.apply(task("70")), "move the rule in INPUT to place 1")
}

func TestIptablesChainsAndPolicies(t *testing.T) {
	p := newPacketFilter(t)
	p.want("new chain", p.apply(map[string]any{"chain": "GRID", "rule": "-s 10.0.0.0/8 -j RETURN"}),
		"create chain GRID, add the rule to GRID at place 1; rules kept in /etc/iptables/rules.v4")
	p.want("bare chain", p.apply(map[string]any{"chain": "SPARE", "table": "nat"}), "create chain nat SPARE; rules kept in /etc/iptables/rules.v4")
	p.want("policy with rule", p.apply(map[string]any{"chain": "FORWARD", "policy": "DROP", "rule": "-i lo -j ACCEPT"}),
		"add the rule to FORWARD at place 1, set the policy of FORWARD; rules kept in /etc/iptables/rules.v4")
	p.want("nat", p.apply(map[string]any{"table": "nat", "chain": "PREROUTING", "protocol": "tcp", "destination_port": "80", "jump": "DNAT", "to_destination": "10.0.0.9:8080"}),
		"add the rule to nat PREROUTING at place 1; rules kept in /etc/iptables/rules.v4")
	p.want("masquerade", p.apply(map[string]any{"table": "nat", "chain": "POSTROUTING", "out_interface": "!eth0", "jump": "MASQUERADE"}),
		"add the rule to nat POSTROUTING at place 1; rules kept in /etc/iptables/rules.v4")
	p.want("flush", p.apply(map[string]any{"chain": "GRID", "flush": true}), "remove all rules from GRID; rules kept in /etc/iptables/rules.v4")
	p.want("flush again", p.apply(map[string]any{"chain": "GRID", "flush": true}), "")
	p.want("chain absent", p.apply(map[string]any{"chain": "GRID", "state": "absent"}), "remove chain GRID; rules kept in /etc/iptables/rules.v4")
	p.want("flush the table", p.apply(map[string]any{"table": "nat", "flush": true}),
		"remove all rules from nat PREROUTING; remove all rules from nat POSTROUTING; rules kept in /etc/iptables/rules.v4")
	// A chain that is in use cannot go: nothing is done at all.
	p.sh("iptables -N USED; iptables -A INPUT -j USED; iptables -A USED -j ACCEPT")
	m := All()["iptables"]()
	if err := module.Decode(m, map[string]any{"chain": "USED", "state": "absent"}); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Check(t.Context(), p.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), p.Host, plan); err == nil {
		t.Error("a chain in use was removed")
	}
	p.want("rules of the chain in use", p.rules("USED"), "-j ACCEPT")
}

// Every kind of rule part comes back from the kernel as it was declared.
func TestIptablesMatchers(t *testing.T) {
	p := newPacketFilter(t)
	for _, args := range []map[string]any{
		{"source": "!10.0.0.0/8", "in_interface": "eth+", "jump": "DROP"},
		{"protocol": "tcp", "destination_ports": []any{"80", 443, "8000:8010"}, "ctstate": []any{"NEW", "ESTABLISHED"}, "jump": "ACCEPT"},
		{"protocol": "tcp", "syn": true, "limit": "90/minute", "limit_burst": 10, "jump": "ACCEPT"},
		{"protocol": "icmp", "icmp_type": "echo-request", "jump": "ACCEPT", "comment": `it's "quoted" \ here`},
		{"jump": "LOG", "log_prefix": "denied: ", "log_level": "info", "limit": "7/hour"},
		{"protocol": "tcp", "source_port": "!1024:", "reject_with": "tcp-reset"},
		{"chain": "OUTPUT", "uid_owner": "daemon", "gid_owner": "daemon", "jump": "DROP"},
		{"table": "nat", "chain": "PREROUTING", "protocol": "tcp", "destination_port": "http", "jump": "REDIRECT", "to_ports": "8080"},
		{"table": "nat", "chain": "POSTROUTING", "source": "10.1.0.0/255.255.0.0", "jump": "SNAT", "to_source": "192.0.2.1"},
		{"source": "2001:db8::1/64", "protocol": "tcp", "destination_port": "ssh", "jump": "ACCEPT"},
		{"protocol": "ipv6-icmp", "icmp_type": "neighbour-solicitation", "jump": "ACCEPT"},
		{"ip_version": "both", "protocol": "udp", "destination_port": "123", "jump": "REJECT"},
		{"rule": "-p tcp -m tcp --dport 25 -m recent --name smtp --rcheck --seconds 60 --hitcount 4 -j DROP"},
		{"rule": "-p tcp --dport 26 -m connlimit --connlimit-above 4 -j DROP"},
		{"rule": "-m mark --mark 1/0xff -j ACCEPT"},
		{"table": "mangle", "chain": "OUTPUT", "rule": "-j MARK --set-mark 16"},
		{"rule": "-m addrtype --dst-type BROADCAST -j DROP"},
		{"rule": "-m iprange --src-range 10.0.0.1-10.0.0.9 -m mac --mac-source 00:11:22:33:44:55 -j ACCEPT"},
		{"table": "mangle", "chain": "POSTROUTING", "rule": "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"},
		{"protocol": "!tcp", "destination": "192.0.2.7/32", "match": []any{"conntrack"}, "ctstate": []any{"INVALID"}, "jump": "DROP"},
	} {
		if args["chain"] == nil {
			args["chain"] = "INPUT"
		}
		if p.apply(args) == "" {
			t.Errorf("%v: nothing changed", args)
		}
		args["state"] = "absent"
		if p.apply(args) == "" {
			t.Errorf("%v: nothing was removed", args)
		}
	}
	p.want("rules left", p.sh("cat /etc/iptables/rules.v* | grep -c -e ^-A || true"), "0")
}

// A file that iptables-restore does not accept never replaces the old one, and the live rules stay as they are.
func TestIptablesBadFile(t *testing.T) {
	p := newPacketFilter(t)
	p.sh("printf '*filter\\n-A INPUT --nonsense -j DROP\\nCOMMIT\\n' >/etc/iptables/rules.v4")
	m := All()["iptables"]()
	if err := module.Decode(m, map[string]any{"chain": "INPUT", "rule": "-i lo -j ACCEPT"}); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Check(t.Context(), p.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), p.Host, plan); err == nil || !strings.Contains(err.Error(), "not accepted") {
		t.Errorf("error is %v", err)
	}
	p.want("rules", p.rules("INPUT"), "")
	p.want("files", p.sh("ls /etc/iptables"), "rules.v4")

	// MAN06's own fragment, with its continued line.
	p.sh(`printf '%s\n' '*filter' '-A INPUT -s 10.0.0.2 -m state --state NEW -m tcp -p tcp \' '--dport 3307 -j ACCEPT' COMMIT >/etc/iptables/rules.v4`)
	if _, err := m.Check(t.Context(), p.Host); err == nil || !strings.Contains(err.Error(), "rules.v4: line 2: iptables-restore does not know continued lines") {
		t.Errorf("error is %v", err)
	}
	p.sh("rm /etc/iptables/rules.v4 /usr/share/netfilter-persistent/plugins.d/*")
	if _, err := m.Check(t.Context(), p.Host); err == nil || !strings.Contains(err.Error(), "install iptables-persistent") {
		t.Errorf("error is %v", err)
	}
}

// Rules that another program changes between Check and Apply are looked at again.
func TestIptablesRace(t *testing.T) {
	p := newPacketFilter(t)
	p.sh("iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -j DROP")
	m := All()["iptables"]()
	if err := module.Decode(m, map[string]any{"chain": "INPUT", "rule": "-p tcp --dport 1 -j ACCEPT", "persist": "none"}); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Check(t.Context(), p.Host)
	if err != nil {
		t.Fatal(err)
	}
	p.sh("iptables -I INPUT -s 10.0.0.1 -j DROP")
	if _, err := m.Apply(t.Context(), p.Host, plan); err != nil {
		t.Fatal(err)
	}
	p.want("rules", p.rules("INPUT"), "-s 10.0.0.1/32 -j DROP\n-i lo -j ACCEPT\n-p tcp -m tcp --dport 1 -j ACCEPT\n-j DROP")
}
