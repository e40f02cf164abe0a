// Package secret holds the type of values that must never be shown.
//
// A Secret prints as *** through every printer Go has; only Reveal gives the bytes, at the place that needs them
// (the standard input of a command, a database handshake, a file's content). A Masker knows every secret of a run
// and replaces the values, and the forms they take in shells, SQL, JSON and base64, in text that came from outside
// and might echo them.
package secret

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"sort"
	"strings"
	"sync"
)

// Mask is what is shown in a secret's place.
const Mask = "***"

// Secret is a value that no printer, encoder or formatter shows. The zero value is the empty secret.
type Secret struct{ value, shown string }

// New makes a secret of value.
func New(value string) Secret { return Secret{value: value} }

// Within makes a secret of a text that holds secrets. shown is the same text with Mask in their places.
func Within(value, shown string) Secret { return Secret{value, shown} }

// Shown is what may be shown of the value: the text around secrets, or no more than Mask.
func (s Secret) Shown() string {
	if s.shown == "" {
		return Mask
	}
	return s.shown
}

// Reveal returns the value. Call it only where the bytes leave for their destination.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.value == "" }

// String returns the mask.
func (s Secret) String() string { return Mask }

// GoString returns the mask, for %#v.
func (s Secret) GoString() string { return Mask }

// Format writes the mask for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Mask)) }

// MarshalJSON encodes the mask.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(Mask) }

// MarshalText encodes the mask, for JSON keys, YAML and XML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Mask), nil }

// MarshalYAML encodes the mask.
func (s Secret) MarshalYAML() (any, error) { return Mask, nil }

// Masker replaces the secrets it was told of in text. It is safe for concurrent use; the zero value masks nothing.
type Masker struct {
	mu       sync.RWMutex
	seen     map[string]bool
	forms    []string // of all of them, longest first
	replacer *strings.Replacer
}

// Add makes the masker hide s from now on. The empty secret is ignored.
func (m *Masker) Add(s Secret) {
	if s.IsZero() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen[s.value] {
		return
	}
	if m.seen == nil {
		m.seen = map[string]bool{}
	}
	m.seen[s.value] = true
	forms := map[string]bool{}
	for v := range m.seen {
		for _, f := range formsOf(v) {
			forms[f] = true
		}
	}
	ordered := make([]string, 0, len(forms))
	for f := range forms {
		ordered = append(ordered, f)
	}
	// Longest first: a secret that contains another must not leave its tail behind.
	sort.Slice(ordered, func(i, j int) bool {
		if len(ordered[i]) != len(ordered[j]) {
			return len(ordered[i]) > len(ordered[j])
		}
		return ordered[i] < ordered[j]
	})
	pairs := make([]string, 0, 2*len(ordered))
	for _, f := range ordered {
		pairs = append(pairs, f, Mask)
	}
	m.forms, m.replacer = ordered, strings.NewReplacer(pairs...)
}

// Mask returns text with every known secret, in any of its forms, replaced; also one that was cut short with an ellipsis.
func (m *Masker) Mask(text string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.replacer == nil {
		return text
	}
	parts := strings.Split(text, ellipsis)
	for i, part := range parts[:len(parts)-1] {
		parts[i] = m.maskEnd(part)
	}
	return m.replacer.Replace(strings.Join(parts, ellipsis))
}

const (
	ellipsis = "…"
	leastCut = 4 // bytes of a secret's beginning that are worth hiding
)

// maskEnd replaces the beginning of a secret at the end of text.
func (m *Masker) maskEnd(text string) string {
	longest := 0
	for _, form := range m.forms {
		for n := min(len(form)-1, len(text)); n >= leastCut && n > longest; n-- {
			if strings.HasSuffix(text, form[:n]) {
				longest = n
			}
		}
	}
	if longest == 0 {
		return text
	}
	return text[:len(text)-longest] + Mask
}

// shortest is the length, in bytes, from which Holds looks for a secret: shorter ones are found in innocent text.
const shortest = 8

// Holds reports whether text has a secret in it as it is. It is for places where a mask would come too late.
func (m *Masker) Holds(text string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for v := range m.seen {
		if len(v) >= shortest && strings.Contains(text, v) {
			return true
		}
	}
	return false
}

// formsOf lists how value looks once it was quoted for a shell, for SQL, for JSON or a URL, or encoded in base64.
func formsOf(value string) []string {
	forms := []string{value,
		strings.ReplaceAll(value, "'", `'\''`),
		strings.ReplaceAll(value, "'", "''"),
		strings.NewReplacer(`\`, `\\`, `'`, `\'`, `"`, `\"`).Replace(value),
		url.QueryEscape(value), url.PathEscape(value),
		base64.StdEncoding.EncodeToString([]byte(value)),
		base64.RawStdEncoding.EncodeToString([]byte(value)),
		base64.URLEncoding.EncodeToString([]byte(value)),
	}
	if j, err := json.Marshal(value); err == nil {
		forms = append(forms, strings.Trim(string(j), `"`))
	}
	// A secret of several lines is also shown line by line, in a diff for one.
	if strings.Contains(value, "\n") {
		for _, line := range strings.Split(value, "\n") {
			if len(strings.TrimSpace(line)) >= 4 {
				forms = append(forms, line)
			}
		}
	}
	return forms
}
