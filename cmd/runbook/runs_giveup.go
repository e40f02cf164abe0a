package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"runbook/engine/journal"
	"runbook/engine/report"
	"runbook/engine/transport"
)

// givingUp is one call of the verb.
type givingUp struct {
	stateDir string
	reason   string
	yes      bool

	ask       func(ctx context.Context, question string) (string, error)
	out, errs io.Writer
}

func newRunsGiveUp() *cobra.Command {
	g := &givingUp{ask: askLine}
	cmd := &cobra.Command{
		Use:   "give-up RUN",
		Short: "Give up a run that nobody will resume, and what it owes",
		Long: `Show what a run owes and what was under way in it and, when you have said yes, give it up for good: it cannot be resumed any more, no later
run does what it owes, and prune may remove it. That is for a run whose host or whose runbook is gone; to be rid of what is owed on hosts
that are there, resume it, or run something there.

No host is touched: what was under way is left as it is, and so is a long step that still works there. The reason, with your name, is
put on record. A run that is under way, that is through, or that was imported is refused.`,
		Args: func(cmd *cobra.Command, args []string) error { return runsNamed(cmd, args, 1) },
		RunE: func(cmd *cobra.Command, args []string) error {
			g.out, g.errs = cmd.OutOrStdout(), cmd.ErrOrStderr()
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return g.giveUp(ctx, args[0])
		},
	}
	cmd.Flags().StringVar(&g.reason, "reason", "", "why, in a `SENTENCE`; it is put on record")
	cmd.Flags().BoolVarP(&g.yes, "yes", "y", false, "do not ask")
	addStateDir(cmd, &g.stateDir)
	cmd.ValidArgsFunction = completeRuns(&g.stateDir, 1)
	return cmd
}

func (g *givingUp) giveUp(ctx context.Context, id string) error {
	reason, err := oneSentence(g.reason, "give up a run", "whoever misses the run will read it in its record")
	if err != nil {
		return err
	}
	info, err := findRun(g.stateDir, id)
	if err != nil {
		return err
	}
	writer, records, err := journal.Open(g.stateDir, info.ID)
	if err != nil {
		return whatToDo(g.stateDir, info.ID, err)
	}
	defer func() { _ = writer.Close() }()
	if err := over(records); err != nil {
		return fmt.Errorf("cannot give up %s: %w", info.ID, err)
	}
	owed, err := writer.Owed()
	if err != nil {
		fmt.Fprintln(g.errs, "what others have paid of it cannot be told, so all of it is taken for owed:")
		tellAll(g.errs, err)
	}
	books := strings.Join(booksOf(info.Run), ", ")
	page := leftBehind(owed, underWay(records))
	for _, line := range report.CleanLines(fmt.Sprintf("Run %s of %s, started %s, %s.\n%s", info.ID, books, localTime(info.Began()), info.Status, page)) {
		fmt.Fprintln(g.out, line)
	}
	if !g.yes {
		yes, err := agreed(ctx, g.ask, fmt.Sprintf("Give up run %s? Type yes: ", info.ID))
		switch {
		case ctx.Err() != nil:
			return &exitError{exitInterrupted}
		case err != nil:
			return damaged(g.errs, err)
		case !yes:
			fmt.Fprintln(g.out, "the run was left as it is")
			return &exitError{exitFailed}
		}
	}
	if err := putGivenUp(writer, owed, reason, books, page); err != nil {
		return damaged(g.errs, err)
	}
	fmt.Fprintf(g.out, "run %s was given up: %s\n", info.ID, report.Clean(reason))
	return nil
}

// putGivenUp puts on record who gives the run up and why. That it owes nothing is in one record with its end, so that a kill comes before both or after.
func putGivenUp(w *journal.Writer, owed []journal.Owed, reason, books, page string) error {
	if err := takeUp(w, journal.Resume{GiveUp: reason}); err != nil {
		return err
	}
	who, controller := transport.Operator()
	closing := &journal.Close{Status: journal.GivenUp, Text: fmt.Sprintf("Run %s of %s was given up by %s on %s: %s\n%s", w.ID(), books, who, controller, reason, page)}
	for _, o := range owed {
		closing.Settles = append(closing.Settles, journal.Settled{Run: w.ID(), Host: o.Host, Handler: o.Handler, N: o.N})
	}
	return w.Commit(journal.Record{Kind: journal.KindClose, Close: closing})
}

// leftBehind tells what a run that is given up leaves undone.
func leftBehind(owed []journal.Owed, underWay []journal.Record) string {
	var debts, begun byText
	for _, o := range owed {
		debts.add(o.Host, handlerName(o))
	}
	for _, r := range underWay {
		begun.add(r.Begin.Host, fmt.Sprintf("%q, begun %s", r.Begin.Name, localTime(r.Time)))
	}
	var b strings.Builder
	for _, part := range []struct {
		title string
		lines []string
	}{{"Owed, by handlers that were notified; given up with it, nobody runs them", debts.lines()},
		{"Under way when it ended; nobody knows whether it was done", begun.lines()}} {
		if len(part.lines) > 0 {
			fmt.Fprintf(&b, "\n%s\n  %s\n", part.title, strings.Join(part.lines, "\n  "))
		}
	}
	return b.String()
}

// over says why a run is never gone on with, nil of one that is not through.
func over(records []journal.Record) error {
	last := records[len(records)-1].Close
	if last == nil || !journal.Over(last.Status) {
		return nil
	}
	if last.Status == journal.Done {
		return errors.New("it is through")
	}
	why := "it was given up"
	for _, r := range records {
		if by := r.Resume; by != nil && by.GiveUp != "" {
			why = fmt.Sprintf("it was given up by %s on %s, %s: %s", by.User, by.Controller, localTime(r.Time), by.GiveUp)
		}
	}
	return errors.New(why)
}
