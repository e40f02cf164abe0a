package report

import (
	"strings"
	"unicode"
)

// maxCells limits the table of align; longer lists are not compared item by item.
const maxCells = 1 << 18

// part is a piece of a line; differs says that the other line has something else in its place.
type part struct {
	text    string
	differs bool
}

// compareWords splits two lines, given as their words, into what they share and what differs. The parts of a line joined are the line.
func compareWords(before, after []string) (old, new []part) {
	head := 0
	for head < min(len(before), len(after)) && before[head] == after[head] {
		head++
	}
	tail := 0
	for tail < min(len(before), len(after))-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	a, b := before[head:len(before)-tail], after[head:len(after)-tail]
	pairs := align(len(a), len(b), func(i, j int) int {
		if a[i] != b[j] {
			return 0
		}
		return 1 + weight(a[i]) // a word counts for more than the spaces beside it
	})
	var inA, inB []int
	for _, p := range pairs {
		inA, inB = append(inA, p[0]), append(inB, p[1])
	}
	return parts(before, head, tail, inA), parts(after, head, tail, inB)
}

// parts joins words to parts; of those between head and tail only the ones in shared are in the other line too.
func parts(words []string, head, tail int, shared []int) []part {
	var list []part
	for i, word := range words {
		differs := i >= head && i < len(words)-tail
		if differs && len(shared) > 0 && shared[0] == i-head {
			differs, shared = false, shared[1:]
		}
		if n := len(list); n > 0 && list[n-1].differs == differs {
			list[n-1].text += word
		} else {
			list = append(list, part{word, differs})
		}
	}
	return list
}

// align pairs the items of two lists, both in their order, so that the sum of the pairs' scores is as great as it can be. A pair
// without a score is none.
func align(n, m int, score func(i, j int) int) [][2]int {
	if n*m > maxCells {
		return nil
	}
	best := make([][]int, n+1) // best[i][j] is the greatest sum of the items from i and j on
	for i := range best {
		best[i] = make([]int, m+1)
	}
	scores := make([]int, n*m)
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			best[i][j] = max(best[i+1][j], best[i][j+1])
			if s := score(i, j); s > 0 {
				scores[i*m+j] = s
				best[i][j] = max(best[i][j], best[i+1][j+1]+s)
			}
		}
	}
	var pairs [][2]int
	for i, j := 0, 0; i < n && j < m; {
		s := scores[i*m+j]
		switch {
		case s > 0 && best[i][j] == best[i+1][j+1]+s:
			pairs = append(pairs, [2]int{i, j})
			i, j = i+1, j+1
		case best[i][j] == best[i+1][j]:
			i++
		default:
			j++
		}
	}
	return pairs
}

// splitWords cuts a line into words, runs of spaces and runs of the same sign, such as the asterisks that stand for a secret. A letter
// of a script that is written without spaces is a word. Marks stay with what they are on.
func splitWords(line string) []string {
	var words []string
	begin := 0
	var last rune
	for i, r := range line {
		if unicode.IsMark(r) {
			continue
		}
		if i > begin && !sameWord(last, r) {
			words = append(words, line[begin:i])
			begin = i
		}
		last = r
	}
	if begin < len(line) {
		words = append(words, line[begin:])
	}
	return words
}

func sameWord(a, b rune) bool {
	switch {
	case isWord(a) && isWord(b):
		return runeWidth(a) < 2 && runeWidth(b) < 2
	case isWord(a) || isWord(b):
		return false
	case unicode.IsSpace(a) || unicode.IsSpace(b):
		return unicode.IsSpace(a) && unicode.IsSpace(b)
	}
	return a == b || a > unicode.MaxLatin1 && b > unicode.MaxLatin1 // several signs can be one picture
}

func isWord(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) }

// weight is how much of a line a word is: its columns, and nothing for spaces.
func weight(word string) int { return width(strings.TrimSpace(word)) }

// bag is the words of a line without their order, and what they weigh together.
type bag struct {
	count map[string]int
	sum   int
}

func newBag(words []string) bag {
	b := bag{count: map[string]int{}}
	for _, word := range words {
		if n := weight(word); n > 0 {
			b.count[word]++
			b.sum += n
		}
	}
	return b
}

// alike is how much two lines share, in percent of both.
func alike(a, b bag) int {
	if 200*min(a.sum, b.sum) < leastAlike*(a.sum+b.sum) || a.sum+b.sum == 0 {
		return 0 // so little is not looked at closely
	}
	if len(a.count) > len(b.count) {
		a, b = b, a
	}
	shared := 0
	for word, n := range a.count {
		if n = min(n, b.count[word]); n > 0 {
			shared += n * weight(word)
		}
	}
	return 200 * shared / (a.sum + b.sum)
}

// leastAlike is what two lines must share, in percent, for one to be the other changed.
const leastAlike = 40

// pairLines finds which of the lines that go and which of those that come are the same line changed.
func pairLines(gone, come [][]string) [][2]int {
	var a, b []bag
	for _, words := range gone {
		a = append(a, newBag(words))
	}
	for _, words := range come {
		b = append(b, newBag(words))
	}
	return align(len(gone), len(come), func(i, j int) int {
		percent := alike(a[i], b[j])
		if percent < leastAlike {
			return 0
		}
		return percent * percent // one good pair rather than two poor ones
	})
}
