package secret

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestPrinters asserts promise 4: no printer that Go has shows a secret, alone or within other values.
func TestPrinters(t *testing.T) {
	s := New("canary")
	nested := map[string]any{"list": []any{s}, "struct": struct{ P Secret }{s}, "pointer": &s}
	encoded, err := json.Marshal(nested)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(encoded)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, s), fmt.Sprintf(verb, nested), fmt.Sprintf(verb, &s))
	}
	for _, text := range texts {
		if strings.Contains(text, "canary") || strings.Contains(text, "63616e617279") {
			t.Errorf("shown: %s", text)
		}
	}
}

func TestMask(t *testing.T) {
	m := &Masker{}
	m.Add(New("pa'ss\"word"))
	m.Add(New("pa'ss"))
	m.Add(New("line one\nline two"))
	m.Add(Secret{})
	for text, want := range map[string]string{
		"nothing":                   "nothing",
		"":                          "",
		"x=pa'ss\"word":             "x=***",
		"x=pa'ss":                   "x=***",
		"sh: 'pa'\\''ss\"word'":     "sh: '***'",
		"sql: 'pa''ss\"word'":       "sql: '***'",
		`json: "pa'ss\"word"`:       `json: "***"`,
		"base64: cGEnc3Mid29yZA==":  "base64: ***",
		"-line one\n+line two":      "-***\n+***",
		"cut: pa'ss\"wo…":           "cut: ***…",
		"cut: pa's…, and nothing…":  "cut: ***…, and nothing…",
		"too little of it: pa'…":    "too little of it: pa'…",
		"an ellipsis within: line…": "an ellipsis within: ***…",
	} {
		if got := m.Mask(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
