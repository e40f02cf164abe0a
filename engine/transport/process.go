package transport

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"sync"
)

// link starts processes on a host and opens connections from it: sshLink and localLink.
type link interface {
	// start runs command through the login user's shell, on a terminal if tty is set.
	start(ctx context.Context, command string, tty bool) (*process, error)
	// dial connects from the host. errNoForward says that the link itself cannot, and a relay may.
	dial(ctx context.Context, network, addr string) (net.Conn, error)
	// alive asks the host for a sign of life. Without one, the end of a stream may be that of the link.
	alive() error
	// lost is the reason why the link is gone, nil while it is up.
	lost() error
	// fail makes why the reason, unless there is one.
	fail(why error)
	close() error
}

// errNoForward is returned by link.dial when the host's SSH server does not forward such connections.
var errNoForward = errors.New("the SSH server does not forward this kind of connection")

// errNoStatus is how a process ended whose exit status never arrived.
var errNoStatus = errors.New("the connection ended before an exit status arrived")

// process is a program that was started on a host.
type process struct {
	stdin  io.WriteCloser // Close sends the end of input
	stdout io.Reader
	stderr io.Reader // without data when on a terminal
	exited <-chan struct{}
	closed <-chan struct{} // closed by close
	// status is valid once exited is closed: the exit status, 128+n for signal n, or errNoStatus.
	status func() (int, error)
	// close drops the streams. It does not end the program, except by what a closed pipe does to it.
	close func()
}

// output keeps the first bytes of a stream and counts the rest.
type output struct {
	mu      sync.Mutex
	kept    []byte
	limit   int64
	dropped int64
	changed chan struct{} // has a token after every write
	done    chan struct{} // closed at the end of the stream
}

// watch reads r to its end in the background.
func watch(r io.Reader, limit int64) *output {
	o := &output{limit: limit, changed: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(o.done)
		_, _ = io.Copy(o, r)
	}()
	return o
}

// Write keeps what fits. It never fails.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	room := min(max(o.limit-int64(len(o.kept)), 0), int64(len(p)))
	o.kept = append(o.kept, p[:room]...)
	o.dropped += int64(len(p)) - room
	o.mu.Unlock()
	if o.changed != nil {
		select {
		case o.changed <- struct{}{}:
		default:
		}
	}
	return len(p), nil
}

// bytes returns a copy of what is kept, and the count of what is not.
func (o *output) bytes() ([]byte, int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]byte(nil), o.kept...), o.dropped
}

// nonce returns a word that no output can hold by chance.
func nonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return "rb" + hex.EncodeToString(b[:])
}
