package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/transport"
	"runbook/inventory"
)

// unlocking is one call of the verb.
type unlocking struct {
	inventory string
	reason    string
	yes       bool
	verbose   int
	askBecome bool

	dial func(ctx context.Context, host *inventory.Host) (transport.Conn, error)
	ask  func(ctx context.Context, question string) (string, error)
	out  io.Writer
	errs io.Writer
}

func newUnlock() *cobra.Command {
	u := &unlocking{}
	cmd := &cobra.Command{
		Use:   "unlock HOST...",
		Short: "End the lock that a run holds on a host",
		Long: `Show who holds a host and, when you have said yes, end the lock: for a run that nobody can end where it was started, such as one whose
controller has lost its network for good. Without a lock nothing is done.

A run locks a host before its first change there, and the lock goes with its connection: one that was ended or killed leaves none.
"runbook resume" takes the lock of its own run over. So look first at what the run is doing, and ask the person who is named.

The connection of the run that held the lock is ended too: nothing more comes from there. A command that is under way on the host is not
ended; it is shown. A long step that goes on by itself goes on, but does not keep other runs out any more. The reason, with your
name, is written to the host's log where it has one, by "logger"; where it has none, you are told.

A HOST is a host, a group or a pattern of the inventory; without an inventory, a name or address that ssh knows.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("cannot unlock without a host\n    hint: name one or more")
			}
			return nil
		},
		RunE: u.run,
	}
	flags := cmd.Flags()
	flags.StringVarP(&u.inventory, "inventory", "i", "", "inventory `FILE` or directory")
	flags.StringVar(&u.reason, "reason", "", "why, in a `SENTENCE`; it is written to the host's log, where it has one")
	flags.BoolVarP(&u.yes, "yes", "y", false, "do not ask")
	flags.CountVarP(&u.verbose, "verbose", "v", "more diagnostics; twice: those of connections")
	flags.BoolVarP(&u.askBecome, "ask-become-pass", "K", false, "ask for the password of sudo or su")
	return cmd
}

func (u *unlocking) run(cmd *cobra.Command, args []string) error {
	hosts, err := u.hosts(args)
	if err != nil {
		return nothingTouched(err)
	}
	u.out, u.errs = cmd.OutOrStdout(), cmd.ErrOrStderr()
	masker := &secret.Masker{}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	dialer := &dialer{prompt: askTerminal, log: newLogger(u.errs, u.verbose, masker), masker: masker}
	if u.askBecome {
		password, err := askTerminal(ctx, "Password for sudo or su on the hosts: ")
		if err != nil {
			return err
		}
		masker.Add(password)
		dialer.become = password
	}
	u.dial, u.ask = dialer.dial, askLine
	return u.all(ctx, hosts)
}

// all unlocks hosts, one after the other, for a person can answer but one question at a time.
func (u *unlocking) all(ctx context.Context, hosts []*inventory.Host) error {
	locked := false
	for _, host := range hosts {
		left, err := u.unlock(ctx, host)
		locked = locked || left || err != nil
		if ctx.Err() != nil {
			return &exitError{exitInterrupted}
		}
		if err != nil {
			for _, line := range report.CleanLines(err.Error()) {
				fmt.Fprintln(u.errs, line)
			}
		}
	}
	if locked {
		return &exitError{exitFailed}
	}
	return nil
}

// hosts checks what was given, and finds the hosts that are meant.
func (u *unlocking) hosts(args []string) ([]*inventory.Host, error) {
	reason, err := oneSentence(u.reason, "unlock", "whoever finds the run ended may read it in the host's log")
	if err != nil {
		return nil, err
	}
	u.reason = reason
	if u.inventory == "" {
		var hosts []*inventory.Host
		for _, name := range args {
			hosts = append(hosts, &inventory.Host{Name: name})
		}
		return hosts, nil
	}
	inv, err := inventory.Load(u.inventory)
	if err != nil {
		return nil, err
	}
	return inv.Match(strings.Join(args, ":"))
}

// oneSentence is a reason as it is told to others.
func oneSentence(reason, toDo, readers string) (string, error) {
	reason = strings.Join(strings.Fields(reason), " ")
	switch {
	case reason == "":
		return "", fmt.Errorf("cannot %s without a reason\n    hint: give it with --reason: %s", toDo, readers)
	case !utf8.ValidString(reason) || len(reason) > 200:
		return "", errors.New("cannot take this reason: it is one sentence of at most 200 letters")
	}
	return reason, nil
}

// agreed asks whether something is to be done that cannot be taken back.
func agreed(ctx context.Context, ask func(context.Context, string) (string, error), question string) (yes bool, err error) {
	answer, err := ask(ctx, question)
	return strings.TrimSpace(answer) == "yes", err
}

// unlock ends the locks on one host that the person agrees to. It reports whether the person left one.
func (u *unlocking) unlock(ctx context.Context, host *inventory.Host) (left bool, err error) {
	say := func(format string, args ...any) {
		fmt.Fprintf(u.out, "%s: %s\n", host.Name, report.Clean(fmt.Sprintf(format, args...)))
	}
	conn, err := u.dial(ctx, host)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	holders, err := transport.Locked(ctx, conn)
	if err != nil {
		return false, err
	}
	if len(holders) == 0 {
		say("nobody holds a lock")
	}
	var failures error
	for _, holder := range holders {
		say("locked by %s", &holder)
		if !u.yes {
			yes, err := agreed(ctx, u.ask, fmt.Sprintf("End this lock on %s? Type yes: ", host.Name))
			if err != nil {
				return false, err
			}
			if !yes {
				say("the lock was left as it is")
				left = true
				continue
			}
		}
		underWay, logged, err := transport.Unlock(ctx, conn, holder, transport.Self(""), u.reason)
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		say("the lock of run %s was ended: %s", holder.Run, u.reason)
		if !logged {
			fmt.Fprintf(u.errs, "%s: there is no log on the host (logger and /dev/log) that could say so: tell whoever has to know\n", host.Name)
		}
		for _, command := range underWay {
			say("still under way: process %s", command)
		}
	}
	return left, failures
}

// askLine asks a question on the controlling terminal.
func askLine(ctx context.Context, question string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errors.New("cannot ask whether to go on: there is no terminal\n    hint: look at what is told above, and say --yes")
	}
	defer tty.Close()
	fmt.Fprint(tty, question)
	type answer struct {
		text string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := bufio.NewReader(tty).ReadString('\n')
		answered <- answer{text, err}
	}()
	select {
	case a := <-answered:
		return a.text, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
