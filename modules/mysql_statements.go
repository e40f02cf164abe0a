package modules

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// mysqlServer is what a database server says it is.
type mysqlServer struct {
	MariaDB bool
	Number  [3]int
	Text    string // as SELECT VERSION() gives it
}

var mysqlVersionPattern = regexp.MustCompile(`(\d+)\.(\d+)(?:\.(\d+))?`)

// parseMySQLServer reads the answer to SELECT VERSION(). Old MariaDB servers put 5.5.5- ahead of their version for
// the sake of old replicas.
func parseMySQLServer(version string) (mysqlServer, error) {
	s := mysqlServer{MariaDB: strings.Contains(strings.ToLower(version), "mariadb"), Text: version}
	number := version
	if s.MariaDB {
		number = strings.TrimPrefix(number, "5.5.5-")
	}
	m := mysqlVersionPattern.FindStringSubmatch(number)
	if m == nil {
		return s, fmt.Errorf("cannot understand the server version %q", version)
	}
	for i := range s.Number {
		s.Number[i], _ = strconv.Atoi(m[i+1])
	}
	return s, nil
}

func (s mysqlServer) flavour() string {
	if s.MariaDB {
		return "mariadb"
	}
	return "mysql"
}

func (s mysqlServer) family() string {
	if s.MariaDB {
		return "MariaDB"
	}
	return "MySQL"
}

// atLeast compares the version number of a server of either family.
func (s mysqlServer) atLeast(major, minor, patch int) bool {
	for i, n := range [3]int{major, minor, patch} {
		if s.Number[i] != n {
			return s.Number[i] > n
		}
	}
	return true
}

// mysqlVariant is the text of a statement from one version of one family on; "" means that the server has no such statement.
type mysqlVariant struct {
	mariaDB bool
	since   [3]int
	text    string
}

// mysqlStatements holds every statement whose text depends on the server. Of the variants of the server's family the last one
// whose version is reached is taken. {name} is MariaDB's place for a connection name, {channel} MySQL's for a channel.
var mysqlStatements = map[string][]mysqlVariant{
	"replica status": {
		{false, [3]int{5, 1, 0}, "SHOW SLAVE STATUS"},
		{false, [3]int{5, 7, 6}, "SHOW SLAVE STATUS {channel}"},
		{false, [3]int{8, 0, 22}, "SHOW REPLICA STATUS {channel}"},
		{true, [3]int{5, 1, 0}, "SHOW SLAVE STATUS"},
		{true, [3]int{10, 0, 1}, "SHOW SLAVE {name} STATUS"},
	},
	"source status": {
		{false, [3]int{5, 1, 0}, "SHOW MASTER STATUS"},
		{false, [3]int{8, 2, 0}, "SHOW BINARY LOG STATUS"},
		{true, [3]int{5, 1, 0}, "SHOW MASTER STATUS"},
	},
	"binary logs": {
		{false, [3]int{5, 1, 0}, "SHOW BINARY LOGS"},
		{true, [3]int{5, 1, 0}, "SHOW BINARY LOGS"},
	},
	"start replica": {
		{false, [3]int{5, 1, 0}, "START SLAVE"},
		{false, [3]int{5, 7, 6}, "START SLAVE {channel}"},
		{false, [3]int{8, 0, 22}, "START REPLICA {channel}"},
		{true, [3]int{5, 1, 0}, "START SLAVE"},
		{true, [3]int{10, 0, 1}, "START SLAVE {name}"},
	},
	"stop replica": {
		{false, [3]int{5, 1, 0}, "STOP SLAVE"},
		{false, [3]int{5, 7, 6}, "STOP SLAVE {channel}"},
		{false, [3]int{8, 0, 22}, "STOP REPLICA {channel}"},
		{true, [3]int{5, 1, 0}, "STOP SLAVE"},
		{true, [3]int{10, 0, 1}, "STOP SLAVE {name}"},
	},
	"reset replica": {
		{false, [3]int{5, 1, 0}, "RESET SLAVE"},
		{false, [3]int{5, 5, 16}, "RESET SLAVE ALL"},
		{false, [3]int{5, 7, 6}, "RESET SLAVE ALL {channel}"},
		{false, [3]int{8, 0, 22}, "RESET REPLICA ALL {channel}"},
		{true, [3]int{5, 1, 0}, "RESET SLAVE"},
		{true, [3]int{5, 5, 16}, "RESET SLAVE ALL"},
		{true, [3]int{10, 0, 1}, "RESET SLAVE {name} ALL"},
	},
	// {options} is a list of MASTER_… = value; where a server wants SOURCE_…, the words come from mysqlSourceWord.
	"change source": {
		{false, [3]int{5, 1, 0}, "CHANGE MASTER TO {options}"},
		{false, [3]int{5, 7, 6}, "CHANGE MASTER TO {options} {channel}"},
		{false, [3]int{8, 0, 23}, "CHANGE REPLICATION SOURCE TO {options} {channel}"},
		{true, [3]int{5, 1, 0}, "CHANGE MASTER TO {options}"},
		{true, [3]int{10, 0, 1}, "CHANGE MASTER {name} TO {options}"},
	},
	// Waits on a replica: file, position, seconds; NULL if it does not replicate, -1 at the end of the time.
	"wait position": {
		{false, [3]int{5, 1, 0}, "SELECT MASTER_POS_WAIT(?, ?, ?)"},
		{false, [3]int{8, 0, 26}, "SELECT SOURCE_POS_WAIT(?, ?, ?)"},
		{true, [3]int{5, 1, 0}, "SELECT MASTER_POS_WAIT(?, ?, ?)"},
	},
	"wait position of connection": {
		{false, [3]int{5, 1, 0}, ""},
		{false, [3]int{5, 7, 6}, "SELECT MASTER_POS_WAIT(?, ?, ?, ?)"},
		{false, [3]int{8, 0, 26}, "SELECT SOURCE_POS_WAIT(?, ?, ?, ?)"},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 0, 1}, "SELECT MASTER_POS_WAIT(?, ?, ?, ?)"},
	},
	"gtid at position": {
		{false, [3]int{5, 1, 0}, ""},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 0, 2}, "SELECT BINLOG_GTID_POS(?, ?)"},
	},
	"read only transaction": {
		{false, [3]int{5, 1, 0}, ""},
		{false, [3]int{5, 6, 5}, "START TRANSACTION READ ONLY"},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 0, 0}, "START TRANSACTION READ ONLY"},
	},
	// Row: plugin, hash, locked (Y, N or NULL), ssl_type. One JSON column on MariaDB 10.4 and later.
	"account": {
		{false, [3]int{5, 1, 0}, "SELECT 'mysql_native_password', Password, NULL, ssl_type FROM mysql.user WHERE User = ? AND Host = ?"},
		{false, [3]int{5, 5, 7}, "SELECT plugin, IF(Password = '', authentication_string, Password), NULL, ssl_type FROM mysql.user WHERE User = ? AND Host = ?"},
		{false, [3]int{5, 7, 6}, "SELECT plugin, authentication_string, account_locked, ssl_type FROM mysql.user WHERE User = ? AND Host = ?"},
		{true, [3]int{5, 1, 0}, "SELECT 'mysql_native_password', Password, NULL, ssl_type FROM mysql.user WHERE User = ? AND Host = ?"},
		{true, [3]int{5, 2, 0}, "SELECT plugin, IF(Password = '', authentication_string, Password), NULL, ssl_type FROM mysql.user WHERE User = ? AND Host = ?"},
		{true, [3]int{10, 4, 0}, "SELECT Priv FROM mysql.global_priv WHERE User = ? AND Host = ?"},
	},
	"set password": { // user, host, password
		{false, [3]int{5, 1, 0}, "SET PASSWORD FOR ?@? = PASSWORD(?)"},
		{false, [3]int{5, 7, 6}, "ALTER USER ?@? IDENTIFIED BY ?"},
		{true, [3]int{5, 1, 0}, "SET PASSWORD FOR ?@? = PASSWORD(?)"},
		{true, [3]int{10, 2, 0}, "ALTER USER ?@? IDENTIFIED BY ?"},
	},
	// The same with what the server keeps of the password; "" where it is not for us to compute. MySQL hides passwords in its logs itself.
	"set stored password": { // user, host, hash
		{false, [3]int{5, 1, 0}, "SET PASSWORD FOR ?@? = ?"},
		{false, [3]int{5, 7, 6}, ""},
		{true, [3]int{5, 1, 0}, "SET PASSWORD FOR ?@? = ?"},
		{true, [3]int{10, 2, 0}, "ALTER USER ?@? IDENTIFIED BY PASSWORD ?"},
	},
	"set plugin": { // {plugin} is an identifier
		{false, [3]int{5, 1, 0}, ""},
		{false, [3]int{5, 7, 6}, "ALTER USER ?@? IDENTIFIED WITH {plugin}"},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 2, 0}, "ALTER USER ?@? IDENTIFIED VIA {plugin}"},
	},
	"set plugin and password": {
		{false, [3]int{5, 1, 0}, ""},
		{false, [3]int{5, 7, 6}, "ALTER USER ?@? IDENTIFIED WITH {plugin} BY ?"},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 4, 0}, "ALTER USER ?@? IDENTIFIED VIA {plugin} USING PASSWORD(?)"},
	},
	"set plugin and stored password": {
		{false, [3]int{5, 1, 0}, ""},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 4, 0}, "ALTER USER ?@? IDENTIFIED VIA {plugin} USING ?"},
	},
	"require": { // {require} is NONE, SSL or X509
		{false, [3]int{5, 1, 0}, "GRANT USAGE ON *.* TO ?@? REQUIRE {require}"},
		{false, [3]int{5, 7, 6}, "ALTER USER ?@? REQUIRE {require}"},
		{true, [3]int{5, 1, 0}, "GRANT USAGE ON *.* TO ?@? REQUIRE {require}"},
		{true, [3]int{10, 2, 0}, "ALTER USER ?@? REQUIRE {require}"},
	},
	"lock account": { // {lock} is LOCK or UNLOCK
		{false, [3]int{5, 1, 0}, ""},
		{false, [3]int{5, 7, 6}, "ALTER USER ?@? ACCOUNT {lock}"},
		{true, [3]int{5, 1, 0}, ""},
		{true, [3]int{10, 4, 2}, "ALTER USER ?@? ACCOUNT {lock}"},
	},
}

// statement returns the text of a statement for this server, "" if it has none. fill replaces {word} holes, given in pairs.
func (s mysqlServer) statement(name string, fill ...string) string {
	text := ""
	for _, v := range mysqlStatements[name] {
		if v.mariaDB == s.MariaDB && s.atLeast(v.since[0], v.since[1], v.since[2]) {
			text = v.text
		}
	}
	for i := 0; i+1 < len(fill); i += 2 {
		text = strings.ReplaceAll(text, "{"+fill[i]+"}", fill[i+1])
	}
	return strings.TrimSpace(text)
}

// forConnection returns a replication statement with its connection name or channel, and the arguments that the text has
// places for. The empty name is the default connection.
func (s mysqlServer) forConnection(statement, name string, fill ...string) (text string, args []any, err error) {
	raw := s.statement(statement, fill...)
	if raw == "" {
		return "", nil, fmt.Errorf("%s %s has no statement for: %s", s.family(), s.Text, statement)
	}
	if name == "" {
		text = strings.NewReplacer("{name} ", "", "{name}", "", "{channel}", "").Replace(raw)
		return strings.TrimSpace(text), nil, nil
	}
	if !strings.Contains(raw, "{name}") && !strings.Contains(raw, "{channel}") {
		return "", nil, fmt.Errorf("%s %s has no named replication connections", s.family(), s.Text)
	}
	return strings.NewReplacer("{name}", "?", "{channel}", "FOR CHANNEL ?").Replace(raw), []any{name}, nil
}

// sourceWord turns MASTER_HOST into SOURCE_HOST where the server wants the newer word.
func (s mysqlServer) sourceWord(option string) string {
	if s.MariaDB || !s.atLeast(8, 0, 23) {
		return option
	}
	return strings.Replace(option, "MASTER_", "SOURCE_", 1)
}

// mysqlColumn gives a status column the name that it has in both vocabularies: lower case, source and replica.
func mysqlColumn(name string) string {
	return strings.NewReplacer("master", "source", "slave", "replica").Replace(strings.ToLower(name))
}

// mysqlTransactional are the storage engines that a dump in one transaction reads consistently.
var mysqlTransactional = map[string]bool{"innodb": true, "rocksdb": true, "tokudb": true}

// mysqlPrivilegeAliases gives a privilege the name under which it is compared; both families print some of them
// otherwise than they were granted.
func (s mysqlServer) privilege(name string) string {
	name = strings.Join(strings.Fields(strings.ToUpper(name)), " ")
	switch name {
	case "ALL":
		return "ALL PRIVILEGES"
	case "REPLICATION REPLICA":
		return "REPLICATION SLAVE"
	case "DELETE VERSIONING ROWS":
		return "DELETE HISTORY"
	}
	if s.MariaDB && s.atLeast(10, 5, 2) {
		switch name {
		case "REPLICATION CLIENT":
			return "BINLOG MONITOR"
		case "REPLICA MONITOR":
			return "SLAVE MONITOR"
		case "REPLICATION REPLICA ADMIN":
			return "REPLICATION SLAVE ADMIN"
		}
	}
	return name
}
