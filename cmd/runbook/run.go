package main

import "github.com/spf13/cobra"

func newRun() *cobra.Command {
	cmd, _ := runVerb()
	return cmd
}

// runVerb is the verb and its flags, which resume reads from the record.
func runVerb() (*cobra.Command, *jobFlags) {
	return newVerb("run BOOK...", "Bring hosts to the state that runbooks declare",
		`Run runbooks in order. A BOOK is the name of a shipped one (see "runbook list") or a path: it begins with ./, ../ or /, or ends in
.yml.

Everything is checked before the first host is reached: unknown names, wrong types and missing parameters are all told at
once. The run is put on record, step by step: whatever ends it, "runbook resume" goes on where it was. The first Ctrl-C finishes what
is under way, the second ends it, the third ends the program at once.`, false)
}
