package report

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// TextOptions says how Text shows a run.
type TextOptions struct {
	Terminal bool       // w is a terminal: live progress, redrawn with cursor movements
	Color    bool       // statuses are coloured
	Width    func() int // columns of the terminal; nil is 80
	Diff     bool       // differences of texts are shown
	Verbose  int        // 1: also tasks that were ok or skipped; 2: also progress when there is no terminal
	Times    bool       // the time of every task is shown, however short
	Now      func() time.Time
}

// Text tells a run to a person: one line per task that changed something, would, failed or cannot tell, and a closing
// table. On a terminal, what runs at the moment is shown below these lines. It is safe for concurrent use.
type Text struct {
	mu    sync.Mutex
	w     io.Writer
	opts  TextOptions
	check bool
	live  live
	ahead ahead
}

// NewText reports to w. On a terminal, call Live for the moving parts.
func NewText(w io.Writer, opts TextOptions) *Text {
	if opts.Width == nil {
		opts.Width = func() int { return 80 }
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Text{w: w, opts: opts}
}

// Event shows e.
func (t *Text) Event(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opts.Terminal {
		t.live.follow(e, t.opts.Now())
	}
	var p page
	switch e.Kind {
	case RunStart:
		t.check = e.Check
	case BookStart:
		p.add(t.paint(bold, t.verb()+" "+Clean(e.Book)))
	case PlayStart:
		p.add(t.paint(bold, "PLAY  "+Clean(e.Play)) + t.paint(dim, "  on "+hostList(e.Hosts)))
	case Progress:
		if !t.opts.Terminal && t.opts.Verbose > 1 {
			p.add(t.line("progress", dim, e, Clean(e.Text)))
		}
	case TaskEnd:
		if e.Result != nil {
			t.result(&p, e, *e.Result)
		}
	case HostLost:
		// Why was told by the task that lost it.
		p.add(t.line("lost", red, Event{Host: e.Host}, "takes no further part"))
	case PlayStopped:
		p.add(t.paint(red, "STOPPED") + "  " + Clean(e.Text))
	case Warning:
		p.add(t.line("warning", yellow, e, Clean(e.Text)))
	case RunEnd:
		t.closing(&p, e)
	}
	if len(p) > 0 {
		t.above(func() { _, _ = io.WriteString(t.w, strings.Join(p, "\n")+"\n") })
	}
}

// page collects lines to print in one write.
type page []string

func (p *page) add(line string) { *p = append(*p, strings.TrimRight(line, " ")) }

func (p *page) indent(lines []string) {
	for _, line := range lines {
		p.add("      " + line)
	}
}

// verbatim keeps spaces at the end of a line, which may be what differs.
func (p *page) verbatim(line string) { *p = append(*p, "      "+line) }

func (t *Text) verb() string {
	if t.check {
		return "CHECK"
	}
	return "RUN"
}

// line is the one line of a result: what became of it, where, of what task, and more.
func (t *Text) line(word, colour string, e Event, more string) string {
	text := "  " + t.paint(colour, pad(word, 12)) + " "
	if e.Host != "" {
		text += t.paint(bold, Clean(e.Host)) + after(" on ", Clean(e.On)) + "  "
	}
	task := taskName(e)
	if task != "" && more != "" {
		task += ": "
	}
	return text + task + more
}

func taskName(e Event) string {
	name := Clean(e.Task)
	if name == "" {
		name = Clean(e.Module)
	}
	if e.Handler {
		name += " (handler)"
	}
	if e.Item != "" {
		name += " [" + Clean(e.Item) + "]"
	}
	return name
}

func (t *Text) result(p *page, e Event, r Result) {
	word, colour := Clean(string(r.Status)), statusColour[r.Status]
	quiet := t.opts.Verbose < 1 && len(r.Warnings) == 0
	if r.OnRecord && t.opts.Verbose < 1 {
		return
	}
	hanging := t.ahead.hangsOn(e.Host, r)
	t.ahead.interrupts(e, r)
	more := ""
	var detail []string
	switch r.Status {
	case OK, Skipped:
		if quiet {
			return
		}
		more = Clean(cmp.Or(r.Because, strings.TrimSpace(r.Msg)))
	case Unknown:
		certain := "; certain: "
		if r.Maybe {
			certain = "; then: "
		}
		more = "cannot tell" + after(", because ", Clean(r.Because)) + after(certain, summary(r.Changes))
	case Changed, WouldChange:
		more = summary(r.Changes)
	case UnderWay, Note:
		more = Clean(r.Msg)
	case Failed, Unreachable:
		switch {
		case r.Ignored:
			word, colour = "ignored", yellow
		case r.Rescued:
			word, colour = "rescued", yellow
		}
		if detail = CleanLines(r.Msg); len(detail) == 1 {
			more, detail = detail[0], nil
		}
		if e.Why != "" {
			detail = append(detail, t.paint(dim, "why: ")+Clean(e.Why))
		}
		if e.Place != "" {
			detail = append(detail, t.paint(dim, "at:  ")+Clean(e.Place))
		}
	}
	var notes []string
	if hanging != nil && !(r.Status == Unknown && strings.Contains(r.Because, r.HangsOn)) {
		notes = append(notes, hanging.mention(e.Host))
	}
	if r.OnRecord {
		notes = append(notes, "on record")
	}
	if r.Attempts > 1 {
		notes = append(notes, fmt.Sprintf("after %d attempts", r.Attempts))
	}
	if (r.Seconds >= 1 || t.opts.Times && r.Seconds > 0) && r.Status != Skipped {
		notes = append(notes, seconds(r.Seconds))
	}
	line := t.line(word, colour, e, more)
	if len(notes) > 0 {
		line += " (" + strings.Join(notes, ", ") + ")"
	}
	p.add(line)
	p.indent(detail)
	if t.opts.Diff {
		t.diffs(p, r.Changes)
	}
	for _, warning := range r.Warnings {
		p.indent([]string{t.paint(yellow, "warning: ") + Clean(warning)})
	}
}

// closing is what lies ahead, the table of the hosts and a sentence.
func (t *Text) closing(p *page, e Event) {
	changed := "changed"
	if t.check {
		changed = "would change"
	}
	heads := []string{"ok", changed, "skipped", "failed", "ignored", "unreachable", "unknown", "time"}
	colours := []string{"", statusColour[Changed], "", red, yellow, red, statusColour[Unknown], ""}
	t.ahead.tell(t, p)
	name := width("host")
	for _, total := range e.Totals {
		name = max(name, width(Clean(total.Host)))
	}
	p.add("")
	p.add(t.paint(bold, pad("host", name)+"  "+strings.Join(heads, "  ")))
	sum := Total{}
	bad := 0
	for _, total := range e.Totals {
		counts := []int{total.OK, total.Changed, total.Skipped, total.Failed, total.Ignored, total.Unreachable, total.Unknown}
		cells := make([]string, 0, len(heads))
		for i, n := range counts {
			cell := fmt.Sprintf("%*d", width(heads[i]), n)
			if n > 0 && colours[i] != "" {
				cell = t.paint(colours[i], cell)
			}
			cells = append(cells, cell)
		}
		cells = append(cells, seconds(total.Seconds))
		p.add(pad(Clean(total.Host), name) + "  " + strings.Join(cells, "  "))
		sum.Changed += total.Changed
		sum.Unknown += total.Unknown
		if total.Failed+total.Unreachable > 0 {
			bad++
		}
	}
	sentence := fmt.Sprintf("%s on %s in %s", count(sum.Changed, "task")+" "+changed, count(len(e.Totals), "host"),
		seconds(e.Elapsed))
	if sum.Unknown > 0 {
		sentence += fmt.Sprintf(", %d unknown", sum.Unknown)
	}
	if bad > 0 {
		sentence += t.paint(red, fmt.Sprintf(", %s failed or unreachable", count(bad, "host")))
	}
	p.add(sentence)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// hostList names the hosts, the first of many.
func hostList(hosts []string) string {
	const most = 8
	shown := make([]string, 0, most)
	for _, h := range hosts[:min(len(hosts), most)] {
		shown = append(shown, Clean(h))
	}
	text := strings.Join(shown, ", ")
	if n := len(hosts) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// after is text with a separator in front, or nothing.
func after(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

func seconds(s float64) string { return duration(time.Duration(s * float64(time.Second))) }

// duration rounds d to what a person cares for.
func duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// Select Graphic Rendition codes.
const (
	bold    = "1"
	dim     = "2"
	red     = "31"
	green   = "32"
	yellow  = "33"
	cyan    = "36"
	inverse = "7"
)

var statusColour = map[Status]string{OK: green, Changed: yellow, WouldChange: yellow, Skipped: cyan, Failed: red,
	Unreachable: red, Unknown: "35", UnderWay: yellow, Note: cyan}

func (t *Text) paint(code, text string) string {
	if !t.opts.Color || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
