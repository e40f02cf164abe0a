package modules

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"runbook/engine/module"
	"runbook/engine/secret"
)

func init() {
	register("sql", func() module.Module { return &sqlModule{mysqlLogin: defaultMySQLLogin(), SQLLogBin: true} })
}

// sqlModule runs SQL statements on the host's MySQL or MariaDB server.
//
// A statement by itself may change anything, so a check says unknown; read, unless or onlyif make it predictable.
//
//	tasks:
//	  - name: members of the VO
//	    sql: {query: SELECT COUNT(*) AS members FROM voms_myvo.usr, read: true}
//	    register: vo
//	  - name: binary logs are kept for two weeks, without a restart of the server
//	    sql:
//	      query: SET GLOBAL expire_logs_days = 14
//	      unless: SELECT 1 FROM DUAL WHERE @@GLOBAL.expire_logs_days = 14
type sqlModule struct {
	mysqlLogin `yaml:",inline"`
	// One statement. Values belong in args, not in the text.
	Query string `yaml:"query" short:"true"`
	// Several statements, run in order on one connection.
	Queries []string `yaml:"queries"`
	// Values for the ? places of query (not of queries, unless or onlyif).
	Args []any `yaml:"args"`
	// Default database of the statements.
	Database string `yaml:"database"`
	// Run the statements in one transaction (statements that define tables end a transaction by themselves).
	Transaction bool `yaml:"transaction"`
	// The statements only read: they run in a read-only transaction, in a check too, and the result is returned.
	Read bool `yaml:"read"`
	// A reading query. If it returns a row, nothing is to do; after the run it must. A missing table or database counts as no row.
	Unless string `yaml:"unless"`
	// A reading query. If it returns no row, nothing is to do; after the run it must return none.
	OnlyIf string `yaml:"onlyif"`
	// What the last query must return, else the task fails: a scalar is compared with the first column of the first row, a
	// list of maps with the rows, column by column named.
	Expect any `yaml:"expect"`
	// Write the changes to the binary log, so that replicas get them.
	SQLLogBin bool `yaml:"sql_log_bin"`
}

func (*sqlModule) Returns() []module.Return {
	return []module.Return{
		{Name: "rows", Type: "list", Help: "rows of the last query as maps by column; numbers are numbers, NULL is nil, bytes that are not UTF-8 are hexadecimal"},
		{Name: "row_count", Type: "int", Help: "how many rows"},
		{Name: "columns", Type: "list", Help: "column names in order"},
		{Name: "value", Type: "any", Help: "first column of the first row, nil if there is none"},
		{Name: "rows_affected", Type: "int", Help: "rows that the statements changed, 0 for a read"},
	}
}

func (m *sqlModule) Validate() error {
	var errs []error
	add := func(path, msg, hint string) { errs = append(errs, &module.ArgError{Path: path, Msg: msg, Hint: hint}) }
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	switch {
	case m.Query == "" && len(m.Queries) == 0:
		add("query", "no statement is given", "")
	case m.Query != "" && len(m.Queries) > 0:
		add("queries", "query and queries are both given", "put all statements in queries")
	}
	if len(m.Args) > 0 && len(m.Queries) > 0 {
		add("args", "args belong to query, queries have none", "use one task per statement")
	}
	if m.Read {
		if m.Unless != "" || m.OnlyIf != "" {
			add("read", "a read needs no unless or onlyif: it always runs", "")
		}
		for i, q := range m.statements() {
			if err := sqlReads(q); err != nil {
				path := "query"
				if m.Query == "" {
					path = fmt.Sprintf("queries[%d]", i)
				}
				add(path, err.Error(), "leave out read for a statement that changes something")
			}
		}
	}
	for path, q := range map[string]string{"unless": m.Unless, "onlyif": m.OnlyIf} {
		if q == "" {
			continue
		}
		if err := sqlReads(q); err != nil {
			add(path, err.Error(), "")
		}
	}
	return errors.Join(errs...)
}

func (m *sqlModule) statements() []string {
	if m.Query != "" {
		return []string{m.Query}
	}
	return m.Queries
}

var (
	sqlLeading  = regexp.MustCompile(`^(?:[\s(;]|--[ \t][^\n]*\n|#[^\n]*\n|/\*[^!M+][\s\S]*?\*/)*`)
	sqlWord     = regexp.MustCompile(`^[A-Za-z]+`)
	sqlIntoFile = regexp.MustCompile(`(?i)\binto\s+(outfile|dumpfile)\b`)
)

// sqlReads says why a statement cannot be a read. Servers before read-only transactions have nothing else; the others
// would still let SET GLOBAL or SELECT … INTO OUTFILE pass.
func sqlReads(query string) error {
	word := strings.ToUpper(sqlWord.FindString(query[len(sqlLeading.FindString(query)):]))
	switch word {
	case "SELECT", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "CHECKSUM", "WITH", "VALUES", "TABLE":
	case "":
		return errors.New("cannot tell whether this statement only reads")
	default:
		return fmt.Errorf("a %s statement is not a read", word)
	}
	if sqlIntoFile.MatchString(query) {
		return errors.New("a query that writes a file is not a read")
	}
	return nil
}

func (m *sqlModule) open(ctx context.Context, host *module.Host) (*mysqlSession, error) {
	s, err := m.mysqlLogin.open(ctx, host)
	if err != nil {
		return nil, err
	}
	for _, arg := range m.Args {
		if hidden, ok := arg.(secret.Secret); ok {
			s.masker.Add(hidden)
		}
	}
	return s, nil
}

// use selects the default database.
func (m *sqlModule) use(ctx context.Context, s *mysqlSession) error {
	if m.Database == "" {
		return nil
	}
	return s.exec(ctx, "USE "+mysqlIdent(m.Database))
}

func (m *sqlModule) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	if !m.Read && m.Unless == "" && m.OnlyIf == "" {
		return module.Plan{Unknown: "an SQL statement without read, unless or onlyif may change anything", Pending: true, Act: true, Effects: m.effects()}, nil
	}
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	if m.Read {
		if err := m.use(ctx, s); err != nil {
			return module.Plan{}, err
		}
		plan, err := m.read(ctx, s)
		plan.Hangs = m.hangs(host)
		return plan, err
	}
	// A database that an earlier task of this check makes is empty: what is asked of it, it does not have.
	if e, pending := host.Effects.Last(databaseKind, m.Database); !pending || e.Value != true || e.Maybe || sqlTouched(host, m.Database) {
		if task := m.hangs(host); task != "" {
			return module.Plan{Unknown: "it hangs on what " + yetToRun(task), Hangs: task, Pending: true, Effects: m.effects()}, nil
		}
	}
	needed, err := m.needed(ctx, s)
	if err != nil {
		return module.Plan{}, err
	}
	plan := module.Plan{Values: sqlValues(&mysqlRows{}, 0), Idle: !needed, Effects: m.effects()}
	if needed {
		plan.Changes = []module.Change{{What: "run SQL", After: strings.Join(m.statements(), ";\n")}}
		plan.Pending = true
	}
	return plan, nil
}

// sqlEffects are what statements that nobody has looked at make of a server: anything in it.
var sqlEffects = []module.Effect{{Kind: sqlKind}}

// settings fits a statement that sets one server variable and does nothing else.
var settings = regexp.MustCompile(`(?i)^\s*SET\s+(?:GLOBAL\s+|PERSIST\s+|@@GLOBAL\.|@@PERSIST\.)(\w+)\s*=[^,;]*;?\s*$`)

// effects are what the statements make of the server.
func (m *sqlModule) effects() []module.Effect {
	var list []module.Effect
	for _, q := range m.statements() {
		set := settings.FindStringSubmatch(q)
		if set == nil {
			return sqlEffects
		}
		list = append(list, module.Effect{Kind: variableKind, Name: strings.ToLower(set[1])})
	}
	return list
}

// aboutAccounts fits a query that may look at accounts and what they may do.
var aboutAccounts = regexp.MustCompile(`(?i)\bmysql\b|grants|privileges|\buser`)

// hangs is a task of this check on whose effect it hangs what the queries of Check find, "" if there is none.
func (m *sqlModule) hangs(host *module.Host) string {
	text := m.Unless + m.OnlyIf
	if m.Read {
		text = strings.Join(m.statements(), ";")
	}
	kinds := []string{sqlKind, databaseKind, replicationKind, module.Anything}
	if strings.Contains(text, "@@") || strings.Contains(strings.ToLower(text), "variables") {
		kinds = append(kinds, variableKind)
		if restart := pendingRestart(host); restart.Order > 0 {
			return restart.Task // which reads option files, whoever wrote them
		}
	}
	if m.Database == "mysql" || aboutAccounts.MatchString(text) {
		kinds = append(kinds, accountKind)
	}
	e, _ := host.Effects.Of(kinds...)
	return e.Task
}

// sqlTouched reports whether statements, imports or the replication will have put something into a database that is to be made.
func sqlTouched(host *module.Host, database string) bool {
	made, _ := host.Effects.Last(databaseKind, database)
	later, _ := host.Effects.Of(sqlKind, replicationKind, module.Anything)
	return later.Order > made.Order
}

func (m *sqlModule) needed(ctx context.Context, s *mysqlSession) (bool, error) {
	missing := func(err error) bool { code := mysqlErrno(err); return code == 1049 || code == 1146 }
	if err := m.use(ctx, s); err != nil {
		if missing(err) && m.OnlyIf == "" {
			return true, nil
		}
		return false, err
	}
	if err := s.readOnly(ctx); err != nil {
		return false, err
	}
	if m.Unless != "" {
		rows, err := s.query(ctx, m.Unless)
		if err != nil && !missing(err) {
			return false, fmt.Errorf("cannot run the unless query: %w", err)
		}
		if err == nil && len(rows.Rows) > 0 {
			return false, nil
		}
	}
	if m.OnlyIf != "" {
		rows, err := s.query(ctx, m.OnlyIf)
		if err != nil {
			return false, fmt.Errorf("cannot run the onlyif query: %w", err)
		}
		return len(rows.Rows) > 0, nil
	}
	return true, nil
}

// readOnly opens a transaction in which the server refuses changes, where it can.
func (s *mysqlSession) readOnly(ctx context.Context) error {
	if begin := s.server.statement("read only transaction"); begin != "" {
		return s.exec(ctx, begin)
	}
	return nil
}

func (m *sqlModule) read(ctx context.Context, s *mysqlSession) (module.Plan, error) {
	if err := s.readOnly(ctx); err != nil {
		return module.Plan{}, err
	}
	last := &mysqlRows{}
	for _, q := range m.statements() {
		var err error
		if last, err = s.query(ctx, q, sqlArgs(m.Args)...); err != nil {
			return module.Plan{}, err
		}
	}
	if err := m.expected(last); err != nil {
		return module.Plan{}, err
	}
	return module.Plan{Values: sqlValues(last, 0)}, nil
}

func (m *sqlModule) Apply(ctx context.Context, host *module.Host, _ module.Plan) (values module.Values, err error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := m.use(ctx, s); err != nil {
		return nil, err
	}
	if !m.SQLLogBin {
		if err := s.withoutBinlog(ctx); err != nil {
			return nil, err
		}
	}
	if m.Transaction {
		if err := s.exec(ctx, "START TRANSACTION"); err != nil {
			return nil, err
		}
	}
	// A connection that closes without COMMIT is rolled back by the server.
	last := &mysqlRows{}
	affected := 0
	for i, q := range m.statements() {
		if last, err = s.query(ctx, q, sqlArgs(m.Args)...); err != nil {
			if len(m.statements()) > 1 {
				err = fmt.Errorf("statement %d: %w", i+1, err)
			}
			if noRoom := (*noRoomError)(nil); errors.As(err, &noRoom) {
				err = &module.UnderWayError{Err: err}
			}
			return nil, err
		}
		if len(last.Columns) > 0 {
			continue
		}
		count, err := s.query(ctx, "SELECT ROW_COUNT()")
		if err != nil {
			return nil, err
		}
		if n, ok := mysqlInt(count.Ordered[0][0]); ok && n > 0 {
			affected += n
		}
	}
	if err := m.expected(last); err != nil {
		return nil, err
	}
	if m.Transaction {
		if err := s.exec(ctx, "COMMIT"); err != nil {
			return nil, err
		}
	}
	return sqlValues(last, affected), nil
}

// sqlArgs turns arguments into what the driver takes; secrets leave for the server here.
func sqlArgs(args []any) []any {
	out := make([]any, len(args))
	for i, arg := range args {
		if hidden, ok := arg.(secret.Secret); ok {
			arg = hidden.Reveal()
		}
		out[i] = arg
	}
	return out
}

func sqlValues(r *mysqlRows, affected int) module.Values {
	rows, columns := make([]any, len(r.Rows)), make([]any, len(r.Columns))
	for i, row := range r.Rows {
		rows[i] = row
	}
	for i, c := range r.Columns {
		columns[i] = c
	}
	var first any
	if len(r.Ordered) > 0 && len(r.Ordered[0]) > 0 {
		first = r.Ordered[0][0]
	}
	return module.Values{"rows": rows, "row_count": len(rows), "columns": columns, "value": first, "rows_affected": affected}
}

// expected compares the result with the expect argument.
func (m *sqlModule) expected(r *mysqlRows) error {
	switch want := m.Expect.(type) {
	case nil:
		return nil
	case []any:
		if len(want) != len(r.Rows) {
			return fmt.Errorf("expected %d rows, the server returned %d", len(want), len(r.Rows))
		}
		for i, w := range want {
			columns, ok := w.(map[string]any)
			if !ok {
				columns = map[string]any{}
				if len(r.Columns) > 0 {
					columns[r.Columns[0]] = w
				}
			}
			for name, v := range columns {
				got, ok := r.Rows[i][name]
				if !ok {
					return fmt.Errorf("row %d has no column %q (it has %s)", i+1, name, strings.Join(r.Columns, ", "))
				}
				if !sqlEqual(v, got) {
					return fmt.Errorf("row %d: expected %s to be %v, the server returned %v", i+1, name, v, got)
				}
			}
		}
		return nil
	default:
		if len(r.Ordered) == 0 {
			return fmt.Errorf("expected %v, the server returned no row", want)
		}
		if got := r.Ordered[0][0]; !sqlEqual(want, got) {
			return fmt.Errorf("expected %v, the server returned %v", want, got)
		}
		return nil
	}
}

// sqlEqual compares a written value with a result: numbers by value, true and false as the 1 and 0 that servers have for them.
func sqlEqual(want, got any) bool {
	switch w := want.(type) {
	case secret.Secret:
		want = w.Reveal()
	case bool:
		want = 0
		if w {
			want = 1
		}
	}
	number := func(v any) (float64, bool) {
		r := reflect.ValueOf(v)
		switch {
		case !r.IsValid():
			return 0, false
		case r.CanInt():
			return float64(r.Int()), true
		case r.CanUint():
			return float64(r.Uint()), true
		case r.CanFloat():
			return r.Float(), true
		}
		return 0, false
	}
	a, aIs := number(want)
	b, bIs := number(got)
	if aIs && bIs {
		return a == b
	}
	return reflect.DeepEqual(want, got)
}

// ReadsOnly tells the engine that it changes nothing if it was told so.
func (m *sqlModule) ReadsOnly() bool { return m.Read }
