package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"runbook/engine/report"
	"runbook/engine/spec"
)

func newShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show BOOK",
		Short:             "Show a runbook's parameters, plays and tasks",
		Args:              oneBook,
		ValidArgsFunction: completeBook,
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := findBook(args[0], "")
			if err != nil {
				return err
			}
			book, err := loadBook(src)
			if err != nil {
				return err
			}
			showBook(cmd.OutOrStdout(), book)
			return nil
		},
	}
}

// showBook writes what an operator asks before a run. A book may come from anywhere: its texts are cleaned.
func showBook(w io.Writer, book *spec.Book) {
	fmt.Fprintln(w, report.Clean(book.Title))
	for _, line := range report.CleanLines(book.Description) {
		fmt.Fprintln(w, "  "+line)
	}
	if len(book.Params) > 0 {
		fmt.Fprintln(w, "\nParameters, set in the inventory or with -e:")
		longest := 0
		for _, p := range book.Params {
			longest = max(longest, len(p.Name))
		}
		for _, p := range book.Params {
			fmt.Fprintf(w, "  %-*s  %s\n", longest, p.Name, paramType(p))
			for _, line := range wrap(paramHelp(p), 90) {
				fmt.Fprintln(w, "      "+line)
			}
		}
	}
	for i, play := range book.Plays {
		name := report.Clean(play.Name)
		if name != "" {
			name = "  " + name
		}
		fmt.Fprintf(w, "\nPlay %d%s, on %s\n", i+1, name, report.Clean(valueText(play.Hosts)))
		showTasks(w, fmt.Sprint(i+1), play.Tasks)
		if len(play.Handlers) > 0 {
			fmt.Fprintln(w, "  handlers:")
			showTasks(w, fmt.Sprintf("%d/handlers", i+1), play.Handlers)
		}
	}
}

// showTasks lists tasks under the ids that reports use.
func showTasks(w io.Writer, prefix string, tasks []*spec.Task) {
	for i, t := range tasks {
		id := fmt.Sprintf("%s/%d", prefix, i+1)
		kind := t.Module
		switch {
		case t.Meta != "":
			kind = "meta " + t.Meta
		case t.Module == "":
			kind = "block"
		}
		title := report.Clean(t.Name)
		if title != "" {
			title += " "
		}
		fmt.Fprintf(w, "  %-8s %s(%s)\n", id, title, report.Clean(kind))
		showTasks(w, id+"/block", t.Block)
		showTasks(w, id+"/rescue", t.Rescue)
		showTasks(w, id+"/always", t.Always)
	}
}

func paramType(p *spec.Param) string {
	text := p.Type
	if p.Secret {
		text += ", secret"
	}
	switch {
	case p.Required:
		text += ", required"
	case p.Default != nil && p.Default.Kind == spec.String && p.Default.Str == "":
		text += `, default ""`
	case p.Default != nil:
		text += ", default " + report.Clean(valueText(p.Default))
	}
	return text
}

func paramHelp(p *spec.Param) string {
	var parts []string
	if help := strings.Join(strings.Fields(p.Help), " "); help != "" {
		parts = append(parts, report.Clean(help))
	}
	if len(p.Choices) > 0 {
		words := make([]string, len(p.Choices))
		for i, c := range p.Choices {
			words[i] = report.Clean(valueText(c))
		}
		parts = append(parts, "one of "+strings.Join(words, ", "))
	}
	if p.MinLen > 0 {
		parts = append(parts, fmt.Sprintf("at least %d long", p.MinLen))
	}
	if p.Pattern != "" {
		parts = append(parts, "matches "+report.Clean(p.Pattern))
	}
	return strings.Join(parts, "; ")
}

// wrap breaks text into lines of at most columns, where words allow.
func wrap(text string, columns int) []string {
	var lines []string
	for _, word := range strings.Fields(text) {
		if last := len(lines) - 1; last >= 0 && utf8.RuneCountInString(lines[last]+word) < columns {
			lines[last] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

// valueText is a value on one line, much as YAML's flow style has it.
func valueText(v *spec.Value) string {
	switch v.Kind {
	case spec.Null:
		return "null"
	case spec.List:
		items := make([]string, len(v.List))
		for i, item := range v.List {
			items[i] = valueText(item)
		}
		return "[" + strings.Join(items, ", ") + "]"
	case spec.Map:
		items := make([]string, len(v.Map))
		for i, e := range v.Map {
			items[i] = e.Key + ": " + valueText(e.Value)
		}
		return "{" + strings.Join(items, ", ") + "}"
	}
	return v.Str
}
