package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"runbook/engine/journal"
	"runbook/engine/report"
	"runbook/engine/transport"
)

// commandLine is a command of this program that may be typed in any directory and another shell: it names the state directory if
// that is not the one which everybody has without saying so.
func commandLine(stateDir string, words ...string) string {
	words = append([]string{"runbook"}, words...)
	home, _ := os.UserHomeDir()
	usual := filepath.Join(home, ".local", "state", "runbook")
	here, _ := journal.Where("")
	if dir, err := journal.Where(stateDir); err == nil && (dir != usual || here != usual) {
		words = append(words, "--state-dir", dir)
	}
	return shellLine(words)
}

// goOn is the command that resumes a run with answers, to which values are to be given again.
func goOn(stateDir, id string, lost []string, answers ...string) string {
	return commandLine(stateDir, append([]string{"resume", id}, answers...)...) + strings.Repeat(" -e @FILE", len(lost))
}

// whatToDo adds to what is wrong with a record how to look at it nevertheless.
func whatToDo(stateDir, id string, err error) error {
	var corrupt *journal.CorruptError
	var format *journal.FormatError
	switch {
	case errors.As(err, &corrupt) && corrupt.N > 1:
		return fmt.Errorf("%w\n    hint: %s shows what can be read", err, commandLine(stateDir, "runs", "show", id))
	case errors.As(err, &format):
		return fmt.Errorf("%w\n    hint: use that version, or a later one", err)
	}
	return err
}

// takeUp puts on record who takes a run up again, what was decided, and what of its last line was lost.
func takeUp(w *journal.Writer, r journal.Resume) error {
	r.Version, r.PID = thisVersion(), os.Getpid()
	r.User, r.Controller = transport.Operator()
	err := w.Commit(journal.Record{Kind: journal.KindResume, Resume: &r})
	if w.Torn > 0 && err == nil {
		note := &journal.Note{Text: fmt.Sprintf("%d bytes of a last line that had not been written to its end were cut off", w.Torn)}
		err = w.Append(journal.Record{Kind: journal.KindNote, Note: note})
	}
	return err
}

// unknownDebts says what to do about a record that does not tell what it owes.
func unknownDebts(stateDir string, err error) error {
	var corrupt *journal.CorruptError
	var format *journal.FormatError
	var unreadable *journal.UnreadableError
	hint := ""
	switch {
	case errors.As(err, &corrupt):
		id := strings.TrimSuffix(filepath.Base(corrupt.Path), ".jsonl")
		hint = fmt.Sprintf("see what it did with %s, then move the file away", commandLine(stateDir, "runs", "show", id))
	case errors.As(err, &format):
		hint = "use that version, or a later one, which can tell; or move the file away, and what it owes is forgotten here"
	case errors.As(err, &unreadable):
		hint = "see to it that the file can be read; or move it away, and what it owes is forgotten"
	default:
		return err
	}
	return fmt.Errorf("cannot tell what earlier runs still owe to the hosts: %w\n    hint: %s; no host was touched", err, hint)
}

// readOnce are those arguments of -e, of a program that was started in dir, that cannot be read again: they name files that are gone, pipes, or
// what has another meaning in each process.
func readOnce(dir string, settings []string) []string {
	var once []string
	for _, s := range settings {
		file, ok := strings.CutPrefix(s, "@")
		if !ok {
			continue
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		file = filepath.Clean(file)
		info, err := os.Stat(file)
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(file, "/dev/") || strings.HasPrefix(file, "/proc/") {
			once = append(once, s)
		}
	}
	return once
}

// settingsAgain are the arguments of -e with which a run goes on: those of its start, of each resume on record, and those given now, of which
// the later ones win. Files that cannot be read again are left out. lost are those in whose place no file was given later.
func settingsAgain(run journal.Run, records []journal.Record, called, given []string) (settings, lost []string) {
	again := func(args, gone []string) {
		if slices.ContainsFunc(args, func(s string) bool { return strings.HasPrefix(s, "@") }) {
			lost = gone
		}
		for _, s := range args {
			if !slices.Contains(gone, s) {
				settings = append(settings, s)
			}
		}
	}
	again(called, readOnce(run.Dir, called))
	for _, r := range records {
		if r.Resume != nil {
			again(r.Resume.Settings, readOnce(run.Dir, r.Resume.Settings))
		}
	}
	again(given, nil)
	return settings, lost
}

// settingsOf are those with which whoever goes on with a run has to begin, and those that he has to give again.
func settingsOf(run journal.Run, records []journal.Record) (settings, lost []string) {
	if len(run.Args) == 0 {
		return nil, nil
	}
	verb, flags := runVerb()
	if err := verb.ParseFlags(run.Args[1:]); err != nil {
		return nil, nil
	}
	return settingsAgain(run, records, flags.settings, nil)
}

// within are arguments of -e of a program that was started in dir, as they are from anywhere.
func within(dir string, settings []string) []string {
	settings = slices.Clone(settings)
	for i, s := range settings {
		if file, ok := strings.CutPrefix(s, "@"); ok && !filepath.IsAbs(file) {
			settings[i] = "@" + filepath.Join(dir, file)
		}
	}
	return settings
}

// cannotReadAgain says what is lost.
func cannotReadAgain(lost []string) string {
	return report.Clean(fmt.Sprintf("-e %s cannot be read again", strings.Join(lost, ", -e ")))
}
