package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Debt is a handler that a run owes.
type Debt struct {
	Run string
	Owed
	Why string `json:"-"` // why a run that was not asked to run its book cannot pay it
}

// Debts returns the handlers that runs which died, failed or were interrupted owe to hosts (all hosts, if hosts is nil), the oldest run first,
// less what other runs have settled. A run that is being written owes nothing yet, an imported one owes it elsewhere.
//
// Where a record is damaged, what it owes before the damage is returned too, together with an error that names it.
func Debts(stateDir string, hosts []string) ([]Debt, error) {
	s, err := at(stateDir)
	if err != nil {
		return nil, err
	}
	// What is owed is done: nobody else may have written it.
	for _, dir := range []string{s.dir, s.runs()} {
		if err := private(dir); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	debts, err := s.owed(all)
	if hosts != nil {
		debts = slices.DeleteFunc(debts, func(d Debt) bool { return !slices.Contains(hosts, d.Host) })
	}
	return debts, err
}

func (s state) owed(all []Info) ([]Debt, error) {
	var debts []Debt
	var errs []error
	for _, info := range all {
		switch {
		case info.Imported || info.Status == Running:
		case info.Close != nil:
			for _, o := range info.Close.Owed {
				o.N = cmp.Or(o.N, info.Records) // earlier versions did not say
				debts = append(debts, Debt{Run: info.ID, Owed: o})
			}
		default:
			more, err := owing(info.Path)
			debts = append(debts, more...)
			errs = append(errs, err)
		}
	}
	if len(debts) == 0 {
		return nil, errors.Join(errs...)
	}
	paid, err := s.paid(all)
	errs = append(errs, err)
	debts = slices.DeleteFunc(debts, func(d Debt) bool { return d.N <= paid[debtor{d.Run, d.Host, d.Handler}] })
	age := map[string]int{}
	for i, info := range all { // the newest is the first
		age[info.ID] = -i
	}
	slices.SortStableFunc(debts, func(a, b Debt) int { return cmp.Compare(age[a.Run], age[b.Run]) })
	return debts, errors.Join(errs...)
}

// debtor is who owes a handler to whom.
type debtor struct{ run, host, handler string }

// paid tells up to which of its records a run's debt was settled by others.
func (s state) paid(all []Info) (map[debtor]int, error) {
	paid := map[debtor]int{}
	var errs []error
	for _, info := range all {
		if info.Imported {
			continue
		}
		err := settled(info.Path, func(p Settled) {
			k := debtor{p.Run, p.Host, p.Handler}
			paid[k] = max(paid[k], p.N)
		})
		if info.Close != nil || info.Status == Running { // of the others it has been told
			errs = append(errs, err)
		}
	}
	return paid, errors.Join(errs...)
}

// Paid notes in the records of a run which of the handlers that it notified other runs have run for it since. An error names what of these
// cannot be read.
func Paid(stateDir, id string, recs []Record) error {
	s, err := at(stateDir)
	if err != nil {
		return err
	}
	all, err := s.list()
	if err != nil {
		return err
	}
	paid, err := s.paid(all)
	for _, r := range recs {
		switch {
		case r.End != nil:
			for _, handler := range r.End.Notified {
				if r.N <= paid[debtor{id, r.End.Host, handler}] {
					r.End.Paid = append(r.End.Paid, handler)
				}
			}
		case r.Begin != nil:
			for _, handler := range r.Begin.Notify {
				if r.N <= paid[debtor{id, r.Begin.Host, handler}] {
					r.Begin.Paid = append(r.Begin.Paid, handler)
				}
			}
		}
	}
	return err
}

// Owed returns the handlers that the run owes by what is on record of it so far.
func (w *Writer) Owed() ([]Owed, error) {
	w.mu.Lock()
	err := w.wait(w.n)
	w.mu.Unlock()
	debts, more := owing(w.path)
	if len(debts) == 0 {
		return nil, errors.Join(err, more)
	}
	w.reading.Lock()
	defer w.reading.Unlock()
	now, unread := w.now()
	var owed []Owed
	for _, d := range debts {
		if d.N > now.paid[debtor{d.Run, d.Host, d.Handler}] {
			owed = append(owed, d.Owed)
		}
	}
	return owed, errors.Join(err, more, unread)
}

// Unpaid are those of some debts that no run has settled yet, as of now, nor the one that owes them, which may have been resumed.
func (w *Writer) Unpaid(debts []Debt) (left []Debt, err error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	now, err := w.now()
	if err != nil {
		return nil, err
	}
	for _, d := range debts {
		if d.N <= now.paid[debtor{d.Run, d.Host, d.Handler}] {
			continue
		}
		if _, read := now.owes[d.Run]; !read {
			if now.owes[d.Run], err = owing(w.state.path(d.Run)); err != nil {
				return nil, err
			}
		}
		if slices.ContainsFunc(now.owes[d.Run], func(o Debt) bool { return o.Host == d.Host && o.Book == d.Book && o.Play == d.Play && o.Name == d.Name }) {
			left = append(left, d)
		}
	}
	return left, nil
}

// PaidFor is up to which record of this run others have paid what it owed: the turn of a handler on a host. 0 is none.
func (w *Writer) PaidFor(host, handler string) (int, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	now, err := w.now()
	if err != nil {
		return 0, err
	}
	return now.paid[debtor{w.id, host, handler}], nil
}

// others is what the records of other runs say of debts. They are many and seldom grow while a run goes.
type others struct {
	sizes string // of their files
	paid  map[debtor]int
	owes  map[string][]Debt // by run, as far as somebody has asked
}

// now is what the records of other runs say now, read again if one of them has grown; with an error, what can be read of it. Who calls it holds reading.
func (w *Writer) now() (*others, error) {
	all, err := ids(w.state.runs())
	if err != nil {
		return &others{}, err
	}
	var sizes strings.Builder
	for _, id := range all {
		if info, err := os.Stat(w.state.path(id)); err == nil && id != w.id {
			fmt.Fprintln(&sizes, id, info.Size())
		}
	}
	if w.others != nil && w.others.sizes == sizes.String() {
		return w.others, nil
	}
	runs, err := w.state.list()
	if err != nil {
		return &others{}, err
	}
	paid, err := w.state.paid(runs)
	now := &others{sizes.String(), paid, map[string][]Debt{}}
	if err == nil {
		w.others = now
	}
	return now, err
}

// Owes returns the handlers that a task notified, but for those that another run has run since.
func (e *End) Owes() []string {
	return slices.DeleteFunc(slices.Clone(e.Notified), func(handler string) bool { return slices.Contains(e.Paid, handler) })
}

// Owes returns the handlers that a task may have notified which was begun, if it was, but for those that another run has run since.
func (b *Begin) Owes() []string {
	if b == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(b.Notify), func(handler string) bool { return slices.Contains(b.Paid, handler) })
}

// forgiven reports whether a run has gone on after a failure as its book says.
func (e *End) forgiven() bool {
	var result struct{ Ignored, Rescued bool }
	return json.Unmarshal(e.Result, &result) == nil && (result.Ignored || result.Rescued)
}

// inDoubt tells whether what was begun, in this doing or an earlier one, may have changed the host although it did not end well.
func (e *End) inDoubt() bool {
	return (e.Status == "unreachable" || e.Status == "failed") && !e.forgiven()
}

// owing follows a record: what was notified on a host, or may have been, less what the handler has done there since.
func owing(path string) ([]Debt, error) {
	type handler struct{ host, task string }
	type name struct{ book, play, name string }
	var run Run
	owed, turns := map[handler]int{}, map[handler]int{}
	open := map[Key]Record{}
	names := map[string]name{}
	machines := map[string]string{}
	in, err := openRecord(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	err = newReader(in, path).each(func(r Record) error {
		switch r.Kind {
		case KindRun:
			run = *r.Run
			for _, b := range run.Books {
				for _, t := range b.Tasks {
					names[t.ID] = name{b.Key(), t.Play, t.Name}
				}
			}
		case KindResume:
			if len(r.Resume.Books) == 0 {
				return nil
			}
			// The books were edited: what is owed has another number from here on.
			today, ids, named := map[string]name{}, r.Resume.Tasks, map[name]string{}
			for _, b := range r.Resume.Books {
				for _, t := range b.Tasks {
					today[t.ID] = name{b.Key(), t.Play, t.Name}
					named[today[t.ID]] = t.ID
				}
			}
			if ids == nil { // as earlier versions wrote it
				ids = map[string]string{}
				for id, n := range names {
					if now, there := named[n]; there {
						ids[id] = now
					}
				}
			}
			still := map[handler]int{}
			for h, n := range owed {
				if id, there := ids[h.task]; there {
					still[handler{h.host, id}] = n
				}
			}
			had := map[handler]int{}
			for h, n := range turns {
				if id, there := ids[h.task]; there {
					had[handler{h.host, id}] = n
				}
			}
			turns = had
			begun := map[Key]Record{}
			for key, r := range open {
				begin := *r.Begin
				if begin.Task = ids[key.Task]; begin.Task == "" {
					begin.Task = "gone " + key.Task // it may have notified all the same
				}
				begin.Notify = nil
				for _, handler := range r.Begin.Notify {
					if id, there := ids[handler]; there {
						begin.Notify = append(begin.Notify, id)
					}
				}
				r.Begin = &begin
				begun[begin.Key] = r
			}
			owed, names, open = still, today, begun
		case KindFacts:
			machines[r.Facts.Host] = cmp.Or(r.Facts.Machine, machines[r.Facts.Host])
		case KindBegin:
			open[r.Begin.Key] = r
		case KindEnd:
			if !r.End.inDoubt() {
				delete(open, r.End.Key)
			}
			if h := (handler{r.End.Host, r.End.Task}); r.End.Turn {
				turns[h] = r.N
				delete(owed, h)
			}
			for _, id := range r.End.Notified {
				owed[handler{r.End.Host, id}] = r.N
			}
		}
		return nil
	})
	debt := func(host, id string, n int, unsure bool) Debt {
		t := names[id]
		return Debt{Run: run.ID, Owed: Owed{Host: host, Machine: machines[host], Book: t.book, Play: t.play, Handler: id, Name: t.name, N: n, Unsure: unsure}}
	}
	var out []Debt
	unsure, last := map[handler]int{}, map[handler]int{}
	for _, r := range open {
		for _, id := range r.Begin.Notify {
			h := handler{r.Begin.Host, id}
			last[h] = max(last[h], r.N)
			if _, sure := owed[h]; !sure && r.N > turns[h] {
				unsure[h] = max(unsure[h], r.N)
			}
		}
	}
	for h, n := range owed {
		d := debt(h.host, h.task, n, false)
		if last[h] > n {
			d.Last = last[h]
		}
		out = append(out, d)
	}
	for h, n := range unsure {
		out = append(out, debt(h.host, h.task, n, true))
	}
	// Handlers run in the order of their book.
	order := map[string]int{}
	for _, b := range run.Books {
		for _, t := range b.Tasks {
			order[t.ID] = len(order)
		}
	}
	slices.SortFunc(out, func(a, b Debt) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), order[a.Handler]-order[b.Handler], cmp.Compare(a.Handler, b.Handler))
	})
	return out, err
}

// peek decodes a line without asking what stands before it.
func peek(line []byte) (rec Record, err error) {
	if err := json.Unmarshal(line, &rec); err != nil {
		return Record{}, err
	}
	last := KindNote
	switch rec.Kind {
	case KindRun:
		last = ""
	case KindResume:
		last = KindClose
	}
	return rec, rec.follows(last, rec.N)
}

// settled calls f for what a run has paid for others. The chain is verified, but only the lines that matter are decoded.
func settled(path string, f func(Settled)) error {
	in, err := openRecord(path)
	if err != nil {
		return err
	}
	defer in.Close()
	r := newReader(in, path)
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if bytes.Contains(line, []byte(`"kind":"settled"`)) || bytes.Contains(line, []byte(`"settles":[`)) {
			rec, err := peek(line)
			if err != nil {
				return r.corrupt(err.Error())
			}
			for _, s := range rec.Settlements() {
				f(s)
			}
		}
	}
}
