package modules

import (
	"cmp"
	"fmt"
	"path"
	"strings"

	"runbook/engine/module"
	"runbook/engine/transport"
)

// Kinds of effects that modules of different files agree on.
const (
	pathKind        = "path"        // by path: pathEffect
	packageKind     = "package"     // by name: true if it will be installed
	unitKind        = "unit"        // by the unit's full name: unitEffect
	rulesKind       = "rules"       // by family and table: the rules
	databaseKind    = "database"    // by name: true if it will be there
	accountKind     = "account"     // by name@host
	replicationKind = "replication" // by connection name
	variableKind    = "variable"    // by name, of the running server
	sqlKind         = "sql"         // by nothing: what statements do
)

// pathEffect is what a path will be.
type pathEffect struct {
	kind    string // directory, file, link, "" for nothing
	content []byte // of a file, if known
	known   bool   // whether the content is known
	keep    bool   // a file that is there keeps its content
	recurse bool   // of a directory: what is below it gets the attributes too
	any     bool   // a command may do anything to it, and below it
	owned          // as declared; what was not declared is left as it is
}

// after is what is known of a path before an effect, with the effect.
func (e pathEffect) after(before transport.FileInfo) transport.FileInfo {
	if e.kind == "" {
		return transport.FileInfo{}
	}
	info := transport.FileInfo{Kind: e.kind, Size: int64(len(e.content)), Mode: 0o644, Owner: before.Owner, Group: before.Group}
	if e.kind == "directory" {
		info.Mode = 0o755
	}
	if before.Kind == e.kind {
		info.Mode = before.Mode
	}
	if e.Mode.Set {
		info.Mode = e.Mode.Bits
	}
	info.Owner, info.Group = cmp.Or(e.Owner, info.Owner), cmp.Or(e.Group, info.Group)
	return info
}

func fileEffect(file string, e pathEffect) module.Effect {
	return module.Effect{Kind: pathKind, Name: path.Clean(file), Value: e}
}

// pendingPath is what earlier tasks of this check will have made of a path: of itself, of the directories above it, or by removing one of these.
func pendingPath(host *module.Host, file string) (e pathEffect, by module.Effect, pending bool) {
	if file == "" {
		return e, by, false
	}
	file = path.Clean(file)
	by, pending = host.Effects.Find(func(one module.Effect) bool {
		if one.Kind != pathKind {
			return false
		}
		value := one.Value.(pathEffect)
		return one.Name == file ||
			value.kind != "" && strings.HasPrefix(one.Name, strings.TrimSuffix(file, "/")+"/") ||
			value.kind == "" && strings.HasPrefix(file, one.Name+"/")
	})
	if !pending {
		return e, by, false
	}
	if by.Name == file {
		return by.Value.(pathEffect), by, true
	}
	if strings.HasPrefix(by.Name, file) {
		return pathEffect{kind: "directory"}, by, true
	}
	return pathEffect{}, by, true
}

// foreseen is what earlier tasks of this check will have made of a path.
type foreseen struct {
	transport.FileInfo
	pending bool          // one of them is about it; otherwise it is as it is now
	by      module.Effect // the last of these
	content []byte        // of a file, or where a link points to
	known   bool          // whether the content is known
	same    bool          // a file's content, or a link's target, is as it is now
	doubt   string        // a task of which it is not known what it will have made of the path
}

// foresee follows a path, which is like this now, through the effects of earlier tasks: on itself, on what lies above it and below it.
func foresee(host *module.Host, file string, now transport.FileInfo) foreseen {
	file = path.Clean(file)
	f := foreseen{FileInfo: now, same: true}
	for _, one := range host.Effects {
		if one.Kind != pathKind {
			continue
		}
		value := one.Value.(pathEffect)
		above := strings.HasPrefix(file, one.Name+"/")
		switch {
		case one.Name == file:
			f.meet(value)
		case above && value.kind == "directory" && !value.any:
			if !value.recurse || !f.Exists() || f.Kind == "link" {
				continue
			}
			f.FileInfo = value.spread(f.FileInfo)
		case above:
			f.FileInfo, f.content, f.known, f.same = transport.FileInfo{}, nil, false, false
		case strings.HasPrefix(one.Name, strings.TrimSuffix(file, "/")+"/") && value.kind != "" && !f.Exists():
			f.FileInfo = pathEffect{kind: "directory"}.after(f.FileInfo)
		default:
			continue
		}
		f.pending, f.by, f.doubt = true, one, ""
		if one.Maybe || value.any || above && value.kind == "link" {
			f.doubt = one.Task
		}
	}
	return f
}

// meet is an effect on the path itself.
func (f *foreseen) meet(e pathEffect) {
	if !e.keep || f.Kind != "file" {
		f.content, f.known, f.same = e.content, e.known, false
	}
	now := f.FileInfo
	if f.doubt != "" {
		now.Owner, now.Group = "", ""
	}
	switch f.FileInfo = e.after(now); {
	case f.Kind == "link":
		f.Target = string(e.content)
	case f.same:
		f.Size, f.SHA256 = now.Size, now.SHA256
	}
}

// ownerless reports whether it hangs on the owner of something that a task of this check will have made, which nobody declared.
func (f foreseen) ownerless(wanted owned) bool {
	return f.pending && f.Exists() && (wanted.Owner != "" && f.Owner == "" || wanted.Group != "" && f.Group == "")
}

// spread is what a path below a directory is when that has passed on its attributes.
func (e pathEffect) spread(info transport.FileInfo) transport.FileInfo {
	if e.Mode.Set {
		executable := info.Kind == "directory" || info.Mode&0o111 != 0
		if info.Mode = e.Mode.Bits; !executable {
			info.Mode = plain(e.Mode).Bits
		}
	}
	info.Owner, info.Group = cmp.Or(e.Owner, info.Owner), cmp.Or(e.Group, info.Group)
	return info
}

// allPaths reports whether all that earlier tasks of this check will have made is paths that they name, so that a path can be foreseen.
func allPaths(host *module.Host) bool {
	_, other := host.Effects.Find(func(one module.Effect) bool { return one.Kind != pathKind })
	return !other
}

// sure is an effect that comes about whether or not it is a change: attributes that are not declared are those that are there.
func sure(e module.Effect) module.Effect {
	value := e.Value.(pathEffect)
	e.Sure = value.kind == "" || value.kind == "link" || value.Mode.Set && !value.keep && (value.known || value.kind == "directory")
	return e
}

// doubtful is the plan where it is not known what a task of this check will have made of a path; effects are what is known all the same.
func doubtful(task string, effects ...module.Effect) module.Plan {
	return module.Plan{Unknown: yetToRun(task), Hangs: task, Pending: true, Effects: effects}
}

// foreseeDir says what will be wrong with the directory that a file needs, "" if nothing; problem is what is wrong with it now.
func foreseeDir(host *module.Host, dir, problem string) (later, doubt string) {
	now := transport.FileInfo{Kind: "directory", Mode: 0o755}
	switch {
	case strings.HasPrefix(problem, noDirectory):
		now = transport.FileInfo{}
	case problem != "":
		now.Kind = "file"
	}
	switch f := foresee(host, dir, now); {
	case f.doubt != "":
		return "", f.doubt
	case f.Kind == "directory":
		return "", ""
	case f.Kind == "file":
		return dir + " is not a directory", ""
	case f.Kind == "link": // made by this check, to wherever
		return "", f.by.Task
	}
	if _, pending := mayBring(host); pending {
		return "", ""
	}
	return noDirectory + dir, ""
}

// foreseeParents is foreseeDir for a directory that is made with those above it, if they are missing.
func foreseeParents(host *module.Host, dir, problem string) (later, doubt string) {
	for ; dir != "/"; dir = path.Dir(dir) {
		f := foresee(host, dir, transport.FileInfo{})
		switch {
		case f.doubt != "":
			return "", f.doubt
		case !f.pending:
			return problem, ""
		case f.Kind == "directory":
			return "", ""
		case f.Kind == "link":
			return "", f.by.Task
		case f.Exists():
			return dir + " is not a directory", ""
		case problem == dir+" is not a directory":
			problem = ""
		}
	}
	return problem, ""
}

// isPending reports whether an earlier task of this check makes a file.
func isPending(host *module.Host, file string) bool {
	e, _, pending := pendingPath(host, file)
	return pending && e.kind == "file"
}

// mayBring is a task of this check that may bring files, users and units that nobody can name: the installation of a package, or a command.
func mayBring(host *module.Host) (task string, pending bool) {
	e, pending := host.Effects.Find(func(one module.Effect) bool {
		return one.Kind == module.Anything || one.Kind == packageKind && one.Value == true
	})
	return e.Task, pending
}

// hangs is a task of this check on whose effect it hangs what a command reads: of what these paths hold, or of anything if there are none.
func hangs(host *module.Host, reads []string) string {
	e, _ := host.Effects.Find(func(one module.Effect) bool {
		if len(reads) == 0 || one.Kind == module.Anything {
			return true
		}
		for _, file := range reads {
			file = path.Clean(file)
			if one.Kind == pathKind && (one.Name == file || strings.HasPrefix(one.Name, file+"/") || strings.HasPrefix(file, one.Name+"/")) {
				return true
			}
		}
		return false
	})
	return e.Task
}

// inDoubt is the plan where it is not known what an earlier task of this check will have made of a thing that the task is about; nil if it is.
func inDoubt(host *module.Host, kind string, names ...string) *module.Plan {
	for _, name := range names {
		e, pending := host.Effects.Last(kind, name)
		doubt := pending && e.Maybe
		if kind == pathKind {
			p := foresee(host, name, transport.FileInfo{})
			e, doubt = p.by, p.doubt != ""
		}
		if doubt {
			return &module.Plan{Unknown: yetToRun(e.Task), Hangs: e.Task, Pending: true}
		}
	}
	return nil
}

func yetToRun(task string) string { return fmt.Sprintf("%q has yet to run", task) }
