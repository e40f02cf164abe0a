package modules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"runbook/engine/module"
)

func init() { register("line", func() module.Module { return &line{State: "present"} }) }

// line sees to it that a file holds a line, or does not.
//
// Regular expressions are Go's (RE2) and search within one line. The edit is tried on its own result before anything is
// written: one that would change the file again at the next run is an error. A symbolic link is followed.
//
//	tasks:
//	  - name: the tunnel is for one slave
//	    line: {path: /etc/stunnel/stunnel.conf, regexp: '^\s*checkHost\s*=', line: checkHost = voms2.example.org, insertafter: '^verifyChain'}
//	  - name: nothing starts stunnel a second time at boot
//	    line: {path: /etc/rc.local, regexp: '^stunnel ', state: absent}
type line struct {
	// Path of the file.
	Path string `yaml:"path" required:"true"`
	// The line, without a newline. For state absent without regexp, every line equal to it goes.
	Line string `yaml:"line" late:"true"`
	// For state present, the last line that matches is replaced by line; if none matches and the line is nowhere, it is added. For state
	// absent, every line that matches goes.
	Regexp string `yaml:"regexp"`
	// Whether the line is to be there.
	State string `yaml:"state" choices:"present,absent"`
	// Add the line after the last line that matches this regular expression, or at the end for EOF. The end is the default, and where
	// it goes if nothing matches.
	InsertAfter string `yaml:"insertafter"`
	// Add the line before the last line that matches this regular expression, or at the beginning for BOF. If nothing
	// matches, it goes to the end.
	InsertBefore string `yaml:"insertbefore"`
	// Make a missing file.
	Create bool `yaml:"create"`
	// Replace \1 to \9 and \g<name> in line by what the groups of regexp matched. If nothing matches, the file stays as it is.
	Backrefs bool `yaml:"backrefs"`
	// Use the first match of regexp, insertafter or insertbefore, not the last.
	FirstMatch bool `yaml:"firstmatch"`
	written
}

// Validate refuses arguments that contradict each other.
func (l *line) Validate() error {
	errs := []error{l.written.validate(l.Path, "path")}
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	if strings.ContainsAny(l.Line, "\n\r") {
		refuse("line", "holds more than one line", "use the module block")
	}
	for _, arg := range [][2]string{{"regexp", l.Regexp}, {"insertafter", l.InsertAfter}, {"insertbefore", l.InsertBefore}} {
		if _, err := regexp.Compile(arg[1]); err != nil {
			refuse(arg[0], err.Error(), "")
		}
	}
	switch {
	case l.InsertAfter != "" && l.InsertBefore != "":
		refuse("insertbefore", "cannot be given together with insertafter", "")
	case l.Backrefs && l.Regexp == "":
		refuse("backrefs", "needs regexp", "")
	case l.State == "present" && l.Line == "":
		refuse("line", "is needed for state present", "")
	case l.State == "absent" && l.Line == "" && l.Regexp == "":
		refuse("", "nothing says which lines go", "give line or regexp")
	case l.State == "absent" && (l.Backrefs || l.Create || l.InsertAfter+l.InsertBefore != ""):
		refuse("state", "absent goes with path, line and regexp only", "")
	}
	return errors.Join(errs...)
}

func (l *line) content() content {
	c := content{path: l.Path, attrs: l.written, edit: l.edit, missing: missingIsError, late: []string{"line"}}
	switch {
	case l.State == "absent":
		c.missing = missingIsFine
	case l.Create:
		c.missing = createIt
	}
	return c
}

func (l *line) edit(old []byte) ([]byte, error) {
	t := splitText(old)
	if l.State == "absent" {
		drop := func(s string) bool { return s == l.Line }
		if l.Regexp != "" {
			drop = regexp.MustCompile(l.Regexp).MatchString
		}
		t.lines = slices.DeleteFunc(t.lines, drop)
		return t.join(), nil
	}
	if l.Regexp != "" {
		re := regexp.MustCompile(l.Regexp)
		if i := l.find(t.lines, re); i >= 0 {
			t.lines[i] = l.replacement(re, t.lines[i])
			return t.join(), nil
		}
	}
	if l.Backrefs || slices.Contains(t.lines, l.Line) {
		return old, nil
	}
	t.insert(l.place(t.lines), l.Line)
	return t.join(), nil
}

// find is the index of the line that re means, -1 if there is none.
func (l *line) find(lines []string, re *regexp.Regexp) int {
	if l.FirstMatch {
		return slices.IndexFunc(lines, re.MatchString)
	}
	for i, s := range slices.Backward(lines) {
		if re.MatchString(s) {
			return i
		}
	}
	return -1
}

var backref = regexp.MustCompile(`\\(?:(\d)|g<(\w+)>)`)

func (l *line) replacement(re *regexp.Regexp, old string) string {
	if !l.Backrefs {
		return l.Line
	}
	match := re.FindStringSubmatchIndex(old)
	return backref.ReplaceAllStringFunc(l.Line, func(ref string) string {
		group := strings.Trim(ref, `\g<>`)
		return string(re.ExpandString(nil, "${"+group+"}", old, match))
	})
}

// place is where a new line goes.
func (l *line) place(lines []string) int {
	switch {
	case l.InsertBefore == "BOF":
		return 0
	case l.InsertBefore != "":
		if i := l.find(lines, regexp.MustCompile(l.InsertBefore)); i >= 0 {
			return i
		}
	case l.InsertAfter != "" && l.InsertAfter != "EOF":
		if i := l.find(lines, regexp.MustCompile(l.InsertAfter)); i >= 0 {
			return i + 1
		}
	}
	return len(lines)
}

// Check makes the edit in memory.
func (l *line) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	return l.content().check(ctx, host)
}

// Apply writes the edited file.
func (l *line) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	return l.content().apply(ctx, host, plan)
}

// Returns documents the result.
func (*line) Returns() []module.Return { return contentReturns() }

// text is the lines of a file, without their ends.
type text struct {
	lines   []string
	newline string // what ends a line
	open    bool   // the last line has no end
}

func splitText(data []byte) text {
	t := text{newline: "\n"}
	if len(data) == 0 {
		return t
	}
	// Where lines end in different ways, each keeps its carriage return.
	if crlf := bytes.Count(data, []byte("\r\n")); crlf > 0 && crlf == bytes.Count(data, []byte("\n")) {
		t.newline = "\r\n"
	}
	t.open = !bytes.HasSuffix(data, []byte(t.newline))
	t.lines = strings.Split(strings.TrimSuffix(string(data), t.newline), t.newline)
	return t
}

// insert adds lines at index i. What is added at the end is ended by a newline.
func (t *text) insert(i int, lines ...string) {
	if i == len(t.lines) && len(lines) > 0 {
		t.open = false
	}
	t.lines = slices.Insert(t.lines, i, lines...)
}

// join is the text again.
func (t text) join() []byte {
	if len(t.lines) == 0 {
		return []byte{}
	}
	s := strings.Join(t.lines, t.newline)
	if !t.open {
		s += t.newline
	}
	return []byte(s)
}

func init() {
	register("blockinfile", func() module.Module { return &blockinfile{State: "present", Marker: "# {mark} {name}"} })
}

// blockinfile sees to it that a file holds some lines between two marker lines, or does not.
//
// The lines between the markers are the module's own: whatever else is there is replaced. A symbolic link is followed.
//
//	tasks:
//	  - name: the pair knows each other's addresses
//	    blockinfile:
//	      path: /etc/hosts
//	      name: MAN06
//	      block: |
//	        192.0.2.1 voms1.example.org
//	        192.0.2.2 voms2.example.org
type blockinfile struct {
	// Path of the file.
	Path string `yaml:"path" required:"true"`
	// Name of the block, unlike that of any other block in the file. It stands in the markers.
	Name string `yaml:"name" required:"true"`
	// The lines.
	Block string `yaml:"block" late:"true"`
	// Marker line; {mark} stands for BEGIN or END, {name} for the block's name.
	Marker string `yaml:"marker"`
	// Whether the block is to be there.
	State string `yaml:"state" choices:"present,absent"`
	// Add a new block after the last line that matches this regular expression, or at the end for EOF, the default.
	InsertAfter string `yaml:"insertafter"`
	// Add a new block before the last line that matches this regular expression, or at the beginning for BOF.
	InsertBefore string `yaml:"insertbefore"`
	// Make a missing file.
	Create bool `yaml:"create"`
	written
}

func (b *blockinfile) markers() (begin, end string) {
	of := func(mark string) string {
		return strings.NewReplacer("{mark}", mark, "{name}", b.Name).Replace(b.Marker)
	}
	return of("BEGIN"), of("END")
}

// Validate refuses arguments that contradict each other.
func (b *blockinfile) Validate() error {
	place := line{Path: b.Path, Line: "-", State: "present", InsertAfter: b.InsertAfter, InsertBefore: b.InsertBefore, written: b.written}
	errs := []error{place.Validate()}
	begin, end := b.markers()
	if strings.ContainsAny(begin, "\n\r") || begin == end || !strings.Contains(b.Marker, "{name}") {
		errs = append(errs, &module.ArgError{Path: "marker", Msg: "must be one line that holds {mark} and {name}"})
	}
	for _, s := range splitText([]byte(b.Block)).lines {
		if s == begin || s == end {
			errs = append(errs, &module.ArgError{Path: "block", Msg: "holds one of its own markers"})
		}
	}
	if b.State == "present" && b.Block == "" {
		errs = append(errs, &module.ArgError{Path: "block", Msg: "is needed for state present"})
	}
	return errors.Join(errs...)
}

func (b *blockinfile) edit(old []byte) ([]byte, error) {
	t := splitText(old)
	begin, end := b.markers()
	first, last := slices.Index(t.lines, begin), slices.Index(t.lines, end)
	if (first < 0) != (last < 0) || last < first {
		return nil, fmt.Errorf("cannot edit %s: only one of the markers %q and %q is there, or they are in the wrong order", b.Path, begin, end)
	}
	var lines []string
	if b.State == "present" {
		lines = append(append([]string{begin}, splitText([]byte(strings.TrimSuffix(b.Block, "\n")+"\n")).lines...), end)
	}
	if first >= 0 {
		t.lines = slices.Replace(t.lines, first, last+1, lines...)
	} else if len(lines) > 0 {
		place := line{InsertAfter: b.InsertAfter, InsertBefore: b.InsertBefore}
		t.insert(place.place(t.lines), lines...)
	}
	return t.join(), nil
}

func (b *blockinfile) content() content {
	c := content{path: b.Path, attrs: b.written, edit: b.edit, missing: missingIsError, late: []string{"block"}}
	switch {
	case b.State == "absent":
		c.missing = missingIsFine
	case b.Create:
		c.missing = createIt
	}
	return c
}

// Check makes the edit in memory.
func (b *blockinfile) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	return b.content().check(ctx, host)
}

// Apply writes the edited file.
func (b *blockinfile) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	return b.content().apply(ctx, host, plan)
}

// Returns documents the result.
func (*blockinfile) Returns() []module.Return { return contentReturns() }
