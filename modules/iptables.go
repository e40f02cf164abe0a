package modules

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("iptables", func() module.Module {
		return &iptables{Table: "filter", State: "present", Position: "before_reject", Persist: "auto"}
	})
}

// iptables sees to it that a chain of the packet filter holds a rule, once, at a place where it takes effect, both now and after
// the next boot.
//
// Rules are compared by what they say, not by how they are written: -m state and -m conntrack, 10.0.0.1 and 10.0.0.1/32,
// ssh and 22, options in any order. A rule that is there twice is left once; one that is behind a rule which leaves it nothing to
// decide (the REJECT at the end of the chain, say) is moved ahead of it. A change of the running rules is one transaction:
// all of it or none, with other rules and their counters as they were.
//
// The file that is read at boot (persist) is edited in the same way. Its other lines stay as they are: rules that
// are only live, such as those of fail2ban or docker, are not written to it. Where there is no such file yet, all live rules are
// saved, as the distribution's own save command does. The file is tested by iptables-restore before it replaces the old one.
//
// Without any part of a rule, the task is about the chain as such: that it exists (or not), its policy, or that it is empty.
//
//	tasks:
//	  - name: the slave reaches the tunnel, ahead of the REJECT that ends the chain
//	    iptables: {chain: INPUT, protocol: tcp, source: 192.0.2.7, destination_port: 3307, ctstate: [NEW], jump: ACCEPT, comment: MAN06 replication}
//	  - name: nobody reaches the database around the tunnel, neither by IPv4 nor by IPv6
//	    iptables: {chain: INPUT, ip_version: both, protocol: tcp, in_interface: '!lo', destination_port: 3306, jump: REJECT}
type iptables struct {
	// Table of the chain.
	Table string `yaml:"table" choices:"filter,nat,mangle,raw,security"`
	// Chain, such as INPUT. One that does not exist is made for a rule. Only flush goes without: then it means every chain of the table.
	Chain string `yaml:"chain"`
	// Whether the rule, or the chain if no rule is given, is to be there.
	State string `yaml:"state" choices:"present,absent"`
	// IP version: by default what the rule's addresses and types say, or else ipv4.
	IPVersion string `yaml:"ip_version" choices:"ipv4,ipv6,both"`
	// The whole rule as arguments of iptables, without -A and chain, in place of the arguments below.
	Rule string `yaml:"rule"`
	// Protocol. As with most of a rule's parts, a leading ! negates it.
	Protocol string `yaml:"protocol"`
	// Source address or network.
	Source string `yaml:"source"`
	// Destination address or network.
	Destination string `yaml:"destination"`
	// Interface that the packet came in by; a final + stands for any ending.
	InInterface string `yaml:"in_interface"`
	// Interface that the packet leaves by.
	OutInterface string `yaml:"out_interface"`
	// Source port, or range as 1024:65535.
	SourcePort string `yaml:"source_port"`
	// Destination port, or range.
	DestinationPort string `yaml:"destination_port"`
	// Destination ports and ranges, up to 15. A ! before the first negates them all, as in ctstate.
	DestinationPorts []string `yaml:"destination_ports"`
	// States of the connection: NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED.
	CTState []string `yaml:"ctstate"`
	// Match only the first packet of a TCP connection.
	Syn bool `yaml:"syn"`
	// ICMP type by name or number; for IPv6 those of ICMPv6.
	ICMPType string `yaml:"icmp_type"`
	// Rate up to which the rule matches, such as 3/min.
	Limit string `yaml:"limit"`
	// Packets that match before limit counts.
	LimitBurst int `yaml:"limit_burst"`
	// User, by name or number, whose process sent the packet.
	UIDOwner string `yaml:"uid_owner"`
	// Group, by name or number, whose process sent the packet.
	GIDOwner string `yaml:"gid_owner"`
	// Further match modules by name.
	Match []string `yaml:"match"`
	// Comment kept with the rule.
	Comment string `yaml:"comment"`
	// Target: ACCEPT, DROP, REJECT, LOG, RETURN, DNAT, SNAT, MASQUERADE, REDIRECT or a chain.
	Jump string `yaml:"jump"`
	// Chain to go on in without coming back.
	Goto string `yaml:"goto"`
	// What REJECT answers, such as icmp-host-prohibited or tcp-reset. Sets jump to REJECT.
	RejectWith string `yaml:"reject_with"`
	// Address, with :port or not, that DNAT sends to.
	ToDestination string `yaml:"to_destination"`
	// Address that SNAT sends from.
	ToSource string `yaml:"to_source"`
	// Port or range that REDIRECT or MASQUERADE uses.
	ToPorts string `yaml:"to_ports"`
	// Text that LOG puts before its line.
	LogPrefix string `yaml:"log_prefix"`
	// Level of LOG, by name or number.
	LogLevel string `yaml:"log_level"`
	// Place of the rule: before_reject is anywhere ahead of the first rule that would leave it nothing to decide, and the end of the
	// chain if there is none; first and last are the ends. A rule that is elsewhere is moved.
	Position string `yaml:"position" choices:"before_reject,first,last"`
	// Another rule of the chain, as arguments of iptables, that this one is to come before, in place of position.
	Before string `yaml:"before"`
	// Another rule of the chain that this one is to come after.
	After string `yaml:"after"`
	// Policy of a built-in chain, set after everything else.
	Policy string `yaml:"policy" choices:"ACCEPT,DROP"`
	// Remove all rules of the chain.
	Flush bool `yaml:"flush"`
	// File that is read at boot: auto is the one of the distribution's iptables-persistent or iptables-services and an
	// error if neither is there, none leaves the rule to be lost at boot, a path names the file.
	Persist string `yaml:"persist"`
}

var (
	iptChainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,28}$`)
	// Fields of a rule in the order in which they become arguments.
	iptArguments = []struct {
		name, option string
		get          func(*iptables) string
	}{
		{"protocol", "-p", func(m *iptables) string { return m.Protocol }},
		{"source", "-s", func(m *iptables) string { return m.Source }},
		{"destination", "-d", func(m *iptables) string { return m.Destination }},
		{"in_interface", "-i", func(m *iptables) string { return m.InInterface }},
		{"out_interface", "-o", func(m *iptables) string { return m.OutInterface }},
		{"source_port", "--sport", func(m *iptables) string { return m.SourcePort }},
		{"destination_port", "--dport", func(m *iptables) string { return m.DestinationPort }},
		{"destination_ports", "--dports", func(m *iptables) string { return strings.Join(m.DestinationPorts, ",") }},
		{"ctstate", "--ctstate", func(m *iptables) string { return strings.Join(m.CTState, ",") }},
		{"icmp_type", "--icmp-type", func(m *iptables) string { return m.ICMPType }},
		{"limit", "--limit", func(m *iptables) string { return m.Limit }},
		{"limit_burst", "--limit-burst", func(m *iptables) string { return number(m.LimitBurst) }},
		{"uid_owner", "--uid-owner", func(m *iptables) string { return m.UIDOwner }},
		{"gid_owner", "--gid-owner", func(m *iptables) string { return m.GIDOwner }},
		{"comment", "--comment", func(m *iptables) string { return m.Comment }},
		{"jump", "-j", func(m *iptables) string { return m.Jump }},
		{"goto", "-g", func(m *iptables) string { return m.Goto }},
		{"reject_with", "--reject-with", func(m *iptables) string { return m.RejectWith }},
		{"to_destination", "--to-destination", func(m *iptables) string { return m.ToDestination }},
		{"to_source", "--to-source", func(m *iptables) string { return m.ToSource }},
		{"to_ports", "--to-ports", func(m *iptables) string { return m.ToPorts }},
		{"log_prefix", "--log-prefix", func(m *iptables) string { return m.LogPrefix }},
		{"log_level", "--log-level", func(m *iptables) string { return m.LogLevel }},
	}
	// Those that may not be negated: their text may begin with a !.
	iptPlain = []string{"limit", "limit_burst", "comment", "jump", "goto", "reject_with", "to_destination", "to_source", "to_ports", "log_prefix", "log_level"}
)

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// tokens are the arguments of iptables that the fields say.
func (m *iptables) tokens(v6 bool) []iptToken {
	var tokens []iptToken
	option := func(name string) { tokens = append(tokens, iptToken{text: name}) }
	for _, a := range iptArguments {
		value := a.get(m)
		if a.name == "jump" {
			// Everything that is matched comes before the target.
			for _, name := range m.Match {
				option("-m")
				tokens = append(tokens, iptToken{name, true})
			}
			if m.Syn {
				option("--syn")
			}
			if value == "" && m.RejectWith != "" {
				value = "REJECT"
			}
		}
		if value == "" {
			continue
		}
		if rest, negated := strings.CutPrefix(value, "!"); negated && !slices.Contains(iptPlain, a.name) {
			option("!")
			value = strings.TrimSpace(rest)
		}
		if a.name == "icmp_type" && v6 {
			option("--icmpv6-type")
		} else {
			option(a.option)
		}
		tokens = append(tokens, iptToken{value, true})
	}
	return tokens
}

func (m *iptables) hasRule() bool { return m.Rule != "" || len(m.tokens(false)) > 0 }

// parsed is the declared rule for one IP version.
func (m *iptables) parsed(v6 bool) (iptRule, error) {
	if m.Rule != "" {
		return parseIptRule(m.Rule, v6)
	}
	return iptRuleOf(m.tokens(v6), v6)
}

// versions are the IP versions that the task is for: "4", "6" or both.
func (m *iptables) versions() []string {
	switch m.IPVersion {
	case "ipv4":
		return []string{"4"}
	case "ipv6":
		return []string{"6"}
	case "both":
		return []string{"4", "6"}
	}
	texts := []string{m.Source, m.Destination}
	if tokens, err := iptTokens(m.Rule); err == nil {
		for i, t := range tokens {
			if t.text == "-p" || t.text == "--protocol" || slices.Contains([]string{"-s", "-d"}, iptNames[t.text]) || t.text == "-s" || t.text == "-d" {
				for _, next := range tokens[i+1 : min(i+3, len(tokens))] {
					texts = append(texts, next.text)
				}
			}
		}
	}
	for _, text := range texts {
		address, _, _ := strings.Cut(strings.TrimLeft(text, "! "), "/")
		if a, err := netip.ParseAddr(address); err == nil && a.Is6() {
			return []string{"6"}
		}
	}
	switch protocol := strings.ToLower(m.Protocol); {
	case iptProtocols[protocol] == "ipv6-icmp", protocol == "ipv6-icmp", strings.HasPrefix(m.RejectWith, "icmp6-"), strings.Contains(m.Rule, "icmp6-"), strings.Contains(m.Rule, "icmpv6"):
		return []string{"6"}
	}
	return []string{"4"}
}

// Validate refuses arguments that contradict each other and rules that cannot be meant.
func (m *iptables) Validate() error {
	var errs []error
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	structured := m.tokens(false)
	if m.Rule != "" && len(structured) > 0 {
		refuse("rule", "cannot be given together with parts of a rule", "")
	}
	switch {
	case m.Chain == "" && !m.Flush:
		refuse("chain", "required argument is missing", "")
	case m.Chain != "" && !iptChainName.MatchString(m.Chain):
		refuse("chain", fmt.Sprintf("%q is not the name of a chain", m.Chain), "letters, digits, - _ and ., up to 29")
	}
	builtin := slices.Contains(iptBuiltin[m.Table], m.Chain)
	switch {
	case m.Flush && (m.hasRule() || m.State == "absent"):
		refuse("flush", "goes with neither a rule nor state absent", "")
	case m.Policy != "" && !builtin:
		refuse("policy", "only the built-in chains of the table have one", strings.Join(iptBuiltin[m.Table], ", "))
	case m.Policy != "" && m.State == "absent":
		refuse("policy", "cannot be given with state absent", "")
	case m.State == "absent" && !m.hasRule() && builtin:
		refuse("state", m.Chain+" is built in and cannot be absent", "give the rule that is to go, or flush: true")
	}
	placed := 0
	for _, p := range []bool{m.Position != "before_reject", m.Before != "", m.After != ""} {
		if p {
			placed++
		}
	}
	switch {
	case placed > 1:
		refuse("position", "position, before and after exclude each other", "")
	case placed == 1 && (!m.hasRule() || m.State == "absent"):
		refuse("position", "only a rule that is to be there has a place", "")
	}
	if m.Persist != "auto" && m.Persist != "none" {
		if !strings.HasPrefix(m.Persist, "/") {
			refuse("persist", "must be auto, none or an absolute path", "")
		} else if m.IPVersion == "both" {
			refuse("persist", "one path cannot hold both IP versions", "use two tasks")
		}
	}
	if n := len(m.DestinationPorts); n > 15 {
		refuse("destination_ports", fmt.Sprintf("there are %d, iptables takes 15 at most", n), "use two tasks")
	}
	if len(m.LogPrefix) > 29 {
		refuse("log_prefix", "is longer than 29 characters", "")
	}
	if len(m.Comment) > 255 {
		refuse("comment", "is longer than 255 characters", "")
	}
	for _, a := range iptArguments {
		if strings.ContainsAny(a.get(m), "\n\r\x00") {
			refuse(a.name, "holds more than one line", "")
		}
	}
	if strings.ContainsAny(m.Source+m.Destination, ",") {
		refuse("source", "one address or network for each rule", "use loop")
	}
	if len(errs) > 0 || !m.hasRule() {
		return errors.Join(errs...)
	}
	for _, v := range m.versions() {
		rule, err := m.parsed(v == "6")
		if err != nil {
			refuse(m.blame(err))
			break
		}
		for _, c := range []struct{ arg, text string }{{"before", m.Before}, {"after", m.After}} {
			if c.text == "" {
				continue
			}
			anchor, err := parseIptRule(c.text, v == "6")
			if err != nil {
				refuse(c.arg, err.Error(), "")
			} else if anchor.key() == rule.key() {
				refuse(c.arg, "is the rule itself", "")
			}
		}
	}
	return errors.Join(errs...)
}

// blame names the argument that an error of a rule is about.
func (m *iptables) blame(err error) (arg, msg, hint string) {
	msg = err.Error()
	if m.Rule != "" {
		return "rule", msg, ""
	}
	option, rest, _ := strings.Cut(msg, ": ")
	for _, a := range iptArguments {
		if a.option == option {
			return a.name, rest, ""
		}
	}
	return "", msg, ""
}

// Returns documents the result.
func (m *iptables) Returns() []module.Return {
	return []module.Return{
		{Name: "position", Type: "int", Help: "place of the rule in its chain, from 1; 0 if it is not there"},
		{Name: "rules", Type: "list", Help: "the rules of the chain, as iptables-save prints them; for ip_version both, those of IPv6 follow"},
		{Name: "files", Type: "list", Help: "files that hold the rules for the next boot"},
	}
}

const iptCheckScript = `PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
versions=$1 persist=$2
shift 2
section() { printf '\036%s\n' "$1"; }
has() { command -v "$1" >/dev/null 2>&1; }
boot_file() {
	if [ "$persist" != auto ]; then echo "$persist"; return; fi
	if [ -e /run/firewalld.pid ] || [ -e /var/run/firewalld.pid ]; then echo firewalld; return; fi
	tool=iptables
	[ "$1" = 4 ] || tool=ip6tables
	for plugin in /usr/share/netfilter-persistent/plugins.d/*-ip${1}tables; do
		if [ -e "$plugin" ]; then echo "/etc/iptables/rules.v$1"; return; fi
	done
	if [ -e /etc/init.d/iptables-persistent ]; then echo "/etc/iptables/rules.v$1"; return; fi
	for unit in /etc/init.d/$tool /usr/lib/systemd/system/$tool.service /lib/systemd/system/$tool.service; do
		if [ -e "$unit" ] && [ -d /etc/sysconfig ]; then echo "/etc/sysconfig/$tool"; return; fi
	done
}
for v in $versions; do
	tool=iptables
	[ "$v" = 4 ] || tool=ip6tables
	has $tool-save || { section "missing$v"; continue; }
	section version; $tool --version
	section "live$v"; $tool-save 2>&1 || section "failed$v"
	[ "$persist" = none ] && continue
	file=$(boot_file "$v")
	section "boot$v"; echo "$file"
	case $file in /*)
		if [ -e "$file" ]; then section "file$v"; cat "$file" || exit 1; fi ;;
	esac
done
for name; do
	case $name in
	u:*) id=$(id -u "${name#u:}" 2>/dev/null) ;;
	*) id=$( (getent group "${name#g:}" || grep "^${name#g:}:" /etc/group) 2>/dev/null | head -n 1 | cut -d: -f3) ;;
	esac
	section "owner $name"; echo "$id"
done
`

// iptPlan is what Apply does for one IP version.
type iptPlan struct {
	version  string
	expect   string // the rules that Check saw in the chain, or in the table if all chains are flushed
	commands string // for iptables-restore --noflush, "" if the live rules are right
	after    string // all live rules as iptables-save prints them then
	file     string // "" if the file is right
	content  string
}

// Check reads the live rules and those kept for the next boot.
func (m *iptables) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	versions := m.versions()
	args := []string{strings.Join(versions, " "), m.Persist}
	if m.hasRule() {
		rule, err := m.parsed(versions[0] == "6")
		if err != nil {
			return module.Plan{}, err
		}
		for _, name := range rule.owners("--uid-owner") {
			args = append(args, "u:"+*name)
		}
		for _, name := range rule.owners("--gid-owner") {
			args = append(args, "g:"+*name)
		}
	}
	out, err := hostScript(ctx, host, iptCheckScript, args...)
	if err != nil {
		return module.Plan{}, fmt.Errorf("cannot read the packet filter: %w", err)
	}
	sections := iptSections(string(out.Stdout))
	if doubt := inDoubt(host, rulesKind, versions...); doubt != nil {
		return *doubt, nil
	}
	foreseeRules(host, versions, sections)
	plan := module.Plan{Values: module.Values{"position": 0, "rules": []any{}, "files": []any{}}}
	var todo []iptPlan
	for _, v := range versions {
		one, err := m.checkVersion(&plan, v, sections)
		if err != nil {
			return module.Plan{}, err
		}
		if one.commands != "" || one.file != "" {
			todo = append(todo, one)
		}
		if one.commands != "" {
			plan.Effects = append(plan.Effects, module.Effect{Kind: rulesKind, Name: v, Value: one.after})
		}
		if one.file != "" {
			plan.Effects = append(plan.Effects, fileEffect(one.file, pathEffect{kind: "file", content: []byte(one.content), known: true}))
		}
	}
	plan.State = iptState{todo, iptVersion(sections["version"])}
	return plan, nil
}

// foreseeRules puts the rules that earlier tasks of this check will have made in the place of those that are there now.
func foreseeRules(host *module.Host, versions []string, sections map[string]string) {
	for _, v := range versions {
		if e, pending := host.Effects.Last(rulesKind, v); pending {
			sections["live"+v] = e.Value.(string)
		}
		if e, _, pending := pendingPath(host, strings.TrimSpace(sections["boot"+v])); pending && e.kind == "file" && e.known {
			sections["file"+v] = string(e.content)
		}
	}
}

type iptState struct {
	todo    []iptPlan
	version [3]int
}

func iptSections(text string) map[string]string {
	sections := map[string]string{}
	for part := range strings.SplitSeq(text, "\x1e") {
		name, body, _ := strings.Cut(part, "\n")
		sections[name] = body
	}
	return sections
}

var iptVersionText = regexp.MustCompile(`v(\d+)\.(\d+)(?:\.(\d+))?`)

// iptVersion reads the output of iptables --version.
func iptVersion(text string) (version [3]int) {
	if found := iptVersionText.FindStringSubmatch(text); found != nil {
		for i := range version {
			version[i], _ = strconv.Atoi(found[i+1])
		}
	}
	return version
}

func iptOlder(version [3]int, than ...int) bool { return slices.Compare(version[:], than) < 0 }

// checkVersion finds what to do for one IP version, and adds it to the plan.
func (m *iptables) checkVersion(plan *module.Plan, v string, sections map[string]string) (iptPlan, error) {
	do := iptPlan{version: v}
	tool := map[string]string{"4": "iptables", "6": "ip6tables"}[v]
	if _, missing := sections["missing"+v]; missing {
		return do, fmt.Errorf("no %s on the host", tool)
	}
	text := sections["live"+v]
	if _, failed := sections["failed"+v]; failed {
		return do, fmt.Errorf("cannot read the packet filter: %s-save: %s", tool, strings.TrimSpace(text))
	}
	if strings.Contains(text, "able `"+m.Table+"' is incompatible") {
		return do, fmt.Errorf("table %s was made with nft and %s cannot show it", m.Table, tool)
	}
	live, err := parseIptSave(text, v == "6")
	if err != nil {
		return do, fmt.Errorf("cannot read the packet filter: %s-save: %w", tool, err)
	}
	var rule *iptRule
	if m.hasRule() {
		if rule, err = m.resolved(v == "6", sections); err != nil {
			return do, err
		}
	}
	old := iptOlder(iptVersion(sections["version"]), 1, 4, 3)
	chains := []string{m.Chain}
	if m.Chain == "" {
		chains = live.chainNames(m.Table)
	}
	var expect, commands strings.Builder
	edits := map[string]iptEdit{}
	for _, name := range chains {
		edit, err := m.edit(live, name, rule, false)
		if err != nil {
			return do, err
		}
		chain, _ := live.get(m.Table, name)
		edits[name] = edit
		expect.WriteString(chain.list(name, iptEdit{}, live.lines))
		for _, line := range edit.commands(name, old) {
			commands.WriteString(line + "\n")
		}
		after := chain.edited(name, edit, live.lines)
		if !edit.empty() {
			before := chain.list(name, edit, live.lines)
			plan.Changes = append(plan.Changes, module.Change{What: m.describe(tool, name, edit), Before: before, After: after})
		}
		rules, _ := plan.Values["rules"].([]any)
		for line := range strings.Lines(after) {
			if strings.HasPrefix(line, "-A ") {
				rules = append(rules, strings.TrimSuffix(line, "\n"))
			}
		}
		plan.Values["rules"] = rules
		if edit.position > 0 {
			plan.Values["position"] = edit.position
		}
	}
	if commands.Len() > 0 {
		do.expect = expect.String()
		do.commands = "*" + m.Table + "\n" + commands.String() + "COMMIT\n"
		if do.after, err = m.applied(text, edits, old, v == "6"); err != nil {
			return do, err
		}
	}
	if m.Persist == "none" {
		return do, nil
	}
	return do, m.checkFile(plan, &do, live, edits, rule, old, sections)
}

// applied is the text of all rules after some edits.
func (m *iptables) applied(text string, edits map[string]iptEdit, old, v6 bool) (string, error) {
	for _, name := range sortedKeys(edits) {
		rules, err := parseIptSave(text, v6)
		if err != nil {
			return "", err
		}
		text = rules.apply(m.Table, name, edits[name], old)
	}
	return text, nil
}

// resolved is the declared rule with the numbers of the users that it names.
func (m *iptables) resolved(v6 bool, sections map[string]string) (*iptRule, error) {
	rule, err := m.parsed(v6)
	if err != nil {
		return nil, err
	}
	for _, kind := range []struct{ option, mark, word string }{{"--uid-owner", "u:", "user"}, {"--gid-owner", "g:", "group"}} {
		for _, name := range rule.owners(kind.option) {
			id := strings.TrimSpace(sections["owner "+kind.mark+*name])
			if id == "" {
				return nil, fmt.Errorf("no %s %q", kind.word, *name)
			}
			*name = id
		}
	}
	return &rule, nil
}

// chainNames are the chains of a table that a flush empties.
func (s *iptSave) chainNames(table string) []string {
	names := slices.Clone(iptBuiltin[table])
	if t := s.tables[table]; t != nil {
		for _, name := range sortedKeys(t.chains) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// checkFile finds how the file that is read at boot differs from what was declared.
func (m *iptables) checkFile(plan *module.Plan, do *iptPlan, live *iptSave, edits map[string]iptEdit, rule *iptRule, old bool, sections map[string]string) error {
	file := strings.TrimSpace(sections["boot"+do.version])
	switch file {
	case "":
		return errors.New("nothing on the host loads iptables rules at boot: install iptables-persistent (Debian, Ubuntu) or iptables-services " +
			"(RHEL family), or say persist: none or a path")
	case "firewalld":
		return errors.New("firewalld manages the packet filter and drops rules that it does not know: use it, or say persist: none or a path")
	}
	before, exists := sections["file"+do.version]
	var after string
	if !exists {
		if m.State == "absent" || m.Flush {
			return nil // what is not there is not loaded
		}
		var err error
		if after, err = m.applied(live.fresh(), edits, old, do.version == "6"); err != nil {
			return err
		}
	} else {
		saved, err := parseIptSave(before, do.version == "6")
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", file, err)
		}
		after = before
		chains := []string{m.Chain}
		if m.Chain == "" {
			chains = saved.chainNames(m.Table)
		}
		for _, name := range chains {
			edit, err := m.edit(saved, name, rule, true)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if edit.empty() {
				continue
			}
			after = saved.apply(m.Table, name, edit, old)
			if saved, err = parseIptSave(after, do.version == "6"); err != nil {
				return fmt.Errorf("cannot edit %s: %w", file, err)
			}
		}
	}
	plan.Values["files"] = append(plan.Values["files"].([]any), file)
	if !exists || after != before {
		plan.Changes = append(plan.Changes, module.Change{What: "rules kept in " + file, Before: before, After: after})
		do.file, do.content = file, after
	}
	return nil
}

func (m *iptables) describe(tool, chain string, e iptEdit) string {
	where := chain
	if m.Table != "filter" {
		where = m.Table + " " + chain
	}
	if tool == "ip6tables" {
		where += " (IPv6)"
	}
	var parts []string
	switch {
	case e.gone:
		parts = append(parts, "remove chain "+where)
	case e.newChain:
		parts = append(parts, "create chain "+where)
	}
	switch {
	case m.Flush && len(e.drop) > 0:
		parts = append(parts, "remove all rules from "+where)
	case e.insert >= 0 && len(e.drop) > 0:
		parts = append(parts, fmt.Sprintf("move the rule in %s to place %d", where, e.position))
	case e.insert >= 0:
		parts = append(parts, fmt.Sprintf("add the rule to %s at place %d", where, e.position))
	case len(e.drop) > 0 && e.position > 0:
		parts = append(parts, "remove duplicates of the rule from "+where)
	case len(e.drop) > 0:
		parts = append(parts, "remove the rule from "+where)
	}
	if e.policy != "" {
		parts = append(parts, "set the policy of "+where)
	}
	return strings.Join(parts, ", ")
}

// edit finds what is to be done to a chain of a rule set. In a file, a rule that before or after names may be missing.
func (m *iptables) edit(s *iptSave, name string, rule *iptRule, inFile bool) (iptEdit, error) {
	e := iptEdit{insert: -1, rule: rule}
	chain, exists := s.get(m.Table, name)
	if m.Policy != "" && chain.policy != m.Policy {
		e.policy = m.Policy
	}
	switch {
	case m.Flush:
		for i := range chain.rules {
			e.drop = append(e.drop, i)
		}
	case rule == nil:
		e.newChain = m.State == "present" && !exists
		e.gone = m.State == "absent" && exists
	case m.State == "absent":
		for i := range chain.rules {
			if chain.rules[i].key() == rule.key() {
				e.drop = append(e.drop, i)
			}
		}
	default:
		e.newChain = !exists
		if err := m.place(s, chain, &e, inFile); err != nil {
			return e, err
		}
	}
	return e, nil
}

// place finds where the rule has to be, and which of its copies go.
func (m *iptables) place(s *iptSave, chain *iptChain, e *iptEdit, inFile bool) error {
	// others is the chain without the rule. A place is an index in it.
	var others []iptRule
	var copies, copyPlaces, othersAt []int
	key := e.rule.key()
	for i := range chain.rules {
		if chain.rules[i].key() == key {
			copies = append(copies, i)
			copyPlaces = append(copyPlaces, len(others))
		} else {
			others = append(others, chain.rules[i])
			othersAt = append(othersAt, i)
		}
	}
	lowest, highest, wanted, err := m.reach(s, others, e.rule, inFile)
	if err != nil {
		return err
	}
	keep := slices.IndexFunc(copyPlaces, func(p int) bool { return p >= lowest && p <= highest })
	if keep < 0 {
		e.insert, e.position = len(chain.rules), wanted+1
		if wanted < len(others) {
			e.insert = othersAt[wanted]
		}
	} else {
		e.position = copyPlaces[keep] + 1
	}
	for i, at := range copies {
		if i != keep {
			e.drop = append(e.drop, at)
		}
	}
	return nil
}

// reach gives the places where the rule may be, and the one where it is put if it is at none of them.
func (m *iptables) reach(s *iptSave, others []iptRule, rule *iptRule, inFile bool) (lowest, highest, wanted int, err error) {
	shadow := s.firstShadow(m.Table, others, rule)
	anchor := -1
	if text := m.Before + m.After; text != "" {
		want, err := parseIptRule(text, rule.v6)
		if err != nil {
			return 0, 0, 0, err
		}
		anchor = slices.IndexFunc(others, func(r iptRule) bool { return r.key() == want.key() })
		if anchor < 0 && !inFile {
			return 0, 0, 0, fmt.Errorf("no rule %q in chain %s", want.print(false), m.Chain)
		}
	}
	useless := func() error {
		return fmt.Errorf("the rule would have no effect there: rule %d of chain %s (%s) leaves it nothing to decide", shadow+1, m.Chain, others[shadow].print(false))
	}
	switch {
	case m.Position == "first":
		return 0, 0, 0, nil
	case m.Position == "last":
		if shadow < len(others) {
			return 0, 0, 0, useless()
		}
		return len(others), len(others), len(others), nil
	case m.Before != "" && anchor >= 0:
		return 0, min(anchor, shadow), min(anchor, shadow), nil
	case m.After != "" && anchor >= 0:
		if shadow <= anchor {
			return 0, 0, 0, useless()
		}
		return anchor + 1, shadow, anchor + 1, nil
	}
	return 0, shadow, shadow, nil
}

const iptApplyScript = `PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
table=$1 pattern=$2 wait=$3
shift 3
tmp=
trap 'rm -f "$tmp"' EXIT
trap 'exit 130' HUP INT TERM
attempt() { # an older restore does not wait while another program holds the lock: it exits 4
	n=0
	while :; do
		printf '%s' "$input" | $tool-restore $wait --noflush
		code=$?
		[ $code = 4 ] && [ -z "$wait" ] && [ $n -lt 15 ] || return $code
		n=$((n + 1))
		sleep 1
	done
}
while [ $# -gt 0 ]; do
	tool=iptables
	[ "$1" = 4 ] || tool=ip6tables
	expect=$2 input=$3 file=$4 content=$5
	shift 5
	if [ -n "$file" ]; then
		if [ -L "$file" ]; then file=$(readlink -f "$file"); fi
		tmp=$(mktemp "$file.XXXXXX") || exit 1
		if [ -e "$file" ]; then cp -p "$file" "$tmp" || exit 1; fi
		printf '%s' "$content" >"$tmp" || exit 1
		$tool-restore --test <"$tmp" || { echo "the new $file is not accepted by $tool-restore" >&2; exit 1; }
	fi
	if [ -n "$input" ]; then
		now=$($tool-save 2>/dev/null | sed -n "/^\*$table\$/,/^COMMIT/p" | sed -n "s/^\(\[[0-9:]*\] \)*\($pattern\)/\2/p")
		[ "$now" = "$expect" ] || { echo "the rules changed since they were read" >&2; exit 75; }
		attempt || exit 1
	fi
	if [ -n "$file" ]; then
		mv -f "$tmp" "$file" || exit 1
		tmp=
		if command -v restorecon >/dev/null 2>&1; then restorecon "$file" >/dev/null 2>&1; fi
	fi
done
exit 0
`

// Apply changes the live rules in one transaction and then replaces the file.
func (m *iptables) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	for try := 1; ; try++ {
		state, _ := plan.State.(iptState)
		pattern := "-A "
		if m.Chain != "" {
			pattern += strings.ReplaceAll(m.Chain, ".", "[.]") + " "
		}
		wait := ""
		if !iptOlder(state.version, 1, 6, 2) {
			wait = "--wait=30"
		}
		args := []string{m.Table, pattern, wait}
		for _, one := range state.todo {
			args = append(args, one.version, strings.TrimSuffix(one.expect, "\n"), one.commands, one.file, one.content)
		}
		// Part of the script's text: a file of rules may be longer than an argument can be.
		words := "set --"
		for _, a := range args {
			words += " " + transport.Quote(a)
		}
		_, err := host.Run(ctx, transport.Cmd{Script: words + "\n" + iptApplyScript})
		var exit *transport.ExitError
		switch {
		case err == nil:
			return plan.Values, nil
		case !errors.As(err, &exit):
			return nil, err
		case exit.Output.Code != 75 || try == 3:
			return nil, fmt.Errorf("cannot change the packet filter: %s", stderrText(err))
		}
		// Another program changed the chain: look again.
		if plan, err = m.Check(ctx, host); err != nil {
			return nil, err
		}
	}
}
