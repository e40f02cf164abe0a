package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/transport"
)

// apply carries out a plan and checks that the host has converged.
func (p *playRun) apply(ctx context.Context, t *task, m module.Module, args map[string]any, host *module.Host, plan module.Plan) outcome {
	verifies := !plan.Act && plan.Unknown == ""
	var guess *speculation
	applying := host
	var count counter
	if verifies {
		applying, guess = p.speculate(ctx, t, args, host, &count)
	}
	values, err := m.Apply(ctx, applying, plan)
	var after module.Plan
	if guess != nil {
		var sure bool
		if after, sure = guess.wait(); err == nil && (!sure || count.runs.Load() != 1 || count.other.Load() > 0) {
			guess = nil
		}
	}
	if err != nil {
		out := p.failed(ctx, t, values, signOfLife(ctx, host, err))
		out.result.Changes = changes(plan.Changes)
		if under := (*module.UnderWayError)(nil); errors.As(err, &under) {
			out.open = true
		}
		return out
	}
	out := outcome{values: values, result: report.Result{Status: report.Changed, Changes: changes(plan.Changes), Warnings: warnings(values)}}
	if plan.Wait {
		out.result.Status, out.result.Changes = report.OK, nil
	}
	out.result.Msg, _ = values["msg"].(string)
	if verifies && guess == nil {
		fresh := t.factory()
		if err := module.Decode(fresh, args); err != nil {
			return fail("%v", err)
		}
		if after, err = fresh.Check(ctx, host); err != nil {
			out = p.failed(ctx, t, values, fmt.Errorf("applied, but cannot check the result: %w", err))
			out.result.Changes = changes(plan.Changes)
			return out
		}
	}
	if verifies && len(after.Changes) > 0 {
		var left []string
		for _, c := range after.Changes {
			left = append(left, c.What)
		}
		out := fail("did not converge: after it was applied, this is still to do: %s", strings.Join(left, "; "))
		out.result.Changes = changes(plan.Changes)
		return out
	}
	if verifies && values == nil {
		out.values = after.Values
	}
	if verifies && after.Unknown != "" {
		out.result.Warnings = append(out.result.Warnings, "applied, but it cannot be told whether the host is as declared now: "+after.Unknown)
	}
	out.values = common(out.result, out.values)
	return out
}

// signOfLife asks a host on which something failed for a sign of life. Without one nobody knows what has become of it there: a connection
// that goes by way of the host's, such as that to a database, may break before the host's own is known to be lost.
func signOfLife(ctx context.Context, host *module.Host, err error) error {
	var lost *transport.UnreachableError
	var exit *transport.ExitError
	late := context.Cause(ctx) == errTaskTimeout
	if errors.As(err, &lost) || errors.As(err, &exit) || ctx.Err() != nil && !late {
		return err
	}
	if late { // with a link that has fallen silent the task's time passes too
		ctx = context.WithoutCancel(ctx)
	}
	if _, dead := host.Conn.Run(ctx, transport.Cmd{Script: "true"}); errors.As(dead, &lost) {
		return fmt.Errorf("%w (%v)", dead, err)
	}
	return err
}

// speculation is a verifying Check that is sent right behind its Apply, in the same flight. It counts only if the
// Apply was one command in the queue and the Check read through the same queue.
type speculation struct {
	done  chan struct{}
	start sync.Once
	begun chan struct{}
	plan  module.Plan
	err   error
	reads counter
}

// counter counts what a module did on its host.
type counter struct{ runs, other atomic.Int32 }

// counted is a connection that counts its use: commands that wait their turn in the queue, and everything else.
type counted struct {
	transport.Conn
	n *counter
}

func (c counted) Dial(ctx context.Context, user, network, addr string) (net.Conn, error) {
	c.n.other.Add(1)
	return c.Conn.Dial(ctx, user, network, addr)
}

func (c counted) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	if cmd.Stdout != nil || cmd.Bulk {
		c.n.other.Add(1)
	} else {
		c.n.runs.Add(1)
	}
	return c.Conn.Run(ctx, cmd)
}

func (p *playRun) speculate(ctx context.Context, t *task, args map[string]any, host *module.Host, count *counter) (*module.Host, *speculation) {
	fresh := t.factory()
	if module.Decode(fresh, args) != nil {
		return host, nil
	}
	s := &speculation{done: make(chan struct{}), begun: make(chan struct{})}
	watched, reader := *host, *host
	watched.Conn = counted{host.Conn, count}
	reader.Conn = counted{host.Conn, &s.reads}
	watched.PeerFunc = func(ctx context.Context, name string) (*module.Host, error) {
		count.other.Add(1)
		return host.PeerFunc(ctx, name)
	}
	watched.SentFunc = func() {
		s.start.Do(func() {
			close(s.begun)
			go func() {
				defer close(s.done)
				defer func() {
					if r := recover(); r != nil {
						s.err = fmt.Errorf("the module crashed: %v", r) // the Check that counts will tell
					}
				}()
				s.plan, s.err = fresh.Check(ctx, &reader)
			}()
		})
	}
	return &watched, s
}

// wait returns the plan of the Check, and whether it can be believed.
func (s *speculation) wait() (module.Plan, bool) {
	s.start.Do(func() { close(s.done) }) // never sent
	<-s.done
	select {
	case <-s.begun:
	default:
		return module.Plan{}, false
	}
	return s.plan, s.err == nil && len(s.plan.Changes) == 0 && s.reads.other.Load() == 0
}
