package vars

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// place is where a source starts within the whole text it is a part of, from 1.
type place struct{ line, column int }

var start = place{1, 1}

// after is the place behind text, which starts at p.
func (p place) after(text string) place {
	if n := strings.Count(text, "\n"); n > 0 {
		return place{p.line + n, 1 + utf8.RuneCountInString(text[strings.LastIndexByte(text, '\n')+1:])}
	}
	return place{p.line, p.column + utf8.RuneCountInString(text)}
}

// afterRunes is the place n characters into src, which starts at p.
func (p place) afterRunes(src string, n int) place {
	for i := range src {
		if n--; n < 0 {
			return p.after(src[:i])
		}
	}
	return p.after(src)
}

func (p place) errorf(hint, format string, args ...any) *Error {
	return &Error{Line: p.line, Column: p.column, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// near suggests what was meant by name, or lists the candidates when they are few.
func near(name string, candidates []string) string {
	best, bestDistance := "", 1+max(1, len(name)/3)
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if d := distance(strings.ToLower(name), strings.ToLower(c), bestDistance); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(candidates) > 0 && len(candidates) <= 12:
		return "there is " + strings.Join(slices.Sorted(slices.Values(candidates)), ", ")
	}
	return ""
}

// distance is the number of edits (a swap of neighbours counts one) from a to b, or limit if it is not less.
func distance(a, b string, limit int) int {
	if a == b {
		return 0
	}
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	var before, previous []int
	for j := 0; j <= len(b); j++ {
		previous = append(previous, j)
	}
	for i := 1; i <= len(a); i++ {
		row := []int{i}
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(previous[j]+1, row[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, before[j-2]+1)
			}
			row = append(row, d)
		}
		before, previous = previous, row
	}
	return min(previous[len(b)], limit)
}

const (
	secretHint  = "a secret can only be passed on, alone or in a text; empty(x) asks whether it is set"
	convertHint = "convert one side with int(x) or string(x)"
)

// foreign gives, for names and functions of other template languages, what is written here.
var foreign = map[string]string{
	"default": `write x ?? "value"`, "d": `write x ?? "value"`, "length": "write len(x)", "count": "write len(x)", "size": "write len(x)",
	"to_json": "write toJSON(x)", "from_json": "write fromJSON(x)", "to_nice_json": "write toJSON(x)",
	"b64encode": "write toBase64(x)", "b64decode": "write fromBase64(x)", "bool": `write x == "true"`, "selectattr": "write filter(list, .field == value)",
	"select": "write filter(list, # == value)", "str": "write string(x)", "combine": "write merge(a, b)",
	"now":  "there is no clock here, so that check and resume repeat; use a parameter",
	"hash": "write sha256(text)", "uniq": "write unique(list)", "True": "write true", "False": "write false", "None": "write nil", "null": "write nil",
	"undefined": "write x ?? other", "defined": "write x ?? other",
}

var typeNames = strings.NewReplacer("vars.opaque", "secret", "map[string]interface {}", "map", "[]interface {}", "list", "[]string", "list", "[]int", "list",
	"float64", "float", "interface {}", "any", "unknown", "any")

// plain turns what expr's parser and checker say into our words, with a hint.
var plain = []struct {
	found     *regexp.Regexp
	msg, hint string
}{
	{regexp.MustCompile(`^unexpected token EOF$`), "the expression ends too early", ""},
	{regexp.MustCompile(`^unexpected token Operator\("="\)$`), "unexpected =", "write == to compare"},
	{regexp.MustCompile(`^unexpected token Identifier\("is"\)$`), `unexpected "is"`, `write x ?? other for a value that may be missing, or "key" in map`},
	{regexp.MustCompile(`^unexpected token Operator\("\|"\)$`), "unexpected |", "a function after | is called: x | lower()"},
	{regexp.MustCompile(`^unexpected token \w+\("(.*)"\)$`), `unexpected $1`, ""},
	{regexp.MustCompile(`^unexpected token (.*)$`), `unexpected $1`, ""},
	{regexp.MustCompile(`^literal not terminated$`), "a quoted string is not closed", ""},
	{regexp.MustCompile(`^unrecognized character: .*'(.*)'$`), `unexpected character $1`, ""},
	{regexp.MustCompile(`^invalid operation: (\S+) \(mismatched types (.*secret.*) and (.*)\)$|^invalid operation: (\S+) \(mismatched types (.*) and (secret)\)$`),
		"a secret cannot be used with $1$4", secretHint},
	{regexp.MustCompile(`^invalid operation: (\S+) \(mismatched types (string) and (int|float)\)$|^invalid operation: (\S+) \(mismatched types (int|float) and (string)\)$`),
		"cannot use $1$4 between $2$5 and $3$6", convertHint},
	{regexp.MustCompile(`^invalid operation: contains \(mismatched types list and (.*)\)$`), "contains is for strings", "write x in list"},
	{regexp.MustCompile(`^invalid operation: in \(mismatched types string and string\)$`), "in is for lists and maps", "write text contains part"},
	{regexp.MustCompile(`^invalid operation: (\S+) \(mismatched types (.*) and (.*)\)$`), "cannot use $1 between $2 and $3", ""},
	{regexp.MustCompile(`^invalid operation: (!|not) \(mismatched type (.*)\)$`), "$1 needs a condition, not a value of type $2", `compare: x == "", or empty(x)`},
	{regexp.MustCompile(`^invalid operation: (\S+) \(mismatched type (.*)\)$`), "cannot use $1 on a value of type $2", ""},
	{regexp.MustCompile(`^type (.*) has no (?:field|method) (.*)$`), `a $1 has no field "$2"`, ""},
	{regexp.MustCompile(`^cannot use (.*) as type (.*) in array$`), "a list of $2 cannot hold a $1", ""},
	{regexp.MustCompile(`^cannot use (.*) as type (.*) in map key$`), "the keys of a map are strings, not $1", ""},
	{regexp.MustCompile(`^cannot use (.*) as argument \(type (.*)\) to call (\S+?) ?$`), "$3 cannot take a $1", ""},
	{regexp.MustCompile(`^invalid argument for (\S+) \(type (.*)\)$`), "$1 cannot take a $2", ""},
	{regexp.MustCompile(`^array elements can only be selected using an integer \(got (.*)\)$`), "a list is indexed by a number, not by a $1", ""},
	{regexp.MustCompile(`^builtin (\S+) takes only array \(got (.*)\)$`), "$1 needs a list, not a $2", ""},
	{regexp.MustCompile(`^predicate should return boolean \(got (.*)\)$`), "the condition inside gives a $1, not true or false", ""},
	{regexp.MustCompile(`^non-bool expression \(type (.*)\) used as condition$`), "the condition gives a $1, not true or false", `compare: x == "", or empty(x)`},
	{regexp.MustCompile(`^Operator \((.*)\) and coalesce expressions \(\?\?\) cannot be mixed.*$`), "?? cannot be mixed with $1", "put parentheses around (x ?? y)"},
	{regexp.MustCompile(`^.* is not callable$`), "a variable has the name of this function", "rename the variable"},
	{regexp.MustCompile(`^error parsing regexp: (.*)$`), "the pattern is not a regular expression: $1", ""},
	{regexp.MustCompile(`(?s)^.*exceeds maximum allowed nodes.*$`), "the expression is too long", ""},
}

// inPlainWords gives message and hint for what expr said.
func inPlainWords(said string) (msg, hint string) {
	aboutSecret := strings.Contains(said, "vars.opaque")
	said = typeNames.Replace(said)
	for _, p := range plain {
		if m := p.found.FindStringSubmatchIndex(said); m != nil {
			msg, hint = string(p.found.ExpandString(nil, p.msg, said, m)), p.hint
			break
		}
	}
	if msg == "" {
		msg = said
	}
	msg = strings.ReplaceAll(msg, " a int", " an int")
	if aboutSecret {
		hint = secretHint
	}
	for _, f := range Functions {
		if hint == "" && (strings.Contains(msg, "call "+f.Name) && strings.HasSuffix(msg, f.Name) || strings.HasPrefix(msg, f.Name+" cannot take") || strings.HasPrefix(msg, f.Name+" needs")) {
			hint = "it is " + f.Signature
		}
	}
	return msg, hint
}
