package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"runbook/engine/journal"
	"runbook/engine/report"
)

func newRunsDiff() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use:   "diff RUN RUN",
		Short: "Compare two runs",
		Long: `Compare two runs, A and B: how they were called, their version, runbooks and hosts, and then each task on each host that both have: its
verdict, its changes, and its time where one took at least twice as long as the other and a second more. Tasks that only one has are listed;
the other may have skipped them, or not have come to them.

The exit code is 0 if they differ in nothing but times, and 2 otherwise.`,
		Args: func(cmd *cobra.Command, args []string) error { return runsNamed(cmd, args, 2) },
		RunE: func(cmd *cobra.Command, args []string) error {
			var sides [2]*side
			var broken error
			for i, id := range args {
				info, err := findRun(stateDir, id)
				if err != nil {
					return err
				}
				records, cut, err := readable(stateDir, info.ID)
				if err != nil {
					return damaged(cmd.ErrOrStderr(), err)
				}
				broken = cmp.Or(broken, cut)
				sides[i] = newSide(pastRun{Info: info, stateDir: stateDir}, records)
			}
			differ := diffRuns(cmd.OutOrStdout(), sides[0], sides[1])
			switch {
			case broken != nil:
				return damaged(cmd.ErrOrStderr(), fmt.Errorf("%w\nwhat is behind that was not compared", broken))
			case differ:
				return &exitError{exitDrift}
			}
			return nil
		},
	}
	addStateDir(cmd, &stateDir)
	cmd.ValidArgsFunction = completeRuns(&stateDir, 2)
	return cmd
}

// side is one of two runs that are compared.
type side struct {
	past   pastRun
	run    journal.Run
	ends   map[journal.Key]*journal.End // the last of each
	order  []journal.Key
	open   map[journal.Key]string // under way, with its name
	labels map[journal.Key]string // of items
	looped map[journal.Key]bool
}

func newSide(past pastRun, records []journal.Record) *side {
	s := &side{past: past, run: *records[0].Run, ends: map[journal.Key]*journal.End{}, open: map[journal.Key]string{}, labels: map[journal.Key]string{}}
	s.looped = playsOf(s.run, records).looped
	for _, r := range records {
		if r.End != nil {
			if s.ends[r.End.Key] == nil {
				s.order = append(s.order, r.End.Key)
			}
			s.ends[r.End.Key] = r.End
			s.labels[r.End.Key] = r.End.Label
		}
	}
	for _, r := range underWay(records) {
		s.open[r.Begin.Key] = r.Begin.Name
		s.labels[r.Begin.Key] = r.Begin.Label
		if s.ends[r.Begin.Key] == nil {
			s.order = append(s.order, r.Begin.Key)
		}
	}
	return s
}

func (s *side) has(key journal.Key) bool { return s.ends[key] != nil || s.open[key] != "" }

// verdict is how a task came out, in words; changes apart.
func (s *side) verdict(key journal.Key) string {
	if s.open[key] != "" {
		return string(report.UnderWay)
	}
	result := resultOf(s.ends[key])
	switch {
	case result.Ignored:
		return "failed, ignored"
	case result.Rescued:
		return "failed, rescued"
	}
	return string(result.Status)
}

func (s *side) result(key journal.Key) report.Result {
	if end := s.ends[key]; end != nil && s.open[key] == "" {
		return resultOf(end)
	}
	return report.Result{}
}

// name is a task with its item, as reports have it.
func (s *side) name(key journal.Key) string {
	name := s.open[key]
	if end := s.ends[key]; end != nil {
		name = end.Name
	}
	if isHandler(key.Task) {
		name += " (handler)"
	}
	if label := s.labels[key]; label != "" {
		name += " [" + label + "]"
	} else if s.looped[wholeTask(key)] {
		name += " [" + itemName(key.Item) + "]"
	}
	if key.Nth > 1 {
		name += fmt.Sprintf(" (the %d. time)", key.Nth)
	}
	return name
}

// What counts as a time that differs: less is what hosts and networks do from one day to the next.
const (
	leastRatio = 2.0
	leastMore  = time.Second
)

// diffRuns tells how b differs from a, and whether it does in more than times.
func diffRuns(w io.Writer, a, b *side) (differ bool) {
	for i, s := range []*side{a, b} {
		fmt.Fprintf(w, "%c  %s  %s, started %s by %s on %s\n", 'A'+i, s.past.ID, statusSentence(s.past, nil), localTime(s.past.Started),
			report.Clean(s.run.User), report.Clean(s.run.Controller))
	}
	var sections []section
	add := func(title string, lines []string) {
		if len(lines) > 0 {
			sections = append(sections, section{title, lines})
		}
	}
	add("how they ended", others(a.past.status(), b.past.status()))
	add("how they were called", others(callOf(a.run), callOf(b.run)))
	add("version", others(a.run.Version, b.run.Version))
	books, same := diffBooks(a.run.Books, b.run.Books)
	add("runbooks", books)
	add("hosts", diffLists(a.run.Hosts, b.run.Hosts))
	verdicts, times, texts := diffTasks(a, b, same)
	add("tasks", verdicts)
	if texts {
		add("to see the texts", []string{commandLine(a.past.stateDir, "runs", "show", "--diff", a.past.ID), commandLine(b.past.stateDir, "runs", "show", "--diff", b.past.ID)})
	}
	differ = len(sections) > 0
	add("times", times)
	for _, s := range sections {
		fmt.Fprintf(w, "\n%s\n", s.title)
		for _, line := range s.lines {
			fmt.Fprintln(w, "  "+report.Clean(line))
		}
	}
	if len(sections) == 0 {
		fmt.Fprintln(w, "\nno difference")
	}
	return differ
}

type section struct {
	title string
	lines []string
}

func callOf(run journal.Run) string {
	return shellLine(append([]string{"runbook"}, run.Args...)) + "  in " + run.Dir
}

// others are two texts that differ, or nothing.
func others(a, b string) []string {
	if a == b {
		return nil
	}
	return []string{"A  " + a, "B  " + b}
}

func diffLists(a, b []string) []string {
	var lines []string
	for _, one := range a {
		if !slices.Contains(b, one) {
			lines = append(lines, "only in A: "+one)
		}
	}
	for _, one := range b {
		if !slices.Contains(a, one) {
			lines = append(lines, "only in B: "+one)
		}
	}
	return lines
}

// diffBooks compares the books of two runs, and pairs their tasks: same has the id in b of each task of a that b has too.
func diffBooks(a, b []journal.Book) (lines []string, same map[string]string) {
	same = map[string]string{}
	taken := make([]bool, len(b))
	for _, old := range a {
		at := -1
		for i, now := range b {
			if !taken[i] && now.Path == old.Path {
				at = i
				break
			}
		}
		if at < 0 {
			lines = append(lines, "only in A: "+old.Path)
			continue
		}
		taken[at] = true
		for _, pair := range align(old.Tasks, b[at].Tasks) {
			switch {
			case pair.old == nil:
				lines = append(lines, fmt.Sprintf("%s: task %q is only in B", old.Path, pair.now.Name))
			case pair.now == nil:
				lines = append(lines, fmt.Sprintf("%s: task %q is only in A", old.Path, pair.old.Name))
			default:
				same[pair.old.ID] = pair.now.ID
				if pair.old.Digest != pair.now.Digest {
					lines = append(lines, fmt.Sprintf("%s: task %q is not what it was", old.Path, pair.now.Name))
				}
			}
		}
	}
	for i, now := range b {
		if !taken[i] {
			lines = append(lines, "only in B: "+now.Path)
		}
	}
	return lines, same
}

// diffTasks compares what both runs did. Of a book, a task or a host that only one has it has been told.
func diffTasks(a, b *side, same map[string]string) (lines, times []string, texts bool) {
	met := map[journal.Key]bool{}
	inB := map[string]bool{} // tasks of b that a has
	for _, id := range same {
		inB[id] = true
	}
	for _, key := range a.order {
		id, shared := same[key.Task]
		if !shared || !slices.Contains(b.run.Hosts, key.Host) {
			continue
		}
		other := key
		other.Task = id
		met[other] = true
		where := key.Host + "  " + a.name(key) + ": "
		if !b.has(other) {
			lines = append(lines, where+outcomeText(a, key)+" in A; not in B")
			continue
		}
		was, is := a.result(key), b.result(other)
		if a.verdict(key) != b.verdict(other) {
			lines = append(lines, where+outcomeText(a, key)+" → "+outcomeText(b, other))
		} else if x, y := report.Summary(was.Changes), report.Summary(is.Changes); x != y || !slices.Equal(was.Changes, is.Changes) {
			what := x + " → " + y
			if x == y {
				what, texts = x+", with other texts", true
			}
			lines = append(lines, where+a.verdict(key)+": "+what)
		} else if firstLine(was.Msg) != firstLine(is.Msg) && was.Status == report.Failed {
			lines = append(lines, where+a.verdict(key)+": "+firstLine(was.Msg)+" → "+firstLine(is.Msg))
		}
		if text := timesText(was.Seconds, is.Seconds); text != "" {
			times = append(times, where+text)
		}
	}
	for _, key := range b.order {
		if !met[key] && inB[key.Task] && slices.Contains(a.run.Hosts, key.Host) {
			lines = append(lines, key.Host+"  "+b.name(key)+": not in A; "+outcomeText(b, key)+" in B")
		}
	}
	return lines, times, texts
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// outcomeText is a verdict with what it is about.
func outcomeText(s *side, key journal.Key) string {
	result := s.result(key)
	more := ""
	switch result.Status {
	case report.Changed:
		more = report.Summary(result.Changes)
	case report.Failed, report.Unreachable:
		more = firstLine(result.Msg)
	}
	return s.verdict(key) + inBrackets(more)
}

func inBrackets(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

// timesText tells two times that differ by more than chance.
func timesText(was, is float64) string {
	less, more := min(was, is), max(was, is)
	if more-less < leastMore.Seconds() || more < leastRatio*less {
		return ""
	}
	text := fmt.Sprintf("%s → %s", seconds(was), seconds(is))
	if less >= 0.1 {
		text += fmt.Sprintf(", %.3g times", is/was)
	}
	return text
}

func seconds(s float64) string { return report.Duration(time.Duration(s * float64(time.Second))) }
