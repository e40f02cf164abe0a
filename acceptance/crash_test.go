package acceptance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
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
      - name: long
        detach: true
        command: {shell: 'echo long >>{{ root }}/once'}
        register: long
      - name: last
        when: long.changed
        line: {path: '{{ root }}/d/a', line: 'number {{ number.stdout }} {{ bare.rc }}'}
    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/log'}
`

// TestCrashPoints guards that a run which is killed at any moment of its record, before, in the middle of and after each write, and before
// and after each sync, link and removal, is resumed to the state that an uninterrupted run leaves, and that nothing is done twice which
// may be done once only.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	whole := newCrash(t)
	moments := whole.run(t, 0)
	want := whole.tree(t)
	if len(moments) < 100 || !strings.Contains(want, "number made 0") {
		t.Fatalf("an uninterrupted run had %d moments and left\n%s", len(moments), want)
	}
	kinds, asked := map[string]int{}, 0
	var mu sync.Mutex
	t.Run("killed", func(t *testing.T) {
		for i, what := range moments {
			n := i + 1
			t.Run(fmt.Sprintf("%d %s", n, what), func(t *testing.T) {
				t.Parallel()
				c := newCrash(t)
				if had := c.run(t, n); len(had) != n {
					t.Fatalf("killed at moment %d, a run had %d", n, len(had))
				}
				questions := c.resume(t)
				if got := c.tree(t); got != want {
					t.Errorf("killed at moment %d of %d, %s, and resumed, it left\n%s\nwant\n%s\nrecord:\n%s", n, len(moments), what, got, want, c.records(t))
				}
				c.noJobs(t)
				mu.Lock()
				defer mu.Unlock()
				kinds[what]++
				asked += questions
			})
		}
	})
	t.Logf("killed at each of %d moments and resumed: %v; a person was asked %d times", len(moments), kinds, asked)
}

// crash is a place for one run that is killed.
type crash struct{ dir, root, state, locks string }

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
	// What holds the lock lives a moment longer than the run, and the test.
	var err error
	if c.locks, err = os.MkdirTemp(filepath.Dir(program), "locks"); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs the book and kills it at the n-th moment of its record; 0 does not. It returns what these were.
func (c *crash) run(t *testing.T, n int) (moments []string) {
	t.Helper()
	log := filepath.Join(c.dir, "moments")
	cmd := c.command(t, crashing, "run", "book.yml", "-i", "inv.yml", "-e", "root="+c.root, "--state-dir", c.state)
	cmd.Env = append(cmd.Env, fmt.Sprintf("RUNBOOK_CRASH=%d", n), "RUNBOOK_CRASH_LOG="+log)
	out, err := cmd.CombinedOutput()
	if killed := cmd.ProcessState.ExitCode() < 0; n == 0 && err != nil || n > 0 && !killed {
		t.Fatalf("the run, to be killed at moment %d, ended so: %v\n%s", n, err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// command is a call of the program, which locks this machine for this place only.
func (c *crash) command(t *testing.T, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), "RUNBOOK_LOCK_DIR="+c.locks)
	return cmd
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
		out, err := c.command(t, program, args...).CombinedOutput()
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
		if task := strings.TrimPrefix(string(question[1]), "here/"); c.did(t, task) {
			answer = "--mark-done"
		}
		args = []string{"resume", "--state-dir", c.state, answer, string(question[1])}
	}
}

// noJobs guards that no job of the run is left on the host.
func (c *crash) noJobs(t *testing.T) {
	t.Helper()
	jobs := "/var/lib/runbook/jobs"
	if os.Geteuid() != 0 {
		jobs = filepath.Join(os.Getenv("HOME"), ".local/state/runbook/jobs")
	}
	for _, r := range parsed(t, c.state) {
		if r.Begin == nil || r.Begin.Job == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(jobs, r.Begin.Job)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the job of %q is left on the host (%v)", r.Begin.Name, err)
		}
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
	case "long":
		return strings.Contains(string(once), "long\n")
	case "restart":
		return strings.Contains(string(log), "restarted\n")
	}
	t.Fatalf("asked about %q, which check can tell", task)
	return false
}

// tree is what is under the root. How often a command that fails was tried is no matter.
func (c *crash) tree(t *testing.T) string {
	t.Helper()
	return treeOf(t, c.root, func(_, path string) (string, error) {
		data, err := os.ReadFile(path)
		return strings.ReplaceAll(string(data), "tried\n", ""), err
	})
}

// treeOf tells all that is under a folder: names, modes, and of files what content says of them.
func treeOf(t *testing.T, root string, content func(name, path string) (string, error)) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%s %v\n", name, info.Mode())
		if info.Mode().IsRegular() {
			text, err := content(name, path)
			b.WriteString(text)
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

// TestCrashJobOfOthers guards that the outcome of a job that went on without the program is not taken for that of a task whose arguments are others
// now, which was accepted.
func TestCrashJobOfOthers(t *testing.T) {
	t.Parallel()
	const book = `runbook: job
params: {root: {type: path, required: true}, text: {default: one}}
plays:
  - hosts: all
    tasks:
      - name: long
        detach: true
        command: {shell: 'echo {{ text }} >>{{ root }}/log'}
`
	for n := 1; ; n++ {
		c := newCrash(t)
		c.write(t, "book.yml", book)
		cmd := c.command(t, crashing, "run", "book.yml", "-i", "inv.yml", "-e", "root="+c.root, "--state-dir", c.state)
		cmd.Env = append(cmd.Env, fmt.Sprintf("RUNBOOK_CRASH=%d", n))
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Fatalf("no moment between the job and its end:\n%s", out)
		}
		if log, _ := os.ReadFile(filepath.Join(c.root, "log")); string(log) != "one\n" || strings.Contains(c.records(t), `"kind":"end"`) {
			continue
		}
		resume := []string{"resume", "--state-dir", c.state, "--accept-changes", "-e", "text=two"}
		out, _ := c.command(t, program, resume...).CombinedOutput()
		if log, _ := os.ReadFile(filepath.Join(c.root, "log")); string(log) != "one\n" || !underWay.Match(out) {
			t.Errorf("killed at moment %d: the log has %q\n%s", n, log, out)
		}
		out, err := c.command(t, program, append(resume, "--mark-done", "here/long")...).CombinedOutput()
		if log, _ := os.ReadFile(filepath.Join(c.root, "log")); err != nil || string(log) != "one\ntwo\n" {
			t.Errorf("killed at moment %d, and answered: the log has %q: %v\n%s", n, log, err, out)
		}
		return
	}
}
