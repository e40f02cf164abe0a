package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"runbook/engine"
	"runbook/engine/spec"
)

// readSettings reads the arguments of -e: name=value, or @FILE with a mapping. A later one wins over an earlier one.
func readSettings(args []string, params declared) ([]engine.Setting, error) {
	var settings []engine.Setting
	var errs spec.Errors
	add := func(s engine.Setting) {
		settings = slices.DeleteFunc(settings, func(old engine.Setting) bool { return old.Name == s.Name })
		settings = append(settings, s)
	}
	for _, arg := range args {
		if file, ok := strings.CutPrefix(arg, "@"); ok {
			fromFile, err := readSettingsFile(file, params)
			if err != nil {
				errs = append(errs, asErrors(err)...)
			}
			for _, s := range fromFile {
				add(s)
			}
			continue
		}
		name, value, ok := strings.Cut(arg, "=")
		if why := spec.BadName(name); !ok || why != "" {
			// The argument is not repeated: it may be a secret.
			errs = append(errs, spec.Errorf(spec.Pos{File: "-e"}, "write -e name=value, or -e @FILE for a YAML file", "cannot read an argument of -e"))
			continue
		}
		v, err := params.parse(name, value)
		if err != nil {
			errs = append(errs, asErrors(err)...)
			continue
		}
		add(engine.Setting{Name: name, Value: v, Origin: "-e", Visible: true})
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return settings, nil
}

func readSettingsFile(file string, params declared) ([]engine.Setting, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read -e @%s: %w", file, unwrapPath(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read -e @%s: %w", file, unwrapPath(err))
	}
	data, err := io.ReadAll(io.LimitReader(f, 2<<20)) // the parser refuses what is over its own limit
	if err != nil {
		return nil, fmt.Errorf("cannot read -e @%s: %w", file, unwrapPath(err))
	}
	v, err := spec.LoadValue(file, data)
	if err != nil {
		// The line that is wrong may hold a secret: its place must do.
		for _, one := range asErrors(err) {
			one.Snippet = ""
		}
		return nil, err
	}
	if v.Kind == spec.Null {
		return nil, nil
	}
	if v.Kind != spec.Map {
		return nil, spec.Errors{spec.Errorf(v.Pos, "write `name: value` lines", "cannot take variables from %s: the file must be a mapping", v.Kind)}
	}
	var settings []engine.Setting
	var errs spec.Errors
	for _, e := range v.Map {
		// A pipe, such as a shell's <(…), has no mode that says who reads it.
		if params.secret(e.Key) && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
			errs = append(errs, spec.Errorf(e.Pos, "chmod 600 "+file,
				"cannot take the secret %q from a file that others can read (mode %04o)", e.Key, info.Mode().Perm()))
		}
		if why := spec.BadName(e.Key); why != "" {
			errs = append(errs, spec.Errorf(e.Pos, why, "cannot use %q as the name of a variable", e.Key))
		}
		settings = append(settings, engine.Setting{Name: e.Key, Value: e.Value, Origin: file})
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return settings, nil
}

// unwrapPath is the cause of an error that names a path which the message names already.
func unwrapPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// declared are the parameters that runbooks declare, by name.
type declared struct {
	here  map[string][]*spec.Param // by the runbooks of the call
	other map[string][]*spec.Param // by those that are shipped, or lie beside one of the call
}

// declaredBy are the parameters of runbooks of the call, and of others.
func declaredBy(here, other []engine.Source) declared {
	params := func(sources []engine.Source) map[string][]*spec.Param {
		all := map[string][]*spec.Param{}
		for _, src := range sources {
			if book, err := loadBook(src); err == nil { // the engine tells mistakes in books
				for _, p := range book.Params {
					all[p.Name] = append(all[p.Name], p)
				}
			}
		}
		return all
	}
	return declared{here: params(here), other: params(other)}
}

// secret tells whether a parameter of that name must not be read by others.
func (d declared) secret(name string) bool {
	return slices.ContainsFunc(slices.Concat(d.here[name], d.other[name]), func(p *spec.Param) bool { return p.Secret })
}

// parse returns the value of -e name=text: a string, of which the parameter's type will make more. Lists and maps may be
// written as YAML has them on one line.
func (d declared) parse(name, text string) (*spec.Value, error) {
	file := "-e " + name
	flow := strings.TrimLeft(text, " \t\n")
	if d.nested(name) && (strings.HasPrefix(flow, "[") || strings.HasPrefix(flow, "{") && !strings.HasPrefix(flow, "{{")) {
		v, err := spec.LoadValue(file, []byte(text))
		var mistakes spec.Errors
		if errors.As(err, &mistakes) && mistakes[0].Hint == "" && strings.HasPrefix(mistakes[0].Msg, "cannot read YAML") {
			mistakes[0].Hint = "write a list as a,b or [a, b] and a map as {a: 1}, with nothing behind it"
		}
		return v, err
	}
	v := spec.ParseScalar(text)
	v.Pos.File = file
	return v, nil
}

// nested tells whether the runbooks of the call take a list or a map under that name, and nothing else.
func (d declared) nested(name string) bool {
	return len(d.here[name]) > 0 && !slices.ContainsFunc(d.here[name], func(p *spec.Param) bool {
		return p.Secret || p.Type != "list" && p.Type != "map"
	})
}
