package main

import (
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"runbook/engine/report"
)

func newList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the shipped runbooks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			books := shipped()
			for _, name := range slices.Sorted(maps.Keys(books)) {
				fmt.Fprintf(table, "%s\t%s\n", name, report.Clean(books[name]))
			}
			return table.Flush()
		},
	}
}
