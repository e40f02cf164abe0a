package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sirupsen/logrus"

	"runbook/engine"
	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/modules"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"runbook": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector lets every process wait a second otherwise
			// All scripts work on this machine, at the same time.
			locks := filepath.Join(env.WorkDir, ".locks")
			env.Setenv("RUNBOOK_LOCK_DIR", locks)
			return os.Mkdir(locks, 0o755)
		},
	})
}

// exits CODE COMMAND... runs a command that must end with the code; stdout and stderr then look at its output.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func TestExitCode(t *testing.T) {
	failed := []report.Total{{Host: "a", Failed: 1}}
	drift := []report.Total{{Host: "a", Changed: 1}}
	unknown := []report.Total{{Host: "a", Unknown: 1}}
	for _, test := range []struct {
		name    string
		summary engine.Summary
		check   bool
		want    int
	}{
		{"all ok", engine.Summary{Totals: []report.Total{{Host: "a", OK: 3, Skipped: 1, Ignored: 1}}}, true, exitDone},
		{"changed by a run", engine.Summary{Totals: drift}, false, exitDone},
		{"would change", engine.Summary{Totals: drift}, true, exitDrift},
		{"unknown", engine.Summary{Totals: unknown}, true, exitDrift},
		{"failed", engine.Summary{Totals: failed}, false, exitFailed},
		{"unreachable", engine.Summary{Totals: []report.Total{{Host: "a", Unreachable: 1}}}, false, exitFailed},
		{"failed and drift", engine.Summary{Totals: append(failed, drift...)}, true, exitFailed},
		{"play stopped", engine.Summary{Stopped: true}, false, exitFailed},
		{"interrupted after a failure", engine.Summary{Totals: failed, Interrupted: true}, false, exitInterrupted},
	} {
		if got := exitCode(test.summary, test.check); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
	for code := exitDone; code <= exitInterrupted; code++ {
		if !strings.Contains(exitCodesHelp, "\n  "+strconv.Itoa(code)+"  ") {
			t.Errorf("the help topic does not tell exit code %d", code)
		}
	}
}

// TestDocs asserts that docs/ is what the commands and the modules' comments say. `make doc` brings it up to date.
func TestDocs(t *testing.T) {
	pages := cliPages(newRoot())
	more, err := modulePages("../../modules", modules.All())
	if err != nil {
		t.Fatal(err)
	}
	for name, page := range more {
		pages[name] = page
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join("../../docs", name))
		if err != nil || string(got) != want {
			t.Errorf("docs/%s is not up to date (run make doc): %v", name, err)
		}
	}
	for _, dir := range []string{"cli", "modules"} {
		files, err := filepath.Glob(filepath.Join("../../docs", dir, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if pages[dir+"/"+filepath.Base(file)] == "" {
				t.Errorf("%s describes what is no more (run make doc)", file)
			}
		}
	}
}

// sample is a module for the test of the generated page.
//
// It does nothing, on two lines
// of comment.
//
//	name: Do nothing
//	sample: {path: /etc/x}
type sample struct {
	base
	// Path of the file | directory.
	Path string `yaml:"path" required:"true" short:"true"`
	// What it is.
	State string `yaml:"state" choices:"file,directory"`
}

type base struct {
	// Password of the account.
	Password secret.Secret `yaml:"password"`
}

func (*sample) Check(context.Context, *module.Host) (module.Plan, error) { return module.Plan{}, nil }
func (*sample) Apply(context.Context, *module.Host, module.Plan) (module.Values, error) {
	return nil, nil
}
func (*sample) Returns() []module.Return {
	return []module.Return{{Name: "size", Type: "int", Help: "its size"}}
}

func TestModulePage(t *testing.T) {
	source := t.TempDir()
	data, err := os.ReadFile("main_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "sample.go"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	pages, err := modulePages(source, map[string]module.Factory{"sample": func() module.Module { return &sample{State: "file"} }})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/sample.md")
	if err != nil {
		t.Fatal(err)
	}
	if got := pages["modules/sample.md"]; got != string(want) {
		t.Errorf("got:\n%s", got)
	}
	if index := pages["modules/README.md"]; !strings.Contains(index, "- [sample](sample.md): Is a module for the test of the generated page\n") {
		t.Errorf("index:\n%s", index)
	}
}

func TestLogMasks(t *testing.T) {
	masker := &secret.Masker{}
	masker.Add(secret.New("correct horse"))
	var out bytes.Buffer
	log := newLogger(&out, 2, masker)
	log.WithField("host", "voms1 correct horse").Debug("said correct horse \x1b[2J")
	log.WithError(errors.New("no correct horse")).Warn("failed")
	if text := out.String(); strings.Contains(text, "horse") || strings.Contains(text, "\x1b") || strings.Count(text, "***") != 3 {
		t.Errorf("the log says %q", text)
	}
	for verbose, want := range []logrus.Level{logrus.WarnLevel, logrus.InfoLevel, logrus.DebugLevel, logrus.DebugLevel} {
		if got := newLogger(io.Discard, verbose, masker).GetLevel(); got != want {
			t.Errorf("-v times %d logs %s", verbose, got)
		}
	}
}

func TestVersionText(t *testing.T) {
	info := &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}}
	if got := versionText(info); got != "devel 0123456789ab modified" {
		t.Error(got)
	}
	if got := versionText(nil); got != "unknown" {
		t.Error(got)
	}
}
