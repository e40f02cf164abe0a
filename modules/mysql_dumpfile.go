package modules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

// dumpCoordinates is the place in the source's binary log that a dump is a picture of.
type dumpCoordinates struct {
	File string
	Pos  int
	GTID string
}

// dumpHeadLines is how many lines of a dump may be its header.
const dumpHeadLines = 60

var (
	dumpChangeLine = regexp.MustCompile(`^(?:-- )?CHANGE (?:MASTER TO MASTER_LOG_FILE='([A-Za-z0-9._-]{1,255})', MASTER_LOG_POS=([0-9]{1,19})|` +
		`REPLICATION SOURCE TO SOURCE_LOG_FILE='([A-Za-z0-9._-]{1,255})', SOURCE_LOG_POS=([0-9]{1,19}));$`)
	dumpGTIDPurged = regexp.MustCompile(`SET @@GLOBAL\.GTID_PURGED=(?:/\*!80000 '\+'\*/ )?'\+?([0-9a-zA-Z_:,\-\s]*)'`)
	dumpTrailer    = regexp.MustCompile(`^-- Dump completed(?: on +\d+-\d+-\d+ +\d+:\d+:\d+)?$`)
	dumpBodyLine   = regexp.MustCompile(`^(?:CREATE |USE |DROP |INSERT |LOCK |DELIMITER |/\*!40000 DROP )`)
)

// parseDumpHeader finds the coordinates in the header of a dump, ahead of its first statement that makes anything. A header
// that was cut anywhere gives the exact coordinates or none.
func parseDumpHeader(head []byte) (c dumpCoordinates, ok bool) {
	rest := head
	for range dumpHeadLines {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole || dumpBodyLine.Match(line) {
			break
		}
		rest = after
		if m := dumpChangeLine.FindSubmatch(line); m != nil && !ok {
			file, digits := string(m[1]), string(m[2])
			if file == "" {
				file, digits = string(m[3]), string(m[4])
			}
			if pos, err := strconv.Atoi(digits); err == nil && pos > 0 {
				c.File, c.Pos, ok = file, pos, true
			}
		}
	}
	if m := dumpGTIDPurged.FindSubmatch(head[:len(head)-len(rest)]); m != nil {
		c.GTID = strings.Join(strings.Fields(string(m[1])), "")
	}
	return c, ok
}

// dumpFacts is what was read of a dump file on a host.
type dumpFacts struct {
	Size     int
	Modified int // seconds since 1970
	SHA256   string
	Head     []byte
	Complete bool
	Sandbox  bool                // the first line is MariaDB's switch to sandbox mode, which older clients do not understand
	Tables   map[string][]string // tables by database, as the dump creates them, sorted
}

func (d *dumpFacts) databases() []string { return sortedKeys(d.Tables) }

// dumpInspect is a shell function that reads the file $1 and writes one line for each thing found, the kind first.
// Bodies of routines and triggers stand between DELIMITER lines and are left out, but that the file ends in one is told.
const dumpInspect = `
inspect() {
	printf 'S %s\n' "$(stat -c '%s %Y' -- "$1")"
	printf 'X %s\n' "$(sha256sum <"$1")"
	head -n 60 <"$1" | head -c 65536 | sed 's/^/H /'
	printf 'E %s\n' "$(tail -c 1 <"$1" | wc -l)"
	tail -c 1024 <"$1" | sed 's/^/T /'
	echo
	sed -n '/^DELIMITER ;;/,/^DELIMITER ;$/{
$s/.*/B /p
d
}
s/^USE ` + "`" + `/N &/p
s/^CREATE TABLE ` + "`" + `/N &/p' <"$1"
}
`

// parseDumpFacts reads what inspect wrote.
func parseDumpFacts(text []byte) (*dumpFacts, error) {
	d := &dumpFacts{Tables: map[string][]string{}}
	var head bytes.Buffer
	last, database := "", ""
	ended := false
	for line := range strings.SplitSeq(string(text), "\n") {
		kind, rest, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		switch kind {
		case "S":
			if _, err := fmt.Sscanf(rest, "%d %d", &d.Size, &d.Modified); err != nil {
				return nil, errors.New("cannot read the size of the dump file")
			}
		case "X":
			d.SHA256, _, _ = strings.Cut(rest, " ")
		case "E": // newlines that its last byte is
			ended = strings.TrimSpace(rest) == "1"
		case "B":
			ended = false
		case "H":
			head.WriteString(rest + "\n")
		case "T":
			if strings.TrimSpace(rest) != "" {
				last = rest
			}
		case "N":
			if name, ok := strings.CutPrefix(rest, "USE "); ok {
				if database, _, ok = sqlQuoted(name); !ok {
					return nil, fmt.Errorf("cannot read the line %q of the dump", rest)
				}
				if d.Tables[database] == nil {
					d.Tables[database] = []string{}
				}
				continue
			}
			table, _, ok := sqlQuoted(strings.TrimPrefix(rest, "CREATE TABLE "))
			if !ok {
				return nil, fmt.Errorf("cannot read the line %q of the dump", rest)
			}
			d.Tables[database] = append(d.Tables[database], table)
		}
	}
	if len(d.SHA256) != 64 {
		return nil, errors.New("cannot read the dump file: no checksum came back")
	}
	for _, list := range d.Tables {
		sort.Strings(list)
	}
	d.Head = head.Bytes()
	d.Complete = ended && dumpTrailer.MatchString(last)
	first, _, _ := bytes.Cut(d.Head, []byte("\n"))
	d.Sandbox = bytes.HasPrefix(first, []byte("/*")) && bytes.Contains(first, []byte("sandbox mode"))
	return d, nil
}

// mysqlTables lists the tables of databases, sorted, with their engines in lower case; views are left out.
func (s *mysqlSession) tables(ctx context.Context, databases []string) (map[string][]string, map[string][]string, error) {
	places, args := mysqlPlaces(databases)
	rows, err := s.query(ctx, "SELECT TABLE_SCHEMA, TABLE_NAME, ENGINE FROM information_schema.TABLES "+
		"WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_SCHEMA IN ("+places+")", args...)
	if err != nil {
		return nil, nil, err
	}
	tables, engines := map[string][]string{}, map[string][]string{}
	for _, row := range rows.Ordered {
		db, table, engine := mysqlText(row[0]), mysqlText(row[1]), strings.ToLower(mysqlText(row[2]))
		tables[db] = append(tables[db], table)
		engines[engine] = append(engines[engine], db+"."+table)
	}
	for _, list := range tables {
		sort.Strings(list)
	}
	return tables, engines, nil
}

// compareTables says how two lists of tables differ, "" if they do not.
func compareTables(want, have map[string][]string, wantName, haveName string) string {
	var missing, more []string
	flat := func(m map[string][]string) map[string]bool {
		set := map[string]bool{}
		for db, list := range m {
			for _, t := range list {
				set[db+"."+t] = true
			}
		}
		return set
	}
	w, h := flat(want), flat(have)
	for t := range w {
		if !h[t] {
			missing = append(missing, t)
		}
	}
	for t := range h {
		if !w[t] {
			more = append(more, t)
		}
	}
	var parts []string
	for _, p := range []struct {
		list   []string
		in, of string
	}{{missing, wantName, haveName}, {more, haveName, wantName}} {
		if len(p.list) > 0 {
			sort.Strings(p.list)
			parts = append(parts, fmt.Sprintf("%d of %s are not in %s (%s)", len(p.list), p.in, p.of, shortList(p.list)))
		}
	}
	return strings.Join(parts, "; ")
}

func shortList(list []string) string {
	if len(list) > 5 {
		return strings.Join(list[:5], ", ") + fmt.Sprintf(" and %d more", len(list)-5)
	}
	return strings.Join(list, ", ")
}

// mysqlClient is a client program found on a host.
type mysqlClient struct {
	path    string
	version mysqlServer
}

var clientVersion = regexp.MustCompile(`(?:Distrib|from|Ver) (\d+\.\d+(?:\.\d+)?[^\s,]*)`)

// parseClientVersion reads what a client program says of itself: "Ver 10.19 Distrib 10.11.6-MariaDB", "from 11.4.2-MariaDB,
// client 10.19" or "Ver 8.0.36".
func parseClientVersion(text string) (mysqlServer, bool) {
	best := ""
	for _, m := range clientVersion.FindAllStringSubmatch(text, -1) {
		if best == "" || !strings.HasPrefix(m[0], "Ver") {
			best = m[1]
		}
	}
	if best == "" {
		return mysqlServer{}, false
	}
	if strings.Contains(text, "MariaDB") && !strings.Contains(best, "MariaDB") {
		best += "-MariaDB"
	}
	v, err := parseMySQLServer(best)
	return v, err == nil
}

// findClient looks on the host for a client program of the server's own family: the other family's writes dumps that are wrong
// or cannot be read back. The program argument, if set, is the only candidate.
func findClient(ctx context.Context, host *module.Host, server mysqlServer, program string, names ...string) (mysqlClient, error) {
	candidates := names
	if program != "" {
		candidates = []string{program}
	}
	out, err := hostScript(ctx, host, `for p; do c=$(command -v -- "$p" 2>/dev/null) && printf '%s\t%s\n' "$c" "$("$c" --version 2>/dev/null | head -n 1)"; done; :`, candidates...)
	if err != nil {
		return mysqlClient{}, err
	}
	var others []string
	for line := range strings.SplitSeq(strings.TrimSpace(string(out.Stdout)), "\n") {
		path, text, _ := strings.Cut(line, "\t")
		v, ok := parseClientVersion(text)
		if !ok {
			if path != "" {
				others = append(others, path+" does not tell its version")
			}
			continue
		}
		if v.MariaDB == server.MariaDB {
			return mysqlClient{path, v}, nil
		}
		others = append(others, fmt.Sprintf("%s is of %s", path, v.family()))
	}
	if len(others) > 0 {
		return mysqlClient{}, fmt.Errorf("the server is %s %s, but %s: install the server's own client programs", server.family(), server.Text, strings.Join(others, ", "))
	}
	return mysqlClient{}, fmt.Errorf("cannot find %s on the host: install the client programs of %s", strings.Join(candidates, " or "), server.family())
}

// clientProlog is the beginning of a script that runs a client program: a private directory for the option file with the
// password, which comes on standard input and is empty if there is none. Whatever a killed run left is swept. The script's end
// removes the directory, ends what it started and, if it failed, removes $drop.
const clientProlog = `
umask 077
drop= dir= watch= client=
end() {
	code=$?
	trap - EXIT HUP INT TERM
	[ -z "$client" ] || kill "$client" 2>/dev/null
	[ -z "$watch" ] || kill "$watch" 2>/dev/null
	[ -z "$dir" ] || rm -rf -- "$dir"
	[ "$code" = 0 ] || [ -z "$drop" ] || rm -f -- "$drop"
	exit "$code"
}
trap end EXIT
trap 'exit 143' HUP INT TERM
find "${TMPDIR:-/tmp}" -maxdepth 1 -type d -name 'runbook-login.*' -user "$(id -u)" -mmin +60 -exec rm -rf -- {} + 2>/dev/null
dir=$(mktemp -d "${TMPDIR:-/tmp}/runbook-login.XXXXXXXX") || exit 1
cat >"$dir/my.cnf" || exit 1
`

// bulkScript runs a script that takes long, with run: as a job, or over a session of its own. Lines that begin with
// "P " are numbers for progress; the rest of its output is returned.
func bulkScript(ctx context.Context, run func(context.Context, transport.Cmd) (transport.Output, error), progress func(n int), stdin, script string,
	args ...string) ([]byte, error) {
	w := &progressWriter{progress: progress}
	cmd := hostScriptCmd(script, args...)
	cmd.Stdin, cmd.Stdout, cmd.Bulk = strings.NewReader(stdin), w, true
	_, err := run(ctx, cmd)
	if w.over {
		return nil, fmt.Errorf("the host wrote more than %d bytes about the dump", int64(transport.DefaultLimit))
	}
	return append(w.text.Bytes(), w.line...), err
}

type progressWriter struct {
	progress func(n int)
	line     []byte
	text     bytes.Buffer
	over     bool
}

func (w *progressWriter) Write(p []byte) (int, error) {
	last := -1 // of a job that goes on for long, all that it ever said may come at once
	for _, c := range p {
		if w.text.Len()+len(w.line) > transport.DefaultLimit {
			w.over = true
			break
		}
		w.line = append(w.line, c)
		if c != '\n' {
			continue
		}
		if n, ok := bytes.CutPrefix(w.line, []byte("P ")); ok {
			if n, err := strconv.Atoi(string(bytes.TrimSpace(n))); err == nil {
				last = n
			}
		} else {
			w.text.Write(w.line)
		}
		w.line = w.line[:0]
	}
	if last >= 0 {
		w.progress(last)
	}
	return len(p), nil
}

// pace shows the progress of a job, which may have begun long ago: the rate is that since its first sign.
type pace struct {
	verb  string
	total int
	first time.Time
	from  int
}

func (p *pace) text(n int) string {
	if p.first.IsZero() {
		p.first, p.from = time.Now(), n
	}
	return rateText(p.verb, n, p.total, n-p.from, p.first)
}

// stderrText is what a failed command wrote, for people; the error itself otherwise.
func stderrText(err error) string {
	var exit *transport.ExitError
	if !errors.As(err, &exit) {
		return err.Error()
	}
	text := strings.TrimSpace(string(exit.Output.Stderr))
	if text == "" {
		return fmt.Sprintf("exit status %d", exit.Output.Code)
	}
	if len(text) > 2000 {
		text = text[:2000] + " …"
	}
	return fmt.Sprintf("%s (exit status %d)", text, exit.Output.Code)
}

// isExit says that a command ran and failed, so that its stderr tells why.
func isExit(err error) bool {
	var exit *transport.ExitError
	return errors.As(err, &exit)
}

// progressText describes a rate: done of total bytes, total 0 if unknown.
func progressText(verb string, done, total int, since time.Time) string {
	return rateText(verb, done, total, done, since)
}

// rateText is progressText where only the recent bytes came since that time.
func rateText(verb string, done, total, recent int, since time.Time) string {
	const mb = 1e6
	text := fmt.Sprintf("%s %.0f MB", verb, float64(done)/mb)
	if total > 0 {
		text += fmt.Sprintf(" of %.0f MB", float64(total)/mb)
	}
	if s := time.Since(since).Seconds(); s > 0.5 {
		text += fmt.Sprintf(", %.1f MB/s", float64(recent)/mb/s)
	}
	return text
}

// anyList turns strings into the list that Values hold.
func anyList(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
