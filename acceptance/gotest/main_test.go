package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The real go test of a small module: its format is not ours to assume.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"good/good_test.go": `package good
import "testing"
func TestGood(t *testing.T) { t.Log("quiet") }
func TestSkipped(t *testing.T) { t.Run("sub", func(t *testing.T) { t.Skip("no such machine") }) }
`,
		"bad/bad_test.go": `package bad
import "testing"
func TestBad(t *testing.T) { t.Error("loud") }
`,
		"broken/broken_test.go": "package broken\nfunc f() { undefined() }\n",
		"dies/dies_test.go": `package dies
import ("os"; "testing")
func TestDies(t *testing.T) { t.Log("last words"); os.Exit(7) }
`,
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	gotest := filepath.Join(dir, "gotest")
	if out, err := exec.Command("go", "build", "-o", gotest, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(env string, args ...string) (string, int) {
		cmd := exec.Command(gotest, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "RUNBOOK_NO_SKIP="+env)
		out, err := cmd.CombinedOutput()
		if _, ok := err.(*exec.ExitError); err != nil && !ok {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}

	out, code := run("", "./good")
	for _, want := range []string{"ok  \tm/good\t", "Skipped, 1:\n  m/good TestSkipped/sub: good_test.go:4: no such machine\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if code != 0 || strings.Contains(out, "quiet") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if out, code := run("1", "./good"); code != 1 || !strings.Contains(out, "Nothing may be skipped") {
		t.Errorf("exit code %d though a test was skipped:\n%s", code, out)
	}
	out, code = run("", "./...")
	for _, want := range []string{"loud", "FAIL\tm/bad\t", "undefined: undefined", "FAIL\tm/broken [build failed]", "last words", "FAIL\tm/dies\t", "ok  \tm/good\t"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
}
