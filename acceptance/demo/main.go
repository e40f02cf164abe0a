// Demo shows MAN06 on two hosts of this machine: it makes them, sets up the replication with runbook, and shows that it
// works. The hosts stay up at the end; "demo down" removes them. When it fails or is interrupted it leaves nothing.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"runbook/acceptance/lab"
)

const id = "demo" // of the lab

var books = []string{"man06/master", "man06/slave", "man06/verify"}

func main() {
	// SIGPIPE: who reads our output may go away.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "down":
		err = down(ctx)
	case len(os.Args) == 1:
		err = demo(ctx)
	default:
		err = errors.New("usage: demo [down]")
	}
	var left *leftError
	switch {
	case errors.As(err, &left):
		fmt.Fprintf(os.Stderr, "\nThe demo was stopped (%v), and could not clean up: %v\nmake demo-down tries again.\n", err, left.err)
		os.Exit(1)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\nInterrupted. The hosts are gone and nothing is left.")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "\nThe demo failed:", err)
		os.Exit(1)
	}
}

// leftError says that something could not be removed, after why.
type leftError struct{ why, err error }

func (e *leftError) Error() string { return e.why.Error() }

// site is what the demo has: two hosts, and what runbook needs to know of them.
type site struct {
	lab     *lab.Lab
	program string // runbook
	labctl  string
	dir     string // where the operator works: it has the inventory and the parameters
}

const (
	inventory = "inventory.yml"
	params    = "man06.yml"
)

func demo(ctx context.Context) (err error) {
	begin := time.Now()
	if why := lab.Unavailable(); why != "" {
		return errors.New(why)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := directory()
	if err != nil {
		return err
	}
	s := &site{
		program: filepath.Join(filepath.Dir(self), "runbook"),
		labctl:  filepath.Join(filepath.Dir(self), "labctl"),
		dir:     dir,
	}
	for _, p := range []string{s.program, s.labctl} {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("not built yet: %w", err)
		}
	}

	title("Two hosts")
	if err := down(ctx); err != nil { // an earlier demo
		return err
	}
	if s.lab, err = lab.New(ctx, lab.Options{ID: id, Log: os.Stdout}); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			// Also when interrupted: the clean-up must not be.
			if left := errors.Join(s.lab.Down(context.WithoutCancel(ctx)), os.RemoveAll(dir)); left != nil {
				err = &leftError{why: err, err: left}
			}
		}
	}()
	if err := s.lab.Up(ctx, "voms1", "voms2"); err != nil {
		return err
	}
	if err := s.lab.Host("voms1").Seed(ctx); err != nil {
		return err
	}
	if err := s.describe(); err != nil {
		return err
	}
	fmt.Printf(`
voms1 has the databases of a service (%s), voms2 has nothing of them.
What an operator writes is in %s: %s, and %s,
which names the databases and has the password of the replication.
`, strings.Join(lab.Databases, ", "), short(dir), inventory, params)

	for _, step := range []func(context.Context) error{s.check, s.run, s.rows, s.tunnel, s.again} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.lab.Keep(); err != nil {
		return err
	}
	s.farewell(time.Since(begin))
	return nil
}

// describe writes what an operator would write: an inventory, and parameters that only he can read.
func (s *site) describe() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, inventory), []byte(s.lab.Inventory()), 0o644); err != nil {
		return err
	}
	text := fmt.Sprintf("databases: [%s]\nreplication_password: %s\n", strings.Join(lab.Databases, ", "), rand.Text())
	return os.WriteFile(filepath.Join(s.dir, params), []byte(text), 0o600)
}

// check shows that check mode predicts and touches nothing.
func (s *site) check(ctx context.Context) error {
	title("What would a run do? Check tells, and changes nothing")
	before, err := s.fingerprints(ctx)
	if err != nil {
		return err
	}
	var exit *exec.ExitError
	if _, err := s.runbook(ctx, "check", &brief{w: os.Stdout, tasks: 2}); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		return fmt.Errorf("check of two fresh hosts should end with exit code 2, for changes to be made: %w", err)
	}
	after, err := s.fingerprints(ctx)
	if err != nil {
		return err
	}
	for host := range before {
		if diff := before[host].Diff(after[host]); len(diff) > 0 {
			return fmt.Errorf("check changed %s:\n%s", host, strings.Join(diff, "\n"))
		}
	}
	fmt.Print(`
Unknown is what cannot be told before an earlier step has run; the line says which.
Both hosts are as they were: every file, unit, firewall rule and row was compared.
`)
	return nil
}

func (s *site) fingerprints(ctx context.Context) (map[string]lab.Fingerprint, error) {
	prints := map[string]lab.Fingerprint{}
	for _, h := range s.lab.Hosts() {
		print, err := h.Fingerprint(ctx)
		if err != nil {
			return nil, err
		}
		prints[h.FQDN()] = print
	}
	return prints, nil
}

func (s *site) run(ctx context.Context) error {
	title("Set up the replication, and verify it from both ends")
	_, err := s.runbook(ctx, "run", &brief{w: os.Stdout, tasks: math.MaxInt})
	return err
}

// rows writes on the master and reads on the slave.
func (s *site) rows(ctx context.Context) error {
	title("A row written on the master is read on the slave")
	master, slave := s.lab.Host("voms1"), s.lab.Host("voms2")
	const written = "新会員 Zoë Łącka 🎉"
	insert := "INSERT INTO voms_lab_vo.usr (name, institution) VALUES ('" + written + "', 'Institute of Examples')"
	fmt.Printf("voms1> %s\n", insert)
	if _, err := master.SQL(ctx, insert); err != nil {
		return err
	}
	query := "SELECT userid, name FROM voms_lab_vo.usr WHERE name = '" + written + "'"
	fmt.Printf("voms2> %s\n", query)
	begin := time.Now()
	for {
		got, err := slave.SQL(ctx, query)
		if err != nil {
			return err
		}
		if strings.Contains(got, written) {
			fmt.Printf("       %s   (%d ms after the INSERT)\n", strings.TrimSpace(got), time.Since(begin).Milliseconds())
			break
		}
		if time.Since(begin) > 10*time.Second {
			return errors.New("the row is not on the slave after 10 s")
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	status, err := slave.Exec(ctx, "mariadb", "-Ee", "SHOW SLAVE STATUS")
	if err != nil {
		return err
	}
	fmt.Println("voms2> SHOW SLAVE STATUS")
	for _, m := range regexp.MustCompile(`(?m)^\s*((?:Slave_IO_Running|Slave_SQL_Running|Seconds_Behind_Master): .*)$`).FindAllStringSubmatch(status, -1) {
		fmt.Println("       " + m[1])
	}
	var same []string
	for _, db := range lab.Databases {
		count := "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '" + db + "'"
		there, err := master.SQL(ctx, count)
		if err != nil {
			return err
		}
		here, err := slave.SQL(ctx, count)
		if err != nil {
			return err
		}
		if there != here {
			return fmt.Errorf("%s has %s tables on the master and %s on the slave", db, strings.TrimSpace(there), strings.TrimSpace(here))
		}
		same = append(same, fmt.Sprintf("%s %s", db, strings.TrimSpace(here)))
	}
	fmt.Printf("\nTables and views, the same on both: %s.\n", strings.Join(same, ", "))
	return nil
}

// tunnel shows who is on the other end of the tunnel, and who is not let in.
func (s *site) tunnel(ctx context.Context) error {
	title("The way between them is TLS, and both ends prove who they are")
	slave := s.lab.Host("voms2")
	ours, err := s.knock(ctx, "/etc/grid-security/hostcert.pem", "/etc/grid-security/hostkey.pem")
	if err != nil {
		return err
	}
	find := func(pattern string) string {
		if m := regexp.MustCompile(`(?m)` + pattern).FindStringSubmatch(ours); m != nil {
			return m[1]
		}
		return "?"
	}
	version := find(`([0-9.]+-MariaDB)`)
	if version == "?" || find(`(Verification: OK)`) == "?" || find(`Verified peername: (.*)`) != "voms1.example.org" {
		return fmt.Errorf("voms2 gets no database through the tunnel:\n%s", ours)
	}
	fmt.Printf(`voms2 looks at port 3307 of voms1, which shows this certificate:
       subject  %s
       issuer   %s
       checked  an authority that voms2 trusts signed it, and it names voms1.example.org
       session  %s
`, find(`^subject=(.*)`), find(`^issuer=(.*)`), find(`^New, (TLS.*)`))

	// A certificate of the same authority, for another name.
	other := filepath.Join(slave.Root(), "srv", "other.pem")
	if err := s.lab.Issue(lab.Request{Name: "other.example.org", DNS: []string{"other.example.org"}}, other, other+".key"); err != nil {
		return err
	}
	defer os.Remove(other)
	defer os.Remove(other + ".key")
	fmt.Println("and what voms1 answers there to a client on voms2")
	fmt.Printf("       with the certificate of voms2              the database greets it: %s\n", version)
	for _, stranger := range []struct{ what, cert, key string }{
		{"without a certificate", "", ""},
		{"with the one of another host of the site", "/srv/other.pem", "/srv/other.pem.key"},
	} {
		got, err := s.knock(ctx, stranger.cert, stranger.key)
		if err != nil {
			return err
		}
		alert := regexp.MustCompile(`alert ([a-z ]+):`).FindStringSubmatch(got)
		if strings.Contains(got, "MariaDB") || alert == nil {
			return fmt.Errorf("the database's port does not refuse a client %s:\n%s", stranger.what, got)
		}
		fmt.Printf("       %-41s  refused, TLS alert: %s\n", stranger.what, alert[1])
	}
	return nil
}

// knock connects from voms2 to the tunnel's port of voms1 and returns what is seen and said there.
func (s *site) knock(ctx context.Context, cert, key string) (string, error) {
	script := "sleep 1 | timeout 10 openssl s_client -connect voms1.example.org:3307 -CApath " + lab.CertificateDir +
		" -verify_hostname voms1.example.org -no_ign_eof"
	if cert != "" {
		script += " -cert " + cert + " -key " + key
	}
	// The database's greeting has bytes that are no text.
	return s.lab.Host("voms2").Exec(ctx, "sh", "-c", script+` 2>&1 | tr -cd '[:print:]\n'`)
}

// again shows that nothing is done twice.
func (s *site) again(ctx context.Context) error {
	title("A second run finds nothing to do, and a check agrees")
	for i, verb := range []string{"run", "check"} {
		if i > 0 {
			fmt.Println()
		}
		out, err := s.runbook(ctx, verb, &brief{w: os.Stdout, quiet: true})
		if err != nil {
			return err
		}
		if !regexp.MustCompile(`(?m)^0 tasks (would change|changed) on 2 hosts`).MatchString(out) {
			return fmt.Errorf("after the first run there was still something to do:\n%s", out)
		}
	}
	return nil
}

// runbook runs the three books as the controller of the lab, and shows what the operator types and sees.
func (s *site) runbook(ctx context.Context, verb string, show *brief) (string, error) {
	args := append([]string{verb, "-i", inventory, "-e", "@" + params}, books...)
	fmt.Printf("$ runbook %s\n", strings.Join(args, " "))
	cmd := s.lab.Command(ctx, s.program, args...)
	cmd.Dir = s.dir
	// Its own way to stop: a terminal's interrupt has reached it already, and it ends what is under way.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	var kept bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&kept, show), os.Stderr
	err := cmd.Run()
	show.end()
	if ctx.Err() == nil {
		fmt.Printf("(exit code %d)\n", cmd.ProcessState.ExitCode())
	}
	if err != nil {
		err = fmt.Errorf("runbook %s: %w", verb, err)
	}
	return kept.String(), err
}

// brief shows what runbook prints, with long lines cut, and of each play no more tasks than asked for. What failed is shown whole.
type brief struct {
	w     io.Writer
	tasks int  // of each play
	quiet bool // the closing table only

	line    []byte // not yet ended
	shown   int    // tasks of this play
	hidden  int
	failing bool // the line before told of a failure
}

func (b *brief) Write(p []byte) (int, error) {
	b.line = append(b.line, p...)
	for {
		line, rest, found := bytes.Cut(b.line, []byte("\n"))
		if !found {
			return len(p), nil
		}
		b.show(string(line))
		b.line = rest
	}
}

// end says what was left out last, and shows a line without an end.
func (b *brief) end() {
	if len(b.line) > 0 {
		b.show(string(b.line))
		b.line = nil
	}
	b.leftOut()
}

func (b *brief) leftOut() {
	if b.hidden > 0 && !b.quiet {
		fmt.Fprintf(b.w, "  … and %d more\n", b.hidden)
	}
	b.shown, b.hidden = 0, 0
}

func (b *brief) show(line string) {
	detail := strings.HasPrefix(line, "     ")
	failed := strings.HasPrefix(line, "  failed") || strings.HasPrefix(line, "  unreachable") || strings.HasPrefix(line, "STOPPED")
	switch {
	case failed || detail && b.failing:
		b.failing = true
		fmt.Fprintln(b.w, line)
		return
	case strings.HasPrefix(line, "  ") && !detail && b.shown >= b.tasks:
		b.hidden++
	case strings.HasPrefix(line, "  "):
		if !detail {
			b.shown++
		}
		if b.hidden == 0 {
			fmt.Fprintln(b.w, cut(line, width()))
		}
	default:
		b.leftOut()
		if !b.quiet || !heading.MatchString(line) && line != "" {
			fmt.Fprintln(b.w, line)
		}
	}
	b.failing = false
}

// heading is the line of a runbook or play.
var heading = regexp.MustCompile(`^(RUN|CHECK|PLAY) `)

// cut shortens a line that is longer than n.
func cut(line string, n int) string {
	if runes := []rune(line); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return line
}

// width is that of the terminal, 110 columns if there is none.
func width() int {
	if columns, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && columns > 40 {
		return columns
	}
	return 110
}

func (s *site) farewell(took time.Duration) {
	title(fmt.Sprintf("Done in %.0f s; both hosts are still up", took.Seconds()))
	ctl := relative(s.labctl) + " -id " + id
	fmt.Printf(`Log in              %[1]s ssh voms1     (or voms2)
The replication     %[1]s ssh voms2 "mariadb -Ee 'SHOW SLAVE STATUS'"
The runbooks        %[2]s list; %[2]s show man06/slave
Verify once more    %[1]s exec %[2]s run man06/verify -i %[3]s/%[4]s -e @%[6]s/%[5]s
Break something     %[1]s unplug voms1  (and plug; or reboot, crash, start)
Remove everything   make demo-down
`, ctl, relative(s.program), short(s.dir), inventory, params, strings.Replace(short(s.dir), "~", "$HOME", 1))
}

// down removes the demo's hosts and files, if there are any.
func down(ctx context.Context) error {
	if err := lab.Remove(ctx, id); err != nil {
		return err
	}
	dir, err := directory()
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// directory is where the demo's inventory and parameters are.
func directory() (string, error) {
	cache, err := lab.Cache()
	return filepath.Join(cache, "demo"), err
}

var titles int

func title(s string) {
	titles++
	fmt.Printf("\n== %d. %s\n\n", titles, s)
}

// short returns a path with the home directory as ~, as a shell understands it.
func short(path string) string {
	if home, err := os.UserHomeDir(); err == nil {
		if rest, ok := strings.CutPrefix(path, home+"/"); ok {
			return "~/" + rest
		}
	}
	return path
}

// relative returns a path as somebody in the current directory would type it.
func relative(path string) string {
	if cwd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(cwd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
