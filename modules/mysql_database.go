package modules

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"runbook/engine/module"
)

func init() {
	register("mysql_database", func() module.Module {
		return &mysqlDatabase{mysqlLogin: defaultMySQLLogin(), State: "present", SQLLogBin: true}
	})
}

// mysqlDatabase makes databases, sets their default character set, or drops them.
//
//	tasks:
//	  - name: the database of the VO
//	    mysql_database: {name: voms_myvo, charset: utf8mb4}
type mysqlDatabase struct {
	mysqlLogin `yaml:",inline"`
	// Names of the databases.
	Name []string `yaml:"name" required:"true" short:"true"`
	// Default character set for new tables, such as utf8mb4. Empty: the server's for a new database, else left as it is.
	Charset string `yaml:"charset"`
	// Default collation for new tables.
	Collation string `yaml:"collation"`
	// Whether the databases should be there.
	State string `yaml:"state" choices:"present,absent"`
	// Needed with state absent: everything in the databases is lost.
	Force bool `yaml:"force"`
	// Write the changes to the binary log, so that replicas get them.
	SQLLogBin bool `yaml:"sql_log_bin"`
}

func (*mysqlDatabase) Returns() []module.Return {
	return []module.Return{{Name: "databases", Type: "list", Help: "the names given"}}
}

var mysqlWordPattern = regexp.MustCompile(`^[A-Za-z0-9_]*$`)

func (m *mysqlDatabase) Validate() error {
	var errs []error
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	if err := mysqlDatabaseNames("name", m.Name); err != nil {
		errs = append(errs, err)
	}
	for path, v := range map[string]string{"charset": m.Charset, "collation": m.Collation} {
		if !mysqlWordPattern.MatchString(v) {
			errs = append(errs, &module.ArgError{Path: path, Msg: fmt.Sprintf("%q is not a name of a %s", v, path)})
		}
	}
	if m.State == "absent" && !m.Force {
		errs = append(errs, &module.ArgError{Path: "state", Msg: "dropping a database loses its data", Hint: "add force: true if that is meant"})
	}
	return errors.Join(errs...)
}

func (m *mysqlDatabase) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	places, args := mysqlPlaces(m.Name)
	rows, err := s.query(ctx, "SELECT SCHEMA_NAME, DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA "+
		"WHERE SCHEMA_NAME IN ("+places+")", args...)
	if err != nil {
		return module.Plan{}, err
	}
	have := map[string][]any{}
	for _, row := range rows.Ordered {
		have[mysqlText(row[0])] = row
	}
	if doubt := inDoubt(host, databaseKind, m.Name...); doubt != nil {
		return *doubt, nil
	}
	plan := module.Plan{Values: m.values()}
	for _, name := range m.Name {
		row, there := have[name]
		if e, pending := host.Effects.Last(databaseKind, name); pending {
			if e.Value == (m.State != "absent") {
				continue // an earlier task of this check sees to it
			}
			there = false
		}
		plan.Effects = append(plan.Effects, module.Effect{Kind: databaseKind, Name: name, Value: m.State != "absent"})
		switch {
		case m.State == "absent" && there:
			plan.Changes = append(plan.Changes, module.Change{What: "drop database " + name, Before: "present", After: "absent"})
		case m.State == "absent":
		case !there:
			plan.Changes = append(plan.Changes, module.Change{What: "create database " + name, Before: "absent", After: m.describe()})
		default:
			charset, collation := mysqlText(row[1]), mysqlText(row[2])
			if m.Charset != "" && mysqlCharset(m.Charset) != mysqlCharset(charset) {
				plan.Changes = append(plan.Changes, module.Change{What: "character set of database " + name, Before: charset, After: m.Charset})
			}
			if m.Collation != "" && mysqlCharset(m.Collation) != mysqlCharset(collation) {
				plan.Changes = append(plan.Changes, module.Change{What: "collation of database " + name, Before: collation, After: m.Collation})
			}
		}
	}
	plan.State = have
	return plan, nil
}

// mysqlCharset gives a character set or collation the name that newer servers have for it.
func mysqlCharset(name string) string {
	name = strings.ToLower(name)
	if name == "utf8" {
		return "utf8mb3"
	}
	if rest, ok := strings.CutPrefix(name, "utf8_"); ok {
		return "utf8mb3_" + rest
	}
	return name
}

func (m *mysqlDatabase) describe() string {
	text := strings.TrimSpace(m.Charset + " " + m.Collation)
	if text == "" {
		return "present"
	}
	return text
}

func (m *mysqlDatabase) values() module.Values {
	list := make([]any, len(m.Name))
	for i, n := range m.Name {
		list[i] = n
	}
	return module.Values{"databases": list}
}

func (m *mysqlDatabase) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
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
	have, _ := plan.State.(map[string][]any)
	options := ""
	if m.Charset != "" {
		options += " CHARACTER SET " + m.Charset
	}
	if m.Collation != "" {
		options += " COLLATE " + m.Collation
	}
	for _, name := range m.Name {
		statement := "CREATE DATABASE IF NOT EXISTS " + mysqlIdent(name) + options
		switch _, there := have[name]; {
		case m.State == "absent":
			statement = "DROP DATABASE IF EXISTS " + mysqlIdent(name)
		case there && options == "":
			continue
		case there:
			statement = "ALTER DATABASE " + mysqlIdent(name) + options
		}
		if err := s.exec(ctx, statement); err != nil {
			return nil, fmt.Errorf("database %s: %w", name, err)
		}
	}
	return m.values(), nil
}
