package modules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("mysql_dump", func() module.Module {
		return &mysqlDump{mysqlLogin: defaultMySQLLogin(), SingleTransaction: "auto", Routines: true, Events: true, Triggers: true,
			Charset: "utf8mb4", MasterData: true}
	})
}

// mysqlDump dumps databases of the host's server into a file on the host, with the binary log coordinates that a replica starts from.
//
// It uses the server family's own dump program. The dump is written under a temporary name (mode 0600), found complete (exit
// status, trailer, coordinates, the server's list of tables) and only then renamed: a dump that was there stays until then. PATH.json beside it
// says what it holds; a dump that still fits, and whose binary log the server still has, is kept. The dump program outlives the
// connection, and its dump is collected by whoever goes on with the run.
//
//	tasks:
//	  - name: dump what the slave starts from
//	    mysql_dump: {databases: '{{ databases }}', dest: /var/lib/runbook/man06/dump.sql, max_age: 12h}
//	    register: dump
//	  - name: tell the coordinates
//	    assert:
//	      that: dump.log_pos > 0
//	      success_msg: "the dump is a picture of {{ dump.log_file }} at {{ dump.log_pos }}"
type mysqlDump struct {
	module.LongStep
	mysqlLogin `yaml:",inline"`
	// Databases to dump.
	Databases []string `yaml:"databases" required:"true"`
	// Absolute path of the dump file; its directory must exist.
	Dest string `yaml:"dest" required:"true"`
	// Dump in one transaction, without locks: auto does so if every table is of a transactional engine and locks all tables
	// otherwise (and says so in the result's warnings), require fails instead of locking, never always locks.
	SingleTransaction string `yaml:"single_transaction" choices:"auto,require,never"`
	// Dump stored procedures and functions.
	Routines bool `yaml:"routines"`
	// Dump events.
	Events bool `yaml:"events"`
	// Dump triggers.
	Triggers bool `yaml:"triggers"`
	// Character set of the dump. latin1 destroys text unless the database holds UTF-8 in latin1 columns.
	Charset string `yaml:"charset"`
	// Tables to leave out, as db.table.
	IgnoreTables []string `yaml:"ignore_tables"`
	// Further options for the dump program; they never pass through a shell.
	ExtraArgs []string `yaml:"extra_args"`
	// Record the binary log coordinates.
	MasterData bool `yaml:"master_data"`
	// Take a new dump if the one that is there is older. Default: any age will do.
	MaxAge time.Duration `yaml:"max_age"`
	// Path or name of the dump program. Default: the one of the server's family found on the host.
	Program string `yaml:"program"`
}

func (*mysqlDump) Returns() []module.Return {
	return []module.Return{
		{Name: "path", Type: "string", Help: "the dump file"},
		{Name: "log_file", Type: "string", Help: "binary log file that the dump is a picture of, empty without master_data"},
		{Name: "log_pos", Type: "int", Help: "position in that file, 0 without master_data"},
		{Name: "gtid", Type: "string", Help: "GTID position of the same moment, empty if the server has none"},
		{Name: "sha256", Type: "string", Help: "checksum of the file"},
		{Name: "size", Type: "int", Help: "bytes"},
		{Name: "databases", Type: "list", Help: "the databases"},
		{Name: "tables", Type: "int", Help: "how many tables it holds"},
		{Name: "charset", Type: "string", Help: "its character set"},
		{Name: "server_id", Type: "int", Help: "server_id of the source"},
		{Name: "server_uuid", Type: "string", Help: "server_uuid of the source, empty on MariaDB"},
		{Name: "finished", Type: "string", Help: "when it was finished, RFC 3339"},
		{Name: "warnings", Type: "list", Help: "what to know about it, such as that tables were locked; usually empty"},
	}
}

func (m *mysqlDump) Validate() error {
	var errs []error
	add := func(p, msg, hint string) { errs = append(errs, &module.ArgError{Path: p, Msg: msg, Hint: hint}) }
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	if err := mysqlDatabaseNames("databases", m.Databases); err != nil {
		errs = append(errs, err)
	}
	if !path.IsAbs(m.Dest) || strings.HasSuffix(m.Dest, "/") || strings.ContainsAny(m.Dest, "\n\x00") {
		add("dest", "not an absolute path of a file", "")
	}
	if m.Charset == "" || !mysqlWordPattern.MatchString(m.Charset) {
		add("charset", fmt.Sprintf("%q is not a name of a character set", m.Charset), "")
	}
	for i, t := range m.IgnoreTables {
		if o, err := parsePrivObject(t); err != nil || o.table == "" {
			add(fmt.Sprintf("ignore_tables[%d]", i), fmt.Sprintf("%q is not db.table", t), "")
		}
	}
	for i, arg := range m.ExtraArgs {
		name, _, _ := strings.Cut(arg, "=")
		p := fmt.Sprintf("extra_args[%d]", i)
		switch {
		case !strings.HasPrefix(arg, "--") || strings.ContainsAny(arg, "\n\x00"):
			add(p, fmt.Sprintf("%q is not a long option", arg), "write --option or --option=value")
		case strings.HasPrefix(name, "--pass"):
			add(p, "a password would be visible in the process list", "use login_password")
		case slices.Contains([]string{"--result-file", "--tab", "--databases", "--all-databases", "--tables", "--defaults-file", "--defaults-extra-file",
			"--no-defaults", "--compact", "--skip-comments", "--xml", "--where", "--no-create-info", "--no-create-db", "--skip-add-drop-table"}, name):
			add(p, fmt.Sprintf("%s would make a dump that this module cannot vouch for", name), "")
		}
	}
	return errors.Join(errs...)
}

// dumpRecord is the file beside a dump that says what it holds.
type dumpRecord struct {
	Format     int      `json:"format"`
	Databases  []string `json:"databases"`
	Options    string   `json:"options"` // arguments that change what is in the dump
	Charset    string   `json:"charset"`
	Size       int      `json:"size"`
	Modified   int      `json:"modified"`
	SHA256     string   `json:"sha256"`
	LogFile    string   `json:"log_file"`
	LogPos     int      `json:"log_pos"`
	GTID       string   `json:"gtid"`
	ServerID   int      `json:"server_id"`
	ServerUUID string   `json:"server_uuid"`
	Server     string   `json:"server"`
	Tables     []string `json:"tables"`
	Warning    string   `json:"warning"`
	Finished   string   `json:"finished"`
}

func (m *mysqlDump) options() string {
	ignore := slices.Clone(m.IgnoreTables)
	sort.Strings(ignore)
	return fmt.Sprintf("charset=%s routines=%t events=%t triggers=%t coordinates=%t ignore=%s extra=%s", m.Charset, m.Routines, m.Events, m.Triggers, m.MasterData,
		strings.Join(ignore, ","), strings.Join(m.ExtraArgs, " "))
}

func (m *mysqlDump) values(r *dumpRecord) module.Values {
	if r == nil {
		r = &dumpRecord{Databases: m.Databases, Charset: m.Charset}
	}
	warnings := []any{}
	if r.Warning != "" {
		warnings = append(warnings, r.Warning)
	}
	return module.Values{"path": m.Dest, "log_file": r.LogFile, "log_pos": r.LogPos, "gtid": r.GTID, "sha256": r.SHA256, "size": r.Size,
		"databases": anyList(r.Databases), "tables": len(r.Tables), "charset": r.Charset, "server_id": r.ServerID, "server_uuid": r.ServerUUID,
		"finished": r.Finished, "warnings": warnings}
}

// dumpPlan is what Check hands to Apply.
type dumpPlan struct {
	single  bool
	warning string
}

func (m *mysqlDump) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	out, err := hostScript(ctx, host, `
d=$(dirname -- "$1")
[ -d "$d" ] || { echo D; exit 0; }
df -Pk -- "$d" | { read -r _; read -r _ _ _ free _; printf 'A %s\n' "$free"; }
[ -f "$1" ] || exit 0
printf 'S %s\n' "$(stat -c '%s %Y' -- "$1")"
[ ! -f "$1.json" ] || cat -- "$1.json"`, m.Dest)
	if err != nil {
		return module.Plan{}, fmt.Errorf("cannot look at %s: %w", m.Dest, err)
	}
	record, why, free := m.existing(string(out.Stdout))

	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	vars, err := s.variables(ctx, "log_bin", "server_id", "server_uuid")
	if err != nil {
		return module.Plan{}, err
	}
	if by, pending := host.Effects.Last(dumpKind, m.Dest); pending && by.Value == m.record() {
		return module.Plan{Values: m.values(nil), Hangs: by.Task}, nil // an earlier task of this check takes the same one
	}
	if vars["log_bin"] != "ON" && pendingRestart(host).Order > 0 {
		on, by := pendingVariable(host, "log_bin")
		if by == "" {
			if on, _, err = optionOnDisk(ctx, host, "log_bin"); err != nil {
				return module.Plan{}, err
			}
		}
		if on != "" && on != "OFF" {
			vars["log_bin"], record = "ON", nil // no dump from before the server wrote a binary log has coordinates
		}
	}
	if m.MasterData && vars["log_bin"] != "ON" {
		return module.Plan{}, errors.New("cannot take a dump with coordinates: the server writes no binary log (log_bin is off)")
	}
	if record != nil {
		if why, err = m.stillFits(ctx, s, record, vars); err != nil {
			return module.Plan{}, err
		}
		if why == "" {
			return module.Plan{Values: m.values(record)}, nil
		}
	}

	if err := m.databasesThere(ctx, host, s); err != nil {
		return module.Plan{}, err
	}
	state := dumpPlan{}
	if state.single, state.warning, err = m.transactional(ctx, s); err != nil {
		return module.Plan{}, err
	}
	if _, err := findClient(ctx, host, s.server, m.Program, "mariadb-dump", "mysqldump"); err != nil {
		return module.Plan{}, err
	}
	if free >= 0 {
		if err := m.fits(ctx, s, free); err != nil {
			return module.Plan{}, err
		}
	}
	return module.Plan{
		Changes: []module.Change{{What: fmt.Sprintf("dump %s to %s", strings.Join(m.Databases, ", "), m.Dest), Before: why, After: "a complete dump"}},
		Values:  m.values(nil), Pending: true, State: state, Effects: m.effects(),
	}, nil
}

// existing reads what the host said of the destination: the record of a dump that is as it was left, or why there is none.
// free is the space in kilobytes, -1 if the directory is missing.
func (m *mysqlDump) existing(text string) (record *dumpRecord, why string, free int) {
	if strings.HasPrefix(text, "D") {
		return nil, "no dump", -1
	}
	line, rest, _ := strings.Cut(text, "\n")
	if _, err := fmt.Sscanf(line, "A %d", &free); err != nil {
		free = -1
	}
	line, rest, found := strings.Cut(rest, "\n")
	var size, modified int
	if _, err := fmt.Sscanf(line, "S %d %d", &size, &modified); !found || err != nil {
		return nil, "no dump", free
	}
	record = &dumpRecord{}
	if err := json.Unmarshal([]byte(rest), record); err != nil || record.Format != 1 {
		return nil, "a file that is no dump of ours", free
	}
	if record.Size != size || record.Modified != modified {
		return nil, "a dump that was changed since it was taken", free
	}
	return record, "", free
}

// stillFits says why the dump of record cannot be used, "" if it can.
func (m *mysqlDump) stillFits(ctx context.Context, s *mysqlSession, record *dumpRecord, vars map[string]string) (string, error) {
	want, have := slices.Clone(m.Databases), slices.Clone(record.Databases)
	sort.Strings(want)
	sort.Strings(have)
	finished, err := time.Parse(time.RFC3339, record.Finished)
	switch {
	case !slices.Equal(want, have):
		return "a dump of " + strings.Join(have, ", "), nil
	case record.Options != m.options():
		return "a dump with other options", nil
	case fmt.Sprint(record.ServerID) != vars["server_id"] || record.ServerUUID != vars["server_uuid"]:
		return "a dump of another server", nil
	case err != nil:
		return "a dump of an unknown time", nil
	case m.MaxAge > 0 && time.Since(finished) > m.MaxAge:
		return "a dump of " + record.Finished + ", older than " + m.MaxAge.String(), nil
	case !m.MasterData:
		return "", nil
	}
	logs, err := s.query(ctx, s.server.statement("binary logs"))
	if err != nil {
		return "", err
	}
	for _, row := range logs.Ordered {
		if mysqlText(row[0]) != record.LogFile {
			continue
		}
		if size, ok := mysqlInt(row[1]); ok && size >= record.LogPos {
			return "", nil
		}
		return fmt.Sprintf("a dump at %s:%d, but the server's file is shorter", record.LogFile, record.LogPos), nil
	}
	return fmt.Sprintf("a dump at %s, which the server no longer has", record.LogFile), nil
}

// dumpKind is the kind of the effect that a dump is taken, by its path.
const dumpKind = "dump"

// record is what makes two dumps to one path the same.
func (m *mysqlDump) record() string {
	databases := slices.Clone(m.Databases)
	sort.Strings(databases)
	return strings.Join(databases, ",") + " " + m.options()
}

// effects are what taking the dump makes of the host.
func (m *mysqlDump) effects() []module.Effect {
	effects := []module.Effect{{Kind: dumpKind, Name: m.Dest, Value: m.record()}}
	for _, file := range []string{m.Dest, m.Dest + ".json"} {
		effects = append(effects, fileEffect(file, pathEffect{kind: "file", owned: owned{Mode: module.Mode{Set: true, Bits: 0o600}}}))
	}
	return effects
}

func (m *mysqlDump) databasesThere(ctx context.Context, host *module.Host, s *mysqlSession) error {
	places, args := mysqlPlaces(m.Databases)
	have, err := s.strings(ctx, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME IN ("+places+")", args...)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range m.Databases {
		if e, pending := host.Effects.Last(databaseKind, name); !slices.Contains(have, name) && (!pending || e.Value != true) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the server has no database %s", strings.Join(missing, ", "))
	}
	return nil
}

// transactional decides whether the dump is taken in one transaction.
func (m *mysqlDump) transactional(ctx context.Context, s *mysqlSession) (single bool, warning string, err error) {
	if m.SingleTransaction == "never" {
		return false, "all tables were locked during the dump", nil
	}
	_, engines, err := s.tables(ctx, m.Databases)
	if err != nil {
		return false, "", err
	}
	var others []string
	for engine, tables := range engines {
		if mysqlTransactional[engine] {
			continue
		}
		for _, t := range tables {
			if !m.ignored(t) {
				others = append(others, t+" ("+engine+")")
			}
		}
	}
	if len(others) == 0 {
		return true, "", nil
	}
	sort.Strings(others)
	if m.SingleTransaction == "require" {
		return false, "", fmt.Errorf("cannot dump without locking: not of a transactional engine: %s", shortList(others))
	}
	return false, "all tables were locked during the dump, because these are not of a transactional engine: " + shortList(others), nil
}

func (m *mysqlDump) ignored(table string) bool {
	for _, t := range m.IgnoreTables {
		o, _ := parsePrivObject(t)
		if o.db+"."+o.table == table {
			return true
		}
	}
	return false
}

// fits compares the free space with what the tables hold: a dump has no indexes, but its text is longer than its rows.
func (m *mysqlDump) fits(ctx context.Context, s *mysqlSession, freeKB int) error {
	places, args := mysqlPlaces(m.Databases)
	rows, err := s.query(ctx, "SELECT CAST(COALESCE(SUM(DATA_LENGTH), 0) AS UNSIGNED) FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ("+places+")", args...)
	if err != nil {
		return err
	}
	if need, ok := mysqlInt(rows.Ordered[0][0]); ok && need/1024 > freeKB {
		return fmt.Errorf("not enough space for the dump: the tables hold %d KB, %s has %d KB free", need>>10, path.Dir(m.Dest), freeKB)
	}
	return nil
}

// dumpArgs are the arguments of the dump program.
func (m *mysqlDump) dumpArgs(s *mysqlSession, client mysqlClient, single bool) []string {
	args := m.clientArgs(s.target)
	flag := func(on bool, yes, no string) {
		if on {
			args = append(args, yes)
		} else if no != "" {
			args = append(args, no)
		}
	}
	flag(single, "--single-transaction", "--lock-all-tables")
	flag(m.Routines, "--routines", "--skip-routines")
	flag(m.Events, "--events", "--skip-events")
	flag(m.Triggers, "--triggers", "--skip-triggers")
	args = append(args, "--default-character-set="+m.Charset, "--comments", "--quick", "--hex-blob", "--no-tablespaces", "--max-allowed-packet=1G")
	mysql := !client.version.MariaDB
	if m.MasterData {
		flag(mysql && client.version.atLeast(8, 0, 26), "--source-data=2", "--master-data=2")
	}
	flag(mysql && client.version.atLeast(8, 0, 17), "--set-gtid-purged=COMMENTED", "")
	flag(mysql && client.version.atLeast(8, 0, 0) && !s.server.atLeast(8, 0, 0), "--column-statistics=0", "")
	for _, t := range m.IgnoreTables {
		o, _ := parsePrivObject(t)
		args = append(args, "--ignore-table="+o.db+"."+o.table)
	}
	args = append(args, m.ExtraArgs...)
	return append(append(args, "--databases", "--"), m.Databases...)
}

const dumpScript = clientProlog + dumpInspect + `
part=$1 program=$2
shift 2
rm -f -- "$part" || exit 1
set -C
exec 4>"$part" || exit 1
set +C
drop=$part
( while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do size=$(stat -c %s -- "$part" 2>/dev/null) && printf 'P %s\n' "$size" || exit; done ) &
watch=$!
[ ! -s "$dir/my.cnf" ] || set -- --defaults-extra-file="$dir/my.cnf" "$@"
"$program" "$@" >&4 || exit
exec 4>&-
sync "$part" 2>/dev/null || sync
inspect "$part"
`

func (m *mysqlDump) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	state, _ := plan.State.(dumpPlan)
	s, err := m.open(ctx, host)
	if err != nil {
		return nil, err
	}
	defer s.close()
	client, err := findClient(ctx, host, s.server, m.Program, "mariadb-dump", "mysqldump")
	if err != nil {
		return nil, err
	}
	tables, _, err := s.tables(ctx, m.Databases)
	if err != nil {
		return nil, err
	}
	for db, list := range tables {
		tables[db] = slices.DeleteFunc(list, func(t string) bool { return m.ignored(db + "." + t) })
	}
	vars, err := s.variables(ctx, "server_id", "server_uuid")
	if err != nil {
		return nil, err
	}

	job, err := host.LongState(ctx)
	if err != nil {
		return nil, err
	}
	part := path.Join(path.Dir(m.Dest), "."+path.Base(m.Dest)+".part")
	rate := pace{verb: "dumped"}
	var written atomic.Int64
	watched, ended := s.watch(ctx, written.Load)
	out, err := bulkScript(watched, m.Runner(host), func(n int) { written.Store(int64(n)); host.Progress(rate.text(n)) }, m.clientPassword(), dumpScript,
		append([]string{part, client.path}, m.dumpArgs(s, client, state.single)...)...)
	if err = ended(err); err != nil {
		if isExit(err) {
			return nil, fmt.Errorf("the dump failed, nothing was replaced: %s", s.masker.Mask(stderrText(err)))
		}
		return nil, fmt.Errorf("the dump was interrupted, nothing was replaced: %w", err)
	}
	record, err := m.verify(out, tables, job != transport.JobNone)
	if err != nil {
		_, _ = hostScript(context.WithoutCancel(ctx), host, `rm -f -- "$1"`, part)
		return nil, fmt.Errorf("the dump is not usable, nothing was replaced: %w", err)
	}
	record.Server, record.ServerUUID, record.Warning = s.server.Text, vars["server_uuid"], state.warning
	record.ServerID, _ = mysqlInt(vars["server_id"])
	if at := s.server.statement("gtid at position"); at != "" && m.MasterData {
		if gtid, err := s.strings(ctx, at, record.LogFile, record.LogPos); err == nil && len(gtid) > 0 {
			record.GTID = gtid[0]
		}
	}
	text, err := json.MarshalIndent(record, "", " ")
	if err != nil {
		return nil, err
	}
	cmd := hostScriptCmd(`
umask 077
rm -f -- "$2.json.part" && cat >"$2.json.part" && mv -f -- "$1" "$2" && mv -f -- "$2.json.part" "$2.json"`, part, m.Dest)
	cmd.Stdin = strings.NewReader(string(text) + "\n")
	if _, err := host.Run(ctx, cmd); err != nil {
		return nil, fmt.Errorf("cannot put the dump in its place: %w", err)
	}
	return m.values(record), nil
}

// verify decides whether what the dump program left is a whole dump. One of an earlier run is as old as its file.
func (m *mysqlDump) verify(out []byte, tables map[string][]string, earlier bool) (*dumpRecord, error) {
	facts, err := parseDumpFacts(out)
	if err != nil {
		return nil, err
	}
	if !facts.Complete {
		return nil, errors.New("its last line is not \"-- Dump completed\"")
	}
	coordinates, ok := parseDumpHeader(facts.Head)
	if m.MasterData && !ok {
		return nil, errors.New("its header holds no binary log coordinates")
	}
	if diff := compareTables(tables, facts.Tables, "the server's tables", "the dump"); diff != "" {
		return nil, fmt.Errorf("%s; were tables made or dropped meanwhile? Then run again", diff)
	}
	finished := time.Now()
	if earlier {
		finished = time.Unix(int64(facts.Modified), 0)
	}
	record := &dumpRecord{Format: 1, Databases: m.Databases, Options: m.options(), Charset: m.Charset, Size: facts.Size, Modified: facts.Modified,
		SHA256: facts.SHA256, LogFile: coordinates.File, LogPos: coordinates.Pos, GTID: coordinates.GTID, Finished: finished.UTC().Format(time.RFC3339)}
	for _, db := range facts.databases() {
		for _, t := range facts.Tables[db] {
			record.Tables = append(record.Tables, db+"."+t)
		}
	}
	return record, nil
}
