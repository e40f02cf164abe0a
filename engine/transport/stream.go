package transport

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
)

// stream is a command in a session of its own: its standard streams are the session's.
type stream struct {
	*started
	in     *bufio.Reader // standard output, without the noise before the command
	alive  func() error
	mark   string
	who    victim
	limit  int64
	ending []byte // standard error, when the session is a terminal
	code   int    // exit status, when the session is a terminal
}

// streamScript is what the sh of a stream reads. It has read all of it before it greets, so that the input sent
// after the greeting goes to the command, whatever the sh reads ahead. The command begins when the greeting was answered with
// an empty line: whoever gives up before that has started nothing. %[1]s is the mark, %[2]s the command, %[3]s a variable that
// the way to another user has set.
const streamScript = `{ unset %[3]s CDPATH; cd 2>/dev/null || cd /
{ read -r _rb_1 _ _ _rb_2 _rb_3 _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _rb_4 _ </proc/self/stat; } 2>/dev/null
printf '\n%%s\n' %[1]s >&2
printf '\n%%s %%s %%s %%s\n' %[1]s "$_rb_2" "$_rb_3" "$_rb_4"
read -r _rb_1 || exit
%[2]s
exit; }
`

// startStream starts c's command as user and waits until it is about to read its input. With input, that comes
// through stream.stdin; c.Stdin and c.Stdout are the caller's business. raw leaves a terminal's input as it is.
func (h *host) startStream(ctx context.Context, user string, c Cmd, input, raw bool) (*stream, error) {
	startCtx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p, err := h.open(startCtx, user)
	if err != nil {
		return nil, h.startError(user, err)
	}
	s := &stream{started: p, in: bufio.NewReaderSize(p.out, 256<<10), alive: h.link.alive, mark: nonce(), limit: c.Limit}
	if s.limit <= 0 {
		s.limit = DefaultLimit
	}
	p.err.setLimit(s.limit + 64<<10)
	body := "exec " + quoteAll(c.Args)
	if c.Script != "" {
		body = "eval " + Quote(c.Script)
	}
	if !input {
		body += " </dev/null"
	}
	body = c.setting() + body
	if p.terminal {
		// One stream both ways, and no end of input but a control character at the start of a line.
		body = "( " + body + ` ) 2>"$_rb_e"`
		if input && !raw {
			body = "base64 -d | " + body
			body = "stty icanon -isig -ixon -icrnl\n" + body
		}
		body = `_rb_e=$(mktemp) || exit` + "\n" + body + "\n_rb_s=$?\n" +
			fmt.Sprintf(`printf '%%s %%s\n' %[1]s $_rb_s; head -c %[2]d <"$_rb_e"; rm -f "$_rb_e"; printf '%%s\n' %[1]s`, s.mark, s.limit+1)
	}
	failed := func(err error) (*stream, error) {
		_ = p.stdin.Close()
		p.close()
		return nil, err
	}
	watchdog := context.AfterFunc(startCtx, p.close)
	defer watchdog()
	if _, err := fmt.Fprintf(p.stdin, streamScript, s.mark, body, leftover(user)); err != nil {
		return failed(h.notReady(startCtx, user, p, nil))
	}
	noise := &output{limit: 64 << 10}
	err = skipPast(s.in, s.mark+" ", noise)
	var line string
	if err == nil {
		line, err = readLine(s.in)
	}
	if err != nil {
		return failed(h.notReady(startCtx, user, p, noise))
	}
	if who := strings.Fields(line); len(who) == 3 {
		s.who = victim{keep: who[0], group: who[1], start: who[2]}
	}
	if err = startCtx.Err(); err == nil {
		_, err = io.WriteString(p.stdin, "\n")
	}
	if err != nil {
		return failed(h.notReady(startCtx, user, p, noise))
	}
	if !input {
		_ = p.stdin.Close()
	}
	return s, nil
}

// leftover names the variable to unset in a sh of user.
func leftover(user string) string {
	if user == "" {
		return "_rb_x"
	}
	return "LC_ALL"
}

// stream runs c over a session of its own.
func (h *host) stream(ctx context.Context, user string, c Cmd) (Output, error) {
	slot := h.bulkSlot(user)
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
	case <-ctx.Done():
		return Output{}, ctx.Err()
	}
	s, err := h.startStream(ctx, user, c, c.Stdin != nil, false)
	switch {
	case err != nil && ctx.Err() == context.DeadlineExceeded:
		if lost := h.silent(); lost != nil {
			return Output{}, h.unreachable(false, lost)
		}
		return Output{}, ctx.Err()
	case err != nil && ctx.Err() != nil:
		return Output{}, ctx.Err()
	case err != nil:
		return Output{}, err
	}
	defer s.close()
	defer h.works(s.who.group)() // whose leader lasts as long as the command

	if c.Stdin != nil {
		go s.feed(c.Stdin)
	}
	kept := &output{limit: s.limit}
	dst := c.Stdout
	if dst == nil {
		dst = kept
	}
	copied := make(chan error, 1)
	go func() { copied <- s.drain(dst) }()

	var timeout <-chan time.Time
	if c.Timeout > 0 {
		t := time.NewTimer(c.Timeout)
		defer t.Stop()
		timeout = t.C
	}
	var cut error // why we end it
	late := false // because its time is over
	select {
	case err = <-copied:
	case <-timeout:
		cut, late = &TimeoutError{After: c.Timeout}, true
	case <-ctx.Done():
		cut, late = ctx.Err(), ctx.Err() == context.DeadlineExceeded
	}
	var failed *writeError
	if errors.As(err, &failed) {
		cut = failed
	}
	if cut != nil {
		_ = h.kill(user, s.who)
		s.close()
		if failed == nil {
			<-copied
		}
	}
	out := Output{Code: s.code}
	out.Stdout, out.Dropped = kept.bytes()
	var dropped int64
	out.Stderr, dropped = s.errors()
	out.Dropped += dropped
	if late {
		if lost := h.silent(); lost != nil { // nobody knows whether it was ended
			return out, h.unreachable(true, lost)
		}
	}
	if timeout, ok := cut.(*TimeoutError); ok {
		timeout.Output = out
		return out, timeout
	}
	if failed != nil {
		return out, fmt.Errorf("cannot pass on a command's output: %w", failed.err)
	}
	if cut != nil {
		return Output{}, cut
	}
	if !s.terminal {
		if err == nil {
			out.Code, err = s.status()
		}
		if err == nil {
			// The status may have come before the last of the output, and the end of that may have been the link's.
			err = s.alive()
		}
	}
	if err != nil {
		if h.ctx.Err() != nil {
			err = errClosed
		} else if lost := h.link.lost(); lost != nil {
			err = lost
		}
		out.Code = 0 // a status may have come, but without all of the output it is no answer
		return out, h.unreachable(true, err)
	}
	if out.Code != 0 {
		return out, &ExitError{Output: out}
	}
	return out, nil
}

func (h *host) bulkSlot(user string) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bulk[user] == nil {
		h.bulk[user] = make(chan struct{}, 1)
	}
	return h.bulk[user]
}

// feed sends r and the end of input. A command that ends early is no error: its status says what it thinks of it.
func (s *stream) feed(r io.Reader) {
	if !s.terminal {
		_, _ = io.CopyBuffer(struct{ io.Writer }{s.stdin}, r, make([]byte, 64<<10))
		_ = s.stdin.Close()
		return
	}
	buf := make([]byte, 48<<10)
	for {
		n, err := io.ReadFull(r, buf)
		text := base64.StdEncoding.EncodeToString(buf[:n])
		var lines strings.Builder
		for len(text) > 0 {
			part := text[:min(1024, len(text))]
			text = text[len(part):]
			lines.WriteString(part + "\n")
		}
		if err != nil {
			lines.WriteByte(4) // end of input, at the start of a line
		}
		if _, werr := io.WriteString(s.stdin, lines.String()); werr != nil || err != nil {
			return
		}
	}
}

// drain copies the output to w until the command has ended. A *writeError is w's.
func (s *stream) drain(w io.Writer) error {
	if s.terminal {
		return s.drainTerminal(w)
	}
	// A daemon that keeps the output open must not keep us: after the exit status, two idle seconds are the end.
	var waiting atomic.Int64 // since when a read waits, as sinceStart tells it; 0: none does
	end := make(chan error, 1)
	go func() {
		buf := make([]byte, 256<<10)
		for {
			waiting.Store(int64(sinceStart()))
			n, err := s.in.Read(buf)
			waiting.Store(0)
			if n > 0 {
				if _, werr := w.Write(buf[:n]); werr != nil {
					end <- &writeError{werr}
					return
				}
			}
			if err == io.EOF {
				end <- nil
				return
			}
			if err != nil {
				end <- err
				return
			}
		}
	}()
	select {
	case err := <-end:
		if err != nil {
			return err
		}
		select { // it may go on without an output
		case <-s.exited:
			return nil
		case <-s.closed:
			return errNoStatus
		}
	case <-s.exited:
	}
	exit := int64(sinceStart())
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-end:
			return err
		case <-tick.C:
			since := waiting.Load()
			if since == 0 || int64(sinceStart())-max(since, exit) < int64(2*time.Second) {
				continue
			}
			// Idle, or a line that stalls: what was on its way has arrived when this returns.
			if err := s.alive(); err != nil {
				s.close()
				<-end
				return err
			}
			time.Sleep(100 * time.Millisecond)
			if waiting.Load() == since {
				s.close() // the read above ends
				<-end
				return nil
			}
		}
	}
}

func (s *stream) drainTerminal(w io.Writer) error {
	if err := copyUntil(s.in, []byte(s.mark), w); err != nil {
		return noEOF(err)
	}
	line, err := readLine(s.in)
	if err != nil {
		return noEOF(err)
	}
	if _, err := fmt.Sscanf(line, "%d", &s.code); err != nil {
		return errFrame
	}
	errs := &output{limit: s.limit}
	if err := copyUntil(s.in, []byte(s.mark), errs); err != nil {
		return noEOF(err)
	}
	s.ending = errs.kept
	return nil
}

// noEOF makes the end of a stream that should have gone on an error.
func noEOF(err error) error {
	if err == io.EOF {
		return errNoStatus
	}
	return err
}

// errors returns the command's standard error.
func (s *stream) errors() ([]byte, int64) {
	if s.terminal {
		return s.ending, 0
	}
	for open := true; open; {
		select {
		case <-s.err.done:
			open = false
		case <-s.err.changed:
		case <-time.After(time.Second): // a daemon keeps it open
			open = false
		}
	}
	text, dropped := s.err.bytes()
	if i := bytes.Index(text, []byte(s.mark+"\n")); i >= 0 {
		text = text[i+len(s.mark)+1:]
	}
	if over := int64(len(text)) - s.limit; over > 0 {
		text, dropped = text[:s.limit], dropped+over
	}
	return text, dropped
}

// writeError is the failure of the writer that a command's output goes to.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// startError says why a shell could not be started.
func (h *host) startError(user string, err error) error {
	var refused *BecomeError
	var unreachable *UnreachableError
	switch {
	case errors.As(err, &refused), errors.As(err, &unreachable):
		return err
	case h.ctx.Err() != nil:
		return h.unreachable(false, errClosed)
	}
	if lost := h.silent(); lost != nil {
		return h.unreachable(false, lost)
	}
	return h.unreachable(false, fmt.Errorf("cannot start a shell: %w", err))
}

// notReady says why a sh that was started did not greet.
func (h *host) notReady(ctx context.Context, user string, p *started, noise *output) error {
	if noise == nil {
		noise = &output{}
	}
	select {
	case <-p.exited:
	case <-p.err.done:
	case <-time.After(time.Second):
	}
	// A link that breaks ends the streams a moment before it is known to be lost.
	select {
	case <-p.exited:
	case <-time.After(200 * time.Millisecond):
	}
	switch {
	case h.ctx.Err() != nil:
		return h.unreachable(true, errClosed)
	case h.link.lost() != nil:
		return h.unreachable(true, h.link.lost())
	case ended(p) == errNoStatus:
		return h.unreachable(true, errNoStatus)
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	}
	// What has been said last, or nothing, is the host's answer only if there is one.
	if lost := h.silent(); lost != nil {
		return h.unreachable(true, lost)
	}
	reason := h.whyRefused(p, noise, false)
	late := ctx.Err() != nil
	if late {
		reason = fmt.Sprintf("no answer within %s: %s", startLimit, reason)
	}
	if user != "" {
		err := h.becomeError(user, reason)
		if !late {
			h.refuse(err)
		}
		return err
	}
	if said, _ := noise.bytes(); len(lastWords(said)) > 0 {
		reason += "; " + lastWords(said)
	}
	// One that is late may begin yet, with what it was sent.
	return h.unreachable(late, fmt.Errorf("the login shell does not start %s: %s", h.interpreter, reason))
}

// silent asks the host for a sign of life, and returns why there is none. A link that has fallen silent takes its time to be found.
func (h *host) silent() error {
	err := h.link.alive()
	if lost := h.link.lost(); lost != nil {
		return lost
	}
	return err
}

// ended is the error with which a process ended, nil while it has not.
func ended(p *started) error {
	select {
	case <-p.exited:
		_, err := p.status()
		return err
	default:
		return nil
	}
}

// victim is a command to end: the one that a shell's directory tells of, or the group of a stream.
type victim struct {
	dir   string // a shell's private directory, and
	seq   int    // the command's number there
	keep  string // the process that must survive, with those above it
	group string // process group, and
	start string // when its first process was started, in the kernel's ticks
}

// killScript ends a command's processes. Those of a stream are its process group, without what is above it. A shell's
// commands share its group, for a group of their own would take another exec: the command is the shell's one child,
// and its processes are those of the group that are not older, at a moment when the shell is still at that command,
// and their children. Whatever the shell does next is not touched. A command that is yet to begin finds k$n and does not.
const killScript = `
split() {
	pid=${1%% *}
	set -- ${1##*) }
	state=$1 parent=$2 group=$3 began=${20}
}
read_all() {
	set +f
	all=$(cat /proc/[0-9]*/stat | sort -n) # parents come before their children, who would let them go on
	set -f
	IFS='
'
}
running() {
	read -r s <"$d/p" && [ "$s" = "$n" ]
}
each() {
	none=1
	read_all
	for line in $all; do
		IFS=' '
		split "$line"
		[ "$state" != Z ] || continue
		if [ "$list" ]; then
			case $list in
			*" $pid:$began "*) ;;
			*" $parent:"*) list="$list$pid:$began " ;;
			*) continue ;;
			esac
		else
			[ "$group" = "$g" ] && [ "$began" -ge "$t" ] || continue
			case $above in *" $pid "*) continue ;; esac
		fi
		none=0
		kill "-$1" "$pid"
	done
	return $none
}
above=' ' pid=$keep
while [ "${pid:-0}" -gt 1 ]; do
	above="$above$pid "
	read -r line <"/proc/$pid/stat" || break
	split "$line"
	pid=$parent
done
list=
if [ "$d" ]; then
	printf '' >"$d/k$n"
	running || exit 0
	read_all
	for line in $all; do
		IFS=' '
		split "$line"
		[ "$parent" != "$keep" ] || [ "$state" = Z ] || g=$group t=$began
	done
	[ "$g" ] || exit 0
	list=' ' IFS='
'
	for line in $all; do
		IFS=' '
		split "$line"
		[ "$group" = "$g" ] && [ "$began" -ge "$t" ] || continue
		case $above in *" $pid "*) continue ;; esac
		list="$list$pid:$began "
	done
	running || exit 0
fi
each TERM || exit 0
for pause in 0.05 0.1 0.2 0.4 0.6 0.7; do
	sleep $pause || sleep 1
	each 0 || exit 0
done
each KILL && each KILL
exit 0
`

// kill ends a command of user: SIGTERM, two seconds of grace, SIGKILL. It works from a session of its own, so that
// neither the command nor the shell that waits for it has to take part.
func (h *host) kill(user string, v victim) error {
	if h.link.lost() != nil {
		return h.link.lost()
	}
	ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
	defer cancel()
	head := fmt.Sprintf("d=%s n=%d keep=%s g=%s t=%s\n", Quote(v.dir), v.seq, Quote(v.keep), Quote(v.group), Quote(v.start))
	s, err := h.startStream(ctx, user, Cmd{Script: head + killScript}, false, false)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	defer s.close()
	return s.drain(io.Discard)
}

// setLimit changes how much is kept.
func (o *output) setLimit(limit int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limit = limit
}
