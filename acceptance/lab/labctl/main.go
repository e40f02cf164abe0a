// Labctl makes, uses and removes labs from a shell. See package lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"runbook/acceptance/lab"
)

const usage = `labctl makes hosts to try runbooks on. It needs root.

	labctl [-id ID] up [HOST...]          make a lab if there is none, and boot hosts in it: voms1 voms2 ui stranger
	labctl [-id ID] down                  remove the lab
	labctl list                           the labs on this machine
	labctl image                          build the hosts' image, if it is not in the cache
	labctl [-id ID] exec PROGRAM ARG...   run a program as the controller, in the lab's network
	labctl [-id ID] ssh [LOGIN@]HOST ...  log in to a host, or run a command there
	labctl [-id ID] host HOST ARG...      run a program on a host from outside, not by way of sshd
	labctl [-id ID] seed HOST             create the service databases on a host
	labctl [-id ID] inventory             print an inventory of the lab's hosts
	labctl [-id ID] cert NAME DIR         sign a certificate for NAME into DIR/cert.pem and DIR/key.pem
	labctl [-id ID] fingerprint HOST      print what there is on a host, and a hash of it
	labctl [-id ID] reboot|stop|crash|start|unplug|plug HOST

Without -id it is the lab named by RUNBOOK_LAB, or the only one there is.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := labctl(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labctl:", err)
		os.Exit(1)
	}
}

func labctl(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("labctl", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	id := flags.String("id", os.Getenv("RUNBOOK_LAB"), "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	args = flags.Args()
	if len(args) == 0 {
		flags.Usage()
		return errors.New("say what to do")
	}
	verb, args := args[0], args[1:]
	if why := lab.Unavailable(); why != "" {
		return errors.New(why)
	}
	switch verb {
	case "list":
		ids, err := lab.List()
		for _, id := range ids {
			fmt.Println(id)
		}
		return err
	case "image":
		image, err := lab.Image(ctx, os.Stderr)
		fmt.Println(image)
		return err
	case "up":
		return up(ctx, *id, args)
	}
	one, err := pick(*id)
	if err != nil {
		return err
	}
	if verb == "down" {
		return lab.Remove(ctx, one)
	}
	l, err := lab.Open(one)
	if err != nil {
		return err
	}
	l.Log = os.Stderr
	switch verb {
	case "inventory":
		fmt.Print(l.Inventory())
		return nil
	}
	if len(args) == 0 {
		flags.Usage()
		return fmt.Errorf("%s needs an argument", verb)
	}
	switch verb {
	case "exec":
		return replace(l.Controller(args[0], args[1:]...))
	case "cert":
		if len(args) != 2 {
			return errors.New("cert needs a name and a directory")
		}
		return l.Issue(lab.Request{Name: args[0], DNS: args[:1]}, filepath.Join(args[1], "cert.pem"), filepath.Join(args[1], "key.pem"))
	}
	login, name, ok := strings.Cut(args[0], "@")
	if !ok {
		login, name = "root", args[0]
	}
	h := l.Host(name)
	if h == nil {
		return fmt.Errorf("lab %s has no host %s", l.ID, name)
	}
	switch args = args[1:]; verb {
	case "ssh":
		return replace(l.Controller("ssh", append(l.SSH(login, h)[1:], args...)...))
	case "host":
		argv, err := h.Argv(args...)
		if err != nil {
			return err
		}
		return replace(argv)
	case "seed":
		return h.Seed(ctx)
	case "fingerprint":
		print, err := h.Fingerprint(ctx)
		if err != nil {
			return err
		}
		fmt.Print(print.String())
		fmt.Println(print.Hash())
		return nil
	case "reboot":
		return h.Reboot(ctx)
	case "stop":
		return h.Stop(ctx)
	case "crash":
		return h.Crash(ctx)
	case "start":
		return h.Start(ctx)
	case "unplug":
		return h.Unplug(ctx)
	case "plug":
		return h.Plug(ctx)
	}
	flags.Usage()
	return fmt.Errorf("no such command: %s", verb)
}

func up(ctx context.Context, id string, hosts []string) (err error) {
	begin := time.Now()
	ids, err := lab.List()
	if err != nil {
		return err
	}
	var l *lab.Lab
	if id == "" && len(ids) == 1 {
		id = ids[0]
	}
	if slices.Contains(ids, id) {
		l, err = lab.Open(id)
	} else {
		if l, err = lab.New(ctx, lab.Options{ID: id, Log: os.Stderr}); err == nil {
			defer func() { // an interrupted or failed start leaves nothing behind
				if err != nil {
					err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
				}
			}()
		}
	}
	if err != nil {
		return err
	}
	l.Log = os.Stderr
	if err := l.Up(ctx, hosts...); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "lab %s is up (%.1f s)\n", l.ID, time.Since(begin).Seconds())
	return l.Keep()
}

// pick returns the lab that is meant.
func pick(id string) (string, error) {
	if id != "" {
		return id, nil
	}
	ids, err := lab.List()
	switch {
	case err != nil:
		return "", err
	case len(ids) == 0:
		return "", errors.New("there is no lab: make one with labctl up voms1 voms2")
	case len(ids) > 1:
		return "", fmt.Errorf("there is more than one lab: choose with -id among %s", strings.Join(ids, ", "))
	}
	return ids[0], nil
}

// replace makes this process the given program, so that signals and the terminal are its own.
func replace(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}
