package modules

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// iptRule is a rule of iptables without its chain, in one normal form whatever way it was written: as a person writes it, or as
// any version of iptables-save prints it.
type iptRule struct {
	v6      bool
	base    []iptOption // protocol, addresses, interfaces
	matches []iptMatch  // in the order written
	jump    string
	isGoto  bool
	target  []iptOption
	opaque  string // a rule that could not be read, as it stands
}

// iptMatch is one use of a match module.
type iptMatch struct {
	module  string
	options []iptOption
}

type iptOption struct {
	name   string // with its dashes
	not    bool
	values []string
}

// iptToken is a word of a rule. A quoted one is never an option.
type iptToken struct {
	text   string
	quoted bool
}

// iptTokens splits a rule into words, with the quotes of iptables-save and of a shell.
func iptTokens(text string) ([]iptToken, error) {
	var tokens []iptToken
	var word strings.Builder
	var quote rune
	inWord, wasQuoted, escaped := false, false, false
	for _, r := range text {
		switch {
		case r == '\n' || r == '\r' || r == 0:
			return nil, errors.New("a rule is one line")
		case escaped:
			word.WriteRune(r)
			escaped = false
		case quote != 0 && r == quote:
			quote = 0
		case r == '\\' && quote == '"':
			escaped = true
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, inWord, wasQuoted = r, true, true
		case r == ' ' || r == '\t':
			if inWord {
				tokens = append(tokens, iptToken{word.String(), wasQuoted})
				word.Reset()
			}
			inWord, wasQuoted = false, false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is not closed")
	}
	if inWord {
		tokens = append(tokens, iptToken{word.String(), wasQuoted})
	}
	return tokens, nil
}

// iptNames are other spellings of options.
var iptNames = map[string]string{
	"--protocol": "-p", "--proto": "-p", "--source": "-s", "--src": "-s", "--destination": "-d", "--dst": "-d",
	"--in-interface": "-i", "--out-interface": "-o", "--fragment": "-f", "--match": "-m", "--jump": "-j", "--goto": "-g",
	"--set-counters": "-c", "--source-port": "--sport", "--destination-port": "--dport",
	"--source-ports": "--sports", "--destination-ports": "--dports", "--state": "--ctstate",
	"--to": "--to-destination",
}

// iptBase are the options that belong to no module, in the order in which iptables-save prints them.
var iptBase = []string{"-s", "-d", "-i", "-o", "-p", "-f"}

// iptOwners names the module of the options that may be written without a -m before them, and of those whose number of values
// matters. The module "" is that of the rule's protocol.
var iptOwners = map[string]string{
	"--sport": "", "--dport": "", "--tcp-flags": "", "--syn": "", "--tcp-option": "",
	"--icmp-type": "icmp", "--icmpv6-type": "icmp6", "--sports": "multiport", "--dports": "multiport", "--ports": "multiport",
	"--ctstate": "conntrack", "--comment": "comment", "--limit": "limit", "--limit-burst": "limit",
	"--uid-owner": "owner", "--gid-owner": "owner", "--mac-source": "mac", "--src-range": "iprange", "--dst-range": "iprange",
}

// iptOneValue are options whose value may look like an option.
var iptOneValue = []string{"-p", "-s", "-d", "-i", "-o", "-m", "-j", "-g", "--comment", "--log-prefix", "--string", "--name", "--nflog-prefix"}

var iptProtocols = map[string]string{
	"1": "icmp", "2": "igmp", "4": "ipencap", "6": "tcp", "17": "udp", "41": "ipv6", "47": "gre", "50": "esp", "51": "ah", "58": "ipv6-icmp",
	"89": "ospf", "112": "vrrp", "132": "sctp", "136": "udplite", "icmpv6": "ipv6-icmp", "icmp6": "ipv6-icmp", "0": "all",
}

// iptMatchModule is the module that a protocol's options belong to.
func iptMatchModule(protocol string) string {
	if protocol == "ipv6-icmp" {
		return "icmp6"
	}
	return protocol
}

// parseIptRule reads a rule without -A and chain.
func parseIptRule(text string, v6 bool) (iptRule, error) {
	tokens, err := iptTokens(text)
	if err != nil {
		return iptRule{}, err
	}
	return iptRuleOf(tokens, v6)
}

// iptRuleOf makes a rule of its words. The rule it returns with an error is complete as far as it can be: what could not
// be put into normal form stands as it was written.
func iptRuleOf(tokens []iptToken, v6 bool) (iptRule, error) {
	r := iptRule{v6: v6}
	p := iptParser{rule: &r, tokens: tokens}
	if err := p.parse(); err != nil {
		return iptRule{}, err
	}
	return r, r.normalise()
}

var iptOptionName = regexp.MustCompile(`^(-[A-Za-z]|--[A-Za-z0-9][A-Za-z0-9-]*)$`)

type iptParser struct {
	rule   *iptRule
	tokens []iptToken
}

func (p *iptParser) parse() error {
	for len(p.tokens) > 0 {
		o, err := p.option()
		if err != nil {
			return err
		}
		if err := p.put(o); err != nil {
			return err
		}
	}
	// Options without a -m of their own belong to the module of the protocol, wherever that was named.
	protocol := p.rule.protocol()
	for i := range p.rule.matches {
		m := &p.rule.matches[i]
		if m.module != "" {
			continue
		}
		if protocol == "" || protocol == "all" {
			return fmt.Errorf("%s needs a protocol", m.options[0].name)
		}
		m.module = iptMatchModule(protocol)
	}
	return nil
}

// option takes the next option and its values.
func (p *iptParser) option() (iptOption, error) {
	var o iptOption
	if p.next() == "!" {
		o.not = true
		p.tokens = p.tokens[1:]
	}
	name, value, hasValue := strings.Cut(p.next(), "=")
	if !iptOptionName.MatchString(name) {
		return o, fmt.Errorf("expected an option, got %q", p.text())
	}
	o.name = name
	p.tokens = p.tokens[1:]
	if hasValue {
		p.tokens = slices.Insert(p.tokens, 0, iptToken{value, true})
	}
	if full, ok := iptNames[o.name]; ok && (o.name != "--to" || p.rule.jump != "" && p.rule.jump != "REDIRECT") {
		o.name = full
	}
	if p.rule.jump == "SNAT" && o.name == "--to-destination" {
		o.name = "--to-source"
	}
	if p.next() == "!" { // iptables before 1.4.3 writes it here
		o.not = true
		p.tokens = p.tokens[1:]
	}
	if slices.Contains(iptOneValue, o.name) {
		if len(p.tokens) == 0 {
			return o, fmt.Errorf("%s needs a value", o.name)
		}
		o.values = []string{p.tokens[0].text}
		p.tokens = p.tokens[1:]
		return o, nil
	}
	for len(p.tokens) > 0 && (p.tokens[0].quoted || p.tokens[0].text != "!" && !strings.HasPrefix(p.tokens[0].text, "-")) {
		o.values = append(o.values, p.tokens[0].text)
		p.tokens = p.tokens[1:]
	}
	return o, nil
}

// next is the next word if it may be an option.
func (p *iptParser) next() string {
	if len(p.tokens) == 0 || p.tokens[0].quoted {
		return ""
	}
	return p.tokens[0].text
}

func (p *iptParser) text() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0].text
}

// put adds an option to the part of the rule it belongs to.
func (p *iptParser) put(o iptOption) error {
	r := p.rule
	switch {
	case o.name == "-c":
		return nil
	case o.name == "-m":
		module := strings.ToLower(o.values[0])
		switch module {
		case "":
			return errors.New("-m needs the name of a module")
		case "state":
			module = "conntrack"
		case "icmpv6", "ipv6-icmp":
			module = "icmp6"
		}
		r.matches = append(r.matches, iptMatch{module: module})
		return nil
	case o.name == "-j" || o.name == "-g":
		if r.jump != "" || o.values[0] == "" {
			return errors.New("a rule has one target")
		}
		r.jump, r.isGoto = o.values[0], o.name == "-g"
		return nil
	case slices.Contains(iptBase, o.name):
		if slices.ContainsFunc(r.base, func(b iptOption) bool { return b.name == o.name }) {
			return fmt.Errorf("%s is given twice", o.name)
		}
		r.base = append(r.base, o)
		return nil
	case !strings.HasPrefix(o.name, "--"):
		return fmt.Errorf("%s has no place in a rule", o.name)
	case r.jump != "":
		r.target = append(r.target, o)
		return nil
	}
	owner, known := iptOwners[o.name]
	for i := len(r.matches) - 1; i >= 0; i-- {
		m := &r.matches[i]
		mine := m.module == owner || owner == "" && (m.module == "tcp" || m.module == "udp" || m.module == "sctp" || m.module == "dccp" || m.module == "udplite")
		if known && mine || !known && m.module != "" {
			m.options = append(m.options, o)
			return nil
		}
	}
	if !known {
		return fmt.Errorf("unknown option %s", o.name)
	}
	r.matches = append(r.matches, iptMatch{owner, []iptOption{o}})
	return nil
}

func (r *iptRule) protocol() string {
	for _, o := range r.base {
		if o.name == "-p" && len(o.values) == 1 {
			name := strings.ToLower(o.values[0])
			if full, ok := iptProtocols[name]; ok {
				return full
			}
			return name
		}
	}
	return ""
}

// normalise gives every value its one form and leaves out what says nothing.
func (r *iptRule) normalise() error {
	var errs []error
	fix := func(module string, options []iptOption) []iptOption {
		var kept []iptOption
		for _, o := range options {
			keep, err := r.fix(module, &o)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", o.name, err))
			}
			if keep {
				kept = append(kept, o)
			}
		}
		return kept
	}
	r.base = fix("", r.base)
	slices.SortStableFunc(r.base, func(a, b iptOption) int { return slices.Index(iptBase, a.name) - slices.Index(iptBase, b.name) })
	saysAll := map[string]bool{iptMatchModule(r.protocol()): true} // modules that need no use without options
	for _, m := range r.matches {
		saysAll[m.module] = saysAll[m.module] || len(m.options) > 0
	}
	var matches []iptMatch
	for _, m := range r.matches {
		if len(m.options) == 0 && saysAll[m.module] {
			continue
		}
		m.options = fix(m.module, m.options)
		matches = append(matches, m)
	}
	r.matches = matches
	r.target = fix(r.jump, r.target)
	if r.jump == "REJECT" && !slices.ContainsFunc(r.target, func(o iptOption) bool { return o.name == "--reject-with" }) {
		r.target = append(r.target, iptOption{name: "--reject-with", values: []string{r.rejectDefault()}})
	}
	return errors.Join(errs...)
}

func (r *iptRule) rejectDefault() string {
	if r.v6 {
		return "icmp6-port-unreachable"
	}
	return "icmp-port-unreachable"
}

// fix normalises an option and reports whether it says anything.
func (r *iptRule) fix(module string, o *iptOption) (keep bool, err error) {
	if len(o.values) == 0 {
		switch {
		case o.name == "--rsource" && module == "recent", o.name == "--connlimit-saddr":
			return false, nil // the defaults
		case o.name == "--syn":
			o.name, o.values = "--tcp-flags", []string{"FIN,SYN,RST,ACK", "SYN"}
			return true, nil
		}
		if _, needsOne := iptOwners[o.name]; needsOne {
			return true, errors.New("needs a value")
		}
		return true, nil
	}
	value := &o.values[0]
	switch o.name {
	case "-p":
		*value = r.protocol()
		return *value != "all", nil
	case "-s", "-d":
		err = fixAddress(value, r.v6)
		return o.not || !strings.HasSuffix(*value, "/0"), err
	case "--sport", "--dport":
		*value, err = fixPort(*value)
	case "--sports", "--dports", "--ports":
		list := strings.Split(*value, ",")
		for i := range list {
			one, e := fixPort(list[i])
			list[i], err = one, errors.Join(err, e)
		}
		slices.SortFunc(list, comparePorts)
		*value = strings.Join(slices.Compact(list), ",")
	case "--ctstate":
		list := strings.Split(strings.ToUpper(*value), ",")
		slices.Sort(list)
		*value = strings.Join(slices.Compact(list), ",")
	case "--tcp-flags":
		for i := range o.values {
			o.values[i] = fixFlags(o.values[i])
		}
	case "--limit":
		*value, err = fixRate(*value)
	case "--limit-burst":
		return *value != "5" || module != "limit", nil
	case "--icmp-type":
		*value = fixICMP(*value, icmpTypes)
	case "--icmpv6-type":
		*value = fixICMP(*value, icmp6Types)
	case "--reject-with":
		if full, ok := rejectNames[*value]; ok {
			*value = full
		} else if full, ok := reject6Names[*value]; ok && r.v6 {
			*value = full
		}
	case "--log-level":
		if n := slices.Index(logLevels, strings.ToLower(*value)); n >= 0 {
			*value = strconv.Itoa(n)
		}
		return *value != "4", nil
	case "--mask":
		return module != "recent" || *value != "255.255.255.255" && !strings.HasPrefix(*value, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), nil
	case "--connlimit-mask":
		return *value != map[bool]string{false: "32", true: "128"}[r.v6], nil
	case "--mark":
		*value = fixMark(*value)
	case "--set-mark", "--set-xmark":
		o.name, *value = "--set-xmark", fixMark(*value)
		if !strings.Contains(*value, "/") {
			*value += "/0xffffffff"
		}
	}
	return true, err
}

func fixAddress(value *string, v6 bool) error {
	text := *value
	address, mask, hasMask := strings.Cut(text, "/")
	if m, err := netip.ParseAddr(mask); hasMask && err == nil && m.Is4() {
		bits := 0
		n := uint32(0)
		for _, b := range m.AsSlice() {
			n = n<<8 | uint32(b)
		}
		for ; bits < 32 && n&(1<<31) != 0; bits++ {
			n <<= 1
		}
		if n != 0 {
			return nil // not a prefix: it stays as it is
		}
		text = address + "/" + strconv.Itoa(bits)
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("%q is not an address", *value)
	}
	if a.Is6() != v6 || a.Zone() != "" {
		return fmt.Errorf("%s is not an address of this IP version", address)
	}
	if !hasMask {
		*value = netip.PrefixFrom(a, a.BitLen()).String()
		return nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return fmt.Errorf("%q is not a network", *value)
	}
	*value = prefix.Masked().String()
	return nil
}

// iptPorts are the services that rules name. iptables-save prints numbers.
var iptPorts = map[string]string{
	"ftp": "21", "ssh": "22", "telnet": "23", "smtp": "25", "domain": "53", "bootps": "67", "bootpc": "68", "tftp": "69", "http": "80", "www": "80",
	"kerberos": "88", "pop3": "110", "sunrpc": "111", "ntp": "123", "imap2": "143", "imap": "143", "snmp": "161", "snmp-trap": "162",
	"ldap": "389", "https": "443", "submission": "587", "ldaps": "636", "imaps": "993", "pop3s": "995", "nfs": "2049", "mysql": "3306",
	"postgresql": "5432",
}

func fixPort(value string) (string, error) {
	from, to, isRange := strings.Cut(value, ":")
	ends := []*string{&from}
	if isRange {
		ends = append(ends, &to)
		if from == "" {
			from = "0"
		}
		if to == "" {
			to = "65535"
		}
	}
	for _, end := range ends {
		if number, ok := iptPorts[strings.ToLower(*end)]; ok {
			*end = number
		}
		n, err := strconv.ParseUint(*end, 10, 16)
		if err != nil {
			return value, fmt.Errorf("%q is not a port: give its number", *end)
		}
		*end = strconv.FormatUint(n, 10)
	}
	if isRange && from != to {
		return from + ":" + to, nil
	}
	return from, nil
}

func comparePorts(a, b string) int {
	number := func(s string) int {
		s, _, _ = strings.Cut(s, ":")
		n, _ := strconv.Atoi(s)
		return n
	}
	if n := number(a) - number(b); n != 0 {
		return n
	}
	return strings.Compare(a, b)
}

func fixFlags(value string) string {
	all := []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"}
	list := strings.Split(strings.ToUpper(value), ",")
	if slices.Equal(list, []string{"ALL"}) {
		list = all
	}
	slices.SortFunc(list, func(a, b string) int {
		if n := slices.Index(all, a) - slices.Index(all, b); n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	return strings.Join(slices.Compact(list), ",")
}

// fixRate gives a rate the form that iptables-save prints: 180/hour is 3/min.
func fixRate(value string) (string, error) {
	count, unit, _ := strings.Cut(value, "/")
	n, err := strconv.ParseUint(count, 10, 20)
	if err != nil || n == 0 {
		return value, fmt.Errorf("%q is not a rate such as 3/min", value)
	}
	units := []struct {
		long, short string
		seconds     int64
	}{{"day", "day", 86400}, {"hour", "hour", 3600}, {"minute", "min", 60}, {"second", "sec", 1}}
	seconds := int64(0)
	for _, u := range units {
		if unit != "" && strings.HasPrefix(u.long, strings.ToLower(unit)) {
			seconds = u.seconds
		}
		if strings.EqualFold(unit, u.short) {
			seconds = u.seconds
		}
	}
	if unit == "" {
		seconds = 1
	}
	if seconds == 0 {
		return value, fmt.Errorf("%q is not a rate such as 3/min", value)
	}
	perSecond := big.NewRat(int64(n), seconds)
	for i := len(units) - 1; i >= 0; i-- { // the shortest unit that makes it a whole number
		if rate := new(big.Rat).Mul(perSecond, big.NewRat(units[i].seconds, 1)); rate.IsInt() {
			return rate.Num().String() + "/" + units[i].short, nil
		}
	}
	return value, nil
}

var (
	icmpTypes = map[string]string{
		"echo-reply": "0", "pong": "0", "destination-unreachable": "3", "network-unreachable": "3/0", "host-unreachable": "3/1",
		"protocol-unreachable": "3/2", "port-unreachable": "3/3", "fragmentation-needed": "3/4", "source-quench": "4", "redirect": "5",
		"echo-request": "8", "ping": "8", "router-advertisement": "9", "router-solicitation": "10", "time-exceeded": "11",
		"ttl-exceeded": "11", "ttl-zero-during-transit": "11/0", "parameter-problem": "12", "timestamp-request": "13", "timestamp-reply": "14",
		"address-mask-request": "17", "address-mask-reply": "18",
	}
	icmp6Types = map[string]string{
		"destination-unreachable": "1", "no-route": "1/0", "communication-prohibited": "1/1", "address-unreachable": "1/3", "port-unreachable": "1/4",
		"packet-too-big": "2", "time-exceeded": "3", "ttl-exceeded": "3", "parameter-problem": "4", "echo-request": "128", "ping": "128",
		"echo-reply": "129", "pong": "129", "router-solicitation": "133", "router-advertisement": "134", "neighbour-solicitation": "135",
		"neighbor-solicitation": "135", "neighbour-advertisement": "136", "neighbor-advertisement": "136", "redirect": "137",
	}
	rejectNames = map[string]string{
		"net-unreach": "icmp-net-unreachable", "host-unreach": "icmp-host-unreachable", "proto-unreach": "icmp-proto-unreachable",
		"port-unreach": "icmp-port-unreachable", "net-prohib": "icmp-net-prohibited", "host-prohib": "icmp-host-prohibited",
		"admin-prohib": "icmp-admin-prohibited", "tcp-rst": "tcp-reset",
	}
	reject6Names = map[string]string{
		"no-route": "icmp6-no-route", "adm-prohibited": "icmp6-adm-prohibited", "addr-unreach": "icmp6-addr-unreachable",
		"port-unreach": "icmp6-port-unreachable", "icmp-port-unreachable": "icmp6-port-unreachable",
	}
	logLevels = []string{"emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"}
)

// fixMark writes a mark and its mask in hexadecimal.
func fixMark(value string) string {
	parts := strings.Split(value, "/")
	for i, part := range parts {
		if n, err := strconv.ParseUint(part, 0, 32); err == nil {
			parts[i] = fmt.Sprintf("%#x", n)
		}
	}
	return strings.Join(parts, "/")
}

func fixICMP(value string, names map[string]string) string {
	if number, ok := names[strings.ToLower(value)]; ok {
		return number
	}
	return value
}

// words are the rule's words as any iptables takes them; those before 1.4.3 want a negation behind the option.
func (r *iptRule) words(oldNegation bool) []string {
	var words []string
	add := func(options []iptOption) {
		for _, o := range options {
			switch {
			case o.not && oldNegation:
				words = append(words, o.name, "!")
			case o.not:
				words = append(words, "!", o.name)
			default:
				words = append(words, o.name)
			}
			for _, v := range o.values {
				words = append(words, iptQuote(v))
			}
		}
	}
	add(r.base)
	for _, m := range r.matches {
		words = append(words, "-m", iptQuote(m.module))
		add(m.options)
	}
	if r.jump != "" {
		words = append(words, map[bool]string{false: "-j", true: "-g"}[r.isGoto], iptQuote(r.jump))
	}
	add(r.target)
	return words
}

// print is the rule as a line of iptables-save has it, without -A and chain.
func (r *iptRule) print(oldNegation bool) string {
	if r.opaque != "" {
		return r.opaque
	}
	return strings.Join(r.words(oldNegation), " ")
}

func iptQuote(word string) string {
	plain := word != "" && word != "!" && !strings.HasPrefix(word, "-") && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:/+-*%@=") == ""
	if plain {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}

// key is equal for rules that do the same.
func (r *iptRule) key() string {
	if r.opaque != "" {
		return r.opaque
	}
	parts := r.conditions(true)
	slices.Sort(parts)
	target := optionTexts("", r.target)
	slices.Sort(target)
	return fmt.Sprintf("%q %v %q %q", parts, r.isGoto, r.jump, target)
}

// conditions are what a packet must meet, one text each; those of a module that remembers packets are kept together. A comment
// counts only if asked for.
func (r *iptRule) conditions(withComments bool) []string {
	list := optionTexts("", r.base)
	for _, m := range r.matches {
		switch {
		case m.module == "comment" && !withComments:
		case len(m.options) == 0:
			list = append(list, m.module)
		case iptRemembers[m.module]:
			texts := optionTexts(m.module, m.options)
			slices.Sort(texts)
			list = append(list, strings.Join(texts, " "))
		default:
			list = append(list, optionTexts(m.module, m.options)...)
		}
	}
	return list
}

func optionTexts(module string, options []iptOption) []string {
	var list []string
	for _, o := range options {
		list = append(list, fmt.Sprintf("%s %v %s %q", module, o.not, o.name, o.values))
	}
	return list
}

// iptRemembers are the modules whose answer depends on more than the packet.
var iptRemembers = map[string]bool{
	"limit": true, "hashlimit": true, "recent": true, "statistic": true, "quota": true, "quota2": true, "connlimit": true, "connbytes": true,
	"time": true, "nth": true, "random": true, "rateest": true, "dstlimit": true,
}

// coversMatchesOf reports whether a packet that meets all conditions of b meets those of r as well.
func (r *iptRule) coversMatchesOf(b *iptRule) bool {
	if r.opaque != "" || slices.ContainsFunc(r.matches, func(m iptMatch) bool { return iptRemembers[m.module] }) {
		return false
	}
	theirs := b.conditions(false)
	for _, c := range r.conditions(false) {
		if !slices.Contains(theirs, c) {
			return false
		}
	}
	return true
}

// owners are the users and groups that the rule names by name.
func (r *iptRule) owners(option string) []*string {
	var names []*string
	for _, m := range r.matches {
		for _, o := range m.options {
			if o.name == option && len(o.values) == 1 && strings.Trim(o.values[0], "0123456789-") != "" {
				names = append(names, &o.values[0])
			}
		}
	}
	return names
}
