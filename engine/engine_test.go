package engine_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"runbook/engine"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/inventory"
	"runbook/modules"
)

var update = flag.Bool("update", false, "rewrite the golden sections of the cases")

// recorder keeps the events of a run.
type recorder struct{ events []report.Event }

func (r *recorder) Event(e report.Event) { r.events = append(r.events, e) }

// lines tells what happened, one line per event, in an order that does not depend on which host was faster: hosts
// that run the same task are sorted.
func (r *recorder) lines() string {
	type line struct {
		key  string
		text string
	}
	var out []line
	for _, e := range r.events {
		var text string
		switch e.Kind {
		case report.PlayStart:
			text = fmt.Sprintf("play %s: %s", e.Play, strings.Join(e.Hosts, " "))
		case report.PlayStopped, report.HostLost, report.Warning:
			text = fmt.Sprintf("%s: %s", e.Kind, e.Text)
		case report.TaskEnd:
			text = fmt.Sprintf("%s %s: %s", e.Host, e.Task, e.Result.Status)
			if e.Item != "" {
				text = fmt.Sprintf("%s %s [%s]: %s", e.Host, e.Task, e.Item, e.Result.Status)
			}
			for _, f := range []struct {
				on   bool
				word string
			}{{e.Result.Ignored, "ignored"}, {e.Result.Rescued, "rescued"}, {e.Result.HangsOn != "", "provisional"}, {e.Handler, "handler"}} {
				if f.on {
					text += " " + f.word
				}
			}
			if e.Result.Attempts > 1 {
				text += fmt.Sprintf(" attempts=%d", e.Result.Attempts)
			}
			for _, s := range append([]string{e.Result.Because, e.Result.Msg}, e.Result.Warnings...) {
				if s != "" {
					text += " | " + strings.ReplaceAll(s, "\n", " / ")
				}
			}
			for _, c := range e.Result.Changes {
				text += " + " + c.What
			}
		default:
			continue
		}
		out = append(out, line{e.TaskID + "\x00" + e.Host, text})
	}
	// Within a run of the same task, order by host; the items of one host keep theirs.
	for i := 0; i < len(out); {
		j := i
		task, _, _ := strings.Cut(out[i].key, "\x00")
		for j < len(out) && strings.HasPrefix(out[j].key, task+"\x00") {
			j++
		}
		slices.SortStableFunc(out[i:j], func(a, b line) int { return strings.Compare(a.key, b.key) })
		i = j
	}
	var b strings.Builder
	for _, l := range out {
		b.WriteString(l.text + "\n")
	}
	return b.String()
}

// local connects to nothing but this machine.
func local(ctx context.Context, h *inventory.Host) (transport.Conn, error) {
	if h.Connection.Port == 1 { // a case's way to say: this host is not there
		return nil, &transport.UnreachableError{Host: h.Name, Err: errors.New("connection refused")}
	}
	return transport.Connect(ctx, transport.Config{Name: h.Name, Connection: "local"})
}

// TestCases runs every case of testdata: book.yml and inventory.yml, run as the lines of `steps` say ("run", "check",
// with -e name=value, --limit, --tags), compared with the section `want`.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			runCase(t, file)
		})
	}
}

func runCase(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir, root := t.TempDir(), t.TempDir()
	sections := map[string]string{}
	for _, f := range archive.Files {
		sections[f.Name] = string(f.Data)
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if sections["inventory.yml"] == "" {
		if err := os.WriteFile(filepath.Join(dir, "inventory.yml"), []byte("groups: {web: {hosts: {a: {}, b: {}}}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got strings.Builder
	for _, step := range strings.Split(strings.TrimSpace(sections["steps"]), "\n") {
		fmt.Fprintf(&got, "> %s\n", step)
		got.WriteString(strings.ReplaceAll(runStep(t, dir, root, step), root, "$ROOT"))
	}
	if *update {
		for i, f := range archive.Files {
			if f.Name == "want" {
				archive.Files[i].Data = []byte(got.String())
			}
		}
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(sections["want"], got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func runStep(t *testing.T, dir, root, step string) string {
	inv, err := inventory.Load(filepath.Join(dir, "inventory.yml"))
	if err != nil {
		return err.Error() + "\n"
	}
	words := strings.Fields(step)
	rec := &recorder{}
	job := engine.Job{Inventory: inv, Modules: modules.All(), Reporter: rec, Dial: local, Masker: &secret.Masker{}, Check: words[0] == "check"}
	job.Settings = []engine.Setting{{Name: "root", Value: spec.ParseScalar(root), Origin: "-e"}}
	for i := 1; i < len(words); i++ {
		switch words[i] {
		case "-e":
			i++
			name, value, _ := strings.Cut(words[i], "=")
			job.Settings = append(job.Settings, engine.Setting{Name: name, Value: spec.ParseScalar(value), Origin: "-e", Visible: true})
		case "--limit":
			i++
			job.Limit = words[i]
		case "--tags":
			i++
			job.Tags = strings.Split(words[i], ",")
		case "--skip-tags":
			i++
			job.SkipTags = strings.Split(words[i], ",")
		default:
			job.Books = append(job.Books, engine.Source{FS: os.DirFS(dir), Path: words[i]})
		}
	}
	if len(job.Books) == 0 {
		job.Books = []engine.Source{{FS: os.DirFS(dir), Path: "book.yml"}}
	}
	summary, err := engine.Run(t.Context(), job)
	if err != nil {
		var bad spec.Errors
		if !errors.As(err, &bad) {
			t.Errorf("the error is %T, not spec.Errors", err)
		}
		if len(rec.events) > 0 {
			t.Errorf("bad input, but %d events: something was touched", len(rec.events))
		}
		return err.Error() + "\n"
	}
	text := rec.lines()
	for _, total := range summary.Totals {
		text += fmt.Sprintf("total %s ok=%d changed=%d skipped=%d failed=%d ignored=%d unreachable=%d unknown=%d\n",
			total.Host, total.OK, total.Changed, total.Skipped, total.Failed, total.Ignored, total.Unreachable, total.Unknown)
	}
	return text
}
