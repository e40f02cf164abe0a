package module

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"runbook/engine/secret"
	"runbook/engine/transport"
)

// Host is a module's view of the host that a task is for: commands run as the task's user with its environment.
type Host struct {
	Name    string
	Conn    transport.Conn
	User    string            // the task's become user, "" for the login user
	Env     map[string]string // the task's environment
	Timeout time.Duration     // the task's limit for one command, 0 for none

	// FactsFunc gathers the host's facts, once per run. Set by the engine.
	FactsFunc func(ctx context.Context) (Facts, error)
	// PeerFunc gives another host of the inventory with the same privilege. Set by the engine.
	PeerFunc func(ctx context.Context, name string) (*Host, error)
	// ProgressFunc shows how a long step is getting on. Set by the engine; nil shows nothing.
	ProgressFunc func(text string)
	// Secrets knows the run's secrets: a command whose arguments or environment hold one is refused. Set by the engine.
	Secrets *secret.Masker
	// Effects are what earlier tasks of this check will have made of the host. Set by the engine; a run has none.
	Effects Effects
	// Late says why the value of an argument that is tagged late is not known yet. Set by the engine; a run has none.
	Late map[string]string
	// Awaited is a task of this check, on whatever host, whose change has not been made; "" in a run. Set by the engine.
	Awaited string
	// JobID names the long step that Apply may leave running on the host, "" if it must not: the same for all who go on with this Apply,
	// and no other's. Set by the engine.
	JobID string
	// KeepJob says that what a long step leaves on the host stays there until ForgetLong, which the engine calls when it has the
	// outcome on record. Otherwise RunLong removes it with the outcome in its hands. Set by the engine.
	KeepJob bool
	// HoldFunc keeps the host locked for other runs while a job lives. Set by the engine.
	HoldFunc func(ctx context.Context, job transport.Job) error
	lastJob  string // to notice a second long step
	// SentFunc is called once, when the first command has its place in the host's queue. Set by the engine.
	SentFunc func()
}

// Run runs c as the task's user, in the task's environment.
func (h *Host) Run(ctx context.Context, c transport.Cmd) (transport.Output, error) {
	c, err := h.prepare(c)
	if err != nil {
		return transport.Output{}, err
	}
	return h.Conn.Run(ctx, c)
}

// prepare makes c a command of the task, and refuses one that shows a secret.
func (h *Host) prepare(c transport.Cmd) (transport.Cmd, error) {
	if c.User == "" {
		c.User = h.User
	}
	if c.Timeout == 0 {
		c.Timeout = h.Timeout
	}
	if len(h.Env) > 0 {
		env := make(map[string]string, len(h.Env)+len(c.Env))
		for k, v := range h.Env {
			env[k] = v
		}
		for k, v := range c.Env {
			env[k] = v
		}
		c.Env = env
	}
	if c.Sent == nil {
		c.Sent = h.SentFunc
	}
	if h.Secrets != nil {
		for _, a := range c.Args {
			if h.Secrets.Holds(a) {
				return c, errors.New("cannot run this: an argument holds a secret, and every user of the host could read it (give it on standard input)")
			}
		}
		for name, v := range c.Env {
			if h.Secrets.Holds(v) {
				return c, fmt.Errorf("cannot run this: the environment variable %s holds a secret, which other processes may read (give it on standard input)", name)
			}
		}
	}
	return c, nil
}

// Dial connects from the host to addr ("tcp" or "unix") as the task's user.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.Conn.Dial(ctx, h.User, network, addr)
}

// Facts returns what is known of the host, gathered on first use.
func (h *Host) Facts(ctx context.Context) (Facts, error) { return h.FactsFunc(ctx) }

// Peer returns another host by its inventory name, with the same privilege. Connecting and locks are the engine's business.
func (h *Host) Peer(ctx context.Context, name string) (*Host, error) { return h.PeerFunc(ctx, name) }

// Progress shows text beside the host while the task runs.
func (h *Host) Progress(text string) {
	if h.ProgressFunc != nil {
		h.ProgressFunc(text)
	}
}
