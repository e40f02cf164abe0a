// Demo shows MAN06 on hosts of this machine: it makes them, sets up the replication with runbook, and shows that it works
// (replication.go); then a VOMS server on either side of it, and that users do not miss the first one (voms.go). The hosts
// stay up at the end; "demo down" removes them. When it fails or is interrupted it leaves nothing.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"runbook/acceptance/lab"
)

const id = "demo" // of the lab

// call is what an operator names to runbook: books, and files of their parameters.
type call struct{ params, books []string }

var (
	replication = call{[]string{man06}, []string{"man06/master", "man06/slave", "man06/verify"}}
	pair        = call{[]string{man06, voms}, []string{"man06/voms-primary", "man06/voms-backup", "man06/verify"}}
	repair      = call{[]string{man06, voms}, []string{"man06/master", "man06/voms-primary", "man06/verify"}}
)

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

// site is what the demo has: hosts, and what runbook needs to know of them.
type site struct {
	lab     *lab.Lab
	program string // runbook
	labctl  string
	dir     string // where the operator works: it has the inventory and the parameters
}

const (
	inventory = "inventory.yml"
	man06     = "man06.yml" // parameters of the first act
	voms      = "voms.yml"  // of the second, besides
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

	title("Three hosts")
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
	if err := s.lab.Up(ctx, "voms1", "voms2", "ui"); err != nil {
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
On ui users work: Alice has her certificate there.
What an operator writes is in %s: %s, and %s,
which names the databases and has the password of the replication.
`, strings.Join(lab.Databases, ", "), short(dir), inventory, man06)

	for _, step := range []func(context.Context) error{s.check, s.run, s.rows, s.tunnel, s.again, s.servers, s.proxies, s.killed, s.back} {
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
	if err := os.WriteFile(filepath.Join(s.dir, man06), []byte(text), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, voms), []byte(vomsParams()), 0o600)
}

// runbook runs books as the controller of the lab, and shows what the operator types and sees.
func (s *site) runbook(ctx context.Context, verb string, c call, show *brief) (string, error) {
	args := []string{verb, "-i", inventory}
	for _, file := range c.params {
		args = append(args, "-e", "@"+file)
	}
	args = append(args, c.books...)
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

// nothingToDo runs or checks books, and fails unless they found every host as it should be.
func (s *site) nothingToDo(ctx context.Context, verb string, c call, hosts int) error {
	out, err := s.runbook(ctx, verb, c, &brief{w: os.Stdout, quiet: true})
	if err != nil {
		return err
	}
	if !regexp.MustCompile(fmt.Sprintf(`(?m)^0 tasks (would change|changed) on %d hosts`, hosts)).MatchString(out) {
		return fmt.Errorf("after the first run there was still something to do:\n%s", out)
	}
	return nil
}

func (s *site) farewell(took time.Duration) {
	title(fmt.Sprintf("Done in %.0f s; the hosts are still up", took.Seconds()))
	ctl := relative(s.labctl) + " -id " + id
	fmt.Printf(`Log in              %[1]s ssh voms1     (or voms2, ui)
The replication     %[1]s ssh voms2 "mariadb -Ee 'SHOW SLAVE STATUS'"
A proxy             %[1]s ssh ui "su - alice -c 'voms-proxy-init -voms lab.vo'"
The runbooks        %[2]s list; %[2]s show man06/slave
Verify once more    %[1]s exec %[2]s run man06/verify -i %[3]s/%[4]s -e @%[7]s/%[5]s -e @%[7]s/%[6]s
Break something     %[1]s unplug voms1  (and plug; or reboot, crash, start)
Remove everything   make demo-down
`, ctl, relative(s.program), short(s.dir), inventory, man06, voms, strings.Replace(short(s.dir), "~", "$HOME", 1))
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

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
