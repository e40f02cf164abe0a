package transport

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// FuzzQuote: a quoted word comes back from a real sh byte for byte.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a", "'", "''", `\`, `\'`, "$(id)", "`id`", "a\nb", "-n", "*", "~", "!x", "\x01\x7f\x80\x81\x88\xff", "{a,b}", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "\x00") || len(s) > 64<<10 {
			t.Skip("no argument can hold this")
		}
		for _, shell := range shells() {
			checkWords(t, shell, []string{s})
		}
	})
}

func shells() [][]string {
	var found [][]string
	for _, s := range [][]string{{"dash"}, {"bash"}, {"busybox", "sh"}} {
		if _, err := exec.LookPath(s[0]); err == nil {
			found = append(found, s)
		}
	}
	return found
}

// checkWords has a shell print quoted words, and the same as stored content.
func checkWords(t *testing.T, shell, words []string) {
	t.Helper()
	var script, want bytes.Buffer
	var stored strings.Builder
	for _, w := range words {
		script.WriteString("printf '%s\\000' " + Quote(w) + "\n")
		want.WriteString(w + "\x00")
	}
	stored.WriteString("_rb_b=\n")
	appendStore(&stored, "/dev/stdout", want.Bytes())
	script.WriteString(strings.ReplaceAll(stored.String(), ">>/dev/stdout", ""))
	script.WriteString("printf '%s' \"$_rb_b\"\n")
	cmd := exec.Command(shell[0], shell[1:]...)
	cmd.Stdin = &script
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", shell, err)
	}
	twice := append(bytes.Clone(want.Bytes()), want.Bytes()...)
	if !bytes.Equal(out, twice) {
		i := 0
		for i < len(out) && i < len(twice) && out[i] == twice[i] {
			i++
		}
		t.Fatalf("%s: differs at byte %d of %d: %q, want %q", shell, i, len(twice), out[i:min(i+20, len(out))], twice[i:min(i+20, len(twice))])
	}
}

// Many random words, of the bytes that shells care about above all.
func TestQuoteMany(t *testing.T) {
	const special = "'\"\\$`!*?[]{}()<>|&;~#%=\n\t \r\x01\x7f\x80\x81\x82\x88\x9b\xc3\xff-na0"
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 20_000)
	for i := range words {
		b := make([]byte, r.IntN(20))
		for j := range b {
			if r.IntN(4) == 0 {
				b[j] = byte(1 + r.IntN(255))
			} else {
				b[j] = special[r.IntN(len(special))]
			}
		}
		words[i] = string(b)
	}
	for _, shell := range shells() {
		checkWords(t, shell, words)
	}
}
