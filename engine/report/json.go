package report

import (
	"fmt"
	"io"
	"sync"
)

// JSON writes each event as one line of JSON.
type JSON struct {
	mu sync.Mutex
	w  io.Writer
}

// NewJSON reports to w in JSON Lines.
func NewJSON(w io.Writer) *JSON { return &JSON{w: w} }

// Event writes e.
func (j *JSON) Event(e Event) {
	line, err := JSONLine(e)
	if err != nil { // a time beyond year 9999 or a number that is not one
		line = fmt.Sprintf(`{"kind":"warning","text":%q}`+"\n", "cannot encode an event: "+err.Error())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, _ = io.WriteString(j.w, line)
}
