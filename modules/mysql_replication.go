package modules

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"runbook/engine/module"
	"runbook/engine/secret"
)

func init() {
	register("mysql_replication", func() module.Module {
		return &mysqlReplication{mysqlLogin: defaultMySQLLogin(), State: "replicating", SourcePort: 3306, Timeout: 30 * time.Second, MaxLag: -1}
	})
}

// mysqlReplication makes the host's server a replica of a source, stops it, or takes the configuration away.
//
// A replica that runs from the source is left alone. One that stands still is started from its own position, unless
// mysql_import has just loaded the dump of source_log_file and source_log_pos: then it starts there. After a start it waits until both threads
// run, and fails within seconds, in plain words, on an error that will not pass by itself. A wrong password is replaced without losing the position.
// A replica that has executed more than the coordinates say, or from another source, is not re-pointed without force.
//
//	tasks:
//	  - name: replicate through the tunnel, from the dump's coordinates
//	    mysql_replication:
//	      source_host: 127.0.0.1
//	      source_port: 3307
//	      source_user: db_rep
//	      source_password: '{{ replication_password }}'
//	      source_log_file: '{{ hosts["voms1.example.org"].dump.log_file }}'
//	      source_log_pos: '{{ hosts["voms1.example.org"].dump.log_pos }}'
//	      max_lag: 60
type mysqlReplication struct {
	mysqlLogin `yaml:",inline"`
	// Whether the server should be replicating, configured but stopped, or not a replica at all.
	State string `yaml:"state" choices:"replicating,stopped,absent"`
	// Address of the source as the replica's server connects to it (127.0.0.1 through a tunnel).
	SourceHost string `yaml:"source_host"`
	// Port of the source as the replica's server connects to it.
	SourcePort int `yaml:"source_port"`
	// Replication account on the source.
	SourceUser string `yaml:"source_user"`
	// Its password. The server stores it in clear in its own files, and nowhere else.
	SourcePassword secret.Secret `yaml:"source_password"`
	// Binary log file to start from, as mysql_dump returns it.
	SourceLogFile string `yaml:"source_log_file" late:"true"`
	// Position in that file.
	SourceLogPos int `yaml:"source_log_pos" late:"true"`
	// Start by GTID instead of file and position (MariaDB: slave_pos; MySQL: auto position).
	AutoPosition bool `yaml:"auto_position"`
	// Encrypt the connection by the servers' own TLS. Not needed inside a tunnel.
	SourceSSL bool `yaml:"source_ssl"`
	// Seconds between the server's attempts to reach the source. Default: left as it is, 10 for a new replica.
	ConnectRetry int `yaml:"connect_retry"`
	// Connection name (MariaDB) or channel (MySQL). Default: the server's unnamed connection.
	ConnectionName string `yaml:"connection_name"`
	// How long to wait for replication to run.
	Timeout time.Duration `yaml:"wait_timeout"`
	// After a start also wait until the replica is at most this many seconds behind. -1: any lag will do.
	MaxLag int `yaml:"max_lag"`
	// Re-point a replica although it has executed more than the coordinates say, or from another source. Its data must be the source's at the coordinates.
	Force bool `yaml:"force"`

	// The older word for source_host.
	MasterHost string `yaml:"master_host"`
	// The older word for source_port.
	MasterPort int `yaml:"master_port"`
	// The older word for source_user.
	MasterUser string `yaml:"master_user"`
	// The older word for source_password.
	MasterPassword secret.Secret `yaml:"master_password"`
	// The older word for source_log_file.
	MasterLogFile string `yaml:"master_log_file"`
	// The older word for source_log_pos.
	MasterLogPos int `yaml:"master_log_pos"`
}

func (*mysqlReplication) Returns() []module.Return { return replicaReturns }

func (m *mysqlReplication) Validate() error {
	var errs []error
	add := func(p, msg, hint string) { errs = append(errs, &module.ArgError{Path: p, Msg: msg, Hint: hint}) }
	if err := m.validate(); err != nil {
		errs = append(errs, err)
	}
	older := func(name string, oldSet, newSet bool, take func()) {
		switch {
		case oldSet && newSet:
			add("master_"+name, "source_"+name+" is given too: they mean the same", "leave one out")
		case oldSet:
			take()
		}
	}
	older("host", m.MasterHost != "", m.SourceHost != "", func() { m.SourceHost = m.MasterHost })
	older("port", m.MasterPort != 0, m.SourcePort != 3306, func() { m.SourcePort = m.MasterPort })
	older("user", m.MasterUser != "", m.SourceUser != "", func() { m.SourceUser = m.MasterUser })
	older("password", !m.MasterPassword.IsZero(), !m.SourcePassword.IsZero(), func() { m.SourcePassword = m.MasterPassword })
	older("log_file", m.MasterLogFile != "", m.SourceLogFile != "", func() { m.SourceLogFile = m.MasterLogFile })
	older("log_pos", m.MasterLogPos != 0, m.SourceLogPos != 0, func() { m.SourceLogPos = m.MasterLogPos })
	m.MasterHost, m.MasterPort, m.MasterUser, m.MasterPassword, m.MasterLogFile, m.MasterLogPos = "", 0, "", secret.Secret{}, "", 0

	if m.State == "replicating" {
		if m.SourceHost == "" {
			add("source_host", "required argument is missing", "the address at which the replica's server finds the source")
		}
		if m.SourceUser == "" {
			add("source_user", "required argument is missing", "")
		}
	}
	if m.SourcePort < 1 || m.SourcePort > 65535 {
		add("source_port", "not a port number", "")
	}
	if (m.SourceLogFile == "") != (m.SourceLogPos == 0) {
		add("source_log_file", "source_log_file and source_log_pos belong together", "a dump's result has both")
	}
	if m.SourceLogPos < 0 {
		add("source_log_pos", "not a position", "")
	}
	if m.AutoPosition && m.SourceLogFile != "" {
		add("auto_position", "auto_position and source_log_file exclude each other", "")
	}
	if len(m.SourcePassword.Reveal()) > 32 {
		add("source_password", "servers take at most 32 characters for a replication password", "")
	}
	if m.MaxLag < -1 {
		add("max_lag", "not a number of seconds", "-1 for any lag")
	}
	return errors.Join(errs...)
}

// replicationPlan is what Apply does, in this order.
type replicationPlan struct {
	stop, change, start, reset bool
	file                       string // where to start, with change; "" by GTID or as it is
	pos                        int
	fresh                      bool // from the coordinates of an import that was not used yet
}

func (m *mysqlReplication) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	s, err := m.open(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	defer s.close()
	status, err := s.replica(ctx, m.ConnectionName)
	if err != nil {
		return module.Plan{}, err
	}
	if doubt := inDoubt(host, replicationKind, m.ConnectionName); doubt != nil {
		return *doubt, nil
	}
	if e, pending := host.Effects.Last(replicationKind, m.ConnectionName); pending && e.Value == m.wish() {
		return module.Plan{Values: status.values(), Hangs: e.Task}, nil // an earlier task of this check sees to it
	}
	plan := module.Plan{Values: status.values(), Effects: []module.Effect{{Kind: replicationKind, Name: m.ConnectionName, Value: m.wish()}}}
	todo := replicationPlan{}
	change := func(what, before, after string) {
		plan.Changes = append(plan.Changes, module.Change{What: what, Before: before, After: after})
		plan.Pending = true
	}
	stopped := status == nil || (status.IORunning == "No" && status.SQLRunning == "No")
	switch {
	case m.State == "stopped":
		if todo.stop = !stopped; todo.stop {
			change("stop replication", status.state(), "stopped")
		}
	case m.State == "absent":
		if status != nil {
			todo.stop, todo.reset = !stopped, true
			change("remove replication", status.source(), "not a replica")
		}
	case m.connecting(status):
		// It was started, and tries again and again by itself: a run only has it try at once, and waits.
		change("wait until replication runs", status.state(), "replicating")
		todo.stop, todo.start, plan.Wait = true, true, true
	case host.Late["source_log_file"] != "" && status == nil:
		change(fmt.Sprintf("replicate from %s@%s:%d, from the place that an earlier task finds", m.SourceUser, m.SourceHost, m.SourcePort), "not configured", "replicating")
	case host.Late["source_log_file"] != "" && !(status.running() && m.differs(status) == ""):
		plan.Unknown, plan.Pending = host.Late["source_log_file"], true
	default:
		if todo, err = m.wanted(ctx, s, status, change); err != nil {
			return module.Plan{}, err
		}
	}
	plan.State = todo
	return plan, nil
}

// wish is what is declared of the connection, as later tasks of a check recognize it.
func (m *mysqlReplication) wish() string {
	return fmt.Sprintf("%s from %s@%s:%d", m.State, m.SourceUser, m.SourceHost, m.SourcePort)
}

// connecting reports whether a replica is as declared, but for its source, which it does not reach at the moment.
func (m *mysqlReplication) connecting(r *replicaStatus) bool {
	return r != nil && r.IORunning == "Connecting" && r.SQLRunning == "Yes" && (r.IOErrno == 0 || replicationUnreachable[r.IOErrno]) && m.differs(r) == "" && m.SourceLogFile == "" && !m.Force
}

// wanted decides what makes the server replicate.
func (m *mysqlReplication) wanted(ctx context.Context, s *mysqlSession, status *replicaStatus, change func(what, before, after string)) (replicationPlan, error) {
	todo := replicationPlan{}
	target := fmt.Sprintf("%s@%s:%d", m.SourceUser, m.SourceHost, m.SourcePort)
	if status != nil && status.running() && m.differs(status) == "" {
		return todo, nil
	}
	fresh, err := m.freshImport(ctx, s)
	if err != nil {
		return todo, err
	}
	todo = replicationPlan{start: true, change: true, file: m.SourceLogFile, pos: m.SourceLogPos, fresh: fresh}
	at := fmt.Sprintf(" from %s:%d", todo.file, todo.pos)
	if status == nil {
		switch {
		case m.AutoPosition:
			at = " by GTID"
		case todo.file == "":
			return todo, errors.New("cannot configure replication: source_log_file and source_log_pos are needed for a new replica (or auto_position)")
		}
		change("replicate from "+target+at, "not configured", "replicating")
		return todo, nil
	}

	todo.stop = status.IORunning != "No" || status.SQLRunning != "No"
	other := status.SourceHost != m.SourceHost || status.SourcePort != m.SourcePort
	differs := m.differs(status)
	switch {
	case fresh && !status.running() && !other && differs == "" && status.ExecFile == todo.file && status.ExecPos == todo.pos && status.IOErrno == 0 && status.SQLErrno == 0:
		// It was pointed there, and whoever did was cut off before he could say that the dump is in use.
		todo.change = false
		change("start replication", status.state(), "replicating, from the dump just imported")
	case fresh && !status.running():
		// The data is the dump's, whatever was executed before it was loaded.
		change("replicate from "+target+at, status.source()+", "+status.state(), "replicating, from the dump just imported")
	case other && m.AutoPosition:
		if !m.Force && status.ExecFile != "" {
			return todo, m.refusal(status)
		}
		change("replicate from "+target+" by GTID", status.source(), target)
	case other && todo.file != "":
		if order, same := comparePositions(status.ExecFile, status.ExecPos, todo.file, todo.pos); status.ExecFile != "" && !m.Force && (!same || order > 0) {
			return todo, m.refusal(status)
		}
		change("replicate from "+target+at, status.source(), target)
	case other && !m.Force:
		return todo, m.refusal(status)
	case other || differs != "":
		m.keepPosition(&todo, status)
		if other {
			differs = "address of the source"
		}
		change("change the "+differs+", keeping the position "+todo.at(status), status.source(), target)
	case m.Force && todo.file != "" && !status.running() && status.ExecFile == "":
		change("replicate from "+target+at, status.state(), "replicating")
	case status.IOErrno == 1045 && !m.SourcePassword.IsZero():
		m.keepPosition(&todo, status)
		change("set the replication password, keeping the position "+todo.at(status), status.state(), "replicating")
	default:
		todo.change = false
		change("start replication", status.state(), "replicating")
	}
	return todo, nil
}

// differs names the setting of a replica of the same source that is not as declared.
func (m *mysqlReplication) differs(r *replicaStatus) string {
	switch {
	case r.SourceHost != m.SourceHost || r.SourcePort != m.SourcePort:
		return "address of the source"
	case r.SourceUser != m.SourceUser:
		return "replication account"
	case r.SSL != m.SourceSSL:
		return "encryption"
	case m.ConnectRetry != 0 && r.ConnectRetry != m.ConnectRetry:
		return "retry interval"
	}
	return ""
}

// keepPosition makes a change start where the replica stands.
func (m *mysqlReplication) keepPosition(todo *replicationPlan, r *replicaStatus) {
	todo.file, todo.pos, todo.fresh = "", 0, false
	if r.GTID == "" || r.GTID == "No" {
		todo.file, todo.pos = r.ExecFile, r.ExecPos
	}
}

func (p replicationPlan) at(r *replicaStatus) string {
	if p.file == "" {
		return "by GTID"
	}
	return fmt.Sprintf("%s:%d", r.ExecFile, r.ExecPos)
}

func (m *mysqlReplication) refusal(r *replicaStatus) error {
	want := "no coordinates are given"
	if m.AutoPosition {
		want = "it would be pointed there by GTID"
	}
	if m.SourceLogFile != "" {
		want = fmt.Sprintf("the coordinates given are %s:%d", m.SourceLogFile, m.SourceLogPos)
	}
	return fmt.Errorf("refused, nothing was touched: this replica follows %s and has executed up to %s:%d, and %s at %s:%d; it would lose or repeat changes. "+
		"Import a new dump of the source first, or set force: true if the data is the source's at that place",
		r.source(), r.ExecFile, r.ExecPos, want, m.SourceHost, m.SourcePort)
}

// freshImport says whether mysql_import loaded a dump with the coordinates given, from which no replication was started yet.
func (m *mysqlReplication) freshImport(ctx context.Context, s *mysqlSession) (bool, error) {
	if m.SourceLogFile == "" {
		return false, nil
	}
	rows, err := s.query(ctx, "SELECT name FROM "+importsTable+" WHERE state = '"+imported+"' AND used IS NULL AND log_file = ? AND log_pos = ?",
		m.SourceLogFile, m.SourceLogPos)
	if code := mysqlErrno(err); code == 1146 || code == 1049 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return len(rows.Rows) > 0, nil
}

// changeOptions are the options of CHANGE MASTER or CHANGE REPLICATION SOURCE.
func (m *mysqlReplication) changeOptions(server mysqlServer, todo replicationPlan, retry int) (text string, args []any) {
	var list []string
	set := func(option string, value any) {
		list = append(list, server.sourceWord(option)+" = ?")
		args = append(args, value)
	}
	set("MASTER_HOST", m.SourceHost)
	set("MASTER_PORT", m.SourcePort)
	set("MASTER_USER", m.SourceUser)
	if !m.SourcePassword.IsZero() {
		set("MASTER_PASSWORD", m.SourcePassword)
	}
	if m.ConnectRetry != 0 {
		retry = m.ConnectRetry
	}
	set("MASTER_CONNECT_RETRY", retry)
	ssl := 0
	if m.SourceSSL {
		ssl = 1
	}
	set("MASTER_SSL", ssl)
	mysql := !server.MariaDB
	if ssl == 0 && mysql && server.atLeast(8, 0, 4) {
		// Passwords of caching_sha2 accounts then travel encrypted without TLS.
		list = append(list, map[bool]string{true: "GET_SOURCE_PUBLIC_KEY", false: "GET_MASTER_PUBLIC_KEY"}[server.atLeast(8, 0, 23)]+" = 1")
	}
	switch {
	case todo.file != "":
		set("MASTER_LOG_FILE", todo.file)
		set("MASTER_LOG_POS", todo.pos)
		if server.MariaDB && server.atLeast(10, 0, 2) {
			list = append(list, "MASTER_USE_GTID = no")
		} else if mysql && server.atLeast(5, 6, 5) {
			set("MASTER_AUTO_POSITION", 0)
		}
	case m.AutoPosition && server.MariaDB:
		list = append(list, "MASTER_USE_GTID = slave_pos")
	case m.AutoPosition:
		set("MASTER_AUTO_POSITION", 1)
	}
	return strings.Join(list, ", "), args
}

func (m *mysqlReplication) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	todo, _ := plan.State.(replicationPlan)
	s, err := m.open(ctx, host)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.masker.Add(m.SourcePassword)
	if todo.stop {
		if err := m.run(ctx, s, "stop replication", "stop replica"); err != nil {
			return nil, err
		}
	}
	if todo.reset {
		if err := m.run(ctx, s, "remove replication", "reset replica"); err != nil {
			return nil, err
		}
	}
	if todo.change {
		if err := m.change(ctx, s, todo); err != nil {
			return nil, err
		}
	}
	if todo.fresh {
		if err := s.withoutBinlog(ctx); err != nil {
			return nil, err
		}
		if err := s.exec(ctx, "UPDATE "+importsTable+" SET used = NOW() WHERE log_file = ? AND log_pos = ?", todo.file, todo.pos); err != nil {
			return nil, err
		}
	}
	if !todo.start {
		status, err := s.replica(ctx, m.ConnectionName)
		return status.values(), err
	}
	if err := m.run(ctx, s, "start replication", "start replica"); err != nil {
		return nil, err
	}
	status, err := m.wait(ctx, host, s)
	if err != nil {
		return nil, err
	}
	return status.values(), nil
}

func (m *mysqlReplication) run(ctx context.Context, s *mysqlSession, what, statement string, fill ...string) error {
	text, args, err := s.server.oneConnection(statement, m.ConnectionName, fill...)
	if err != nil {
		return err
	}
	if err := s.exec(ctx, text, args...); err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

func (m *mysqlReplication) change(ctx context.Context, s *mysqlSession, todo replicationPlan) error {
	retry := 10
	if status, err := s.replica(ctx, m.ConnectionName); err != nil {
		return err
	} else if status != nil && status.ConnectRetry > 0 {
		retry = status.ConnectRetry
	}
	options, args := m.changeOptions(s.server, todo, retry)
	text, name, err := s.server.oneConnection("change source", m.ConnectionName)
	if err != nil {
		return err
	}
	// MariaDB's connection name stands before the options, MySQL's channel after them.
	if s.server.MariaDB {
		args = append(name, args...)
	} else {
		args = append(args, name...)
	}
	text = strings.Replace(text, "{options}", options, 1)
	return s.execSecret(ctx, "point the replica at its source", m.SourcePassword, text, sqlArgs(args)...)
}

// How long an error that the I/O thread retries may last before the wait gives up, how long replication must have run to
// be believed, and how often the status is read. The I/O thread says Yes before it has asked the source for the log: that the log
// is not there any more comes a moment later.
const (
	replicationPatience = 5 * time.Second
	replicationSettle   = time.Second
	replicationPoll     = 200 * time.Millisecond
)

// wait reads the status until replication runs, an error will not pass by itself, or the time is over.
func (m *mysqlReplication) wait(ctx context.Context, host *module.Host, s *mysqlSession) (*replicaStatus, error) {
	deadline := time.Now().Add(m.Timeout)
	var failing, running time.Time // since when there has been an error, and since when it has run
	for {
		status, err := s.replica(ctx, m.ConnectionName)
		if err != nil {
			return nil, err
		}
		if status == nil {
			return nil, errNotReplica
		}
		switch runs := status.running(); {
		case !runs:
			running = time.Time{}
		case running.IsZero():
			running = time.Now()
		case time.Since(running) >= replicationSettle && status.Lag >= 0 && (m.MaxLag < 0 || status.Lag <= m.MaxLag):
			return status, nil
		}
		code := status.IOErrno
		if code == 0 {
			code = status.SQLErrno
		}
		switch {
		case code == 0:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		case !replicationUnreachable[code] || time.Since(failing) > replicationPatience:
			return nil, errors.New(s.masker.Mask(status.diagnosis()))
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("replication does not run after %s: %s, %d s behind", m.Timeout, status.state(), status.Lag)
		}
		host.Progress(fmt.Sprintf("%s, %d s behind", status.state(), status.Lag))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(replicationPoll):
		}
	}
}
