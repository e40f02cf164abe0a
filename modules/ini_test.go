package modules

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"runbook/engine/module"
)

// Whatever a file holds: after the edit the option has its values, made twice the edit changes nothing more, and every other
// line is as it was, in its place. An edit that cannot promise this says so.
func FuzzIni(f *testing.F) {
	f.Add([]byte("# c\n[mysqld]\nport = 1 # x\nport=2\n\n[client]\nport\n"), "mysqld", "port", "3307", true)
	f.Add([]byte("a\r\n[s]\r\n[s]\r\n;b=c"), "s", "b", "\"x # y\"", false)
	f.Add([]byte("=\n[\n[]\n]\n[x]y\n'=\"\n"), "", "k", "", true)
	f.Add([]byte("[m]\nb_c='1' # '\nb-c = 2"), "m", "b-c", "'1'", true)
	f.Fuzz(func(t *testing.T, old []byte, section, option, value string, exclusive bool) {
		m := &ini{Path: "/f", Section: section, Option: option, Value: value, State: "present", Exclusive: exclusive, DashIsUnderscore: true}
		if option == "" || m.Validate() != nil {
			return
		}
		edited, err := m.edit(old)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := m.edit(edited); err != nil || !bytes.Equal(again, edited) {
			return // Check refuses such an edit
		}
		before, after := splitText(old), splitText(edited)
		mine := m.scan(after.lines).mine
		if !slices.ContainsFunc(mine, func(l iniLine) bool { return l.has(value) }) || exclusive && len(mine) != 1 {
			t.Errorf("%q became %q", old, edited)
		}
		if kept := others(m, after.lines); strings.Join(others(m, before.lines), "\n") != strings.Join(kept, "\n") {
			t.Errorf("%q became %q: other lines differ", old, edited)
		}
	})
}

// others are the lines that are neither the option's nor the header of its section, nor blank.
func others(m *ini, lines []string) []string {
	var kept []string
	mine := m.scan(lines).mine
	for i, s := range lines {
		h := sectionHeader.FindStringSubmatch(s)
		header := h != nil && strings.TrimSpace(h[1]) == m.Section
		if strings.TrimSpace(s) != "" && !header && !slices.ContainsFunc(mine, func(l iniLine) bool { return l.at == i }) {
			kept = append(kept, s)
		}
	}
	return kept
}

// A line edit is refused or final.
func FuzzLine(f *testing.F) {
	f.Add([]byte("a\nb"), "b", "^b", "^a", true, false)
	f.Add([]byte("a=1\r\n"), `\1x`, "(a)", "", false, true)
	f.Fuzz(func(t *testing.T, old []byte, text, re, after string, first, backrefs bool) {
		l := &line{Path: "/f", Line: text, Regexp: re, InsertAfter: after, State: "present", FirstMatch: first, Backrefs: backrefs}
		if l.Validate() != nil {
			return
		}
		edited, err := l.edit(old)
		if err != nil {
			t.Fatal(err)
		}
		if !backrefs && !slices.Contains(splitText(edited).lines, text) {
			t.Errorf("%q is not in %q", text, edited)
		}
	})
}

func TestIniValidateTypes(t *testing.T) {
	for _, value := range []any{1.5, true, []any{"a"}} {
		m := All()["ini"]()
		if err := module.Decode(m, map[string]any{"path": "/f", "option": "o", "value": value}); err == nil {
			t.Errorf("value %v is accepted", value)
		}
	}
}
