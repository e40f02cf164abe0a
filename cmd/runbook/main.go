// Command runbook brings hosts to the state that runbooks declare, over SSH and without an agent.
//
// This package is the program: one file per verb, the flags they share in job.go, how hosts are reached in connect.go.
// What a run does is in package engine; what is shown of it in engine/report.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(program(os.Args[1:], os.Stdout, os.Stderr))
}

// program runs the program with arguments and returns its exit code.
func program(args []string, stdout, stderr io.Writer) int {
	root, out := newRoot(), &output{w: stdout}
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.WithValue(context.Background(), argsKey{}, args))
	failure := out.failure()
	var ended *exitError
	code := exitDone
	switch {
	case err == nil || failure != nil && errors.Is(err, failure):
	case errors.As(err, &ended):
		code = ended.code
	default: // what comes here was found before anything was touched
		tellAll(stderr, err)
		code = exitBadInput
	}
	// A reader that goes away has read what it wanted.
	if failure == nil || errors.Is(failure, syscall.EPIPE) {
		return code
	}
	fmt.Fprintf(stderr, "cannot write to standard output, which is not whole: %v\n", unwrapPath(failure))
	if code == exitDone || code == exitDrift {
		code = exitFailed
	}
	return code
}

// output is the program's standard output. Who writes there need not look whether it can be written: the program does, at its end. A run has to go on
// meanwhile.
type output struct {
	w io.Writer

	mu  sync.Mutex
	err error // the first
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.err = cmp.Or(o.err, err)
	}
	return n, err
}

// failure is why something could not be written, nil if all was.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// argsKey is the context's key for the program's arguments.
type argsKey struct{}

// argsOf are the arguments that the program was called with. No secret is among them: settings refuse it.
func argsOf(cmd *cobra.Command) []string {
	args, _ := cmd.Context().Value(argsKey{}).([]string)
	return args
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "runbook",
		Short: "Bring hosts to the state that a runbook declares",
		Long: `runbook reads a YAML runbook and an inventory of a site's hosts, and brings the hosts to the declared state over SSH.
Nothing is needed on a host but sshd, a POSIX shell and the usual core utilities.

  runbook list                                 which runbooks are shipped
  runbook show man06/master                    what one does and which parameters it has
  runbook check -i site.yml man06/master       what would change; no host is changed
  runbook run -i site.yml man06/master         change it

See "runbook help exit-codes" for what the exit codes say.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w\n    hint: see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(newRun(), newResume(), newRuns(), newUnlock(), newCheck(), newList(), newShow(), newVersion(), newDocs(), newExitCodes())
	root.InitDefaultCompletionCmd()
	return root
}

// oneBook and atLeastOneBook are cobra's argument checks with sentences that say what is missing.
func oneBook(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("cannot %s %d runbooks: name one", cmd.Name(), len(args))
	}
	return atLeastOneBook(cmd, args)
}

func atLeastOneBook(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("cannot %s without a runbook\n    hint: name one by its path, or one of %s", cmd.Name(), strings.Join(shippedNames(), ", "))
	}
	return nil
}
