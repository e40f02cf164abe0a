package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"runbook/acceptance/lab"
)

// The first act: MAN06 from nothing to a proven replication.

// check shows that check mode predicts and touches nothing.
func (s *site) check(ctx context.Context) error {
	title("What would a run do? Check tells, and changes nothing")
	before, err := s.lab.Fingerprints(ctx)
	if err != nil {
		return err
	}
	var exit *exec.ExitError
	if _, err := s.runbook(ctx, "check", replication, &brief{w: os.Stdout, tasks: 2}); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		return fmt.Errorf("check of two fresh hosts should end with exit code 2, for changes to be made: %w", err)
	}
	after, err := s.lab.Fingerprints(ctx)
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
All hosts are as they were: every file, unit, firewall rule and row was compared.
`)
	return nil
}

func (s *site) run(ctx context.Context) error {
	title("Set up the replication, and verify it from both ends")
	_, err := s.runbook(ctx, "run", replication, &brief{w: os.Stdout, tasks: math.MaxInt})
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
	got, err := s.replicated(ctx, query, written)
	if err != nil {
		return err
	}
	fmt.Printf("       %s   (%d ms after the INSERT)\n", strings.TrimSpace(got), time.Since(begin).Milliseconds())
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

// replicated waits until a query on the slave returns something, and returns what the query does.
func (s *site) replicated(ctx context.Context, query, something string) (string, error) {
	for begin := time.Now(); ; {
		got, err := s.lab.Host("voms2").SQL(ctx, query)
		if err != nil || strings.Contains(got, something) {
			return got, err
		}
		if time.Since(begin) > 10*time.Second {
			return "", errors.New("the row is not on the slave after 10 s")
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return "", err
		}
	}
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
		if err := s.nothingToDo(ctx, verb, replication, 2); err != nil {
			return err
		}
	}
	return nil
}
