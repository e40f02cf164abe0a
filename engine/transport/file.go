package transport

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Runner is what the file functions need: a Conn, or a host that adds its user and environment.
type Runner interface {
	Run(ctx context.Context, c Cmd) (Output, error)
}

// FileInfo is what a host says of a path. The zero value means that nothing is there.
type FileInfo struct {
	Kind         string // "" (absent), "file", "directory", "link", "other"
	Mode         uint32 // permission bits, setuid, setgid and sticky
	Owner, Group string // names, or numbers where the host knows no name
	Size         int64
	Target       string // of a link
	SHA256       string // of a regular file, hexadecimal, when asked for
}

// Exists reports whether anything is at the path.
func (i FileInfo) Exists() bool { return i.Kind != "" }

// FileWrite says how WriteFile leaves a file.
type FileWrite struct {
	Path         string
	Content      []byte
	Mode         uint32 // 0: the mode of the file that is replaced, else 0644
	Owner, Group string // "": the owner and group of the file that is replaced, else the writing user's
	Backup       bool   // keep the old content beside it as PATH.YYYYMMDDTHHMMSS~
	// Validate is run before the rename, as arguments with %s replaced by the temporary file's path; a non-zero exit
	// leaves the old file as it was.
	Validate []string
}

// Stat says what is at path, without following a link there; sum asks for the digest of a regular file. That nothing is there is no
// error; that the host does not let the user look is one.
func Stat(ctx context.Context, r Runner, path string, sum bool) (FileInfo, error) {
	infos, err := statAll(ctx, r, sum, []string{path})
	if err != nil {
		return FileInfo{}, err
	}
	return infos[0], nil
}

// StatMany is Stat of several paths, without digests, in one Run and at most two processes.
func StatMany(ctx context.Context, r Runner, paths ...string) ([]FileInfo, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	return statAll(ctx, r, false, paths)
}

func statAll(ctx context.Context, r Runner, sum bool, paths []string) ([]FileInfo, error) {
	script, err := StatScript(sum, paths...)
	if err != nil {
		return nil, err
	}
	out, err := r.Run(ctx, Cmd{Script: script})
	if err != nil {
		return nil, fileError("look at", strings.Join(paths, ", "), err)
	}
	infos, rest, err := ParseStat(out.Stdout, sum, paths...)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("cannot look at %s: garbled reply", strings.Join(paths, ", "))
	}
	return infos, err
}

// StatScript is the sh text that reports on paths, for ParseStat, for those who want more in the same Run. It ends
// with a non-zero status, and a message, when a path cannot be looked at.
func StatScript(sum bool, paths ...string) (string, error) {
	var b strings.Builder
	b.WriteString(statFunctions)
	b.WriteString("set --\n")
	for _, p := range paths {
		if err := checkPath(p); err != nil {
			return "", err
		}
		// Nothing is started for what is not there.
		fmt.Fprintf(&b, "p=%s; if [ -L \"$p\" ] || [ -e \"$p\" ]; then printf 1; set -- \"$@\" \"$p\"; else printf 0; rb_absent \"$p\" || exit; fi\n", Quote(p))
	}
	b.WriteString("printf '\\n'; [ $# = 0 ] || LC_ALL=C stat -c '%f:%s:%u:%g:%U:%G' -- \"$@\" || exit\n")
	b.WriteString("for p do [ ! -L \"$p\" ] || { readlink -- \"$p\" && printf '\\000'; } || exit; done\n")
	if sum {
		b.WriteString("for p do [ -L \"$p\" ] || [ ! -f \"$p\" ] || rb_sum \"$p\" || exit; done\n")
	}
	return b.String(), nil
}

// statFunctions: rb_absent fails, with a message, if what is below the nearest directory that exists cannot be seen;
// rb_sum prints a digest with the first tool there is.
const statFunctions = `rb_absent() {
rb_d=$1
while case $rb_d in */?*) rb_d=${rb_d%/*}; rb_d=${rb_d:-/} ;; *) rb_d=. ;; esac; [ ! -e "$rb_d" ] && [ "$rb_d" != . ]; do :; done
[ ! -d "$rb_d" ] || [ -x "$rb_d" ] || { printf '%s: permission denied\n' "$rb_d" >&2; return 1; }
}
rb_sum() {
if command -v sha256sum >/dev/null; then sha256sum <"$1"
else openssl dgst -sha256 <"$1"
fi
}
`

// ParseStat reads what StatScript's text printed, and returns what follows it. sum and paths are those of StatScript.
func ParseStat(out []byte, sum bool, paths ...string) ([]FileInfo, []byte, error) {
	garbled := fmt.Errorf("cannot look at %s: garbled reply", strings.Join(paths, ", "))
	there, rest, ok := bytes.Cut(out, []byte("\n"))
	if !ok || len(there) != len(paths) {
		return nil, nil, garbled
	}
	infos := make([]FileInfo, len(paths))
	var found []*FileInfo
	for i, c := range there {
		if c == '1' {
			found = append(found, &infos[i])
		}
	}
	var line []byte
	for _, info := range found {
		if line, rest, ok = bytes.Cut(rest, []byte("\n")); !ok || info.parse(string(line)) != nil {
			return nil, nil, garbled
		}
	}
	for _, info := range found {
		if info.Kind == "link" {
			if line, rest, ok = bytes.Cut(rest, []byte("\n\x00")); !ok {
				return nil, nil, garbled
			}
			info.Target = string(line)
		}
	}
	for _, info := range found {
		if sum && info.Kind == "file" {
			if line, rest, ok = bytes.Cut(rest, []byte("\n")); !ok {
				return nil, nil, garbled
			}
			// "DIGEST  -" of sha256sum, "(stdin)= DIGEST" of openssl
			for _, word := range strings.Fields(string(line)) {
				if len(word) == 64 {
					info.SHA256 = word
				}
			}
			if info.SHA256 == "" {
				return nil, nil, garbled
			}
		}
	}
	return infos, rest, nil
}

// parse reads a line of stat: mode (hexadecimal), size, user and group as numbers, then as names.
func (i *FileInfo) parse(line string) error {
	f := strings.Split(line, ":")
	if len(f) != 6 {
		return errFrame
	}
	mode, err := strconv.ParseUint(f[0], 16, 32)
	if err != nil {
		return err
	}
	if i.Size, err = strconv.ParseInt(f[1], 10, 64); err != nil {
		return err
	}
	switch mode & 0o170000 {
	case 0o100000:
		i.Kind = "file"
	case 0o040000:
		i.Kind = "directory"
	case 0o120000:
		i.Kind = "link"
	default:
		i.Kind = "other"
	}
	i.Mode = uint32(mode & 0o7777)
	i.Owner, i.Group = f[4], f[5]
	if i.Owner == "UNKNOWN" {
		i.Owner = f[2]
	}
	if i.Group == "UNKNOWN" {
		i.Group = f[3]
	}
	return nil
}

// ReadFile returns what Stat says of path and the content of the regular file there, through a link too. A file
// larger than limit bytes is an error; 0 is DefaultLimit. Without a regular file the content is nil.
func ReadFile(ctx context.Context, r Runner, path string, limit int64) (FileInfo, []byte, error) {
	if limit <= 0 {
		limit = DefaultLimit
	}
	script, err := StatScript(false, path)
	if err != nil {
		return FileInfo{}, nil, err
	}
	script += fmt.Sprintf("p=%s; [ ! -f \"$p\" ] || { printf 'content:' && exec cat -- \"$p\"; }\n", Quote(path))
	const room = 16 << 10 // for what Stat says
	out, err := r.Run(ctx, Cmd{Script: script, Limit: limit + room})
	if err != nil {
		return FileInfo{}, nil, fileError("read", path, err)
	}
	infos, rest, err := ParseStat(out.Stdout, false, path)
	if err != nil {
		return FileInfo{}, nil, err
	}
	content, isFile := bytes.CutPrefix(rest, []byte("content:"))
	switch {
	case !isFile:
		return infos[0], nil, nil
	case out.Dropped > 0 || int64(len(content)) > limit:
		return infos[0], nil, fmt.Errorf("cannot read %s: it is larger than %d bytes", path, limit)
	}
	return infos[0], content, nil
}

// WriteFile makes w.Path a regular file with w's content, mode and owner. Whoever reads it sees the old file or the new one, whole: the
// content goes to a temporary file beside it, is synced, and takes the old one's place when all else has been done.
// A link at w.Path is replaced, not followed. On an error the old file is as it was and no temporary file is left.
func WriteFile(ctx context.Context, r Runner, w FileWrite) error {
	script, err := w.script(nonce(), time.Now())
	if err != nil {
		return err
	}
	_, err = r.Run(ctx, Cmd{Script: script, Stdin: bytes.NewReader(w.Content), Bulk: w.bulk()})
	if err != nil {
		return fileError("write", w.Path, err)
	}
	return nil
}

// bulk tells whether the content is worth a session of its own: some shells read their requests byte by byte.
func (w *FileWrite) bulk() bool { return len(w.Content) > 1<<20 }

// script is the sh text that writes the file from its standard input. unique makes the temporary file's name one
// that nobody can be waiting for; noclobber creates it only if nothing is there, not even a dangling link.
func (w *FileWrite) script(unique string, now time.Time) (string, error) {
	if err := checkPath(w.Path); err != nil {
		return "", err
	}
	if strings.HasSuffix(w.Path, "/") {
		return "", fmt.Errorf("cannot write %s: it names a directory", w.Path)
	}
	if w.Mode&^0o7777 != 0 {
		return "", fmt.Errorf("cannot write %s: %#o is not a mode", w.Path, w.Mode)
	}
	for _, name := range []string{w.Owner, w.Group} {
		if strings.ContainsAny(name, ":\x00") || strings.HasPrefix(name, "-") {
			return "", fmt.Errorf("cannot write %s: %q is not the name of a user or group", w.Path, name)
		}
	}
	p := w.Path
	if strings.HasPrefix(p, "-") {
		p = "./" + p
	}
	dir, name := path.Split(p)
	temp := dir + "." + name[:min(len(name), 100)] + "." + unique
	var b strings.Builder
	fmt.Fprintf(&b, "p=%s t=%s\n", Quote(p), Quote(temp))
	// All that is done to the file goes through one descriptor, opened only if nothing was there: not even the owner
	// of the directory can put a link in its way.
	fmt.Fprintf(&b, "if [ ! -d %s ]; then printf 'its directory does not exist\\n' >&2; exit 1; fi\n", Quote(cmp.Or(dir, ".")))
	b.WriteString(`if [ -d "$p" ]; then printf 'it is a directory\n' >&2; exit 1; fi
trap 'rm -f "$t"' EXIT
trap 'exit 143' HUP INT TERM
f=/proc/self/fd/9
old=
if [ -f "$p" ] && [ ! -L "$p" ]; then old=1; fi
m=$(umask)
umask 077
set -C
{
umask "$m"
said=$(dd bs=65536 conv=fsync 2>&1 >&9) || { printf '%s\n' "$said" >&2; exit 1; }
`)
	if w.bulk() {
		// To the host, a link that is lost looks like the end of the content.
		fmt.Fprintf(&b, "[ \"$(wc -c <$f)\" -eq %d ] || { printf 'the content did not arrive whole\\n' >&2; exit 1; }\n", len(w.Content))
	}
	owner := w.Owner
	if w.Group != "" {
		owner += ":" + w.Group
	}
	if w.Owner == "" || w.Group == "" || w.Mode == 0 {
		b.WriteString("if [ \"$old\" ]; then was=$(stat -c '%u:%g:%a' -- \"$p\") || exit; fi\n")
		// What is not asked for is as it was, unless it is so already.
		switch {
		case w.Owner == "" && w.Group == "":
			b.WriteString("if [ \"$old\" ] && { [ ! -O \"$p\" ] || [ ! -G \"$p\" ]; }; then chown \"${was%:*}\" $f || exit; fi\n")
		case w.Owner == "":
			b.WriteString("if [ \"$old\" ] && [ ! -O \"$p\" ]; then chown \"${was%%:*}\" $f || exit; fi\n")
		case w.Group == "":
			b.WriteString("if [ \"$old\" ]; then was1=${was%:*}; chgrp \"${was1#*:}\" $f || exit; fi\n")
		}
	}
	if owner != "" {
		fmt.Fprintf(&b, "chown %s $f || exit\n", Quote(owner))
	}
	if w.Mode != 0 {
		fmt.Fprintf(&b, "chmod %o $f || exit\n", w.Mode)
	} else {
		b.WriteString("if [ \"$old\" ]; then chmod \"${was##*:}\" $f; else chmod 644 $f; fi || exit\n")
	}
	b.WriteString("} 9>\"$t\" || exit\n")
	// Under SELinux the new file keeps the old one's label, or gets the one its path asks for.
	b.WriteString(`if [ -e /sys/fs/selinux/enforce ] || [ -e /selinux/enforce ]; then
if [ "$old" ]; then chcon --reference="$p" "$t"; else l=$(matchpathcon -n "$p") && chcon "$l" "$t"; fi 2>/dev/null
fi
`)
	if len(w.Validate) > 0 {
		args := make([]string, len(w.Validate))
		for i, a := range w.Validate {
			if strings.Contains(a, "\x00") {
				return "", fmt.Errorf("cannot write %s: an argument of its validation holds a NUL byte", w.Path)
			}
			args[i] = strings.ReplaceAll(a, "%s", temp)
		}
		fmt.Fprintf(&b, "( exec %s ) </dev/null >&2 || { s=$?; printf '%%s\\n' %s >&2; exit $s; }\n",
			quoteAll(args), Quote("validation failed: "+strings.Join(w.Validate, " ")))
	}
	if w.Backup {
		// A second name for the old file: complete at once, with all that it has.
		fmt.Fprintf(&b, `if [ -e "$p" ] || [ -L "$p" ]; then
b=$p.%s k=
while [ -e "$b$k~" ] || [ -L "$b$k~" ]; do k=.$(( ${k#.} + 1 )); done
ln "$p" "$b$k~" 2>/dev/null || cp -p "$p" "$b$k~" || exit
fi
`, now.UTC().Format("20060102T150405"))
	}
	b.WriteString("mv -f -T \"$t\" \"$p\"\n")
	return b.String(), nil
}

// checkPath refuses what is no path.
func checkPath(p string) error {
	if p == "" {
		return errors.New("cannot use an empty path")
	}
	if strings.Contains(p, "\x00") {
		return fmt.Errorf("cannot use the path %q: it holds a NUL byte", p)
	}
	return nil
}

// whereInScript is how a shell says where in our script it stopped, which says nothing to anyone.
var whereInScript = regexp.MustCompile(`(?m)^.*/\.runbook-[^ ]*: (line )?([0-9]+: )?`)

// fileError says what could not be done, in the host's own words where it had some.
func fileError(verb, path string, err error) error {
	var exit *ExitError
	if errors.As(err, &exit) {
		if text := strings.TrimSpace(whereInScript.ReplaceAllString(string(exit.Output.Stderr), "")); text != "" {
			return fmt.Errorf("cannot %s %s: %s", verb, path, text)
		}
	}
	return fmt.Errorf("cannot %s %s: %w", verb, path, err)
}
