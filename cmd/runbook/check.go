package main

import "github.com/spf13/cobra"

func newCheck() *cobra.Command {
	return newVerb("check BOOK...", "Tell what a run would change, and change nothing",
		`Check runbooks in order without changing a host, and predict what a run would do. Every task is ok, would change, or is unknown
with the reason why it cannot be told. With --diff, differences of files and settings are shown.

The exit code is 2 if a run would, or might, change something.`, true)
}
