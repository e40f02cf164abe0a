package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"runbook/engine"
	"runbook/engine/journal"
)

// record is the journal of the run that is under way.
type record struct {
	writer *journal.Writer
}

// record makes the record of a new run, or goes on with that of one which is resumed. Nothing is written for bad input.
func (f *jobFlags) record(cmd *cobra.Command, job *engine.Job, past *resumed) (*record, error) {
	books, err := engine.Program(*job)
	if err != nil {
		return nil, nothingTouched(err)
	}
	who, controller := operator()
	var hosts []string
	for _, h := range job.Inventory.Hosts() {
		hosts = append(hosts, h.Name)
	}
	if job.Debts, err = journal.Debts(f.stateDir, hosts); err != nil {
		return nil, err
	}
	if past != nil {
		if err := past.fit(books); err != nil {
			return nil, err
		}
		if err := past.unanswered(); err != nil {
			return nil, err
		}
		job.Debts = otherDebts(job.Debts, past.run.ID)
		past.settings(job)
		err := past.writer.Commit(journal.Record{Kind: journal.KindResume, Resume: &journal.Resume{Version: thisVersion(), PID: os.Getpid(),
			User: who, Controller: controller, Rerun: past.rerun, MarkDone: past.markDone}})
		if err != nil {
			return nil, err
		}
		return &record{writer: past.writer}, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("cannot put the run on record: %w", err)
	}
	writer, err := journal.Create(f.stateDir, journal.Run{Version: thisVersion(), Dir: dir, Args: argsOf(cmd), User: who, Controller: controller,
		PID: os.Getpid(), Books: books, Hosts: hosts})
	if err != nil {
		return nil, err
	}
	job.Journal = writer
	return &record{writer: writer}, nil
}

// otherDebts are those of other runs: what the one that is resumed owes, it pays by going on.
func otherDebts(debts []journal.Debt, run string) []journal.Debt {
	var others []journal.Debt
	for _, d := range debts {
		if d.Run != run {
			others = append(others, d)
		}
	}
	return others
}

// operator is who runs the program, and where.
func operator() (who, controller string) {
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	controller, _ = os.Hostname()
	return who, controller
}

// end closes the record and, where the run is not through, says how things are and how to go on. The same text is in the record.
func (r *record) end(stderr io.Writer, s engine.Summary, code int) {
	status := journal.Done
	switch {
	case s.Interrupted || s.Asked || s.Halted != "":
		status = journal.Interrupted
	case s.Failed():
		status = journal.Failed
	}
	text := ""
	if status != journal.Done {
		text = closingPage(r.writer.ID(), s, status)
		fmt.Fprint(stderr, "\n"+text)
	}
	totals, _ := json.Marshal(s.Totals)
	if err := r.writer.Commit(journal.Record{Kind: journal.KindClose, Close: &journal.Close{Status: status, Totals: totals, Owed: s.Owed, Text: text}}); err != nil {
		fmt.Fprintf(stderr, "the end of the run cannot be put on record: %v\n", err)
	}
}

func (r *record) close() { _ = r.writer.Close() }

// closingPage is for whoever has to go on, perhaps at night: what failed and why, what is owed, and what to type.
func closingPage(id string, s engine.Summary, status string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Run %s is not through: it %s.\n", id, map[string]string{journal.Failed: "failed", journal.Interrupted: "was ended"}[status])
	if s.Halted != "" {
		fmt.Fprintf(&b, "  It ended itself: %s.\n", s.Halted)
	}
	for _, f := range s.Failures {
		what := "failed at"
		if f.Unreachable {
			what = "was lost at"
		}
		first, _, _ := strings.Cut(f.Msg, "\n")
		fmt.Fprintf(&b, "  %s %s %q: %s\n", f.Host, what, f.Task, first)
	}
	for _, sentence := range s.State {
		fmt.Fprintf(&b, "  Now, %s\n", sentence)
	}
	for _, o := range s.Owed {
		fmt.Fprintf(&b, "  Still to be done on %s: %s (a handler that was notified)\n", o.Host, o.Name)
	}
	fmt.Fprintf(&b, "  To go on:        runbook resume %s\n  To look closer:  runbook runs show %s\n", id, id)
	return b.String()
}
