package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"runbook/engine/journal"
	"runbook/engine/report"
)

// completeBook completes the names of shipped runbooks, and files.
func completeBook(_ *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if isPath(toComplete) {
		return []string{"yml", "yaml"}, cobra.ShellCompDirectiveFilterFileExt
	}
	var names []string
	for _, name := range shippedNames() {
		if strings.HasPrefix(name, toComplete) {
			names = append(names, name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeSetting completes -e with the parameters of the runbooks that are named already. Secrets are left out: they
// are given in a file.
func completeSetting(_ *cobra.Command, books []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if strings.HasPrefix(toComplete, "@") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	for _, name := range books {
		src, err := findBook(name, "")
		if err != nil {
			continue
		}
		book, err := loadBook(src)
		if err != nil {
			continue
		}
		for _, p := range book.Params {
			if !p.Secret && strings.HasPrefix(p.Name, toComplete) {
				names = append(names, fmt.Sprintf("%s=\t%s", p.Name, report.Clean(p.Help)))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// completeRun completes the ids of runs on record.
func completeRun(stateDir *string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(_ *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		runs, err := journal.List(*stateDir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var ids []string
		for _, r := range runs {
			if strings.HasPrefix(r.ID, toComplete) {
				ids = append(ids, r.ID+"\t"+r.Status)
			}
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}
