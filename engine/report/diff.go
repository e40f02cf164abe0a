package report

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
)

// Limits of what a diff shows; a note says what was left out.
const (
	maxDiffInput = 1 << 20 // bytes of either text
	maxDiffLines = 200
	maxDiffLine  = 400              // columns
	maxDiffBytes = 8 * maxDiffLine  // of a line, where marks take no column
	diffRunUp    = maxDiffLine / 10 // columns shown before the first difference of lines that were cut in front
)

// diffLine is a line of a unified difference.
type diffLine struct {
	sign    byte   // one of "-+ @\", or 0 for a note
	skipped int    // characters left out in front
	text    string // without the sign, cleaned
	more    int    // characters left out behind
	words   []part // of a line that was changed; joined they are text
}

// String is the line without emphasis.
func (l diffLine) String() string { return l.head() + l.text + l.tail() }

func (l diffLine) head() string {
	head := ""
	if l.sign != 0 {
		head = string(l.sign)
	}
	if l.skipped > 0 {
		head += fmt.Sprintf("(%s) …", count(l.skipped, "character"))
	}
	return head
}

func (l diffLine) tail() string {
	if l.more > 0 {
		return fmt.Sprintf("… (%s more)", count(l.more, "character"))
	}
	return ""
}

// digested is what modules give for a content that they do not show; that no newline ends it means nothing.
var digested = regexp.MustCompile(`^\(\d+ bytes(, SHA-256 [0-9a-f]+)?\)$`)

// diffLines is the unified difference of two texts with three lines of context, cleaned, without file headers. Two values of one line
// come without a position.
func diffLines(before, after string) []diffLine {
	note := func(format string, args ...any) []diffLine { return []diffLine{{text: fmt.Sprintf(format, args...)}} }
	switch {
	case before == after && before == "":
		return nil
	case before == after:
		return note("no difference in what can be shown")
	case isBinary(before) || isBinary(after):
		return note("binary content differs (%d → %d bytes)", len(before), len(after))
	case len(before) > maxDiffInput || len(after) > maxDiffInput:
		return note("content differs (%d → %d bytes), too large to show", len(before), len(after))
	}
	var raw []string
	before, after = digested.ReplaceAllString(before, "$0\n"), digested.ReplaceAllString(after, "$0\n")
	if strings.Contains(before+after, "\n") {
		text := string(diff.Diff("before", []byte(before), "after", []byte(after)))
		_, text, _ = strings.Cut(text, "+++ after\n") // the change itself says of what
		raw = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	} else {
		for _, value := range []string{"-" + before, "+" + after} {
			if len(value) > 1 {
				raw = append(raw, value)
			}
		}
	}
	left := len(raw) - maxDiffLines
	if left > 0 {
		raw = raw[:maxDiffLines]
	}
	lines := make([]diffLine, len(raw))
	for i, line := range raw {
		lines[i] = diffLine{sign: line[0], text: clean(line[1:], true)}
	}
	compareRuns(lines)
	if left > 0 {
		lines = append(lines, note("… %s of the difference not shown", count(left, "more line"))...)
	}
	return lines
}

// compareRuns cuts long lines, and compares the lines that go with those that come in their place.
func compareRuns(lines []diffLine) {
	var gone, come []*diffLine
	flush := func() {
		compareLines(gone, come)
		gone, come = nil, nil
	}
	for i := range lines {
		l := &lines[i]
		switch l.sign {
		case '-':
			if len(come) > 0 {
				flush()
			}
			gone = append(gone, l)
		case '+':
			come = append(come, l)
		case '\\': // No newline at end of file: of the line before
		default:
			flush()
			l.cut(0)
		}
	}
	flush()
}

func compareLines(gone, come []*diffLine) {
	split := func(lines []*diffLine) (full []string, words [][]string) {
		for _, l := range lines {
			full = append(full, l.text)
			l.cut(0)
			words = append(words, splitWords(l.text))
		}
		return full, words
	}
	fullGone, wordsGone := split(gone)
	fullCome, wordsCome := split(come)
	for _, p := range pairLines(wordsGone, wordsCome) {
		a, b := gone[p[0]], come[p[1]]
		if skip := sharedHead(fullGone[p[0]], fullCome[p[1]]); a.more+b.more > 0 && skip > len(a.text)/2 {
			// Cut alike they would look alike.
			a.text, b.text = fullGone[p[0]], fullCome[p[1]]
			a.cut(skip)
			b.cut(skip)
			wordsGone[p[0]], wordsCome[p[1]] = splitWords(a.text), splitWords(b.text)
		}
		a.words, b.words = compareWords(wordsGone[p[0]], wordsCome[p[1]])
	}
}

// sharedHead is the number of bytes at the beginning of two lines that can be left out because they are the same in both.
func sharedHead(a, b string) int {
	n, shown := 0, 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	for n > 0 && (n == len(a) || !utf8.RuneStart(a[n]) || n == len(b) || !utf8.RuneStart(b[n])) {
		n--
	}
	for n > 0 && shown < diffRunUp {
		r, size := utf8.DecodeLastRuneInString(a[:n])
		n -= size
		shown += runeWidth(r)
	}
	return n
}

// cut leaves out the first skip bytes, and what is beyond the limits.
func (l *diffLine) cut(skip int) {
	l.skipped, l.text = utf8.RuneCountInString(l.text[:skip]), l.text[skip:]
	columns := 0
	for i, r := range l.text {
		columns += runeWidth(r)
		if columns > maxDiffLine || i > maxDiffBytes {
			l.text, l.more = l.text[:i], utf8.RuneCountInString(l.text[i:])
			return
		}
	}
	l.more = 0
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
