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
// secrets names the parameters that are secret: a file that others can read must not hold them.
func readSettings(args []string, secrets map[string]bool) ([]engine.Setting, error) {
	var settings []engine.Setting
	var errs spec.Errors
	add := func(s engine.Setting) {
		settings = slices.DeleteFunc(settings, func(old engine.Setting) bool { return old.Name == s.Name })
		settings = append(settings, s)
	}
	for _, arg := range args {
		if file, ok := strings.CutPrefix(arg, "@"); ok {
			fromFile, err := readSettingsFile(file, secrets)
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
		v := spec.ParseScalar(value)
		v.Pos.File = "-e " + name
		add(engine.Setting{Name: name, Value: v, Origin: "-e", Visible: true})
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return settings, nil
}

func readSettingsFile(file string, secrets map[string]bool) ([]engine.Setting, error) {
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
		if secrets[e.Key] && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
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
