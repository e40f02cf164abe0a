package modules

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"runbook/engine/module"
)

// replicaStatus is a row of SHOW REPLICA STATUS or SHOW SLAVE STATUS, whatever its columns are called.
type replicaStatus struct {
	IORunning, SQLRunning          string // Yes, No or Connecting
	Lag                            int    // seconds, -1 for NULL
	IOErrno, SQLErrno              int
	IOError, SQLError              string
	ReadFile, ExecFile             string
	ReadPos, ExecPos               int
	SourceHost, SourceUser         string
	SourcePort, SourceID           int
	ConnectRetry                   int
	SSL                            bool
	GTID                           string // MariaDB's Using_Gtid (No, Slave_Pos, Current_Pos); "auto" for MySQL's Auto_Position
	Name                           string // connection name or channel
	RetrievedGTID, ExecutedGTIDSet string
}

// parseReplicaStatus reads a status row with columns named as mysqlColumn does. A column that is missing is an error: nothing is
// taken as well by its absence.
func parseReplicaStatus(row map[string]any) (*replicaStatus, error) {
	r := &replicaStatus{}
	var missing []string
	get := func(name string) any {
		v, ok := row[name]
		if !ok {
			missing = append(missing, name)
		}
		return v
	}
	text := func(name string) string { return mysqlText(get(name)) }
	number := func(name string) int { n, _ := mysqlInt(get(name)); return n }
	r.IORunning, r.SQLRunning = text("replica_io_running"), text("replica_sql_running")
	r.Lag = -1
	if n, ok := mysqlInt(get("seconds_behind_source")); ok {
		r.Lag = n
	}
	r.IOErrno, r.SQLErrno = number("last_io_errno"), number("last_sql_errno")
	r.IOError, r.SQLError = text("last_io_error"), text("last_sql_error")
	r.ReadFile, r.ReadPos = text("source_log_file"), number("read_source_log_pos")
	r.ExecFile, r.ExecPos = text("relay_source_log_file"), number("exec_source_log_pos")
	r.SourceHost, r.SourceUser, r.SourcePort = text("source_host"), text("source_user"), number("source_port")
	r.ConnectRetry = number("connect_retry")
	r.SSL = text("source_ssl_allowed") == "Yes"
	r.SourceID, _ = mysqlInt(row["source_server_id"]) // unknown before 5.5
	if v, ok := row["using_gtid"]; ok {
		r.GTID = mysqlText(v)
	} else if n, _ := mysqlInt(row["auto_position"]); n == 1 {
		r.GTID = "auto"
	}
	if r.Name = mysqlText(row["connection_name"]); r.Name == "" {
		r.Name = mysqlText(row["channel_name"])
	}
	r.RetrievedGTID, r.ExecutedGTIDSet = mysqlText(row["retrieved_gtid_set"]), mysqlText(row["executed_gtid_set"])
	if len(missing) > 0 {
		return nil, fmt.Errorf("cannot understand the server's replica status: it has no %s", strings.Join(missing, ", "))
	}
	return r, nil
}

// oneConnection is forConnection for a statement that must be about one connection and no other. Without a channel, MySQL's mean all of them.
func (s mysqlServer) oneConnection(statement, name string, fill ...string) (text string, args []any, err error) {
	if raw := s.statement(statement, fill...); name == "" && strings.Contains(raw, "{channel}") {
		return strings.Replace(raw, "{channel}", "FOR CHANNEL ''", 1), nil, nil
	}
	return s.forConnection(statement, name, fill...)
}

// replica reads the status of one connection; nil if it is not configured.
func (s *mysqlSession) replica(ctx context.Context, name string) (*replicaStatus, error) {
	text, args, err := s.server.oneConnection("replica status", name)
	if err != nil {
		return nil, err
	}
	row, err := s.statusRow(ctx, text, args...)
	if code := mysqlErrno(err); code == 1617 || code == 1618 || code == 3074 { // no such connection or channel
		return nil, nil
	}
	if err != nil || row == nil {
		return nil, err
	}
	return configuredReplica(row)
}

// configuredReplica is parseReplicaStatus, nil where the row only says that nothing is configured.
func configuredReplica(row map[string]any) (*replicaStatus, error) {
	r, err := parseReplicaStatus(row)
	if err != nil || r.SourceHost == "" {
		return nil, err
	}
	return r, nil
}

// replicas reads the status of all connections.
func (s *mysqlSession) replicas(ctx context.Context) ([]*replicaStatus, error) {
	text, args, err := s.server.forConnection("replica status", "")
	if err != nil {
		return nil, err
	}
	if s.server.MariaDB && s.server.atLeast(10, 0, 1) {
		text = "SHOW ALL SLAVES STATUS"
	}
	rows, err := s.query(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	var list []*replicaStatus
	for _, row := range rows.Rows {
		r, err := configuredReplica(mysqlStatusColumns(row))
		if err != nil {
			return nil, err
		}
		if r != nil {
			list = append(list, r)
		}
	}
	return list, nil
}

// running says that both threads run without an error.
func (r *replicaStatus) running() bool {
	return r.IORunning == "Yes" && r.SQLRunning == "Yes" && r.IOErrno == 0 && r.SQLErrno == 0
}

// state describes the threads in a few words.
func (r *replicaStatus) state() string {
	if r == nil {
		return "not configured"
	}
	text := fmt.Sprintf("I/O thread %s, SQL thread %s", r.IORunning, r.SQLRunning)
	if d := r.diagnosis(); d != "" {
		text += " (" + d + ")"
	}
	return text
}

// source is where the replica reads from.
func (r *replicaStatus) source() string {
	return fmt.Sprintf("%s@%s:%d", r.SourceUser, r.SourceHost, r.SourcePort)
}

// diagnosis says in plain words what the last error means, with the server's number and text; "" if there is none.
func (r *replicaStatus) diagnosis() string {
	if r.IOErrno != 0 {
		return diagnoseReplication(r.IOErrno, r.IOError)
	}
	if r.SQLErrno != 0 {
		return diagnoseReplication(r.SQLErrno, r.SQLError)
	}
	return ""
}

// replicationUnreachable are the errors of a connection that could not be made, which the I/O thread retries.
var replicationUnreachable = map[int]bool{1129: true, 1158: true, 1159: true, 1160: true, 1161: true, 2002: true, 2003: true, 2005: true, 2006: true, 2013: true}

// diagnoseReplication puts an error of a replication thread into plain words.
func diagnoseReplication(code int, text string) string {
	words := "replication failed"
	switch {
	case code == 1045 || code == 1698:
		words = "wrong replication user or password"
	case code == 1130:
		words = "the source does not let this host in: it has no account for the address that the connection comes from"
	case code == 1142 || code == 1227:
		words = "the replication account lacks REPLICATION SLAVE on the source"
	case code == 1236:
		words = "the source no longer has, or never had, the binary log at the replica's position: take a new dump and import it"
	case code == 1593 && strings.Contains(text, "server ids"):
		words = "source and replica have the same server_id"
	case code == 1593:
		words = "the replica cannot follow this source"
	case code == 2026:
		words = "TLS between replica and source failed"
	case code == 2061 || strings.Contains(text, "requires secure connection"):
		words = "the account's authentication needs TLS or the source's public key"
	case code == 3118 || code == 4151:
		words = "the replication account is locked"
	case replicationUnreachable[code]:
		words = "the source is not reachable: its server, the tunnel or the firewall is down"
	case code == 1032 || code == 1062 || code == 1146 || code == 1049 || code == 1451 || code == 1452:
		words = "the replica's data is not the source's: take a new dump and import it"
	}
	return fmt.Sprintf("%s: error %d: %s", words, code, text)
}

// position compares places in binary logs: -1, 0 or 1; ok is false if they are of different series of files.
func comparePositions(aFile string, aPos int, bFile string, bPos int) (order int, ok bool) {
	split := func(name string) (base string, n int, ok bool) {
		i := strings.LastIndexByte(name, '.')
		if i < 0 {
			return name, 0, false
		}
		n, err := strconv.Atoi(name[i+1:])
		return name[:i], n, err == nil
	}
	aBase, aN, aOK := split(aFile)
	bBase, bN, bOK := split(bFile)
	switch {
	case !aOK || !bOK || aBase != bBase:
		return 0, false
	case aN != bN:
		return compareInts(aN, bN), true
	}
	return compareInts(aPos, bPos), true
}

func compareInts(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// values are the fields that mysql_replication and mysql_info return of a replica.
func (r *replicaStatus) values() module.Values {
	configured := r != nil
	if r == nil {
		r = &replicaStatus{Lag: -1}
	}
	return module.Values{
		"configured": configured, "running": r.running(), "io_running": r.IORunning, "sql_running": r.SQLRunning,
		"lag": r.Lag, "seconds_behind": r.Lag,
		"last_io_errno": r.IOErrno, "last_io_error": r.IOError, "last_sql_errno": r.SQLErrno, "last_sql_error": r.SQLError, "diagnosis": r.diagnosis(),
		"read_log_file": r.ReadFile, "read_log_pos": r.ReadPos, "exec_log_file": r.ExecFile, "exec_log_pos": r.ExecPos,
		"source_host": r.SourceHost, "source_port": r.SourcePort, "source_user": r.SourceUser, "source_server_id": r.SourceID, "using_gtid": r.GTID,
	}
}

var replicaReturns = []module.Return{
	{Name: "configured", Type: "bool", Help: "whether the server is a replica"},
	{Name: "running", Type: "bool", Help: "both threads run, without an error"},
	{Name: "io_running", Type: "string", Help: "Yes, No, Connecting or Preparing; empty if not configured"},
	{Name: "sql_running", Type: "string", Help: "Yes or No; empty if not configured"},
	{Name: "lag", Type: "int", Help: "seconds behind the source, -1 if the server does not know"},
	{Name: "seconds_behind", Type: "int", Help: "the same as lag"},
	{Name: "last_io_errno", Type: "int", Help: "last error of the I/O thread, 0 for none"},
	{Name: "last_io_error", Type: "string", Help: "its text"},
	{Name: "last_sql_errno", Type: "int", Help: "last error of the SQL thread, 0 for none"},
	{Name: "last_sql_error", Type: "string", Help: "its text"},
	{Name: "diagnosis", Type: "string", Help: "what the last error means, in plain words; empty if there is none"},
	{Name: "read_log_file", Type: "string", Help: "the source's log file that is being read"},
	{Name: "read_log_pos", Type: "int", Help: "position read"},
	{Name: "exec_log_file", Type: "string", Help: "the source's log file that is being executed"},
	{Name: "exec_log_pos", Type: "int", Help: "position executed"},
	{Name: "source_host", Type: "string", Help: "where the replica reads from"},
	{Name: "source_port", Type: "int", Help: "the port there"},
	{Name: "source_user", Type: "string", Help: "the replication account"},
	{Name: "source_server_id", Type: "int", Help: "server_id of the source, 0 before the first connection"},
	{Name: "using_gtid", Type: "string", Help: "No, Slave_Pos or Current_Pos on MariaDB, auto or empty on MySQL"},
}

var errNotReplica = errors.New("this server is not configured as a replica")
