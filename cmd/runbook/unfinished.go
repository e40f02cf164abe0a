package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"runbook/engine/journal"
	"runbook/engine/report"
)

// unfinished is an earlier run that is not through on some hosts.
type unfinished struct {
	journal.Info
	hosts []string
}

// warnUnfinished says at the start of a new run which earlier ones of its books are not through on its hosts and could be resumed: a new one begins
// anew, and asks nobody about what was under way in those.
func warnUnfinished(stderr io.Writer, stateDir string, books []journal.Book, hosts []string) {
	all, err := journal.List(stateDir)
	if err != nil {
		fmt.Fprintf(stderr, "warning: it cannot be told which earlier runs are not through: %v\n", err)
		return
	}
	const most = 3
	left := unfinishedOf(all, books, hosts)
	for _, run := range left[:min(len(left), most)] {
		tellUnfinished(stderr, stateDir, run)
	}
	if more := len(left) - most; more > 0 {
		fmt.Fprintf(stderr, "warning: and so could %s: see %s\n", count(more, "earlier run"), commandLine(stateDir, "runs"))
	}
}

// unfinishedOf are the runs, the newest first, that are not through with one of the books on one of the hosts, nor has a later run of that book been
// there.
func unfinishedOf(all []journal.Info, books []journal.Book, hosts []string) (left []unfinished) {
	type place struct{ book, host string }
	through := map[place]bool{}
	for _, info := range all {
		if info.Imported || info.Status != journal.Done && !info.Resumable {
			continue
		}
		var open []string
		for _, b := range info.Run.Books {
			if b.Owed || !slices.ContainsFunc(books, func(own journal.Book) bool { return !own.Owed && own.Key() == b.Key() }) {
				continue
			}
			for _, host := range info.Run.Hosts {
				switch at := (place{b.Key(), host}); {
				case info.Status == journal.Done:
					through[at] = true
				case slices.Contains(hosts, host) && !through[at] && !slices.Contains(open, host):
					open = append(open, host)
				}
			}
		}
		if len(open) > 0 {
			left = append(left, unfinished{info, open})
		}
	}
	return left
}

// tellUnfinished warns of a run, and names what has begun on its hosts and has no end on record.
func tellUnfinished(stderr io.Writer, stateDir string, run unfinished) {
	records, _, err := journal.Read(stateDir, run.ID)
	_, lost := settingsOf(run.Run, records)
	var where, begun byText
	for _, host := range run.hosts {
		where.add(host, fmt.Sprintf("it is not through: %s, started %s", run.Status, localTime(run.Began())))
	}
	for _, r := range underWay(records) {
		if slices.Contains(run.hosts, r.Begin.Host) {
			begun.add(r.Begin.Host, fmt.Sprintf("%q was under way, and its end is not on record: look whether it was done", r.Begin.Name))
		}
	}
	lines := append(where.lines(), begun.lines()...)
	if err != nil {
		lines = append(lines, err.Error())
	}
	fmt.Fprintf(stderr, "warning: an earlier run, %s of %s, could be resumed, and this one begins anew. To go on with that one instead: %s\n",
		run.ID, report.Clean(strings.Join(booksOf(run.Run), ", ")), goOn(stateDir, run.ID, lost))
	for _, line := range lines {
		fmt.Fprintln(stderr, "  "+report.Clean(line))
	}
}
