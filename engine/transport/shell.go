package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// bootstrap is what a shell reads first. It makes the private directory (its name is unguessable and mkdir fails on
// what exists), removes what dead shells left there more than a day ago, and defines two functions:
//
//	_rb_d    FILE NONCE BLOCKS: sends a file, at most BLOCKS of 64 KiB; sets _rb_z to its size if it holds more
//	_rb_r    NONCE BLOCKS STATUS: the reply: standard output, NONCE, size; standard error, NONCE, size, status
//
// The shell itself ignores the signals that a command may send to its whole process group; commands do not inherit
// that. It starts no process for a command without output, and one for each stream that has some. %[1]s is the
// greeting's nonce, %[2]s a variable that the
// way to another user has set.
const bootstrap = `unset %[2]s CDPATH _rb_d _rb_t _rb_o
cd 2>/dev/null || cd /
for _rb_x in "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm "$HOME"; do
_rb_d=$_rb_x/.runbook-$$-%[1]s
mkdir -m 700 "$_rb_d" 2>/dev/null && { printf x >"$_rb_d/p"; } 2>/dev/null && break
_rb_d=
done
trap 'rm -rf "$_rb_d"' EXIT
trap : HUP INT TERM PIPE
_rb_o=$(command -v setsid)
[ -t 0 ] && _rb_t=$_rb_o
_rb_d() {
_rb_z=-
[ -s "$1" ] || return 0
{ _rb_z=$(dd if="$1" bs=65536 count="$3" 2>&1 >&3); } 3>&1
case $_rb_z in "$3"+*) _rb_z=$(wc -c <"$1") ;; [0-9]*+*) _rb_z=- ;; *) _rb_z=! ;; esac
printf '' >"$1"
}
_rb_r() {
printf '' >"$_rb_d/p"
if [ ! -e "$_rb_f.o" ] || [ ! -e "$_rb_f.e" ]; then printf '%%s -\n%%s - x\n' "$1" "$1"; return; fi
_rb_d "$_rb_f.o" "$1" "$2"
if [ -s "$_rb_f.e" ]; then
printf '%%s %%s\n' "$1" "$_rb_z"
_rb_d "$_rb_f.e" "$1" "$2"
printf '%%s %%s %%s\n' "$1" "$_rb_z" "$3"
else
printf '%%s %%s\n%%s - %%s\n' "$1" "$_rb_z" "$1" "$3"
fi || exit
case $_rb_n in *00) rm -f "$_rb_d"/[0-9]* ;; esac
}
printf '\n%%s %%s %%s\n' %[1]s $$ "$_rb_d"
[ "$_rb_d" ] || exit 1
( ( set -- "${_rb_d%%/*}"/.runbook-*
[ $# -gt 1 ] && find "${_rb_d%%/*}" -maxdepth 1 -type d -name '.runbook-*' -user "$(id -u)" -mtime +0 | while read -r _rb_x; do
_rb_1=${_rb_x##*/.runbook-}; [ -d "/proc/${_rb_1%%%%-*}" ] || rm -rf "$_rb_x"
done ) </dev/null >/dev/null 2>&1 & )
`

// request is a Cmd on its way through a shell.
type request struct {
	nonce string
	text  string // without the lines that number it
	limit int64
	after time.Duration

	seq     int
	written bool          // it has been given to the writer; guarded by shell.mu
	started chan struct{} // closed when nothing is before it
	done    chan struct{} // closed when out, code and err are set
	out     Output
	err     error
}

// newRequest makes the sh text that runs c. Its last line is complete only with its last byte, so that of a request
// that was cut off nothing is run.
func newRequest(c Cmd, interpreter string) (*request, error) {
	r := &request{nonce: nonce(), limit: c.Limit, after: c.Timeout, started: make(chan struct{}), done: make(chan struct{})}
	if r.limit <= 0 {
		r.limit = DefaultLimit
	}
	var b strings.Builder
	input := "/dev/null"
	if c.Stdin != nil {
		content, err := io.ReadAll(c.Stdin)
		if err != nil {
			return nil, fmt.Errorf("cannot read a command's input: %w", err)
		}
		if len(content) > 0 {
			input = `"$_rb_f.i"`
			appendStore(&b, input, content)
		}
	}
	var body string
	if c.Script == "" {
		body = "exec $_rb_t " + quoteAll(c.Args)
	} else {
		appendStore(&b, `"$_rb_f.c"`, []byte(c.Script))
		body = `. "$_rb_f.c"`
		if wantsOwnShell(c.Script) {
			body = "exec $_rb_o " + interpreter + ` "$_rb_f.c"`
		}
	}
	fmt.Fprintf(&b, `if [ "$_rb_b" ]; then _rb_s=x; else printf '%%s\n' $_rb_n >"$_rb_d/p"; ( [ ! -e "$_rb_d/k$_rb_n" ] || exit 143; %s%s ) <%s >"$_rb_f.o" 2>"$_rb_f.e"; _rb_s=$?; fi; `,
		c.setting(), body, input)
	if input != "/dev/null" {
		b.WriteString(`printf '' >"$_rb_f.i"; `)
	}
	if c.Script != "" {
		b.WriteString(`printf '' >"$_rb_f.c"; `)
	}
	fmt.Fprintf(&b, "_rb_r %s %d \"$_rb_s\"\n", r.nonce, r.limit/65536+1)
	r.text = b.String()
	return r, nil
}

// setting is the sh text that enters c's directory and sets its environment.
func (c *Cmd) setting() string {
	var b strings.Builder
	if c.Dir != "" {
		dir := c.Dir
		if strings.HasPrefix(dir, "-") {
			dir = "./" + dir
		}
		fmt.Fprintf(&b, "cd %s || exit; ", Quote(dir))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		fmt.Fprintf(&b, "export %s=%s; ", name, Quote(c.Env[name]))
	}
	return b.String()
}

// wantsOwnShell tells whether a script could notice that it is run by a fork of our shell and not by one of its own:
// the process number would be our shell's. A fork costs a fifth of a new sh.
func wantsOwnShell(script string) bool {
	for _, word := range []string{"$$", "${$", "PPID", "kill", "_rb_"} {
		if strings.Contains(script, word) {
			return true
		}
	}
	return false
}

// shell is one long-lived sh of one user. Requests are written as they come and answered in that order.
type shell struct {
	host  *host
	user  string
	ended chan struct{} // closed when serve has returned
	wake  chan struct{} // has a token when there is something to write

	mu      sync.Mutex
	err     error      // why the shell takes no more requests
	next    int        // the next request's number
	unsent  []*request // not yet given to the writer
	pending []*request // without a reply; unsent ones included
	proc    *started
	greeted chan struct{}
	dir     string // the private directory, once greeted
	pid     string
}

func newShell(h *host, user string) *shell {
	return &shell{host: h, user: user, ended: make(chan struct{}), wake: make(chan struct{}, 1), greeted: make(chan struct{}), next: 1}
}

// add queues r. It reports false if the shell has ended.
func (s *shell) add(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false
	}
	r.seq = s.next
	s.next++
	s.unsent = append(s.unsent, r)
	s.pending = append(s.pending, r)
	if len(s.pending) == 1 && s.dir != "" {
		close(r.started)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

// serve starts the sh, writes requests to it and reads replies until it ends.
func (s *shell) serve() {
	defer close(s.ended)
	err := s.talk()
	s.mu.Lock()
	pending := s.pending
	s.pending, s.unsent, s.err = nil, nil, err
	if s.proc != nil {
		s.proc.close()
	}
	s.mu.Unlock()
	for _, r := range pending {
		r.err = err
		var lost *UnreachableError
		if errors.As(err, &lost) {
			one := *lost
			one.MayHave = one.MayHave && r.written
			r.err = &one
		}
		close(r.done)
	}
}

// talk returns why the conversation ended.
func (s *shell) talk() error {
	ctx, cancel := context.WithTimeout(s.host.ctx, startLimit)
	defer cancel()
	p, err := s.host.open(ctx, s.user)
	if err != nil {
		return s.host.startError(s.user, err)
	}
	s.mu.Lock()
	s.proc = p
	stopped := s.err != nil
	s.mu.Unlock()
	if stopped {
		p.close()
		return s.host.unreachable(false, errClosed)
	}
	hello := nonce()
	stop := make(chan struct{})
	defer close(stop)
	go s.write(p.stdin, fmt.Sprintf(bootstrap, hello, leftover(s.user)), stop)

	watchdog := context.AfterFunc(ctx, p.close)
	in := bufio.NewReaderSize(p.out, 64<<10)
	noise := &output{limit: 64 << 10}
	err = skipPast(in, hello+" ", noise)
	var line string
	if err == nil {
		line, err = readLine(in)
	}
	if !watchdog() || err != nil {
		return s.host.notReady(ctx, s.user, p, noise)
	}
	pid, dir, _ := strings.Cut(line, " ")
	if dir == "" {
		return fmt.Errorf("cannot run commands on %s: no directory for temporary files can be written "+
			"(tried $TMPDIR, /tmp, /var/tmp, /dev/shm and the home directory)", s.host.name)
	}
	s.mu.Lock()
	s.dir, s.pid = dir, pid
	close(s.greeted)
	if len(s.pending) > 0 {
		close(s.pending[0].started)
	}
	s.mu.Unlock()
	defer s.host.works(pid)()
	for {
		if _, err := in.Peek(1); err != nil {
			return s.whyEnded(p)
		}
		s.mu.Lock()
		var r *request
		if len(s.pending) > 0 {
			r = s.pending[0]
		}
		s.mu.Unlock()
		if r == nil {
			return s.host.unreachable(false, errors.New("the host sent a reply that nothing asked for"))
		}
		if err := r.read(in, s.dir); err != nil {
			if errors.Is(err, errFrame) {
				return s.host.unreachable(true, err)
			}
			return s.whyEnded(p)
		}
		s.mu.Lock()
		s.pending = s.pending[1:]
		if len(s.pending) > 0 {
			close(s.pending[0].started)
		}
		s.mu.Unlock()
		close(r.done)
	}
}

// write sends first and then whatever is queued, all that there is in one go.
func (s *shell) write(w io.Writer, first string, stop <-chan struct{}) {
	text := first
	for {
		s.mu.Lock()
		batch := s.unsent
		s.unsent = nil
		for _, r := range batch {
			r.written = true
		}
		s.mu.Unlock()
		for _, r := range batch {
			text += fmt.Sprintf("_rb_n=%d; _rb_f=$_rb_d/%d; _rb_b=\n", r.seq, r.seq) + r.text
		}
		if text != "" {
			if _, err := io.WriteString(w, text); err != nil {
				return // the reader finds out why
			}
		}
		text = ""
		select {
		case <-s.wake:
		case <-stop:
			return
		}
	}
}

// whyEnded explains why replies stopped.
func (s *shell) whyEnded(p *started) error {
	if err := s.host.ctx.Err(); err != nil {
		return s.host.unreachable(true, errClosed)
	}
	select {
	case <-p.exited:
	case <-time.After(time.Second):
	}
	if err := s.host.link.lost(); err != nil {
		return s.host.unreachable(true, err)
	}
	return s.host.unreachable(true, fmt.Errorf("the shell on the host ended%s", p.farewell()))
}

// farewell is how a process ended and what it said, as the end of a sentence.
func (p *started) farewell() string {
	var text string
	select {
	case <-p.exited:
		if code, err := p.status(); err == nil {
			text = fmt.Sprintf(" with exit status %d", code)
		}
	default:
	}
	said, _ := p.err.bytes()
	if words := lastWords(said); words != "" {
		text += ": " + words
	}
	return text
}

// hangUp ends the shell by the end of its input. A command that runs is not waited for.
func (s *shell) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = errClosed
	}
	if s.proc != nil {
		s.proc.close()
	}
}

// errFrame says that a host's reply is not what our functions send.
var errFrame = errors.New("the host's reply is garbled")

// read reads r's reply.
func (r *request) read(in *bufio.Reader, dir string) error {
	var out, errs output
	out.limit, errs.limit = r.limit, r.limit
	if err := copyUntil(in, []byte(r.nonce), &out); err != nil {
		return err
	}
	outEnd, err := readLine(in)
	if err != nil {
		return err
	}
	if err := copyUntil(in, []byte(r.nonce), &errs); err != nil {
		return err
	}
	errEnd, err := readLine(in)
	if err != nil {
		return err
	}
	size, status, ok := strings.Cut(strings.TrimSpace(errEnd), " ")
	if !ok {
		return errFrame
	}
	for i, end := range []string{strings.TrimSpace(outEnd), size} {
		o := []*output{&out, &errs}[i]
		switch total, err := strconv.ParseInt(end, 10, 64); {
		case end == "!":
			r.err = fmt.Errorf("cannot read a command's output from %s", dir)
		case end == "-":
		case err != nil || total < int64(len(o.kept)):
			return errFrame
		default:
			o.dropped = total - int64(len(o.kept))
		}
	}
	r.out = Output{Stdout: out.kept, Stderr: errs.kept, Dropped: out.dropped + errs.dropped}
	if status == "x" {
		r.err = fmt.Errorf("cannot store a command's input or output in %s: is the disk full, or was the directory removed?", dir)
		return nil
	}
	if r.out.Code, err = strconv.Atoi(status); err != nil {
		return errFrame
	}
	return nil
}

// copyUntil copies what comes before mark to w and reads past mark.
func copyUntil(in *bufio.Reader, mark []byte, w io.Writer) error {
	want := len(mark)
	for {
		if _, err := in.Peek(want); err != nil {
			return err
		}
		data, _ := in.Peek(in.Buffered())
		i := bytes.Index(data, mark)
		if i >= 0 {
			if _, err := w.Write(data[:i]); err != nil {
				return &writeError{err}
			}
			_, err := in.Discard(i + len(mark))
			return err
		}
		// The mark may have begun in the last bytes.
		n := len(data) - len(mark) + 1
		if _, err := w.Write(data[:n]); err != nil {
			return &writeError{err}
		}
		if _, err := in.Discard(n); err != nil {
			return err
		}
	}
}

// readLine reads the short rest of a line.
func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		return "", errFrame
	}
	return strings.TrimSuffix(string(line), "\n"), err
}

// await waits for r's reply, and ends the command at its timeout or with ctx.
func (s *shell) await(ctx context.Context, r *request) (Output, error) {
	var timeout <-chan time.Time
	started := r.started
	for {
		select {
		case <-r.done:
			return r.result()
		case <-started:
			started = nil
			if r.after > 0 {
				t := time.NewTimer(r.after)
				defer t.Stop()
				timeout = t.C
			}
		case <-timeout:
			s.abandon(r)
			if err := s.lostWith(r); err != nil {
				return r.out, err
			}
			return r.out, &TimeoutError{After: r.after, Output: r.out}
		case <-ctx.Done():
			s.abandon(r)
			if ctx.Err() == context.DeadlineExceeded {
				if err := s.lostWith(r); err != nil {
					return Output{}, err
				}
			}
			return Output{}, ctx.Err()
		}
	}
}

func (r *request) result() (Output, error) {
	if r.err == nil && r.out.Code != 0 {
		return r.out, &ExitError{Output: r.out}
	}
	return r.out, r.err
}

// lostWith is the error of r, which was given up for its time was over, if it was the host that did not answer: then nobody knows whether
// it was ended. Else it is nil.
func (s *shell) lostWith(r *request) error {
	select {
	case <-r.done:
		var lost *UnreachableError
		if errors.As(r.err, &lost) {
			return r.err
		}
	default:
	}
	if lost := s.host.silent(); lost != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.host.unreachable(r.written, lost)
	}
	return nil
}

// abandon takes r out of the queue, or ends it on the host, so that the requests behind it get their turn.
func (s *shell) abandon(r *request) {
	s.mu.Lock()
	if !r.written {
		s.unsent = slices.DeleteFunc(s.unsent, func(o *request) bool { return o == r })
		i := slices.Index(s.pending, r)
		if i >= 0 {
			s.pending = slices.Delete(s.pending, i, i+1)
			if i == 0 && len(s.pending) > 0 && s.dir != "" {
				close(s.pending[0].started)
			}
		}
		s.mu.Unlock()
		return
	}
	dir, pid := s.dir, s.pid
	running := len(s.pending) > 0 && s.pending[0] == r
	alone := len(s.pending) == 1
	p := s.proc
	s.mu.Unlock()
	if dir == "" {
		// The shell has not answered yet, and must not run what nobody waits for any more.
		if alone {
			p.close()
		} else {
			go s.killLater(r)
		}
		return
	}
	err := s.host.kill(s.user, victim{dir: dir, seq: r.seq, keep: pid})
	if !running && err == nil {
		return // its place in the queue answers for itself when its turn comes
	}
	select {
	case <-r.done:
	case <-time.After(5 * time.Second):
		// It could not be ended. Those behind it are told, rather than left to wait for ever.
		p.close()
		<-s.ended
	}
}

// killLater ends r once the shell can say where it is.
func (s *shell) killLater(r *request) {
	select {
	case <-s.greeted:
		_ = s.host.kill(s.user, victim{dir: s.dir, seq: r.seq, keep: s.pid})
	case <-s.ended:
	}
}
