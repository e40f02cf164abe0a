package modules

import (
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"

	"filippo.io/edwards25519"

	"runbook/engine/module"
	"runbook/engine/secret"
)

func init() {
	register("mysql_user", func() module.Module {
		return &mysqlUser{mysqlLogin: defaultMySQLLogin(), Host: []string{"localhost"}, State: "present", UpdatePassword: "always", SQLLogBin: true}
	})
}

// mysqlUser makes accounts of the database server with exactly the privileges that are listed, or removes them.
//
// One account per host that it may come from. Privileges are compared under the names that the server prints, and the password
// by its stored hash (a real login where the hash cannot be recomputed), so a second run changes nothing. MariaDB, which writes statements
// into its logs as they come, is told the hash instead of the password, for mysql_native_password and ed25519.
//
//	tasks:
//	  - name: the replication account, for connections that come out of the tunnel
//	    mysql_user: {name: db_rep, host: 127.0.0.1, password: '{{ replication_password }}', privs: {"*.*": [REPLICATION SLAVE]}, sql_log_bin: false}
//	  - name: the account that the VOMS server reads with; replication does not carry accounts over
//	    mysql_user: {name: voms_query, password: '{{ query_password }}', privs: {"voms_myvo.*": [SELECT]}}
type mysqlUser struct {
	mysqlLogin `yaml:",inline"`
	// Name of the account.
	Name string `yaml:"name" required:"true" short:"true"`
	// Hosts that it may connect from, one account each.
	Host []string `yaml:"host"`
	// Password. None: an existing password is left, a new account gets none.
	Password secret.Secret `yaml:"password"`
	// When to set the password of an account that exists: always if it differs, or on_create never.
	UpdatePassword string `yaml:"update_password" choices:"always,on_create"`
	// Authentication plugin, such as mysql_native_password or unix_socket. Default: the server's.
	Plugin string `yaml:"plugin"`
	// Privileges by object: "*.*", "db.*" or "db.table", each with a list such as [SELECT, INSERT] or [ALL]. Columns are written
	// as "SELECT (a, b)", the right to pass privileges on as "GRANT OPTION". Not given: privileges are left as they are.
	Privs map[string][]string `yaml:"privs"`
	// Keep privileges that are not listed, also on the objects that are.
	Append bool `yaml:"append"`
	// What the account's connections must use: NONE, SSL or X509. Default: left as it is.
	TLSRequires string `yaml:"tls_requires" choices:"NONE,SSL,X509"`
	// Whether the account is locked: true or false. Default: left as it is.
	Locked any `yaml:"locked"`
	// Whether the account should be there.
	State string `yaml:"state" choices:"present,absent"`
	// Write the changes to the binary log, so that replicas get them.
	SQLLogBin bool `yaml:"sql_log_bin"`
}

func (*mysqlUser) Returns() []module.Return {
	return []module.Return{{Name: "accounts", Type: "list", Help: "the accounts as name@host"}}
}

func (m *mysqlUser) Validate() error {
	var errs []error
	add := func(path, msg, hint string) { errs = append(errs, &module.ArgError{Path: path, Msg: msg, Hint: hint}) }
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	if len(m.Host) == 0 {
		add("host", "must not be empty", "")
	}
	if len(m.Name) > 80*4 {
		add("name", "longer than an account name can be", "")
	}
	for _, object := range sortedKeys(m.Privs) {
		path := "privs." + object
		if _, err := parsePrivObject(object); err != nil {
			add(path, err.Error(), `such as "*.*", "db.*" or "db.table"`)
		}
		if len(m.Privs[object]) == 0 {
			add(path, "no privileges are listed", "")
		}
		for i, p := range m.Privs[object] {
			if err := checkPrivilege(p); err != nil {
				add(fmt.Sprintf("%s[%d]", path, i), err.Error(), "")
			}
		}
	}
	if !mysqlWordPattern.MatchString(m.Plugin) {
		add("plugin", "not a plugin name", "")
	}
	if _, isBool := m.Locked.(bool); m.Locked != nil && !isBool {
		add("locked", "expected true or false", "")
	}
	if m.Append && len(m.Privs) == 0 {
		add("append", "means nothing without privs", "")
	}
	return errors.Join(errs...)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// privObject is what a privilege is on; "" stands for *.
type privObject struct{ kind, db, table string }

func (o privObject) String() string {
	part := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	text := part(o.db) + "." + part(o.table)
	if o.kind != "" {
		text = o.kind + " " + text
	}
	return text
}

func (o privObject) quoted() string {
	part := func(s string) string {
		if s == "" {
			return "*"
		}
		return mysqlIdent(s)
	}
	text := part(o.db) + "." + part(o.table)
	if o.kind != "" {
		text = o.kind + " " + text
	}
	return text
}

// parsePrivObject reads db.table as written by a person or printed by a server; parts may be in backticks.
func parsePrivObject(text string) (privObject, error) {
	var o privObject
	for _, kind := range []string{"TABLE ", "FUNCTION ", "PROCEDURE ", "PACKAGE BODY ", "PACKAGE "} {
		if len(text) > len(kind) && strings.EqualFold(text[:len(kind)], kind) {
			text = strings.TrimSpace(text[len(kind):])
			if kind != "TABLE " {
				o.kind = strings.TrimSpace(kind)
			}
			break
		}
	}
	db, rest, err := privName(text)
	if err != nil || !strings.HasPrefix(rest, ".") {
		return o, fmt.Errorf("%q is not db.table", text)
	}
	table, rest, err := privName(rest[1:])
	if err != nil || rest != "" {
		return o, fmt.Errorf("%q is not db.table", text)
	}
	if db == "*" && table != "*" {
		return o, fmt.Errorf("%q names a table of no database", text)
	}
	o.db, o.table = strings.TrimSuffix(db, "\x00"), strings.TrimSuffix(table, "\x00")
	if db == "*" {
		o.db = ""
	}
	if table == "*" {
		o.table = ""
	}
	return o, nil
}

// privName takes one name off text. A quoted name ends with \x00 so that it is never taken for the star.
func privName(text string) (name, rest string, err error) {
	if !strings.HasPrefix(text, "`") {
		end := strings.IndexByte(text, '.')
		if end < 0 {
			end = len(text)
		}
		if end == 0 {
			return "", "", errors.New("empty name")
		}
		return text[:end], text[end:], nil
	}
	name, rest, ok := sqlQuoted(text)
	if !ok || name == "" {
		return "", "", errors.New("quote is not closed")
	}
	return name + "\x00", rest, nil
}

// sqlQuoted takes a name off text that is in `, ' or " quotes, doubled inside.
func sqlQuoted(text string) (name, rest string, ok bool) {
	if text == "" {
		return "", "", false
	}
	quote := text[0]
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && quote != '`' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case text[i] != quote:
			b.WriteByte(text[i])
		case i+1 < len(text) && text[i+1] == quote:
			b.WriteByte(quote)
			i++
		default:
			return b.String(), text[i+1:], true
		}
	}
	return "", "", false
}

// checkPrivilege refuses what is no privilege: the text becomes part of a statement.
func checkPrivilege(p string) error {
	word, columns, has := strings.Cut(p, "(")
	if has && !strings.HasSuffix(strings.TrimSpace(columns), ")") {
		return fmt.Errorf("%q is not a privilege", p)
	}
	word = strings.TrimSpace(word)
	if word == "" || strings.Trim(strings.ToUpper(word), "ABCDEFGHIJKLMNOPQRSTUVWXYZ_ ") != "" {
		return fmt.Errorf("%q is not a privilege", p)
	}
	return nil
}

// normalPrivilege is a privilege as it is compared, and as it stands in a GRANT: columns sorted and quoted.
func (s mysqlServer) normalPrivilege(p string) string {
	word, list, has := strings.Cut(p, "(")
	word = s.privilege(word)
	if !has {
		return word
	}
	var columns []string
	list = strings.TrimSuffix(strings.TrimSpace(list), ")")
	for list = strings.TrimSpace(list); list != ""; list = strings.TrimLeft(list, ", ") {
		var name string
		if list[0] == '`' {
			rest, ok := "", false
			if name, rest, ok = sqlQuoted(list); !ok {
				break
			}
			list = rest
		} else {
			name, list, _ = strings.Cut(list, ",")
			name = strings.TrimSpace(name)
		}
		columns = append(columns, mysqlIdent(name))
	}
	sort.Strings(columns)
	return word + " (" + strings.Join(columns, ", ") + ")"
}

type privSet map[string]bool

func (p privSet) list() string { return strings.Join(sortedKeys(p), ", ") }

// mysqlGrants is what SHOW GRANTS says, by object. Roles and proxies are left out.
type mysqlGrants map[privObject]privSet

// parseGrant reads one line of SHOW GRANTS into g.
func (s mysqlServer) parseGrant(g mysqlGrants, line string) error {
	rest, ok := strings.CutPrefix(line, "GRANT ")
	if !ok {
		return nil // SET DEFAULT ROLE … and what else servers add
	}
	privileges, rest, err := splitPrivileges(rest)
	if err != nil {
		return fmt.Errorf("cannot read the grant %q", withoutIdentified(line))
	}
	if rest == "" || slices.Contains(privileges, "PROXY") {
		return nil // a role: no ON
	}
	// The object is all up to " TO " outside quotes.
	object, options := "", ""
	for i := 0; i < len(rest); i++ {
		if rest[i] == '`' {
			_, after, ok := sqlQuoted(rest[i:])
			if !ok {
				break
			}
			i = len(rest) - len(after) - 1
			continue
		}
		if strings.HasPrefix(rest[i:], " TO ") {
			object, options = rest[:i], rest[i+4:]
			break
		}
	}
	o, err := parsePrivObject(object)
	if err != nil {
		return fmt.Errorf("cannot read the grant %q", withoutIdentified(line))
	}
	set := g[o]
	if set == nil {
		set = privSet{}
		g[o] = set
	}
	for _, p := range privileges {
		if p = s.normalPrivilege(p); p != "USAGE" {
			set[p] = true
		}
	}
	// Account names are quoted, so nothing in them ends the line like this.
	if _, after, ok := strings.Cut(options, " WITH "); ok && strings.Contains(options[len(options)-len(after):], "GRANT OPTION") &&
		!strings.ContainsAny(after, "'`\"") {
		set["GRANT OPTION"] = true
	}
	if len(set) == 0 {
		delete(g, o)
	}
	return nil
}

// splitPrivileges takes the privileges off a grant, up to " ON "; rest is empty when there is no ON.
func splitPrivileges(text string) (list []string, rest string, err error) {
	depth, start := 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '`' || c == '\'' || c == '"':
			_, after, ok := sqlQuoted(text[i:])
			if !ok {
				return nil, "", errors.New("quote is not closed")
			}
			i = len(text) - len(after) - 1
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			list = append(list, strings.TrimSpace(text[start:i]))
			start = i + 1
		case depth == 0 && strings.HasPrefix(text[i:], " ON "):
			return append(list, strings.TrimSpace(text[start:i])), text[i+4:], nil
		case depth == 0 && strings.HasPrefix(text[i:], " TO "):
			return append(list, strings.TrimSpace(text[start:i])), "", nil
		}
	}
	return nil, "", errors.New("no ON and no TO")
}

// withoutIdentified cuts the password hash off a grant that is shown.
func withoutIdentified(line string) string {
	before, _, _ := strings.Cut(line, " IDENTIFIED ")
	return before
}

// mysqlAccount is what the server has stored of one account.
type mysqlAccount struct {
	there   bool
	plugins []mysqlCredential // any of them lets the account in
	locked  bool
	ssl     string
	grants  mysqlGrants
}

type mysqlCredential struct{ plugin, hash string }

func (s *mysqlSession) account(ctx context.Context, user, host string) (mysqlAccount, error) {
	var a mysqlAccount
	rows, err := s.query(ctx, s.server.statement("account"), user, host)
	if err != nil || len(rows.Ordered) == 0 {
		return a, err
	}
	a.there = true
	row := rows.Ordered[0]
	if len(row) == 1 {
		err = a.fromJSON(mysqlText(row[0]))
	} else {
		plugin := mysqlText(row[0])
		if plugin == "" {
			plugin = "mysql_native_password"
		}
		a.plugins = []mysqlCredential{{plugin, mysqlText(row[1])}}
		a.locked = mysqlText(row[2]) == "Y"
		a.ssl = map[string]string{"": "NONE", "ANY": "SSL", "X509": "X509"}[mysqlText(row[3])]
	}
	if err != nil {
		return a, err
	}
	lines, err := s.strings(ctx, "SHOW GRANTS FOR ?@?", user, host)
	if err != nil {
		return a, err
	}
	a.grants = mysqlGrants{}
	for _, line := range lines {
		if err := s.server.parseGrant(a.grants, line); err != nil {
			return a, err
		}
	}
	return a, nil
}

// fromJSON reads mysql.global_priv of MariaDB.
func (a *mysqlAccount) fromJSON(text string) error {
	type credential struct {
		Plugin string `json:"plugin"`
		Hash   string `json:"authentication_string"`
	}
	var priv struct {
		credential
		Or     []credential `json:"auth_or"`
		Locked bool         `json:"account_locked"`
		SSL    int          `json:"ssl_type"`
	}
	if err := json.Unmarshal([]byte(text), &priv); err != nil {
		return errors.New("cannot read the account in mysql.global_priv")
	}
	a.locked = priv.Locked
	a.ssl = map[int]string{0: "NONE", 1: "SSL", 2: "X509"}[priv.SSL]
	// With alternatives, an empty entry in auth_or stands for the outer one.
	for _, c := range priv.Or {
		if c.Plugin == "" {
			c = priv.credential
		}
		a.plugins = append(a.plugins, mysqlCredential{c.Plugin, c.Hash})
	}
	if len(priv.Or) == 0 {
		plugin := priv.Plugin
		if plugin == "" {
			plugin = "mysql_native_password"
		}
		a.plugins = []mysqlCredential{{plugin, priv.Hash}}
	}
	return nil
}

// matches says whether the stored credential is of the password; known is false if that cannot be computed.
func (c mysqlCredential) matches(password string) (match, known bool) {
	switch c.plugin {
	case "mysql_native_password":
		return subtle.ConstantTimeCompare([]byte(nativeHash(password)), []byte(strings.ToUpper(c.hash))) == 1, true
	case "ed25519":
		return subtle.ConstantTimeCompare([]byte(ed25519Hash(password)), []byte(c.hash)) == 1, true
	case "caching_sha2_password":
		return matchesCachingSHA2(password, c.hash)
	case "unix_socket", "auth_socket":
		return false, true
	}
	return false, false
}

// nativeHash is what mysql_native_password keeps of a password.
func nativeHash(password string) string {
	inner := sha1.Sum([]byte(password))
	outer := sha1.Sum(inner[:])
	return "*" + strings.ToUpper(hex.EncodeToString(outer[:]))
}

// ed25519Hash is what MariaDB's ed25519 keeps of a password: a public key, whose secret is the password's own hash.
func ed25519Hash(password string) string {
	h := sha512.Sum512([]byte(password))
	secret, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		panic(err) // for other lengths than 32 only
	}
	return base64.RawStdEncoding.EncodeToString(new(edwards25519.Point).ScalarBaseMult(secret).Bytes())
}

// matchesCachingSHA2 recomputes $A$rounds$salt(20 bytes)digest(43 characters): sha256-crypt with thousands of rounds in hexadecimal.
func matchesCachingSHA2(password, stored string) (match, known bool) {
	const prefix = len("$A$005$")
	if !strings.HasPrefix(stored, "$A$") || len(stored) != prefix+20+43 || stored[prefix-1] != '$' {
		return false, false
	}
	thousands, err := strconv.ParseUint(stored[3:6], 16, 16)
	if err != nil || thousands == 0 {
		return false, false
	}
	digest := sha256Crypt([]byte(password), []byte(stored[prefix:prefix+20]), int(thousands)*1000)
	return subtle.ConstantTimeCompare([]byte(digest), []byte(stored[prefix+20:])) == 1, true
}

// sha256Crypt is the digest of crypt(3)'s $5$, with a salt of any length.
func sha256Crypt(key, salt []byte, rounds int) string {
	b := sha256.New()
	b.Write(key)
	b.Write(salt)
	b.Write(key)
	digestB := b.Sum(nil)
	repeat := func(d []byte, n int) []byte {
		out := make([]byte, 0, n)
		for len(out) < n {
			out = append(out, d[:min(len(d), n-len(out))]...)
		}
		return out
	}
	a := sha256.New()
	a.Write(key)
	a.Write(salt)
	a.Write(repeat(digestB, len(key)))
	for n := len(key); n > 0; n >>= 1 {
		if n&1 != 0 {
			a.Write(digestB)
		} else {
			a.Write(key)
		}
	}
	digest := a.Sum(nil)
	dp := sha256.New()
	for range key {
		dp.Write(key)
	}
	p := repeat(dp.Sum(nil), len(key))
	ds := sha256.New()
	for range 16 + int(digest[0]) {
		ds.Write(salt)
	}
	sSeq := repeat(ds.Sum(nil), len(salt))
	for i := range rounds {
		c := sha256.New()
		if i&1 != 0 {
			c.Write(p)
		} else {
			c.Write(digest)
		}
		if i%3 != 0 {
			c.Write(sSeq)
		}
		if i%7 != 0 {
			c.Write(p)
		}
		if i&1 != 0 {
			c.Write(digest)
		} else {
			c.Write(p)
		}
		digest = c.Sum(nil)
	}
	const alphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var out []byte
	put := func(x, y, z byte, n int) {
		for v := uint32(x)<<16 | uint32(y)<<8 | uint32(z); n > 0; n, v = n-1, v>>6 {
			out = append(out, alphabet[v&63])
		}
	}
	for i := range 10 {
		j := []int{i, i + 10, i + 20}
		r := i % 3
		// The three bytes of a group rotate: (0 10 20) (21 1 11) (12 22 2) …
		switch r {
		case 0:
			put(digest[j[0]], digest[j[1]], digest[j[2]], 4)
		case 1:
			put(digest[j[2]], digest[j[0]], digest[j[1]], 4)
		case 2:
			put(digest[j[1]], digest[j[2]], digest[j[0]], 4)
		}
	}
	put(0, digest[31], digest[30], 3)
	return string(out)
}

// mysqlUserStep is one thing that Apply does.
type mysqlUserStep struct {
	change    module.Change
	what      string // for errors
	secret    bool
	statement string
	args      []any
}

func (m *mysqlUser) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	plan := module.Plan{Values: m.values()}
	var steps []mysqlUserStep
	for _, from := range m.Host {
		list, err := m.steps(ctx, host, s, from)
		if err != nil {
			return module.Plan{}, err
		}
		account := m.Name + "@" + from
		if e, pending := host.Effects.Last(accountKind, account); pending {
			if e.Maybe || e.Value != m.wish() && len(list) == 0 {
				return module.Plan{Unknown: yetToRun(e.Task), Hangs: e.Task, Pending: true}, nil
			}
			if e.Value == m.wish() {
				continue // an earlier task of this check sees to it
			}
		}
		plan.Effects = append(plan.Effects, module.Effect{Kind: accountKind, Name: account, Value: m.wish()})
		steps = append(steps, list...)
	}
	for _, step := range steps {
		if step.change.What != "" {
			plan.Changes = append(plan.Changes, step.change)
		}
	}
	plan.State = steps
	return plan, nil
}

// wish is what is declared of the accounts, as later tasks of a check recognize it.
func (m *mysqlUser) wish() string {
	return fmt.Sprintf("%s %v %t %s %v %s", m.State, m.Privs, m.Append, m.Plugin, m.Locked, digest([]byte(m.Password.Reveal())))
}

func (m *mysqlUser) values() module.Values {
	list := make([]any, len(m.Host))
	for i, h := range m.Host {
		list[i] = m.Name + "@" + h
	}
	return module.Values{"accounts": list}
}

func (m *mysqlUser) steps(ctx context.Context, host *module.Host, s *mysqlSession, from string) ([]mysqlUserStep, error) {
	label := m.Name + "@" + from
	account, err := s.account(ctx, m.Name, from)
	if err != nil {
		return nil, err
	}
	var steps []mysqlUserStep
	add := func(what, before, after, statement string, args ...any) {
		steps = append(steps, mysqlUserStep{change: module.Change{What: what, Before: before, After: after}, what: what, statement: statement,
			args: append([]any{m.Name, from}, args...)})
	}
	if m.State == "absent" {
		if account.there {
			add("drop account "+label, "present", "absent", "DROP USER ?@?")
		}
		return steps, nil
	}
	step, err := m.passwordStep(ctx, host, s, account, from)
	if err != nil {
		return nil, err
	}
	if !account.there {
		account.grants, account.ssl = mysqlGrants{}, "NONE"
		if step == nil {
			step = &mysqlUserStep{statement: "CREATE USER ?@?", args: []any{m.Name, from}}
		}
		step.statement = createAccount(step.statement)
		step.what = "create account " + label
		step.change = module.Change{What: step.what, Before: "absent", After: "present"}
	}
	if step != nil {
		steps = append(steps, *step)
	}
	if m.TLSRequires != "" && m.TLSRequires != account.ssl {
		add("TLS required of "+label, account.ssl, m.TLSRequires, s.server.statement("require", "require", m.TLSRequires))
	}
	if lock, given := m.Locked.(bool); given && lock != account.locked {
		word := map[bool]string{true: "LOCK", false: "UNLOCK"}
		statement := s.server.statement("lock account", "lock", word[lock])
		if statement == "" {
			return nil, fmt.Errorf("%s %s cannot lock accounts", s.server.family(), s.server.Text)
		}
		add("lock of "+label, strconv.FormatBool(account.locked), strconv.FormatBool(lock), statement)
	}

	grants, err := m.grantSteps(ctx, s, account, from)
	return append(steps, grants...), err
}

// createAccount turns the statement that would change an account into the one that makes it, so that it never
// exists without its password.
func createAccount(alter string) string {
	switch alter {
	case "SET PASSWORD FOR ?@? = PASSWORD(?)":
		return "CREATE USER ?@? IDENTIFIED BY ?"
	case "SET PASSWORD FOR ?@? = ?":
		return "CREATE USER ?@? IDENTIFIED BY PASSWORD ?"
	}
	return strings.Replace(alter, "ALTER USER", "CREATE USER", 1)
}

func (m *mysqlUser) passwordStep(ctx context.Context, host *module.Host, s *mysqlSession, account mysqlAccount, from string) (*mysqlUserStep, error) {
	label := m.Name + "@" + from
	step := &mysqlUserStep{secret: true, what: "set the password of " + label, args: []any{m.Name, from}}
	step.change = module.Change{What: "password of " + label, Before: secret.Mask, After: secret.Mask}
	plugin := m.Plugin
	samePlugin := plugin == "" || slices.ContainsFunc(account.plugins, func(c mysqlCredential) bool { return c.plugin == plugin })
	if m.Password.IsZero() {
		if plugin == "" || (account.there && samePlugin) {
			return nil, nil
		}
		step.change = module.Change{What: "authentication of " + label, Before: account.plugin(), After: plugin}
		step.secret = false
		if step.statement = s.server.statement("set plugin", "plugin", mysqlIdent(plugin)); step.statement == "" {
			return nil, fmt.Errorf("%s %s cannot change the plugin of an account", s.server.family(), s.server.Text)
		}
		return step, nil
	}
	if account.there && samePlugin {
		if m.UpdatePassword == "on_create" {
			return nil, nil
		}
		match, err := m.passwordMatches(ctx, host, s, account)
		if err != nil || match {
			return nil, err
		}
	}
	step.statement = s.server.statement("set password")
	if plugin != "" && (plugin != "mysql_native_password" || s.server.statement("set plugin and password") != "") {
		if step.statement = s.server.statement("set plugin and password", "plugin", mysqlIdent(plugin)); step.statement == "" {
			return nil, fmt.Errorf("%s %s cannot change the plugin of an account", s.server.family(), s.server.Text)
		}
		if !samePlugin && account.there {
			step.change = module.Change{What: "authentication of " + label, Before: account.plugin(), After: plugin}
		}
	}
	step.args = append(step.args, m.Password)
	return step, m.hidePassword(ctx, s, step)
}

// hidePassword has step tell the server what it will keep of the password instead of the password itself, where it takes that: MariaDB writes
// statements into its logs as they come.
func (m *mysqlUser) hidePassword(ctx context.Context, s *mysqlSession, step *mysqlUserStep) error {
	var stored, statement string
	switch m.Plugin {
	case "ed25519":
		stored = ed25519Hash(m.Password.Reveal())
		statement = s.server.statement("set plugin and stored password", "plugin", mysqlIdent(m.Plugin))
	case "", "mysql_native_password":
		stored = nativeHash(m.Password.Reveal())
		if m.Plugin != "" {
			statement = s.server.statement("set plugin and stored password", "plugin", mysqlIdent(m.Plugin))
		}
		statement = cmp.Or(statement, s.server.statement("set stored password"))
	}
	if statement == "" {
		return nil
	}
	set, err := s.variables(ctx, "strict_password_validation", "log_bin")
	if err != nil {
		return err
	}
	if set["strict_password_validation"] == "ON" {
		plugins, err := s.strings(ctx, "SELECT plugin_name FROM information_schema.plugins WHERE plugin_type = 'PASSWORD VALIDATION' AND plugin_status = 'ACTIVE'")
		if err != nil {
			return err
		}
		if len(plugins) > 0 {
			if m.SQLLogBin && set["log_bin"] == "ON" {
				return fmt.Errorf("the server's plugin %s judges passwords and has to see them, and MariaDB writes them into the binary log: use sql_log_bin: false", plugins[0])
			}
			return nil
		}
	}
	step.statement, step.args[len(step.args)-1] = statement, secret.New(stored)
	return nil
}

func (a mysqlAccount) plugin() string {
	var names []string
	for _, c := range a.plugins {
		names = append(names, c.plugin)
	}
	return strings.Join(names, " or ")
}

// passwordMatches compares by the stored hash, and by a login where the hash says nothing.
func (m *mysqlUser) passwordMatches(ctx context.Context, host *module.Host, s *mysqlSession, account mysqlAccount) (bool, error) {
	unknown := false
	for _, c := range account.plugins {
		if m.Plugin != "" && c.plugin != m.Plugin {
			continue
		}
		match, known := c.matches(m.Password.Reveal())
		if match {
			return true, nil
		}
		unknown = unknown || !known
	}
	if !unknown {
		return false, nil
	}
	login := mysqlLogin{LoginUser: m.Name, LoginPassword: m.Password}
	// Accounts for 127.0.0.1 do not match a login through the socket.
	target := s.target
	if target.network == "unix" && !slices.Contains(m.Host, "localhost") && !slices.Contains(m.Host, "%") {
		port, err := s.variables(ctx, "port")
		if err != nil {
			return false, err
		}
		target = mysqlTarget{"tcp", net.JoinHostPort("127.0.0.1", port["port"])}
	}
	probe, err := login.openTarget(ctx, host, target)
	if err != nil {
		if mysqlErrno(err) == 1045 || mysqlErrno(err) == 1130 {
			return false, nil
		}
		return false, fmt.Errorf("cannot tell whether the password of %s differs: %w", m.Name, err)
	}
	probe.close()
	return true, nil
}

func (m *mysqlUser) grantSteps(ctx context.Context, s *mysqlSession, account mysqlAccount, from string) ([]mysqlUserStep, error) {
	if m.Privs == nil {
		return nil, nil
	}
	wanted := mysqlGrants{}
	for object, list := range m.Privs {
		o, err := parsePrivObject(object)
		if err != nil {
			return nil, err
		}
		if wanted[o] == nil {
			wanted[o] = privSet{}
		}
		for _, p := range list {
			if p = s.server.normalPrivilege(p); p != "USAGE" {
				wanted[o][p] = true
			}
		}
	}
	objects := map[string]privObject{}
	for o := range wanted {
		objects[o.String()] = o
	}
	if !m.Append {
		for o := range account.grants {
			if o.kind == "" {
				objects[o.String()] = o
			}
		}
	}
	var steps []mysqlUserStep
	for _, name := range sortedKeys(objects) {
		o := objects[name]
		want, have := wanted[o], account.grants[o]
		if want["ALL PRIVILEGES"] && !have["ALL PRIVILEGES"] && o.db == "" && !s.server.MariaDB && s.server.atLeast(8, 0, 0) {
			all, err := s.allPrivileges(ctx)
			if err != nil {
				return nil, err
			}
			if have = have.collapse(all); have["ALL PRIVILEGES"] {
				account.grants[o] = have
			}
		}
		var grant, revoke []string
		for _, p := range sortedKeys(want) {
			if !have[p] && (!have["ALL PRIVILEGES"] || p == "GRANT OPTION") {
				grant = append(grant, p)
			}
		}
		if !m.Append {
			for _, p := range sortedKeys(have) {
				if !want[p] && (!want["ALL PRIVILEGES"] || p == "GRANT OPTION") {
					revoke = append(revoke, p)
				}
			}
			// Taking ALL away also takes what is wanted.
			if slices.Contains(revoke, "ALL PRIVILEGES") {
				grant = nil
				for _, p := range sortedKeys(want) {
					if p != "GRANT OPTION" || !have[p] {
						grant = append(grant, p)
					}
				}
			}
		}
		if len(grant)+len(revoke) == 0 {
			continue
		}
		after := want
		if m.Append {
			after = privSet{}
			for p := range have {
				after[p] = true
			}
			for p := range want {
				after[p] = true
			}
		}
		what := fmt.Sprintf("privileges of %s@%s on %s", m.Name, from, name)
		first := module.Change{What: what, Before: have.list(), After: after.list()}
		for _, statement := range grantStatements(o, grant, revoke) {
			steps = append(steps, mysqlUserStep{change: first, what: "change the " + what, args: []any{m.Name, from}, statement: statement})
			first = module.Change{} // one change an object
		}
	}
	return steps, nil
}

// grantStatements gives the statements that take revoke away and then give grant. ALL PRIVILEGES stands in no list with others.
func grantStatements(o privObject, grant, revoke []string) []string {
	var list []string
	add := func(verb string, privileges []string, rest string) {
		if slices.Contains(privileges, "ALL PRIVILEGES") {
			privileges = []string{"ALL PRIVILEGES"}
		}
		if len(privileges) > 0 {
			list = append(list, verb+" "+strings.Join(privileges, ", ")+" ON "+o.quoted()+rest)
		}
	}
	without := func(privileges []string) (rest []string, option bool) {
		rest = slices.DeleteFunc(slices.Clone(privileges), func(p string) bool { return p == "GRANT OPTION" })
		return rest, len(rest) < len(privileges)
	}
	rest, option := without(revoke)
	add("REVOKE", rest, " FROM ?@?")
	if option {
		add("REVOKE", []string{"GRANT OPTION"}, " FROM ?@?")
	}
	rest, option = without(grant)
	switch {
	case option && len(rest) == 0:
		add("GRANT", []string{"USAGE"}, " TO ?@? WITH GRANT OPTION")
	case option:
		add("GRANT", rest, " TO ?@? WITH GRANT OPTION")
	default:
		add("GRANT", rest, " TO ?@?")
	}
	return list
}

// allPrivileges lists what ALL on *.* stands for; MySQL 8 prints it one by one.
func (s *mysqlSession) allPrivileges(ctx context.Context) (privSet, error) {
	names, err := s.strings(ctx, "SHOW PRIVILEGES")
	if err != nil {
		return nil, err
	}
	all := privSet{}
	for _, name := range names {
		if p := s.server.privilege(name); p != "GRANT OPTION" && p != "PROXY" && p != "USAGE" {
			all[p] = true
		}
	}
	return all, nil
}

// collapse replaces the privileges of all by ALL PRIVILEGES if p has every one of them.
func (p privSet) collapse(all privSet) privSet {
	out := privSet{"ALL PRIVILEGES": true}
	for one := range all {
		if !p[one] {
			return p
		}
	}
	for one := range p {
		if !all[one] {
			out[one] = true
		}
	}
	return out
}

func (m *mysqlUser) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if !m.SQLLogBin {
		if err := s.withoutBinlog(ctx); err != nil {
			return nil, err
		}
	}
	steps, _ := plan.State.([]mysqlUserStep)
	for _, step := range steps {
		if step.secret {
			for _, arg := range step.args {
				if stored, ok := arg.(secret.Secret); ok {
					s.masker.Add(stored)
				}
			}
			err = s.execSecret(ctx, step.what, m.Password, step.statement, sqlArgs(step.args)...)
		} else if err = s.exec(ctx, step.statement, step.args...); err != nil {
			err = fmt.Errorf("cannot %s: %w", step.what, err)
		}
		if err != nil {
			return nil, err
		}
	}
	return m.values(), nil
}
