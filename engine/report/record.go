package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf16"
)

// What a record knows of tasks beside their verdicts.
const (
	UnderWay Status = "under way" // it began, and has no end
	Note     Status = "note"      // no task, but a remark
)

// Heading shows a line between the events: what happened to the run itself.
func (t *Text) Heading(word, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.above(func() { _, _ = io.WriteString(t.w, strings.TrimRight(t.paint(bold, word)+"  "+Clean(text), " ")+"\n") })
}

// Summary names changes on one line, as Text does.
func Summary(changes []Change) string { return summary(changes) }

// Duration rounds d to what a person cares for.
func Duration(d time.Duration) string { return duration(d) }

// JSONLine is v as a line of JSON. Characters that would act on a terminal are escaped, which JSON itself does only for the first 32.
func JSONLine(v any) (string, error) {
	var line strings.Builder
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, r := range line.String() {
		switch {
		case r == '\n' || !hidden(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String(), nil
}
