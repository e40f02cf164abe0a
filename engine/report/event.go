package report

import "time"

// Kind is the kind of an Event.
type Kind string

// The kinds of events, in the order in which a run can have them.
const (
	RunStart    Kind = "run_start"
	BookStart   Kind = "book_start"
	PlayStart   Kind = "play_start"
	TaskStart   Kind = "task_start" // a task begins on a host
	Progress    Kind = "progress"   // Text says how it is getting on
	TaskEnd     Kind = "task_end"   // Result
	HostLost    Kind = "host_lost"  // the host drops out; Text says why
	PlayStopped Kind = "play_stopped"
	Warning     Kind = "warning"
	RunEnd      Kind = "run_end" // Totals
)

// Status is a verdict on one task on one host.
type Status string

// The verdicts.
const (
	OK          Status = "ok"
	Changed     Status = "changed"
	WouldChange Status = "would change" // check mode
	Skipped     Status = "skipped"
	Failed      Status = "failed"
	Unreachable Status = "unreachable"
	Unknown     Status = "unknown" // check mode: Because says why
)

// Event is one thing that happened in a run. Fields that do not apply are empty.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    Kind      `json:"kind"`
	Check   bool      `json:"check,omitempty"` // of RunStart: check mode
	Book    string    `json:"book,omitempty"`  // title
	Play    string    `json:"play,omitempty"`
	Hosts   []string  `json:"hosts,omitempty"` // of RunStart and PlayStart
	TaskID  string    `json:"task_id,omitempty"`
	Task    string    `json:"task,omitempty"` // name
	Why     string    `json:"why,omitempty"`
	Module  string    `json:"module,omitempty"`
	Place   string    `json:"place,omitempty"` // file:line of the task
	Handler bool      `json:"handler,omitempty"`
	Host    string    `json:"host,omitempty"`
	On      string    `json:"on,omitempty"`   // of TaskEnd: the host that the task was delegated to
	Item    string    `json:"item,omitempty"` // label of the loop's item
	Text    string    `json:"text,omitempty"`
	Result  *Result   `json:"result,omitempty"`
	Totals  []Total   `json:"totals,omitempty"`
	Elapsed float64   `json:"elapsed,omitempty"` // seconds, of RunEnd
}

// Result is how a task ended on a host. Texts are masked already.
type Result struct {
	Status   Status   `json:"status"`
	Because  string   `json:"because,omitempty"` // of Skipped, Unknown
	Msg      string   `json:"msg,omitempty"`     // of Failed, Unreachable; of assert and the like also when ok
	Changes  []Change `json:"changes,omitempty"`
	Seconds  float64  `json:"seconds"`
	Attempts int      `json:"attempts,omitempty"`  // more than one: of until
	OnRecord bool     `json:"on_record,omitempty"` // of a run that is resumed: it was done before
	Ignored  bool     `json:"ignored,omitempty"`   // failed, and ignore_errors says to go on
	Rescued  bool     `json:"rescued,omitempty"`   // failed inside a block that has a rescue
	Maybe    bool     `json:"maybe,omitempty"`     // of Unknown: Because is about whether the task runs at all, so that Changes are not certain
	HangsOn  string   `json:"hangs_on,omitempty"`  // check mode: an earlier task whose change has not been made, so that this verdict is provisional
	Warnings []string `json:"warnings,omitempty"`
}

// Change is one difference that was, or would be, mended.
type Change struct {
	What   string `json:"what"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	Outage string `json:"outage,omitempty"` // how long a service that answers now will not
}

// Total is one host's line in the closing table.
type Total struct {
	Host        string  `json:"host"`
	OK          int     `json:"ok"`
	Changed     int     `json:"changed"` // would change, in check mode
	Skipped     int     `json:"skipped"`
	Failed      int     `json:"failed"`
	Ignored     int     `json:"ignored"`
	Unreachable int     `json:"unreachable"`
	Unknown     int     `json:"unknown"`
	Seconds     float64 `json:"seconds"`
}

// Func is a Reporter made of a function.
type Func func(e Event)

// Event calls f.
func (f Func) Event(e Event) { f(e) }

// Reporter receives the events of a run, one at a time.
type Reporter interface{ Event(e Event) }
