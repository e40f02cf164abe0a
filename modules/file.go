package modules

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() { register("file", func() module.Module { return &file{State: "file"} }) }

// file sees to the kind, permissions and owner of a path: a directory, a link, a file, or nothing.
//
//	tasks:
//	  - name: the dump's folder is for root alone
//	    file: {path: /var/lib/runbook/man06, state: directory, owner: root, group: root, mode: "0700"}
//	  - name: the filters of an earlier set-up are gone
//	    file: {path: /etc/my.cnf.d/replication.cnf, state: absent}
type file struct {
	// The path.
	Path string `yaml:"path" required:"true"`
	// What is to be there. file: a regular file that something else has made. directory: made with its parents if missing. touch: a
	// file, made empty if missing. link: a symbolic link to src. absent: nothing.
	State string `yaml:"state" choices:"file,directory,touch,link,absent"`
	// What the link points to; a relative path is seen from the link's directory.
	Src string `yaml:"src"`
	// For state directory: everything below it gets the owner, group and mode too. Files get the execute bits of mode only if they have
	// one already; links are left alone. For state absent: a directory goes with all that is in it.
	Recurse bool `yaml:"recurse"`
	// For state link: replace a file or an empty directory that is in the way, and point to what is not there.
	Force bool `yaml:"force"`
	owned
}

// Validate refuses what cannot be meant.
func (f *file) Validate() error {
	errs := []error{absolute("path", f.Path), f.owned.validate()}
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	clean := path.Clean(f.Path)
	if f.State == "absent" && strings.Count(clean, "/") < 2 {
		refuse("path", fmt.Sprintf("will not remove %s, at the top of the file system", clean), "")
	}
	switch {
	case f.State == "link" && f.Src == "":
		refuse("src", "is needed for state link", "")
	case f.State != "link" && f.Src != "":
		refuse("src", "goes with state link only", "")
	case f.State == "link" && path.Clean(f.Src) == clean:
		refuse("src", "is the link itself", "")
	case f.State == "link" && f.Mode.Set:
		refuse("mode", "cannot be set on a link", "")
	case f.State == "absent" && f.owned != owned{}:
		refuse("state", "absent goes with neither mode, owner nor group", "")
	case f.Recurse && f.State != "directory" && f.State != "absent":
		refuse("recurse", "goes with state directory or absent only", "")
	case f.Recurse && f.State == "directory" && f.owned == owned{}:
		refuse("recurse", "has nothing to set", "give mode, owner or group")
	case f.Force && f.State != "link":
		refuse("force", "goes with state link only", "")
	}
	return errors.Join(errs...)
}

// owned are the arguments of every module that leaves a file behind.
type owned struct {
	// Permissions as four octal digits, such as 0640. Without it they stay as they are; a new file gets 0644, a new directory 0755.
	Mode module.Mode `yaml:"mode"`
	// Name of the owner. Without it the owner stays as it is; what is new belongs to the task's user.
	Owner string `yaml:"owner"`
	// Name of the group. Without it the group stays as it is; what is new belongs to the primary group of the task's user.
	Group string `yaml:"group"`
}

func (o owned) validate() error {
	var errs []error
	for _, arg := range [][2]string{{"owner", o.Owner}, {"group", o.Group}} {
		name, value := arg[0], arg[1]
		if value != "" && strings.Trim(value, "0123456789") == "" {
			errs = append(errs, &module.ArgError{Path: name, Msg: fmt.Sprintf("%q is a number", value), Hint: "give the name"})
		} else if strings.ContainsAny(value, ": \t\n\x00") || strings.HasPrefix(value, "-") {
			errs = append(errs, &module.ArgError{Path: name, Msg: fmt.Sprintf("%q is not a name", value)})
		}
	}
	return errors.Join(errs...)
}

// diff lists how info differs; for what is not there it lists what is asked for.
func (o owned) diff(file string, info transport.FileInfo) []module.Change {
	var changes []module.Change
	add := func(what, before, after string) {
		if !info.Exists() {
			before = ""
		}
		if before != after {
			changes = append(changes, module.Change{What: what + " of " + file, Before: before, After: after})
		}
	}
	if o.Mode.Set {
		add("mode", module.Mode{Set: true, Bits: info.Mode}.String(), o.Mode.String())
	}
	if o.Owner != "" {
		add("owner", info.Owner, o.Owner)
	}
	if o.Group != "" {
		add("group", info.Group, o.Group)
	}
	return changes
}

// absolute refuses a path whose meaning hangs on who runs the task where. What is not given yet passes.
func absolute(arg, file string) error {
	switch {
	case file == "":
		return nil
	case !strings.HasPrefix(file, "/"):
		return &module.ArgError{Path: arg, Msg: fmt.Sprintf("%q is not an absolute path", file)}
	case strings.ContainsRune(file, 0):
		return &module.ArgError{Path: arg, Msg: "a path cannot hold a NUL byte"}
	}
	return nil
}

// knownScript fails, and says why, if the host does not know an owner or group.
const knownScript = `fail() { printf '%s\n' "$1" >&2; exit 1; }
known_group() { getent group "$1" >/dev/null 2>&1 || grep -q "^$1:" /etc/group; }
[ -z "$RB_OWNER" ] || id -u "$RB_OWNER" >/dev/null 2>&1 || fail "there is no user $RB_OWNER"
[ -z "$RB_GROUP" ] || known_group "$RB_GROUP" || fail "there is no group $RB_GROUP"
`

// fileHead resolves the path where links are followed, and finds what lies below it and differs: execute bits belong to directories and
// to files that have one.
const fileHead = `LC_ALL=C
export LC_ALL
umask 022
p=$RB_PATH
case $RB_STATE in
file|directory|touch) if [ -L "$p" ] && [ -e "$p" ]; then p=$(readlink -f -- "$p") || exit 1; fi ;;
esac
kind() {
	if [ -L "$1" ]; then echo link
	elif [ -f "$1" ]; then echo file
	elif [ -d "$1" ]; then echo directory
	elif [ -e "$1" ]; then echo other
	fi
}
below() {
	what=$1
	set --
	if [ -n "$RB_OWNER" ]; then set -- "$@" -o ! -user "$RB_OWNER"; fi
	if [ -n "$RB_GROUP" ]; then set -- "$@" -o ! -group "$RB_GROUP"; fi
	if [ -n "$RB_MODE" ]; then
		set -- "$@" -o '(' '(' -type d -o -perm -0100 -o -perm -0010 -o -perm -0001 ')' ! -perm "$RB_MODE" ')'
		set -- "$@" -o '(' ! -type d ! -perm -0100 ! -perm -0010 ! -perm -0001 ! -perm "$RB_PLAIN" ')'
	fi
	shift
	find "$p" -mindepth 1 ! -type l '(' "$@" ')' -exec sh -c "$what" sh {} +
}
`

// lookScript answers every question of Check at once.
const lookScript = fileHead + `
kind=$(kind "$p") full= problem= dangles= attributes= target=
if [ "$kind" = directory ] && [ -n "$(ls -A -- "$p" | head -n 1)" ]; then full=1; fi
if [ -z "$kind" ]; then
	dir=$RB_DIR
	while [ -z "$(kind "$dir")" ]; do dir=$(dirname -- "$dir"); done
	if [ ! -d "$dir" ]; then problem="$dir is not a directory"
	elif [ ! -x "$dir" ]; then echo "no permission to look into $dir" >&2; exit 1
	elif [ "$RB_STATE" != directory ] && [ "$dir" != "$RB_DIR" ]; then problem="there is no directory $RB_DIR"
	fi
fi
if [ "$RB_STATE" = link ]; then (cd -- "$RB_DIR" 2>/dev/null; [ -e "$RB_SRC" ]) || dangles=1; fi
unknown=$(exec 2>&1
` + knownScript + `)
if [ -n "$kind" ]; then attributes=$(stat -c '%a %U %G' -- "$p") || exit 1; fi
if [ "$kind" = link ]; then target=$(readlink -- "$p"; echo .); target=${target%??}; fi
source=
if [ "$RB_STATE" = link ]; then source=$(cd -- "$RB_DIR" 2>/dev/null && readlink -f -- "$RB_SRC"); fi
if [ "$kind" != link ] && [ -L "$RB_PATH" ]; then target=$(readlink -- "$RB_PATH"; echo .); target=${target%??}; fi
printf '%s\0' "$kind" "$full" "$problem" "$dangles" "$unknown" "$attributes" "$target" "$p" "$source"
if [ "$kind" = directory ] && [ "$RB_STATE$RB_RECURSE" = directory1 ] && [ -z "$unknown" ]; then
	below 'for f; do printf "%s\\0%s\\0" "$(stat -c "%a %U %G %F" -- "$f")" "$f"; done' || exit 1
fi
`

const fileScript = fileHead + `set -e
case $RB_STATE in
absent)
	if [ -n "$RB_RECURSE" ]; then rm -rf -- "$p"
	elif [ "$(kind "$p")" = directory ]; then rmdir -- "$p"
	else rm -f -- "$p"
	fi
	exit ;;
directory) mkdir -p -- "$p" ;;
touch) : >>"$p" ;;
link)
	case $(kind "$p") in
	directory) rmdir -- "$p" ;;
	file|other) rm -f -- "$p" ;;
	esac
	if [ "$(readlink -- "$p"; echo .)" != "$RB_SRC
." ]; then ln -sfn -- "$RB_SRC" "$p"; fi ;;
esac
RB_WHO=$RB_OWNER${RB_GROUP:+:$RB_GROUP}
export RB_WHO
if [ -n "$RB_WHO" ]; then chown -h -- "$RB_WHO" "$p"; fi
if [ -n "$RB_MODE" ]; then chmod -- "$RB_MODE" "$p"; fi
if [ -n "$RB_RECURSE" ]; then
	below 'set -e
	for f; do
		if [ -d "$f" ] || [ -n "$(find "$f" "(" -perm -0100 -o -perm -0010 -o -perm -0001 ")")" ]; then mode=$RB_MODE; else mode=$RB_PLAIN; fi
		if [ -n "$RB_WHO" ]; then chown -h -- "$RB_WHO" "$f"; fi
		if [ -n "$mode" ]; then chmod -- "$mode" "$f"; fi
	done'
fi
`

// looked is what lookScript said of the path.
type looked struct {
	transport.FileInfo
	full    bool                 // a directory that is not empty
	problem string               // why nothing can be made there
	dangles bool                 // src is not there
	unknown string               // which owner or group the host does not know
	path    string               // with links followed, where the state follows them
	source  string               // the end of the chain of links that begins with src, "" if it has none
	below   []transport.FileInfo // what differs below the directory; Target is the path
	beneath string               // a task of this check that may have left something else to do below the directory
	before  string               // the same as it is, a line for each
	after   string               // and as it is to be
}

func (f *file) env() map[string]string {
	env := map[string]string{
		"RB_PATH": f.Path, "RB_DIR": path.Dir(path.Clean(f.Path)), "RB_STATE": f.State, "RB_SRC": f.Src, "RB_RECURSE": "",
		"RB_MODE": f.Mode.String(), "RB_PLAIN": "", "RB_OWNER": f.Owner, "RB_GROUP": f.Group,
	}
	if f.Recurse {
		env["RB_RECURSE"] = "1"
	}
	if f.Mode.Set {
		env["RB_PLAIN"] = plain(f.Mode).String()
	}
	return env
}

// plain is mode for files that are not to be executed.
func plain(mode module.Mode) module.Mode { return module.Mode{Set: true, Bits: mode.Bits &^ 0o111} }

func (f *file) look(ctx context.Context, host *module.Host) (looked, error) {
	out, err := host.Run(ctx, transport.Cmd{Script: lookScript, Env: f.env()})
	if err != nil {
		return looked{}, fmt.Errorf("cannot look at %s: %w", f.Path, err)
	}
	parts := bytes.Split(out.Stdout, []byte{0})
	if len(parts) < 10 {
		return looked{}, fmt.Errorf("cannot look at %s: unexpected answer %q", f.Path, out.Stdout)
	}
	l := looked{full: len(parts[1]) > 0, problem: string(parts[2]), dangles: len(parts[3]) > 0, unknown: string(parts[4])}
	l.FileInfo = attributes(string(parts[5]))
	l.Kind, l.Target, l.path, l.source = string(parts[0]), string(parts[6]), string(parts[7]), string(parts[8])
	for i := 9; i+1 < len(parts); i += 2 {
		info := attributes(string(parts[i]))
		info.Target = string(parts[i+1])
		l.below = append(l.below, info)
	}
	return l, nil
}

// attributes reads what stat(1) wrote for '%a %U %G', perhaps followed by %F.
func attributes(text string) (info transport.FileInfo) {
	words := strings.Fields(text)
	if len(words) < 3 {
		return info
	}
	mode, _ := strconv.ParseUint(words[0], 8, 32)
	return transport.FileInfo{Mode: uint32(mode), Owner: words[1], Group: words[2], Kind: strings.Join(words[3:], " ")}
}

func (l *looked) addBelow(f *file, info transport.FileInfo) {
	name := info.Target
	line := func(mode uint32, owner, group string) string {
		if strings.ContainsAny(name, "\n\r\t") {
			name = strconv.Quote(name)
		}
		return fmt.Sprintf("%04o %s:%s %s\n", mode, owner, group, name)
	}
	l.before += line(info.Mode, info.Owner, info.Group)
	info = pathEffect{owned: f.owned}.spread(info)
	l.after += line(info.Mode, info.Owner, info.Group)
}

// Check compares what is at the path, and below it.
func (f *file) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	l, doubt, err := f.foresee(ctx, host, f.Path, 0)
	if err != nil {
		return module.Plan{}, err
	}
	if doubt != "" {
		return doubtful(doubt, sure(f.effect(cmp.Or(l.path, f.Path)))), nil
	}
	for _, info := range l.below {
		l.addBelow(f, info)
	}
	change, err := f.decide(l)
	if err != nil {
		return module.Plan{Foreseen: allPaths(host)}, err
	}
	plan := module.Plan{Values: module.Values{"path": f.Path, "state": f.State}}
	if change != (module.Change{}) {
		plan.Changes = append(plan.Changes, change)
		if l.Kind != "directory" && l.Kind != "file" || f.State == "link" && l.Kind != "link" {
			l.FileInfo = transport.FileInfo{} // what is made has none of the old attributes
		}
	}
	if f.State != "absent" {
		plan.Changes = append(plan.Changes, f.owned.diff(f.Path, l.FileInfo)...)
	}
	if l.before != "" {
		plan.Changes = append(plan.Changes, module.Change{What: "what is below " + f.Path, Before: l.before, After: l.after})
	}
	if len(plan.Changes) > 0 && l.unknown != "" {
		return module.Plan{}, fmt.Errorf("cannot set the owner of %s: %s", f.Path, l.unknown)
	}
	plan.Effects = []module.Effect{f.effect(l.path)}
	if len(plan.Changes) == 0 && l.beneath != "" {
		return doubtful(l.beneath, plan.Effects...), nil
	}
	return plan, nil
}

// follows reports whether the state is about what a link at the path leads to.
func (f *file) follows() bool {
	return f.State == "file" || f.State == "directory" || f.State == "touch"
}

// foresee is what will be at a path after earlier tasks of this check: where that is not known, doubt is the task that it hangs on.
func (f *file) foresee(ctx context.Context, host *module.Host, file string, links int) (l looked, doubt string, err error) {
	g := *f
	g.Path = file
	if l, err = g.look(ctx, host); err != nil || len(host.Effects) == 0 {
		return l, "", err
	}
	now, resolved := l.FileInfo, l.path
	if resolved != file {
		now = transport.FileInfo{Kind: "link", Target: l.Target}
	}
	p := foresee(host, file, now)
	if l.path = file; p.doubt != "" {
		return l, p.doubt, nil
	}
	if p.Kind == "link" && f.follows() {
		next := path.Clean(p.Target)
		if !path.IsAbs(next) {
			next = path.Join(path.Dir(file), next)
		}
		_, _, soon := pendingPath(host, next)
		switch {
		case links == 8 || next == path.Clean(file):
			return l, p.by.Task, nil
		case p.same && !soon && resolved == file: // it leads nowhere
		case p.same && !soon:
			l.path, p = resolved, foresee(host, resolved, l.FileInfo)
			if p.doubt != "" {
				return l, p.doubt, nil
			}
			if !p.Exists() {
				l.path, p = file, foreseen{FileInfo: now, same: true}
			}
		default:
			end, doubt, err := f.foresee(ctx, host, next, links+1)
			if end.problem == "" && (doubt != "" || err != nil || end.Exists()) {
				return end, doubt, err
			}
		}
	}
	if p.pending {
		was := l.FileInfo
		if l.FileInfo = p.FileInfo; !p.same || p.Kind != was.Kind {
			l.below = nil
		}
	}
	if p.ownerless(f.owned) {
		return l, p.by.Task, nil
	}
	doubt, err = f.foreseeAround(ctx, host, &l)
	return l, doubt, err
}

// foreseeAround is foresee for what is above and below the path, and for what a link is to point to.
func (f *file) foreseeAround(ctx context.Context, host *module.Host, l *looked) (doubt string, err error) {
	if l.Exists() {
		l.problem = ""
	} else if f.State != "absent" {
		of := foreseeDir
		if f.State == "directory" {
			of = foreseeParents
		}
		if l.problem, doubt = of(host, path.Dir(path.Clean(l.path)), l.problem); doubt != "" {
			return doubt, nil
		}
	}
	if doubt := f.foreseeSource(host, l); doubt != "" {
		return doubt, nil
	}
	if _, pending := mayBring(host); pending {
		l.unknown = ""
	}
	under, inside := host.Effects.Find(func(one module.Effect) bool {
		return one.Kind == pathKind && strings.HasPrefix(one.Name, strings.TrimSuffix(l.path, "/")+"/")
	})
	if l.Kind != "directory" {
		l.full = false
		return "", nil
	}
	if !inside {
		return "", nil
	}
	if f.State == "directory" && f.Recurse {
		var left []transport.FileInfo
		for _, info := range l.below {
			name := info.Target
			switch p := foresee(host, name, info); {
			case p.doubt != "":
				l.beneath = p.doubt
			case p.pending && p.Kind != info.Kind && p.Exists():
				l.beneath = p.by.Task
			case p.Exists():
				if want := (pathEffect{owned: f.owned}).spread(p.FileInfo); want.Mode != p.Mode || want.Owner != p.Owner || want.Group != p.Group {
					p.FileInfo.Target = name
					left = append(left, p.FileInfo)
				}
			}
		}
		l.below = left
		if under, made := host.Effects.Find(func(one module.Effect) bool {
			return one.Kind == pathKind && strings.HasPrefix(one.Name, strings.TrimSuffix(l.path, "/")+"/") && one.Value.(pathEffect).kind != ""
		}); made {
			l.beneath = under.Task
		}
		return "", nil
	}
	if f.State == "absent" && !f.Recurse || f.State == "link" {
		return f.foreseeFull(ctx, host, l, under.Task)
	}
	return "", nil
}

// foreseeFull finds whether anything will be left in a directory.
func (f *file) foreseeFull(ctx context.Context, host *module.Host, l *looked, last string) (doubt string, err error) {
	out, err := host.Run(ctx, transport.Cmd{Script: `[ ! -d "$RB_PATH" ] || [ -L "$RB_PATH" ] || find "$RB_PATH" -mindepth 1 -maxdepth 1 -print0`, Env: map[string]string{"RB_PATH": l.path}})
	if err != nil {
		return "", fmt.Errorf("cannot look into %s: %w", l.path, err)
	}
	children := map[string]transport.FileInfo{}
	for name := range strings.SplitSeq(string(out.Stdout), "\x00") {
		if name != "" {
			children[path.Clean(name)] = transport.FileInfo{Kind: "file"}
		}
	}
	dir := path.Clean(l.path) + "/"
	for _, one := range host.Effects {
		if below, is := strings.CutPrefix(one.Name, dir); is && one.Kind == pathKind {
			child, _, _ := strings.Cut(below, "/")
			if _, there := children[dir+child]; !there {
				children[dir+child] = transport.FileInfo{}
			}
		}
	}
	l.full = false
	for child, now := range children {
		p := foresee(host, child, now)
		if p.doubt == "" && p.Exists() {
			l.full = true
			return "", nil
		}
		if p.doubt != "" {
			doubt = cmp.Or(p.doubt, last)
		}
	}
	return doubt, nil
}

// foreseeSource finds whether what a link is to point to will be there.
func (f *file) foreseeSource(host *module.Host, l *looked) (doubt string) {
	if f.State != "link" {
		return ""
	}
	src := f.Src
	if !path.IsAbs(src) {
		src = path.Join(path.Dir(path.Clean(f.Path)), src)
	}
	now := transport.FileInfo{Kind: "file"}
	if l.dangles {
		now = transport.FileInfo{}
	}
	for _, one := range []string{src, l.source} {
		p := foresee(host, one, now)
		if one == "" || !p.pending {
			continue
		}
		if p.doubt != "" || p.Kind == "link" {
			if f.Force {
				continue
			}
			return cmp.Or(p.doubt, p.by.Task)
		}
		if l.dangles = !p.Exists(); l.dangles {
			return ""
		}
	}
	return ""
}

// effect is what the path will be.
func (f *file) effect(file string) module.Effect {
	switch f.State {
	case "absent":
		return fileEffect(f.Path, pathEffect{})
	case "link":
		return fileEffect(f.Path, pathEffect{kind: "link", content: []byte(f.Src), known: true})
	case "directory":
		return fileEffect(file, pathEffect{kind: "directory", owned: f.owned, recurse: f.Recurse})
	}
	return fileEffect(file, pathEffect{kind: "file", keep: true, known: true, owned: f.owned})
}

// decide says what has to be made or removed at the path itself.
func (f *file) decide(l looked) (change module.Change, err error) {
	mismatch := fmt.Errorf("cannot make %s a %s: it is a %s", f.Path, f.State, l.Kind)
	switch {
	case l.problem != "" && f.State != "absent":
		return change, fmt.Errorf("cannot make %s: %s", f.Path, l.problem)
	case f.State == "absent" && l.Exists():
		if l.full && !f.Recurse {
			return change, fmt.Errorf("cannot remove %s: the directory is not empty (recurse: true removes what is in it)", f.Path)
		}
		return module.Change{What: "remove " + f.Path, Before: l.Kind}, nil
	case f.State == "absent":
		return change, nil
	case f.State == "file" && !l.Exists():
		return change, fmt.Errorf("there is no file %s (state: touch makes an empty one)", f.Path)
	case f.State == "link":
		return f.decideLink(l)
	case !l.Exists():
		return module.Change{What: "create " + f.Path, After: map[string]string{"directory": "directory", "touch": "empty file"}[f.State]}, nil
	case f.State == "directory" && l.Kind != "directory":
		return change, mismatch
	case f.State != "directory" && l.Kind != "file":
		return change, fmt.Errorf("cannot take %s as a file: it is a %s", f.Path, l.Kind)
	}
	return change, nil
}

func (f *file) decideLink(l looked) (change module.Change, err error) {
	switch {
	case l.dangles && !f.Force:
		return change, fmt.Errorf("cannot link %s: there is no %s (force: true makes the link all the same)", f.Path, f.Src)
	case l.Kind == "link" && l.Target == f.Src:
		return change, nil
	case l.full:
		return change, fmt.Errorf("cannot link %s: it is a directory that is not empty", f.Path)
	case l.Exists() && l.Kind != "link" && !f.Force:
		return change, fmt.Errorf("cannot link %s: it is a %s (force: true replaces it)", f.Path, l.Kind)
	case l.Kind == "link":
		return module.Change{What: "link " + f.Path, Before: l.Target, After: f.Src}, nil
	}
	return module.Change{What: "link " + f.Path, Before: l.Kind, After: f.Src}, nil
}

// Apply makes or removes what is at the path, and sets mode and owner.
func (f *file) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	if _, err := host.Run(ctx, transport.Cmd{Script: fileScript, Env: f.env()}); err != nil {
		return nil, fmt.Errorf("cannot change %s: %w", f.Path, err)
	}
	return plan.Values, nil
}

// Returns documents the result.
func (*file) Returns() []module.Return {
	return []module.Return{
		{Name: "path", Type: "string", Help: "the path, as given"},
		{Name: "state", Type: "string", Help: "the state, as given"},
	}
}
