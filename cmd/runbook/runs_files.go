package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"runbook/engine/journal"
)

func newRunsPrune() *cobra.Command {
	var stateDir, older string
	var dry bool
	cmd := &cobra.Command{
		Use:   "prune --older-than AGE",
		Short: "Forget the runs that ended long ago",
		Long: `Remove the records of runs that ended longer ago than AGE, such as 90d, 12w or 36h. Kept, however old, is what is running, what owes a
handler to a host, what is damaged, and what settled the debt of a run that is still there.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			age, err := parseAge(older)
			if err != nil {
				return err
			}
			now := time.Now()
			var gone []string
			if dry {
				gone, err = prunable(stateDir, age, now)
			} else {
				gone, err = journal.Prune(stateDir, age, now)
			}
			for _, id := range gone {
				fmt.Fprintln(cmd.OutOrStdout(), id)
			}
			what := "removed"
			if dry {
				what = "would be removed"
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", count(len(gone), "run"), what)
			if err != nil {
				return damaged(cmd.ErrOrStderr(), err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&older, "older-than", "", "`AGE` that a run must have, such as 90d")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say which runs would be removed")
	must(cmd.RegisterFlagCompletionFunc("older-than", cobra.FixedCompletions([]string{"30d", "90d", "365d"}, cobra.ShellCompDirectiveNoFileComp)))
	addStateDir(cmd, &stateDir)
	return cmd
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// parseAge reads an age in days or weeks, or as Go writes durations.
func parseAge(text string) (time.Duration, error) {
	if text == "" {
		return 0, errors.New("cannot prune without an age\n    hint: --older-than 90d")
	}
	const longest = time.Duration(math.MaxInt64) // 292 years: no run is older
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if digits, ok := strings.CutSuffix(text, unit); ok {
			if n, err := strconv.ParseUint(digits, 10, 64); err == nil {
				return length * time.Duration(min(n, uint64(longest/length))), nil
			}
		}
	}
	age, err := time.ParseDuration(text)
	if err != nil || age < 0 {
		return 0, fmt.Errorf("cannot tell how old %q is\n    hint: write an age as 90d, 12w or 36h", text)
	}
	return age, nil
}

// prunable is what journal.Prune would remove, by its rules.
func prunable(stateDir string, olderThan time.Duration, now time.Time) ([]string, error) {
	all, err := journal.List(stateDir)
	if err != nil {
		return nil, err
	}
	debts, err := journal.Debts(stateDir, nil)
	errs := []error{err}
	keep, there := map[string]bool{}, map[string]bool{}
	for _, d := range debts {
		keep[d.Run] = true
	}
	pays := map[string][]string{} // the runs for which a run has paid
	var old []journal.Info
	for _, info := range all {
		there[info.ID] = there[info.ID] || !info.Imported
		if keep[info.ID] || info.Ended.IsZero() || now.Sub(info.Ended) <= olderThan {
			continue
		}
		_, err := journal.Each(stateDir, info.ID, func(r journal.Record) error {
			for _, s := range r.Settlements() {
				if s.Run != info.ID {
					pays[info.ID] = append(pays[info.ID], s.Run)
				}
			}
			return nil
		})
		if err == nil { // of damage, Debts has told
			old = append(old, info)
		}
	}
	var gone []string
	for again := true; again; {
		again = false
		old = slices.DeleteFunc(old, func(info journal.Info) bool {
			if !info.Imported && slices.ContainsFunc(pays[info.ID], func(run string) bool { return there[run] }) {
				return false
			}
			gone, again = append(gone, info.ID), true
			if !info.Imported {
				delete(there, info.ID)
			}
			return true
		})
	}
	slices.Sort(gone)
	return gone, errors.Join(errs...)
}

func newRunsExport() *cobra.Command {
	var stateDir, out string
	cmd := &cobra.Command{
		Use:   "export RUN",
		Short: "Write the record of a run as one file",
		Long: `Write the record of a run as one file, which "runbook runs import" takes up on another machine. Damage on the way is seen there, and so
is a file that was cut short; but its sums have no key, so whoever changes it on purpose can make them fit. No secret is in it, but the names
of hosts, users, files and settings are. A RUN that is under way is written as far as it has come.`,
		Args: func(cmd *cobra.Command, args []string) error { return runsNamed(cmd, args, 1) },
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := findRun(stateDir, args[0])
			if err != nil {
				return err
			}
			if out == "" {
				if terminalFile(cmd.OutOrStdout()) != nil {
					return errors.New("cannot export to a terminal\n    hint: name a file with -o FILE")
				}
				err = journal.Export(stateDir, info.ID, cmd.OutOrStdout())
			} else {
				err = newFile(out, func(w io.Writer) error { return journal.Export(stateDir, info.ID, w) })
			}
			if err != nil {
				return damaged(cmd.ErrOrStderr(), whatToDo(stateDir, info.ID, err))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "new `FILE` to write instead of standard output")
	addStateDir(cmd, &stateDir)
	cmd.ValidArgsFunction = completeRuns(&stateDir, 1)
	return cmd
}

// runsNamed is cobra's argument check of verbs that need so many runs.
func runsNamed(cmd *cobra.Command, args []string, n int) error {
	if len(args) != n {
		return fmt.Errorf("cannot %s %s: it takes %d\n    hint: %s lists those there are", cmd.Name(), count(len(args), "run"), n, commandLine(stateDirOf(cmd), "runs"))
	}
	return nil
}

// newFile makes a file that only its owner can read, whole or not at all, and never in the place of another.
func newFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, unwrapPath(err))
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, unwrapPath(err))
	}
	var link *os.LinkError
	if err := os.Link(f.Name(), path); errors.As(err, &link) { // unlike a rename it takes nobody's place
		return fmt.Errorf("cannot write %s: %w", path, link.Err)
	} else if err != nil {
		return err
	}
	return nil
}

func newRunsImport() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take up the record of a run of another machine, to read it here",
		Long: `Take up a file that "runbook runs export" wrote (- is standard input). The run is listed, shown and compared like those of this machine.
It cannot be resumed here, and what it owes is owed where it ran. A file that is damaged or cut short is refused, with exit code 1.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("cannot tell what to import\n    hint: name one file, or - for standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("cannot import %s: %w", args[0], unwrapPath(err))
				}
				defer f.Close()
				in = f
			}
			id, err := journal.Import(stateDir, in)
			if errors.Is(err, fs.ErrExist) {
				return err
			} else if err != nil {
				return damaged(cmd.ErrOrStderr(), err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), id)
			return nil
		},
	}
	addStateDir(cmd, &stateDir)
	return cmd
}
