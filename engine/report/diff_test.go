package report

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"runbook/engine/secret"
)

func diffText(before, after string) []string {
	var list []string
	for _, l := range diffLines(before, after) {
		list = append(list, l.String())
	}
	return list
}

func TestDiff(t *testing.T) {
	lines := func(n int, skip int) string {
		var b strings.Builder
		for i := range n {
			if i != skip {
				fmt.Fprintf(&b, "line %d\n", i)
			}
		}
		return b.String()
	}
	long := strings.Repeat("żółw ", 100)
	for _, test := range []struct {
		name, before, after string
		want                []string
	}{
		{"nothing", "", "", nil},
		{"masked alike", "password = ***\n", "password = ***\n", []string{"no difference in what can be shown"}},
		{"context", lines(20, -1), lines(20, 10), []string{"@@ -8,7 +8,6 @@", " line 7", " line 8", " line 9", "-line 10", " line 11", " line 12", " line 13"}},
		{"new", "", "a\nb\n", []string{"@@ -0,0 +1,2 @@", "+a", "+b"}},
		{"no newline", "a", "a\n", []string{"@@ -1,1 +1,1 @@", "-a", `\ No newline at end of file`, "+a"}},
		{"values", "7 bytes", "8 bytes", []string{"-7 bytes", "+8 bytes"}},
		{"content that is not shown", "(7 bytes, SHA-256 0a)", "a\n", []string{"@@ -1,1 +1,1 @@", "-(7 bytes, SHA-256 0a)", "+a"}},
		{"brackets", "(7 bytes or so)", "a\n", []string{"@@ -1,1 +1,1 @@", "-(7 bytes or so)", `\ No newline at end of file`, "+a"}},
		{"a new value", "", "SELECT 1", []string{"+SELECT 1"}},
		{"spaces at the end", "a \n", "a\n", []string{"@@ -1,1 +1,1 @@", "-a ", "+a"}},
		{"line ends", "a\r\n", "a\n", []string{"@@ -1,1 +1,1 @@", `-a\r`, "+a"}},
		{"binary", "\x7fELF\x00", "text", []string{"binary content differs (5 → 4 bytes)"}},
		{"latin-1", "na\xefve text of some length\n", "", []string{"@@ -1,1 +0,0 @@", `-na\xefve text of some length`}},
		{"escape", "", "\x1b[2J and the text of a banner\n", []string{"@@ -0,0 +1,1 @@", `+\x1b[2J and the text of a banner`}},
		{"large", strings.Repeat("x\n", 1<<20), "", []string{"content differs (2097152 → 0 bytes), too large to show"}},
		{"a long line", "", strings.Repeat("y", 5000) + "\n", []string{"@@ -0,0 +1,1 @@", "+" + strings.Repeat("y", 400) + "… (4600 characters more)"}},
		{"wide", "", strings.Repeat("日", 300) + "\n", []string{"@@ -0,0 +1,1 @@", "+" + strings.Repeat("日", 200) + "… (100 characters more)"}},
		{"marks", "", "a" + strings.Repeat("\u0301", 5000) + "\n", []string{"@@ -0,0 +1,1 @@", "+a" + strings.Repeat("\u0301", 1600) + "… (3400 characters more)"}},
		{"far out", long + "a\n", long + "b\n", []string{"@@ -1,1 +1,1 @@",
			"-(460 characters) …" + long[len(long)-64:] + "a", "+(460 characters) …" + long[len(long)-64:] + "b"}},
	} {
		if got := diffText(test.before, test.after); !slices.Equal(got, test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
	got := diffText("", lines(1000, -1))
	if len(got) != maxDiffLines+1 || got[maxDiffLines] != "… 801 more lines of the difference not shown" {
		t.Errorf("a long diff has %d lines and ends %q", len(got), got[len(got)-1])
	}
}

// marked shows what is emphasised in brackets.
func marked(lines []diffLine) []string {
	var list []string
	for _, l := range lines {
		if l.words == nil {
			list = append(list, l.String())
			continue
		}
		text := l.head()
		for _, w := range l.words {
			if w.differs {
				w.text = "[" + w.text + "]"
			}
			text += w.text
		}
		list = append(list, text+l.tail())
	}
	return list
}

func TestWords(t *testing.T) {
	for _, test := range []struct{ name, before, after, want string }{
		{"a value", "verify = 0\n", "verify = 2\n", "-verify = [0]\n+verify = [2]"},
		{"a word more", "grant SELECT on a\n", "grant SELECT, INSERT on a\n", "-grant SELECT on a\n+grant SELECT[, INSERT] on a"},
		{"indent", "key: 1\n", "  key: 1\n", "-key: 1\n+[  ]key: 1"},
		{"the end", "key: 1 \n", "key: 1\n", "-key: 1[ ]\n+key: 1"},
		{"nothing in common", "alpha\n", "omega\n", "-alpha\n+omega"},
		{"signs alone", "a = b\n", "longer = words\n", "-a = b\n+longer = words"},
		{"letters beyond ASCII", "имя: вомс\n", "имя: воmс\n", "-имя: [вомс]\n+имя: [воmс]"},
		{"marks", "x: e\u0301a b\n", "x: e\u0300a b\n", "-x: [e\u0301a] b\n+x: [e\u0300a] b"},
		{"without spaces", "日本語の本\n", "日本人の本\n", "-日本[語]の本\n+日本[人]の本"},
		{"pictures", "ok: 👍🏽 yes\n", "ok: 👍🏿 yes\n", "-ok: [👍🏽] yes\n+ok: [👍🏿] yes"},
		{"which of several", "port = 3306\n", "# the tunnel\nport = 3307\nbind = 127.0.0.1\n", "-port = [3306]\n+# the tunnel\n+port = [3307]\n+bind = 127.0.0.1"},
		{"the more alike", "a b c d = 1\n", "a b x y = 2\na b c d = 2\n", "-a b c d = [1]\n+a b x y = 2\n+a b c d = [2]"},
		{"long words first", "longword x y\n", "x y longword\n", "-longword[ x y]\n+[x y ]longword"},
		{"in their order", "alpha = 1\nbravo = 1\n", "alpha = 2\nbravo = 2\n", "-alpha = [1]\n-bravo = [1]\n+alpha = [2]\n+bravo = [2]"},
		{"a mask", "password = ***\n", "password = ***, and ****\n", "-password = ***\n+password = ***[, and ****]"},
		{"no newline", "a b", "a c\n", "-a [b]\n\\ No newline at end of file\n+a [c]"},
		{"only the newline", "a b", "a b\n", "-a b\n\\ No newline at end of file\n+a b"},
	} {
		got := marked(diffLines(test.before, test.after))
		if len(got) > 0 && strings.HasPrefix(got[0], "@@") {
			got = got[1:]
		}
		if text := strings.Join(got, "\n"); text != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, text, test.want)
		}
	}
}

// TestWordsOfTooMany guards the limit of what is compared.
func TestWordsOfTooMany(t *testing.T) {
	before, after := []string{"same"}, []string{"same"}
	for i := range 2000 {
		before, after = append(before, fmt.Sprint("a", i), "x"), append(after, fmt.Sprint("b", i), "x")
	}
	if old, _ := compareWords(before, after); len(old) != 3 || old[0].differs || !old[1].differs || old[2].differs {
		t.Errorf("there are %d parts", len(old))
	}
}

// BenchmarkDiff compares the longest lines, and the most, that a difference can have.
func BenchmarkDiff(b *testing.B) {
	text := func(word string) string {
		var line strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&line, "%d%s ", i, strings.Repeat(word, i%2))
		}
		return strings.Repeat(line.String()+"\n", 100)
	}
	before, after := text("b"), text("c")
	for b.Loop() {
		diffLines(before, after)
	}
}

// FuzzWords guards that the emphasis changes no line: the words of a line joined are the line, and so are its parts; what is said to
// be in both lines is the same text in both.
func FuzzWords(f *testing.F) {
	f.Add("verify = 0", "verify = 2")
	f.Add("日本語 e\u0301 \xff***", "日本人 e *** \u0301")
	f.Fuzz(func(t *testing.T, before, after string) {
		a, b := splitWords(before), splitWords(after)
		if strings.Join(a, "") != before || strings.Join(b, "") != after {
			t.Fatalf("%q and %q are not %q and %q joined", a, b, before, after)
		}
		old, new := compareWords(a, b)
		join := func(parts []part, all bool) string {
			var text strings.Builder
			for _, p := range parts {
				if all || !p.differs {
					text.WriteString(p.text)
				}
			}
			return text.String()
		}
		if join(old, true) != before || join(new, true) != after {
			t.Errorf("%v and %v are not %q and %q joined", old, new, before, after)
		}
		if join(old, false) != join(new, false) {
			t.Errorf("%v and %v do not share the same", old, new)
		}
		for _, parts := range [][]part{old, new} {
			for i := 1; i < len(parts); i++ {
				if parts[i].differs == parts[i-1].differs {
					t.Errorf("parts %v could be one", parts[i-1:i+1])
				}
			}
		}
	})
}

// FuzzDiff guards that whatever a text holds, nothing reaches the terminal but what can be looked at, and no line is longer than the
// limit.
func FuzzDiff(f *testing.F) {
	f.Add("a\n"+hostile, "b\n"+hostile+hostile)
	f.Fuzz(func(t *testing.T, before, after string) {
		colours := regexp.MustCompile("\x1b\\[[0-9;]+m")
		var out bytes.Buffer
		NewText(&out, TextOptions{Diff: true, Color: true}).Event(end("voms1", "x",
			Result{Status: Changed, Changes: []Change{{What: "content of /x", Before: before + "\n", After: after + "\n"}}}))
		for line := range strings.Lines(colours.ReplaceAllString(out.String(), "")) {
			line = strings.TrimSuffix(line, "\n")
			if width(line) > maxDiffLine+60 {
				t.Errorf("a line has %d columns", width(line))
			}
			for _, r := range line {
				if r != '\t' && hidden(r) || r == utf8.RuneError && !strings.ContainsRune(before+after, r) {
					t.Errorf("%q is left in %q", r, line)
				}
			}
		}
	})
}

// TestMaskedDiff guards that a secret is neither shown by a difference nor cut into pieces where it was masked, not even where the
// other text has nearly the same.
func TestMaskedDiff(t *testing.T) {
	masker := &secret.Masker{}
	masker.Add(secret.New("correct horse=battery"))
	mask := masker.Mask
	for _, test := range [][2]string{
		{"password = correct horse=battery\nport = 1\n", "password = correct horse=staple\nport = 1\n"},
		{"password = old\n", "password = correct horse=battery\n"},
		{"password = correct horse=battery\n", "password = *\n"},
		{"password = ****\n", "password = xcorrect horse=batteryx\n"},
		{"password = correct horse=battery\n", "password = correct horse=battery correct horse=battery\n"},
	} {
		var out bytes.Buffer
		change := Change{What: "content of /etc/my.cnf", Before: mask(test[0]), After: mask(test[1])}
		NewText(&out, TextOptions{Diff: true, Color: true}).Event(end("voms1", "x", Result{Status: Changed, Changes: []Change{change}}))
		if strings.Contains(out.String(), "battery") {
			t.Errorf("the secret is shown:\n%q", out.String())
		}
		if regexp.MustCompile(`\*(\x1b\[[0-9;]+m)+\*`).MatchString(out.String()) {
			t.Errorf("a mask is in pieces:\n%q", out.String())
		}
		if !strings.Contains(out.String(), secret.Mask) {
			t.Errorf("there is no mask:\n%q", out.String())
		}
	}
}

// TestSpacesAtTheEnd guards that a line of a difference comes whole.
func TestSpacesAtTheEnd(t *testing.T) {
	var out bytes.Buffer
	NewText(&out, TextOptions{Diff: true}).Event(end("voms1", "x", Result{Status: Changed, Changes: []Change{{What: "content of /x", Before: "a  \n", After: "a\t\n"}}}))
	if want := "      -a  \n      +a\t\n"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not in\n%q", want, out.String())
	}
}

func TestSummary(t *testing.T) {
	for _, test := range []struct {
		name    string
		changes []Change
		want    string
	}{
		{"a directory", []Change{{What: "create /d", After: "directory"}, {What: "mode of /d", After: "0755"}, {What: "owner of /d", After: "root"}, {What: "group of /d", After: "root"}},
			"create /d (directory, 0755 root:root)"},
		{"a file", []Change{{What: "create /f", After: "a\n"}, {What: "mode of /f", After: "0600"}, {What: "owner of /f", After: "mysql"}}, "create /f (0600 owner mysql)"},
		{"of the defaults", []Change{{What: "create /f", After: "a\n"}}, "create /f"},
		{"a secret", []Change{{What: "create /f", After: "(secret)"}, {What: "mode of /f", After: "0600"}}, "create /f (secret, 0600)"},
		{"not known yet", []Change{{What: "create /f", After: `(content not known yet: "Make the key" has yet to run)`}, {What: "group of /f", After: "mysql"}},
			`create /f (content not known yet: "Make the key" has yet to run, group mysql)`},
		{"content and mode", []Change{{What: "content of /f", Before: "a\n", After: "b\n"}, {What: "mode of /f", Before: "0644", After: "0600"}}, "content of /f, mode 0644 → 0600"},
		{"all of it", []Change{{What: "content of /f", Before: "(secret)", After: "(secret)"}, {What: "mode of /f", Before: "0644", After: "0600"},
			{What: "owner of /f", Before: "mysql", After: "root"}, {What: "group of /f", Before: "mysql", After: "root"}},
			"content of /f (secret), mode 0644 → 0600, owner mysql:mysql → root:root"},
		{"an owner", []Change{{What: "owner of /f", Before: "mysql", After: "root"}, {What: "group of /f", Before: "mysql", After: "root"}}, "owner of /f (mysql:mysql → root:root)"},
		{"a mode", []Change{{What: "mode of /f", Before: "0644", After: "0600"}, {What: "owner of /f", Before: "a", After: "b"}}, "mode of /f (0644 → 0600), owner a → b"},
		{"a link", []Change{{What: "link /l", Before: "file", After: "/etc/x"}, {What: "owner of /l", After: "root"}, {What: "group of /l", After: "adm"}}, "link /l (file → /etc/x), owner root:adm"},
		{"two files", []Change{{What: "mode of /a", Before: "1", After: "2"}, {What: "content of /b", Before: "1", After: "2"}, {What: "mode of /b", Before: "1", After: "2"}},
			"mode of /a (1 → 2), content of /b (1 → 2), mode 1 → 2"},
		{"twice the same", []Change{{What: "content of /b", Before: "1", After: "2"}, {What: "content of /b", Before: "2", After: "3"}}, "content of /b (1 → 2), content of /b (2 → 3)"},
		{"other things", []Change{{What: "mode of operation", Before: "a", After: "b"}, {What: "create database x", Before: "absent", After: "utf8"}, {What: "remove y", Before: "1.0"}},
			"mode of operation (a → b), create database x (absent → utf8), remove y (was 1.0)"},
		{"a text", []Change{{What: "content of /f", Before: "a\n"}}, "content of /f"},
		{"hostile", []Change{{What: "content of /\x1b[2J", Before: "(a\u202e)", After: "((b)"}}, `content of /\x1b[2J (a\u202e → ((b))`},
	} {
		if got := summary(test.changes); got != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, got, test.want)
		}
	}
}

// checkRun is a check of a pair where little is as it should be.
func checkRun() []Event {
	const install, write = `Step 1: install "stunnel"`, "Step 2: its configuration"
	handler := func(host string, r Result) Event {
		e := end(host, "Restart the server", r)
		e.Handler = true
		return e
	}
	conf := []Change{
		{What: "content of /etc/my.cnf", Before: "[mysqld]\nserver-id = 1\nlog-bin = mysql-bin\n", After: "[mysqld]\nserver-id = 2\nlog-bin = mysql-bin\nbinlog-do-db = vo1\n"},
		{What: "mode of /etc/my.cnf", Before: "0644", After: "0640"},
		{What: "owner of /etc/my.cnf", Before: "mysql", After: "root"}, {What: "group of /etc/my.cnf", Before: "root", After: "mysql"},
	}
	return []Event{
		{Kind: RunStart, Check: true, Hosts: []string{"voms1", "voms2"}},
		{Kind: BookStart, Book: "MAN06"},
		{Kind: PlayStart, Play: "The slave", Hosts: []string{"voms1", "voms2"}},
		end("voms2", install, Result{Status: WouldChange, Changes: []Change{{What: "install stunnel4", After: "3:5.68"}}}),
		end("voms2", "Step 1: its folder", Result{Status: WouldChange, HangsOn: install, Changes: []Change{
			{What: "create /etc/stunnel/man06", After: "directory"}, {What: "mode of /etc/stunnel/man06", After: "0755"},
			{What: "owner of /etc/stunnel/man06", After: "root"}, {What: "group of /etc/stunnel/man06", After: "root"}}}),
		end("voms2", "Step 1: nothing to do", Result{Status: OK, HangsOn: install}),
		end("voms1", write, Result{Status: WouldChange, Changes: conf}),
		end("voms2", write, Result{Status: WouldChange, Changes: conf, HangsOn: install, Seconds: 1.5}),
		end("voms1", "Look at it", Result{Status: Skipped, Because: `facts.family == "rhel": facts.family is "debian"`, HangsOn: write}),
		end("voms1", "Ask it", Result{Status: Unknown, Because: `"` + write + `" has yet to run`, HangsOn: write}),
		end("voms1", "Command it", Result{Status: Unknown, Because: "what a command does cannot be predicted", HangsOn: write}),
		end("voms1", "Stop the old tunnel", Result{Status: WouldChange, HangsOn: write, Changes: []Change{
			{What: "stop stunnel\x1b[2J", Before: "active (running)", After: "stopped", Outage: "until somebody starts it again"}}}),
		end("voms2", "Dump", Result{Status: WouldChange, HangsOn: write, Changes: []Change{{What: "dump vo1 to /srv/vo1.sql", After: "a complete dump"}}}),
		handler("voms2", Result{Status: WouldChange, HangsOn: install, Changes: []Change{
			{What: "restart mariadb", Before: "active (running)", After: "restarted", Outage: "for about 1.4s, which its last start took; with it voms"}}}),
		handler("voms1", Result{Status: Unknown, Maybe: true, HangsOn: write, Because: `it runs only if "Command it` + "\x1b[2J" + `" changes something`, Changes: []Change{
			{What: "restart mariadb", Before: "active (running)", After: "restarted", Outage: "for as long as a restart takes"}}}),
		{Kind: RunEnd, Check: true, Elapsed: 3, Totals: []Total{{Host: "voms1", Changed: 2, Skipped: 1, Unknown: 3, Seconds: 2}, {Host: "voms2", OK: 1, Changed: 5, Seconds: 3}}},
	}
}

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		name string
		opts TextOptions
	}{
		{"check.txt", TextOptions{}},
		{"check-verbose.txt", TextOptions{Verbose: 1}},
		{"check-diff-color.txt", TextOptions{Diff: true, Color: true}},
	} {
		var out bytes.Buffer
		text := NewText(&out, test.opts)
		for _, e := range checkRun() {
			text.Event(e)
		}
		golden(t, test.name, out.String())
		for _, r := range out.String() {
			if !test.opts.Color && (r != '\n' && hidden(r) || r == utf8.RuneError) {
				t.Errorf("%s holds %q", test.name, r)
			}
		}
	}
}
