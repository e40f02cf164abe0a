package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"runbook/engine"
	"runbook/engine/journal"
	"runbook/engine/report"
)

// resumed is a run that goes on.
type resumed struct {
	writer          *journal.Writer
	records         []journal.Record
	run             journal.Run
	rerun, markDone []string
	given           []string // values of -e
	acceptChanges   bool
	edited          []journal.Book    // the books as they are now, where they are not what they were
	tasks           map[string]string // and today's id of each of their tasks that was there before
	others          []string          // the hosts as they are now, where they are others
	own, gone       []journal.Owed    // what the earlier parts of the run owe, and what of it the books have not any more
}

func newResume() *cobra.Command {
	past := &resumed{}
	var stateDir, output string
	var verbose int
	var diff, ask bool
	cmd := &cobra.Command{
		Use:   "resume [RUN]",
		Short: "Go on with a run that was ended before it was through",
		Long: `Go on with a run: the one named, or the last that can be resumed. It is given the same arguments in the same directory as before.

What is on record as done is not done again: its results are those on record, and handlers that were notified are still owed. What was under
way is looked at: where it cannot be told whether it was done, as with a bare command, the resumed run stops and asks you to look, and
to say --rerun HOST/TASK or --mark-done HOST/TASK; TASK alone is that task on all hosts. On a host that has started anew meanwhile, what lives in
its memory is checked again.

A runbook that was edited meanwhile is compared task by task. --accept-changes goes on with the edited one: tasks that are new or differ are
done, the others are taken from the record.

-e gives values that win over those of the same names from before. They are on record, for a further resume. A file of -e that cannot be
read again, such as a shell's <(...), must be given anew.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			if stateDir != "" { // it is about to go to the directory of the run
				dir, err := filepath.Abs(stateDir)
				if err != nil {
					return err
				}
				stateDir = dir
			}
			dir, err := os.Getwd()
			if err != nil {
				return fmt.Errorf("cannot tell which files of -e are meant: %w", err)
			}
			past.given = within(dir, past.given)
			return past.do(cmd, stateDir, id, func(f *jobFlags) {
				f.stateDir = stateDir
				f.verbose = max(f.verbose, verbose)
				f.diff = f.diff || diff
				f.askBecome = f.askBecome || ask
				f.output = cmp.Or(output, f.output)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&past.rerun, "rerun", nil, "do this task, which was under way, once more: `HOST/TASK`, or TASK for all hosts; repeatable")
	flags.StringArrayVar(&past.markDone, "mark-done", nil, "take this task, which was under way, for done: `HOST/TASK`, or TASK for all hosts; repeatable")
	flags.BoolVar(&past.acceptChanges, "accept-changes", false, "go on although runbooks or arguments are not what they were")
	addSettings(cmd, &past.given)
	flags.CountVarP(&verbose, "verbose", "v", "show tasks that were ok or skipped too, and those on record; twice: diagnostics of connections")
	flags.BoolVar(&diff, "diff", false, "show differences of texts")
	flags.StringVar(&output, "output", "", "`FORM` of the report: text or json (JSON Lines)")
	flags.BoolVarP(&ask, "ask-become-pass", "K", false, "ask for the password of sudo or su")
	addStateDir(cmd, &stateDir)
	cmd.ValidArgsFunction = completeRun(&stateDir)
	return cmd
}

func (r *resumed) do(cmd *cobra.Command, stateDir, id string, adjust func(*jobFlags)) error {
	named := id != ""
	info, err := whichRun(stateDir, id)
	if err != nil {
		return err
	}
	id = info.ID
	if r.writer, r.records, err = journal.Open(stateDir, id); err != nil {
		return whatToDo(stateDir, id, err)
	}
	closing := r.writer
	defer func() { _ = closing.Close() }()
	if len(r.records) == 0 || r.records[0].Run == nil {
		return fmt.Errorf("cannot resume %s: its record has no beginning", id)
	}
	r.run = *r.records[0].Run
	if err := over(r.records); err != nil {
		return fmt.Errorf("cannot resume %s: %w", id, err)
	}
	if !named {
		fmt.Fprintf(cmd.ErrOrStderr(), "resuming run %s of %s, started %s, %s\n", id, report.Clean(strings.Join(booksOf(r.run), ", ")), localTime(info.Started), info.Status)
	}
	if err := os.Chdir(r.run.Dir); err != nil {
		return fmt.Errorf("cannot go to the directory that the run was started in: %w", err)
	}
	verb, flags := runVerb()
	if len(r.run.Args) == 0 {
		return fmt.Errorf("cannot resume %s: its record does not say how it was called", id)
	}
	if err := verb.ParseFlags(r.run.Args[1:]); err != nil {
		return fmt.Errorf("cannot resume %s: %w", id, err)
	}
	var lost []string
	if flags.settings, lost = settingsAgain(r.run, r.records, flags.settings, r.given); len(lost) > 0 {
		return fmt.Errorf("cannot resume %s as it was called: %s\n    hint: give those values anew: %s; no host was touched", id, cannotReadAgain(lost), goOn(stateDir, id, lost))
	}
	adjust(flags)
	verb.SetOut(cmd.OutOrStdout())
	verb.SetErr(cmd.ErrOrStderr())
	return flags.do(verb, verb.Flags().Args(), false, r)
}

// whichRun is the run that is meant: the id, or one that begins with it, or the last that can be resumed.
func whichRun(stateDir, id string) (journal.Info, error) {
	runs, err := journal.List(stateDir)
	if err != nil {
		return journal.Info{}, err
	}
	info, err := pickRun(stateDir, runs, id, func(r journal.Info) bool { return r.Resumable })
	if id != "" {
		return info, err
	}
	// No run fits, or which one is to be resumed depends on what came later.
	var why []string
	for _, r := range runs {
		if err == nil && r.ID == info.ID {
			break
		}
		switch {
		case r.Imported:
		case r.Writer != nil:
			why = append(why, r.Writer.Error())
		case r.Status == journal.Corrupt:
			why = append(why, "the record of "+r.ID+" is "+unbelieved(r.Err))
		case r.Status == journal.Done && err == nil:
			// What an old run had still to do may by now be the wrong thing to do.
			why = append(why, "since then "+r.ID+" went through")
		}
	}
	switch {
	case err == nil && len(why) > 0:
		return info, fmt.Errorf("cannot tell that %s is meant: %s\n    hint: %s, if it is", info.ID, why[0], commandLine(stateDir, "resume", info.ID))
	case err != nil && len(why) > 0:
		return info, errors.New("there is no run that could be resumed: " + strings.Join(why, "\n    and "))
	case err != nil:
		return info, fmt.Errorf("there is no run that could be resumed\n    hint: %s lists those on record", commandLine(stateDir, "runs"))
	}
	return info, nil
}

// fit compares the books and hosts with those of the record, and makes the record speak of today's tasks.
func (r *resumed) fit(stateDir string, books []journal.Book, hosts []string) error {
	last, lastHosts := lastBooks(r.records), r.run.Hosts
	for _, rec := range r.records {
		if rec.Resume != nil && len(rec.Resume.Hosts) > 0 {
			lastHosts = rec.Resume.Hosts
		}
	}
	_, edits := compare(last, books, r.underWay())
	moves := append(movedHosts(lastHosts, hosts), movedPlays(last, books)...)
	if differences := append(edits, moves...); len(differences) > 0 && !r.acceptChanges {
		what := "the runbooks were edited since"
		switch {
		case len(edits) == 0:
			what = "it is for other hosts now"
		case len(moves) > 0:
			what += ", and it is for other hosts now"
		}
		return fmt.Errorf("cannot resume %s as it is: %s\n    %s\n    hint: --accept-changes goes on with all as it is now; no host was touched", r.run.ID, what, strings.Join(differences, "\n    "))
	}
	today, _ := compare(last, books, nil)
	if len(edits)+len(moves) > 0 {
		r.edited, r.tasks, r.others = books, today, hosts
	}
	// What other runs have paid is told in the terms of the last part of the run.
	paying := inTermsOf(r.records, r.run.Books, last)
	if err := journal.Paid(stateDir, r.run.ID, paying); err != nil {
		return unknownDebts(stateDir, err)
	}
	paid := map[int][]string{}
	for _, rec := range paying {
		switch {
		case rec.Begin != nil:
			paid[rec.N] = inTerms(today, rec.Begin.Paid)
		case rec.End != nil:
			paid[rec.N] = inTerms(today, rec.End.Paid)
		}
	}
	r.records = inTermsOf(r.records, r.run.Books, books)
	for _, rec := range r.records {
		switch {
		case rec.Begin != nil:
			rec.Begin.Paid = paid[rec.N]
		case rec.End != nil:
			rec.End.Paid = paid[rec.N]
		}
	}
	r.own = slices.DeleteFunc(r.own, func(o journal.Owed) bool {
		if today[o.Handler] == "" {
			r.gone = append(r.gone, o)
		}
		return today[o.Handler] == ""
	})
	for i := range r.own {
		r.own[i].Handler = today[r.own[i].Handler]
	}
	return nil
}

// inTermsOf makes records that begin with some books speak of the tasks of other ones.
func inTermsOf(records []journal.Record, first, books []journal.Book) (kept []journal.Record) {
	today, _ := compare(first, books, nil)
	for _, rec := range records {
		switch {
		case rec.Resume != nil && len(rec.Resume.Books) > 0:
			today, _ = compare(rec.Resume.Books, books, nil) // what follows speaks of these
		case rec.Begin != nil:
			begin := *rec.Begin
			if begin.Task = today[begin.Task]; begin.Task == "" {
				continue
			}
			begin.Notify = inTerms(today, begin.Notify)
			rec.Begin = &begin
		case rec.End != nil:
			end := *rec.End
			if end.Task = today[end.Task]; end.Task == "" {
				continue
			}
			end.Notified = inTerms(today, end.Notified)
			rec.End = &end
		}
		kept = append(kept, rec)
	}
	return kept
}

// lastBooks are the books of a run as the last part of it had them.
func lastBooks(records []journal.Record) []journal.Book {
	last := records[0].Run.Books
	for _, rec := range records {
		if rec.Resume != nil && len(rec.Resume.Books) > 0 {
			last = rec.Resume.Books
		}
	}
	return last
}

// inTerms renames tasks of the record, less those that are gone.
func inTerms(today map[string]string, ids []string) (now []string) {
	for _, id := range ids {
		if today[id] != "" {
			now = append(now, today[id])
		}
	}
	return now
}

// movedHosts says which hosts are gone and which are new.
func movedHosts(old, now []string) (differences []string) {
	for _, h := range old {
		if !slices.Contains(now, h) {
			differences = append(differences, "host "+h+" is gone")
		}
	}
	for _, h := range now {
		if !slices.Contains(old, h) {
			differences = append(differences, "host "+h+" is new")
		}
	}
	return differences
}

// underWay are the hosts on which a task was under way, by its id.
func (r *resumed) underWay() map[string][]string {
	open := map[string][]string{}
	for _, rec := range underWay(r.records) {
		open[rec.Begin.Task] = append(open[rec.Begin.Task], rec.Begin.Host)
	}
	return open
}

// compare finds today's task for each of the old books, and says what differs. open are the hosts on which a task was under way.
func compare(old, now []journal.Book, open map[string][]string) (today map[string]string, differences []string) {
	today = map[string]string{}
	for i, b := range old {
		if b.Owed {
			// It has no place in the call.
			i = slices.IndexFunc(now, func(n journal.Book) bool { return n.Owed && n.Key() == b.Key() })
		}
		if b.Owed && i < 0 && !slices.ContainsFunc(b.Tasks, func(t journal.Task) bool { return len(open[t.ID]) > 0 }) {
			continue // it cannot be had, or is not owed any more, and nothing of it was under way
		}
		if i < 0 || i >= len(now) || now[i].Owed != b.Owed {
			differences = append(differences, fmt.Sprintf("%s is no longer among the runbooks", b.Path))
			continue
		}
		for _, pair := range align(b.Tasks, now[i].Tasks) {
			switch {
			case pair.old == nil:
				differences = append(differences, fmt.Sprintf("%s: task %q is new", b.Path, pair.now.Name))
				continue
			case pair.now == nil:
				gone := fmt.Sprintf("%s: task %q is gone", b.Path, pair.old.Name)
				if hosts := open[pair.old.ID]; len(hosts) > 0 {
					gone += ", and was under way on " + strings.Join(hosts, ", ") + ": look there whether it was done"
				}
				differences = append(differences, gone)
				continue
			case pair.old.Name != pair.now.Name:
				differences = append(differences, fmt.Sprintf("%s: task %q is called %q now", b.Path, pair.old.Name, pair.now.Name))
			case pair.old.Digest != pair.now.Digest:
				differences = append(differences, fmt.Sprintf("%s: task %q is not what it was", b.Path, pair.now.Name))
			}
			today[pair.old.ID] = pair.now.ID
		}
	}
	return today, differences
}

// movedPlays says which plays are for other hosts now, or for others at a time. Those that are gone or new are told by their tasks.
func movedPlays(old, now []journal.Book) (differences []string) {
	for i, b := range old {
		for n, p := range b.Plays {
			if b.Owed || i >= len(now) || n >= len(now[i].Plays) || now[i].Plays[n].Name != p.Name {
				continue
			}
			is := now[i].Plays[n]
			for _, moved := range movedHosts(p.Hosts, is.Hosts) {
				differences = append(differences, fmt.Sprintf("%s: play %q: %s", b.Path, p.Name, moved))
			}
			if is.Serial != p.Serial {
				differences = append(differences, fmt.Sprintf("%s: play %q: serial is not what it was", b.Path, p.Name))
			}
		}
	}
	return differences
}

// alike is a task on record and today's, one of them nil if the other is alone.
type alike struct{ old, now *journal.Task }

// align pairs the tasks of two versions of a book: those that are the same, in order, and between them those of the same name, and then those that do
// the same.
func align(old, now []journal.Task) []alike {
	same := func(a, b journal.Task) bool { return a.Name == b.Name && a.Digest == b.Digest }
	longer := longest(len(old), len(now), func(i, j int) bool { return same(old[i], now[j]) })
	var pairs []alike
	var lost, found []*journal.Task
	between := func() {
		for _, like := range []func(o, n *journal.Task) bool{
			func(o, n *journal.Task) bool { return n.Name == o.Name },
			func(o, n *journal.Task) bool { return n.Digest == o.Digest }, // it was renamed
		} {
			lost = slices.DeleteFunc(lost, func(o *journal.Task) bool {
				at := slices.IndexFunc(found, func(n *journal.Task) bool { return like(o, n) })
				if at >= 0 {
					pairs = append(pairs, alike{o, found[at]})
					found = slices.Delete(found, at, at+1)
				}
				return at >= 0
			})
		}
		for _, o := range lost {
			pairs = append(pairs, alike{old: o})
		}
		for _, n := range found {
			pairs = append(pairs, alike{now: n})
		}
		lost, found = nil, nil
	}
	i, j := 0, 0
	for i < len(old) || j < len(now) {
		switch {
		case i < len(old) && j < len(now) && same(old[i], now[j]):
			between()
			pairs = append(pairs, alike{&old[i], &now[j]})
			i, j = i+1, j+1
		case j == len(now) || i < len(old) && longer(i, j):
			lost = append(lost, &old[i])
			i++
		default:
			found = append(found, &now[j])
			j++
		}
	}
	between()
	return pairs
}

// longest looks for the longest common sequence of two lists of m and n: longer tells of two places at which these differ whether behind them as
// much is common to both, or more, if the first list goes a step on as if the second does.
//
// A table has that for the part that is left when what is the same at the beginning and at the end is cut off, so that an edit costs what was edited
// and not the square of the book. It has a bit for each pair of places: if of 10,000 tasks 5,000 in a row differ, 3 MB, and if all do, 12 MB.
func longest(m, n int, same func(i, j int) bool) (longer func(i, j int) bool) {
	head := 0
	for head < min(m, n) && same(head, head) {
		head++
	}
	tail := 0
	for tail < min(m, n)-head && same(m-1-tail, n-1-tail) {
		tail++
	}
	rows, columns := m-head-tail, n-head-tail
	table := make([]uint64, (rows*columns+63)/64)
	// Lengths from a place in the first list and each in the second to their ends, and those from the place behind it.
	length, behind := make([]int, columns+1), make([]int, columns+1)
	for i := rows - 1; i >= 0; i-- {
		length, behind = behind, length
		for j := columns - 1; j >= 0; j-- {
			if behind[j] >= length[j+1] {
				at := i*columns + j
				table[at/64] |= 1 << (at % 64)
			}
			if same(head+i, head+j) {
				length[j] = behind[j+1] + 1
			} else {
				length[j] = max(behind[j], length[j+1])
			}
		}
	}
	return func(i, j int) bool {
		if i -= head; i >= rows || j-head >= columns {
			return rows-i >= columns-(j-head) // what is left of one list ends what is left of the other, so all of the shorter is common
		}
		at := i*columns + j - head
		return table[at/64]&(1<<(at%64)) != 0
	}
}

// unanswered lists what --rerun and --mark-done name and was not under way.
func (r *resumed) unanswered() error {
	type doing struct{ host, name, label string }
	open := map[journal.Key]doing{}
	for _, rec := range r.records {
		switch {
		case rec.Begin != nil:
			open[rec.Begin.Key] = doing{rec.Begin.Host, rec.Begin.Name, rec.Begin.Label}
		case rec.End != nil && (rec.End.Withheld || rec.End.Unseen):
			open[rec.End.Key] = doing{rec.End.Host, rec.End.Name, rec.End.Label} // it was done, and what it returned is not on record
		case rec.End != nil && rec.End.Digest != "" && rec.End.Status != string(report.Unreachable):
			delete(open, rec.End.Key)
		}
	}
	meant := func(answer string) (all []doing) {
		for _, d := range open {
			for _, item := range []string{"", d.label} {
				if engine.Answers(answer, d.host, d.name, item) {
					all = append(all, d)
				}
			}
		}
		return all
	}
	for _, answer := range append(slices.Clone(r.rerun), r.markDone...) {
		if len(meant(answer)) > 0 {
			continue
		}
		var places []string
		for _, d := range open {
			places = append(places, journal.Answer(d.host, d.name, d.label))
		}
		slices.Sort(places)
		hint := ""
		if places = slices.Compact(places); len(places) > 0 {
			hint = "\n    hint: these were: " + strings.Join(places, ", ")
		}
		return fmt.Errorf("cannot decide about %q: no task of that name was under way when the run ended%s", answer, hint)
	}
	for _, again := range r.rerun {
		for _, done := range r.markDone {
			for _, d := range meant(again) {
				if slices.Contains(meant(done), d) {
					return fmt.Errorf("cannot decide about %q: --rerun and --mark-done both name it", journal.Answer(d.host, d.name, d.label))
				}
			}
		}
	}
	return nil
}

// settings hands the engine what is on record.
func (r *resumed) settings(job *engine.Job) {
	job.Journal, job.Past, job.Own = r.writer, r.records, r.own
	job.Rerun, job.MarkDone, job.AcceptChanges = r.rerun, r.markDone, r.acceptChanges
}
