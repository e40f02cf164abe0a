package spec

import (
	"regexp"
	"strings"
)

// source is the text of a file, kept for snippets and for places within values.
type source struct {
	name  string
	lines []string // without their ends
}

func newSource(name string, data []byte) *source {
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSuffix(line, "\r")
	}
	return &source{name: name, lines: lines}
}

// secretKey finds keys whose values should never be shown, whatever is wrong on their line.
var secretKey = regexp.MustCompile(`(?i)(?:pass(?:word|wd|phrase)?|secret|token)["']?\s*:\s+["']?`)

// openValue matches values that tell no secret: collections, holes, booleans.
var openValue = regexp.MustCompile(`^(?:$|[{\[#|>]|(?:true|false|yes|no)\b)`)

// line is a line of the file as it may be shown, "" if there is none. Lines count from 1.
func (s *source) line(number int) string {
	if s == nil || number < 1 || number > len(s.lines) {
		return ""
	}
	text := s.lines[number-1]
	for _, m := range secretKey.FindAllStringIndex(text, -1) {
		if !openValue.MatchString(text[m[1]:]) {
			return text[:m[1]] + "***"
		}
	}
	return text
}

// runeAt is the character at a place, 0 beyond the line.
func (s *source) runeAt(line, column int) rune {
	if line < 1 || line > len(s.lines) || column < 1 {
		return 0
	}
	for _, r := range s.lines[line-1] {
		if column--; column == 0 {
			return r
		}
	}
	return 0
}

// firstColumn is the column of the first character of a line that is no blank, at least 1.
func (s *source) firstColumn(line int) int {
	if line < 1 || line > len(s.lines) {
		return 1
	}
	column := 1
	for _, r := range s.lines[line-1] {
		if r != ' ' {
			return column
		}
		column++
	}
	return 1
}

// fill gives errors in this file their snippets.
func (s *source) fill(errs Errors) {
	for _, e := range errs {
		if e.Snippet == "" && e.Pos.File == s.name {
			e.Snippet = s.line(e.Pos.Line)
		}
	}
}
