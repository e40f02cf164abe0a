package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"runbook/engine/journal"
	"runbook/engine/report"
)

func newRunsShow() *cobra.Command {
	var stateDir, output string
	var diff bool
	cmd := &cobra.Command{
		Use:   "show [RUN]",
		Short: "Show a run: who started it, each task on each host, what is owed",
		Long: `Show a run, by default the last one: who started it from where, each task on each host with its verdict, its time and its changes, what
was decided when it was resumed, what it still owes, and the page that it ended with. One that is running is shown as far as it has come.
Tasks that were skipped are not on record; their number is in the table of a run that came to its end.

Of a damaged record all is shown that stands before the damage, with exit code 1. --output json gives the records themselves, a line each.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			info, err := findRun(stateDir, id)
			if err != nil {
				return err
			}
			records, broken, err := readable(stateDir, info.ID)
			if err != nil {
				return damaged(cmd.ErrOrStderr(), err)
			}
			stdout := cmd.OutOrStdout()
			if output == "json" {
				if err := recordsJSON(stdout, records); err != nil {
					return err
				}
			} else {
				debts, err := journal.Debts(stateDir, nil)
				debts = slices.DeleteFunc(debts, func(d journal.Debt) bool { return d.Run != info.ID || info.Imported })
				showRun(stdout, pastRun{Info: info, stateDir: stateDir, debts: debts}, records, broken, diff)
				if broken == nil {
					tellAll(cmd.ErrOrStderr(), err) // of another record
				}
			}
			if broken != nil {
				return damaged(cmd.ErrOrStderr(), fmt.Errorf("%w\nwhat is behind that cannot be believed: the %d records before it are shown", broken, len(records)))
			}
			return nil
		},
	}
	addStateDir(cmd, &stateDir)
	addOutput(cmd, &output)
	cmd.Flags().BoolVar(&diff, "diff", false, "show differences of texts")
	cmd.ValidArgsFunction = completeRuns(&stateDir, 1)
	return cmd
}

// completeRuns completes as many ids as a verb takes.
func completeRuns(stateDir *string, most int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	complete := completeRun(stateDir)
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, args, toComplete)
	}
}

func recordsJSON(w io.Writer, records []journal.Record) error {
	for _, r := range records {
		line, err := report.JSONLine(r)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

// showRun tells a run from its record, by the means with which it was told while it ran.
func showRun(w io.Writer, r pastRun, records []journal.Record, broken error, diff bool) {
	run := *records[0].Run
	fmt.Fprintf(w, "Run %s: %s\n", r.ID, statusSentence(r, broken))
	line := func(what, text string) { fmt.Fprintf(w, "  %-9s %s\n", what, report.Clean(text)) }
	line("started", fmt.Sprintf("%s by %s on %s, process %d", localTime(records[0].Time), run.User, run.Controller, run.PID))
	line("in", run.Dir)
	fmt.Fprintf(w, "  %-9s %s\n", "called", shellLine(append([]string{"runbook"}, run.Args...)))
	line("version", run.Version)
	line("hosts", strings.Join(run.Hosts, ", "))
	for _, b := range run.Books {
		text := fmt.Sprintf("%s: %s", b.Path, b.Title)
		if b.Owed {
			text += " (only handlers that an earlier run owed)"
		}
		line("runbook", text)
	}
	line("record", r.Path)
	fmt.Fprintln(w)
	told := &retelling{run: run, plays: playsOf(run, records), boots: map[string]string{}, text: report.NewText(w, report.TextOptions{
		Color: terminalFile(w) != nil && os.Getenv("NO_COLOR") == "", Diff: diff, Verbose: 1, Times: true})}
	for _, rec := range records {
		told.record(rec)
	}
	told.end(r, records, broken)
	showOwed(w, r, records)
	_, lost := settingsOf(run, records)
	if closing := records[len(records)-1].Close; r.Resumable && broken == nil && (closing == nil || closing.Text == "") {
		fmt.Fprintf(w, "\nTo go on:\n  %s\n", goOn(r.stateDir, r.ID, lost))
	}
	if r.Imported && !journal.Over(r.Status) {
		fmt.Fprintf(w, "\nThis is what was imported, to be read: the run can be resumed only where it was made, by %s on %s.\n", report.Clean(run.User), report.Clean(run.Controller))
	}
}

func statusSentence(r pastRun, broken error) string {
	var parts []string
	switch {
	case broken != nil:
		parts = append(parts, unbelieved(broken))
	case r.Status == journal.Running:
		parts = append(parts, "running, for "+report.Duration(r.took()))
	case r.Status == journal.Dead:
		parts = append(parts, "dead, last heard of at "+localTime(r.Ended))
	default:
		parts = append(parts, r.status()+", after "+report.Duration(r.took()))
	}
	switch {
	case r.Imported:
		parts = append(parts, "imported")
	case r.Resumable && broken == nil:
		parts = append(parts, "can be resumed")
	}
	return strings.Join(parts, ", ")
}

// place is the book and the play in which a task of a record stands, from 1.
type place struct{ book, play int }

// placeOf reads a task id such as 1:2/handlers/1.
func placeOf(id string) place {
	book, rest, _ := strings.Cut(id, ":")
	play, _, _ := strings.Cut(rest, "/")
	var at place
	at.book, _ = strconv.Atoi(book)
	at.play, _ = strconv.Atoi(play)
	return at
}

// playsOf finds out about the plays of a run.
func playsOf(run journal.Run, records []journal.Record) *plays {
	p := &plays{title: map[place]string{}, hosts: map[place][]string{}, looped: map[journal.Key]bool{}}
	for _, b := range run.Books {
		for _, t := range b.Tasks {
			p.title[placeOf(t.ID)] = t.Play
		}
	}
	for _, r := range records {
		var key journal.Key
		switch {
		case r.Begin != nil:
			key = r.Begin.Key
		case r.End != nil:
			key = r.End.Key
		default:
			continue
		}
		// The record knows items by their place in the loop, and a task without a loop has the first.
		p.looped[wholeTask(key)] = p.looped[wholeTask(key)] || key.Item != "" && key.Item != "0"
		if at := placeOf(key.Task); !slices.Contains(p.hosts[at], key.Host) {
			p.hosts[at] = append(p.hosts[at], key.Host)
		}
	}
	order := map[string]int{}
	for i, h := range run.Hosts {
		order[h] = i
	}
	for _, hosts := range p.hosts {
		slices.SortStableFunc(hosts, func(a, b string) int { return order[a] - order[b] })
	}
	return p
}

type plays struct {
	title  map[place]string
	hosts  map[place][]string // that have tasks on record in the play
	looped map[journal.Key]bool
}

func isHandler(id string) bool { return strings.Contains(id, "/handlers/") }

// retelling turns records back into the events of a run.
type retelling struct {
	run   journal.Run
	text  *report.Text
	plays *plays
	at    *place            // what the last heading was about
	boots map[string]string // by host
}

func (t *retelling) record(r journal.Record) {
	switch {
	case r.End != nil:
		t.head(r.End.Task)
		e, result := t.event(r.End.Key, r.End.Name, r.End.Label, r.End.On), resultOf(r.End)
		e.Result = &result
		t.text.Event(e)
	case r.Note != nil:
		t.note(report.Event{}, r.Note.Text)
	case r.Facts != nil && r.Facts.BootID != "":
		if before := t.boots[r.Facts.Host]; before != "" && before != r.Facts.BootID {
			t.note(report.Event{Host: r.Facts.Host}, "it has started anew since")
		}
		t.boots[r.Facts.Host] = r.Facts.BootID
	case r.Close != nil:
		t.text.Heading("ENDED", fmt.Sprintf("%s: %s", localTime(r.Time), r.Close.Status))
	case r.Resume != nil:
		words := []string{localTime(r.Time), "by", r.Resume.User, "on", fmt.Sprintf("%s, process %d", r.Resume.Controller, r.Resume.PID)}
		if r.Resume.Version != t.run.Version {
			words = append(words, "with version "+r.Resume.Version)
		}
		for _, task := range r.Resume.Rerun {
			words = append(words, "--rerun "+shellLine([]string{task}))
		}
		for _, task := range r.Resume.MarkDone {
			words = append(words, "--mark-done "+shellLine([]string{task}))
		}
		for _, setting := range r.Resume.Settings {
			words = append(words, "-e "+shellLine([]string{setting}))
		}
		if r.Resume.GiveUp != "" {
			t.text.Heading("GIVEN UP", strings.Join(words, " ")+": "+report.Clean(r.Resume.GiveUp))
		} else {
			t.text.Heading("RESUMED", strings.Join(words, " "))
		}
		t.at = nil
	}
	for _, s := range r.Settlements() {
		if r.Close != nil {
			break // of what was given up its page tells
		}
		t.note(report.Event{Host: s.Host}, fmt.Sprintf("that was a handler which the run %s owed: it is settled", s.Run))
	}
}

func (t *retelling) note(e report.Event, text string) {
	e.Kind, e.Result = report.TaskEnd, &report.Result{Status: report.Note, Msg: text}
	t.text.Event(e)
}

// head shows the book and the play of a task, where it is the first of them.
func (t *retelling) head(id string) {
	at := placeOf(id)
	if t.at == nil || t.at.book != at.book {
		title := fmt.Sprintf("runbook %d", at.book)
		if at.book >= 1 && at.book <= len(t.run.Books) {
			title = t.run.Books[at.book-1].Title
		}
		t.text.Event(report.Event{Kind: report.BookStart, Book: title})
	}
	if t.at == nil || *t.at != at {
		t.text.Event(report.Event{Kind: report.PlayStart, Play: cmp.Or(t.plays.title[at], fmt.Sprintf("play %d", at.play)), Hosts: t.plays.hosts[at]})
	}
	t.at = &at
}

// wholeTask is the key of an item without the item.
func wholeTask(key journal.Key) journal.Key {
	key.Item = ""
	return key
}

// event is what is told of a task on a host, without how it came out.
func (t *retelling) event(key journal.Key, name, label, on string) report.Event {
	if label == "" && t.plays.looped[wholeTask(key)] {
		label = itemName(key.Item)
	}
	return report.Event{Kind: report.TaskEnd, Task: name, Item: label, Host: key.Host, On: on, Handler: isHandler(key.Task)}
}

func itemName(index string) string {
	if n, err := strconv.Atoi(index); err == nil {
		return fmt.Sprintf("item %d", n+1)
	}
	return index
}

// resultOf is the result in an end; one that cannot be read has its verdict at least.
func resultOf(end *journal.End) report.Result {
	var result report.Result
	if err := json.Unmarshal(end.Result, &result); err != nil || result.Status == "" {
		result = report.Result{Status: report.Status(end.Status)}
	}
	return result
}

// end shows what was under way, and the table.
func (t *retelling) end(r pastRun, records []journal.Record, broken error) {
	last := records[len(records)-1]
	for _, begun := range underWay(records) {
		t.head(begun.Begin.Task)
		text := fmt.Sprintf("it began at %s, and has no end on record", localTime(begun.Time))
		seconds := 0.0
		if r.Status == journal.Running && broken == nil {
			text, seconds = "since "+localTime(begun.Time), time.Since(begun.Time).Seconds()
		}
		e := t.event(begun.Begin.Key, begun.Begin.Name, begun.Begin.Label, begun.Begin.On)
		e.Result = &report.Result{Status: report.UnderWay, Msg: text, Seconds: max(seconds, 0)}
		t.text.Event(e)
	}
	var totals []report.Total
	if last.Close == nil || json.Unmarshal(last.Close.Totals, &totals) != nil {
		totals = totalsOf(t.run, records)
	}
	t.text.Event(report.Event{Kind: report.RunEnd, Totals: totals, Elapsed: workedFor(records).Seconds()})
}

// underWay are the beginnings without an end, in their order. A host that was lost in a task may have been changed by it.
func underWay(records []journal.Record) []journal.Record {
	open := map[journal.Key]journal.Record{}
	for _, r := range records {
		switch {
		case r.Begin != nil:
			open[r.Begin.Key] = r
		case r.End != nil && r.End.Digest != "" && !(r.End.Status == string(report.Unreachable) && r.End.Effect):
			delete(open, r.End.Key)
		}
	}
	var list []journal.Record
	for _, r := range open {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b journal.Record) int { return a.N - b.N })
	return list
}

// workedFor is the time that a run took without what passed before it was resumed.
func workedFor(records []journal.Record) time.Duration {
	var sum time.Duration
	begin := records[0].Time
	for i, r := range records {
		if r.Resume != nil {
			sum += max(0, records[i-1].Time.Sub(begin))
			begin = r.Time
		}
	}
	return sum + max(0, records[len(records)-1].Time.Sub(begin))
}

// totalsOf counts what is on record, for a run that did not come to count itself.
func totalsOf(run journal.Run, records []journal.Record) []report.Total {
	worst := map[journal.Key]report.Result{} // the items of a task together
	var order []journal.Key
	last := map[journal.Key]*journal.End{}
	for _, r := range records {
		if r.End != nil {
			if _, again := last[r.End.Key]; !again {
				order = append(order, r.End.Key)
			}
			last[r.End.Key] = r.End
		}
	}
	seconds := map[string]float64{}
	var tasks []journal.Key
	for _, key := range order {
		result := resultOf(last[key])
		seconds[key.Host] += result.Seconds
		task := wholeTask(key)
		old, seen := worst[task]
		if !seen {
			tasks = append(tasks, task)
		}
		if !seen || severity(result) > severity(old) {
			worst[task] = result
		}
	}
	totals := map[string]*report.Total{}
	var out []report.Total
	for _, key := range tasks {
		t := totals[key.Host]
		if t == nil {
			t = &report.Total{Host: key.Host, Seconds: seconds[key.Host]}
			totals[key.Host] = t
		}
		switch result := worst[key]; {
		case result.Status == report.OK:
			t.OK++
		case result.Status == report.Changed:
			t.Changed++
		case result.Status == report.Skipped:
			t.Skipped++
		case result.Status == report.Unreachable:
			t.Unreachable++
		case result.Ignored:
			t.Ignored++
		case result.Status == report.Failed && !result.Rescued:
			t.Failed++
		}
	}
	for _, h := range run.Hosts {
		if t := totals[h]; t != nil {
			out = append(out, *t)
		}
	}
	return out
}

// severity orders results by how much they say of a task with several items.
func severity(r report.Result) int {
	switch {
	case r.Status == report.Unreachable:
		return 5
	case r.Status == report.Failed && !r.Ignored:
		return 4
	case r.Status == report.Changed:
		return 3
	case r.Status == report.Failed:
		return 2
	case r.Status == report.OK:
		return 1
	}
	return 0
}

// showOwed shows the page that the run ended with, and what has become since of what it owed.
func showOwed(w io.Writer, r pastRun, records []journal.Record) {
	closing := records[len(records)-1].Close
	if closing != nil && closing.Text != "" {
		fmt.Fprintln(w)
		for _, line := range report.CleanLines(closing.Text) {
			fmt.Fprintln(w, line)
		}
	}
	var lines []string
	news := closing == nil // of a run that closed, its page has told what was owed then
	for _, d := range r.debts {
		text := fmt.Sprintf("  %s  %s: owed", d.Host, d.Name)
		if d.Unsure {
			text = fmt.Sprintf("  %s  %s: perhaps owed, for a task that notifies it was under way", d.Host, d.Name)
		}
		lines = append(lines, text)
	}
	if closing != nil && !r.Imported {
		for _, o := range closing.Owed {
			if !slices.ContainsFunc(r.debts, func(d journal.Debt) bool { return d.Host == o.Host && d.Handler == o.Handler }) {
				news = true
				lines = append(lines, fmt.Sprintf("  %s  %s: settled since, by another run", o.Host, o.Name))
			}
		}
	}
	if len(lines) == 0 || !news {
		return
	}
	fmt.Fprintln(w, "\nHandlers that were notified and had not run when it ended, as of now; resume runs them, and so does the next run on that host:")
	for _, line := range lines {
		fmt.Fprintln(w, report.Clean(line))
	}
}
