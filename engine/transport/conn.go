package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

// Conn runs commands on one host and reaches network addresses from that host's side. It is safe for concurrent
// use, and concurrent requests to one user's shell share round trips (they are answered in the order sent).
type Conn interface {
	// Run runs c to its end. The error is nil when it exited 0; *ExitError when it ran and failed;
	// *TimeoutError when Cmd.Timeout ended it; *UnreachableError when the link or the shell was lost, so that it may or
	// may not have run; *BecomeError when the host does not let the login user act as Cmd.User; the context's error when
	// ctx ended, after the command's processes were told to end. Any other error says what the host could not do before
	// or after running it, such as storing its input.
	Run(ctx context.Context, c Cmd) (Output, error)
	// Dial connects from the host to addr; network is "tcp" or "unix". user is as in Cmd.User: a unix
	// socket is opened as that user, which is what databases that authenticate by socket look at.
	Dial(ctx context.Context, user, network, addr string) (net.Conn, error)
	// Close ends the shells and the connection.
	Close() error
}

// Cmd is one command. Exactly one of Args and Script is set. Args are what a program of that name gets, so that what
// only the shell knows (cd, command) needs a Script. A Script that mentions $$, PPID or kill gets a new sh of its own; any
// other is read by a fork of the shell, which is several times cheaper.
type Cmd struct {
	Args   []string          // program and arguments, always quoted
	Script string            // POSIX sh text
	User   string            // run as this user through the host's become method; "" is the login user
	Dir    string            // working directory; "" is the user's home or /
	Env    map[string]string // added to the environment, sent inside the framed request and never as arguments
	Stdin  io.Reader         // nil: empty. Read whole before sending unless Stdout or Bulk is set
	Stdout io.Writer         // set: bulk output streams here over a session of its own, never held in memory
	// Bulk streams Stdin over a session of its own, never held in memory. A user has one such session at a time; they
	// are not ordered with what is sent to the shell. To the command, a link that is lost looks like the end of its input: what
	// must not be cut short has to carry its own length or digest.
	Bulk bool

	Timeout time.Duration // 0: none. From the command's start; at its end its processes get SIGTERM, 2 s later SIGKILL
	Limit   int64         // cap on each of stdout and stderr kept, in bytes; 0 is DefaultLimit. What is over is counted and dropped

	// Sent, if set, is called once the request has its place in the shell's queue: whatever is sent to the same user
	// afterwards runs after it. The engine uses it to let a verifying check follow its apply in the same flight. A bulk
	// command has its place when it has ended.
	Sent func()
}

// DefaultLimit is how much of each output stream is kept, in bytes.
const DefaultLimit = 8 << 20

// Output is what a command wrote and how it ended.
type Output struct {
	Stdout, Stderr []byte
	Code           int   // exit status; 128+n for signal n
	Dropped        int64 // bytes over Cmd.Limit that were not kept, both streams together
}

// ExitError says that a command ran and failed.
type ExitError struct {
	Output Output
}

func (e *ExitError) Error() string {
	if text := firstLine(e.Output.Stderr); text != "" {
		return fmt.Sprintf("exit status %d: %s", e.Output.Code, text)
	}
	return fmt.Sprintf("exit status %d", e.Output.Code)
}

// TimeoutError says that a command was ended because it took longer than Cmd.Timeout.
type TimeoutError struct {
	After  time.Duration
	Output Output // what it had written by then
}

func (e *TimeoutError) Error() string { return fmt.Sprintf("timed out after %s", e.After) }

// UnreachableError says that a host could not be reached, or that the link was lost with a request under way.
type UnreachableError struct {
	Host    string
	MayHave bool // the request had been sent: it may have run
	Err     error
	Advice  string // what the operator may do, "" if nothing is known
}

func (e *UnreachableError) Error() string {
	text := fmt.Sprintf("cannot reach %s: %v", e.Host, e.Err)
	if e.MayHave {
		text += " (the command may have run)"
	}
	if e.Advice != "" {
		text += "; " + e.Advice
	}
	return text
}

func (e *UnreachableError) Unwrap() error { return e.Err }

func firstLine(b []byte) string {
	for i, c := range b {
		if c == '\n' {
			return string(b[:i])
		}
	}
	return string(b)
}
