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
	if before.Exists() {
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

// pendingDir reports whether a directory that is missing will be there.
func pendingDir(host *module.Host, dir string) bool {
	if e, _, pending := pendingPath(host, dir); pending {
		return e.kind == "directory"
	}
	_, pending := mayBring(host)
	return pending
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
		if kind == pathKind {
			_, e, pending = pendingPath(host, name)
		}
		if pending && e.Maybe {
			return &module.Plan{Unknown: yetToRun(e.Task), Hangs: e.Task, Pending: true}
		}
	}
	return nil
}

func yetToRun(task string) string { return fmt.Sprintf("%q has yet to run", task) }
