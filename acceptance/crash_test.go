package acceptance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"runbook/engine/journal"
)

// crashBook changes files, runs commands that may run once only, registers, loops, rescues and notifies.
const crashBook = `runbook: crash
params: {root: {type: path, required: true}}
plays:
  - name: one
    hosts: all
    tasks:
      - name: folder
        file: {path: '{{ root }}/d', state: directory}
      - name: files
        loop: [a, b]
        copy: {dest: '{{ root }}/d/{{ item }}', content: "{{ item }}\n"}
        notify: restart
      - name: token
        command: {shell: 'echo token >>{{ root }}/once; echo made >{{ root }}/d/token', creates: '{{ root }}/d/token'}
      - name: number
        command: {argv: [cat, '{{ root }}/d/token'], read: true}
        register: number
      - name: try
        block:
          - name: fails
            command: {shell: 'echo tried >>{{ root }}/log; exit 3', creates: '{{ root }}/never'}
        rescue:
          - name: saves
            copy: {dest: '{{ root }}/d/saved', content: "{{ failure.task }}\n"}
      - name: bare
        command: {shell: 'echo {{ number.stdout }} >>{{ root }}/once'}
        register: bare
      - name: last
        line: {path: '{{ root }}/d/a', line: 'number {{ number.stdout }} {{ bare.rc }}'}
    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/log'}
`

// TestCrashPoints guards that a run which is killed at any of its writes, to the record, to the hosts or to the report, is resumed to the
// state that an uninterrupted run leaves, and that nothing is done twice which may be done once only.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") == "true" || os.Getenv("RUNBOOK_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip("needs strace, which kills a run at a chosen system call: ", err)
	}
	whole := newCrash(t)
	writes := whole.run(t, 0)
	want := whole.tree(t)
	if writes < 40 || !strings.Contains(want, "number made 0") {
		t.Fatalf("an uninterrupted run made %d writes and left\n%s", writes, want)
	}
	asked, at := 0, map[int]int{}
	for n := 1; n <= writes; n++ {
		c := newCrash(t)
		c.run(t, n)
		at[strings.Count(c.records(t), "\n")]++
		asked += c.resume(t)
		if got := c.tree(t); got != want {
			t.Fatalf("killed at write %d of %d and resumed, it left\n%s\nwant\n%s\nrecord:\n%s", n, writes, got, want, c.records(t))
		}
	}
	t.Logf("killed at each of %d writes and resumed; a person was asked %d times; records: %v", writes, asked, at)
}

// crash is a place for one run that is killed.
type crash struct{ dir, root, state string }

func newCrash(t *testing.T) *crash {
	t.Helper()
	dir := t.TempDir()
	c := &crash{dir: dir, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	for name, text := range map[string]string{"book.yml": crashBook, "inv.yml": "groups: {all: {connection: local, hosts: {here: {}}}}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(c.root, 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs the book and kills it at its n-th write; 0 does not. It returns how many there were.
func (c *crash) run(t *testing.T, n int) (writes int) {
	t.Helper()
	trace := filepath.Join(c.dir, "trace")
	// With its threads, but without the programs that it starts: these are let go at their execve.
	args := []string{"-f", "-b", "execve", "-qq", "-o", trace, "-e", "trace=write,fdatasync", "-e", "signal=none"}
	if n > 0 {
		args = append(args, "-e", fmt.Sprintf("inject=write:signal=KILL:when=%d", n))
	}
	args = append(args, program, "run", "book.yml", "-i", "inv.yml", "-e", "root="+c.root, "--state-dir", c.state)
	cmd := exec.CommandContext(t.Context(), "strace", args...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	if n == 0 && err != nil {
		t.Fatalf("the run failed: %v\n%s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte("write("))
}

var underWay = regexp.MustCompile(`--rerun '?([^' ]+)'? or --mark-done`)

// resume goes on, if there is anything on record, and answers what is asked by what is on the host. It returns how often it was asked.
func (c *crash) resume(t *testing.T) (asked int) {
	t.Helper()
	runs, err := journal.List(c.state)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"resume", "--state-dir", c.state}
	if len(runs) == 0 || !runs[0].Resumable && runs[0].Status != "done" {
		args = []string{"run", "book.yml", "-i", "inv.yml", "-e", "root=" + c.root, "--state-dir", c.state} // it had not begun
	} else if runs[0].Status == "done" {
		return 0
	}
	for {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = c.dir
		out, err := cmd.CombinedOutput()
		if err == nil {
			return asked
		}
		var exit *exec.ExitError
		question := underWay.FindSubmatch(out)
		if !errors.As(err, &exit) || exit.ExitCode() != 4 || question == nil || asked > 3 {
			t.Fatalf("cannot go on: %v\n%s\n%s", err, out, c.records(t))
		}
		asked++
		answer := "--rerun"
		if task := string(question[1]); c.did(t, task) {
			answer = "--mark-done"
		}
		args = []string{"resume", "--state-dir", c.state, answer, string(question[1])}
	}
}

// did is what a person would find.
func (c *crash) did(t *testing.T, task string) bool {
	t.Helper()
	once, _ := os.ReadFile(filepath.Join(c.root, "once"))
	log, _ := os.ReadFile(filepath.Join(c.root, "log"))
	switch task {
	case "bare":
		return strings.Contains(string(once), "made\n")
	case "restart":
		return strings.Contains(string(log), "restarted\n")
	}
	t.Fatalf("asked about %q, which check can tell", task)
	return false
}

// tree is what is under the root. How often a command that fails was tried is no matter.
func (c *crash) tree(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(c.root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(c.root, path)
		fmt.Fprintf(&b, "%s %v\n", rel, info.Mode())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			b.WriteString(strings.ReplaceAll(string(data), "tried\n", ""))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (c *crash) records(t *testing.T) string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(c.state, "runs", "*.jsonl"))
	var all []byte
	for _, file := range files {
		text, _ := os.ReadFile(file)
		all = append(all, text...)
	}
	return string(all)
}
