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
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"runbook/acceptance/lab"
)

const id = "demo" // of the lab

var books = []string{"man06/master", "man06/slave", "man06/verify"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
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
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\nInterrupted. The hosts are gone and nothing is left.")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "\nThe demo failed:", err)
		os.Exit(1)
	}
}

// site is what the demo has: two hosts, and what runbook needs to know of them.
type site struct {
	lab       *lab.Lab
	program   string // runbook
	labctl    string
	inventory string
	params    string
}

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
		program:   filepath.Join(filepath.Dir(self), "runbook"),
		labctl:    filepath.Join(filepath.Dir(self), "labctl"),
		inventory: filepath.Join(dir, "inventory.yml"),
		params:    filepath.Join(dir, "man06.yml"),
	}
	for _, p := range []string{s.program, s.labctl} {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("not built yet: %w", err)
		}
	}

	title("Two hosts: voms1.example.org, which has a VO's database, and voms2.example.org, which has none of it")
	if err := down(ctx); err != nil { // an earlier demo
		return err
	}
	if s.lab, err = lab.New(ctx, lab.Options{ID: id, Log: os.Stdout}); err != nil {
		return err
	}
	defer func() {
		if err != nil || ctx.Err() != nil {
			// Also when interrupted: the clean-up must not be.
			err = errors.Join(err, s.lab.Down(context.WithoutCancel(ctx)), os.RemoveAll(dir))
		}
	}()
	if err := s.lab.Up(ctx, "voms1", "voms2"); err != nil {
		return err
	}
	if err := s.lab.Host("voms1").Seed(ctx); err != nil {
		return err
	}
	if err := s.describe(dir); err != nil {
		return err
	}
	fmt.Printf("The inventory is %s, the parameters are in %s.\n", s.inventory, s.params)

	for _, step := range []func(context.Context) error{s.check, s.run, s.rows, s.tunnel, s.again} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := s.lab.Keep(); err != nil {
		return err
	}
	s.farewell(time.Since(begin))
	return nil
}

// describe writes what an operator would write: an inventory, and parameters that only he can read.
func (s *site) describe(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(s.inventory, []byte(s.lab.Inventory()), 0o644); err != nil {
		return err
	}
	params := fmt.Sprintf("databases: [%s]\nreplication_password: %s\n", strings.Join(lab.Databases, ", "), rand.Text())
	return os.WriteFile(s.params, []byte(params), 0o600)
}

// check shows that check mode predicts and touches nothing.
func (s *site) check(ctx context.Context) error {
	title("What would a run do? Check mode tells, and changes nothing")
	before, err := s.fingerprints(ctx)
	if err != nil {
		return err
	}
	var exit *exec.ExitError
	if _, err := s.runbook(ctx, false, "check"); !errors.As(err, &exit) || exit.ExitCode() != 2 {
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
		fmt.Printf("%s is as it was: every file, firewall rule, unit and row, in one hash, %s\n", host, after[host].Hash()[:16])
	}
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
	_, err := s.runbook(ctx, false, "run")
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
			fmt.Printf("%s(after %d ms)\n", got, time.Since(begin).Milliseconds())
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
	for _, m := range regexp.MustCompile(`(?m)^\s*((?:Slave_IO_Running|Slave_SQL_Running|Seconds_Behind_Master): .*)$`).FindAllStringSubmatch(status, -1) {
		fmt.Println("  " + m[1])
	}
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
		fmt.Printf("  %s: %s tables and views on both\n", db, strings.TrimSpace(here))
	}
	return nil
}

// tunnel shows who is on the other end of the tunnel, and who is not let in.
func (s *site) tunnel(ctx context.Context) error {
	title("The way between them is a TLS tunnel, whose ends know each other by certificate")
	slave := s.lab.Host("voms2")
	connect := "timeout 5 openssl s_client -connect voms1.example.org:3307 -CApath " + lab.CertificateDir +
		" -verify_hostname voms1.example.org"
	const ours = " -cert /etc/grid-security/hostcert.pem -key /etc/grid-security/hostkey.pem"
	const greeting = "MariaDB"
	// Status 124 is timeout's: the server waits for us to log in. The database's greeting has bytes that are not text.
	with, err := slave.Exec(ctx, "sh", "-c", "sleep 2 | "+connect+ours+" 2>&1 | tr -d '\\000'")
	if err != nil {
		return err
	}
	facts := regexp.MustCompile(`(?m)^(subject=.*|issuer=.*|\s*Verification: .*|\s*Verified peername: .*|New, TLS.*)$`).FindAllString(with, -1)
	for _, f := range facts {
		fmt.Println("  " + strings.TrimSpace(f))
	}
	if !strings.Contains(with, greeting) || !strings.Contains(with, "Verification: OK") {
		return fmt.Errorf("voms2 gets no database through the tunnel:\n%s", with)
	}
	fmt.Println("With its certificate, voms2 is greeted by the database.")
	without, err := slave.Exec(ctx, "sh", "-c", "sleep 2 | "+connect+" 2>&1 | tr -d '\\000'")
	if err != nil {
		return err
	}
	if strings.Contains(without, greeting) {
		return fmt.Errorf("the database greets a client without a certificate:\n%s", without)
	}
	fmt.Println("Without a certificate nobody is.")
	return nil
}

// again shows that nothing is done twice.
func (s *site) again(ctx context.Context) error {
	title("A second run finds nothing to do")
	out, err := s.runbook(ctx, true, "run")
	if err != nil {
		return err
	}
	if !regexp.MustCompile(`(?m)^0 tasks changed`).MatchString(out) {
		return errors.New("the second run changed something")
	}
	title("And a check agrees: exit code 0, every host is as declared")
	_, err = s.runbook(ctx, false, "check")
	return err
}

// runbook runs the three books as the controller of the lab, and shows what it types. Keeping the output means that the
// program does not see our terminal.
func (s *site) runbook(ctx context.Context, keep bool, verb string) (string, error) {
	args := append([]string{verb}, books...)
	args = append(args, "-i", s.inventory, "-e", "@"+s.params)
	fmt.Printf("$ runbook %s\n", strings.Join(args, " "))
	cmd := s.lab.Command(ctx, s.program, args...)
	// Its own way to stop: a terminal's interrupt has reached it already, and it ends what is under way.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	var kept bytes.Buffer
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if keep {
		cmd.Stdout = io.MultiWriter(os.Stdout, &kept)
	}
	begin := time.Now()
	err := cmd.Run()
	fmt.Printf("(exit code %d after %.1f s)\n", cmd.ProcessState.ExitCode(), time.Since(begin).Seconds())
	if err != nil {
		err = fmt.Errorf("runbook %s: %w", verb, err)
	}
	return kept.String(), err
}

func (s *site) farewell(took time.Duration) {
	title(fmt.Sprintf("Done in %.0f s. Both hosts are still up; look around", took.Seconds()))
	ctl := relative(s.labctl) + " -id " + id
	fmt.Printf(`Log in:             %[1]s ssh voms1      or voms2
Replication:        %[1]s ssh voms2 "mariadb -Ee 'SHOW SLAVE STATUS'"
Any time again:     %[1]s exec %[2]s check man06/verify -i %[3]s -e @%[4]s
Pull a cable:       %[1]s unplug voms1   and plug voms1; also reboot, crash, start
Remove everything:  make demo-down
`, ctl, relative(s.program), s.inventory, s.params)
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

func title(s string) { fmt.Printf("\n== %s\n\n", s) }

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
