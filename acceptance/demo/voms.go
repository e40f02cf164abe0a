package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The second act: a VOMS server on each of the two hosts, and users who get their proxies when the first one is gone.

const (
	vo       = "lab.vo"
	vomsPort = 15000
)

// vomsParams is what an operator would write for the second act.
func vomsParams() string {
	return fmt.Sprintf(`vos:
  - {name: %s, port: %d}
  - {name: calib.example.org, port: 15010}
voms_password: %s
# Who asks for proxies on ui, as a proof that each server gives them.
probe_user: alice
probe_cert: /home/alice/.globus/usercert.pem
probe_key: /home/alice/.globus/userkey.pem
`, vo, vomsPort, rand.Text())
}

// servers shows that one run makes the pair, and another finds nothing to do.
func (s *site) servers(ctx context.Context) error {
	title("On top of the replication: a VOMS server on each host")
	fmt.Printf("%s names the VOs, and has the password of the account that the servers read their databases with.\n\n", voms)
	if _, err := s.runbook(ctx, "run", pair, &brief{w: os.Stdout, tasks: 3}); err != nil {
		return err
	}
	fmt.Print("\nOnce more:\n\n")
	return s.nothingToDo(ctx, "run", pair, 3)
}

// proxies shows that a user gets proxies, from either server.
func (s *site) proxies(ctx context.Context) error {
	title("A user gets a proxy, from either server")
	const enough = 20 // that both servers give one of so many fails once in half a million times
	from := map[string]int{}
	var asked int
	for ; len(from) < 2; asked++ {
		if asked == enough {
			return fmt.Errorf("of %d proxies none came from one of the two servers: %v", asked, from)
		}
		p, err := s.proxy(ctx, vo)
		if err != nil {
			return err
		}
		if !p.grants("/" + vo + "/Role=NULL/Capability=NULL") {
			return fmt.Errorf("a proxy that does not grant membership of the VO: %q", p.info[2:])
		}
		if asked == 0 {
			p.show()
		}
		from[p.server]++
	}
	fmt.Printf("\nThe client takes either server. Of %s voms1 gave %d and voms2 %d.\n",
		plural(asked, "proxy", "proxies"), from["voms1.example.org"], from["voms2.example.org"])
	return nil
}

// killed shows that users get proxies, with what the master's database said last, when all that served them on voms1 is dead.
func (s *site) killed(ctx context.Context) error {
	title("The first server is killed; proxies come from the second")
	const role = "/" + vo + "/Role=Pilot"
	insert := "USE voms_lab_vo; INSERT INTO roles (role) VALUES ('Pilot'); " +
		"INSERT INTO m SELECT userid, gid, LAST_INSERT_ID() FROM usr, `groups` WHERE name = 'Alice Researcher' AND dn = '/" + vo + "'"
	fmt.Println("Just before, Alice is given a role there:")
	fmt.Printf("voms1> %s\n", strings.ReplaceAll(insert, "; ", ";\n       "))
	if _, err := s.lab.Host("voms1").SQL(ctx, insert); err != nil {
		return err
	}
	query := "SELECT COUNT(*) FROM voms_lab_vo.m JOIN voms_lab_vo.roles USING (rid) WHERE role = 'Pilot'"
	if _, err := s.replicated(ctx, query, "1"); err != nil {
		return err
	}

	const kill, stop = "systemctl kill -s KILL 'voms@*' mariadb", "systemctl stop 'voms@*' mariadb"
	fmt.Printf("voms1> %s\nvoms1> %s   (or systemd would start them again)\n\n", kill, stop)
	if _, err := s.lab.Host("voms1").Exec(ctx, "sh", "-c", kill+" && "+stop); err != nil {
		return err
	}
	if left, err := s.lab.Host("voms1").Exec(ctx, "sh", "-c", "pgrep -l 'voms|mariadbd' || [ $? = 1 ]"); err != nil || left != "" {
		return errors.Join(fmt.Errorf("on voms1 there still runs: %q", left), err)
	}

	// The client tries the servers in an order of its own: what is to be seen is a try that begins with the dead one.
	var asked int
	var longest time.Duration
	for {
		p, err := s.proxy(ctx, vo+":"+role)
		if err != nil {
			return err
		}
		if p.server != "voms2.example.org" || !p.grants(role+"/Capability=NULL") {
			return fmt.Errorf("a proxy from %s that grants %q", p.server, p.info[2:])
		}
		asked++
		longest = max(longest, p.took)
		deadFirst := len(p.contacts) > 1
		if deadFirst && asked >= 3 || asked == 12 {
			p.show()
			break
		}
	}
	fmt.Printf("\nThe role came to voms2 by the replication. She asked for %s: voms2 gave every one, the slowest after %.1f s.\n",
		plural(asked, "proxy", "proxies"), longest.Seconds())
	return nil
}

// back shows that the books that made voms1 repair it.
func (s *site) back(ctx context.Context) error {
	title("The runbooks that made the first server bring it back")
	out, err := s.runbook(ctx, "run", repair, &brief{w: os.Stdout, tasks: math.MaxInt})
	if err != nil {
		return err
	}
	if !regexp.MustCompile(`(?m)^2 tasks changed on 3 hosts`).MatchString(out) {
		return errors.New("the run should have started the database and the VOMS servers, and changed nothing else")
	}
	fmt.Print("\nThe database and the VOMS servers were down and were started; the rest was left alone. Verify has asked each\n" +
		"server by its own for a proxy of each VO.\n")
	return nil
}

// proxy is one that Alice got.
type proxy struct {
	ask      string   // what she typed
	contacts []string // which servers the client tried, and how it went
	took     time.Duration
	info     []string // who signed it, which server gave it, and what it grants
	server   string
}

const look = "voms-proxy-info -acissuer -uri -fqan"

// proxy has Alice ask for one and look at it. what is the VO, or VO:FQAN.
func (s *site) proxy(ctx context.Context, what string) (proxy, error) {
	p := proxy{ask: "voms-proxy-init -voms " + what}
	begin := time.Now()
	said, err := s.alice(ctx, p.ask)
	p.took = time.Since(begin)
	if err != nil {
		return p, err
	}
	p.contacts = regexp.MustCompile(`(?m)^Contacting .*(?:Done|Failed)`).FindAllString(said, -1)
	if said, err = s.alice(ctx, look); err != nil {
		return p, err
	}
	p.info = strings.Split(strings.TrimSpace(said), "\n")
	for _, name := range []string{"voms1.example.org", "voms2.example.org"} {
		if len(p.info) > 2 && p.info[0] == "/DC=org/DC=example/CN="+name && p.info[1] == fmt.Sprintf("%s:%d", name, vomsPort) {
			p.server = name
		}
	}
	if len(p.contacts) == 0 || p.server == "" {
		return p, fmt.Errorf("a proxy that no server has given and signed itself: %q, after %q", p.info, p.contacts)
	}
	return p, nil
}

// alice runs a command as she would, and returns what it prints. Its error holds what the command complained about.
func (s *site) alice(ctx context.Context, command string) (string, error) {
	cmd := s.lab.Host("ui").Command(ctx, "su", "-", "alice", "-c", command)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		progress := regexp.MustCompile(`\.{4,}`) // of making a key: thousands of dots
		err = fmt.Errorf("%s: %w\n%s%s", command, err, stdout.String(), progress.ReplaceAllString(stderr.String(), ""))
	}
	return stdout.String(), err
}

func (p *proxy) grants(fqan string) bool { return slices.Contains(p.info[2:], fqan) }

func (p *proxy) show() {
	fmt.Printf("alice@ui> %s\n", p.ask)
	for i, contact := range p.contacts {
		took := ""
		if i == len(p.contacts)-1 {
			took = fmt.Sprintf("   (%.1f s)", p.took.Seconds())
		}
		fmt.Printf("       %s%s\n", contact, took)
	}
	fmt.Printf("alice@ui> %s\n       %s\n", look, strings.Join(p.info, "\n       "))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
