package modules

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-sql-driver/mysql"

	"runbook/engine/module"
	"runbook/engine/secret"
	"runbook/engine/transport"
)

// mysqlLogin is how a module logs in to the database server of its host: through the server's unix socket unless a host or
// port is given.
type mysqlLogin struct {
	// Account to log in with.
	LoginUser string `yaml:"login_user"`
	// Password of the account; not needed where the server knows the account by its unix user.
	LoginPassword secret.Secret `yaml:"login_password"`
	// Unix socket of the server. Default: the first that exists of /run/mysqld/mysqld.sock, /var/run/mysqld/mysqld.sock,
	// /var/lib/mysql/mysql.sock and /tmp/mysql.sock.
	LoginSocket string `yaml:"login_socket"`
	// Address to connect to from the host, over TCP instead of the socket. Default with login_port: 127.0.0.1.
	LoginHost string `yaml:"login_host"`
	// TCP port to connect to from the host, instead of the socket. Default with login_host: 3306.
	LoginPort int `yaml:"login_port"`
}

func defaultMySQLLogin() mysqlLogin { return mysqlLogin{LoginUser: "root"} }

func (l *mysqlLogin) validate() error {
	if l.LoginSocket != "" && (l.LoginHost != "" || l.LoginPort != 0) {
		return &module.ArgError{Path: "login_socket", Msg: "a socket and a TCP address are both given", Hint: "leave one out"}
	}
	if l.LoginPort < 0 || l.LoginPort > 65535 {
		return &module.ArgError{Path: "login_port", Msg: "not a port number"}
	}
	return nil
}

// mysqlTarget is where the login goes, after the socket was looked for.
type mysqlTarget struct{ network, addr string }

func (t mysqlTarget) String() string {
	if t.network == "unix" {
		return "socket " + t.addr
	}
	return t.addr
}

var mysqlSockets = []string{"/run/mysqld/mysqld.sock", "/var/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"}

func (l *mysqlLogin) target(ctx context.Context, host *module.Host) (mysqlTarget, error) {
	if l.LoginHost != "" || l.LoginPort != 0 {
		addr, port := l.LoginHost, l.LoginPort
		if addr == "" {
			addr = "127.0.0.1"
		}
		if port == 0 {
			port = 3306
		}
		return mysqlTarget{"tcp", net.JoinHostPort(addr, strconv.Itoa(port))}, nil
	}
	if l.LoginSocket != "" {
		return mysqlTarget{"unix", l.LoginSocket}, nil
	}
	out, err := hostScript(ctx, host, `for s; do if [ -S "$s" ]; then printf %s "$s"; break; fi; done`, mysqlSockets...)
	if err != nil {
		return mysqlTarget{}, err
	}
	if len(out.Stdout) == 0 {
		return mysqlTarget{}, fmt.Errorf("cannot find the database server: none of its usual sockets is there (%s); is it running? "+
			"Else name its socket with login_socket", strings.Join(mysqlSockets, ", "))
	}
	return mysqlTarget{"unix", string(out.Stdout)}, nil
}

// clientArgs are the options that make a client program log in to the same server. The password is not among them.
func (l *mysqlLogin) clientArgs(t mysqlTarget) []string {
	if t.network == "unix" {
		return []string{"--user=" + l.LoginUser, "--protocol=socket", "--socket=" + t.addr}
	}
	addr, port, _ := net.SplitHostPort(t.addr)
	return []string{"--user=" + l.LoginUser, "--protocol=tcp", "--host=" + addr, "--port=" + port}
}

// clientPassword is the content of an option file that holds the password, "" if there is none.
func (l *mysqlLogin) clientPassword() string {
	if l.LoginPassword.IsZero() {
		return ""
	}
	return "[client]\npassword=\"" + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`).
		Replace(l.LoginPassword.Reveal()) + "\"\n"
}

// mysqlSession is one login: a single connection, so that session settings hold.
type mysqlSession struct {
	db     *sql.DB
	conn   *sql.Conn
	server mysqlServer
	target mysqlTarget
	masker secret.Masker // hides the passwords that went through the session in the server's error texts
	host   *module.Host
	again  func(ctx context.Context) (*mysqlSession, error) // the same login once more; nil if what the session does is not watched
}

const mysqlConnectTimeout = 20 * time.Second

// open logs in and asks the server what it is.
func (l *mysqlLogin) open(ctx context.Context, host *module.Host) (*mysqlSession, error) {
	target, err := l.target(ctx, host)
	if err != nil {
		return nil, err
	}
	return l.openTarget(ctx, host, target)
}

func (l *mysqlLogin) openTarget(ctx context.Context, host *module.Host, target mysqlTarget) (*mysqlSession, error) {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd = l.LoginUser, l.LoginPassword.Reveal()
	cfg.Net, cfg.Addr = target.network, target.addr
	cfg.InterpolateParams = true // one round trip a statement, and places in statements that cannot be prepared
	cfg.AllowAllFiles, cfg.AllowCleartextPasswords = false, false
	cfg.Logger = &mysql.NopLogger{}
	cfg.DialFunc = host.Dial
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot log in to the database server: %v", err)
	}
	s := &mysqlSession{db: sql.OpenDB(connector), target: target}
	s.db.SetMaxOpenConns(1)
	s.masker.Add(l.LoginPassword)

	opening, cancel := context.WithTimeout(ctx, mysqlConnectTimeout)
	defer cancel()
	if s.conn, err = s.db.Conn(opening); err == nil {
		err = s.greet(opening)
	}
	if err != nil {
		s.close()
		if opening.Err() != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("the database server at %s does not answer within %s", target, mysqlConnectTimeout)
		}
		return nil, l.loginError(target, s.explain(err))
	}
	s.watchable(l, host)
	return s, nil
}

// greet asks for the version, and makes the session speak UTF-8 where the server would not by itself.
func (s *mysqlSession) greet(ctx context.Context) error {
	var version, charset string
	if err := s.conn.QueryRowContext(ctx, "SELECT VERSION(), @@character_set_client").Scan(&version, &charset); err != nil {
		return err
	}
	var err error
	if s.server, err = parseMySQLServer(version); err != nil || charset == "utf8mb4" {
		return err
	}
	if _, err = s.conn.ExecContext(ctx, "SET NAMES utf8mb4"); mysqlErrno(err) == 1115 { // unknown before 5.5.3
		_, err = s.conn.ExecContext(ctx, "SET NAMES utf8")
	}
	return err
}

func (s *mysqlSession) close() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
	_ = s.db.Close()
}

func (l *mysqlLogin) loginError(target mysqlTarget, err error) error {
	var unreachable *transport.UnreachableError
	switch code := mysqlErrno(err); {
	case errors.As(err, &unreachable) && unreachable.MayHave:
		return err
	case code == 1045 || code == 1698:
		return fmt.Errorf("the database server at %s refuses the login of %s (login_user, login_password, and the task's become user for a login by socket): %w",
			target, l.LoginUser, err)
	case code != 0:
		return fmt.Errorf("the database server at %s refuses the connection: %w", target, err)
	}
	return fmt.Errorf("cannot reach the database server at %s (is it running?): %w", target, err)
}

// mysqlErrno returns the server's error number, 0 if err did not come from a server.
func mysqlErrno(err error) int {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return int(e.Number)
	}
	return 0
}

// explain keeps the server's number and text, with the passwords of the session masked, and adds what to do.
func (s *mysqlSession) explain(err error) error {
	var e *mysql.MySQLError
	if err == nil || !errors.As(err, &e) {
		return err
	}
	masked := &mysql.MySQLError{Number: e.Number, SQLState: e.SQLState, Message: s.masker.Mask(e.Message)}
	if advice := mysqlAdvice(int(e.Number)); advice != "" {
		return fmt.Errorf("%s: %w", advice, masked)
	}
	return masked
}

func mysqlAdvice(code int) string {
	switch code {
	case 1044, 1142, 1227:
		return "the login account lacks a privilege"
	case 1049:
		return "there is no such database"
	case 1146:
		return "there is no such table"
	case 1290:
		return "the server is read-only or runs with an option that forbids this"
	case 1396:
		return "the server cannot do this with the account (does it exist already, or not at all?)"
	case 1819:
		return "the password is refused by the server's password rules"
	case 1205, 1213:
		return "another session holds a lock that is needed"
	case 1064:
		return "the server does not understand the statement"
	case 1792:
		return "a read may not change anything"
	}
	return ""
}

func (s *mysqlSession) exec(ctx context.Context, query string, args ...any) error {
	ctx, ended := s.watch(ctx, nil)
	_, err := s.conn.ExecContext(ctx, query, args...)
	return ended(err)
}

// execSecret is exec for a statement with a password in it: what is named is the doing, never the statement.
func (s *mysqlSession) execSecret(ctx context.Context, what string, password secret.Secret, query string, args ...any) error {
	s.masker.Add(password)
	if err := s.exec(ctx, query, args...); err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

// mysqlRows is a result: typed values, by column.
type mysqlRows struct {
	Columns []string
	Rows    []map[string]any
	Ordered [][]any
}

// mysqlMaxRows is how many rows a query may return: results are held in memory and kept in the journal.
const mysqlMaxRows = 100_000

func (s *mysqlSession) query(ctx context.Context, query string, args ...any) (*mysqlRows, error) {
	ctx, ended := s.watch(ctx, nil)
	rows, err := s.rows(ctx, query, args...)
	return rows, ended(err)
}

// rows is query without anybody watching; its errors are the driver's.
func (s *mysqlSession) rows(ctx context.Context, query string, args ...any) (*mysqlRows, error) {
	rows, err := s.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	result := &mysqlRows{Columns: columns}
	cells, places := make([]any, len(columns)), make([]any, len(columns))
	for i := range cells {
		places[i] = &cells[i]
	}
	for rows.Next() {
		if len(result.Rows) == mysqlMaxRows {
			return nil, fmt.Errorf("the query returns more than %d rows", mysqlMaxRows)
		}
		if err := rows.Scan(places...); err != nil {
			return nil, err
		}
		byName, ordered := make(map[string]any, len(columns)), make([]any, len(columns))
		for i, name := range columns {
			v := mysqlValue(cells[i], types[i].DatabaseTypeName())
			byName[name], ordered[i] = v, v
		}
		result.Rows, result.Ordered = append(result.Rows, byName), append(result.Ordered, ordered)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return result, nil
}

// strings returns the first column of a query.
func (s *mysqlSession) strings(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := s.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, row := range rows.Ordered {
		list = append(list, mysqlText(row[0]))
	}
	return list, nil
}

// statusRow returns the only row of a status statement with columns named as mysqlColumn does; nil if there is none.
func (s *mysqlSession) statusRow(ctx context.Context, query string, args ...any) (map[string]any, error) {
	rows, err := s.query(ctx, query, args...)
	if err != nil || len(rows.Rows) == 0 {
		return nil, err
	}
	if len(rows.Rows) > 1 {
		return nil, fmt.Errorf("the server has %d replication connections: name one with connection_name", len(rows.Rows))
	}
	return mysqlStatusColumns(rows.Rows[0]), nil
}

func mysqlStatusColumns(row map[string]any) map[string]any {
	status := make(map[string]any, len(row))
	for name, v := range row {
		status[mysqlColumn(name)] = v
	}
	return status
}

// mysqlValue turns what the driver gives into data: int, float64, string or nil. Bytes that are not UTF-8 become hexadecimal.
func mysqlValue(v any, databaseType string) any {
	switch v := v.(type) {
	case nil:
		return nil
	case int64:
		return int(v)
	case uint64:
		if v > math.MaxInt64 {
			return strconv.FormatUint(v, 10)
		}
		return int(v)
	case float64:
		return v
	case float32:
		f, _ := strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64)
		return f
	case time.Time:
		return v.Format(time.RFC3339Nano)
	case string:
		return v
	case []byte:
		if databaseType == "BIT" && len(v) < 8 {
			n := 0
			for _, b := range v {
				n = n<<8 | int(b)
			}
			return n
		}
		if utf8.Valid(v) {
			return string(v)
		}
		return fmt.Sprintf("%x", v)
	}
	return fmt.Sprint(v)
}

// mysqlText is a value of a result as text; NULL is empty.
func mysqlText(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// mysqlInt is a value of a result as a number; ok is false for NULL and for what is no number.
func mysqlInt(v any) (n int, ok bool) {
	switch v := v.(type) {
	case int:
		return v, true
	case string:
		n, err := strconv.Atoi(v)
		return n, err == nil
	}
	return 0, false
}

// mysqlIdent quotes a name of a database, table or plugin. Strings are never quoted here: they go through the driver's
// placeholders, which follow the session's sql_mode.
func mysqlIdent(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// mysqlPlaces returns n placeholders and the strings as arguments.
func mysqlPlaces(list []string) (places string, args []any) {
	for _, s := range list {
		args = append(args, s)
	}
	return strings.TrimSuffix(strings.Repeat("?, ", len(list)), ", "), args
}

// variables reads server variables, one round trip; a variable that the server does not know is missing from the result.
func (s *mysqlSession) variables(ctx context.Context, names ...string) (map[string]string, error) {
	places, args := mysqlPlaces(names)
	rows, err := s.query(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ("+places+")", args...)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, row := range rows.Ordered {
		values[strings.ToLower(mysqlText(row[0]))] = mysqlText(row[1])
	}
	return values, nil
}

// withoutBinlog keeps what the session does from now on out of the binary log.
func (s *mysqlSession) withoutBinlog(ctx context.Context) error {
	return s.exec(ctx, "SET SESSION sql_log_bin = 0")
}

// databaseNames checks a list of database names.
func mysqlDatabaseNames(arg string, names []string) error {
	var errs []error
	seen := map[string]bool{}
	for i, name := range names {
		path := fmt.Sprintf("%s[%d]", arg, i)
		switch {
		case name == "" || len(name) > 64*4 || utf8.RuneCountInString(name) > 64:
			errs = append(errs, &module.ArgError{Path: path, Msg: "not a database name: it must have 1 to 64 characters"})
		case strings.ContainsAny(name, "\x00\n\r/\\"):
			errs = append(errs, &module.ArgError{Path: path, Msg: "not a database name: it holds a character that names may not have"})
		case seen[name]:
			errs = append(errs, &module.ArgError{Path: path, Msg: fmt.Sprintf("%q is named twice", name)})
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}

// hostScript runs sh text with positional parameters: no value is ever part of the text.
func hostScript(ctx context.Context, host *module.Host, script string, args ...string) (transport.Output, error) {
	return host.Run(ctx, hostScriptCmd(script, args...))
}

// hostScriptCmd is the command of hostScript. What these modules do takes several commands and a database connection, so no
// verifying check may follow the first command in the same flight: Sent does nothing.
func hostScriptCmd(script string, args ...string) transport.Cmd {
	return transport.Cmd{Args: append([]string{"sh", "-c", "LC_ALL=C; export LC_ALL\n" + script, "runbook"}, args...), Sent: func() {}}
}
