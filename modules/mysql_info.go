package modules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"runbook/engine/module"
)

func init() {
	register("mysql_info", func() module.Module { return &mysqlInfo{mysqlLogin: defaultMySQLLogin()} })
	register("mysql_wait_position", func() module.Module {
		return &mysqlWaitPosition{mysqlLogin: defaultMySQLLogin(), Timeout: 30 * time.Second}
	})
}

// mysqlInfo reads what a server is: version, settings, its place in its binary log, its replication, its databases. It changes nothing
// and runs in a check too.
//
//	tasks:
//	  - name: the state of the replication
//	    mysql_info: {}
//	    register: state
//	  - name: it runs and is at most a minute behind
//	    assert:
//	      that: [state.replica.running, state.replica.lag >= 0, state.replica.lag <= 60]
//	      msg: "the slave does not replicate: {{ state.replica.diagnosis }}"
type mysqlInfo struct {
	mysqlLogin `yaml:",inline"`
	// Further server variables to return.
	Variables []string `yaml:"variables"`
	// Databases whose tables to checksum (CHECKSUM TABLE reads every row). Equal only between servers that store rows alike.
	Checksum []string `yaml:"checksum"`
	// Databases whose rows to count.
	Counts []string `yaml:"counts"`
	// Replication connection to report. Default: the server's unnamed one.
	ConnectionName string `yaml:"connection_name"`
}

func (*mysqlInfo) Returns() []module.Return {
	return []module.Return{
		{Name: "flavour", Type: "string", Help: "mariadb or mysql"},
		{Name: "version", Type: "string", Help: "as the server gives it"},
		{Name: "version_number", Type: "list", Help: "three numbers"},
		{Name: "server_id", Type: "int", Help: "number of the server, which must differ between source and replica"},
		{Name: "server_uuid", Type: "string", Help: "empty on MariaDB"},
		{Name: "read_only", Type: "bool", Help: "ordinary accounts may not write"},
		{Name: "super_read_only", Type: "bool", Help: "nobody may write"},
		{Name: "log_bin", Type: "bool", Help: "the server writes a binary log"},
		{Name: "binlog_format", Type: "string", Help: "ROW, MIXED or STATEMENT"},
		{Name: "log_file", Type: "string", Help: "current binary log file, empty without one"},
		{Name: "log_pos", Type: "int", Help: "current position in it, 0 without one"},
		{Name: "binlog_do_db", Type: "list", Help: "databases that the binary log is limited to"},
		{Name: "binlog_ignore_db", Type: "list", Help: "databases that the binary log leaves out"},
		{Name: "gtid", Type: "string", Help: "executed GTID position (gtid_executed, or gtid_binlog_pos on MariaDB)"},
		{Name: "replica", Type: "map", Help: "the fields that mysql_replication returns, for connection_name"},
		{Name: "connections", Type: "list", Help: "the same fields and a name, for every connection that is configured; the unnamed one's name is empty"},
		{Name: "dump_threads", Type: "int", Help: "replicas that read this server's binary log now"},
		{Name: "databases", Type: "map", Help: "number of tables by database; views not counted, the server's own databases left out"},
		{Name: "tables", Type: "map", Help: "table names by database, for the databases in checksum or counts"},
		{Name: "checksums", Type: "map", Help: "checksum by db.table, for the databases in checksum; nil where the server has none"},
		{Name: "counts", Type: "map", Help: "rows by db.table, for the databases in counts"},
		{Name: "variables", Type: "map", Help: "the variables asked for; one that the server does not know is missing"},
		{Name: "datadir", Type: "string", Help: "data directory"},
		{Name: "port", Type: "int", Help: "TCP port"},
		{Name: "socket", Type: "string", Help: "unix socket"},
	}
}

func (m *mysqlInfo) Validate() error {
	var errs []error
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	for i, v := range m.Variables {
		if v == "" || !mysqlWordPattern.MatchString(v) {
			errs = append(errs, &module.ArgError{Path: fmt.Sprintf("variables[%d]", i), Msg: fmt.Sprintf("%q is not a name of a variable", v)})
		}
	}
	return errors.Join(append(errs, mysqlDatabaseNames("checksum", m.Checksum), mysqlDatabaseNames("counts", m.Counts))...)
}

var infoVariables = []string{"server_id", "server_uuid", "read_only", "super_read_only", "log_bin", "binlog_format", "datadir", "port", "socket",
	"gtid_executed", "gtid_binlog_pos"}

func (m *mysqlInfo) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	vars, err := s.variables(ctx, append(slices.Clone(infoVariables), m.Variables...)...)
	if err != nil {
		return module.Plan{}, err
	}
	number := func(name string) int { n, _ := mysqlInt(vars[name]); return n }
	asked := map[string]any{}
	for _, name := range m.Variables {
		if v, ok := vars[strings.ToLower(name)]; ok {
			asked[name] = v
		}
	}
	values := module.Values{
		"flavour": s.server.flavour(), "version": s.server.Text, "version_number": []any{s.server.Number[0], s.server.Number[1], s.server.Number[2]},
		"server_id": number("server_id"), "server_uuid": vars["server_uuid"], "read_only": isOn(vars["read_only"]), "super_read_only": isOn(vars["super_read_only"]),
		"log_bin": isOn(vars["log_bin"]), "binlog_format": vars["binlog_format"], "gtid": vars["gtid_executed"] + vars["gtid_binlog_pos"],
		"datadir": vars["datadir"], "port": number("port"), "socket": vars["socket"], "variables": asked,
	}
	for _, read := range []func(context.Context, *mysqlSession, module.Values) error{m.source, m.replication, m.databases, m.contents} {
		if err := read(ctx, s, values); err != nil {
			return module.Plan{}, err
		}
	}
	plan := module.Plan{Values: values}
	plan.Hangs, plan.Hanging = m.hangs(host)
	return plan, nil
}

// hangs says which fields hang on tasks of this check that have yet to run, and names one of these.
func (m *mysqlInfo) hangs(host *module.Host) (task string, fields []string) {
	since := func(e module.Effect, pending bool, names ...string) {
		if pending {
			task, fields = e.Task, append(fields, names...)
		}
	}
	e, pending := host.Effects.Of(replicationKind, sqlKind, module.Anything)
	since(e, pending, "replica")
	e, pending = host.Effects.Of(databaseKind, replicationKind, sqlKind, module.Anything)
	since(e, pending, "databases", "tables", "checksums", "counts", "log_pos", "gtid", "dump_threads")
	e, pending = host.Effects.Of(variableKind, module.Anything)
	since(e, pending, "read_only", "super_read_only", "binlog_format", "variables")
	for option, names := range map[string][]string{
		"server_id": {"server_id"}, "read_only": {"read_only"}, "binlog_format": {"binlog_format"},
		"log_bin": {"log_bin", "log_file", "log_pos"}, "binlog_do_db": {"binlog_do_db"}, "binlog_ignore_db": {"binlog_ignore_db"},
	} {
		if _, by := pendingVariable(host, option); by != "" {
			task, fields = by, append(fields, names...)
		}
	}
	return task, fields
}

// isOn reads a switch: MariaDB has more words than ON for read_only.
func isOn(value string) bool { return value != "" && value != "OFF" && value != "0" }

// source reads the place in the binary log, and who reads it.
func (m *mysqlInfo) source(ctx context.Context, s *mysqlSession, values module.Values) error {
	row, err := s.statusRow(ctx, s.server.statement("source status"))
	if err != nil {
		return err
	}
	pos, _ := mysqlInt(row["position"])
	values["log_file"], values["log_pos"] = mysqlText(row["file"]), pos
	for _, name := range []string{"binlog_do_db", "binlog_ignore_db"} {
		list := []any{}
		for db := range strings.SplitSeq(mysqlText(row[name]), ",") {
			if db != "" {
				list = append(list, db)
			}
		}
		values[name] = list
	}
	threads, err := s.query(ctx, "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%'")
	if err != nil {
		return err
	}
	values["dump_threads"], _ = mysqlInt(threads.Ordered[0][0])
	return nil
}

func (m *mysqlInfo) replication(ctx context.Context, s *mysqlSession, values module.Values) error {
	status, err := s.replica(ctx, m.ConnectionName)
	if err != nil {
		return err
	}
	values["replica"] = map[string]any(status.values())
	all, err := s.replicas(ctx)
	if err != nil {
		return err
	}
	connections := make([]any, len(all))
	for i, r := range all {
		fields := map[string]any(r.values())
		fields["name"] = r.Name
		connections[i] = fields
	}
	values["connections"] = connections
	return nil
}

func (m *mysqlInfo) databases(ctx context.Context, s *mysqlSession, values module.Values) error {
	rows, err := s.query(ctx, `SELECT s.SCHEMA_NAME, COUNT(t.TABLE_NAME) FROM information_schema.SCHEMATA s
		LEFT JOIN information_schema.TABLES t ON t.TABLE_SCHEMA = s.SCHEMA_NAME AND t.TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')
		WHERE s.SCHEMA_NAME NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') GROUP BY s.SCHEMA_NAME`)
	if err != nil {
		return err
	}
	databases := map[string]any{}
	for _, row := range rows.Ordered {
		databases[mysqlText(row[0])] = row[1]
	}
	values["databases"] = databases
	return nil
}

// contents reads tables, checksums and row counts of the databases asked for.
func (m *mysqlInfo) contents(ctx context.Context, s *mysqlSession, values module.Values) error {
	names, sums, counts := map[string]any{}, map[string]any{}, map[string]any{}
	values["tables"], values["checksums"], values["counts"] = names, sums, counts
	wanted := slices.Compact(slices.Sorted(slices.Values(slices.Concat(m.Checksum, m.Counts))))
	if len(wanted) == 0 {
		return nil
	}
	tables, _, err := s.tables(ctx, wanted)
	if err != nil {
		return err
	}
	for _, db := range wanted {
		names[db] = anyList(tables[db])
		var quoted, selects []string
		for _, t := range tables[db] {
			full := mysqlIdent(db) + "." + mysqlIdent(t)
			quoted = append(quoted, full)
			selects = append(selects, "SELECT COUNT(*) FROM "+full)
		}
		if len(quoted) == 0 {
			continue
		}
		if slices.Contains(m.Checksum, db) {
			rows, err := s.query(ctx, "CHECKSUM TABLE "+strings.Join(quoted, ", "))
			if err != nil {
				return err
			}
			for i, row := range rows.Ordered {
				sums[db+"."+tables[db][i]] = row[1]
			}
		}
		if slices.Contains(m.Counts, db) {
			rows, err := s.query(ctx, strings.Join(selects, " UNION ALL "))
			if err != nil {
				return err
			}
			for i, row := range rows.Ordered {
				counts[db+"."+tables[db][i]] = row[0]
			}
		}
	}
	return nil
}

// Apply is never called: Check finds no changes.
func (m *mysqlInfo) Apply(_ context.Context, _ *module.Host, plan module.Plan) (module.Values, error) {
	return plan.Values, nil
}

// mysqlWaitPosition waits on a replica until it has executed the source's binary log up to a position, such as the one
// that mysql_info returned on the source.
//
//	tasks:
//	  - name: where the master's binary log is
//	    mysql_info: {}
//	    delegate_to: voms1.example.org
//	    register: source
//	  - name: the slave has all of it
//	    mysql_wait_position: {source_log_file: '{{ source.log_file }}', source_log_pos: '{{ source.log_pos }}', wait_timeout: 2m}
type mysqlWaitPosition struct {
	mysqlLogin `yaml:",inline"`
	// The source's binary log file.
	SourceLogFile string `yaml:"source_log_file" required:"true"`
	// Position in it.
	SourceLogPos int `yaml:"source_log_pos" required:"true"`
	// How long to wait.
	Timeout time.Duration `yaml:"wait_timeout"`
	// Replication connection. Default: the server's unnamed one.
	ConnectionName string `yaml:"connection_name"`
}

func (*mysqlWaitPosition) Returns() []module.Return { return replicaReturns }

func (m *mysqlWaitPosition) Validate() error {
	var errs []error
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	if m.SourceLogPos < 1 {
		errs = append(errs, &module.ArgError{Path: "source_log_pos", Msg: "not a position"})
	}
	return errors.Join(errs...)
}

func (m *mysqlWaitPosition) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	status, err := s.replica(ctx, m.ConnectionName)
	if err != nil {
		return module.Plan{}, err
	}
	if status == nil {
		return module.Plan{}, errNotReplica
	}
	plan := module.Plan{Values: maps.Clone(status.values()), Wait: true}
	order, ok := comparePositions(status.ExecFile, status.ExecPos, m.SourceLogFile, m.SourceLogPos)
	if ok && order >= 0 {
		return plan, nil
	}
	at := fmt.Sprintf("%s:%d", m.SourceLogFile, m.SourceLogPos)
	plan.Changes = []module.Change{{What: "wait until " + at + " is executed", Before: fmt.Sprintf("%s:%d", status.ExecFile, status.ExecPos), After: at}}
	plan.Pending = true
	return plan, nil
}

func (m *mysqlWaitPosition) Apply(ctx context.Context, host *module.Host, _ module.Plan) (module.Values, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return nil, err
	}
	defer s.close()
	args := []any{m.SourceLogFile, m.SourceLogPos, max(1, int(m.Timeout/time.Second))}
	statement := "wait position"
	if m.ConnectionName != "" {
		statement, args = statement+" of connection", append(args, m.ConnectionName)
	}
	text := s.server.statement(statement)
	if text == "" {
		return nil, fmt.Errorf("%s %s has no named replication connections", s.server.family(), s.server.Text)
	}
	rows, err := s.query(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	status, err := s.replica(ctx, m.ConnectionName)
	if err != nil {
		return nil, err
	}
	if status == nil {
		return nil, errNotReplica
	}
	if n, ok := mysqlInt(rows.Ordered[0][0]); !ok || n < 0 {
		why := fmt.Sprintf("did not reach it within %s", m.Timeout)
		if !ok {
			why = "stopped replicating"
		}
		return nil, fmt.Errorf("the replica %s: wanted %s:%d, executed %s:%d; %s", why, m.SourceLogFile, m.SourceLogPos, status.ExecFile, status.ExecPos, status.state())
	}
	return status.values(), nil
}

// ReadsOnly tells the engine that it changes nothing.
func (*mysqlInfo) ReadsOnly() bool { return true }

// ReadsOnly tells the engine that it changes nothing.
func (*mysqlWaitPosition) ReadsOnly() bool { return true }
