// Package spec is a runbook as typed data in which everything knows its position.
//
// It alone reads YAML (the inventory is read through it too). Load finds every structural mistake of a book at once:
// unknown keys, wrong shapes, missing names, each as an Error with file, line, column and a hint. What a string means,
// an expression or a text with holes, is not known here: strings stay Values until the engine compiles them.
package spec

// Pos is a place in a file; lines and columns count from 1, columns in characters.
type Pos struct {
	File         string
	Line, Column int
}

// Kind is the shape of a Value.
type Kind int

// The kinds of YAML values that a book may hold.
const (
	Null Kind = iota
	Bool
	Int
	Float
	String
	List
	Map
)

// Value is a YAML value with its position. An integer written with a leading zero, such as a file mode, is a String.
type Value struct {
	Pos   Pos
	Kind  Kind
	Bool  bool
	Int   int64
	Float float64
	Str   string // of a String its value, of another scalar its text as written
	List  []*Value
	Map   []Entry // in the order written; keys are unique

	src   *source // nil unless it came from a file
	block bool    // written as a block scalar, | or >
}

// Entry is one key of a mapping.
type Entry struct {
	Key   string
	Pos   Pos // of the key
	Value *Value
}

// Book is a runbook.
type Book struct {
	Path        string // as named in messages
	Title       string // key `runbook`
	Description string
	Params      []*Param
	Vars        []Entry // defaults, overridden by the inventory
	Plays       []*Play

	sources map[string]*source
}

// Param is a declared input of a book.
type Param struct {
	Pos      Pos
	Name     string
	Type     string // string (default), int, float, bool, list, map, port, path, hostname, duration
	Default  *Value // nil: none. May hold expressions over other params and variables
	Required bool
	Secret   bool
	Pattern  string // a regular expression that the whole value, or each item of a list, must match
	Choices  []*Value
	MinLen   int // key `min_length`: of a string in characters, of a list in items
	Help     string
}

// Play maps tasks onto hosts.
type Play struct {
	Pos         Pos
	Name        string
	Hosts       *Value // pattern; may hold expressions over params
	Strategy    string // linear (default) or free
	Serial      []Batch
	Vars        []Entry
	Become      *Value
	BecomeUser  *Value
	Environment []Entry
	Tags        []string
	Tasks       []*Task
	Handlers    []*Task
	OnFailure   *Value // a bool: the play runs only when the run has failed, and only reads
}

// Batch is how many hosts of a play take part at once: a number, or a share of the play's hosts in percent. The other one is 0.
type Batch struct{ Hosts, Percent int }

// Task is a module call, a block, or a `meta` action. Pointers to absent keys are nil.
type Task struct {
	Pos       Pos
	Name      string
	NamePos   Pos
	Why       string // rendered into documentation and shown with a failure
	Module    string // "" for a block and for meta
	ModulePos Pos
	Args      *Value // mapping, list, scalar or nil
	Meta      string // flush_handlers

	When, ChangedWhen, FailedWhen, Until []*Value // conditions that must all hold
	Loop                                 *Value
	LoopVar, IndexVar                    string // key loop_control; "item" and ""
	LoopLabel                            *Value
	Register                             string
	RegisterPos                          Pos
	Notify, Listen                       []*Value
	Become, BecomeUser                   *Value
	Vars                                 []Entry
	Environment                          []Entry
	Tags                                 []string
	Retries                              *Value // an int, at least 1
	Delay, Timeout                       *Value // what Seconds takes, or a string with a hole
	IgnoreErrors                         *Value
	DelegateTo                           *Value
	RunOnce, Detach                      *Value

	// Block is also what `import_tasks` brought in. Its tasks inherit the block's When, Become, BecomeUser, Vars,
	// Environment, Tags, IgnoreErrors, DelegateTo and RunOnce; a block has no other keys.
	Block, Rescue, Always []*Task
}
