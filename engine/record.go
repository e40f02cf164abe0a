package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/engine/vars"
)

// A run writes down what it does, and a resumed one goes through the same program again with what was written as its memo: an item
// that has its end is not done again, its outcome comes from the record. Loops, blocks, rescues, handlers and registered results come
// back by themselves that way. What has a beginning and no end was under way: Check decides, and where it cannot tell, a person does.

// Program describes what a job would run, task by task, and on which hosts, for its record. The error is spec.Errors.
func Program(job Job) (books []journal.Book, hosts []string, err error) {
	if job.Masker == nil {
		job.Masker = &secret.Masker{}
	}
	p, errs := compile(&job)
	if len(errs) > 0 {
		return nil, nil, errs
	}
	used := p.hosts()
	for _, h := range job.Inventory.Hosts() {
		if used[h.Name] {
			hosts = append(hosts, h.Name)
		}
	}
	return p.describe(&job), hosts, nil
}

func (p *program) describe(job *Job) []journal.Book {
	var books []journal.Book
	for i, b := range p.books {
		book := journal.Book{Path: job.Books[i].Path, File: job.Books[i].File, Title: b.spec.Title, Vars: varsDigest(b.spec), Owed: b.owed}
		for _, play := range b.plays {
			p := journal.Play{Name: play.title, Hosts: []string{}}
			for _, h := range play.hosts {
				p.Hosts = append(p.Hosts, h.Name)
			}
			if len(play.spec.Serial) > 0 {
				p.Serial = fmt.Sprint(play.spec.Serial)
			}
			book.Plays = append(book.Plays, p)
			for _, t := range allTasks(play) {
				book.Tasks = append(book.Tasks, journal.Task{ID: recordID(i, t), Play: play.title, Name: t.label(), Digest: taskDigest(t.spec)})
			}
		}
		book.Digest = digestOf(book.Tasks)
		books = append(books, book)
	}
	return books
}

// allTasks lists the tasks of a play and its handlers, those in blocks too.
func allTasks(p *play) []*task {
	var list []*task
	var walk func(tasks []*task)
	walk = func(tasks []*task) {
		for _, t := range tasks {
			list = append(list, t)
			walk(t.block)
			walk(t.rescue)
			walk(t.always)
		}
	}
	walk(p.tasks)
	walk(p.handlers)
	return list
}

// digestOf is a short digest of anything that JSON can hold; a secret counts as its mask.
func digestOf(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		text = fmt.Append(nil, v)
	}
	return fmt.Sprintf("%x", sha256.Sum256(text))[:16]
}

// value is what is written in a book, as JSON may hold it.
func value(v *spec.Value) any {
	if v == nil {
		return nil
	}
	return v.Any()
}

func entries(list []spec.Entry) (out []any) {
	for _, e := range list {
		out = append(out, e.Key, value(e.Value))
	}
	return out
}

// varsDigest tells two books apart whose tasks would be the same and might not do the same.
func varsDigest(b *spec.Book) string {
	all := []any{entries(b.Vars)}
	for _, p := range b.Params {
		all = append(all, p.Name, value(p.Default))
	}
	for _, p := range b.Plays {
		all = append(all, entries(p.Vars), entries(p.Environment), value(p.Become), value(p.BecomeUser))
	}
	return digestOf(all)
}

// taskDigest tells two tasks apart that do not do the same; where they stand and what is said about them is no matter.
func taskDigest(ts *spec.Task) string {
	values := func(list []*spec.Value) []any {
		var out []any
		for _, v := range list {
			out = append(out, value(v))
		}
		return out
	}
	return digestOf([]any{ts.Module, value(ts.Args), ts.Meta, values(ts.When), values(ts.ChangedWhen), values(ts.FailedWhen), values(ts.Until),
		value(ts.Loop), ts.LoopVar, ts.IndexVar, ts.Register, values(ts.Notify), values(ts.Listen), value(ts.Become), value(ts.BecomeUser),
		entries(ts.Vars), entries(ts.Environment), value(ts.Retries), value(ts.Delay), value(ts.Timeout), value(ts.IgnoreErrors),
		value(ts.DelegateTo), value(ts.RunOnce), len(ts.Block), len(ts.Rescue), len(ts.Always)})
}

// taskID is the name of a task in the record: the runbook's place in the job, and the task's in the runbook.
func (p *playRun) taskID(t *task) string {
	return recordID(slices.Index(p.program.books, p.book), t)
}

func recordID(book int, t *task) string { return fmt.Sprintf("%d:%s", book+1, t.id) }

// past is the outcome on record, if it can be had from there. again says that Check has to look: whether it still stands, as the host has started anew
// since, or what of its values is not on record.
func (p *playRun) past(ctx context.Context, d *doing, t *task, target *hostRun, user string, args map[string]any, late, environment map[string]string) (out *outcome, again bool, stop *outcome) {
	if d.Nth == 0 || p.job.Check {
		return nil, false, nil
	}
	changed, err := p.recall(d, t, target, user, args, late, environment)
	if err != nil {
		return nil, false, p.unrecorded(err)
	}
	if len(changed) > 0 && !p.job.AcceptChanges {
		out := fail("its arguments are not what they were in the run that is resumed (%s): resume with --accept-changes if that is meant", strings.Join(changed, ", "))
		p.ask(Question{Host: d.Host, Task: t.label(), Accept: true})
		out.open = true
		return nil, false, &out
	}
	if d.restore == nil {
		return nil, false, nil
	}
	end := d.restore
	if out, err = restored(t, end); err != nil {
		return nil, false, p.unrecorded(err)
	}
	if job := p.memo.jobs[end]; job != "" { // the run may have died before it could remove it
		if conn, err := p.connect(target); err == nil {
			d.forget = (&module.Host{Name: target.host.Name, Conn: conn, User: user, JobID: job}).ForgetLong
			d.forgetJob()
		}
	}
	forgiven := out.result.Status == report.Failed || out.result.Status == report.Unreachable
	switch {
	case (end.Unseen || end.Withheld) && p.answers(p.job.Rerun, d) && !p.memo.doubtful[journal.Answer(d.Host, end.Name, "")]:
		d.halfway, d.restore = &journal.Begin{Key: d.Key, Name: end.Name, Label: end.Label, On: end.On, Digest: end.Digest, Paid: end.Paid}, nil
		return nil, false, nil
	case forgiven && !p.forgives(t):
		d.restore = nil // by the book as it was
		return nil, false, nil
	}
	if forgiven {
		return out, false, nil
	}
	// What was only looked at may have lived in memory too, unless it is no state of the host: what a command or a query says is kept.
	d.anew = (end.Effect || !neverChanges(t) && !t.readsOnly()) && p.rebooted(ctx, target, user)
	d.look = end.Withheld && !end.Unseen && t.spec.Register != ""
	return out, d.anew || d.look, nil
}

// restored is an outcome as the record has it.
func restored(t *task, end *journal.End) (*outcome, error) {
	out := &outcome{restored: true, on: end.On}
	err := json.Unmarshal(end.Result, &out.result)
	if err != nil {
		return nil, fmt.Errorf("cannot read an outcome on record: %w", err)
	}
	out.result.OnRecord = true
	values, err := onRecord(t, end)
	out.values = common(out.result, values)
	return out, err
}

// believed is the outcome on record of a doing of which it cannot be told whether its condition or its arguments are what they were, as a value in
// them is known no more; nil if it has none.
func (p *playRun) believed(t *task, h *hostRun, index int, label string, d *doing) *outcome {
	if p.job.Journal == nil {
		return nil
	}
	if d == nil {
		d = p.doingOf(t, h, index)
	}
	label = p.job.Masker.Mask(label)
	m := p.memo
	m.mu.Lock()
	defer m.mu.Unlock()
	end := m.ends[d.Key]
	if label != "" {
		end = m.ends[m.labelled(d.Key, label)]
	}
	if end == nil || m.taken[end] {
		return nil
	}
	out, err := restored(t, end)
	if err != nil || out.result.Status == report.Failed || out.result.Status == report.Unreachable {
		return nil
	}
	m.taken[end] = true
	d.Key, d.digest, d.restore, d.owes, d.at = end.Key, end.Digest, end, end.Owes(), m.at[end]
	out.doing = d
	return out
}

// forgives reports whether the play may go on after a failure of a task.
func (p *playRun) forgives(t *task) bool {
	flushed := func(meta *task) bool { return meta.spec.Meta == "flush_handlers" && meta.rescued }
	return t.rescued || t.ignoreErrors != nil || slices.Contains(p.play.handlers, t) && slices.ContainsFunc(allTasks(p.play), flushed)
}

// Answers reports whether an answer names a task, or an item of its loop, on that host or on all. It may stand there as it is shown.
func Answers(answer, host, task, item string) bool {
	here := journal.Answer(host, task, item)
	for _, form := range []string{here, strings.TrimPrefix(here, host+"/")} {
		if answer == form || answer == report.Clean(form) {
			return true
		}
	}
	return false
}

// answers reports whether a list of answers names what is done here: by the names that it has or had, on all hosts or this one, with its item or
// without.
func (p *playRun) answers(list []string, d *doing) bool {
	names := [][2]string{{d.name, d.label}}
	if d.halfway != nil {
		names = append(names, [2]string{d.halfway.Name, d.halfway.Label})
	}
	if d.restore != nil {
		names = append(names, [2]string{d.restore.Name, d.restore.Label})
	}
	for _, n := range names {
		for _, item := range []string{"", n[1]} {
			if slices.ContainsFunc(list, func(answer string) bool { return Answers(answer, d.Host, n[0], item) }) {
				return true
			}
		}
	}
	return false
}

// begin puts on record that a change is about to be made. Nothing is touched if it cannot be.
func (p *playRun) begin(ctx context.Context, d *doing, t *task, m module.Module, env vars.Env, e report.Event, target *hostRun, host *module.Host) *outcome {
	if p.job.Journal == nil {
		return nil
	}
	if stop := p.hold(ctx, target, host.User); stop != nil {
		return stop
	}
	if stop := p.paidMeanwhile(t, p.run.hosts[d.Host]); stop != nil {
		return stop
	}
	if module.IsLong(m) {
		p.longStep(d, host)
	}
	mask := p.job.Masker.Mask
	begin := &journal.Begin{Key: d.Key, Name: mask(e.Task), Label: mask(e.Item), Digest: d.digest, Args: d.args, Job: host.JobID}
	if target.host.Name != d.Host {
		begin.On = target.host.Name
	}
	for _, h := range p.handlersOf(t, env) {
		begin.Notify = append(begin.Notify, p.taskID(h))
	}
	record := journal.Record{Kind: journal.KindBegin, Begin: begin}
	if err := p.job.Journal.Commit(record); err != nil {
		return p.unrecorded(err)
	}
	d.began = true
	return nil
}

// longStep lets Apply leave a job on the host: that of an Apply which was under way, if it is still of use, or a new one.
func (p *playRun) longStep(d *doing, host *module.Host) {
	d.forgetJob()
	if host.JobID == "" {
		host.JobID = transport.NewJobID()
	}
	host.KeepJob = true
	conn, user, me := host.Conn, host.User, transport.Self(p.job.Journal.ID())
	host.HoldFunc = func(ctx context.Context, job transport.Job) error { return transport.HoldJob(ctx, conn, user, me, job) }
	d.forget = host.ForgetLong
}

// forgetJob removes what a job left on the host, when its outcome is on record.
func (d *doing) forgetJob() {
	if d.forget == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = d.forget(ctx) // what stays is removed in a month
	d.forget = nil
}

// await waits for the job of an Apply that was under way. With an outcome to collect Apply follows, whatever Check finds.
func (p *playRun) await(ctx context.Context, d *doing, m module.Module, host *module.Host) (err error) {
	if d.halfway.Job == "" || !module.IsLong(m) {
		return nil
	}
	host.JobID = d.halfway.Job
	state, err := host.AwaitLong(ctx, m)
	switch another := d.halfway.Digest != d.digest; {
	case err != nil:
		return err
	case state == transport.JobEnded && !another:
		d.collect = true
	case state == transport.JobLost, another:
		err = host.ForgetLong(ctx)
		host.JobID = ""
	}
	return err
}

// unrecorded ends the run: what cannot be put on record is not done.
func (p *playRun) unrecorded(err error) *outcome {
	p.unwritable(err)
	out := fail("not done, because it cannot be put on record: %v", err)
	out.open = true
	return &out
}

// end puts the outcome of a doing on record. turn says that it was the last of a handler's items, and all are well; settles is what that has paid
// of earlier runs.
func (p *playRun) end(d *doing, out *outcome, e report.Event, turn bool, settles []journal.Settled) {
	if p.job.Journal == nil || out.restored && (!turn || d.restore.Turn && len(settles) == 0) || out.open || d == nil {
		return
	}
	if d.halfway != nil && !d.began && (out.result.Status == report.Failed || out.result.Status == report.Unreachable) {
		return // nobody could look, so it is under way as before
	}
	mask := p.job.Masker.Mask
	if out.restored { // that it has had its turn is all that is new
		end := &journal.End{Key: d.Key, Name: mask(e.Task), Label: mask(e.Item), On: out.on, Status: string(out.result.Status), Turn: true, Settles: settles}
		if err := p.job.Journal.Commit(journal.Record{Kind: journal.KindEnd, End: end}); err != nil {
			p.unwritable(err)
		}
		return
	}
	end := &journal.End{Key: d.Key, Name: mask(e.Task), Label: mask(e.Item), On: out.on, Digest: d.digest, Args: d.args, Status: string(out.result.Status), Effect: d.began || d.halfway != nil, Turn: turn, Settles: settles}
	end.Result, _ = json.Marshal(p.masked(out.result))
	if end.Unseen = out.unseen; !end.Unseen {
		if err := p.encodeValues(end, out.values); err != nil {
			p.unwritable(err)
			return
		}
	}
	for _, h := range out.notified {
		end.Notified = append(end.Notified, p.taskID(h))
	}
	record := journal.Record{Kind: journal.KindEnd, End: end}
	write := p.job.Journal.Append
	if d.began || turn || len(end.Notified) > 0 {
		write = p.job.Journal.Commit
	}
	if err := write(record); err != nil {
		p.unwritable(err)
		return
	}
	d.forgetJob()
}

// halfway decides what becomes of a task that was under way when an earlier part of the run ended, by what Check finds now. done says
// that there is no more to do.
func (p *playRun) halfway(d *doing, t *task, plan module.Plan) (out outcome, done bool) {
	another := d.halfway.Digest != d.digest // with other arguments: what is done of that is not what is to be done
	rerun, marked := p.answers(p.job.Rerun, d), p.answers(p.job.MarkDone, d)
	switch {
	case rerun && plan.Idle:
		d.collect = true // somebody wants what it returns
		return out, false
	case len(plan.Changes) == 0 && plan.Unknown == "", marked && !another:
		out.found = true
		out.result.Status, out.values = report.Changed, plan.Values
		out.result.Msg = "it was under way when the run ended, and is done"
		if plan.Unknown != "" || len(plan.Changes) > 0 {
			out.result.Msg = "it was under way when the run ended, and is taken for done"
			out.unseen = true
		}
		if out.unseen = out.unseen || plan.Idle; out.unseen {
			out.values = unseen(t, true)
		}
		out.values = common(out.result, out.values)
		return out, true
	case plan.Unknown == "" && !plan.Act, plan.Again, neverChanges(t), rerun, marked:
		return out, false
	}
	q := Question{Host: d.Host, Task: cmp.Or(d.halfway.Name, d.name), Item: d.halfway.Label}
	p.ask(q)
	here := transport.Quote(journal.Answer(q.Host, q.Task, q.Item))
	out = fail("it was under way when the run ended, and nobody but you can tell whether it was done: look on %s, then resume with --rerun %s or --mark-done %s",
		cmp.Or(d.halfway.On, d.Host), here, here)
	out.open = true
	return out, true
}

// ask notes that the run cannot go on without a person.
func (r *run) ask(q Question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.asked, q) {
		r.asked = append(r.asked, q)
	}
}

// note puts on record what need not be on disk at once. If it cannot be, no further task begins.
func (r *run) note(record journal.Record) error {
	err := r.job.Journal.Append(record)
	if err != nil {
		r.unwritable(err)
	}
	return err
}

// unwritable ends the run, as its record cannot be written.
func (r *run) unwritable(err error) {
	r.halt(fmt.Sprintf("the record of the run cannot be written: %v", err))
}
