package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"runbook/engine"
	"runbook/engine/journal"
	"runbook/engine/report"
	"runbook/engine/transport"
)

// record is the journal of the run that is under way.
type record struct {
	writer   *journal.Writer
	books    []string // as they were named
	hosts    []string
	stateDir string   // as it was given
	once     []string // arguments of -e that cannot be read again
	accepted bool     // this part of the run was given --accept-changes
	mask     func(string) string
}

// record makes the record of a new run, or goes on with that of one which is resumed. Nothing is written for bad input.
func (f *jobFlags) record(cmd *cobra.Command, job *engine.Job, past *resumed) (*record, error) {
	books, hosts, debts, err := f.program(job, past)
	if err != nil {
		return nil, err
	}
	if debts != nil {
		return nil, unknownDebts(f.stateDir, debts)
	}
	if past != nil {
		// It owes nothing to others while it is being written, so Debts has not its own.
		if past.own, err = past.writer.Owed(); err != nil {
			return nil, unknownDebts(f.stateDir, err)
		}
		if err := past.fit(f.stateDir, books, hosts); err != nil {
			return nil, err
		}
		if err := past.unanswered(); err != nil {
			return nil, err
		}
		job.Debts = slices.DeleteFunc(job.Debts, func(d journal.Debt) bool { return d.Run == past.run.ID })
		past.settings(job)
		err := takeUp(past.writer, journal.Resume{Rerun: past.rerun, MarkDone: past.markDone, Settings: past.given, Books: past.edited, Tasks: past.tasks,
			Hosts: past.others})
		for _, o := range past.gone {
			text := fmt.Sprintf("the handler %q was notified on %s in an earlier part of the run and did not run; the runbook has no such handler any more, so it is owed no longer", o.Name, o.Host)
			fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+report.Clean(text))
			err = cmp.Or(err, past.writer.Append(journal.Record{Kind: journal.KindNote, Note: &journal.Note{Text: text}}))
		}
		if err != nil {
			return nil, err
		}
		return &record{past.writer, booksOf(past.run), hosts, f.stateDir, readOnce("", f.settings), past.acceptChanges, job.Masker.Mask}, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("cannot put the run on record: %w", err)
	}
	who, controller := transport.Operator()
	writer, err := journal.Create(f.stateDir, journal.Run{Version: thisVersion(), Dir: dir, Args: argsOf(cmd), User: who, Controller: controller,
		PID: os.Getpid(), Books: books, Hosts: hosts})
	if err != nil {
		return nil, err
	}
	job.Journal = writer
	warnUnfinished(cmd.ErrOrStderr(), f.stateDir, books, hosts)
	return &record{writer, cmd.Flags().Args(), hosts, f.stateDir, readOnce("", f.settings), false, job.Masker.Mask}, nil
}

// end closes the record and, where the run is not through, says how things are and how to go on. The same text is in the record.
func (r *record) end(stderr io.Writer, s engine.Summary, code int) {
	status := journal.Done
	switch {
	case s.Interrupted || s.Asked() || s.Halted != "":
		status = journal.Interrupted
	case s.Failed():
		status = journal.Failed
	}
	owed, err := r.writer.Owed()
	if err != nil {
		fmt.Fprintf(stderr, "it cannot be told what is still owed: %v\n", err)
	}
	text := ""
	if status != journal.Done {
		earlier, err := journal.Debts(r.stateDir, r.hosts) // this run is not through, so it is none of them
		if err != nil {
			fmt.Fprintf(stderr, "it cannot be told what earlier runs owe: %v\n", err)
		}
		text = r.mask(r.closingPage(s, owed, earlier, status))
		fmt.Fprint(stderr, "\n"+text)
	}
	totals, _ := json.Marshal(s.Totals)
	if status == journal.Done && len(owed) > 0 {
		for _, o := range owed {
			fmt.Fprintf(stderr, "still to be done: the handler %q on %s, which the run did not come to; the next run there does it\n", r.mask(o.Name), o.Host)
		}
	}
	if err := r.writer.Commit(journal.Record{Kind: journal.KindClose, Close: &journal.Close{Status: status, Totals: totals, Owed: owed, Text: text}}); err != nil {
		fmt.Fprintf(stderr, "the end of the run cannot be put on record: %v\n", err)
	}
}

func (r *record) close() { _ = r.writer.Close() }

// closingPage is for whoever has to go on, perhaps at night: what failed and why, how things are, what is still to be done, and what to type.
func (r *record) closingPage(s engine.Summary, owed []journal.Owed, earlier []journal.Debt, status string) string {
	var b strings.Builder
	how := map[string]string{journal.Failed: "it failed", journal.Interrupted: "it was ended"}[status]
	if s.Asked() {
		how = "it needs an answer from you"
	}
	fmt.Fprintf(&b, "Run %s of %s is not through: %s.\n", r.writer.ID(), strings.Join(r.books, ", "), how)
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s\n", title)
		for i, line := range lines {
			if i == mostLines && len(lines) > mostLines+1 {
				fmt.Fprintf(&b, "  and %d more\n", len(lines)-mostLines)
				break
			}
			fmt.Fprintf(&b, "  %s\n", strings.Join(report.CleanLines(line), "\n      "))
		}
	}
	var failures, debts, others byText
	if s.Halted != "" {
		failures.add("", "It ended itself: "+s.Halted)
	}
	for _, f := range s.Failures {
		if f.HeldBack != "" {
			failures.add(f.Host, fmt.Sprintf("held back in %q: %s", f.HeldBack, f.Msg))
			continue
		}
		what := "at"
		if f.Unreachable {
			what = "was lost at"
		}
		item := ""
		if f.Item != "" {
			item = " [" + f.Item + "]"
		}
		failures.add(f.Host, fmt.Sprintf("%s %q%s: %s", what, f.Task, item, firstLines(f.Msg, 3)))
	}
	for _, o := range owed {
		debts.add(o.Host, handlerName(o))
	}
	for _, d := range earlier {
		others.add(d.Host, fmt.Sprintf("%s, by run %s of %s", handlerName(d.Owed), d.Run, d.Book))
	}
	section("What failed", failures.lines())
	section("How things are now", s.State)
	section("Still to be done, by handlers that were notified (going on does it)", debts.lines())
	section("Owed by earlier runs (going on, or the next run there, does it where it can)", others.lines())
	title, lines := r.goOn(s.Questions)
	fmt.Fprintf(&b, "\n%s:\n  %s\nTo look closer:\n  %s\n", title, strings.Join(lines, "\n  "), r.command("runs", "show"))
	return b.String()
}

// handlerName is a handler that is owed, as a page names it.
func handlerName(o journal.Owed) string {
	if o.Unsure {
		return o.Name + " (perhaps: the task that notifies it did not come to its end)"
	}
	return o.Name
}

// goOn is what to type to go on, with answers where some are needed.
func (r *record) goOn(questions []engine.Question) (title string, lines []string) {
	var accept, again, tasks []string
	if r.accepted && len(questions) > 0 {
		accept = []string{"--accept-changes"} // what was accepted would be asked again
	}
	for _, q := range questions {
		where := journal.Answer(q.Host, q.Task, q.Item)
		switch {
		case q.Accept:
			accept = []string{"--accept-changes"}
		case q.Again:
			again = append(again, "--rerun", where)
		case !slices.Contains(tasks, where):
			tasks = append(tasks, where)
		}
	}
	line := func(answer string) string {
		words := slices.Concat(accept, again)
		for _, task := range tasks {
			words = append(words, answer, task)
		}
		return goOn(r.stateDir, r.writer.ID(), r.once, words...)
	}
	switch {
	case len(tasks) > 1:
		return "To go on, with --mark-done in place of --rerun for what you find done", []string{line("--rerun")}
	case len(tasks) == 1:
		return "To go on, by doing it once more or, if you find it done, by taking it for done", []string{line("--rerun"), line("--mark-done")}
	case again != nil:
		return "To go on, by doing again what is done, for what it returns", []string{line("")}
	case accept != nil:
		return "To go on, if what differs is meant", []string{line("")}
	}
	return "To go on", []string{line("")}
}

// firstLines is a text, cut off where it is longer.
func firstLines(text string, most int) string {
	lines := strings.SplitN(strings.TrimRight(text, "\n"), "\n", most+1)
	if len(lines) > most {
		lines[most] = "…"
	}
	for i, line := range lines {
		if runes := []rune(line); len(runes) > 400 {
			lines[i] = string(runes[:400]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}

// mostLines is how long a list on the closing page may be: what to type must be in sight.
const mostLines = 12

// warn says at the start what will be missing when the run is to be resumed.
func (r *record) warn(stderr io.Writer) {
	if len(r.once) > 0 {
		fmt.Fprintf(stderr, "warning: %s: this run can be resumed only if it is given those values anew: %s\n", cannotReadAgain(r.once), goOn(r.stateDir, r.writer.ID(), r.once))
	}
}

// command is what to type about the run, from wherever.
func (r *record) command(verb ...string) string {
	return commandLine(r.stateDir, append(verb, r.writer.ID())...)
}

// byText gathers the hosts of which the same is to be said.
type byText struct {
	texts []string
	hosts map[string][]string
}

func (g *byText) add(host, text string) {
	if g.hosts == nil {
		g.hosts = map[string][]string{}
	}
	if !slices.Contains(g.texts, text) {
		g.texts = append(g.texts, text)
	}
	if host != "" {
		g.hosts[text] = append(g.hosts[text], host)
	}
}

func (g *byText) lines() []string {
	const most = 4
	var lines []string
	for _, text := range g.texts {
		hosts := g.hosts[text]
		names := strings.Join(hosts[:min(len(hosts), most)], ", ")
		if more := len(hosts) - most; more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
		lines = append(lines, strings.TrimLeft(names+"  "+text, " "))
	}
	return lines
}
