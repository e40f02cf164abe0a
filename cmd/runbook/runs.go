package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"runbook/engine/journal"
	"runbook/engine/report"
	"runbook/engine/transport"
)

func newRuns() *cobra.Command {
	list := newRunsList()
	cmd := &cobra.Command{
		Use:   "runs",
		Short: "List, show and compare the runs on record",
		Long: `Every run is put on record, step by step, on the machine that it is started from: see docs/resume.md. A RUN is named by its id, or by
what the id begins with.

  runbook runs                                 which runs there were, the newest first
  runbook runs show                            the last one: each task on each host, and how to go on
  runbook runs diff 20261126-10 20261127-09    what came out otherwise
  runbook runs export RUN -o run.jsonl         one file, to be read elsewhere: runbook runs import run.jsonl
  runbook runs give-up RUN --reason "..."      never go on with one, nor do what it owes
  runbook runs prune --older-than 90d          forget old ones`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "one of list, show, diff, give-up, prune, export, import"
			if looksLikeRun(args[0]) {
				hint = commandLine(stateDirOf(cmd), "runs", "show", args[0])
			}
			return fmt.Errorf("cannot tell what to do with %q\n    hint: %s", args[0], hint)
		},
		RunE: list.RunE,
	}
	cmd.Flags().AddFlagSet(list.Flags()) // no verb is list
	cmd.AddCommand(list, newRunsShow(), newRunsDiff(), newRunsGiveUp(), newRunsPrune(), newRunsExport(), newRunsImport())
	return cmd
}

var outputForms = cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)

func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVar(output, "output", "text", "`FORM`: text or json (JSON Lines)")
	must(cmd.RegisterFlagCompletionFunc("output", outputForms))
}

func checkOutput(output string) error {
	if !slices.Contains([]string{"text", "json"}, output) {
		return fmt.Errorf("cannot write %q: --output is text or json", output)
	}
	return nil
}

var runForm = regexp.MustCompile(`^[0-9]{8}(-[0-9]{0,6}(-[a-z0-9]{0,4})?)?$`)

// looksLikeRun tells whether text may be the id of a run, or its beginning.
func looksLikeRun(text string) bool { return runForm.MatchString(text) }

func newRunsList() *cobra.Command {
	var stateDir, output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the runs on record, the newest first",
		Long: `List the runs on record, the newest first. How long one took includes what passed before it was resumed.

  running       it is under way, in another process
  done          it came to its end, and all is well
  failed        a host failed or was lost, or a play could not go on
  interrupted   somebody ended it, or it ended itself, for instance to ask something
  given up      somebody has said that it will not be gone on with, and nothing is owed
  dead          its process went away without a word
  damaged       its record is not what was written
  unreadable    its record cannot be read, for instance because it belongs to another user
  of format N   its record was written by another version of runbook, which alone reads it

owed counts the handlers that were notified and have not run since; the next run on that host pays them too. The exit code is 1 if there is a
record of the last three kinds; what is wrong with it is told on standard error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			runs, err := lookAtRuns(stateDir, cmd.ErrOrStderr())
			switch {
			case err != nil:
			case output == "json":
				err = listJSON(cmd.OutOrStdout(), runs)
			case len(runs) == 0:
				fmt.Fprintln(cmd.ErrOrStderr(), "no run is on record")
			default:
				err = listText(cmd.OutOrStdout(), runs)
			}
			if err == nil && slices.ContainsFunc(runs, func(r pastRun) bool { return r.Err != nil }) {
				return &exitError{exitFailed} // it has been told
			}
			return err
		},
	}
	addStateDir(cmd, &stateDir)
	addOutput(cmd, &output)
	return cmd
}

// pastRun is a run as people ask for it.
type pastRun struct {
	journal.Info
	stateDir string         // in which it was found
	debts    []journal.Debt // what it still owes
}

// lookAtRuns lists the runs with what they owe, and tells what is wrong with records.
func lookAtRuns(stateDir string, stderr io.Writer) ([]pastRun, error) {
	infos, err := journal.List(stateDir)
	if err != nil {
		return nil, err
	}
	debts, err := journal.Debts(stateDir, nil)
	tellAll(stderr, err) // the others count
	told := fmt.Sprint(err)
	var runs []pastRun
	for _, info := range infos {
		if !strings.Contains(told, info.Path) {
			tellAll(stderr, info.Err)
		}
		r := pastRun{Info: info, stateDir: stateDir}
		for _, d := range debts {
			if d.Run == info.ID && !info.Imported {
				r.debts = append(r.debts, d)
			}
		}
		runs = append(runs, r)
	}
	return runs, nil
}

// tellAll writes the lines of an error, and nothing of none.
func tellAll(w io.Writer, err error) {
	if err == nil {
		return
	}
	for _, line := range report.CleanLines(err.Error()) {
		fmt.Fprintln(w, line)
	}
}

// status is the word for how a run ended, or has not.
func (r *pastRun) status() string {
	if r.Status == journal.Corrupt {
		return unbelieved(r.Err)
	}
	return report.Clean(r.Status)
}

// unbelieved is the word for a record of which this program believes nothing, or not all.
func unbelieved(err error) string {
	var format *journal.FormatError
	var unreadable *journal.UnreadableError
	switch {
	case errors.As(err, &format):
		return fmt.Sprintf("of format %d", format.Format)
	case errors.As(err, &unreadable):
		return "unreadable"
	}
	return "damaged"
}

// books are what the run was told to run, as it was typed if the arguments can be read.
func booksOf(run journal.Run) []string {
	if len(run.Args) > 0 && run.Args[0] == "run" {
		verb, _ := runVerb()
		asked := slices.DeleteFunc(slices.Clone(run.Books), func(b journal.Book) bool { return b.Owed })
		if err := verb.ParseFlags(run.Args[1:]); err == nil && len(verb.Flags().Args()) == len(asked) {
			return verb.Flags().Args()
		}
	}
	var paths []string
	for _, b := range run.Books {
		if !b.Owed {
			paths = append(paths, b.Path)
		}
	}
	return paths
}

// took is how long a run took, or has taken until now.
func (r *pastRun) took() time.Duration {
	end := r.Ended
	if end.IsZero() {
		end = time.Now()
	}
	if r.Started.IsZero() || end.Before(r.Started) {
		return 0
	}
	return end.Sub(r.Started)
}

func localTime(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func listText(stdout io.Writer, runs []pastRun) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "run\tstarted\ttook\tstatus\tresume\towed\thosts\trunbooks")
	for _, r := range runs {
		took, resume, owed, hosts := "?", "", "", "?"
		if r.Err == nil {
			took = report.Duration(r.took())
		}
		if !r.Started.IsZero() { // how it began is known
			hosts = fmt.Sprint(len(r.Run.Hosts))
		}
		switch {
		case r.Imported:
			resume = "imported"
		case r.Resumable:
			resume = "yes"
		}
		if len(r.debts) > 0 {
			owed = fmt.Sprint(len(r.debts))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, localTime(r.Began()), took, r.status(), resume, owed, hosts,
			report.Clean(strings.Join(booksOf(r.Run), ", ")))
	}
	return table.Flush()
}

// listed is a run as JSON.
type listed struct {
	ID        string         `json:"id"`
	Started   time.Time      `json:"started,omitzero"`
	Ended     time.Time      `json:"ended,omitzero"`
	Seconds   float64        `json:"seconds"`
	Status    string         `json:"status"`
	Resumable bool           `json:"resumable"`
	Imported  bool           `json:"imported,omitempty"`
	Books     []string       `json:"books"`
	Hosts     []string       `json:"hosts"`
	Owed      []journal.Owed `json:"owed"`
	User      string         `json:"user"`
	From      string         `json:"controller"`
	Version   string         `json:"version"`
	Path      string         `json:"path"`
	Error     string         `json:"error,omitempty"`
}

func listJSON(w io.Writer, runs []pastRun) error {
	for _, r := range runs {
		one := listed{ID: r.ID, Started: r.Started, Ended: r.Ended, Seconds: r.took().Seconds(), Status: r.status(), Resumable: r.Resumable,
			Imported: r.Imported, Books: booksOf(r.Run), Hosts: r.Run.Hosts, Owed: []journal.Owed{}, User: r.Run.User, From: r.Run.Controller,
			Version: r.Run.Version, Path: r.Path}
		for _, d := range r.debts {
			one.Owed = append(one.Owed, d.Owed)
		}
		if r.Err != nil {
			one.Error = r.Err.Error()
		}
		line, err := report.JSONLine(one)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

// pickRun finds the run that is meant: the id, or one that begins with it, or, without one, the last that fits.
func pickRun(stateDir string, runs []journal.Info, id string, fits func(journal.Info) bool) (journal.Info, error) {
	var found []journal.Info
	for _, r := range runs {
		if r.ID == id || id == "" && fits(r) {
			return r, nil
		}
		if id != "" && strings.HasPrefix(r.ID, id) {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var names []string
		for _, r := range found[:min(len(found), 8)] {
			names = append(names, r.ID)
		}
		if more := len(found) - len(names); more > 0 {
			names = append(names, fmt.Sprintf("and %d more", more))
		}
		return journal.Info{}, fmt.Errorf("cannot tell which run is meant by %s: %s", id, strings.Join(names, ", "))
	case id == "":
		return journal.Info{}, errNoRun
	}
	return journal.Info{}, fmt.Errorf("there is no record of a run %s\n    hint: %s lists those there are; --state-dir names another place", id, commandLine(stateDir, "runs"))
}

var errNoRun = errors.New("no run is on record")

// findRun is pickRun for those who only read. Without an id it is the last run of this machine.
func findRun(stateDir, id string) (journal.Info, error) {
	runs, err := journal.List(stateDir)
	if err != nil {
		return journal.Info{}, err
	}
	return pickRun(stateDir, runs, id, func(r journal.Info) bool { return !r.Imported })
}

// shellLine is a command as it may be typed.
func shellLine(words []string) string {
	plain := regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)
	var out []string
	for _, w := range words {
		if !plain.MatchString(w) {
			w = transport.Quote(w)
		}
		out = append(out, report.Clean(w))
	}
	return strings.Join(out, " ")
}

// damaged ends a command that could read only a part of a record.
func damaged(stderr io.Writer, err error) error {
	tellAll(stderr, err)
	return &exitError{exitFailed}
}

// readable is what of a record can be read, and why the rest cannot.
func readable(stateDir, id string) (records []journal.Record, broken error, err error) {
	records, _, err = journal.Read(stateDir, id)
	if err != nil && len(records) > 0 {
		return records, err, nil
	}
	return records, nil, whatToDo(stateDir, id, err)
}

// stateDirOf is what was given to a verb that has --state-dir.
func stateDirOf(cmd *cobra.Command) string { return cmd.Flag("state-dir").Value.String() }
