package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"runbook/engine/journal"
	"runbook/engine/report"
)

// owes reports whether an earlier run, or an earlier part of this one, owes a handler of the play to a host.
func (p *playRun) owes(h *hostRun) bool {
	debt := func(d journal.Debt) bool {
		return d.Why == "" && d.Host == h.host.Name && d.Book == p.bookKey() && d.Play == p.play.title
	}
	own := func(o journal.Owed) bool {
		return o.Host == h.host.Name && slices.ContainsFunc(p.play.handlers, func(t *task) bool { return p.taskID(t) == o.Handler })
	}
	return h.used && (slices.ContainsFunc(p.debts, debt) || slices.ContainsFunc(p.job.Own, own))
}

// takeDebts notifies the handlers of the play that earlier runs owe its hosts.
func (p *playRun) takeDebts(hosts []*hostRun) {
	p.each(hosts, func(h *hostRun) {
		if slices.ContainsFunc(p.debts, func(d journal.Debt) bool { return d.Host == h.host.Name && d.Machine != "" }) {
			_, _, _ = p.identity(p.ctx, h, "") // all at once; the first task meets the error
		}
	})
	for _, h := range hosts {
		for i, d := range p.debts {
			if d.Host != h.host.Name || d.Machine == "" {
				continue
			}
			if _, machine, err := p.identity(p.ctx, h, ""); err == nil && machine != "" && machine != d.Machine {
				p.debts[i].Why = "that was another machine of this name"
			}
		}
		p.debts = slices.DeleteFunc(p.debts, func(d journal.Debt) bool {
			if d.Host != h.host.Name || d.Book != p.bookKey() || d.Play != p.play.title || d.Why != "" {
				return false
			}
			handler, elsewhere := p.payer(d.Owed)
			if elsewhere {
				return false
			}
			if handler == nil {
				p.writeOff(d)
				return true
			}
			h.mu.Lock()
			h.notice(handler, notice{debt: true})
			h.debts[handler] = append(h.debts[handler], d)
			h.mu.Unlock()
			e := p.event(report.Warning)
			told := "notified"
			if d.Unsure {
				told = "may have notified"
			}
			e.Host, e.Text = h.host.Name, fmt.Sprintf("run %s %s the handler %q and did not come to run it: its turn is in this one", d.Run, told, d.Name)
			p.emit(e)
			return true
		})
	}
}

// payer finds the handler of this play that a debt is about; elsewhere says that another play of the same name has it, which is the one that the
// run was in, or else the first.
func (p *playRun) payer(d journal.Owed) (handler *task, elsewhere bool) {
	var first, same *play
	find := func(play *play) *task {
		for _, t := range play.handlers {
			if t.label() == d.Name {
				return t
			}
		}
		return nil
	}
	for _, other := range p.book.plays {
		if other.title != d.Play || find(other) == nil {
			continue
		}
		if first == nil {
			first = other
		}
		if strings.HasPrefix(d.Handler[strings.Index(d.Handler, ":")+1:], other.handlers[0].id[:strings.Index(other.handlers[0].id, "/")+1]) {
			same = other
		}
	}
	if pays := cmp.Or(same, first); pays != p.play {
		return nil, pays != nil
	}
	return find(p.play), false
}

// takeOwn notifies the handlers that earlier parts of this run owe and that nothing has notified again: what did was edited away, or skipped.
func (p *playRun) takeOwn(hosts []*hostRun) {
	for _, d := range p.job.Own {
		for _, h := range hosts {
			i := slices.IndexFunc(p.play.handlers, func(t *task) bool { return p.taskID(t) == d.Handler })
			if d.Host != h.host.Name || i < 0 {
				continue
			}
			handler := p.play.handlers[i]
			h.mu.Lock()
			_, notified := h.notified[handler]
			was, ran := h.turn[handler]
			ran = ran && (was.fresh || was.debt || was.at >= d.N)
			if !notified && !ran {
				h.notice(handler, notice{at: d.N})
			}
			h.mu.Unlock()
			if !notified && !ran {
				e := p.event(report.Warning)
				told := "was"
				if d.Unsure {
					told = "may have been"
				}
				e.Host, e.Text = h.host.Name, fmt.Sprintf("the handler %q %s notified in an earlier part of the run, and runs now", d.Name, told)
				p.emit(e)
			}
		}
	}
}

// writeOff settles what nobody can do any more.
func (p *playRun) writeOff(d journal.Debt) {
	e := p.event(report.Warning)
	e.Host, e.Text = d.Host, fmt.Sprintf("run %s notified the handler %q and did not come to run it; the play has no such handler any more, so it is owed no longer", d.Run, d.Name)
	p.emit(e)
	if p.job.Journal == nil {
		return
	}
	note := settled(d)
	if err := p.job.Journal.Commit(journal.Record{Kind: journal.KindSettled, Settled: &note}); err != nil {
		p.unwritable(err)
	}
}

// bookKey is what records know the book by.
func (p *playRun) bookKey() string {
	src := p.job.Books[slices.Index(p.program.books, p.book)]
	return journal.Book{Path: src.Path, File: src.File}.Key()
}

// tellDebts warns of what earlier runs owe hosts of this one and none of its plays could pay.
func (r *run) tellDebts() {
	for _, d := range r.debts {
		if h := r.hosts[d.Host]; h != nil && h.used {
			why := ""
			if d.Why != "" {
				why = fmt.Sprintf(" (this one cannot run it: %s)", d.Why)
			}
			r.emit(report.Event{Kind: report.Warning, Host: d.Host, Text: fmt.Sprintf("run %s notified the handler %q of %q and did not come to run it: resume that run, or run that book%s", d.Run, d.Name, d.Book, why)})
		}
	}
}

// hadTurn puts on record that a handler has had its turn on a host where there was nothing to do.
func (p *playRun) hadTurn(t *task, h *hostRun) {
	if p.job.Journal == nil {
		return
	}
	end := &journal.End{Key: p.next(t, h, 0), Name: t.label(), Status: string(report.Skipped), Turn: true, Settles: h.pays(t)}
	if err := p.job.Journal.Commit(journal.Record{Kind: journal.KindEnd, End: end}); err != nil {
		p.unwritable(err)
	}
}

// paidMeanwhile is the outcome of a handler that runs for earlier runs alone, or earlier parts of this one, if another run has run it while this one came
// to have the host's lock.
func (p *playRun) paidMeanwhile(t *task, h *hostRun) *outcome {
	h.mu.Lock()
	debts, why := h.debts[t], h.turn[t]
	h.mu.Unlock()
	if why.fresh || len(debts) == 0 && why.at == 0 {
		return nil
	}
	left, err := p.job.Journal.Unpaid(debts)
	if err == nil && why.at > 0 {
		var paid int
		if paid, err = p.job.Journal.PaidFor(h.host.Name, p.taskID(t)); paid < why.at {
			return nil
		}
	}
	switch {
	case err != nil:
		out := fail("nothing was changed: it cannot be told whether another run has done it meanwhile: %v", err)
		return &out
	case len(left) > 0:
		return nil
	}
	out := outcome{result: report.Result{Status: report.OK, Msg: "another run has done it meanwhile"}}
	out.values = common(out.result, nil)
	return &out
}

// pays is what the turn of a handler pays of earlier runs.
func (h *hostRun) pays(handler *task) (settles []journal.Settled) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.debts[handler] {
		settles = append(settles, settled(d))
	}
	delete(h.debts, handler)
	return settles
}

func settled(d journal.Debt) journal.Settled {
	return journal.Settled{Run: d.Run, Host: d.Host, Handler: d.Handler, N: max(d.N, d.Last)}
}

// whenOwed says how a handler that is owed comes to run.
func (p *playRun) whenOwed() string {
	if p.job.Journal == nil {
		return ", and the next run may not notify it again"
	}
	return "; resume runs it, and so does the next run on that host"
}
