package report

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
)

// Limits of what a diff shows; a note says what was left out.
const (
	maxDiffInput = 1 << 20 // bytes of either text
	maxDiffLines = 200
	maxDiffLine  = 400 // columns
)

// diffLines is the unified difference of two texts with three lines of context, cleaned, without file headers.
func diffLines(before, after string) []string {
	switch {
	case before == after:
		return nil
	case isBinary(before) || isBinary(after):
		return []string{fmt.Sprintf("binary content differs (%d → %d bytes)", len(before), len(after))}
	case len(before) > maxDiffInput || len(after) > maxDiffInput:
		return []string{fmt.Sprintf("content differs (%d → %d bytes), too large to show", len(before), len(after))}
	}
	text := string(diff.Diff("before", []byte(before), "after", []byte(after)))
	_, text, _ = strings.Cut(text, "+++ after\n") // the change itself says of what
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	left := len(lines) - maxDiffLines
	if left > 0 {
		lines = lines[:maxDiffLines]
	}
	for i, line := range lines {
		lines[i] = truncate(clean(line, true), maxDiffLine)
	}
	if left > 0 {
		lines = append(lines, fmt.Sprintf("… %d more lines of the difference are not shown", left))
	}
	return lines
}

// isBinary guesses, as diff(1) does, from the beginning of a content; text in an old encoding is not binary.
func isBinary(content string) bool {
	content = content[:min(len(content), 8000)]
	odd := 0
	for i := 0; i < len(content); {
		r, size := utf8.DecodeRuneInString(content[i:])
		switch {
		case r == 0:
			return true
		case r == utf8.RuneError && size == 1, unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t':
			odd++
		}
		i += size
	}
	return odd*5 > len(content)
}
