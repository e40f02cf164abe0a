package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
)

func (h *host) Dial(ctx context.Context, user, network, addr string) (net.Conn, error) {
	if network != "tcp" && network != "unix" {
		return nil, fmt.Errorf("cannot connect to %s: network %q is neither tcp nor unix", addr, network)
	}
	if strings.ContainsAny(addr, "\x00\n") || addr == "" {
		return nil, fmt.Errorf("cannot connect to %q: not an address", addr)
	}
	if user == h.login {
		user = ""
	}
	h.mu.Lock()
	closed := h.closed
	h.mu.Unlock()
	if closed {
		return nil, h.unreachable(false, errClosed)
	}
	if err := h.link.lost(); err != nil {
		return nil, h.unreachable(false, err)
	}
	var conn net.Conn
	err := errNoForward
	if network == "tcp" || user == "" {
		conn, err = h.link.dial(ctx, network, addr)
		if err == nil {
			if _, local := h.link.(*localLink); local {
				return conn, nil
			}
			return h.withDeadlines(conn, func() error { return nil }), nil
		}
	}
	if errors.Is(err, errNoForward) {
		conn, err = h.relay(ctx, user, network, addr)
	}
	if err == nil {
		return conn, nil
	}
	var refused *BecomeError
	var unreachable *UnreachableError
	if lost := h.link.lost(); lost != nil {
		return nil, h.unreachable(false, lost)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if errors.As(err, &refused) || errors.As(err, &unreachable) {
		return nil, err
	}
	return nil, fmt.Errorf("cannot connect to %s from %s: %w", addr, h.name, err)
}

// relayScript connects as the user it runs as, says so on a line, and passes bytes both ways, with the first tool there
// is. $n is the network, $a the path or host, $q the same for socat, $p the port.
const relayScript = `
if command -v perl >/dev/null; then exec perl -e "$perl" "$n" "$a" "$p"; fi
if [ "$n" = unix ] && [ ! -S "$a" ]; then printf 'no such socket\n' >&2; exit 3; fi
if command -v socat >/dev/null; then
	echo connected
	if [ "$n" = unix ]; then exec socat - "UNIX-CONNECT:$q"; fi
	exec socat - "TCP:$q:$p"
fi
for nc in nc ncat; do
	if command -v $nc >/dev/null && $nc -h 2>&1 | grep -q -e '-[A-Za-z0-9]*U'; then
		echo connected
		if [ "$n" = unix ]; then exec $nc -U "$a"; fi
		exec $nc "$a" "$p"
	fi
done
if command -v python3 >/dev/null; then exec python3 -c "$python" "$n" "$a" "$p"; fi
printf 'the host needs one of perl, socat, nc (with -U) or python3 for this\n' >&2
exit 4
`

const perlRelay = `use strict; use Socket; use Errno qw(EAGAIN EINTR); use Fcntl;
my ($n, $a, $p) = @ARGV; my $s; my $to;
sub fail { print STDERR "$_[0]\n"; exit 3 }
if ($n eq "unix") { socket($s, PF_UNIX, SOCK_STREAM, 0) or fail($!); $to = pack_sockaddr_un($a) }
else { socket($s, PF_INET, SOCK_STREAM, getprotobyname("tcp")) or fail($!);
  $to = sockaddr_in($p, inet_aton($a) || fail("no such host")) }
connect($s, $to) or fail($!);
syswrite(STDOUT, "connected\n");
for ($s, \*STDOUT) { fcntl($_, F_SETFL, fcntl($_, F_GETFL, 0) | O_NONBLOCK) }
my ($up, $down, $in, $out, $shut, $f) = ("", "", 1, 1, 0, fileno($s));
while ($out || length $down) {
  my ($r, $w) = ("", "");
  vec($r, 0, 1) = 1 if $in && length($up) < 65536;
  vec($r, $f, 1) = 1 if $out && length($down) < 65536;
  vec($w, $f, 1) = 1 if length $up;
  vec($w, 1, 1) = 1 if length $down;
  select($r, $w, undef, undef) >= 0 or next;
  if (vec($r, 0, 1)) { my $k = sysread(STDIN, $up, 65536, length $up); $in = 0 if defined $k ? !$k : $! != EAGAIN && $! != EINTR }
  if (vec($r, $f, 1)) { my $k = sysread($s, $down, 65536, length $down); $out = 0 if defined $k ? !$k : $! != EAGAIN && $! != EINTR }
  if (vec($w, $f, 1)) { my $k = syswrite($s, $up); if (defined $k) { substr($up, 0, $k) = "" } elsif ($! != EAGAIN && $! != EINTR) { $up = ""; $in = 0 } }
  if (vec($w, 1, 1)) { my $k = syswrite(STDOUT, $down); if (defined $k) { substr($down, 0, $k) = "" } elsif ($! != EAGAIN && $! != EINTR) { exit 0 } }
  if (!$in && !length $up && !$shut) { shutdown($s, 1); $shut = 1 }
}
`

const pythonRelay = `import os, socket, sys, threading
n, a, p = sys.argv[1:4]
try:
    if n == "unix":
        s = socket.socket(socket.AF_UNIX); s.connect(a)
    else:
        s = socket.create_connection((a, int(p)))
except OSError as e:
    sys.stderr.write("%s\n" % e.strerror); sys.exit(3)
os.write(1, b"connected\n")
def up():
    while True:
        b = os.read(0, 65536)
        if not b:
            break
        s.sendall(b)
    s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=up); t.daemon = True; t.start()
while True:
    b = s.recv(65536)
    if not b:
        break
    while b:
        b = b[os.write(1, b):]
os._exit(0)
`

// relay connects through a process of user on the host.
func (h *host) relay(ctx context.Context, user, network, addr string) (net.Conn, error) {
	target, port := addr, ""
	if network == "tcp" {
		var err error
		if target, port, err = net.SplitHostPort(addr); err != nil {
			return nil, err
		}
	}
	forSocat := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`, `!`, `\!`, `"`, `\"`, `'`, `\'`, `(`, `\(`, `[`, `\[`, `{`, `\{`).Replace(target)
	script := fmt.Sprintf("n=%s a=%s q=%s p=%s\nperl=%s\npython=%s\n%s", network, Quote(target), Quote(forSocat), Quote(port),
		Quote(perlRelay), Quote(pythonRelay), relayScript)
	s, err := h.startStream(ctx, user, Cmd{Script: script}, true, true)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, s.close)
	line, err := readLine(s.in)
	if !stop() {
		return nil, ctx.Err()
	}
	if err != nil || line != "connected" {
		if s.terminal && strings.HasPrefix(line, s.mark) { // what the command said comes after its status
			said := &output{limit: s.limit}
			_ = copyUntil(s.in, []byte(s.mark), said)
			s.ending, line = said.kept, ""
		}
		text, _ := s.errors()
		s.close()
		return nil, errors.New(lastWords(append([]byte(line+"\n"), text...)))
	}
	return h.withDeadlines(&relayed{s}, func() error {
		if text, _ := s.errors(); len(text) > 0 {
			return errors.New(lastWords(text))
		}
		return nil
	}), nil
}

// relayed is a relay's standard streams as one.
type relayed struct{ s *stream }

func (r *relayed) Read(p []byte) (int, error)  { return r.s.in.Read(p) }
func (r *relayed) Write(p []byte) (int, error) { return r.s.stdin.Write(p) }
func (r *relayed) Close() error {
	_ = r.s.stdin.Close()
	r.s.close()
	return nil
}

// withDeadlines makes a net.Conn with deadlines of a stream without, which is what SSH channels are. why explains an
// end of the stream, nil if nothing is wrong.
func (h *host) withDeadlines(rw io.ReadWriteCloser, why func() error) net.Conn {
	ours, theirs := net.Pipe()
	c := &dialed{Conn: theirs, host: h, why: why}
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{rw}, ours) // ends when the caller closes
		_ = rw.Close()
	}()
	go func() {
		_, _ = io.Copy(ours, struct{ io.Reader }{rw})
		c.end() // knows better than the copy why it ended
		_ = ours.Close()
	}()
	return c
}

// dialed is a connection from the host. It ends with the reason for it.
type dialed struct {
	net.Conn
	host *host
	why  func() error

	mu  sync.Mutex
	err error
}

func (c *dialed) end() {
	err := c.why()
	if lost := c.host.link.lost(); lost != nil {
		err = c.host.unreachable(true, lost)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *dialed) reason(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil && (err == io.EOF || err == io.ErrClosedPipe) {
		return c.err
	}
	return err
}

func (c *dialed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.reason(err)
}

func (c *dialed) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.reason(err)
}
