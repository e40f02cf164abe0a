package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"runbook/engine/secret"
)

// interrupts are what a person, or the system, says to a run that should end.
type interrupts struct {
	ctx   context.Context // ends at the second: what is under way is ended
	stop  <-chan struct{} // closed at the first: what is under way is finished, and nothing else begins
	close func()
}

// interruptible listens for interrupts. The first lets no further task begin, the second ends what is under way, the third ends the
// program at once, which atOnce is told before. A request to end and a hang-up are interrupts too, and a reader of our output that goes away is none: a run must not
// die half-way because a pager was closed.
func interruptible(parent context.Context, stderr io.Writer, atOnce func()) interrupts {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE) // writes fail instead; ignoring it would be inherited by local commands
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			case <-signals:
			}
			switch n {
			case 1:
				close(stop) // first: whoever holds the terminal for a prompt lets go of it then
				fmt.Fprintln(stderr, "interrupted: finishing what is under way; once more ends it, and once more than that the program at once")
			case 2:
				cancel()
				fmt.Fprintln(stderr, "interrupted: ending what is under way; once more ends the program at once")
			default:
				atOnce()
				os.Exit(exitInterrupted)
			}
		}
	}()
	return interrupts{ctx: ctx, stop: stop, close: func() {
		signal.Stop(signals)
		signal.Stop(pipe)
		close(done)
		cancel()
	}}
}

// farewell is told by a program that ends at once: it has no time for its closing page. There is none of a check, which has no record.
func (r *record) farewell(stderr io.Writer) {
	if r != nil {
		title, lines := r.goOn(nil)
		fmt.Fprintf(stderr, "%s: %s\n", title, lines[0])
	}
}

// asking wraps a prompter: the first interrupt ends a question.
func (i interrupts) asking(prompt prompter) prompter {
	return func(ctx context.Context, question string) (answer secret.Secret, err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		finished := make(chan struct{})
		defer close(finished)
		go func() {
			select {
			case <-i.stop:
				cancel()
			case <-finished:
			}
		}()
		return prompt(ctx, question)
	}
}
