package modules

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"runbook/engine/module"
	"runbook/engine/transport"
)

// written are the arguments of every module that writes the content of a file.
type written struct {
	owned
	// Keep the old content beside the file, under its name with the time of the change and a ~ after it.
	Backup bool `yaml:"backup"`
	// Command, as a list of words, that is run on the new content before it takes the old one's place; %s stands for the path of a
	// temporary file. If it fails, the file stays as it is. A check does not run it.
	Validation []string `yaml:"validate"`
}

func (w written) validate(file, arg string) error {
	errs := []error{w.owned.validate(), absolute(arg, file)}
	if w.Mode.Set && w.Mode.Bits == 0 {
		errs = append(errs, &module.ArgError{Path: "mode", Msg: "0000 lets nobody read the file"})
	}
	if len(w.Validation) > 0 && !strings.Contains(strings.Join(w.Validation[1:], " "), "%s") {
		errs = append(errs, &module.ArgError{Path: "validate", Msg: "no %s among the words after the first",
			Hint: "a list such as [visudo, -cf, \"%s\"]"})
	}
	return errors.Join(errs...)
}

// maxShown is the size up to which a file is read for its diff; of a larger one only the digest is compared.
const maxShown = 1 << 20

// content is what a module wants of the content of one file.
type content struct {
	path   string
	attrs  written
	secret bool // a secret is in the content: of the lines that differ, only what shows has is shown
	shows  string
	// whole is the content, when it does not depend on the old one.
	whole []byte
	// edit makes the new content of the old one; nil means whole.
	edit func(old []byte) ([]byte, error)
	// missing says what a missing file is: createIt, an error, or as it should be.
	missing missing
	// keep leaves a file that is there as it is.
	keep bool
	// late are the arguments that the content comes from and that may not be known yet.
	late []string
}

type missing int

const (
	createIt missing = iota
	missingIsError
	missingIsFine
)

// contentState is what Check found, for Apply.
type contentState struct {
	path    string // with links followed
	info    transport.FileInfo
	content []byte
	write   bool
	noDir   string // what is wrong with its directory now, "" if nothing
}

func (c content) check(ctx context.Context, host *module.Host) (module.Plan, error) {
	st, old, pending, err := c.read(ctx, host)
	refuse := func(err error) (module.Plan, error) { return module.Plan{Foreseen: allPaths(host)}, err }
	if refused := (*refusedError)(nil); errors.As(err, &refused) {
		return refuse(err)
	}
	if err != nil {
		return module.Plan{}, err
	}
	doubt := pending.doubt
	if doubt == "" && !st.info.Exists() && c.missing == createIt {
		var problem string
		if problem, doubt = foreseeDir(host, path.Dir(st.path), st.noDir); problem != "" {
			return refuse(&refusedError{st.path, problem})
		}
	}
	if doubt == "" && pending.ownerless(c.attrs.owned) {
		doubt = pending.by.Task
	}
	if doubt == "" && st.info.Kind == "file" && !pending.same && !pending.known && !c.keep {
		doubt = pending.by.Task
	}
	if doubt != "" {
		_, late := c.lateness(host)
		whole := c.edit == nil && !c.keep && !late
		return doubtful(doubt, sure(fileEffect(st.path, pathEffect{kind: "file", content: c.whole, known: whole, owned: c.attrs.owned}))), nil
	}
	if pending.pending && !pending.same {
		old = pending.content
	}
	if st.info.Exists() && st.info.Kind != "file" {
		return refuse(fmt.Errorf("cannot write %s: it is a %s", st.path, st.info.Kind))
	}
	if !st.info.Exists() && c.missing != createIt {
		if c.missing == missingIsFine {
			return module.Plan{Values: module.Values{"path": c.path, "sha256": ""}}, nil
		}
		return refuse(fmt.Errorf("cannot edit %s: there is no such file (create: true makes it)", c.path))
	}
	if why, late := c.lateness(host); late {
		return c.checkLate(st, why)
	}
	if c.keep && st.info.Exists() {
		st.content = c.whole
	} else if err := c.decide(&st, old); err != nil {
		return refuse(err)
	}
	var plan module.Plan
	if st.write {
		plan.Changes = append(plan.Changes, c.change(st, old))
	}
	attrs := c.attrs.diff(c.path, st.info)
	plan.Changes = append(plan.Changes, attrs...)
	if st.info.Exists() && len(attrs) > 0 {
		if err := canHold(ctx, host, st.path, c.attrs.owned); err != nil {
			return module.Plan{}, err
		}
	}
	plan.Effects = []module.Effect{fileEffect(st.path, pathEffect{kind: "file", content: st.content, known: true, keep: c.keep, owned: c.attrs.owned})}
	plan.State = st
	plan.Values = module.Values{"path": c.path, "sha256": c.sum(st)}
	return plan, nil
}

// lateness says why it is not known yet what the content has to be.
func (c content) lateness(host *module.Host) (why string, late bool) {
	for _, arg := range c.late {
		if why, late = host.Late[arg]; late {
			return why, true
		}
	}
	return "", false
}

// checkLate is check while it is not known yet what the content has to be: a file that is not there is written all the same.
func (c content) checkLate(st contentState, why string) (module.Plan, error) {
	plan := module.Plan{Pending: true, Effects: []module.Effect{fileEffect(st.path, pathEffect{kind: "file", owned: c.attrs.owned})}}
	switch {
	case c.keep && st.info.Exists():
		plan.Effects = []module.Effect{fileEffect(st.path, pathEffect{kind: "file", keep: true, owned: c.attrs.owned})}
		plan.Changes = c.attrs.diff(c.path, st.info)
	case st.info.Exists():
		plan.Unknown = why
		plan.Changes = c.attrs.diff(c.path, st.info)
	default:
		plan.Changes = append([]module.Change{{What: "create " + c.path, After: "(content not known yet: " + why + ")"}}, c.attrs.diff(c.path, st.info)...)
	}
	return plan, nil
}

// decide fills in what the content has to be and whether it has to be written.
func (c content) decide(st *contentState, old []byte) error {
	if c.edit == nil {
		st.content = c.whole
		st.write = !st.info.Exists() || !bytes.Equal(old, c.whole)
		if st.info.SHA256 != "" {
			st.write = st.info.SHA256 != digest(c.whole)
		}
		return nil
	}
	var err error
	if st.content, err = c.edit(old); err != nil {
		return err
	}
	again, err := c.edit(st.content)
	if err == nil && !bytes.Equal(again, st.content) {
		err = errors.New("made twice, it would change the file twice")
	}
	if err != nil {
		return fmt.Errorf("cannot edit %s: the edit is not idempotent: %w", c.path, err)
	}
	st.write = !st.info.Exists() || !bytes.Equal(old, st.content)
	return nil
}

// read finds the file at the path or at the end of its links. Of content that is large only the digest is read, and of a file
// that whole content replaces no more than a diff can show.
func (c content) read(ctx context.Context, host *module.Host) (st contentState, old []byte, pending foreseen, err error) {
	st.path = c.path
	const longest = 8 // chain of links
	for range longest {
		r := &asking{Host: host}
		if c.missing == createIt {
			r.file, r.owned = st.path, c.attrs.owned
		}
		switch {
		case c.edit != nil:
			st.info, old, err = transport.ReadFile(ctx, r, st.path, 8*maxShown)
		case len(c.whole) > maxShown:
			st.info, err = transport.Stat(ctx, r, st.path, true)
		default:
			st.info, old, err = readHead(ctx, r, st.path)
		}
		if r.refused != nil {
			var refused bool
			if st.noDir, refused = r.mended(st.path); refused {
				return st, nil, pending, r.refused
			}
			err = nil // it is missing, as the directory is
		}
		if err != nil {
			return st, old, pending, err
		}
		target := st.info.Target
		pending = foresee(host, st.path, st.info)
		if st.info = pending.FileInfo; pending.doubt != "" || st.info.Kind != "link" {
			return st, old, pending, nil
		}
		if st.path, err = follow(ctx, host, st.path, target, pending); err != nil {
			return st, nil, pending, err
		}
	}
	return st, nil, pending, fmt.Errorf("cannot follow the link %s", c.path)
}

// follow is where a link leads: to the end of its chain, or to the next path that earlier tasks of this check will have made.
func follow(ctx context.Context, host *module.Host, file, now string, pending foreseen) (string, error) {
	next := pending.Target
	if !path.IsAbs(next) {
		next = path.Join(path.Dir(file), next)
	}
	if next = path.Clean(next); next == path.Clean(file) {
		return "", fmt.Errorf("cannot follow the link %s: it leads to itself", file)
	}
	if _, _, soon := pendingPath(host, next); soon || pending.Target != now {
		return next, nil
	}
	out, err := host.Run(ctx, transport.Cmd{Args: []string{"readlink", "-f", "--", file}})
	if err != nil {
		return "", fmt.Errorf("cannot follow the link %s: %w", file, err)
	}
	return strings.TrimSuffix(string(out.Stdout), "\n"), nil
}

// readHead reads a little more of a file than is shown of one.
func readHead(ctx context.Context, host transport.Runner, file string) (transport.FileInfo, []byte, error) {
	script, err := transport.StatScript(false, file)
	if err != nil {
		return transport.FileInfo{}, nil, err
	}
	script += fmt.Sprintf("p=%s; [ ! -f \"$p\" ] || exec head -c %d -- \"$p\"\n", transport.Quote(file), maxShown+1)
	out, err := host.Run(ctx, transport.Cmd{Script: script})
	if err != nil {
		return transport.FileInfo{}, nil, fmt.Errorf("cannot read %s: %w", file, err)
	}
	infos, head, err := transport.ParseStat(out.Stdout, false, file)
	if err != nil {
		return transport.FileInfo{}, nil, err
	}
	return infos[0], head, nil
}

func (c content) change(st contentState, old []byte) module.Change {
	change := module.Change{What: "content of " + c.path, Before: c.shown(old, st.info), After: c.shown(st.content, transport.FileInfo{Kind: "file"})}
	if !st.info.Exists() {
		change.What = "create " + c.path
	}
	if c.secret {
		c.conceal(&change, old, st)
	}
	return change
}

const notShown = "(line not shown)"

// conceal makes a change of content that holds a secret fit to be shown: lines that stay as they are, and of those that come what is
// known to be no secret. Lines that go may hold an earlier secret, which nobody knows by now.
func (c content) conceal(change *module.Change, old []byte, st contentState) {
	if change.Before != string(old) || change.After != string(st.content) {
		change.Before, change.After = "(secret)", "(secret)" // too large or no text
		if !st.info.Exists() {
			change.Before = ""
		}
		return
	}
	// What is shown of a line that is in the new content, by the line.
	shows := map[string]string{}
	lines := slices.Collect(strings.Lines(change.After))
	masked := slices.Collect(strings.Lines(c.shows))
	for i, line := range lines {
		switch {
		case c.edit != nil:
			shows[line] = notShown + "\n"
		case len(masked) == len(lines):
			shows[line] = masked[i]
		case slices.Contains(masked, line): // a secret of several lines is somewhere
			shows[line] = line
		}
	}
	if c.edit != nil {
		for line := range strings.Lines(change.Before) {
			if _, stays := shows[line]; stays {
				shows[line] = line
			}
		}
	}
	if change.After = hide(change.After, shows); c.edit == nil {
		change.After = c.shows
	}
	change.Before = hide(change.Before, shows)
}

// hide replaces each line by what is shown of it.
func hide(text string, shows map[string]string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		shown, known := shows[line]
		if !known {
			shown = notShown + "\n"
		}
		b.WriteString(shown)
	}
	return b.String()
}

// shown is content as a change shows it.
func (c content) shown(data []byte, info transport.FileInfo) string {
	switch {
	case !info.Exists():
		return ""
	case info.SHA256 != "":
		return fmt.Sprintf("(%d bytes, SHA-256 %s)", info.Size, info.SHA256)
	case info.Size > maxShown:
		return fmt.Sprintf("(%d bytes)", info.Size)
	case len(data) > maxShown || bytes.IndexByte(data, 0) >= 0:
		return fmt.Sprintf("(%d bytes, SHA-256 %s)", len(data), digest(data))
	}
	return escapeInvalid(string(data))
}

// escapeInvalid writes bytes that are no UTF-8 as \xNN: comments in older files are often in Latin 1.
func escapeInvalid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else {
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String()
}

func (c content) apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	st := plan.State.(contentState)
	if st.write {
		err := transport.WriteFile(ctx, host, transport.FileWrite{
			Path: st.path, Content: st.content, Mode: c.attrs.Mode.Bits, Owner: c.attrs.Owner, Group: c.attrs.Group,
			Backup: c.attrs.Backup, Validate: c.attrs.Validation,
		})
		return plan.Values, err
	}
	_, err := host.Run(ctx, transport.Cmd{Script: ownScript, Env: map[string]string{
		"RB_PATH": st.path, "RB_MODE": c.attrs.Mode.String(), "RB_OWNER": c.attrs.Owner, "RB_GROUP": c.attrs.Group,
	}})
	if err != nil {
		return nil, fmt.Errorf("cannot set the mode and owner of %s: %w", st.path, err)
	}
	return plan.Values, nil
}

// ownScript sets owner and group before the mode: chown clears setuid and setgid bits.
const ownScript = `set -e
if [ -n "$RB_OWNER$RB_GROUP" ]; then chown -- "$RB_OWNER${RB_GROUP:+:$RB_GROUP}" "$RB_PATH"; fi
if [ -n "$RB_MODE" ]; then chmod -- "$RB_MODE" "$RB_PATH"; fi
`

// sum is the digest that the file will have. That of a secret would let it be guessed.
func (c content) sum(st contentState) string {
	switch {
	case c.secret:
		return ""
	}
	return digest(st.content)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// asking puts the question of canHold in front of the command that reads a file, for when the file is not there yet: both in one
// round trip.
type asking struct {
	*module.Host
	file    string // "": nothing is asked
	owned   owned
	refused *refusedError
}

// refusedError says why a file cannot be written.
type refusedError struct{ file, why string }

func (e *refusedError) Error() string { return fmt.Sprintf("cannot write %s: %s", e.file, e.why) }

// mended says what is wrong with the directory, which earlier tasks of this check may mend; refused, that they do not.
func (a *asking) mended(file string) (noDir string, refused bool) {
	if noDir = a.refused.noDir(); noDir == "" {
		return "", !willKnow(a.Host, a.refused)
	}
	problem, _ := foreseeDir(a.Host, path.Dir(file), noDir)
	return noDir, problem != ""
}

// noDir is what is wrong with the directory, "" if it is something else that is wrong.
func (e *refusedError) noDir() string {
	if strings.HasPrefix(e.why, noDirectory) || strings.HasSuffix(e.why, " is not a directory") {
		return e.why
	}
	return ""
}

// willKnow reports whether a user or group that is missing may come from earlier tasks of this check.
func willKnow(host *module.Host, refused *refusedError) bool {
	_, pending := mayBring(host)
	return pending && strings.HasPrefix(refused.why, "there is no ")
}

// refusedCode is the exit status that tells the answer from an error of the command.
const refusedCode = 97

func (a *asking) Run(ctx context.Context, c transport.Cmd) (transport.Output, error) {
	if a.file != "" {
		c.Script = fmt.Sprintf("if [ ! -e %[1]s ] && [ ! -L %[1]s ]; then (\nRB_DIR=%[2]s RB_OWNER=%[3]s RB_GROUP=%[4]s\n%[5]s) || exit %[6]d; fi\n",
			transport.Quote(a.file), transport.Quote(path.Dir(a.file)), transport.Quote(a.owned.Owner), transport.Quote(a.owned.Group), canHoldScript, refusedCode) + c.Script
	}
	out, err := a.Host.Run(ctx, c)
	if exit := (*transport.ExitError)(nil); a.file != "" && errors.As(err, &exit) && exit.Output.Code == refusedCode {
		a.refused = &refusedError{a.file, strings.TrimSpace(string(exit.Output.Stderr))}
	}
	return out, err
}

// canHold asks the host, before the owner of file is changed, whether its directory is there and the owner and group are known.
func canHold(ctx context.Context, host *module.Host, file string, o owned) error {
	_, err := host.Run(ctx, transport.Cmd{Script: canHoldScript, Env: map[string]string{
		"RB_DIR": path.Dir(file), "RB_OWNER": o.Owner, "RB_GROUP": o.Group,
	}})
	if exit := (*transport.ExitError)(nil); errors.As(err, &exit) {
		refused := &refusedError{file, strings.TrimSpace(string(exit.Output.Stderr))}
		if refused.noDir() != "" && len(host.Effects) > 0 || willKnow(host, refused) {
			return nil // of what will be there, its directory will
		}
		return refused
	}
	return err
}

const noDirectory = "there is no directory "

const canHoldScript = knownScript + `[ -d "$RB_DIR" ] || { [ -e "$RB_DIR" ] && fail "$RB_DIR is not a directory"; fail "` + noDirectory + `$RB_DIR"; }
`

// contentReturns documents the values of the modules that write content.
func contentReturns() []module.Return {
	return []module.Return{
		{Name: "path", Type: "string", Help: "the file's path, as given"},
		{Name: "sha256", Type: "string", Help: "SHA-256 of the content as declared, hexadecimal; empty for a secret, and for a file that is missing and may be"},
	}
}
