// Package journal keeps the record of a run: a file of JSON lines that survives the loss of the controller at any instant, so that the run
// can be taken up again, and what it owes is not forgotten.
//
// A line is one Record. It ends with a sum over itself and the sum of the line before, so the lines are a chain: a flipped bit, a line that
// is missing, doubled or moved is found with its offset, and nothing behind it is believed. Only the end of a file may be ragged: a last line
// without its newline was being written when the run died, nobody was told that it was on disk, and it is dropped.
//
// A record has one writer, who holds a lock on the file for as long as it lives; the kernel drops the lock with the process. Commit returns
// when its record and all before it are on disk. Callers that meet share one write and one sync. After an error of the disk nothing is
// accepted any more: what a failed sync has left behind cannot be known, so the run must stop as if it had crashed.
//
// Records are ordered by their number. Their times are for people.
//
// The state directory holds
//
//	runs/ID.jsonl      the record of a run
//	runs/ID.holder     who holds its lock, for the message to a second operator; it means nothing without the lock
//	imported/ID.jsonl  the record of a run of another controller, to read only
package journal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Format is the number of the format that this package writes, and the only one it reads. It changes when the meaning of a record does.
// The first line, which bears it, is summed alike in every format.
const Format = 1

// MaxLine is the most bytes that a record may have as a line.
const MaxLine = 64 << 20

// Kind says what a record tells.
type Kind string

// The kinds. Run is the first record and no other; after Close only Resume follows.
const (
	KindRun     Kind = "run"
	KindFacts   Kind = "facts"
	KindBegin   Kind = "begin"
	KindEnd     Kind = "end"
	KindNote    Kind = "note"
	KindSettled Kind = "settled"
	KindResume  Kind = "resume"
	KindClose   Kind = "close"
)

// Record is one line. Exactly the field that fits Kind is set.
type Record struct {
	N       int       `json:"n"`    // from 1, without gaps; the writer counts
	Time    time.Time `json:"time"` // the writer fills it in if it is zero
	Kind    Kind      `json:"kind"`
	Run     *Run      `json:"run,omitempty"`
	Facts   *Facts    `json:"facts,omitempty"`
	Begin   *Begin    `json:"begin,omitempty"`
	End     *End      `json:"end,omitempty"`
	Note    *Note     `json:"note,omitempty"`
	Settled *Settled  `json:"settled,omitempty"`
	Resume  *Resume   `json:"resume,omitempty"`
	Close   *Close    `json:"close,omitempty"`
}

// Run is what was started, by whom and from where.
type Run struct {
	Format     int      `json:"format"`
	Seq        int      `json:"seq"` // its number among those of the state directory: a clock that jumps does not change their order
	ID         string   `json:"id"`
	Version    string   `json:"version"` // of the program
	Dir        string   `json:"dir"`     // the working directory
	Args       []string `json:"args"`    // of the program; no secret can be in them
	User       string   `json:"user"`
	Controller string   `json:"controller"`
	PID        int      `json:"pid"`
	Books      []Book   `json:"books"`
	Inventory  string   `json:"inventory,omitempty"` // digest
	Hosts      []string `json:"hosts"`
}

// Book is a runbook as it was when the run began.
type Book struct {
	Path   string `json:"path"`
	File   string `json:"file,omitempty"` // where it lies on the controller; "" for a shipped one
	Title  string `json:"title"`
	Digest string `json:"digest"`
	Vars   string `json:"vars,omitempty"` // digest of its variables and defaults, and of what its plays set for all their tasks
	Plays  []Play `json:"plays,omitempty"`
	Tasks  []Task `json:"tasks"`
	// Owed says that the run was not asked to run it, but came to run handlers that earlier runs of it owed, with these arguments of -e.
	Owed     bool     `json:"owed,omitempty"`
	Settings []string `json:"settings,omitempty"`
}

// Key is what a book goes by from run to run.
func (b Book) Key() string { return cmp.Or(b.File, b.Path) }

// Play is a play of a book, and for which hosts it was.
type Play struct {
	Name   string   `json:"name"`
	Hosts  []string `json:"hosts"`
	Serial string   `json:"serial,omitempty"` // how many at once
}

// Task is a task or handler of a book.
type Task struct {
	ID     string `json:"id"`
	Play   string `json:"play,omitempty"`
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// Facts are what a host said of itself, and the boot in which it said so.
type Facts struct {
	Host    string          `json:"host"`
	BootID  string          `json:"boot_id,omitempty"`
	Machine string          `json:"machine,omitempty"` // digest of what tells it from other hosts of its name
	Values  json.RawMessage `json:"values,omitempty"`
}

// Key says which doing of which task: Nth counts the doings of the same item in a run (handlers), from 1.
type Key struct {
	Task string `json:"task"`
	Host string `json:"host"`
	Item string `json:"item,omitempty"`
	Nth  int    `json:"nth"`
}

// Answer is how --rerun and --mark-done name a task on one host, or one item of its loop there; its name alone is that task on all hosts.
func Answer(host, task, item string) string {
	if item != "" {
		task += " [" + item + "]"
	}
	return host + "/" + task
}

// Begin is written before a task may change its host.
type Begin struct {
	Key
	Name   string            `json:"name"`
	Label  string            `json:"label,omitempty"` // of the loop's item
	On     string            `json:"on,omitempty"`    // the host that it is delegated to
	Digest string            `json:"digest"`
	Args   map[string]string `json:"args,omitempty"`   // digests of the arguments, to tell which one differs
	Job    string            `json:"job,omitempty"`    // of a long step on its host
	Notify []string          `json:"notify,omitempty"` // handlers that are owed if the end is never written, for then it may have changed its host
	Paid   []string          `json:"-"`                // as in End
}

// End is how a task came out.
type End struct {
	Key
	Name     string            `json:"name"`
	Label    string            `json:"label,omitempty"` // as in Begin
	On       string            `json:"on,omitempty"`    // as in Begin
	Digest   string            `json:"digest"`
	Args     map[string]string `json:"args,omitempty"` // as in Begin
	Status   string            `json:"status"`
	Result   json.RawMessage   `json:"result,omitempty"`
	Values   json.RawMessage   `json:"values,omitempty"`
	Withheld bool              `json:"withheld,omitempty"` // those of the values that hold secrets, or are too large, are not here
	Seals    map[string]string `json:"seals,omitempty"`    // of these, Seal of each: whether it is the same can be told
	Unseen   bool              `json:"unseen,omitempty"`   // the values are not known: a person took it for done
	Notified []string          `json:"notified,omitempty"` // task ids of handlers
	Paid     []string          `json:"-"`                  // those of them that another run has run since: see the function
	Effect   bool              `json:"effect,omitempty"`   // a Begin was written
	Turn     bool              `json:"turn,omitempty"`     // of a handler: it has had its turn with all items
	Settles  []Settled         `json:"settles,omitempty"`  // what that has paid of other runs, in one with the turn: a kill comes before both or after
}

// Note is a remark for whoever reads the record.
type Note struct {
	Text string `json:"text"`
}

// Settled says that a handler which another run owed is owed no longer: it has been done in this one, or can be done by none.
type Settled struct {
	Run     string `json:"run"`
	Host    string `json:"host"`
	Handler string `json:"handler"`
	N       int    `json:"at"` // Debt.N: what that run came to owe later is not paid
}

// Settlements are what a record says to be paid of other runs, or given up of its own.
func (r *Record) Settlements() []Settled {
	switch {
	case r.Settled != nil:
		return []Settled{*r.Settled}
	case r.End != nil:
		return r.End.Settles
	case r.Close != nil:
		return r.Close.Settles
	}
	return nil
}

// Resume says that a run was taken up again, and what a person decided.
type Resume struct {
	Version    string            `json:"version"`
	PID        int               `json:"pid"`
	User       string            `json:"user"`
	Controller string            `json:"controller"`
	Rerun      []string          `json:"rerun,omitempty"`
	MarkDone   []string          `json:"mark_done,omitempty"`
	Settings   []string          `json:"settings,omitempty"` // values of -e that were given; no secret can be in them
	Books      []Book            `json:"books,omitempty"`    // as they were from here on, where they had been edited
	Tasks      map[string]string `json:"tasks,omitempty"`    // and today's id of each task that is still there
	Hosts      []string          `json:"hosts,omitempty"`    // where they are others than before
	GiveUp     string            `json:"give_up,omitempty"`  // why it was taken up only to be given up: nothing but its end follows
}

// The ways in which a run is closed.
const (
	Done        = "done"
	Failed      = "failed"
	Interrupted = "interrupted"
	GivenUp     = "given up" // by a person, and what it owed with it
)

// Over reports whether a run that was closed so is never gone on with.
func Over(status string) bool { return status == Done || status == GivenUp }

// Close is the last record of a run that came to its end, whichever.
type Close struct {
	Status string          `json:"status"`
	Totals json.RawMessage `json:"totals,omitempty"`
	Owed   []Owed          `json:"owed,omitempty"`
	Text   string          `json:"text,omitempty"` // the closing page
	// Settles is what a run owed that was given up, its own debts.
	Settles []Settled `json:"settles,omitempty"`
}

// Owed is a handler that was notified and has not been done.
type Owed struct {
	Host    string `json:"host"`
	Book    string `json:"book"`
	Play    string `json:"play,omitempty"`
	Handler string `json:"handler"` // task id
	Name    string `json:"name"`
	N       int    `json:"at"`                // the number of the record that says so
	Last    int    `json:"last,omitempty"`    // of what may have notified it too, if that is a later one
	Unsure  bool   `json:"unsure,omitempty"`  // the task that notifies it was under way when the run died: it may have changed its host
	Machine string `json:"machine,omitempty"` // as in Facts
}

// follows says what is wrong with r as the n-th record, behind one of the kind last.
func (r *Record) follows(last Kind, n int) error {
	fields := map[Kind]bool{KindRun: r.Run != nil, KindFacts: r.Facts != nil, KindBegin: r.Begin != nil, KindEnd: r.End != nil,
		KindNote: r.Note != nil, KindSettled: r.Settled != nil, KindResume: r.Resume != nil, KindClose: r.Close != nil}
	if set, known := fields[r.Kind]; !known {
		return fmt.Errorf("no record is of the kind %q", r.Kind)
	} else if !set {
		return fmt.Errorf("a record of the kind %q tells nothing", r.Kind)
	}
	for kind, set := range fields {
		if set && kind != r.Kind {
			return fmt.Errorf("a record of the kind %q also has what fits %q", r.Kind, kind)
		}
	}
	switch {
	case r.N != n:
		return fmt.Errorf("record %d stands where %d should", r.N, n)
	case n == 1 && r.Kind != KindRun:
		return fmt.Errorf("it begins with a record of the kind %q", r.Kind)
	case n > 1 && r.Kind == KindRun:
		return fmt.Errorf("a second run begins in it")
	case slices.ContainsFunc(r.Settlements(), func(s Settled) bool { return s.N < 1 }):
		return fmt.Errorf("a record that a debt is settled does not say as of which record of the other run")
	case last == KindClose && r.Kind != KindResume:
		return fmt.Errorf("a record of the kind %q follows after the end of the run", r.Kind)
	}
	return nil
}
