package main

import (
	"context"
	"io"
	"os"
	"sync"

	"golang.org/x/term"

	"runbook/engine/report"
	"runbook/engine/secret"
)

// screen is where a run is told: the report on standard output, diagnostics on standard error, prompts on the terminal.
type screen struct {
	reporter report.Reporter
	stderr   io.Writer // prints above live output
	log      *logger
	prompt   prompter
	close    func() // ends live output; more than once does no harm
}

func newScreen(stdout, stderr io.Writer, f *jobFlags, masker *secret.Masker) *screen {
	if f.output == "json" {
		return &screen{reporter: report.NewJSON(stdout), stderr: stderr, log: newLogger(stderr, f.verbose, masker), prompt: askTerminal, close: func() {}}
	}
	opts := report.TextOptions{Diff: f.diff, Verbose: f.verbose}
	if terminal := terminalFile(stdout); terminal != nil {
		opts.Terminal = true
		opts.Color = os.Getenv("NO_COLOR") == ""
		opts.Width = func() int {
			columns, _, err := term.GetSize(int(terminal.Fd()))
			if err != nil || columns < 1 {
				return 80
			}
			return columns
		}
	}
	text := report.NewText(stdout, opts)
	above := text.Above(stderr)
	return &screen{
		reporter: text,
		stderr:   above,
		log:      newLogger(above, f.verbose, masker),
		prompt: func(ctx context.Context, question string) (secret.Secret, error) {
			defer text.Hold()()
			return askTerminal(ctx, question)
		},
		close: sync.OnceFunc(text.Live()),
	}
}

// terminalFile is w as a terminal, nil if it is none that understands cursor movements.
func terminalFile(w io.Writer) *os.File {
	if out, ok := w.(*output); ok {
		w = out.w
	}
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}
