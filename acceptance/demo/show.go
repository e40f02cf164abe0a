package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/term"
)

var titles int

func title(s string) {
	titles++
	fmt.Printf("\n== %d. %s\n\n", titles, s)
}

// brief shows what runbook prints, with long lines cut, and of each play no more tasks than asked for. What failed is shown whole.
type brief struct {
	w     io.Writer
	tasks int  // of each play
	quiet bool // the closing table only

	line    []byte // not yet ended
	shown   int    // tasks of this play
	hidden  int
	failing bool // the line before told of a failure
}

func (b *brief) Write(p []byte) (int, error) {
	b.line = append(b.line, p...)
	for {
		line, rest, found := bytes.Cut(b.line, []byte("\n"))
		if !found {
			return len(p), nil
		}
		b.show(string(line))
		b.line = rest
	}
}

// end says what was left out last, and shows a line without an end.
func (b *brief) end() {
	if len(b.line) > 0 {
		b.show(string(b.line))
		b.line = nil
	}
	b.leftOut()
}

func (b *brief) leftOut() {
	if b.hidden > 0 && !b.quiet {
		fmt.Fprintf(b.w, "  … and %d more\n", b.hidden)
	}
	b.shown, b.hidden = 0, 0
}

func (b *brief) show(line string) {
	detail := strings.HasPrefix(line, "     ")
	failed := strings.HasPrefix(line, "  failed") || strings.HasPrefix(line, "  unreachable") || strings.HasPrefix(line, "STOPPED")
	switch {
	case failed || detail && b.failing:
		b.failing = true
		fmt.Fprintln(b.w, line)
		return
	case strings.HasPrefix(line, "  ") && !detail && b.shown >= b.tasks:
		b.hidden++
	case strings.HasPrefix(line, "  "):
		if !detail {
			b.shown++
		}
		if b.hidden == 0 {
			fmt.Fprintln(b.w, cut(line, width()))
		}
	default:
		b.leftOut()
		if !b.quiet || !heading.MatchString(line) && line != "" {
			fmt.Fprintln(b.w, line)
		}
	}
	b.failing = false
}

// heading is the line of a runbook or play.
var heading = regexp.MustCompile(`^(RUN|CHECK|PLAY) `)

// cut shortens a line that is longer than n.
func cut(line string, n int) string {
	if runes := []rune(line); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return line
}

// width is that of the terminal, 110 columns if there is none.
func width() int {
	if columns, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && columns > 40 {
		return columns
	}
	return 110
}

// short returns a path with the home directory as ~, as a shell understands it.
func short(path string) string {
	if home, err := os.UserHomeDir(); err == nil {
		if rest, ok := strings.CutPrefix(path, home+"/"); ok {
			return "~/" + rest
		}
	}
	return path
}

// relative returns a path as somebody in the current directory would type it.
func relative(path string) string {
	if cwd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(cwd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}
