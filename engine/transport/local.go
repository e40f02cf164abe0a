package transport

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"sync"
	"syscall"

	"runbook/engine/transport/internal/pty"
)

// localLink starts processes on the machine the program runs on.
type localLink struct {
	mu      sync.Mutex
	running map[*process]bool
	reason  error // why it is not used any more
}

func newLocal(cfg Config) (*host, error) {
	u, err := user.Current()
	login := os.Getenv("USER")
	if err == nil {
		login = u.Username
	}
	cfg.LockDir = cmp.Or(cfg.LockDir, os.Getenv("RUNBOOK_LOCK_DIR"))
	return newHost(cfg, login, &localLink{running: map[*process]bool{}}), nil
}

func (l *localLink) lost() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

func (l *localLink) fail(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reason == nil {
		l.reason = why
	}
}

func (l *localLink) alive() error { return nil }

// close drops the streams of what still runs and waits for it: the shells are told by their end of input.
func (l *localLink) close() error {
	l.mu.Lock()
	var all []*process
	for p := range l.running {
		all = append(all, p)
	}
	l.mu.Unlock()
	for _, p := range all {
		p.close()
	}
	return nil
}

func (l *localLink) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

func (l *localLink) start(_ context.Context, command string, tty bool) (*process, error) {
	if err := l.lost(); err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", command)
	var ours, theirs []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			_ = f.Close()
		}
	}
	p := &process{}
	if tty {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, err
		}
		ours, theirs = []*os.File{master}, []*os.File{slave}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		p.stdin, p.stdout, p.stderr = keepOpen{master}, terminalReader{master}, noData{}
	} else {
		for i := range 3 {
			r, w, err := os.Pipe()
			if err != nil {
				closeAll(ours)
				closeAll(theirs)
				return nil, err
			}
			if i == 0 {
				r, w = w, r
			}
			ours, theirs = append(ours, r), append(theirs, w)
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs[0], theirs[1], theirs[2]
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		p.stdin, p.stdout, p.stderr = ours[0], ours[1], ours[2]
	}
	err := cmd.Start()
	closeAll(theirs)
	if err != nil {
		closeAll(ours)
		return nil, err
	}
	exited := make(chan struct{})
	p.exited = exited
	var code int
	p.status = func() (int, error) { return code, nil }
	closed := make(chan struct{})
	p.closed = closed
	p.close = sync.OnceFunc(func() {
		close(closed)
		closeAll(ours)
		l.mu.Lock()
		delete(l.running, p)
		l.mu.Unlock()
	})
	l.mu.Lock()
	l.running[p] = true
	l.mu.Unlock()
	go func() {
		defer close(exited)
		_ = cmd.Wait()
		code = cmd.ProcessState.ExitCode()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
	}()
	return p, nil
}

// keepOpen is a terminal's input: it has no end that could be sent.
type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// terminalReader reads a terminal, whose end is an error.
type terminalReader struct{ f *os.File }

func (t terminalReader) Read(p []byte) (int, error) {
	n, err := t.f.Read(p)
	if errors.Is(err, syscall.EIO) {
		err = io.EOF
	}
	return n, err
}

// noData is the error output of a program on a terminal, which has but one output.
type noData struct{}

func (noData) Read([]byte) (int, error) { return 0, io.EOF }
