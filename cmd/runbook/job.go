package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"runbook/engine"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/inventory"
	"runbook/modules"
)

// jobFlags are the flags of the verbs that work on hosts.
type jobFlags struct {
	inventory  string
	limit      string
	settings   []string
	forks      int
	diff       bool
	verbose    int
	output     string
	tags, skip []string
	askBecome  bool
	stateDir   string
}

func (f *jobFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.inventory, "inventory", "i", "", "inventory `FILE` or directory")
	flags.StringVar(&f.limit, "limit", "", "only hosts that match `PATTERN`, such as master:!voms3")
	addSettings(cmd, &f.settings)
	flags.IntVar(&f.forks, "forks", engine.DefaultForks, "work on at most `N` hosts at once")
	flags.BoolVar(&f.diff, "diff", false, "show differences of texts")
	flags.CountVarP(&f.verbose, "verbose", "v", "show tasks that were ok or skipped too; twice: diagnostics of connections")
	flags.StringVar(&f.output, "output", "text", "`FORM` of the report: text or json (JSON Lines)")
	flags.StringSliceVar(&f.tags, "tags", nil, "only tasks with one of these `TAGS`")
	flags.StringSliceVar(&f.skip, "skip-tags", nil, "no tasks with one of these `TAGS`")
	flags.BoolVarP(&f.askBecome, "ask-become-pass", "K", false, "ask for the password of sudo or su")

	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.ValidArgsFunction = completeBook
	cmd.Args = atLeastOneBook
}

// addSettings adds the flag of verbs that take values.
func addSettings(cmd *cobra.Command, settings *[]string) {
	cmd.Flags().StringArrayVarP(settings, "set", "e", nil, "set a parameter or variable: `NAME=VALUE`, where a list is a,b or [a, b] and a map {a: 1}, or @FILE for a YAML file (the only way for secrets); repeatable")
	must(cmd.RegisterFlagCompletionFunc("set", completeSetting))
}

// must is for calls that fail only when the program is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// do runs books, or checks them. past is the run that is resumed, nil for a new one. The error is bad input, or an exitError.
func (f *jobFlags) do(cmd *cobra.Command, books []string, check bool, past *resumed) error {
	job, err := f.job(books, check)
	if err != nil {
		return err
	}
	var rec *record
	if check {
		// What earlier runs owe, a run would do.
		_, _, debts, err := f.program(&job, nil)
		if err != nil {
			return err
		}
		if debts != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: what handlers earlier runs owe, and a run would run, is not known: %v\n", debts)
		}
	} else {
		if rec, err = f.record(cmd, &job, past); err != nil {
			return err
		}
		defer rec.close()
		rec.warn(cmd.ErrOrStderr())
	}
	screen := newScreen(cmd.OutOrStdout(), cmd.ErrOrStderr(), f, job.Masker)
	defer screen.close()
	// Not by way of the screen, which whatever keeps the program from ending may hold.
	interrupts := interruptible(context.Background(), screen.stderr, func() { rec.farewell(cmd.ErrOrStderr()) })
	defer interrupts.close()
	job.Reporter, job.Stop = screen.reporter, interrupts.stop
	prompt := interrupts.asking(screen.prompt)
	dialer := &dialer{prompt: prompt, log: screen.log, masker: job.Masker}
	if f.askBecome {
		password, err := prompt(interrupts.ctx, "Password for sudo or su on the hosts: ")
		if err != nil {
			return err
		}
		job.Masker.Add(password)
		dialer.become = password
	}
	job.Dial = dialer.dial

	summary, err := engine.Run(interrupts.ctx, job)
	screen.close()
	if err != nil {
		return nothingTouched(err)
	}
	code := exitCode(summary, check)
	if rec != nil {
		rec.end(cmd.ErrOrStderr(), summary, code)
	} else if summary.Interrupted {
		fmt.Fprintln(cmd.ErrOrStderr(), "stopped by an interrupt; nothing was changed, and the same call may be given again")
	}
	if code != exitDone {
		return &exitError{code}
	}
	return nil
}

// nothingTouched ends a list of mistakes with a sentence that they were found in time.
func nothingTouched(err error) error {
	var many spec.Errors
	if !errors.As(err, &many) {
		return err
	}
	mistakes := "1 mistake"
	if len(many) > 1 {
		mistakes = fmt.Sprintf("%d mistakes", len(many))
	}
	return fmt.Errorf("%w\n%s; no host was touched", err, mistakes)
}

// job reads what the flags and arguments name, before any host is reached.
func (f *jobFlags) job(books []string, check bool) (engine.Job, error) {
	job := engine.Job{Limit: f.limit, Modules: modules.All(), Check: check, Forks: f.forks, Tags: f.tags, SkipTags: f.skip,
		Masker: &secret.Masker{}}
	if f.inventory == "" {
		return job, errors.New("cannot tell which hosts are meant without an inventory\n    hint: name it with -i FILE")
	}
	if f.forks < 1 {
		return job, fmt.Errorf("cannot work on %d hosts at once: --forks needs at least 1", f.forks)
	}
	if !slices.Contains([]string{"text", "json"}, f.output) {
		return job, fmt.Errorf("cannot report as %q: --output is text or json", f.output)
	}
	var mistakes spec.Errors
	for _, name := range books {
		src, err := findBook(name, f.stateDir)
		if err != nil {
			return job, err
		}
		job.Books = append(job.Books, src)
	}
	var others []engine.Source
	if slices.ContainsFunc(f.settings, func(s string) bool { return strings.HasPrefix(s, "@") }) {
		others = otherBooks(job.Books)
	}
	params := declaredBy(job.Books, others)
	job.Elsewhere = slices.Collect(maps.Keys(params.other))
	var err error
	if job.Settings, err = readSettings(f.settings, params); err != nil {
		mistakes = append(mistakes, asErrors(err)...)
	}
	if job.Inventory, err = inventory.Load(f.inventory); err != nil {
		mistakes = append(mistakes, asErrors(err)...)
	}
	if len(mistakes) > 0 {
		return job, nothingTouched(mistakes)
	}
	return job, nil
}

func asErrors(err error) spec.Errors {
	var many spec.Errors
	if errors.As(err, &many) {
		return many
	}
	return spec.Errors{{Msg: err.Error()}}
}

// newVerb makes the two verbs from one description.
func newVerb(use, short, long string, check bool) (*cobra.Command, *jobFlags) {
	flags := &jobFlags{}
	cmd := &cobra.Command{Use: use, Short: short, Long: long, RunE: func(cmd *cobra.Command, books []string) error {
		return flags.do(cmd, books, check, nil)
	}}
	flags.add(cmd)
	addStateDir(cmd, &flags.stateDir)
	return cmd, flags
}

// addStateDir adds the flag of verbs that look at the records of runs.
func addStateDir(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "state-dir", "", "`DIRECTORY` of the records of runs; by default runbook under $XDG_STATE_HOME or ~/.local/state")
	must(cmd.MarkFlagDirname("state-dir"))
}
