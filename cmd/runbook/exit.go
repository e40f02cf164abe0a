package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"runbook/engine"
)

// The exit codes, explained to users by `runbook help exit-codes`.
const (
	exitDone        = 0
	exitFailed      = 1
	exitDrift       = 2
	exitBadInput    = 3
	exitInterrupted = 4
)

const exitCodesHelp = `Every command that works on hosts ends with one of these:

  0  done, and there is nothing to say: all tasks ended well; for check, every host is as declared
  1  a host failed or was unreachable, or a play could not go on; or the report could not be written: the run went on, and is on record
  2  check found drift: something would change, or a task cannot tell (unknown)
  3  the input is wrong (arguments, runbook, inventory, parameters): nothing was touched
  4  stopped before it was through, by an interrupt, by a record that cannot be written, or by a question that only you can answer:
     runbook resume goes on

A code further up in this order wins: 3, 4, 1, 2, 0.

The other commands end with 0, with 1 if what they print cannot be written, and with 3 if the input is wrong; what else 1 or 2 says is in their help
and, for those about runs, in docs/resume.md. A reader that goes away, as in "runbook runs | head", is no failure: check and run go on, with the code that
they would have otherwise; the others are ended by the system, as usual (SIGPIPE, which shells tell as 141).`

// exitError ends the program with a code when all was said already.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// exitCode is how the program ends after a run.
func exitCode(s engine.Summary, check bool) int {
	switch {
	case s.Interrupted, s.Asked(), s.Halted != "":
		return exitInterrupted
	case s.Failed():
		return exitFailed
	case check && s.Drift():
		return exitDrift
	}
	return exitDone
}

// newExitCodes is a help topic: a command that cannot be run.
func newExitCodes() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes say", Long: exitCodesHelp}
}
