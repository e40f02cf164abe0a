package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"runbook/engine/journal"
	"runbook/engine/report"
	"runbook/engine/transport"
)

// rebooted reports whether a host has started anew since the earlier part of the run.
func (p *playRun) rebooted(ctx context.Context, h *hostRun, user string) bool {
	before := p.memo.boots[h.host.Name]
	if before == "" {
		return false
	}
	now, _, err := p.identity(ctx, h, user)
	if err != nil || now == before {
		return false // who cannot be asked will not be changed either
	}
	h.tellReboot.Do(func() {
		e := p.event(report.Warning)
		e.Host, e.Text = h.host.Name, "it has started anew since the run ended: what lived in its memory is checked again"
		p.emit(e)
	})
	return true
}

// identity asks a host, once, which of its starts this is, and for what tells it from other hosts, "" where nothing does.
func (p *playRun) identity(ctx context.Context, h *hostRun, user string) (boot, machine string, err error) {
	h.who.Do(func() {
		conn, err := p.connect(h)
		if err != nil {
			h.whoErr = err
			return
		}
		out, err := conn.Run(ctx, transport.Cmd{User: user, Script: "cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.boottime || exit\n" +
			"cat /etc/machine-id /etc/hostid 2>/dev/null || :"})
		boot, id, _ := strings.Cut(strings.TrimSpace(string(out.Stdout)), "\n")
		h.bootID, h.whoErr = strings.TrimSpace(boot), err
		if id != "" {
			h.machine = digestOf("runbook machine " + id) // the id itself is not for others to see
		}
	})
	return h.bootID, h.machine, h.whoErr
}

// sameMachine asks whether what is on record of a host is meant for the machine that has its name now.
func (p *playRun) sameMachine(ctx context.Context, h *hostRun, user string) *outcome {
	before := p.memo.machines[h.host.Name]
	if before == "" {
		return nil
	}
	_, now, err := p.identity(ctx, h, user)
	if err != nil || now == "" || now == before {
		return nil // who cannot be asked will not be changed either
	}
	if !p.job.AcceptChanges {
		out := fail("%s is another machine than in the run that is resumed, or was installed anew: what is on record was not done there. Resume with --accept-changes to go on as if it were the same", h.host.Name)
		p.ask(Question{Host: h.host.Name, Accept: true})
		out.open = true
		return &out
	}
	h.tellMachine.Do(func() {
		e := p.event(report.Warning)
		e.Host, e.Text = h.host.Name, "it is another machine than in the run that is resumed"
		p.emit(e)
	})
	return nil
}

// hold locks a host for this run before its first change as a user there, for each has a lock of his own, and puts on record which
// start of the host this is. The lock goes with the connection.
func (p *playRun) hold(ctx context.Context, h *hostRun, user string) *outcome {
	h.holding.Lock()
	defer h.holding.Unlock()
	held, tried := h.holds[user]
	if !tried {
		waiting, done := p.untilStop(ctx) // another command may have it for long
		held.release, held.err = p.lock(waiting, h, user)
		if held.err != nil && waiting.Err() != nil && ctx.Err() == nil {
			held.err = errors.New("the run was ended while it waited for the host's lock")
		}
		done()
		h.holds[user] = held
	}
	if held.err == nil {
		return nil
	}
	out := p.failed(ctx, nil, nil, fmt.Errorf("nothing was changed: %w", held.err))
	out.open = !out.lost
	return &out
}

// held is a lock on a host, or why there is none.
type held struct {
	release func(context.Context) error
	err     error
}

func (p *playRun) lock(ctx context.Context, h *hostRun, user string) (release func(context.Context) error, err error) {
	conn, err := p.connect(h)
	if err != nil {
		return nil, err
	}
	release, from, err := transport.Lock(ctx, conn, user, transport.Self(p.job.Journal.ID()))
	if err != nil {
		return nil, err
	}
	if from != nil {
		e := p.event(report.Warning)
		e.Host, e.Text = h.host.Name, fmt.Sprintf("the host's lock is taken over from %s", from)
		p.emit(e)
		note := &journal.Note{Text: h.host.Name + ": " + e.Text}
		if err := p.note(journal.Record{Kind: journal.KindNote, Note: note}); err != nil {
			return release, err
		}
	}
	boot, machine, err := p.identity(ctx, h, user)
	if err != nil {
		return release, err
	}
	return release, p.note(journal.Record{Kind: journal.KindFacts, Facts: &journal.Facts{Host: h.host.Name, BootID: boot, Machine: machine}})
}

// unlock gives the locks of a host back, where nothing of the run is under way any more.
func (h *hostRun) unlock() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h.holding.Lock()
	defer h.holding.Unlock()
	for _, held := range h.holds {
		if held.release != nil {
			_ = held.release(ctx) // it goes with the connection at the latest
		}
	}
}
