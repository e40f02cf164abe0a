package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// reserved are the names that the engine gives values to, and the words of the expression language.
var reserved = []string{
	"item", "facts", "hosts", "groups", "inventory_hostname", "play_hosts",
	"and", "or", "not", "in", "let", "if", "else", "matches", "contains", "startsWith", "endsWith", "true", "false", "nil",
}

// BadName tells why name cannot be the name of a variable, a param or a registered result, "" if it can.
func BadName(name string) string {
	switch {
	case !identifier.MatchString(name):
		return "a name is letters, digits and _, and starts with no digit"
	case slices.Contains(reserved, name):
		return "the name is reserved"
	}
	return ""
}

// Nearest is the candidate that differs least from word, "" if none is near enough to be what was meant.
func Nearest(word string, candidates []string) string {
	best, least := "", max(1, len(word)/3)*(edit+1)+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if max(len(c)-len(word), len(word)-len(c))*edit >= least {
			continue
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// DidYouMean is a hint that names the nearest candidate, "" if there is none.
func DidYouMean(word string, candidates []string) string {
	if near := Nearest(word, candidates); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return ""
}

// edit is the price of an insertion, a deletion or a swap of neighbours. A replacement costs a little more: a word
// with the same letters is the likelier one.
const edit = 10

// distance is the price of the edits that lead from a to b.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return max(len(a), len(b)) * edit
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i * edit
	}
	for j := range rows[0] {
		rows[0][j] = j * edit
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := edit + 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+edit, rows[i][j-1]+edit, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+edit)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
