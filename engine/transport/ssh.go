package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/melbahja/goph"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// sshLink starts processes over one SSH connection.
type sshLink struct {
	client *goph.Client
	conn   *wire
	jumps  []io.Closer // the connections below, innermost last
	done   chan struct{}

	mu     sync.Mutex
	reason error // why the connection is gone
}

// newSSH connects: TCP, handshakes and authentication of all hops share cfg.ConnectTimeout.
func newSSH(ctx context.Context, cfg Config) (*host, error) {
	if cfg.Name == "" {
		cfg.Name = cfg.Address
	}
	hops, err := route(cfg)
	if err != nil {
		return nil, &UnreachableError{Host: cfg.Name, Err: err}
	}
	clock := newClock(ctx, cmp.Or(cfg.ConnectTimeout, 20*time.Second))
	defer clock.stop()
	l := &sshLink{done: make(chan struct{})}
	for i, h := range hops {
		client, conn, err := h.connect(clock, cfg, l.client)
		if err != nil {
			_ = l.closeAll()
			e := &UnreachableError{Host: cfg.Name, Err: err, Advice: advice(h, err)}
			if clock.late() {
				e.Err = fmt.Errorf("no connection within %s: %w", clock.limit, err)
			} else if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if i < len(hops)-1 {
				e.Err = fmt.Errorf("jump host %s: %w", h.alias, e.Err)
			}
			return nil, e
		}
		if l.client != nil {
			l.jumps = append(l.jumps, l.client)
		}
		l.client, l.conn = client, conn
	}
	go func() {
		err := l.client.Wait()
		l.fail(fmt.Errorf("the connection was lost: %w", cmp.Or[error](err, io.EOF)))
		close(l.done)
	}()
	go l.keepAlive(cmp.Or(cfg.Keepalive, 15*time.Second))
	return newHost(cfg, hops[len(hops)-1].user, l), nil
}

// connect logs in to h, over TCP or through the client of the hop before.
func (h *hop) connect(clock *clock, cfg Config, through *goph.Client) (*goph.Client, *wire, error) {
	check, keyTypes, err := h.hostKeys()
	if err != nil {
		return nil, nil, err
	}
	var conn net.Conn
	if through == nil {
		conn, err = new(net.Dialer).DialContext(clock.ctx, "tcp", h.hostPort())
	} else {
		conn, err = through.DialContext(clock.ctx, "tcp", h.hostPort())
	}
	if err != nil {
		return nil, nil, err
	}
	w := newWire(conn)
	// A connection through another has no deadlines: to close it works for all kinds.
	stop := context.AfterFunc(clock.ctx, func() { _ = w.Close() })
	id := &identity{hop: h, cfg: cfg, pause: clock.pause}
	defer id.close()
	var refused error // what ssh makes of an error loses its type
	sshCfg := &ssh.ClientConfig{
		User:              h.user,
		Auth:              id.auth(),
		HostKeyAlgorithms: keyTypes,
		HostKeyCallback: func(name string, remote net.Addr, key ssh.PublicKey) error {
			refused = check(name, remote, key)
			return refused
		},
	}
	// Where both ends have AES instructions, which is everywhere by now, this is the fastest by far.
	sshCfg.Ciphers = ssh.SupportedAlgorithms().Ciphers
	slices.SortStableFunc(sshCfg.Ciphers, func(a, b string) int {
		return cmp.Compare(cipherRank(a), cipherRank(b))
	})
	c, channels, requests, err := ssh.NewClientConn(w, h.hostPort(), sshCfg)
	if !stop() && err == nil {
		_ = c.Close()
		err = clock.ctx.Err()
	}
	if err != nil {
		_ = w.Close()
		if refused != nil {
			return nil, nil, refused
		}
		if len(id.problems) > 0 {
			err = fmt.Errorf("%w (%s)", err, strings.Join(id.problems, "; "))
		}
		return nil, nil, err
	}
	return &goph.Client{Client: ssh.NewClient(c, channels, requests), Config: &goph.Config{
		User: h.user, Addr: h.address, Port: uint(h.port), Callback: check}}, w, nil
}

func cipherRank(name string) int {
	if name == ssh.CipherAES128GCM {
		return 0
	}
	return 1
}

// clock is the time that connecting may take. It stands still while a person types a passphrase.
type clock struct {
	limit  time.Duration
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	timer   *time.Timer
	left    time.Duration
	since   time.Time
	expired bool
}

func newClock(ctx context.Context, limit time.Duration) *clock {
	c := &clock{limit: limit, left: limit, since: time.Now()}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.timer = time.AfterFunc(limit, c.expire)
	return c
}

func (c *clock) expire() {
	c.mu.Lock()
	c.expired = true
	c.mu.Unlock()
	c.cancel()
}

func (c *clock) late() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.expired
}

// pause stops the clock and returns what lets it go on.
func (c *clock) pause() func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.timer.Stop() {
		return func() {}
	}
	c.left -= time.Since(c.since)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.since = time.Now()
		c.timer.Reset(max(c.left, time.Millisecond))
	}
}

func (c *clock) stop() {
	c.timer.Stop()
	c.cancel()
}

// wire is the connection to the first server. It remembers when something arrived last, and has the kernel acknowledge
// at once: sshd leaves Nagle's algorithm on for sessions without a terminal, and a delayed acknowledgement then stalls
// every reply of more than one piece by 40 ms.
type wire struct {
	net.Conn
	tcp  syscallConn
	last atomic.Int64 // nanoseconds, by the clock of sinceStart
}

var programStart = time.Now()

// sinceStart is a clock that nobody sets.
func sinceStart() time.Duration { return time.Since(programStart) }

type syscallConn interface {
	Control(f func(fd uintptr)) error
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn}
	w.last.Store(int64(sinceStart()))
	if t, ok := conn.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			w.tcp = raw
		}
	}
	return w
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.last.Store(int64(sinceStart()))
		if w.tcp != nil {
			_ = w.tcp.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
			})
		}
	}
	return n, err
}

// keepAlive asks the server for a sign of life after one, two and three intervals of silence. Half an interval later the link is dead:
// with the interval that is the default, a link that falls silent is found within a minute, with time to spare for what follows.
func (l *sshLink) keepAlive(interval time.Duration) {
	const misses = 3
	timer := time.NewTimer(interval)
	defer timer.Stop()
	asked := make(chan struct{}, 1) // has a token while a request is under way: one that hangs is not repeated
	missed, heard := 0, time.Duration(0)
	for {
		select {
		case <-l.done:
			return
		case <-timer.C:
		}
		last := time.Duration(l.conn.last.Load())
		if last != heard {
			missed, heard = 0, last
		}
		silence := sinceStart() - last
		switch {
		case missed == 0 && silence < interval:
			timer.Reset(interval - silence)
			continue
		case missed == misses:
			l.fail(fmt.Errorf("no sign of life for %s", silence.Round(time.Second/10)))
			_ = l.conn.Close()
			return
		}
		// Each request has its time from now: who was stopped for an hour has missed one answer, not all.
		if missed++; missed < misses {
			timer.Reset(interval)
		} else {
			timer.Reset(interval / 2)
		}
		select {
		case asked <- struct{}{}:
			go func() {
				_ = l.alive()
				<-asked
			}()
		default:
		}
	}
}

// alive returns when the server has answered; any answer will do.
func (l *sshLink) alive() error {
	_, _, err := l.client.SendRequest("keepalive@openssh.com", true, nil)
	return err
}

// fail records the first reason.
func (l *sshLink) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reason == nil {
		l.reason = err
	}
}

func (l *sshLink) lost() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

func (l *sshLink) close() error {
	l.fail(errClosed)
	err := l.closeAll()
	<-l.done
	return err
}

func (l *sshLink) closeAll() error {
	var err error
	if l.client != nil {
		if err = l.client.Close(); errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			err = nil
		}
	}
	for _, j := range slices.Backward(l.jumps) {
		_ = j.Close()
	}
	return err
}

// start opens a session. What it sends does not wait for answers: whether the command was taken shows in what comes.
func (l *sshLink) start(ctx context.Context, command string, tty bool) (*process, error) {
	type opened struct {
		ch   ssh.Channel
		reqs <-chan *ssh.Request
		err  error
	}
	got := make(chan opened, 1)
	go func() {
		ch, reqs, err := l.client.OpenChannel("session", nil)
		got <- opened{ch, reqs, err}
	}()
	var o opened
	select {
	case o = <-got:
	case <-ctx.Done():
		go func() {
			if o := <-got; o.err == nil {
				go ssh.DiscardRequests(o.reqs)
				_ = o.ch.Close()
			}
		}()
		return nil, ctx.Err()
	}
	if o.err != nil {
		return nil, o.err
	}
	if tty {
		// No echo, and no translation of newlines on output: what a program writes comes out as it was.
		modes := []byte{53, 0, 0, 0, 0 /* ECHO */, 70, 0, 0, 0, 0 /* OPOST */, 0}
		request := ssh.Marshal(struct {
			Term                         string
			Columns, Rows, Width, Height uint32
			Modes                        string
		}{"dumb", 80, 24, 0, 0, string(modes)})
		if _, err := o.ch.SendRequest("pty-req", false, request); err != nil {
			_ = o.ch.Close()
			return nil, err
		}
	}
	if _, err := o.ch.SendRequest("exec", false, ssh.Marshal(struct{ Command string }{command})); err != nil {
		_ = o.ch.Close()
		return nil, err
	}
	p := &process{stdin: channelInput{o.ch}, stderr: o.ch.Stderr()}
	// The pipe lets go of its reader when we close, which a channel does only when the server agrees.
	r, w := io.Pipe()
	p.stdout = r
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{o.ch}, make([]byte, 128<<10))
		_ = w.CloseWithError(err)
	}()
	closed := make(chan struct{})
	p.closed = closed
	p.close = sync.OnceFunc(func() {
		close(closed)
		_ = o.ch.Close()
		_ = r.Close()
	})
	exited := make(chan struct{})
	p.exited = exited
	code, status := 0, errNoStatus
	p.status = func() (int, error) { return code, status }
	go func() {
		end := sync.OnceFunc(func() { close(exited) })
		defer end()
		for req := range o.reqs {
			switch req.Type {
			case "exit-status":
				var m struct{ Status uint32 }
				if ssh.Unmarshal(req.Payload, &m) == nil && status != nil {
					code, status = int(m.Status), nil
				}
				end()
			case "exit-signal":
				var m struct {
					Signal     string
					CoreDumped bool
					Error      string
					Lang       string
				}
				if ssh.Unmarshal(req.Payload, &m) == nil && status != nil {
					code, status = 128+signalNumber(m.Signal), nil
				}
				end()
			}
			if req.WantReply {
				_ = req.Reply(false, nil)
			}
		}
	}()
	return p, nil
}

// channelInput is the input of a session's command.
type channelInput struct{ ssh.Channel }

func (c channelInput) Close() error { return c.CloseWrite() }

func signalNumber(name string) int {
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n)
	}
	return 1
}

func (l *sshLink) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := l.client.DialContext(ctx, network, addr)
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) && (refused.Reason == ssh.Prohibited || refused.Reason == ssh.UnknownChannelType) {
		return nil, errNoForward
	}
	if errors.As(err, &refused) {
		return nil, errors.New(cmp.Or(refused.Message, "connection refused"))
	}
	return conn, err
}
