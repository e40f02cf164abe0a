package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"runbook/engine"
	"runbook/engine/spec"
	"runbook/modules"
	"runbook/runbooks"
)

// shippedDir is where messages say that a shipped runbook lies: its place in the source.
const shippedDir = "runbooks"

// findBook resolves BOOK. A name that begins with ./, ../ or / or ends in .yml or .yaml is a path; any other is the name of a
// shipped runbook. Who names a run instead is told how to look at it in the state directory.
func findBook(name, stateDir string) (engine.Source, error) {
	if isPath(name) {
		dir, file := filepath.Split(filepath.Clean(name))
		dir = filepath.Clean(dir)
		if _, err := os.Stat(name); err != nil {
			return engine.Source{}, fmt.Errorf("cannot read the runbook %s: %w", name, unwrapPath(err))
		}
		whole, err := filepath.Abs(name)
		if err != nil {
			return engine.Source{}, fmt.Errorf("cannot tell where the runbook %s lies: %w", name, err)
		}
		return engine.Source{FS: spec.Under(dir, os.DirFS(dir)), Path: file, File: whole}, nil
	}
	names := shippedNames()
	if slices.Contains(names, name) {
		return engine.Source{FS: spec.Under(shippedDir, runbooks.FS), Path: name + ".yml"}, nil
	}
	hint := spec.DidYouMean(name, names)
	if _, err := os.Stat(name); err == nil {
		hint = fmt.Sprintf("write ./%s for the file", name)
	} else if looksLikeRun(name) {
		hint = "for a run, " + commandLine(stateDir, "runs", "show", name)
	} else if hint == "" {
		hint = "shipped are " + strings.Join(names, ", ") + "; a path ends in .yml or begins with ./ or /"
	}
	return engine.Source{}, fmt.Errorf("cannot find the runbook %q: none of that name is shipped\n    hint: %s", name, hint)
}

// otherBooks are those for which a file of -e may hold values too: the shipped ones, and those beside a book of the call.
func otherBooks(books []engine.Source) []engine.Source {
	var others []engine.Source
	for _, name := range shippedNames() {
		others = append(others, engine.Source{FS: spec.Under(shippedDir, runbooks.FS), Path: name + ".yml"})
	}
	for _, book := range books {
		for _, ext := range []string{"yml", "yaml"} {
			files, _ := fs.Glob(book.FS, path.Join(path.Dir(book.Path), "*."+ext)) // only a malformed pattern is an error
			for _, file := range files {
				others = append(others, engine.Source{FS: book.FS, Path: file})
			}
		}
	}
	return others
}

func isPath(name string) bool {
	ext := path.Ext(name)
	return strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || strings.HasPrefix(name, "/") || ext == ".yml" || ext == ".yaml"
}

// shipped maps the names of the shipped runbooks to their titles. They are the files with a `runbook` key, without .yml; the
// others are parts of them.
func shipped() map[string]string {
	books := map[string]string{}
	_ = fs.WalkDir(runbooks.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path.Ext(p) == ".yml" {
			data, _ := fs.ReadFile(runbooks.FS, p)
			if v, err := spec.LoadValue(p, data); err == nil && v.Get("runbook") != nil {
				books[strings.TrimSuffix(p, ".yml")] = v.Get("runbook").Str
			}
		}
		return nil
	})
	return books
}

func shippedNames() []string { return slices.Sorted(maps.Keys(shipped())) }

// loadBook reads a runbook's structure.
func loadBook(src engine.Source) (*spec.Book, error) {
	all := modules.All()
	names := slices.Sorted(maps.Keys(all))
	return spec.Load(src.FS, src.Path, func(name string) bool { return all[name] != nil }, names)
}
