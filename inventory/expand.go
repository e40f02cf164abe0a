package inventory

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// expand writes out the ranges of a host's name: voms[1:3] is voms1, voms2 and voms3.
func expand(pattern string) ([]string, error) {
	names := []string{""}
	rest := pattern
	for {
		before, after, ok := strings.Cut(rest, "[")
		if !ok {
			return join(names, []string{rest})
		}
		inside, tail, ok := strings.Cut(after, "]")
		if !ok {
			return nil, errors.New("a bracket is not closed")
		}
		words, err := series(inside)
		if err != nil {
			return nil, err
		}
		if names, err = join(names, []string{before}); err != nil {
			return nil, err
		}
		if names, err = join(names, words); err != nil {
			return nil, err
		}
		rest = tail
	}
}

func join(heads, tails []string) ([]string, error) {
	if len(heads)*len(tails) > maxHosts {
		return nil, fmt.Errorf("they are more than %d", maxHosts)
	}
	joined := make([]string, 0, len(heads)*len(tails))
	for _, head := range heads {
		for _, tail := range tails {
			joined = append(joined, head+tail)
		}
	}
	return joined, nil
}

// series writes out start:end or start:end:step, of numbers or of letters, the end included.
func series(text string) ([]string, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return nil, fmt.Errorf("[%s] is no range", text)
	}
	step := 1
	if len(parts) == 3 {
		var ok bool
		if step, ok = number(parts[2]); !ok || step == 0 {
			return nil, fmt.Errorf("[%s] has no step", text)
		}
	}
	from, to := parts[0], parts[1]
	if letter(from) && letter(to) {
		var words []string
		for c := int(from[0]); c <= int(to[0]); c += step {
			words = append(words, string(rune(c)))
		}
		return notEmpty(text, words)
	}
	first, ok1 := number(from)
	last, ok2 := number(to)
	if !ok1 || !ok2 {
		return nil, fmt.Errorf("[%s] is no range", text)
	}
	if strings.HasPrefix(from, "0") && len(from) > 1 && len(from) != len(to) {
		return nil, fmt.Errorf("the ends of [%s] differ in length", text)
	}
	if (last-first)/step >= maxHosts {
		return nil, fmt.Errorf("they are more than %d", maxHosts)
	}
	width := 0
	if strings.HasPrefix(from, "0") {
		width = len(from)
	}
	var words []string
	for n := first; n <= last; n += step {
		words = append(words, fmt.Sprintf("%0*d", width, n))
	}
	return notEmpty(text, words)
}

func notEmpty(text string, words []string) ([]string, error) {
	if len(words) == 0 {
		return nil, fmt.Errorf("[%s] ends before it begins", text)
	}
	return words, nil
}

func letter(s string) bool {
	return len(s) == 1 && (s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z')
}

func number(s string) (int, bool) {
	if s == "" || len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}
