package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// BecomeError says that a host did not let the login user act as another one.
type BecomeError struct {
	Host, User string
	Method     string // "sudo" or "su"
	Reason     string
}

func (e *BecomeError) Error() string {
	return fmt.Sprintf("cannot become %s on %s with %s: %s", e.User, e.Host, e.Method, e.Reason)
}

// startLimit bounds how long a shell may take to answer for the first time, become included.
var startLimit = 30 * time.Second

// userName is what may stand in a command line for a login shell of any kind, without quotes.
var userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]*\$?$`)

// started is a sh that reads its script from standard input, as the user asked for.
type started struct {
	*process
	out      io.Reader // standard output; noise of login files comes first
	err      *output   // standard error
	terminal bool
}

// open starts a sh as user. The command line holds nothing but fixed words and the user's name, quoted with single
// quotes only, so that login shells other than sh read it the same way; everything else follows on standard input.
func (h *host) open(ctx context.Context, user string) (*started, error) {
	if user == "" || user == h.login {
		return h.launch(ctx, "exec "+h.interpreter, false, nil)
	}
	if !userName.MatchString(user) {
		return nil, h.becomeError(user, "not a user name that can be given to "+h.method())
	}
	h.mu.Lock()
	refused := h.refused[user]
	h.mu.Unlock()
	if refused != nil {
		return nil, refused // asking again with the same password could lock the account
	}
	var s *started
	var err error
	switch password := h.cfg.BecomePassword.Reveal(); {
	case h.method() == "su" && h.login == "root":
		s, err = h.launch(ctx, `exec /bin/sh -c 'LC_ALL=C exec su -s /bin/sh -c "exec `+h.interpreter+`" `+user+`'`, false, nil)
	case h.method() == "su":
		ready := nonce()
		s, err = h.launch(ctx, `exec /bin/sh -c 'LC_ALL=C exec su -s /bin/sh -c "stty raw -echo; echo `+ready+`; exec `+
			h.interpreter+` 2>/dev/null" `+user+`'`, true, &dialogue{user: user, ready: ready, password: password, prompt: suPrompt})
	case password == "":
		// root needs no sudo: where it is not installed, su does.
		s, err = h.launch(ctx, `exec /bin/sh -c 'command -v sudo >/dev/null || test "`+h.login+`" != root || `+
			`exec su -s /bin/sh -c "exec `+h.interpreter+`" `+user+`; LC_ALL=C exec sudo -n -H -u `+user+` `+h.interpreter+`'`, false, nil)
	default:
		ready, prompt := nonce(), nonce()
		s, err = h.launch(ctx, `exec /bin/sh -c 'LC_ALL=C exec sudo -S -p `+prompt+` -H -u `+user+` /bin/sh -c "echo `+ready+
			`; exec `+h.interpreter+`"'`, false, &dialogue{user: user, ready: ready, password: password,
			prompt: func(out []byte) int { return bytes.Count(out, []byte(prompt)) }})
	}
	var refusal *BecomeError
	if errors.As(err, &refusal) {
		h.refuse(refusal)
	}
	return s, err
}

// dialogue is what has to be said before a sh of another user reads our input.
type dialogue struct {
	user, ready, password string
	prompt                func(seen []byte) int // how often a password was asked for
}

// suPrompt counts 1 when the last line asks for a password.
func suPrompt(seen []byte) int {
	last := seen[bytes.LastIndexByte(seen, '\n')+1:]
	if bytes.Contains(bytes.ToLower(last), []byte("password")) {
		return 1
	}
	return 0
}

func (h *host) launch(ctx context.Context, command string, terminal bool, d *dialogue) (*started, error) {
	p, err := h.link.start(ctx, command, terminal)
	if err != nil {
		return nil, err
	}
	s := &started{process: p, out: p.stdout, err: watch(p.stderr, 64<<10), terminal: terminal}
	if d == nil {
		return s, nil
	}
	if err := h.converse(ctx, s, d); err != nil {
		_ = p.stdin.Close()
		p.close()
		return nil, err
	}
	return s, nil
}

// converse answers one request for the password and waits for the sh behind it. The password is sent only when asked
// for: unasked, the sh would take it for a command.
func (h *host) converse(ctx context.Context, s *started, d *dialogue) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	// On a terminal the request comes on standard output, else on standard error.
	seen := &output{limit: 64 << 10, changed: make(chan struct{}, 1)}
	ready := make(chan error, 1)
	go func() { ready <- skipPast(s.out, d.ready+"\n", seen) }()
	asked := s.err
	if s.terminal {
		asked = seen
	}
	answered := false
	for {
		select {
		case err := <-ready:
			if err == nil {
				return nil
			}
			return h.refusal(d.user, h.whyRefused(s, seen, answered))
		case <-asked.changed:
			text, _ := asked.bytes()
			n := d.prompt(text)
			switch {
			case n > 1:
				return h.becomeError(d.user, "wrong password")
			case n == 1 && d.password == "":
				return h.becomeError(d.user, "a password is asked for and none was given")
			case n == 1 && !answered:
				answered = true
				if _, err := io.WriteString(s.stdin, d.password+"\n"); err != nil {
					return h.refusal(d.user, h.whyRefused(s, seen, false))
				}
			}
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded {
				return h.refusal(d.user, fmt.Sprintf("no answer within %s: %s", startLimit, h.whyRefused(s, seen, false)))
			}
			return ctx.Err()
		}
	}
}

// refusal is the error of a door that closed or did not open, if it was not the link that was lost.
func (h *host) refusal(user, reason string) error {
	if lost := h.silent(); lost != nil {
		return h.unreachable(false, lost)
	}
	return h.becomeError(user, reason)
}

// whyRefused makes a reason of what a host said before it closed the door.
func (h *host) whyRefused(s *started, seen *output, answered bool) string {
	text, _ := seen.bytes()
	if !s.terminal {
		select { // the last words may still be on their way
		case <-s.err.done:
		case <-time.After(time.Second):
		}
		text, _ = s.err.bytes()
	}
	said := lastWords(text)
	low := strings.ToLower(said)
	switch {
	case strings.Contains(low, "a password is required"):
		return "a password is asked for and none was given"
	case strings.Contains(low, "must have a tty"), strings.Contains(low, "terminal is required"):
		return "the host's sudoers demands a terminal (requiretty); take that line out for the login user, or use su: " + said
	case answered && (strings.Contains(low, "incorrect password") || strings.Contains(low, "authentication failure") ||
		strings.Contains(low, "authentication token") || strings.Contains(low, "incorrect authentication")):
		return "wrong password"
	case said == "":
		return "it ended without a word"
	}
	return said
}

// lastWords returns the last two lines of text that hold any, without the words we use as marks.
func lastWords(text []byte) string {
	text = markWord.ReplaceAll(text, nil)
	var lines []string
	for _, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-2):], "; ")
}

var markWord = regexp.MustCompile(`rb[0-9a-f]{32}`)

func (h *host) method() string {
	if h.cfg.BecomeMethod == "" {
		return "sudo"
	}
	return h.cfg.BecomeMethod
}

func (h *host) becomeError(user, reason string) *BecomeError {
	return &BecomeError{Host: h.name, User: user, Method: h.method(), Reason: reason}
}

func (h *host) refuse(err *BecomeError) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused[err.User] = err
}

// skipPast reads r, one byte at a time, up to and including mark; what came before it goes to seen.
func skipPast(r io.Reader, mark string, seen io.Writer) error {
	var tail []byte
	var b [1]byte
	for string(tail) != mark {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		tail = append(tail, b[0])
		for !strings.HasPrefix(mark, string(tail)) {
			_, _ = seen.Write(tail[:1])
			tail = tail[1:]
		}
	}
	return nil
}
