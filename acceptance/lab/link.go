package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cut is how a connection ends.
type Cut string

// These are all the ways. After the last three one end at least does not learn of it.
const (
	Finish         Cut = "finish"          // both ends are told that no more will come, in good order
	Reset          Cut = "reset"           // both ends get a reset
	HalfController Cut = "half-controller" // the controller is told that no more will come, the host is not; nothing is read any more
	HalfHost       Cut = "half-host"       // the host is told, the controller is not
	Drop           Cut = "drop"            // nobody is told, nothing is read any more, and everything stays open
)

// Cuts are all of them.
var Cuts = []Cut{Finish, Reset, HalfController, HalfHost, Drop}

// Link is another way from the controller to a host's sshd, by an address of its own, which can be cut. Connections that are
// made after the cut pass; those that were cut stay as the cut left them until Close.
type Link struct {
	Address string // port 22

	lab      *Lab
	host     *Host
	listener net.Listener
	busy     sync.WaitGroup

	mu     sync.Mutex
	armed  bool
	left   int64 // bytes until the cut
	cut    Cut
	passed int64
	live   map[*through]bool // those that a cut hits
	all    []*net.TCPConn
	closed bool
	when   time.Time // of the cut
}

// through is a connection by way of a link, its two halves and whether they were cut.
type through struct {
	controller, host *net.TCPConn
	cut              bool
}

// links counts those of this process, for their addresses.
var links atomic.Int32

// Link makes one to a host, and writes the host's key by its address into the lab's known_hosts.
func (l *Lab) Link(h *Host) (*Link, error) {
	n := links.Add(1)
	k := &Link{Address: fmt.Sprintf("127.77.%d.%d", n>>8&0xff, n&0xff), lab: l, host: h, live: map[*through]bool{}}
	if err := k.known(); err != nil {
		return nil, fmt.Errorf("cannot make a link to %s: %w", h.Name, err)
	}
	var err error
	if k.listener, err = l.listen(k.Address + ":22"); err != nil {
		return nil, fmt.Errorf("cannot make a link to %s: %w", h.Name, err)
	}
	k.busy.Go(k.serve)
	return k, nil
}

// known says in the lab's known_hosts which key is to be expected.
func (k *Link) known() error {
	k.lab.mu.Lock()
	defer k.lab.mu.Unlock()
	text, err := os.ReadFile(k.lab.KnownHosts())
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		names, key, _ := strings.Cut(line, " ")
		if strings.HasPrefix(names, k.host.FQDN()+",") {
			// In one step, for others read it meanwhile.
			file := k.lab.KnownHosts() + ".new"
			if err := os.WriteFile(file, []byte(string(text)+k.Address+" "+key), 0o644); err != nil {
				return err
			}
			return os.Rename(file, k.lab.KnownHosts())
		}
	}
	return errors.New("its key is not in known_hosts")
}

// listen listens in the lab's network, to which a socket belongs as the thread does that makes it.
func (l *Lab) listen(addr string) (listener net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lockThread() // for good: the thread ends with the goroutine
		var ns *os.File
		if ns, err = os.Open("/run/netns/" + l.namespace()); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("cannot enter the lab's network: %w", err)
			return
		}
		listener, err = net.Listen("tcp", addr)
	}()
	<-done
	return listener, err
}

// CutAfter cuts the link when so many bytes more have passed, both directions together; after none it is cut at once.
func (k *Link) CutAfter(bytes int64, cut Cut) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.armed, k.left, k.cut = true, bytes, cut
	if bytes <= 0 {
		k.cutNow()
	}
}

// WasCut says when the link was cut, if it was.
func (k *Link) WasCut() (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.when, !k.when.IsZero()
}

// Passed is how many bytes have passed.
func (k *Link) Passed() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.passed
}

// Close ends all of its connections, those too that were cut.
func (k *Link) Close() {
	k.mu.Lock()
	k.closed = true
	all := k.all
	k.mu.Unlock()
	_ = k.listener.Close()
	for _, c := range all {
		_ = c.Close()
	}
	k.busy.Wait()
}

func (k *Link) serve() {
	for {
		conn, err := k.listener.Accept()
		if err != nil {
			return // it is closed
		}
		k.busy.Go(func() { k.connect(conn.(*net.TCPConn)) })
	}
}

// connect is one connection, until nothing passes any more.
func (k *Link) connect(controller *net.TCPConn) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	far, err := k.lab.Dial(ctx, "tcp", k.host.Address()+":22")
	if err != nil {
		_ = controller.SetLinger(0) // as a host does where nobody listens
		_ = controller.Close()
		return
	}
	t := &through{controller: controller, host: far.(*net.TCPConn)}
	k.mu.Lock()
	k.all = append(k.all, t.controller, t.host)
	k.live[t] = true
	closed := k.closed
	k.mu.Unlock()
	if closed {
		_, _ = t.controller.Close(), t.host.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { k.pass(t, t.controller, t.host) })
	both.Go(func() { k.pass(t, t.host, t.controller) })
	both.Wait()
	k.mu.Lock()
	delete(k.live, t)
	cut := t.cut
	k.mu.Unlock()
	if !cut {
		_, _ = t.controller.Close(), t.host.Close()
	}
}

// pass passes what comes from one end to the other, until that is over or cut.
func (k *Link) pass(t *through, from, to *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			n, last, cut := k.take(t, n)
			if _, err := to.Write(buf[:n]); err != nil && !cut {
				_ = from.Close() // whoever sends is told
			}
			if last {
				k.mu.Lock()
				k.cutNow()
				k.mu.Unlock()
			}
			if last || cut {
				return
			}
		}
		if err != nil {
			if !k.wasCut(t) {
				if errors.Is(err, syscall.ECONNRESET) {
					_ = to.SetLinger(0)
					_ = to.Close()
				}
				_ = to.CloseWrite()
			}
			return
		}
	}
}

// take says how much of n bytes may pass still, whether these are the last, and whether the connection is cut already.
func (k *Link) take(t *through, n int) (pass int, last, cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t.cut {
		return 0, false, true
	}
	if k.armed {
		if last = int64(n) >= k.left; last {
			n, k.armed = int(k.left), false // nothing more passes the other way either
			for t := range k.live {
				t.cut = true
			}
		}
		k.left -= int64(n)
	}
	k.passed += int64(n)
	return n, last, false
}

func (k *Link) wasCut(t *through) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return t.cut
}

// cutNow cuts what there is; k.mu is held.
func (k *Link) cutNow() {
	k.armed, k.when = false, time.Now()
	for t := range k.live {
		t.cut = true
		delete(k.live, t)
		ends := []*net.TCPConn{t.controller, t.host}
		switch k.cut {
		case Finish:
			for _, c := range ends {
				_ = c.CloseWrite()
				k.busy.Go(func() { discard(c) }) // or its closing would be a reset
			}
		case Reset:
			for _, c := range ends {
				_ = c.SetLinger(0)
				_ = c.Close()
			}
		case HalfController:
			_ = t.controller.CloseWrite()
		case HalfHost:
			_ = t.host.CloseWrite()
		}
		for _, c := range ends {
			// What waits for data ends, and reads no more. It finds that it was cut.
			if k.cut != Finish {
				_ = c.SetReadDeadline(time.Unix(1, 0))
			}
		}
	}
}

// discard reads until the other end has closed too.
func discard(c *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := c.Read(buf); err != nil {
			_ = c.Close()
			return
		}
	}
}
