package transport

import (
	"fmt"
	"strings"
)

// Quote returns s as one word of sh, whatever bytes it holds. A NUL cannot be in a word: callers refuse it first.
func Quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// quoteAll joins words, each quoted, with blanks.
func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}

// chunk is how many bytes of content one printf carries: small enough for the line editors and parsers of any sh.
const chunk = 16 << 10

// appendStore appends sh commands that write content to the file that word names, byte for byte, with the shell's
// own printf: no process is started, nothing is in an argument list, and only plain ASCII is on the line. A write that
// fails (a full disk) sets _rb_b.
func appendStore(b *strings.Builder, word string, content []byte) {
	redirect := ">"
	for first := true; first || len(content) > 0; first = false {
		part := content[:min(chunk, len(content))]
		content = content[len(part):]
		b.WriteString("printf '")
		appendFormat(b, part)
		fmt.Fprintf(b, "' %s%s || _rb_b=1\n", redirect, word)
		redirect = ">>"
	}
}

// appendFormat appends content as the inside of a single-quoted printf format. A dash at its start would be an option.
func appendFormat(b *strings.Builder, content []byte) {
	for i, c := range content {
		switch {
		case c == '-' && i == 0:
			b.WriteString(`\055`)
		case c == '%':
			b.WriteString("%%")
		case c == '\n' || c == '\t' || c >= ' ' && c < 0x7f && c != '\'' && c != '\\':
			b.WriteByte(c)
		default:
			b.Write([]byte{'\\', '0' + c>>6, '0' + c>>3&7, '0' + c&7})
		}
	}
}
