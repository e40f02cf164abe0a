// Package sshtest is an SSH server inside a test: it runs commands with the real sh of the machine, forwards
// connections, counts what clients cost (connections, sessions, flights), and can be slow, cut off or fall silent.
// It listens on the loopback interface only and lets in one key, which it makes.
package sshtest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"runbook/engine/transport"
	"runbook/engine/transport/internal/pty"
)

// Options say how a server behaves. The zero value is an ordinary one.
type Options struct {
	Shell     string        // login shell; "" is /bin/sh
	RTT       time.Duration // added to every round trip
	NoForward bool          // refuse direct-tcpip and direct-streamlocal
	Env       []string      // added to the environment of commands
	NoStatus  bool          // never send an exit status
}

// Counts are what clients have cost so far.
type Counts struct {
	Connections int // TCP connections taken
	Sessions    int // sessions opened in them
	Flights     int // times that data came in after data had gone out: round trips
}

// Server is a running server.
type Server struct {
	opts     Options
	dir      string
	listener net.Listener
	config   *ssh.ServerConfig
	hostKey  ssh.Signer
	wg       sync.WaitGroup

	mu      sync.Mutex
	counts  Counts
	conns   map[*line]bool
	procs   map[*os.Process]bool
	stalled bool
	allowed map[string]bool // keys
	auths   int
	open    int   // sessions
	most    int   // sessions open at once
	cut     int64 // bytes still to go out before the cut; < 0: none
	closed  bool
}

// Start runs a server whose keys and known_hosts file are in dir.
func Start(dir string, opts Options) (*Server, error) {
	if opts.Shell == "" {
		opts.Shell = "/bin/sh"
	}
	s := &Server{opts: opts, dir: dir, conns: map[*line]bool{}, procs: map[*os.Process]bool{}, allowed: map[string]bool{}, cut: -1}
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if s.hostKey, err = ssh.NewSignerFromKey(hostKey); err != nil {
		return nil, err
	}
	public, err := NewKey(s.KeyFile(), "")
	if err != nil {
		return nil, err
	}
	s.Allow(public)
	s.config = &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.allowed[string(key.Marshal())] {
				return nil, nil
			}
			return nil, errors.New("not this key")
		},
		AuthLogCallback: func(ssh.ConnMetadata, string, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.auths++
		},
	}
	s.config.AddHostKey(s.hostKey)
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.KnownHosts(), []byte(KnownHostsLine(s.Addr(), s.hostKey.PublicKey())), 0o600); err != nil {
		_ = s.listener.Close()
		return nil, err
	}
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// NewKey writes a new private key to path, encrypted if there is a passphrase, and returns its public half.
func NewKey(path, passphrase string) (ssh.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return ssh.NewPublicKey(public)
}

// KnownHostsLine is the entry of known_hosts for addr, which is host:port.
func KnownHostsLine(addr string, key ssh.PublicKey) string {
	host, port, _ := net.SplitHostPort(addr)
	return fmt.Sprintf("[%s]:%s %s", host, port, ssh.MarshalAuthorizedKey(key))
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// HostKey is the server's public key.
func (s *Server) HostKey() ssh.PublicKey { return s.hostKey.PublicKey() }

// KeyFile is the private key that the server lets in.
func (s *Server) KeyFile() string { return filepath.Join(s.dir, "client_key") }

// KnownHosts is a file that names the server and its key.
func (s *Server) KnownHosts() string { return filepath.Join(s.dir, "known_hosts") }

// Config is how to reach the server.
func (s *Server) Config() transport.Config {
	addr := s.listener.Addr().(*net.TCPAddr)
	login := "root"
	if u, err := user.Current(); err == nil {
		login = u.Username
	}
	return transport.Config{Name: "sshtest", Address: addr.IP.String(), Port: addr.Port, User: login,
		Identities: []string{s.KeyFile()}, KnownHosts: s.KnownHosts(), SSHConfig: "none", Jump: "none", LockDir: s.dir}
}

// Allow lets in one more key.
func (s *Server) Allow(key ssh.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowed[string(key.Marshal())] = true
}

// Authentications is how many requests to be let in there have been, the probe that asks for the methods included.
func (s *Server) Authentications() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.auths
}

// Counts returns what clients have cost since the last Reset.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// MostSessions is how many sessions have been open at once.
func (s *Server) MostSessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

// Reset starts counting from nothing.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts = Counts{}
}

// Stall makes the server fall silent: connections stay open and nothing comes or goes.
func (s *Server) Stall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = true
}

// CutAfter closes every connection once n more bytes have gone out.
func (s *Server) CutAfter(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = n
}

// Close ends connections, the commands that still run and the server, and waits for all of it.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = map[*line]bool{}
	s.mu.Unlock()
	_ = s.listener.Close()
	for c := range conns {
		_ = c.Close()
	}
	// Shells end with their input and clean up first, as they do under sshd; what stays is ended.
	stop := time.AfterFunc(2*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for p := range s.procs {
			_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
		}
	})
	defer stop.Stop()
	s.wg.Wait()
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return
		}
		c := newLine(s, raw)
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.counts.Connections++
		s.conns[c] = true
		s.wg.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.wg.Done()
			s.serve(c)
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
	}
}

func (s *Server) serve(c net.Conn) {
	_, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Add(1)
	go func() {
		defer wg.Done()
		for r := range requests { // keepalives: as sshd, it does not know them and says so
			if r.WantReply {
				_ = r.Reply(false, nil)
			}
		}
	}()
	for ch := range channels {
		wg.Add(1)
		go func() {
			defer wg.Done()
			switch ch.ChannelType() {
			case "session":
				s.session(ch)
			case "direct-tcpip", "direct-streamlocal@openssh.com":
				s.forward(ch)
			default:
				_ = ch.Reject(ssh.UnknownChannelType, "unknown channel type")
			}
		}()
	}
}

func (s *Server) forward(nc ssh.NewChannel) {
	if s.opts.NoForward {
		_ = nc.Reject(ssh.Prohibited, "open failed")
		return
	}
	network, addr := "unix", ""
	if nc.ChannelType() == "direct-tcpip" {
		var m struct {
			Host     string
			Port     uint32
			FromHost string
			FromPort uint32
		}
		if ssh.Unmarshal(nc.ExtraData(), &m) != nil {
			_ = nc.Reject(ssh.ConnectionFailed, "malformed request")
			return
		}
		network, addr = "tcp", net.JoinHostPort(m.Host, fmt.Sprint(m.Port))
	} else {
		var m struct {
			Path  string
			Extra string
			Port  uint32
		}
		if ssh.Unmarshal(nc.ExtraData(), &m) != nil {
			_ = nc.Reject(ssh.ConnectionFailed, "malformed request")
			return
		}
		addr = m.Path
	}
	out, err := net.Dial(network, addr)
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer out.Close()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(ch, out)
		_ = ch.Close()
		close(done)
	}()
	_, _ = io.Copy(out, ch)
	_ = out.Close()
	<-done
}

func (s *Server) session(nc ssh.NewChannel) {
	s.mu.Lock()
	s.counts.Sessions++
	s.open++
	s.most = max(s.most, s.open)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	tty := false
	for r := range reqs {
		switch r.Type {
		case "pty-req":
			tty = true
			_ = r.Reply(true, nil)
		case "exec":
			var m struct{ Command string }
			if ssh.Unmarshal(r.Payload, &m) != nil {
				_ = r.Reply(false, nil)
				return
			}
			_ = r.Reply(true, nil)
			go ssh.DiscardRequests(reqs)
			s.run(ch, m.Command, tty)
			return
		default:
			if r.WantReply {
				_ = r.Reply(false, nil)
			}
		}
	}
}

// run does what sshd does: the exit status goes out when the command ends, the end of output when nobody holds it open.
func (s *Server) run(ch ssh.Channel, command string, tty bool) {
	cmd := exec.Command(s.opts.Shell, "-c", command)
	cmd.Env = append(append(os.Environ(), "SSH_CLIENT=127.0.0.1 0 0"), s.opts.Env...)
	if u, err := user.Current(); err == nil {
		cmd.Dir = u.HomeDir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var copies sync.WaitGroup
	var ours []*os.File
	copyOut := func(dst io.Writer, src *os.File) {
		copies.Add(1)
		go func() {
			defer copies.Done()
			_, _ = io.Copy(dst, src)
			_ = src.Close()
		}()
	}
	var theirs []*os.File
	if tty {
		master, slave, err := pty.Open()
		if err != nil {
			return
		}
		cmd.SysProcAttr.Setctty = true
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		ours, theirs = []*os.File{master}, []*os.File{slave}
		copyOut(ch, master)
		go func() { _, _ = io.Copy(master, ch); _ = master.Close() }()
	} else {
		for i := range 3 {
			r, w, err := os.Pipe()
			if err != nil {
				return
			}
			if i == 0 {
				r, w = w, r
			}
			ours, theirs = append(ours, r), append(theirs, w)
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs[0], theirs[1], theirs[2]
		copyOut(ch, ours[1])
		copyOut(ch.Stderr(), ours[2])
		stdin := ours[0]
		go func() { _, _ = io.Copy(stdin, ch); _ = stdin.Close() }()
	}
	err := cmd.Start()
	for _, f := range theirs {
		_ = f.Close()
	}
	if err == nil {
		s.track(cmd.Process, true)
		_ = cmd.Wait()
		s.track(cmd.Process, false)
		if !s.opts.NoStatus {
			sendStatus(ch, cmd.ProcessState)
		}
	}
	copies.Wait()
	for _, f := range ours {
		_ = f.Close()
	}
}

func (s *Server) track(p *os.Process, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if running {
		s.procs[p] = true
		return
	}
	delete(s.procs, p)
}

func sendStatus(ch ssh.Channel, state *os.ProcessState) {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		names := map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL", syscall.SIGHUP: "HUP", syscall.SIGINT: "INT"}
		_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Signal     string
			CoreDumped bool
			Error      string
			Lang       string
		}{names[ws.Signal()], false, "", ""}))
		return
	}
	var status [4]byte
	binary.BigEndian.PutUint32(status[:], uint32(state.ExitCode()))
	_, _ = ch.SendRequest("exit-status", false, status[:])
}

// line is one TCP connection with everything that a test may do to it. Bytes in either direction take half the RTT.
type line struct {
	net.Conn
	server *Server
	in     chan parcel
	out    chan parcel
	done   chan struct{}
	close  func()

	mu    sync.Mutex
	rest  []byte
	wrote bool // since data came in last
}

type parcel struct {
	data []byte
	due  time.Time
	err  error
}

func newLine(s *Server, conn net.Conn) *line {
	l := &line{Conn: conn, server: s, in: make(chan parcel, 1<<12), out: make(chan parcel, 1<<12), done: make(chan struct{})}
	l.close = sync.OnceFunc(func() {
		close(l.done)
		_ = conn.Close()
	})
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		for {
			buf := make([]byte, 64<<10)
			n, err := conn.Read(buf)
			if s.isStalled() {
				<-l.done
				return
			}
			select {
			case l.in <- parcel{buf[:n], time.Now().Add(s.opts.RTT / 2), err}:
			case <-l.done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer s.wg.Done()
		for {
			select {
			case p := <-l.out:
				l.wait(p.due)
				if s.isStalled() {
					<-l.done
					return
				}
				data, cut := s.mayGo(p.data)
				if _, err := conn.Write(data); err != nil || cut {
					l.close()
					return
				}
			case <-l.done:
				return
			}
		}
	}()
	return l
}

func (s *Server) isStalled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stalled
}

// mayGo returns what may go out of data, and whether the line is to be cut after it.
func (s *Server) mayGo(data []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut < 0 {
		return data, false
	}
	if int64(len(data)) < s.cut {
		s.cut -= int64(len(data))
		return data, false
	}
	data, s.cut = data[:s.cut], 0
	return data, true
}

func (l *line) wait(due time.Time) {
	if d := time.Until(due); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-l.done:
		}
	}
}

func (l *line) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		select {
		case in := <-l.in:
			l.wait(in.due)
			if len(in.data) == 0 && in.err != nil {
				return 0, in.err
			}
			l.rest = in.data
			l.mu.Lock()
			flight := l.wrote
			l.wrote = false
			l.mu.Unlock()
			if flight {
				l.server.mu.Lock()
				l.server.counts.Flights++
				l.server.mu.Unlock()
			}
		case <-l.done:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *line) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.wrote = true
	l.mu.Unlock()
	select {
	case l.out <- parcel{append([]byte(nil), p...), time.Now().Add(l.server.opts.RTT / 2), nil}:
		return len(p), nil
	case <-l.done:
		return 0, net.ErrClosed
	}
}

func (l *line) Close() error {
	l.close()
	return nil
}
