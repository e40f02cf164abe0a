package moduletest

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"runbook/engine/secret"
)

// entry is one path of a tree. Its strings are what differences are shown in.
type entry struct {
	Kind   string // file, directory or link
	Mode   string
	Text   string // a file's content, a link's target
	Owner  string // "" is not compared
	Ticket string // times and inode; only for whether Check touched it
}

type tree map[string]entry

var (
	secretHole = regexp.MustCompile(`\$SECRET\(([^)]*)\)`)
	dirMode    = "0755"
	fileMode   = "0644"
)

func (c *testCase) expand(text string) string { return strings.ReplaceAll(text, "$ROOT", c.root) }

// reveal takes a `$SECRET(text)` apart, and remembers the text as one that must not be seen.
func (c *testCase) reveal(hole string) string {
	text := secretHole.FindStringSubmatch(hole)[1]
	c.secrets = append(c.secrets, text)
	return text
}

func (c *testCase) withSecrets(value any) any {
	switch v := value.(type) {
	case string:
		if secretHole.FindString(v) == v && v != "" {
			return secret.New(c.reveal(v))
		}
	case []any:
		for i := range v {
			v[i] = c.withSecrets(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = c.withSecrets(v[k])
		}
	}
	return value
}

// entryName reads a file's name in an archive, and whether its content is in quotes.
func entryName(name string) (path string, quoted bool) {
	path, quoted = strings.CutSuffix(name, " quoted")
	if plain, err := strconv.Unquote(path); err == nil {
		path = plain
	}
	return path, quoted
}

func (c *testCase) content(t *testing.T, f txtar.File, quoted bool) string {
	if !quoted {
		return c.expand(string(f.Data))
	}
	var b strings.Builder
	for line := range strings.Lines(string(f.Data)) {
		text, err := strconv.Unquote(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("%s: %q: %v", f.Name, line, err)
		}
		b.WriteString(text)
	}
	return c.expand(b.String())
}

// mentions reports whether the case says anything of a tree.
func (c *testCase) mentions(prefix string) bool {
	for _, f := range c.archive.Files {
		if path, _ := entryName(f.Name); strings.HasPrefix(path, prefix) {
			return true
		}
	}
	for line := range strings.Lines(c.text("modes") + c.text("links")) {
		if strings.HasPrefix(line, prefix) || strings.HasPrefix(line, `"`+prefix) {
			return true
		}
	}
	return false
}

// tree reads the tree "before" or "after".
func (c *testCase) tree(t *testing.T, which string) tree {
	tr := tree{".": {Kind: "directory", Mode: dirMode}}
	add := func(path string, e entry) {
		tr[path] = e
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			if _, known := tr[dir]; !known {
				tr[dir] = entry{Kind: "directory", Mode: dirMode}
			}
		}
	}
	for _, f := range c.archive.Files {
		name, quoted := entryName(f.Name)
		if path, ok := strings.CutPrefix(name, which+"/"); ok {
			add(path, entry{Kind: "file", Mode: fileMode, Text: c.content(t, f, quoted)})
		}
	}
	for line := range strings.Lines(c.text("links")) {
		name, target, ok := strings.Cut(strings.TrimSpace(line), " -> ")
		if !ok {
			t.Fatalf("links: %q", line)
		}
		if path, ok := strings.CutPrefix(name, which+"/"); ok {
			add(path, entry{Kind: "link", Text: c.expand(target)})
		}
	}
	for line := range strings.Lines(c.text("modes")) {
		name, rest := "", line
		if quoted, err := strconv.QuotedPrefix(line); err == nil {
			name, _ = strconv.Unquote(quoted)
			rest = line[len(quoted):]
		} else {
			name, rest, _ = strings.Cut(line, " ")
		}
		words := strings.Fields(rest)
		path, ok := strings.CutPrefix(name, which+"/")
		if !ok {
			continue
		}
		path, isDir := strings.CutSuffix(path, "/")
		if path == "" {
			path, isDir = ".", true
		}
		e, known := tr[path]
		if !known && !isDir || len(words) == 0 {
			t.Fatalf("modes: %q", line)
		}
		if isDir {
			e.Kind = "directory"
		}
		e.Mode = words[0]
		if len(words) > 1 {
			e.Owner = words[1]
		}
		if path == "." {
			tr["."] = e
		} else {
			add(path, e)
		}
	}
	return tr
}

// write makes the tree below root.
func (tr tree) write(t *testing.T, root string) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	paths := tr.paths()
	for _, path := range paths {
		full := filepath.Join(root, path)
		switch e := tr[path]; e.Kind {
		case "directory":
			check(os.MkdirAll(full, 0o755))
		case "link":
			check(os.Symlink(e.Text, full))
		default:
			check(os.WriteFile(full, []byte(e.Text), 0o600))
		}
	}
	slices.Reverse(paths)
	for _, path := range paths {
		e, full := tr[path], filepath.Join(root, path)
		if e.Owner != "" {
			owner, group, _ := strings.Cut(e.Owner, ":")
			u, err := user.Lookup(owner)
			check(err)
			g, err := user.LookupGroup(group)
			check(err)
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(g.Gid)
			check(os.Lchown(full, uid, gid))
		}
		if e.Kind != "link" {
			mode, err := strconv.ParseUint(e.Mode, 8, 32)
			check(err)
			check(syscall.Chmod(full, uint32(mode)))
		}
	}
}

func (tr tree) paths() []string {
	var paths []string
	for path := range tr {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// compare tells how what is below root differs from tr.
func (tr tree) compare(t *testing.T, root string) {
	t.Helper()
	got := snapshot(t, root)
	for path, e := range got {
		e.Ticket = ""
		if tr[path].Owner == "" {
			e.Owner = ""
		}
		got[path] = e
	}
	if diff := cmp.Diff(tr, got); diff != "" {
		t.Errorf("the tree afterwards differs (-want +got):\n%s", diff)
	}
}

// snapshot reads the tree below root, times and all.
func snapshot(t *testing.T, root string) tree {
	t.Helper()
	tr := tree{}
	err := filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		e := entry{
			Owner:  ownerName(st.Uid, st.Gid),
			Ticket: fmt.Sprint(st.Ino, st.Mtim, st.Ctim),
			Mode:   fmt.Sprintf("%04o", st.Mode&0o7777),
		}
		switch {
		case info.IsDir():
			e.Kind = "directory"
		case info.Mode()&fs.ModeSymlink != 0:
			e.Kind, e.Mode = "link", ""
			e.Text, err = os.Readlink(full)
		case info.Mode().IsRegular():
			var data []byte
			data, err = os.ReadFile(full)
			e.Kind, e.Text = "file", string(data)
		default:
			e.Kind = info.Mode().Type().String()
		}
		path, _ := filepath.Rel(root, full)
		tr[path] = e
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func ownerName(uid, gid uint32) string {
	owner, group := strconv.Itoa(int(uid)), strconv.Itoa(int(gid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return owner + ":" + group
}

func same(t *testing.T, what string, before, after tree) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("%s (-before +after):\n%s", what, diff)
	}
}

func (c *testCase) writeStubs(t *testing.T) {
	for _, f := range c.archive.Files {
		if name, ok := strings.CutPrefix(f.Name, "bin/"); ok {
			if err := os.WriteFile(filepath.Join(c.bin, name), []byte(c.expand(string(f.Data))), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}
