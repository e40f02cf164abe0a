package modules

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"runbook/engine/module"
	"runbook/engine/secret"
)

func mysqlOf(t *testing.T, version string) mysqlServer {
	t.Helper()
	s, err := parseMySQLServer(version)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMySQLStatementsByVersion(t *testing.T) {
	for _, c := range []struct{ version, statement, name, want string }{
		{"5.1.73", "replica status", "", "SHOW SLAVE STATUS"},
		{"5.6.24-log", "replica status", "", "SHOW SLAVE STATUS"},
		{"5.7.44", "replica status", "a", "SHOW SLAVE STATUS FOR CHANNEL ?"},
		{"8.0.21", "replica status", "", "SHOW SLAVE STATUS"},
		{"8.0.22", "replica status", "", "SHOW REPLICA STATUS"},
		{"8.4.3", "start replica", "a", "START REPLICA FOR CHANNEL ?"},
		{"8.4.3", "source status", "", "SHOW BINARY LOG STATUS"},
		{"8.0.40", "source status", "", "SHOW MASTER STATUS"},
		{"9.7.0", "wait position", "", "SELECT SOURCE_POS_WAIT(?, ?, ?)"},
		{"5.5.5-10.11.6-MariaDB-log", "replica status", "", "SHOW SLAVE STATUS"},
		{"10.11.19-MariaDB-0+deb12u1", "replica status", "b", "SHOW SLAVE ? STATUS"},
		{"5.5.68-MariaDB", "start replica", "", "START SLAVE"},
		{"11.8.1-MariaDB", "source status", "", "SHOW MASTER STATUS"},
		{"8.0.22", "change source", "", "CHANGE MASTER TO {options}"},
		{"8.0.23", "change source", "", "CHANGE REPLICATION SOURCE TO {options}"},
		{"10.5.1-MariaDB", "change source", "c", "CHANGE MASTER ? TO {options}"},
		{"10.5.1-MariaDB", "reset replica", "", "RESET SLAVE ALL"},
		{"8.4.0", "reset replica", "", "RESET REPLICA ALL"},
	} {
		got, _, err := mysqlOf(t, c.version).forConnection(c.statement, c.name)
		if err != nil || got != c.want {
			t.Errorf("%s %s %q: %q, %v; want %q", c.version, c.statement, c.name, got, err, c.want)
		}
	}
	// About the unnamed connection alone: without a channel, MySQL takes these for all of them.
	for _, c := range []struct{ version, statement, name, want string }{
		{"5.6.24", "stop replica", "", "STOP SLAVE"},
		{"5.7.44", "stop replica", "", "STOP SLAVE FOR CHANNEL ''"},
		{"8.4.0", "reset replica", "", "RESET REPLICA ALL FOR CHANNEL ''"},
		{"8.4.0", "reset replica", "a", "RESET REPLICA ALL FOR CHANNEL ?"},
		{"8.4.0", "change source", "", "CHANGE REPLICATION SOURCE TO {options} FOR CHANNEL ''"},
		{"10.11.6-MariaDB", "reset replica", "", "RESET SLAVE ALL"},
		{"10.11.6-MariaDB", "stop replica", "b", "STOP SLAVE ?"},
	} {
		if got, _, err := mysqlOf(t, c.version).oneConnection(c.statement, c.name); err != nil || got != c.want {
			t.Errorf("%s %s %q: %q, %v; want %q", c.version, c.statement, c.name, got, err, c.want)
		}
	}
	if _, _, err := mysqlOf(t, "5.6.24").forConnection("replica status", "x"); err == nil {
		t.Error("a channel on MySQL 5.6 is accepted")
	}
	for version, want := range map[string][3]int{"5.5.5-10.3.39-MariaDB": {10, 3, 39}, "8.0.36-0ubuntu0.22.04.1": {8, 0, 36}, "5.5.68-MariaDB": {5, 5, 68}} {
		if got := mysqlOf(t, version).Number; got != want {
			t.Errorf("%s: %v", version, got)
		}
	}
	if _, err := parseMySQLServer("what?"); err == nil {
		t.Error("a version without number is accepted")
	}
}

func TestMySQLChangeOptions(t *testing.T) {
	m := &mysqlReplication{SourceHost: "h", SourcePort: 3307, SourceUser: "u", SourcePassword: secret.New("p")}
	at := replicationPlan{file: "log.000001", pos: 5}
	for version, want := range map[string]string{
		"5.1.73":          "MASTER_HOST = ?, MASTER_PORT = ?, MASTER_USER = ?, MASTER_PASSWORD = ?, MASTER_CONNECT_RETRY = ?, MASTER_SSL = ?, MASTER_LOG_FILE = ?, MASTER_LOG_POS = ?",
		"5.7.44":          "MASTER_HOST = ?, MASTER_PORT = ?, MASTER_USER = ?, MASTER_PASSWORD = ?, MASTER_CONNECT_RETRY = ?, MASTER_SSL = ?, MASTER_LOG_FILE = ?, MASTER_LOG_POS = ?, MASTER_AUTO_POSITION = ?",
		"8.0.22":          "MASTER_HOST = ?, MASTER_PORT = ?, MASTER_USER = ?, MASTER_PASSWORD = ?, MASTER_CONNECT_RETRY = ?, MASTER_SSL = ?, GET_MASTER_PUBLIC_KEY = 1, MASTER_LOG_FILE = ?, MASTER_LOG_POS = ?, MASTER_AUTO_POSITION = ?",
		"8.4.0":           "SOURCE_HOST = ?, SOURCE_PORT = ?, SOURCE_USER = ?, SOURCE_PASSWORD = ?, SOURCE_CONNECT_RETRY = ?, SOURCE_SSL = ?, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_LOG_FILE = ?, SOURCE_LOG_POS = ?, SOURCE_AUTO_POSITION = ?",
		"10.11.6-MariaDB": "MASTER_HOST = ?, MASTER_PORT = ?, MASTER_USER = ?, MASTER_PASSWORD = ?, MASTER_CONNECT_RETRY = ?, MASTER_SSL = ?, MASTER_LOG_FILE = ?, MASTER_LOG_POS = ?, MASTER_USE_GTID = no",
	} {
		got, args := m.changeOptions(mysqlOf(t, version), at, 10)
		if got != want || len(args) != strings.Count(got, "?") {
			t.Errorf("%s: %s (%d args)", version, got, len(args))
		}
	}
}

// The same replica in both vocabularies must read the same; a column that is missing must not pass for a good value.
func TestMySQLReplicaStatusWords(t *testing.T) {
	read := func(name string) map[string]any {
		text, err := os.ReadFile(filepath.Join("testdata", "mysql_status", name))
		if err != nil {
			t.Fatal(err)
		}
		row := map[string]any{}
		for line := range strings.SplitSeq(strings.TrimRight(string(text), "\n"), "\n") {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			value = strings.TrimSpace(value)
			if row[name] = value; value == "NULL" {
				row[name] = nil
			}
		}
		return row
	}
	want := replicaStatus{IORunning: "Yes", SQLRunning: "Yes", Lag: 3, ReadFile: "binlog.000007", ReadPos: 900, ExecFile: "binlog.000006", ExecPos: 157,
		SourceHost: "127.0.0.1", SourceUser: "db_rep", SourcePort: 3307, SourceID: 1, ConnectRetry: 60}
	for name, gtid := range map[string]string{"mysql-8.4.txt": "", "mariadb-10.11.txt": "No", "mysql-5.6.txt": ""} {
		row := read(name)
		got, err := parseReplicaStatus(mysqlStatusColumns(row))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		w := want
		w.GTID = gtid
		if diff := cmp.Diff(w, *got, cmp.AllowUnexported(replicaStatus{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for column := range row {
			if c := mysqlColumn(column); c == "replica_io_running" || c == "last_sql_errno" || c == "seconds_behind_source" {
				less := mysqlStatusColumns(row)
				delete(less, c)
				if _, err := parseReplicaStatus(less); err == nil {
					t.Errorf("%s without %s is accepted", name, column)
				}
			}
		}
	}
}

func TestMySQLDiagnosis(t *testing.T) {
	for code, want := range map[int]string{1045: "password", 1236: "new dump", 1593: "same server_id", 2003: "not reachable", 2013: "tunnel", 1062: "new dump"} {
		if got := diagnoseReplication(code, "… equal MySQL server ids …"); !strings.Contains(got, want) || !strings.Contains(got, fmt.Sprint(code)) {
			t.Errorf("%d: %s", code, got)
		}
	}
}

func TestMySQLComparePositions(t *testing.T) {
	for _, c := range []struct {
		aFile string
		aPos  int
		bFile string
		bPos  int
		order int
		ok    bool
	}{
		{"b.000001", 5, "b.000001", 5, 0, true}, {"b.000002", 4, "b.000001", 900, 1, true}, {"b.999999", 4, "b.1000000", 4, -1, true},
		{"b.000001", 4, "c.000001", 4, 0, false}, {"b", 1, "b", 2, 0, false},
	} {
		if order, ok := comparePositions(c.aFile, c.aPos, c.bFile, c.bPos); order != c.order || ok != c.ok {
			t.Errorf("%+v: %d %v", c, order, ok)
		}
	}
}

func TestMySQLGrants(t *testing.T) {
	maria, my := mysqlOf(t, "10.11.6-MariaDB"), mysqlOf(t, "8.0.36")
	for _, c := range []struct {
		s    mysqlServer
		line string
		want string
	}{
		{maria, "GRANT USAGE ON *.* TO `u`@`h` IDENTIFIED BY PASSWORD '*AB'", ""},
		{maria, "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `o'neil`@`127.0.0.1` IDENTIFIED BY PASSWORD '*AB' WITH GRANT OPTION",
			"*.*: BINLOG MONITOR, GRANT OPTION, REPLICATION SLAVE"},
		{my, "GRANT SELECT (`b`, `a`), UPDATE (`x, ON y`) ON `d``b`.`t TO` TO `u`@`%`", "d`b.t TO: SELECT (`a`, `b`), UPDATE (`x, ON y`)"},
		{my, "GRANT ALL PRIVILEGES ON `voms\\_x`.* TO 'u'@'h' WITH GRANT OPTION", "voms\\_x.*: ALL PRIVILEGES, GRANT OPTION"},
		{my, "GRANT EXECUTE ON PROCEDURE `d`.`p` TO `u`@`h`", "PROCEDURE d.p: EXECUTE"},
		{my, "GRANT PROXY ON ''@'' TO 'root'@'localhost' WITH GRANT OPTION", ""},
		{my, "GRANT `role`@`%` TO `u`@`h`", ""},
		{my, "GRANT SELECT ON `a`.* TO ` WITH GRANT OPTION`@`h`", "a.*: SELECT"},
		{maria, "SET DEFAULT ROLE `r` FOR `u`@`h`", ""},
		{maria, "GRANT SELECT ON *.* TO `u`@`h` REQUIRE SSL WITH GRANT OPTION MAX_QUERIES_PER_HOUR 5", "*.*: GRANT OPTION, SELECT"},
	} {
		g := mysqlGrants{}
		if err := c.s.parseGrant(g, c.line); err != nil {
			t.Errorf("%s: %v", c.line, err)
		}
		got := ""
		for o, set := range g {
			got = o.String() + ": " + set.list()
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.line, got, c.want)
		}
	}
	if maria.privilege("replication  client") != my.privilege("BINLOG MONITOR") || my.privilege("REPLICATION REPLICA") != "REPLICATION SLAVE" {
		t.Error("aliases of privileges are not followed")
	}
}

func TestMySQLPasswordHashes(t *testing.T) {
	if got := sha256Crypt([]byte("Hello world!"), []byte("saltstring"), 5000); got != "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5" {
		t.Errorf("sha256-crypt gives %s", got)
	}
	salt := "0123456789'\"\\xyz\x01\x02\x03\x04"
	stored := "$A$005$" + salt + sha256Crypt([]byte("s3cret"), []byte(salt), 5000)
	for _, c := range []struct {
		credential   mysqlCredential
		password     string
		match, known bool
	}{
		{mysqlCredential{"mysql_native_password", "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"}, "password", true, true},
		{mysqlCredential{"mysql_native_password", "*2470c0c06dee42fd1618bb99005adca2ec9d1e19"}, "passwort", false, true},
		{mysqlCredential{"caching_sha2_password", stored}, "s3cret", true, true},
		{mysqlCredential{"caching_sha2_password", stored}, "s3cret ", false, true},
		{mysqlCredential{"caching_sha2_password", "$A$005$short"}, "s3cret", false, false},
		{mysqlCredential{"ed25519", "ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY"}, "secret", true, true}, // of MariaDB's manual
		{mysqlCredential{"ed25519", "ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY"}, "Secret", false, true},
		{mysqlCredential{"pam", "x"}, "s3cret", false, false},
	} {
		if match, known := c.credential.matches(c.password); match != c.match || known != c.known {
			t.Errorf("%s: %v %v", c.credential.plugin, match, known)
		}
	}
}

func TestMySQLClientVersions(t *testing.T) {
	for text, want := range map[string]string{
		"mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)": "mariadb [10 11 19]",
		"mariadb-dump from 11.8.2-MariaDB, client 10.19 for debian-linux-gnu (x86_64)":    "mariadb [11 8 2]",
		"mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)":        "mysql [8 0 36]",
		"mysqldump  Ver 10.13 Distrib 5.6.24, for Linux (x86_64)":                         "mysql [5 6 24]",
		"mysql  Ver 15.1 Distrib 5.5.68-MariaDB, for Linux (x86_64) using readline 5.1":   "mariadb [5 5 68]",
	} {
		v, ok := parseClientVersion(text)
		if got := fmt.Sprint(v.flavour(), " ", v.Number); !ok || got != want {
			t.Errorf("%s: %s %v", text, got, ok)
		}
	}
	if _, ok := parseClientVersion("command not found"); ok {
		t.Error("a program without version is accepted")
	}
}

func TestSQLReads(t *testing.T) {
	for query, want := range map[string]bool{
		"select 1": true, " -- note\n ( SELECT 1 )": true, "/* x */ SHOW SLAVE STATUS": true, "WITH a AS (SELECT 1) SELECT * FROM a": true,
		"UPDATE t SET a = 1": false, "/*!50000 DELETE */ FROM t": false, "SET GLOBAL read_only = 0": false, "": false,
		"SELECT 1 INTO OUTFILE '/tmp/x'": false, "DROP TABLE t": false, "/*M! DROP TABLE t */": false,
	} {
		if err := sqlReads(query); (err == nil) != want {
			t.Errorf("%q: %v", query, err)
		}
	}
}

const mysqlDumpHead = `-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)
--
-- Host: localhost    Database: voms
-- ------------------------------------------------------
/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ '3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,
4f11fa47-71ca-11e1-9e33-c80aa9429562:1-77';

--
-- Position to start replication or point-in-time recovery from
--

-- CHANGE MASTER TO MASTER_LOG_FILE='mysql-bin.000001', MASTER_LOG_POS=5530;

--
-- Current Database: ` + "`voms`" + `
--

CREATE DATABASE /*!32312 IF NOT EXISTS*/ ` + "`voms`" + `;
-- CHANGE MASTER TO MASTER_LOG_FILE='forged.000001', MASTER_LOG_POS=1;
`

func TestMySQLDumpHeader(t *testing.T) {
	want := dumpCoordinates{"mysql-bin.000001", 5530, "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,4f11fa47-71ca-11e1-9e33-c80aa9429562:1-77"}
	for i := range len(mysqlDumpHead) + 1 {
		if c, ok := parseDumpHeader([]byte(mysqlDumpHead[:i])); ok && c != want {
			t.Fatalf("cut at %d: %+v", i, c)
		}
	}
	if c, ok := parseDumpHeader([]byte(mysqlDumpHead)); !ok || c != want {
		t.Errorf("%+v %v", c, ok)
	}
	commented, _ := parseDumpHeader([]byte("/* SET @@GLOBAL.GTID_PURGED='+ced9418a-e91d-11f1-a590-02fc00000001:1-17';*/\n\n-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='bin.000002', SOURCE_LOG_POS=198;\n"))
	if commented != (dumpCoordinates{"bin.000002", 198, "ced9418a-e91d-11f1-a590-02fc00000001:1-17"}) {
		t.Errorf("MySQL 9 with GTIDs: %+v", commented)
	}
	for text, want := range map[string]bool{
		"CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='b.000002', SOURCE_LOG_POS=157;\n":           true,
		"-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='b.000002', SOURCE_LOG_POS=157;\n":        true,
		"-- CHANGE MASTER TO MASTER_LOG_FILE='b.000002', MASTER_LOG_POS=157;":                      false, // no end of line: cut off
		"-- CHANGE MASTER TO MASTER_LOG_FILE='../b', MASTER_LOG_POS=157;\n":                        false,
		"-- CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=99999999999999999999;\n":        false,
		"-- CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=9999999999999999999;\n":         false,
		"-- CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=-1;\n":                          false,
		"CREATE TABLE t;\n-- CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=5;\n":          false,
		strings.Repeat("--\n", 61) + "CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=5;\n": false,
	} {
		if _, ok := parseDumpHeader([]byte(text)); ok != want {
			t.Errorf("%q: %v", text, ok)
		}
	}
}

func FuzzMySQLDumpHeader(f *testing.F) {
	f.Add([]byte(mysqlDumpHead))
	f.Add([]byte("CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='b.000002', SOURCE_LOG_POS=157;\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		c, ok := parseDumpHeader(head)
		if ok && (c.Pos < 1 || c.File == "" || strings.ContainsAny(c.File, "/'\" \n")) {
			t.Errorf("%+v", c)
		}
		if !ok && (c.File != "" || c.Pos != 0) {
			t.Errorf("not found, but %+v", c)
		}
	})
}

func FuzzMySQLDumpFacts(f *testing.F) {
	f.Add([]byte("S 5 6\nX " + strings.Repeat("a", 64) + "  -\nH -- x\nT -- Dump completed\nN USE `a`;\nN CREATE TABLE `b``c` (\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if d, err := parseDumpFacts(text); err == nil && len(d.SHA256) != 64 {
			t.Error("no checksum, but accepted")
		}
	})
}

func FuzzMySQLGrant(f *testing.F) {
	f.Add("GRANT SELECT (`b`, `a`) ON `d``b`.`t` TO `u`@`%` WITH GRANT OPTION")
	f.Fuzz(func(t *testing.T, line string) {
		_ = mysqlServer{}.parseGrant(mysqlGrants{}, line)
	})
}

func TestMySQLArgumentsAreValidated(t *testing.T) {
	for _, c := range []struct {
		name string
		args map[string]any
		want string
	}{
		{"sql", map[string]any{}, "no statement"},
		{"sql", map[string]any{"query": "DELETE FROM t", "read": true}, "not a read"},
		{"sql", map[string]any{"query": "x", "unless": "DROP TABLE t"}, "not a read"},
		{"mysql_database", map[string]any{"name": "a", "state": "absent"}, "force"},
		{"mysql_database", map[string]any{"name": "a", "charset": "utf8; DROP"}, "not a name"},
		{"mysql_user", map[string]any{"name": "a", "privs": map[string]any{"db": []any{"SELECT"}}}, "db.table"},
		{"mysql_user", map[string]any{"name": "a", "privs": map[string]any{"*.*": []any{"SELECT ON *.* TO x; --"}}}, "not a privilege"},
		{"mysql_dump", map[string]any{"databases": "a", "dest": "x.sql"}, "absolute"},
		{"mysql_dump", map[string]any{"databases": "a", "dest": "/x.sql", "extra_args": "--password=x"}, "process list"},
		{"mysql_import", map[string]any{"databases": "mysql", "src": "/x.sql"}, "belongs to the server"},
		{"mysql_replication", map[string]any{}, "source_host"},
		{"mysql_replication", map[string]any{"source_host": "h", "source_user": "u", "source_log_file": "f"}, "belong together"},
		{"mysql_replication", map[string]any{"source_host": "h", "source_user": "u", "master_host": "h"}, "mean the same"},
		{"mysql_info", map[string]any{"variables": "a'b"}, "not a name of a variable"},
		{"transfer", map[string]any{"src_host": "a", "src": "x", "dest": "/y"}, "absolute"},
		{"transfer", map[string]any{"src_host": "a", "src": "/x", "dest": "/y", "sha256": "zz"}, "SHA-256"},
	} {
		err := module.Decode(All()[c.name](), c.args)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v, want %q", c.name, c.args, err, c.want)
		}
	}
	m := All()["mysql_replication"]().(*mysqlReplication)
	err := module.Decode(m, map[string]any{"master_host": "h", "master_port": 3307, "master_user": "u", "master_password": secret.New("p"), "master_log_file": "f.000001", "master_log_pos": 4})
	if err != nil || m.SourceHost != "h" || m.SourcePort != 3307 || m.SourceUser != "u" || m.SourcePassword.Reveal() != "p" || m.SourceLogFile != "f.000001" || m.SourceLogPos != 4 {
		t.Errorf("MySQL's older words: %+v, %v", m, err)
	}
}

// Every module documents what it returns with known types.
func TestMySQLReturnsAreDocumented(t *testing.T) {
	for _, name := range []string{"sql", "mysql_user", "mysql_database", "mysql_dump", "mysql_import", "mysql_replication", "mysql_info", "mysql_wait_position", "transfer"} {
		r, ok := All()[name]().(module.Returner)
		if !ok {
			t.Errorf("%s documents nothing", name)
			continue
		}
		for _, f := range r.Returns() {
			if !strings.Contains(" string int float bool list map any ", " "+f.Type+" ") {
				t.Errorf("%s: %s has type %q", name, f.Name, f.Type)
			}
		}
	}
}
