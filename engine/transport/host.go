package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// host is the Conn over any link.
type host struct {
	name  string
	login string
	cfg   Config
	link  link
	ctx   context.Context // ends at Close
	// interpreter is the sh that reads our requests on its standard input.
	interpreter string
	end         context.CancelFunc

	mu      sync.Mutex
	closed  bool
	shells  map[string]*shell        // by user; "" is the login user
	bulk    map[string]chan struct{} // by user: one bulk session at a time
	refused map[string]*BecomeError  // by user

	work work
}

// Connect opens the connection that cfg describes. It returns *UnreachableError if the host cannot be reached or
// trusted, and starts no shell: the first Run does.
func Connect(ctx context.Context, cfg Config) (Conn, error) {
	switch cfg.BecomeMethod {
	case "", "sudo", "su":
	default:
		return nil, fmt.Errorf("cannot connect to %s: become method %q is neither sudo nor su", cfg.Name, cfg.BecomeMethod)
	}
	if strings.ContainsAny(cfg.BecomePassword.Reveal(), "\n\r\x00") {
		return nil, fmt.Errorf("cannot connect to %s: a become password is one line", cfg.Name)
	}
	switch cfg.Connection {
	case "local":
		return newLocal(cfg)
	case "", "ssh":
		return newSSH(ctx, cfg)
	}
	return nil, fmt.Errorf("cannot connect to %s: connection %q is neither ssh nor local", cfg.Name, cfg.Connection)
}

func newHost(cfg Config, login string, l link) *host {
	h := &host{name: cmp.Or(cfg.Name, cfg.Address, "localhost"), login: login, cfg: cfg, link: l,
		shells: map[string]*shell{}, bulk: map[string]chan struct{}{}, refused: map[string]*BecomeError{},
		work: work{pids: map[string]bool{}}}
	h.interpreter = cmp.Or(cfg.interpreter, "/bin/sh")
	h.ctx, h.end = context.WithCancel(context.Background())
	return h
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// errClosed is what a closed Conn answers.
var errClosed = errors.New("the connection was closed")

func (h *host) Run(ctx context.Context, c Cmd) (Output, error) {
	if err := c.validate(); err != nil {
		return Output{}, err
	}
	if err := ctx.Err(); err != nil {
		return Output{}, err
	}
	user := c.User
	if user == h.login {
		user = ""
	}
	if c.Stdout != nil || c.Bulk {
		out, err := h.stream(ctx, user, c)
		if c.Sent != nil {
			c.Sent() // it has run: whatever is sent now runs after it
		}
		return out, err
	}
	r, err := newRequest(c, h.interpreter)
	if err != nil {
		return Output{}, err
	}
	s, err := h.enqueue(user, r)
	if err != nil {
		return Output{}, err
	}
	if c.Sent != nil {
		c.Sent()
	}
	return s.await(ctx, r)
}

// validate refuses what no shell can carry.
func (c *Cmd) validate() error {
	switch {
	case len(c.Args) == 0 && c.Script == "":
		return errors.New("cannot run a command: it has neither arguments nor a script")
	case len(c.Args) > 0 && c.Script != "":
		return errors.New("cannot run a command: it has both arguments and a script")
	case strings.Contains(c.Script, "\x00"):
		return errors.New("cannot run a script that holds a NUL byte")
	case strings.Contains(c.Dir, "\x00"):
		return errors.New("cannot run a command in a directory whose name holds a NUL byte")
	}
	for _, a := range c.Args {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("cannot run %s: an argument holds a NUL byte", c.Args[0])
		}
	}
	for name, value := range c.Env {
		if !envName.MatchString(name) {
			return fmt.Errorf("cannot set the environment variable %q: not a name", name)
		}
		if strings.Contains(value, "\x00") {
			return fmt.Errorf("cannot set the environment variable %s: its value holds a NUL byte", name)
		}
	}
	return nil
}

// enqueue gives r its place in the queue of user's shell, which it starts when there is none.
func (h *host) enqueue(user string, r *request) (*shell, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, h.unreachable(false, errClosed)
	}
	if err := h.link.lost(); err != nil {
		return nil, h.unreachable(false, err)
	}
	s := h.shells[user]
	if s == nil || !s.add(r) {
		s = newShell(h, user)
		h.shells[user] = s
		s.add(r)
		go s.serve()
	}
	return s, nil
}

func (h *host) unreachable(mayHave bool, err error) *UnreachableError {
	return &UnreachableError{Host: h.name, MayHave: mayHave, Err: err}
}

func (h *host) Close() error {
	h.mu.Lock()
	already := h.closed
	h.closed = true
	shells := h.shells
	h.shells = map[string]*shell{}
	h.mu.Unlock()
	if already {
		return nil
	}
	h.end()
	for _, s := range shells {
		s.hangUp()
	}
	err := h.link.close()
	for _, s := range shells {
		<-s.ended
	}
	return err
}
