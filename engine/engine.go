// Package engine brings hosts to the state that runbooks declare.
//
// A run has two halves. Compile reads every book, compiles every expression against the names that are declared, binds
// the parameters of every host and evaluates all arguments that depend on nothing a host has yet to say: whatever
// is wrong is found here, all at once, before the first connection. The loop then walks plays, tasks, blocks and handlers
// over the hosts, in parallel within a task, and hands every verdict to one Reporter.
//
// A task on a host is always the same few steps (perform in task.go): evaluate, Check, and, only if this is not check
// mode, Apply and a verifying Check. No module knows which mode it runs in.
package engine

import (
	"context"
	"io/fs"
	"slices"
	"time"

	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/inventory"
)

// DefaultForks is how many hosts a task runs on at once unless told otherwise.
const DefaultForks = 20

// Source is one runbook to run: a file and the file system that its templates are read from.
type Source struct {
	FS   fs.FS
	Path string // within FS
	File string // where it lies, absolute; "" for one that is part of the program
	// Owed says that the book is not asked for: earlier runs of it owe handlers to hosts of this one, and these are all that is run of it. Such
	// books are the last of a job. Settings are theirs alone, in place of the job's.
	Owed     bool
	Settings []Setting
}

// Setting is one variable given on the command line.
type Setting struct {
	Name   string
	Value  *spec.Value
	Origin string // where it was given, such as "-e" or a file's path
	// Visible says that the value stood in the argument list, where other users can read it: secrets refuse it.
	Visible bool
}

// Job is everything that a run needs.
type Job struct {
	Books     []Source // run in order
	Inventory *inventory.Inventory
	Limit     string // inventory pattern; "" is no limit
	Settings  []Setting
	// Elsewhere names what runbooks that are not run here declare: the files of Settings may be for those too.
	Elsewhere []string
	Modules   map[string]module.Factory
	Check     bool // change nothing, predict
	Forks     int  // hosts at once; 0 is DefaultForks
	Tags      []string
	SkipTags  []string
	// Dial connects to a host. It is called at most once for each host and run: when a play that it is in begins, or when a task of
	// another host first needs it.
	Dial     func(ctx context.Context, host *inventory.Host) (transport.Conn, error)
	Reporter report.Reporter
	Masker   *secret.Masker // told of every secret; masks all events

	// Stop, when closed, lets no further task begin; what is under way is finished.
	Stop <-chan struct{}
	// Journal is where the run is put on record; nil for none, as in check mode.
	Journal *journal.Writer
	// Past is what is on record of the run that this one resumes.
	Past []journal.Record
	// Rerun and MarkDone name tasks that were under way when the run ended and about which Check cannot tell: to be done again, or done. They are
	// names, for all hosts, or what journal.Answer makes of a host, a name and an item.
	Rerun, MarkDone []string
	// AcceptChanges does tasks anew whose arguments are others than on record.
	AcceptChanges bool
	// Debts are handlers that earlier runs notified and did not run. Those of the books of this run are run in it.
	Debts []journal.Debt
	// Own are those that the earlier parts of the resumed run owe.
	Own []journal.Owed
}

// selects reports whether the tags asked for include a task with these.
func (j *Job) selects(tags map[string]bool) bool {
	has := func(wanted []string) bool {
		return slices.ContainsFunc(wanted, func(tag string) bool { return tags[tag] })
	}
	if has(j.SkipTags) {
		return false
	}
	if tags["never"] && !has(j.Tags) {
		return false
	}
	return len(j.Tags) == 0 || tags["always"] || has(j.Tags)
}

// Summary is how a run ended.
type Summary struct {
	Totals      []report.Total // per host, in the order of the inventory
	Interrupted bool           // it was ended before it was through
	Stopped     bool           // a play could not go on
	Questions   []Question     // what only a person can decide
	Halted      string         // why it ended itself, such as a record that cannot be written
	State       []string       // how things are after a run that failed, as the plays with on_failure say
	Failures    []Failure      // hosts that took no further part, in the order of the inventory
	Elapsed     time.Duration
}

// Failure is why a host took no further part.
type Failure struct {
	Host, Task, Msg string
	Item            string // label of the loop's item
	Unreachable     bool
	HeldBack        string // the play in which it had no turn, as others were lost; Task is ""
}

// Question is what a run that was resumed has to ask before it goes on with a task on a host.
type Question struct {
	Host, Task string
	Item       string // label of the loop's item
	Accept     bool   // whether what differs is meant: AcceptChanges; Task is "" if that is the host. Otherwise whether it was done: Rerun or MarkDone
	Again      bool   // whether to do it again for what it returns, which is not known: Rerun
}

// Asked reports whether the run needs a person.
func (s Summary) Asked() bool { return len(s.Questions) > 0 }

// Failed reports whether a task failed, a host was unreachable or a play was stopped.
func (s Summary) Failed() bool {
	for _, t := range s.Totals {
		if t.Failed > 0 || t.Unreachable > 0 {
			return true
		}
	}
	return s.Stopped
}

// Drift reports whether check mode found something that a run would, or might, change.
func (s Summary) Drift() bool {
	for _, t := range s.Totals {
		if t.Changed > 0 || t.Unknown > 0 {
			return true
		}
	}
	return false
}

// Run carries out job. The error is spec.Errors when the input is bad; nothing was touched then. Failures of
// tasks and hosts are no error: they are in the Summary and were reported.
func Run(ctx context.Context, job Job) (Summary, error) {
	if job.Masker == nil {
		job.Masker = &secret.Masker{}
	}
	program, errs := compile(&job)
	if len(errs) > 0 {
		return Summary{}, errs
	}
	return newRun(&job, program).run(ctx), nil
}
