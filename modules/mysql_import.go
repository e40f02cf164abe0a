package modules

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("mysql_import", func() module.Module { return &mysqlImport{mysqlLogin: defaultMySQLLogin(), Charset: "utf8mb4"} })
}

// mysqlImport loads a dump file of the host into the host's server, and refuses to harm data that is not its own.
//
// Before anything is touched the file must be whole (trailer, checksum, the databases that are meant). A database that holds anything
// is left alone unless an earlier import of ours was cut off in it, or overwrite is set. The table runbook.imports remembers, for each
// database, which dump was loaded: a second run with the same dump does nothing. A server that is already replicating is
// refused. An account with SUPER, such as root, writes through read_only; super_read_only must be off during the import. The import
// outlives the connection, and is not begun a second time by whoever goes on with the run.
//
//	tasks:
//	  - name: insert the dump, unless these databases hold anything else
//	    mysql_import:
//	      src: /var/lib/runbook/man06/dump.sql
//	      databases: '{{ databases }}'
//	      sha256: '{{ hosts["voms1.example.org"].dump.sha256 }}'
type mysqlImport struct {
	module.LongStep
	mysqlLogin `yaml:",inline"`
	// Absolute path of the dump file on the host.
	Src string `yaml:"src" required:"true"`
	// Databases that the dump holds: all of them, and no others.
	Databases []string `yaml:"databases" required:"true"`
	// SHA-256 that the file must have. Default: the one that it has.
	SHA256 string `yaml:"sha256" late:"true"`
	// Size in bytes that the file must have.
	Size int `yaml:"size"`
	// Drop the databases first, whatever they hold. Their data is lost.
	Overwrite bool `yaml:"overwrite"`
	// Write the import to this server's binary log.
	SQLLogBin bool `yaml:"sql_log_bin"`
	// Character set that the dump was made with.
	Charset string `yaml:"charset"`
	// Path or name of the client program. Default: the one of the server's family found on the host.
	Program string `yaml:"program"`
}

func (*mysqlImport) Returns() []module.Return {
	return []module.Return{
		{Name: "databases", Type: "list", Help: "the databases"},
		{Name: "tables", Type: "int", Help: "how many tables were loaded"},
		{Name: "sha256", Type: "string", Help: "checksum of the dump"},
		{Name: "log_file", Type: "string", Help: "the source's binary log file that the dump is a picture of, empty if it has no coordinates"},
		{Name: "log_pos", Type: "int", Help: "position in that file"},
		{Name: "finished", Type: "string", Help: "when the import was finished, by the server's clock"},
	}
}

func (m *mysqlImport) Validate() error {
	var errs []error
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	if err := mysqlDatabaseNames("databases", m.Databases); err != nil {
		errs = append(errs, err)
	}
	for i, name := range m.Databases {
		if slices.Contains([]string{"runbook", "mysql", "sys", "information_schema", "performance_schema"}, strings.ToLower(name)) {
			errs = append(errs, &module.ArgError{Path: fmt.Sprintf("databases[%d]", i), Msg: fmt.Sprintf("%s belongs to the server or to runbook", name)})
		}
	}
	if !path.IsAbs(m.Src) || strings.ContainsAny(m.Src, "\n\x00") {
		errs = append(errs, &module.ArgError{Path: "src", Msg: "not an absolute path"})
	}
	if m.SHA256 != "" && !sha256Pattern.MatchString(m.SHA256) {
		errs = append(errs, &module.ArgError{Path: "sha256", Msg: "not a SHA-256 checksum: 64 hexadecimal digits"})
	}
	if m.Charset == "" || !mysqlWordPattern.MatchString(m.Charset) {
		errs = append(errs, &module.ArgError{Path: "charset", Msg: fmt.Sprintf("%q is not a name of a character set", m.Charset)})
	}
	return errors.Join(errs...)
}

// The table that remembers imports. used is set when replication was started from the import's coordinates: from then on the
// replica's own position counts.
const importsTable = "`runbook`.`imports`"

var importsDDL = []string{
	"CREATE DATABASE IF NOT EXISTS `runbook` CHARACTER SET utf8",
	"CREATE TABLE IF NOT EXISTS " + importsTable + ` (
		name VARCHAR(64) CHARACTER SET utf8 COLLATE utf8_bin NOT NULL PRIMARY KEY,
		sha256 CHAR(64) CHARACTER SET ascii NOT NULL,
		state VARCHAR(16) CHARACTER SET ascii NOT NULL,
		started DATETIME NOT NULL,
		finished DATETIME NULL,
		log_file VARCHAR(255) CHARACTER SET utf8 NOT NULL,
		log_pos BIGINT NOT NULL,
		gtid TEXT CHARACTER SET ascii NULL,
		tables INT NOT NULL,
		used DATETIME NULL
	) ENGINE=InnoDB`,
}

type importMark struct {
	sha256, state, finished, file string
	pos, tables                   int
}

const importing, imported = "importing", "complete"

// importLock is the server-side lock that a running import holds: one that outlived its run is seen.
const importLock = "runbook.import"

// importEnds is how long an import may take to end after its client.
const importEnds = 3 * time.Second

// importMarks reads the marks of databases; none if the table does not exist.
func (s *mysqlSession) importMarks(ctx context.Context, databases []string) (map[string]importMark, error) {
	places, args := mysqlPlaces(databases)
	rows, err := s.query(ctx, "SELECT name, sha256, state, finished, log_file, log_pos, tables FROM "+importsTable+" WHERE name IN ("+places+")", args...)
	if code := mysqlErrno(err); code == 1146 || code == 1049 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	marks := map[string]importMark{}
	for _, row := range rows.Ordered {
		mark := importMark{sha256: mysqlText(row[1]), state: mysqlText(row[2]), finished: mysqlText(row[3]), file: mysqlText(row[4])}
		mark.pos, _ = mysqlInt(row[5])
		mark.tables, _ = mysqlInt(row[6])
		marks[mysqlText(row[0])] = mark
	}
	return marks, nil
}

func (m *mysqlImport) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	if doubt := inDoubt(host, pathKind, m.Src); doubt != nil {
		return *doubt, nil
	}
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	marks, err := s.importMarks(ctx, m.Databases)
	if err != nil {
		return module.Plan{}, err
	}
	tables, _, err := s.tables(ctx, m.Databases)
	if err != nil {
		return module.Plan{}, err
	}
	wanted := strings.ToLower(m.SHA256)
	there := true
	late := isPending(host, m.Src) || host.Late["sha256"] != "" // it is another dump than any that was imported before
	if wanted == "" && !late {
		if wanted, there, err = m.fileSum(ctx, host); err != nil {
			return module.Plan{}, err
		}
	}
	if there && !late && m.done(wanted, marks, tables) {
		return module.Plan{Values: m.values(marks[m.Databases[0]], marks)}, nil
	}
	job, err := host.LongState(ctx)
	if err != nil {
		return module.Plan{}, err
	}
	if job == transport.JobNone {
		if err := m.mayImport(ctx, s, wanted, marks, tables); err != nil {
			return module.Plan{}, err
		}
	}
	plan := module.Plan{Values: m.values(importMark{sha256: wanted}, nil), Pending: true}
	if m.SHA256 != "" && !late {
		out, err := hostScript(ctx, host, `[ ! -f "$1" ] || echo there`, m.Src)
		if err != nil {
			return module.Plan{}, err
		}
		there = len(out.Stdout) > 0
	}
	if !there {
		// What brings it may not have run yet; if it should be there by now, Apply says so.
		plan.Unknown = fmt.Sprintf("the dump %s is not there yet", m.Src)
		return plan, nil
	}
	if _, err := findClient(ctx, host, s.server, m.Program, "mariadb", "mysql"); err != nil {
		return module.Plan{}, err
	}
	for _, name := range m.Databases {
		before, verb := "empty", "import database "+name
		if n := len(tables[name]); n > 0 {
			before = fmt.Sprintf("%d tables", n)
			if m.Overwrite {
				verb = "drop database " + name + " and import it"
			} else {
				before += " of an import that was cut off"
			}
		}
		plan.Changes = append(plan.Changes, module.Change{What: verb, Before: before, After: "dump " + m.Src})
		plan.Effects = append(plan.Effects, module.Effect{Kind: databaseKind, Name: name, Value: true})
	}
	plan.Effects = append(plan.Effects, sqlEffects...)
	return plan, nil
}

func (m *mysqlImport) fileSum(ctx context.Context, host *module.Host) (sum string, there bool, err error) {
	out, err := hostScript(ctx, host, `[ ! -f "$1" ] || sha256sum <"$1"`, m.Src)
	if err != nil {
		return "", false, fmt.Errorf("cannot read %s: %w", m.Src, err)
	}
	sum, _, there = strings.Cut(string(out.Stdout), " ")
	return sum, there, nil
}

// done says whether every database was loaded from the dump with this checksum, and still has tables.
func (m *mysqlImport) done(sum string, marks map[string]importMark, tables map[string][]string) bool {
	for _, name := range m.Databases {
		mark := marks[name]
		if mark.state != imported || mark.sha256 != sum || (mark.tables > 0 && len(tables[name]) == 0) {
			return false
		}
	}
	return true
}

// mayImport refuses an import that would harm something.
func (m *mysqlImport) mayImport(ctx context.Context, s *mysqlSession, sum string, marks map[string]importMark, tables map[string][]string) error {
	if !m.Overwrite {
		others, err := s.otherObjects(ctx, m.Databases)
		if err != nil {
			return err
		}
		var foreign []string
		for _, name := range m.Databases {
			mark, has := marks[name]
			switch {
			case len(tables[name]) == 0 && !has && others[name] > 0:
				foreign = append(foreign, fmt.Sprintf("%s holds %d views, routines or events that no import of ours made", name, others[name]))
			case len(tables[name]) == 0:
			case !has:
				foreign = append(foreign, fmt.Sprintf("%s holds %d tables that no import of ours made", name, len(tables[name])))
			case mark.state == imported && mark.sha256 != sum:
				foreign = append(foreign, fmt.Sprintf("%s was imported on %s from another dump (SHA-256 %.12s…)", name, mark.finished, mark.sha256))
			case mark.state == imported:
				foreign = append(foreign, fmt.Sprintf("%s was imported on %s already, but not all the others", name, mark.finished))
			}
		}
		if len(foreign) > 0 {
			return fmt.Errorf("refused, nothing was touched: %s; move it away, or set overwrite: true to drop and reload (the data there is lost)", strings.Join(foreign, "; "))
		}
	}
	status, err := s.replicas(ctx)
	if err != nil {
		return err
	}
	for _, r := range status {
		if r.SQLRunning == "Yes" {
			return errors.New("refused, nothing was touched: this server is replicating; stop that first (mysql_replication with state: stopped)")
		}
	}
	vars, err := s.variables(ctx, "super_read_only")
	if err != nil {
		return err
	}
	if vars["super_read_only"] == "ON" {
		return errors.New("cannot import: super_read_only is on, so nobody may write; switch it off for the import (SET GLOBAL super_read_only = 0)")
	}
	return m.lockFree(ctx, s)
}

// otherObjects counts what databases hold beside tables.
func (s *mysqlSession) otherObjects(ctx context.Context, databases []string) (map[string]int, error) {
	places, args := mysqlPlaces(databases)
	rows, err := s.query(ctx, "SELECT db, COUNT(*) FROM ("+
		"SELECT TABLE_SCHEMA AS db FROM information_schema.TABLES WHERE TABLE_TYPE NOT IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_SCHEMA IN ("+places+") "+
		"UNION ALL SELECT ROUTINE_SCHEMA FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA IN ("+places+") "+
		"UNION ALL SELECT EVENT_SCHEMA FROM information_schema.EVENTS WHERE EVENT_SCHEMA IN ("+places+")) o GROUP BY db",
		slices.Concat(args, args, args)...)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, row := range rows.Ordered {
		counts[mysqlText(row[0])], _ = mysqlInt(row[1])
	}
	return counts, nil
}

// lockFree refuses to import while another import runs. One whose client is gone ends with the statement that it has begun, which
// on a disk that was full may take the server a minute.
func (m *mysqlImport) lockFree(ctx context.Context, s *mysqlSession) error {
	begin := time.Now()
	limit := begin.Add(importEnds)
	for {
		rows, err := s.query(ctx, "SELECT IS_USED_LOCK(?)", importLock)
		if err != nil {
			return err
		}
		id, used := mysqlInt(rows.Ordered[0][0])
		if !used {
			return nil
		}
		waits, _, err := s.waitsForRoom(ctx)
		if err != nil {
			return s.explain(err)
		}
		if waits {
			if full := s.fullDisks(ctx, mysqlWriteKB); full != "" || time.Since(begin) > mysqlPatience.room {
				return &noRoomError{full}
			}
			limit = time.Now().Add(importEnds)
		}
		if time.Now().After(limit) {
			return fmt.Errorf("an import is still running on this server (connection %d): wait until it ends, or end it with KILL %d", id, id)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (m *mysqlImport) values(first importMark, marks map[string]importMark) module.Values {
	tables := 0
	for _, mark := range marks {
		tables += mark.tables
	}
	return module.Values{"databases": anyList(m.Databases), "tables": tables, "sha256": first.sha256, "log_file": first.file, "log_pos": first.pos,
		"finished": first.finished}
}

const importInspect = dumpInspect + `
[ -f "$1" ] || { echo "there is no dump file $1" >&2; exit 1; }
inspect "$1"`

const importScript = clientProlog + `
src=$1 program=$2 sandbox=$3
shift 3
exec 4<"$src" || exit 1
[ "$sandbox" = no ] || IFS= read -r line <&4
[ ! -s "$dir/my.cnf" ] || set -- --defaults-extra-file="$dir/my.cnf" "$@"
"$program" "$@" <&4 &
client=$!
exec 4<&-
( while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do sed -n 's/^pos:[^0-9]*/P /p' "/proc/$client/fdinfo/0" 2>/dev/null || exit; done ) &
watch=$!
wait "$client"
code=$?
client=
exit "$code"`

func (m *mysqlImport) Apply(ctx context.Context, host *module.Host, _ module.Plan) (module.Values, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return nil, err
	}
	defer s.close()
	facts, coordinates, err := m.verify(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("the dump is not usable, nothing was touched: %w", err)
	}
	client, err := findClient(ctx, host, s.server, m.Program, "mariadb", "mysql")
	if err != nil {
		return nil, err
	}
	job, err := host.LongState(ctx)
	if err != nil {
		return nil, err
	}
	if job == transport.JobNone { // an import that was begun earlier has its marks, and would lose its tables
		if err := m.begin(ctx, s, facts, coordinates); err != nil {
			return nil, err
		}
	}

	rate := pace{verb: "imported", total: facts.Size}
	var read atomic.Int64
	watched, ended := s.watch(ctx, read.Load)
	_, err = bulkScript(watched, m.Runner(host), func(n int) { read.Store(int64(n)); host.Progress(rate.text(n)) }, m.clientPassword(), importScript,
		append([]string{m.Src, client.path, map[bool]string{true: "yes", false: "no"}[facts.Sandbox]}, m.importArgs(s, client)...)...)
	if err = ended(err); err != nil {
		if isExit(err) {
			text := s.masker.Mask(stderrText(err))
			if full := s.fullDisks(ctx, mysqlExtentKB); full != "" {
				text = full + ": " + text
			}
			return nil, fmt.Errorf("the import failed; the databases are incomplete and marked so, a new run loads them again: %s", text)
		}
		return nil, fmt.Errorf("the import was interrupted; a new run loads the databases again: %w", err)
	}
	tables, _, err := s.tables(ctx, m.Databases)
	if err != nil {
		return nil, err
	}
	if diff := compareTables(facts.Tables, tables, "the dump's tables", "the databases"); diff != "" {
		return nil, fmt.Errorf("the import went through, but %s", diff)
	}
	marks, err := s.importMarks(ctx, m.Databases)
	if err != nil {
		return nil, err
	}
	// Who began it may have come as far as this before it was cut off, and what is finished is so once.
	if slices.ContainsFunc(m.Databases, func(name string) bool { return marks[name].state != imported }) {
		places, args := mysqlPlaces(m.Databases)
		if err := s.exec(ctx, "UPDATE "+importsTable+" SET state = '"+imported+"', finished = NOW() WHERE name IN ("+places+")", args...); err != nil {
			return nil, err
		}
		if marks, err = s.importMarks(ctx, m.Databases); err != nil {
			return nil, err
		}
	}
	return m.values(marks[m.Databases[0]], marks), nil
}

// verify decides whether the file is the whole dump that is meant.
func (m *mysqlImport) verify(ctx context.Context, host *module.Host) (*dumpFacts, dumpCoordinates, error) {
	var none dumpCoordinates
	out, err := bulkScript(ctx, host.Run, func(int) {}, "", importInspect, m.Src)
	if err != nil {
		if isExit(err) {
			err = errors.New(stderrText(err))
		}
		return nil, none, err
	}
	facts, err := parseDumpFacts(out)
	if err != nil {
		return nil, none, err
	}
	want, have := slices.Clone(m.Databases), facts.databases()
	sort.Strings(want)
	switch {
	case m.Size > 0 && facts.Size != m.Size:
		return nil, none, fmt.Errorf("%s has %d bytes, expected %d", m.Src, facts.Size, m.Size)
	case m.SHA256 != "" && !strings.EqualFold(m.SHA256, facts.SHA256):
		return nil, none, fmt.Errorf("%s has SHA-256 %s, expected %s", m.Src, facts.SHA256, m.SHA256)
	case !facts.Complete:
		return nil, none, fmt.Errorf("%s is cut off: its last line is not \"-- Dump completed\"", m.Src)
	case len(have) == 0 || slices.Contains(have, ""):
		return nil, none, fmt.Errorf("%s does not say which databases its tables belong to: it must be made with --databases, as mysql_dump does", m.Src)
	case !slices.Equal(want, have):
		return nil, none, fmt.Errorf("%s holds the databases %s, expected %s", m.Src, strings.Join(have, ", "), strings.Join(want, ", "))
	}
	coordinates, _ := parseDumpHeader(facts.Head)
	return facts, coordinates, nil
}

// begin marks the databases as being imported, and drops them if that is meant.
func (m *mysqlImport) begin(ctx context.Context, s *mysqlSession, facts *dumpFacts, c dumpCoordinates) error {
	// Data may have come since Check looked.
	marks, err := s.importMarks(ctx, m.Databases)
	if err != nil {
		return err
	}
	tables, _, err := s.tables(ctx, m.Databases)
	if err != nil {
		return err
	}
	if err := m.mayImport(ctx, s, facts.SHA256, marks, tables); err != nil {
		return err
	}
	// The marks are about this server alone; a drop is logged if the import is.
	if err := s.withoutBinlog(ctx); err != nil {
		return err
	}
	for _, ddl := range importsDDL {
		if err := s.exec(ctx, ddl); err != nil {
			return fmt.Errorf("cannot make the table runbook.imports: %w", err)
		}
	}
	if err := s.exec(ctx, "START TRANSACTION"); err != nil {
		return err
	}
	for _, name := range m.Databases {
		if err := s.exec(ctx, "REPLACE INTO "+importsTable+" (name, sha256, state, started, log_file, log_pos, gtid, tables) VALUES (?, ?, ?, NOW(), ?, ?, ?, ?)",
			name, facts.SHA256, importing, c.File, c.Pos, c.GTID, len(facts.Tables[name])); err != nil {
			return fmt.Errorf("cannot mark the import: %w", err)
		}
	}
	if err := s.exec(ctx, "COMMIT"); err != nil {
		return err
	}
	if !m.Overwrite {
		return nil
	}
	for _, name := range m.Databases {
		if m.SQLLogBin {
			if err := s.exec(ctx, "SET SESSION sql_log_bin = 1"); err != nil {
				return err
			}
		}
		if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+mysqlIdent(name)); err != nil {
			return fmt.Errorf("cannot drop %s: %w", name, err)
		}
	}
	return s.withoutBinlog(ctx)
}

// importArgs are the arguments of the client program. The first statement of its session keeps the import out of the binary log
// and takes the lock that shows that it is running. In binary mode the client obeys no commands in the dump, such as one that starts a shell.
// A statement that fails is not quoted: it may be megabytes of personal data.
func (m *mysqlImport) importArgs(s *mysqlSession, client mysqlClient) []string {
	args := append(m.clientArgs(s.target), "--default-character-set="+m.Charset, "--max-allowed-packet=1G", "--batch", "--loose-skip-print-query-on-error",
		"--init-command=SET SESSION sql_log_bin="+strconv.Itoa(map[bool]int{true: 1}[m.SQLLogBin])+", @runbook=GET_LOCK('"+importLock+"', 0)")
	if client.version.MariaDB || client.version.atLeast(5, 6, 3) {
		args = append(args, "--binary-mode")
	}
	return args
}
