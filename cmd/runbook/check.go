package main

import "github.com/spf13/cobra"

func newCheck() *cobra.Command {
	cmd, _ := newVerb("check BOOK...", "Tell what a run would change, and change nothing",
		`Check runbooks in order without changing a host, and predict what a run would do. Every task is ok, would change, or is unknown
with the reason why it cannot be told. With --diff, differences of files and settings are shown.

What hangs on an earlier task that has yet to run is provisional. The first such line of a host names that task and gives it a
number, and later ones have the number only, as in (#1). At the end stand the services that would be interrupted, how long for and
by which task or handler, and the tasks on which something hangs.

The exit code is 2 if a run would, or might, change something.`, true)
	return cmd
}
