package modules

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"runbook/engine/module"
	"runbook/engine/secret"
	"runbook/engine/transport"
)

const quirky = "p'a\"s\\s`w?o%rd 漢"

// TestMySQL builds a replica from nothing on two real servers, and breaks it in the ways that people do.
func TestMySQL(t *testing.T) {
	source, replica := startPair(t)
	step := func(name string, f func(t *testing.T)) {
		ok := t.Run(name, func(t *testing.T) {
			source.t, replica.t = t, t
			f(t)
		})
		source.t, replica.t = t, t
		if !ok {
			t.FailNow() // the later steps stand on this one
		}
	}
	dump := filepath.Join(source.dir, "dump.sql")
	arrived := filepath.Join(replica.dir, "dump.sql")
	databases := []any{"voms_lab", "o'db"}
	dumpArgs := source.on(map[string]any{"databases": databases, "dest": dump})
	importArgs := func(more map[string]any) map[string]any {
		args := replica.on(map[string]any{"databases": databases, "src": arrived})
		for k, v := range more {
			args[k] = v
		}
		return args
	}
	replicaArgs := func(more map[string]any) map[string]any {
		args := replica.on(map[string]any{"source_host": "127.0.0.1", "source_port": source.port, "source_user": "db_rep", "source_password": secret.New(quirky[:14]),
			"connect_retry": 1, "wait_timeout": "20s"})
		for k, v := range more {
			args[k] = v
		}
		return args
	}

	step("databases", func(t *testing.T) {
		source.changes("mysql_database", source.on(map[string]any{"name": databases, "charset": "utf8mb4"}))
		source.changes("mysql_database", source.on(map[string]any{"name": "mixed`Name"}))
		source.changes("mysql_database", source.on(map[string]any{"name": "mixed`Name", "charset": "ascii"}))
		source.changes("mysql_database", source.on(map[string]any{"name": "mixed`Name", "state": "absent", "force": true}))
		source.sql("CREATE TABLE voms_lab.`odd``table` (id INT PRIMARY KEY, name VARCHAR(50), raw VARBINARY(20), f FLOAT, d DECIMAL(5,2), b BIT(3)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
			"CREATE TABLE `o'db`.people (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
			"CREATE VIEW voms_lab.v AS SELECT name FROM voms_lab.`odd``table`",
			"CREATE PROCEDURE voms_lab.p() BEGIN\nCREATE TABLE `fake` (a INT);\nEND",
			"INSERT INTO `o'db`.people (name) VALUES ('漢字'), ('Łódź'), ('O''Neil \\\\ \\n ;')")
		source.changes("sql", source.on(map[string]any{"query": "INSERT INTO `odd``table` VALUES (1, ?, ?, 1.5, 2.25, 5)", "args": []any{"漢字 Łódź ? ' \\", "\xff\x00\x01"},
			"database": "voms_lab", "unless": "SELECT 1 FROM `odd``table` WHERE id = 1"}))
	})

	step("sql", func(t *testing.T) {
		plan, err := source.check("sql", source.on(map[string]any{"query": "SELECT *, NULL AS n, 18446744073709551615 AS big FROM `odd``table`", "database": "voms_lab", "read": true}))
		if err != nil {
			t.Fatal(err)
		}
		row := plan.Values["rows"].([]any)[0].(map[string]any)
		for name, want := range map[string]any{"id": 1, "name": "漢字 Łódź ? ' \\", "raw": "ff0001", "f": 1.5, "d": "2.25", "b": 5, "n": nil, "big": "18446744073709551615"} {
			if row[name] != want {
				t.Errorf("%s: %#v, want %#v", name, row[name], want)
			}
		}
		source.refused("sql", source.on(map[string]any{"query": "SELECT COUNT(*) FROM voms_lab.v", "read": true, "expect": 2}), "expected 2, the server returned 1")
		source.must("sql", source.on(map[string]any{"query": "SELECT name FROM people", "database": "o'db", "read": true,
			"expect": []any{map[string]any{"name": "漢字"}, map[string]any{"name": "Łódź"}, map[string]any{"name": "O'Neil \\ \n ;"}}}))
		source.refused("sql", source.on(map[string]any{"query": "SELECT * FROM nowhere.t", "read": true}), "1146")
		source.refused("sql", source.on(map[string]any{"queries": []any{"INSERT INTO `o'db`.people VALUES (50, 'gone')", "INSERT INTO `o'db`.people VALUES (1, 'twice')"}, "transaction": true}),
			"statement 2")
		if n := source.value("SELECT COUNT(*) FROM `o'db`.people"); n != 3 {
			t.Errorf("a failed transaction left %v rows", n)
		}
		source.refused("sql", map[string]any{"query": "SELECT 1", "read": true, "login_socket": "/nowhere/s.sock"}, "is it running?")
		source.refused("sql", source.on(map[string]any{"query": "SELECT 1", "read": true, "login_user": "nobody_here", "login_password": secret.New("S3CRET-" + quirky)}), "refuses the login")
		plan, err = source.check("sql", source.on(map[string]any{"query": "DELETE FROM voms_lab.v"}))
		if err != nil || plan.Unknown == "" {
			t.Errorf("a check of a bare statement: %+v, %v", plan, err)
		}
		for _, mode := range []string{"NO_BACKSLASH_ESCAPES", "ANSI_QUOTES"} {
			source.sql("SET GLOBAL sql_mode = '" + mode + "'")
			if got := source.value("SELECT ?", quirky); got != quirky {
				t.Errorf("%s: %v", mode, got)
			}
		}
		source.sql("SET GLOBAL sql_mode = DEFAULT")
	})

	step("users", func(t *testing.T) {
		rep := source.on(map[string]any{"name": "db_rep", "host": "127.0.0.1", "password": secret.New(quirky[:14]), "privs": map[string]any{"*.*": []any{"REPLICATION SLAVE", "REPLICATION CLIENT"}}})
		source.changes("mysql_user", rep)
		odd := map[string]any{"name": "o'neil`\\", "host": []any{"localhost", "10.0.0.%"}, "password": secret.New(quirky),
			"privs": map[string]any{"voms_lab.*": []any{"select", "INSERT"}, "voms_lab.`odd``table`": []any{"UPDATE (name, id)"}}}
		source.changes("mysql_user", source.on(odd))
		login := source.on(map[string]any{"query": "SELECT CURRENT_USER()", "read": true, "login_user": "o'neil`\\", "login_password": secret.New(quirky)})
		if plan, err := source.check("sql", login); err != nil || plan.Values["value"] != "o'neil`\\@localhost" {
			t.Errorf("login: %+v, %v", plan, err)
		}
		odd["privs"] = map[string]any{"voms_lab.*": []any{"SELECT", "GRANT OPTION"}}
		source.changes("mysql_user", source.on(odd))
		odd["privs"] = map[string]any{"*.*": []any{"ALL"}, "o'db.*": []any{"ALL PRIVILEGES", "GRANT OPTION"}}
		odd["append"] = true
		source.changes("mysql_user", source.on(odd))
		delete(odd, "append")
		odd["privs"] = map[string]any{"*.*": []any{"PROCESS"}}
		odd["locked"], odd["tls_requires"] = true, "SSL"
		source.changes("mysql_user", source.on(odd))
		odd["locked"], odd["tls_requires"] = false, "NONE"
		odd["password"] = secret.New("other " + quirky)
		source.changes("mysql_user", source.on(odd))
		odd["plugin"], odd["update_password"] = "ed25519", "always"
		if _, err := exec.Command("sh", "-c", "ls /usr/lib/mysql/plugin/auth_ed25519.so").Output(); err == nil {
			source.sql("INSTALL SONAME 'auth_ed25519'")
			source.changes("mysql_user", source.on(map[string]any{"name": "ed", "password": secret.New(quirky), "plugin": "ed25519"}))
		}
		for _, grants := range []string{"SELECT", "SELECT, BINLOG MONITOR"} {
			source.sql("GRANT " + grants + " ON *.* TO db_rep@127.0.0.1")
			source.changes("mysql_user", rep)
		}
		if n := source.value("SELECT COUNT(*) FROM mysql.global_priv WHERE User = ?", "o'neil`\\"); n != 2 {
			t.Errorf("%v accounts", n)
		}
		source.changes("mysql_user", source.on(map[string]any{"name": "o'neil`\\", "host": []any{"localhost", "10.0.0.%"}, "state": "absent"}))
		_, _, err := source.apply("mysql_user", source.on(map[string]any{"name": "bad", "password": secret.New("S3CRET'x"), "plugin": "no_such_plugin"}))
		if err == nil || strings.Contains(err.Error(), "S3CRET") || !strings.Contains(err.Error(), "1524") {
			t.Errorf("unknown plugin: %v", err)
		}
	})

	step("no log has a password", func(t *testing.T) {
		general := filepath.Join(source.dir, "general.log")
		source.sql("SET GLOBAL general_log_file = '"+general+"'", "SET GLOBAL general_log = ON")
		logs := func() (text string) {
			files, err := filepath.Glob(source.dir + "/data/bin.0*")
			if err != nil || len(files) == 0 {
				t.Fatalf("no binary logs: %v", err)
			}
			for _, file := range append(files, general) {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				text += string(data)
			}
			return text
		}
		quiet := source.on(map[string]any{"name": "quiet", "password": secret.New("S3CRET-of-creation"), "privs": map[string]any{"*.*": []any{"PROCESS"}}})
		login := source.on(map[string]any{"query": "SELECT 1", "read": true, "login_user": "quiet"})
		set := func(password string, more map[string]any) {
			t.Helper()
			quiet["password"], login["login_password"] = secret.New(password), secret.New(password)
			maps.Copy(quiet, more)
			source.changes("mysql_user", quiet)
			if _, err := source.check("sql", login); err != nil {
				t.Errorf("%s: %v", password, err)
			}
		}
		set("S3CRET-of-creation", nil)
		set("S3CRET-of-change", nil)
		set("S3CRET-native 漢", map[string]any{"plugin": "mysql_native_password"})
		source.sql("INSTALL PLUGIN IF NOT EXISTS ed25519 SONAME 'auth_ed25519'")
		set("S3CRET-ed 漢", map[string]any{"plugin": "ed25519"})
		if text := logs(); strings.Contains(text, "S3CRET") || strings.Count(text, "quiet") < 8 {
			t.Errorf("the logs name the account %d times, and hold passwords: %t", strings.Count(text, "quiet"), strings.Contains(text, "S3CRET"))
		}
		// A server that judges passwords has to see them, and would keep them in its binary log.
		source.sql("INSTALL SONAME 'simple_password_check'")
		quiet["password"] = secret.New("S3CRET-Judged-1")
		source.refused("mysql_user", quiet, "simple_password_check judges passwords")
		set("S3CRET-Judged-1", map[string]any{"sql_log_bin": false})
		quiet["password"] = secret.New("weak")
		source.refused("mysql_user", quiet, "cannot set the password of quiet@localhost")
		source.sql("SET GLOBAL general_log = OFF", "UNINSTALL SONAME 'simple_password_check'", "DROP USER quiet@localhost")
	})

	var values map[string]any
	step("dump", func(t *testing.T) {
		plan, err := source.check("mysql_dump", dumpArgs)
		if err != nil || !plan.Pending || len(plan.Changes) != 1 {
			t.Fatalf("%+v, %v", plan, err)
		}
		values = source.changes("mysql_dump", dumpArgs)
		if values["tables"] != 2 || values["log_file"] != "bin.000001" && values["log_file"] != "bin.000002" || values["log_pos"].(int) < 1000 || values["gtid"] == "" || len(values["warnings"].([]any)) != 0 {
			t.Errorf("%v", values)
		}
		info, err := os.Stat(dump)
		if err != nil || info.Mode().Perm() != 0o600 || int(info.Size()) != values["size"] {
			t.Errorf("%v, %v", info, err)
		}
		first, _ := os.ReadFile(dump)
		// A dump that fails leaves the one that is there.
		for _, program := range []string{"exit 3", "head -n 30 " + dump, "sed '/^CREATE TABLE `people`/,/;$/d' " + dump, "grep -v MASTER_LOG_FILE " + dump} {
			fake := filepath.Join(source.dir, "mariadb-dump")
			labFile(t, fake, "#!/bin/sh\nif [ \"$1\" = --version ]; then mariadb-dump --version; else "+program+"; fi\n", 0o755)
			args := source.on(map[string]any{"databases": databases, "dest": dump, "program": fake, "max_age": "1ns"})
			source.refused("mysql_dump", args, "nothing was replaced")
			if again, _ := os.ReadFile(dump); !bytes.Equal(first, again) {
				t.Fatalf("%s: the dump was replaced", program)
			}
			if _, err := os.Stat(filepath.Join(source.dir, ".dump.sql.part")); err == nil {
				t.Errorf("%s: a part is left", program)
			}
		}
		fake := filepath.Join(source.dir, "mysqldump")
		labFile(t, fake, "#!/bin/sh\necho 'mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)'\n", 0o755)
		source.refused("mysql_dump", source.on(map[string]any{"databases": databases, "dest": dump + "2", "program": fake}), "is of MySQL")
		source.refused("mysql_dump", source.on(map[string]any{"databases": []any{"nowhere"}, "dest": dump + "2"}), "no database nowhere")
		source.refused("mysql_dump", source.on(map[string]any{"databases": databases, "dest": "/nowhere/at/all.sql"}), "nothing was replaced")
		// With a password: an option file that is gone afterwards.
		source.must("mysql_user", source.on(map[string]any{"name": "dumper", "host": "127.0.0.1", "password": secret.New(quirky), "privs": map[string]any{"*.*": []any{"ALL"}}}))
		byTCP := map[string]any{"databases": []any{"o'db"}, "dest": dump + "2", "login_host": "127.0.0.1", "login_port": source.port, "login_user": "dumper", "login_password": secret.New(quirky)}
		seen := watchProcesses(quirky)
		source.changes("mysql_dump", byTCP)
		for _, process := range seen() {
			t.Errorf("the password is visible: %s", process)
		}
		if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "runbook-login.*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		// A dump that is cancelled takes its process, its part and its option file along.
		labFile(t, fake, "#!/bin/sh\nif [ \"$1\" = --version ]; then mariadb-dump --version; else echo begun; exec sleep 61.25; fi\n", 0o755)
		byTCP["program"], byTCP["max_age"] = fake, "1ns"
		plan, err = source.check("mysql_dump", byTCP)
		if err != nil {
			t.Fatal(err)
		}
		soon, cancel := context.WithTimeout(context.Background(), time.Second)
		if _, err := makeModule(t, "mysql_dump", byTCP).Apply(soon, source.host, plan); err == nil || !strings.Contains(err.Error(), "nothing was replaced") {
			t.Errorf("cancelled: %v", err)
		}
		cancel()
		gone := func() bool {
			parts, _ := filepath.Glob(filepath.Join(source.dir, ".*.part"))
			logins, _ := filepath.Glob(filepath.Join(os.TempDir(), "runbook-login.*"))
			return len(parts)+len(logins) == 0 && exec.Command("pgrep", "-f", "sleep 61[.]25").Run() != nil
		}
		for range 60 {
			if gone() {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if !gone() {
			t.Error("a cancelled dump left its process or its files")
		}
		// Engines that a transaction does not cover.
		source.sql("CREATE DATABASE old", "CREATE TABLE old.t (a INT) ENGINE=MyISAM")
		v := source.changes("mysql_dump", source.on(map[string]any{"databases": []any{"old"}, "dest": dump + "3"}))
		if !strings.Contains(fmt.Sprint(v["warnings"]), "old.t (myisam)") {
			t.Errorf("warnings: %v", v["warnings"])
		}
		source.refused("mysql_dump", source.on(map[string]any{"databases": []any{"old"}, "dest": dump + "4", "single_transaction": "require"}), "without locking")
		source.changes("mysql_dump", source.on(map[string]any{"databases": []any{"old"}, "dest": dump + "4", "single_transaction": "require", "ignore_tables": []any{"old.t"}}))
		// A binary log that was purged makes the dump useless.
		source.sql("FLUSH BINARY LOGS")
		now, err := source.check("mysql_info", source.on(nil))
		if err != nil {
			t.Fatal(err)
		}
		source.sql(fmt.Sprintf("PURGE BINARY LOGS TO '%s'", now.Values["log_file"]))
		plan, err = source.check("mysql_dump", dumpArgs)
		if err != nil || len(plan.Changes) != 1 || !strings.Contains(plan.Changes[0].Before, "no longer has") {
			t.Fatalf("%+v, %v", plan, err)
		}
		values = source.changes("mysql_dump", dumpArgs)
	})

	step("transfer", func(t *testing.T) {
		args := map[string]any{"src_host": "source", "src": dump, "dest": arrived, "sha256": values["sha256"]}
		plan, err := replica.check("transfer", map[string]any{"src_host": "source", "src": dump + ".none", "dest": arrived})
		if err != nil || !strings.Contains(plan.Unknown, "not there yet") {
			t.Errorf("missing source: %+v, %v", plan, err)
		}
		replica.refused("transfer", map[string]any{"src_host": "source", "src": dump + ".none", "dest": arrived}, "has no file")
		replica.refused("transfer", map[string]any{"src_host": "source", "src": dump, "dest": arrived, "sha256": strings.Repeat("a", 64)}, "is not the file that is meant")
		replica.refused("transfer", map[string]any{"src_host": "source", "src": dump, "dest": "/nowhere/at/all"}, "directory of the destination")
		v := replica.changes("transfer", args)
		if v["sha256"] != values["sha256"] || v["size"] != values["size"] {
			t.Errorf("%v", v)
		}
		args["mode"] = "0640"
		replica.changes("transfer", args)
		// Content that differs is sent again; a source that is cut off while it sends leaves the old file.
		labFile(t, arrived, "old", 0o600)
		cut := replica.host.PeerFunc
		defer func() { replica.host.PeerFunc = cut }()
		peer := *source.host
		peer.Conn = cutConn{peer.Conn, 1000}
		plan, err = replica.check("transfer", args)
		if err != nil {
			t.Fatal(err)
		}
		replica.host.PeerFunc = func(context.Context, string) (*module.Host, error) { return &peer, nil }
		if _, err := makeModule(t, "transfer", args).Apply(context.Background(), replica.host, plan); err == nil {
			t.Error("a transfer that was cut off succeeds")
		}
		if text, _ := os.ReadFile(arrived); string(text) != "old" {
			t.Errorf("a cut transfer left %d bytes", len(text))
		}
		if _, err := os.Stat(filepath.Join(replica.dir, ".dump.sql.part")); err == nil {
			t.Error("a part is left")
		}
		replica.host.PeerFunc = cut
		replica.changes("transfer", args)
	})

	whole, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	step("import refuses", func(t *testing.T) {
		plan, err := replica.check("mysql_import", importArgs(map[string]any{"src": arrived + ".none", "sha256": values["sha256"]}))
		if err != nil || !strings.Contains(plan.Unknown, "not there yet") {
			t.Errorf("missing dump: %+v, %v", plan, err)
		}
		replica.refused("mysql_import", importArgs(map[string]any{"src": arrived + ".none"}), "no dump file")
		replica.refused("mysql_import", importArgs(map[string]any{"sha256": strings.Repeat("b", 64)}), "expected bbb")
		replica.refused("mysql_import", importArgs(map[string]any{"size": 7}), "expected 7")
		replica.refused("mysql_import", importArgs(map[string]any{"databases": []any{"voms_lab"}}), "holds the databases")
		cut := arrived + ".cut"
		tail := bytes.LastIndex(whole, []byte("-- Dump completed"))
		for _, at := range []int{0, 1, 1000, len(whole) / 2, bytes.LastIndex(whole, []byte("DROP TABLE IF EXISTS")), tail, tail + 5} {
			labFile(t, cut, string(whole[:at]), 0o600)
			replica.refused("mysql_import", importArgs(map[string]any{"src": cut}), "nothing was touched")
		}
		if n := replica.value("SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME IN ('voms_lab', 'o''db', 'runbook')"); n != 0 {
			t.Errorf("a refused import made %v databases", n)
		}
		// Somebody's data.
		replica.sql("CREATE DATABASE voms_lab", "CREATE TABLE voms_lab.theirs (a INT)", "INSERT INTO voms_lab.theirs VALUES (7)")
		replica.refused("mysql_import", importArgs(nil), "voms_lab holds 1 tables that no import of ours made")
		if n := replica.value("SELECT a FROM voms_lab.theirs"); n != 7 {
			t.Errorf("their data: %v", n)
		}
		replica.sql("DROP DATABASE voms_lab")
		// An import that outlived its run.
		login := mysqlLogin{LoginUser: "root", LoginSocket: replica.socket}
		holder, err := login.open(context.Background(), replica.host)
		if err != nil {
			t.Fatal(err)
		}
		if err := holder.exec(context.Background(), "DO GET_LOCK(?, 0)", importLock); err != nil {
			t.Fatal(err)
		}
		replica.refused("mysql_import", importArgs(nil), "still running")
		holder.close()
		// An import that breaks is marked, and may be repeated.
		fake := filepath.Join(replica.dir, "mariadb")
		labFile(t, fake, "#!/bin/sh\nif [ \"$1\" = --version ]; then mariadb --version; else head -n 40 | mariadb \"$@\"; exit 1; fi\n", 0o755)
		replica.refused("mysql_import", importArgs(map[string]any{"program": fake}), "marked so")
		labFile(t, fake, "#!/bin/sh\nif [ \"$1\" = --version ]; then mariadb --version; else sed '/^CREATE TABLE `people`/,$d' | mariadb \"$@\"; fi\n", 0o755)
		replica.refused("mysql_import", importArgs(map[string]any{"program": fake}), "not in the databases")
		if state := replica.value("SELECT GROUP_CONCAT(state) FROM runbook.imports"); state != "importing,importing" {
			t.Errorf("state %v", state)
		}
	})

	step("import", func(t *testing.T) {
		before := replica.value("SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'BINLOG_SNAPSHOT_POSITION'")
		args := importArgs(map[string]any{"sha256": values["sha256"], "size": values["size"]})
		v := replica.changes("mysql_import", args)
		if v["tables"] != 2 || v["log_file"] != values["log_file"] || v["log_pos"] != values["log_pos"] {
			t.Errorf("%v", v)
		}
		if after := replica.value("SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'BINLOG_SNAPSHOT_POSITION'"); before != after {
			t.Errorf("the import was logged: %v, %v", before, after)
		}
		if got := replica.value("SELECT name FROM voms_lab.`odd``table`"); got != "漢字 Łódź ? ' \\" {
			t.Errorf("round trip: %v", got)
		}
		// The same dump again is done, without the file; another dump is refused.
		if err := os.Rename(arrived, arrived+".away"); err != nil {
			t.Fatal(err)
		}
		if _, changed := replica.must("mysql_import", args); changed {
			t.Error("imported again")
		}
		other := bytes.Replace(whole, []byte("O\\'Neil"), []byte("O\\'Neal"), 1)
		labFile(t, arrived, string(other), 0o600)
		replica.refused("mysql_import", importArgs(nil), "from another dump")
		replica.changes("mysql_import", importArgs(map[string]any{"overwrite": true}))
		if got := replica.value("SELECT COUNT(*) FROM `o'db`.people WHERE name LIKE 'O_Neal%'"); got != 1 {
			t.Errorf("overwrite: %v", got)
		}
		if err := os.Rename(arrived+".away", arrived); err != nil {
			t.Fatal(err)
		}
		args["overwrite"] = true
		replica.changes("mysql_import", args)
	})

	at := map[string]any{"source_log_file": values["log_file"], "source_log_pos": values["log_pos"]}
	step("replication", func(t *testing.T) {
		replica.refused("mysql_replication", replicaArgs(nil), "are needed for a new replica")
		// Who was cut off when it had been pointed at its source only starts it.
		replica.sql(fmt.Sprintf("CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = %d, MASTER_USER = 'db_rep', MASTER_CONNECT_RETRY = 1, MASTER_LOG_FILE = '%v', MASTER_LOG_POS = %v",
			source.port, values["log_file"], values["log_pos"]))
		if plan, err := replica.check("mysql_replication", replicaArgs(at)); err != nil || len(plan.Changes) != 1 || plan.Changes[0].What != "start replication" {
			t.Errorf("%+v, %v", plan, err)
		}
		replica.sql("RESET SLAVE ALL")
		start := time.Now()
		wrong := replicaArgs(at)
		wrong["source_password"] = secret.New("S3CRET-wrong")
		_, _, err := replica.apply("mysql_replication", wrong)
		if err == nil || !strings.Contains(err.Error(), "wrong replication user or password") || !strings.Contains(err.Error(), "1045") || strings.Contains(err.Error(), "S3CRET") {
			t.Errorf("wrong password: %v", err)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("a wrong password took %s", d)
		}
		plan, err := replica.check("mysql_replication", replicaArgs(at))
		if err != nil || len(plan.Changes) != 1 || !strings.Contains(plan.Changes[0].What, "password") {
			t.Fatalf("%+v, %v", plan, err)
		}
		v := replica.changes("mysql_replication", replicaArgs(at))
		if v["io_running"] != "Yes" || v["sql_running"] != "Yes" || v["lag"] != 0 || v["source_user"] != "db_rep" || v["source_server_id"] != 1 {
			t.Errorf("%v", v)
		}
		source.sql("INSERT INTO `o'db`.people (name) VALUES ('after ☃')", "CREATE TABLE voms_lab.fresh (a INT PRIMARY KEY)", "INSERT INTO voms_lab.fresh VALUES (1)")
		replica.eventually("SELECT COUNT(*) FROM `o'db`.people WHERE name = 'after ☃'", 1)
		replica.eventually("SELECT COUNT(*) FROM voms_lab.fresh", 1)
	})

	step("info and positions", func(t *testing.T) {
		read := func(s *labServer) map[string]any {
			plan, err := s.check("mysql_info", s.on(map[string]any{"checksum": databases, "counts": databases, "variables": []any{"datadir", "no_such"}}))
			if err != nil || len(plan.Changes) > 0 {
				t.Fatalf("%+v, %v", plan, err)
			}
			return plan.Values
		}
		a := read(source)
		v, _ := replica.must("mysql_wait_position", replica.on(map[string]any{"source_log_file": a["log_file"], "source_log_pos": a["log_pos"]}))
		if v["exec_log_pos"] != a["log_pos"] {
			t.Errorf("%v, want %v", v["exec_log_pos"], a["log_pos"])
		}
		b := read(replica)
		for _, name := range []string{"checksums", "counts", "tables"} {
			if fmt.Sprint(a[name]) != fmt.Sprint(b[name]) {
				t.Errorf("%s: %v and %v", name, a[name], b[name])
			}
		}
		if a["dump_threads"] != 1 || a["flavour"] != "mariadb" || a["read_only"] != false || b["read_only"] != true || b["replica"].(map[string]any)["running"] != true ||
			a["replica"].(map[string]any)["configured"] != false || a["databases"].(map[string]any)["voms_lab"] != 2 || len(a["variables"].(map[string]any)) != 1 {
			t.Errorf("source %v\nreplica %v", a, b)
		}
		replica.refused("mysql_wait_position", replica.on(map[string]any{"source_log_file": a["log_file"], "source_log_pos": a["log_pos"].(int) + 1000, "wait_timeout": "1s"}), "did not reach it within 1s")
		source.refused("mysql_wait_position", source.on(map[string]any{"source_log_file": a["log_file"], "source_log_pos": 4}), "not configured as a replica")
	})

	step("replication again", func(t *testing.T) {
		exec := func() any { return replicaStatusOf(t, replica)["exec_log_pos"] }
		// While it runs, no import comes near it.
		replica.refused("mysql_import", importArgs(map[string]any{"overwrite": true, "sha256": strings.Repeat("c", 64)}), "is replicating")
		replica.changes("mysql_replication", replica.on(map[string]any{"state": "stopped"}))
		position := exec()
		// The dump's old coordinates do not take it back.
		plan, err := replica.check("mysql_replication", replicaArgs(at))
		if err != nil || len(plan.Changes) != 1 || plan.Changes[0].What != "start replication" {
			t.Fatalf("%+v, %v", plan, err)
		}
		replica.changes("mysql_replication", replicaArgs(at))
		if exec().(int) < position.(int) {
			t.Error("it went back")
		}
		// Another source is refused, with both places named.
		other := replicaArgs(at)
		other["source_port"] = source.port + 1
		_, _, err = replica.apply("mysql_replication", other)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%v:%v", at["source_log_file"], at["source_log_pos"])) || !strings.Contains(err.Error(), fmt.Sprintf(":%v", exec())) {
			t.Errorf("re-pointed: %v", err)
		}
		// A source that cannot be reached is said within seconds; the position is kept.
		other["force"] = true
		delete(other, "source_log_file")
		delete(other, "source_log_pos")
		start := time.Now()
		_, _, err = replica.apply("mysql_replication", other)
		if err == nil || !strings.Contains(err.Error(), "not reachable") || time.Since(start) > 15*time.Second {
			t.Errorf("unreachable after %s: %v", time.Since(start), err)
		}
		back := replicaArgs(map[string]any{"force": true})
		replica.changes("mysql_replication", back)
		source.sql("INSERT INTO voms_lab.fresh VALUES (2)")
		replica.eventually("SELECT COUNT(*) FROM voms_lab.fresh", 2)

		// Reseeding: stop, import a new dump over the old data, and it starts from the new coordinates by itself.
		replica.changes("mysql_replication", replica.on(map[string]any{"state": "stopped"}))
		source.sql("INSERT INTO voms_lab.fresh VALUES (3)")
		args := source.on(map[string]any{"databases": databases, "dest": dump, "max_age": "1ns"})
		plan, err = source.check("mysql_dump", args)
		if err != nil {
			t.Fatal(err)
		}
		again, err := makeModule(t, "mysql_dump", args).Apply(context.Background(), source.host, plan)
		if err != nil {
			t.Fatal(err)
		}
		source.sql("INSERT INTO voms_lab.fresh VALUES (4)")
		replica.changes("transfer", map[string]any{"src_host": "source", "src": dump, "dest": arrived})
		replica.changes("mysql_import", importArgs(map[string]any{"overwrite": true, "sha256": again["sha256"]}))
		replica.changes("mysql_replication", replicaArgs(map[string]any{"source_log_file": again["log_file"], "source_log_pos": again["log_pos"]}))
		replica.eventually("SELECT GROUP_CONCAT(a ORDER BY a) FROM voms_lab.fresh", "1,2,3,4")
		if got := replicaStatusOf(t, replica)["last_sql_errno"]; got != 0 {
			t.Errorf("error %v", got)
		}
	})

	step("replication breaks", func(t *testing.T) {
		// A row that is there already.
		replica.sql("INSERT INTO voms_lab.fresh VALUES (5)")
		source.sql("INSERT INTO voms_lab.fresh VALUES (5)")
		replica.eventually("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Slave_SQL'", 0)
		replica.refused("mysql_replication", replicaArgs(nil), "not the source's")
		replica.changes("mysql_replication", replica.on(map[string]any{"state": "absent"}))
		if s := replicaStatusOf(t, replica); s["configured"] != false {
			t.Errorf("%v", s)
		}
		// A log that was purged, and a source with the same id.
		replica.refused("mysql_replication", replicaArgs(map[string]any{"source_log_file": "bin.000001", "source_log_pos": 4}), "1236")
		replica.changes("mysql_replication", replica.on(map[string]any{"state": "absent"}))
		replica.sql("SET GLOBAL server_id = 1")
		replica.refused("mysql_replication", replicaArgs(at), "same server_id")
		replica.sql("SET GLOBAL server_id = 2")
		replica.changes("mysql_replication", replica.on(map[string]any{"state": "absent"}))
		// By name and by GTID.
		replica.refused("mysql_replication", replicaArgs(map[string]any{"connection_name": "odd 'name", "auto_position": true, "source_user": "nobody"}), "1045")
		// Beside an unnamed one: each is told by its name, and removed by it.
		replica.sql("CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 1, MASTER_USER = 'somebody'")
		connections := func() map[any]any {
			plan, err := replica.check("mysql_info", replica.on(map[string]any{"connection_name": "odd 'name"}))
			if err != nil {
				t.Fatal(err)
			}
			users := map[any]any{"asked for": plan.Values["replica"].(map[string]any)["source_user"]}
			for _, c := range plan.Values["connections"].([]any) {
				users[c.(map[string]any)["name"]] = c.(map[string]any)["source_user"]
			}
			return users
		}
		if diff := cmp.Diff(map[any]any{"": "somebody", "odd 'name": "nobody", "asked for": "nobody"}, connections()); diff != "" {
			t.Error(diff)
		}
		replica.changes("mysql_replication", replica.on(map[string]any{"state": "absent", "connection_name": "odd 'name"}))
		if diff := cmp.Diff(map[any]any{"": "somebody", "asked for": ""}, connections()); diff != "" {
			t.Error(diff)
		}
	})
}

func replicaStatusOf(t *testing.T, s *labServer) map[string]any {
	t.Helper()
	plan, err := s.check("mysql_info", s.on(nil))
	if err != nil {
		t.Fatal(err)
	}
	return plan.Values["replica"].(map[string]any)
}

// watchProcesses looks for text in the arguments and environments of all processes until the result is asked for.
func watchProcesses(text string) (seen func() []string) {
	done, result := make(chan struct{}), make(chan []string)
	go func() {
		var found []string
		for {
			select {
			case <-done:
				result <- found
				return
			case <-time.After(5 * time.Millisecond):
			}
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, file := range files {
				for _, name := range []string{file, strings.Replace(file, "cmdline", "environ", 1)} {
					if content, _ := os.ReadFile(name); bytes.Contains(content, []byte(text)) {
						found = append(found, name)
					}
				}
			}
		}
	}()
	return func() []string { close(done); return <-result }
}

func labFile(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// cutConn loses the link after some bytes of a bulk stream.
type cutConn struct {
	transport.Conn
	after int
}

func (c cutConn) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	if cmd.Stdout == nil {
		return c.Conn.Run(ctx, cmd)
	}
	var all bytes.Buffer
	out := cmd.Stdout
	cmd.Stdout = &all
	if _, err := c.Conn.Run(ctx, cmd); err != nil {
		return transport.Output{}, err
	}
	_, _ = out.Write(all.Bytes()[:min(c.after, all.Len())])
	return transport.Output{}, &transport.UnreachableError{Host: "source", MayHave: true, Err: os.ErrDeadlineExceeded}
}
