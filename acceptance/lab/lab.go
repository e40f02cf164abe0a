package lab

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Domain is the domain of the hosts.
const Domain = "example.org"

// addresses of the hosts that a lab can make.
var addresses = map[string]string{
	"voms1": "10.77.0.1", "voms2": "10.77.0.2", "ui": "10.77.0.3", "stranger": "10.77.0.4",
}

const (
	bridge     = "br0"
	controller = "10.77.0.254/24"
)

// Lab is a network of hosts.
type Lab struct {
	ID    string
	Dir   string    // what the lab keeps: keys, certificates, hosts' state
	Log   io.Writer // progress, for people
	image string
	ca    *authority

	mu    sync.Mutex
	hosts map[string]*Host
	owner io.Closer // the lock that says that the owner lives; nil in who merely opened the lab
}

// state is what a lab writes into its directory, for other processes.
type state struct {
	ID    string   `json:"id"`
	Image string   `json:"image"`
	Keep  bool     `json:"keep"` // stays when its owner ends
	Hosts []string `json:"hosts"`
}

// Options of a new lab.
type Options struct {
	ID  string    // default: a random one
	Log io.Writer // default: nowhere
}

// New makes a lab without hosts, after sweeping away the labs of owners that died.
func New(ctx context.Context, o Options) (*Lab, error) {
	if why := Unavailable(); why != "" {
		return nil, errors.New(why)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	o.Log = &oneByOne{w: o.Log} // hosts boot at the same time
	if o.ID == "" {
		o.ID = strings.ToLower(rand.Text()[:4])
	}
	if !regexp.MustCompile(`^[a-z0-9]{1,8}$`).MatchString(o.ID) {
		return nil, fmt.Errorf("cannot name a lab %q: up to eight lower case letters and digits", o.ID)
	}
	image, err := Image(ctx, o.Log)
	if err != nil {
		return nil, err
	}
	dir, err := labDir(o.ID)
	if err != nil {
		return nil, err
	}
	if err := Sweep(ctx, o.Log); err != nil {
		return nil, err
	}
	l := &Lab{ID: o.ID, Dir: dir, Log: o.Log, image: image, hosts: map[string]*Host{}}
	if err := l.claim(ctx); err != nil {
		return nil, err
	}
	if err := l.found(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make lab %s: %w", l.ID, err), l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// claim makes the lab's directory and locks it as the owner, in one step for a sweeper's eyes.
func (l *Lab) claim(ctx context.Context) error {
	unlock, err := lockLabs(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.MkdirAll(filepath.Dir(l.Dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		if os.IsExist(err) {
			return fmt.Errorf("cannot make lab %s: there is one of that name", l.ID)
		}
		return err
	}
	if l.owner, err = tryLock(filepath.Join(l.Dir, "owner")); err != nil {
		return err
	}
	return l.save(false)
}

// found makes everything that a lab has before its first host: network, keys and authority.
func (l *Lab) found(ctx context.Context) error {
	ns := l.namespace()
	for _, args := range [][]string{
		{"netns", "add", ns},
		{"-n", ns, "link", "set", "lo", "up"},
		{"-n", ns, "link", "add", bridge, "type", "bridge"},
		{"-n", ns, "addr", "add", controller, "dev", bridge},
		{"-n", ns, "link", "set", bridge, "up"},
	} {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	if err := l.makeUserKey(); err != nil {
		return err
	}
	var err error
	l.ca, err = newAuthority(l.Dir)
	return err
}

// Open returns an existing lab, made by this or another process.
func Open(id string) (*Lab, error) {
	dir, err := labDir(id)
	if err != nil {
		return nil, err
	}
	s, err := readState(id)
	if err != nil {
		return nil, fmt.Errorf("cannot open lab %s: %w", id, err)
	}
	l := &Lab{ID: id, Dir: dir, Log: io.Discard, image: s.Image, hosts: map[string]*Host{}}
	for _, h := range s.Hosts {
		l.hosts[h] = &Host{Name: h, lab: l}
	}
	if l.ca, err = openAuthority(dir); err != nil {
		return nil, fmt.Errorf("cannot open lab %s: %w", id, err)
	}
	return l, nil
}

// List returns the ids of the labs on this machine.
func List() ([]string, error) {
	dir, err := labDir("")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// Sweep removes what is left of labs whose owner died.
func Sweep(ctx context.Context, log io.Writer) error {
	unlock, err := lockLabs(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ids, err := List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		dir, err := labDir(id)
		if err != nil {
			return err
		}
		if s, err := readState(id); err == nil && s.Keep {
			continue
		}
		owner, err := tryLock(filepath.Join(dir, "owner"))
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // its owner lives
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(log, "removing lab %s, whose owner is gone\n", id)
		err = removeParts(ctx, id)
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err := errors.Join(err, owner.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Up makes and boots hosts, at the same time, and returns when they answer. Names are short: voms1.
func (l *Lab) Up(ctx context.Context, names ...string) error {
	var fresh []*Host
	for _, name := range names {
		if addresses[name] == "" {
			return fmt.Errorf("cannot make host %q: a lab has voms1, voms2, ui and stranger", name)
		}
		l.mu.Lock()
		if l.hosts[name] == nil {
			l.hosts[name] = &Host{Name: name, lab: l}
			fresh = append(fresh, l.hosts[name])
		}
		l.mu.Unlock()
	}
	if err := l.save(l.owner == nil); err != nil {
		return err
	}
	errs := make([]error, len(fresh))
	var wg sync.WaitGroup
	for i, h := range fresh {
		wg.Go(func() {
			begin := time.Now()
			if errs[i] = h.make(ctx); errs[i] == nil {
				errs[i] = h.Start(ctx)
			}
			if errs[i] == nil {
				fmt.Fprintf(l.Log, "%s is up at %s (%.1f s)\n", h.FQDN(), h.Address(), time.Since(begin).Seconds())
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Host returns a host that Up made, nil if there is none of that name.
func (l *Lab) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[strings.TrimSuffix(name, "."+Domain)]
}

// Hosts returns the hosts that Up made, by name.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	var hosts []*Host
	for _, h := range l.hosts {
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts
}

// Command is exec.CommandContext for the controller: the program runs in the lab's network, with everything else as here.
func (l *Lab) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := l.Controller(name, args...)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// Controller returns the argument list that runs a program in the lab's network. It keeps the program's pid.
func (l *Lab) Controller(name string, args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + l.namespace(), "--", name}, args...)
}

// Dial connects from the controller. addr is a literal address and port.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// This thread is never unlocked: it ends with the goroutine instead of carrying its network to another.
		lockThread()
		conn, err := func() (net.Conn, error) {
			ns, err := os.Open("/run/netns/" + l.namespace())
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("cannot enter the lab's network: %w", err)
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// Issue has the lab's authority sign a certificate and writes it and its key.
func (l *Lab) Issue(r Request, certFile, keyFile string) error {
	return l.ca.issue(r, certFile, keyFile)
}

// Keep makes the lab outlive this process, until somebody calls Down.
func (l *Lab) Keep() error {
	if err := l.save(true); err != nil {
		return err
	}
	if l.owner == nil {
		return nil
	}
	err := l.owner.Close()
	l.owner = nil
	return err
}

// Down stops the hosts and removes everything the lab made.
func (l *Lab) Down(ctx context.Context) error {
	err := Remove(ctx, l.ID)
	if l.owner != nil {
		err = errors.Join(err, l.owner.Close())
		l.owner = nil
	}
	return err
}

// Remove is Down for a lab that cannot be opened any more, say because it was never finished.
func Remove(ctx context.Context, id string) error {
	dir, err := labDir(id)
	if err != nil {
		return err
	}
	if err := removeParts(ctx, id); err != nil {
		return err
	}
	// A sweeper would take a directory that is half gone for that of a lab whose owner died.
	unlock, err := lockLabs(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return os.RemoveAll(dir)
}

// removeParts removes what a lab has outside its directory.
func removeParts(ctx context.Context, id string) error {
	dir, err := labDir(id)
	if err != nil {
		return err
	}
	l := &Lab{ID: id, Dir: dir}
	hosts, err := os.ReadDir(filepath.Join(dir, "hosts"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, e := range hosts {
		if err := (&Host{Name: e.Name(), lab: l}).remove(ctx); err != nil {
			return err
		}
	}
	if err := removeControlGroups(l.controlGroup()); err != nil {
		return err
	}
	if _, err := os.Stat("/run/netns/" + l.namespace()); err == nil {
		return run(ctx, "ip", "netns", "delete", l.namespace())
	}
	return nil
}

func (l *Lab) namespace() string    { return "rb-" + l.ID }
func (l *Lab) controlGroup() string { return "runbook-lab-" + l.ID }

// save writes what other processes need to know.
func (l *Lab) save(keep bool) error {
	s := state{ID: l.ID, Image: l.image, Keep: keep}
	for _, h := range l.Hosts() {
		s.Hosts = append(s.Hosts, h.Name)
	}
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	temporary := filepath.Join(l.Dir, "lab.json.new")
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(l.Dir, "lab.json"))
}

func readState(id string) (state, error) {
	var s state
	dir, err := labDir(id)
	if err != nil {
		return s, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// labDir returns the directory of a lab, that of all labs for the id "".
func labDir(id string) (string, error) {
	cache, err := Cache()
	return filepath.Join(cache, "labs", id), err
}

func lockLabs(ctx context.Context) (func(), error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	return lock(ctx, filepath.Join(cache, "labs.lock"))
}

// lock waits for an exclusive lock on file. The kernel releases it when its holder dies.
func lock(ctx context.Context, file string) (unlock func(), err error) {
	for {
		held, err := tryLock(file)
		if err == nil {
			return func() { held.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("cannot lock %s, which another process holds: %w", file, err)
		}
	}
}

// tryLock fails with EWOULDBLOCK when somebody else holds the lock.
func tryLock(file string) (io.Closer, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// oneByOne is a writer for several goroutines.
type oneByOne struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneByOne) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// run runs a program on the machine; its error holds what the program said.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail(out, 5))
	}
	return nil
}
