package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"
)

// maxLive is how many running tasks are shown at once; of more hosts only the number is told.
const maxLive = 8

// live is the region at the bottom of a terminal that shows what runs.
type live struct {
	running []*running
	drawn   int // lines on the screen
	frame   int
}

type running struct {
	host, id, item, task, text string
	since                      time.Time
}

// follow keeps the list of running tasks.
func (l *live) follow(e Event, now time.Time) {
	same := func(r *running) bool { return r.host == e.Host && r.id == e.TaskID && r.item == e.Item }
	i := slices.IndexFunc(l.running, same)
	switch e.Kind {
	case TaskStart:
		if i < 0 {
			l.running = append(l.running, &running{host: e.Host, id: e.TaskID, item: e.Item, task: taskName(e), since: now})
		}
	case Progress:
		if i >= 0 {
			l.running[i].text = e.Text
		}
	case TaskEnd:
		if i >= 0 {
			l.running = slices.Delete(l.running, i, i+1)
		}
	case HostLost:
		l.running = slices.DeleteFunc(l.running, func(r *running) bool { return r.host == e.Host })
	case RunEnd:
		l.running = nil
	}
}

// lines renders the region; those that have run longest come first.
func (l *live) lines(now time.Time, columns int) []string {
	shown := slices.Clone(l.running)
	slices.SortStableFunc(shown, func(a, b *running) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.host, b.host))
	})
	left := len(shown) - maxLive
	if left > 0 {
		shown = shown[:maxLive]
	}
	name := 0
	for _, r := range shown {
		name = max(name, width(Clean(r.host)))
	}
	var lines []string
	spinner := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	mark := string(spinner[l.frame%len(spinner)])
	for _, r := range shown {
		line := mark + " " + pad(Clean(r.host), name) + "  " + r.task + "  " + duration(now.Sub(r.since).Truncate(100*time.Millisecond))
		lines = append(lines, truncate(line+after("  ", Clean(r.text)), columns-1))
	}
	if left > 0 {
		lines = append(lines, truncate(fmt.Sprintf("  … and %d more running", left), columns-1))
	}
	return lines
}

// erase is what moves the cursor back to the region's first line and clears what follows.
func (l *live) erase() string {
	if l.drawn == 0 {
		return ""
	}
	up := fmt.Sprintf("\x1b[%dA\r\x1b[J", l.drawn)
	l.drawn = 0
	return up
}

// redraw shows the next frame.
func (t *Text) redraw() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live.frame++
	t.draw()
}

func (t *Text) draw() {
	lines := t.live.lines(t.opts.Now(), t.opts.Width())
	if len(lines) == 0 && t.live.drawn == 0 {
		return
	}
	text := t.live.erase()
	for _, line := range lines {
		text += t.paint(dim, line) + "\n"
	}
	t.live.drawn = len(lines)
	_, _ = io.WriteString(t.w, text)
}

// above lets write print lines that stay, and puts the region below them again.
func (t *Text) above(write func()) {
	visible := t.live.drawn > 0
	if text := t.live.erase(); text != "" {
		_, _ = io.WriteString(t.w, text)
	}
	write()
	if visible {
		t.draw()
	}
}

// Live redraws the region ten times a second until stop is called; without a terminal it does nothing.
func (t *Text) Live() (stop func()) {
	if !t.opts.Terminal {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				t.redraw()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		t.Hold()()
	}
}

// Hold takes the region off the screen and lets every event wait until release is called, for a prompt on the same
// terminal.
func (t *Text) Hold() (release func()) {
	t.mu.Lock()
	if text := t.live.erase(); text != "" {
		_, _ = io.WriteString(t.w, text)
	}
	return t.mu.Unlock
}

// Above returns a writer to w, which shows on the same terminal, that prints above the region. Write whole lines.
func (t *Text) Above(w io.Writer) io.Writer { return aboveWriter{t, w} }

type aboveWriter struct {
	text *Text
	w    io.Writer
}

func (a aboveWriter) Write(b []byte) (n int, err error) {
	a.text.mu.Lock()
	defer a.text.mu.Unlock()
	a.text.above(func() { n, err = a.w.Write(b) })
	return n, err
}
