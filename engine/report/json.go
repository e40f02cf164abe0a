package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf16"
)

// JSON writes each event as one line of JSON.
type JSON struct {
	mu sync.Mutex
	w  io.Writer
}

// NewJSON reports to w in JSON Lines.
func NewJSON(w io.Writer) *JSON { return &JSON{w: w} }

// Event writes e. Characters that would act on a terminal are escaped, which JSON itself does only for the first 32.
func (j *JSON) Event(e Event) {
	var line strings.Builder
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil { // a time beyond year 9999 or a number that is not one
		line.Reset()
		fmt.Fprintf(&line, `{"kind":"warning","text":%q}`+"\n", "cannot encode an event: "+err.Error())
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
	j.mu.Lock()
	defer j.mu.Unlock()
	_, _ = io.WriteString(j.w, b.String())
}
