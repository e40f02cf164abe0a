package main

import "github.com/spf13/cobra"

func newRun() *cobra.Command {
	return newVerb("run BOOK...", "Bring hosts to the state that runbooks declare",
		`Run runbooks in order. A BOOK is the name of a shipped one (see "runbook list") or a path: it begins with ./, ../ or /, or ends in
.yml.

Everything is checked before the first host is reached: unknown names, wrong types and missing parameters are all told at
once. The first Ctrl-C ends what is under way and tells how far the run got; the second ends the program at once.`, false)
}
