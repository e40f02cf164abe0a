package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"runbook/engine"
	"runbook/engine/journal"
)

// program describes what a job runs, and adds what earlier runs owe to its hosts: handlers of its own books, and books that it was not asked to run
// and of which it runs nothing else. past is the run that is resumed, nil for a new one. debts is why it is not known what is owed.
func (f *jobFlags) program(job *engine.Job, past *resumed) (books []journal.Book, hosts []string, debts, err error) {
	if books, hosts, err = engine.Program(*job); err != nil {
		return nil, nil, nil, nothingTouched(err)
	}
	if job.Debts, debts = journal.Debts(f.stateDir, hosts); debts != nil && !job.Check {
		return nil, nil, debts, nil
	}
	was := map[int]digests{}
	more := f.owedBooks(job.Debts, books, was)
	if past != nil {
		// A resumed run has those that it had: what has come to be owed since, the next one sees to.
		more = nil
		for _, b := range lastBooks(past.records) {
			if b.Owed {
				more = append(more, b)
			}
		}
	}
	asked := len(job.Books)
	for _, b := range more {
		src, err := owedSource(job, b)
		if err == nil {
			job.Books = append(job.Books, src)
			continue
		}
		for i, d := range job.Debts {
			if d.Book == b.Key() && d.Why == "" {
				job.Debts[i].Why = firstLine(err.Error())
			}
		}
	}
	if len(job.Books) == asked {
		return books, hosts, debts, nil
	}
	if books, hosts, err = engine.Program(*job); err != nil {
		return nil, nil, nil, nothingTouched(err)
	}
	for i, b := range books {
		if at := slices.IndexFunc(more, func(m journal.Book) bool { return m.Key() == b.Key() }); b.Owed && at >= 0 {
			books[i].Settings = more[at].Settings
			for n, digest := range was {
				d := &job.Debts[n]
				same := func(t journal.Task) bool { return t.Play == d.Play && t.Name == d.Name && t.Digest == digest.task }
				if d.Book == b.Key() && (b.Vars != digest.vars || !slices.ContainsFunc(b.Tasks, same)) {
					d.Why = "it was edited since"
				}
			}
		}
	}
	return books, hosts, debts, nil
}

// digests are those of a handler and of the variables of its book.
type digests struct{ task, vars string }

// owedBooks are the books, but for those that a run has itself, of which earlier runs owe handlers to its hosts, with the arguments of -e that they
// had in the last of these runs. Debts of which the book cannot be had say why; was gets the digests that the handlers of others had.
func (f *jobFlags) owedBooks(debts []journal.Debt, own []journal.Book, was map[int]digests) (owed []journal.Book) {
	records := map[string][]journal.Record{}
	for i := len(debts) - 1; i >= 0; i-- {
		d := &debts[i]
		is := func(b journal.Book) bool { return b.Key() == d.Book }
		if slices.ContainsFunc(own, is) {
			continue
		}
		recs := records[d.Run]
		if recs == nil {
			var err error
			if recs, _, err = journal.Read(f.stateDir, d.Run); err != nil || recs[0].Run == nil {
				d.Why = fmt.Sprintf("the record of that run cannot be read: %s", firstLine(fmt.Sprint(err)))
				continue
			}
			records[d.Run] = recs
		}
		run, books := *recs[0].Run, lastBooks(recs)
		at := slices.IndexFunc(books, is)
		if at < 0 {
			d.Why = "its runbook is not on record"
			continue
		}
		b := books[at]
		handler := slices.IndexFunc(b.Tasks, func(t journal.Task) bool { return t.ID == d.Handler })
		if handler < 0 {
			d.Why = "it is not on record what it does"
			continue
		}
		was[i] = digests{b.Tasks[handler].Digest, b.Vars}
		if slices.ContainsFunc(owed, is) {
			continue
		}
		if !b.Owed {
			var lost []string
			if b.Settings, lost = settingsOf(run, recs); len(lost) > 0 {
				d.Why = cannotReadAgain(lost)
				continue
			}
			b.Settings = within(run.Dir, b.Settings)
		}
		owed = append(owed, b)
	}
	slices.Reverse(owed)
	return owed
}

// owedSource is a book of which a job is to run what is owed, if it can.
func owedSource(job *engine.Job, b journal.Book) (engine.Source, error) {
	name := b.File
	if name == "" {
		name = strings.TrimSuffix(b.Path, ".yml")
	}
	src, err := findBook(name, "")
	if err != nil {
		return src, err
	}
	if err := trusted(b.File); err != nil {
		return src, err
	}
	src.Owed = true
	if src.Settings, err = readSettings(b.Settings, declaredBy([]engine.Source{src}, nil)); err != nil {
		return src, err
	}
	alone := *job
	alone.Books, alone.Settings, alone.Tags, alone.SkipTags = []engine.Source{src}, nil, nil, nil
	_, _, err = engine.Program(alone)
	return src, err
}

// trusted refuses a book that others than its user may have written: it was not named in the call, so nobody has looked at it today.
func trusted(file string) error {
	if file == "" {
		return nil // a shipped one
	}
	for _, path := range []string{file, filepath.Dir(file)} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		owner, mode := info.Sys().(*syscall.Stat_t), info.Mode().Perm()
		if mode&0o002 != 0 || mode&0o020 != 0 && int(owner.Gid) != os.Getegid() || owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
			return fmt.Errorf("others may have written %s", path)
		}
	}
	return nil
}
