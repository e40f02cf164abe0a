package acceptance

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"runbook/acceptance/lab"
	"runbook/engine/report"
)

// linkBook has a task of each kind that a lost connection finds in another state. What it does once only it says in once.
const linkBook = `runbook: link
params:
  root: {type: path, required: true}
  big: {type: path, required: true}
  other: {type: string, required: true}
plays:
  - name: one
    hosts: far
    tasks:
      - name: folder
        file: {path: '{{ root }}/d', state: directory}
      - name: files
        loop: [a, b, c]
        copy: {dest: '{{ root }}/d/{{ item }}', content: "{{ item }}\n"}
        notify: restart
      - name: token
        command: {shell: 'echo token >>{{ root }}/once; echo made >{{ root }}/d/token', creates: '{{ root }}/d/token'}
      - name: number
        command: {argv: [cat, '{{ root }}/d/token'], read: true}
        register: number
      - name: theirs
        become: true
        become_user: '{{ other }}'
        timeout: 20s
        command: {shell: 'echo theirs >>{{ root }}/theirs; echo made >{{ root }}/made', creates: '{{ root }}/made'}
      - name: detached
        detach: true
        timeout: 20s
        command: {shell: 'echo detached >>{{ root }}/once; sleep 0.3; echo made >{{ root }}/d/detached', creates: '{{ root }}/d/detached'}
      - name: big
        transfer: {src_host: near, src: '{{ big }}', dest: '{{ root }}/d/big'}
        register: sent
      - name: written
        template: {src: link.tmpl, dest: '{{ root }}/d/written'}
        notify: restart
      - name: bare
        timeout: 20s
        command: {shell: 'echo bare {{ number.stdout }} >>{{ root }}/once'}
        register: bare
      - name: last
        line: {path: '{{ root }}/d/a', line: 'number {{ number.stdout }} {{ bare.rc }} {{ sent.size }}'}
    handlers:
      - name: restart
        command: {shell: 'echo restarted >>{{ root }}/once; : >{{ root }}/d/restarted', creates: '{{ root }}/d/restarted'}
`

// linkSizes are those of the big file: a cut after k bytes needs one that lets so many pass, and no more than that.
var linkSizes = []int64{64 << 10, 6 << 20, 70 << 20}

// linkTasks are those of the book, in order, with how many bytes at least pass before the next one is begun.
var linkTasks = []struct {
	name  string
	bytes int64
}{
	{"folder", 2000}, {"files", 2000}, {"token", 2000}, {"number", 500}, {"theirs", 5000}, {"detached", 10000}, {"big", 10000}, {"written", 3000},
	{"bare", 800}, {"last", 1500}, {"restart", 800},
}

// linkCase is a place where a link is cut.
type linkCase struct {
	end   string // whose link: far, which the tasks are for, or near, which has the big file
	task  string // from whose beginning the bytes are counted; "" is from that of the connection
	after int64
	cut   lab.Cut
	size  int64
}

func (c linkCase) String() string {
	return fmt.Sprintf("%s %s %d %s", c.end, cmp.Or(c.task, "login"), c.after, c.cut)
}

// linkCases are those of RUNBOOK_LINKS: "all", or a few. whole is how many bytes pass in a whole run, by end and size.
func linkCases(t *testing.T, whole map[linkCase]int64) (all []linkCase) {
	random := rand.New(rand.NewPCG(uint64(number(t, "RUNBOOK_CHAOS_SEED", 6)), 2))
	login := func(end string, after int64, cuts ...lab.Cut) {
		for _, size := range linkSizes {
			// Padding, keepalives and what is sent together vary a little.
			if after <= whole[linkCase{end: end, size: size}]*19/20 {
				for _, cut := range cuts {
					all = append(all, linkCase{end: end, after: after, cut: cut, size: size})
				}
				return
			}
		}
		t.Fatalf("no file is so big that %d bytes pass", after)
	}
	task := func(n int, cut lab.Cut) {
		in := linkTasks[n]
		all = append(all, linkCase{end: "far", task: in.name, after: random.Int64N(in.bytes), cut: cut, size: linkSizes[0]})
	}
	switch os.Getenv("RUNBOOK_LINKS") {
	case "all":
		for n := range 27 {
			login("far", 1<<n, lab.Cuts...)
			if n%2 == 0 {
				login("near", 1<<n, lab.Cuts...)
			}
		}
		for n := range linkTasks {
			for _, cut := range lab.Cuts {
				for range 4 {
					task(n, cut)
				}
			}
		}
	case "":
		for i, n := range random.Perm(len(linkTasks)) {
			task(n, lab.Cuts[i%len(lab.Cuts)])
		}
		login("far", 1, lab.Reset)
		login("far", 1<<10, lab.Drop)
		login("far", 1<<21, lab.HalfHost)
		login("near", 1<<21, lab.Finish)
	default:
		t.Fatal(`RUNBOOK_LINKS: neither empty nor "all"`)
	}
	// Those that are waited for for a minute begin first.
	slices.SortStableFunc(all, func(a, b linkCase) int { return slices.Index(lab.Cuts, b.cut) - slices.Index(lab.Cuts, a.cut) })
	return all
}

// TestLinkCuts guards that a connection may end after any number of bytes, in any way. The host is unreachable then, which is found
// within a minute; no task is on record as failed, nor as done that is not; and one resume ends well, with nothing done twice.
// RUNBOOK_LINKS=all is the whole matrix instead of a few cases.
func TestLinkCuts(t *testing.T) {
	t.Parallel()
	l := newLab(t, "voms1")
	field := &linkField{l, l.Host("voms1")}
	field.prepare(t)

	whole, want := map[linkCase]int64{}, map[int64]string{}
	sizes := linkSizes
	if os.Getenv("RUNBOOK_LINKS") == "" {
		sizes = sizes[:2]
	}
	for _, size := range sizes {
		c := field.place(t, 0, size, "far", "near")
		if out := c.call(t, func(report.Event) {}, c.arguments()...); out.code != 0 {
			t.Fatalf("a run whose links are whole ends with exit code %d:\n%s", out.code, out.text)
		}
		for end, link := range c.links {
			whole[linkCase{end: end, size: size}] = link.Passed()
		}
		want[size] = c.tree(t)
		c.leave()
	}
	if !strings.Contains(want[linkSizes[0]], fmt.Sprint("number made 0 ", linkSizes[0])) {
		t.Fatalf("a run whose links are whole leaves\n%s", want[linkSizes[0]])
	}
	t.Logf("bytes that pass in a whole run: %v", whole)

	// Most of them wait: more at the same time than the machine has processors.
	queue := make(chan linkCase)
	cases := linkCases(t, whole)
	go func() {
		defer close(queue)
		for _, one := range cases {
			queue <- one
		}
	}()
	var mu sync.Mutex
	green, slowest, asked, places := 0, time.Duration(0), 0, map[string]int{}
	var workers sync.WaitGroup
	for account := range linkAccounts {
		workers.Go(func() {
			for one := range queue {
				t.Run(one.String(), func(t *testing.T) {
					c := field.place(t, account, one.size, one.end)
					defer c.leave()
					took, where := c.suffer(t, one)
					questions := c.resume(t)
					if got := c.tree(t); got != want[one.size] {
						t.Errorf("cut %s and resumed, it left\n%s\nwant\n%s", where, got, want[one.size])
					}
					if t.Failed() {
						t.Logf("the record:\n%s", told(parsed(t, c.state)))
					}
					mu.Lock()
					defer mu.Unlock()
					if !t.Failed() {
						green++
					}
					slowest = max(slowest, took)
					places[where]++
					asked += questions
				})
			}
		})
	}
	workers.Wait()
	// What the cut connections left behind ends with them.
	if left, err := field.host.Exec(t.Context(), "sh", "-c", idle); err != nil {
		t.Errorf("this is left: %s", left)
	}
	var list []string
	for _, where := range slices.Sorted(maps.Keys(places)) {
		list = append(list, fmt.Sprintf("%3d  %s", places[where], where))
	}
	t.Logf("%d of %d: cut, found after %.1f s at most, resumed once, and all was well; a person was asked %d times. Where they were cut:\n%s",
		green, len(cases), slowest.Seconds(), asked, strings.Join(list, "\n"))
}

// linkAccounts is how many cases there are at the same time. Each has a login of its own, for there is one lock for each.
const linkAccounts = 10

// linkField is a host for many runs.
type linkField struct {
	*lab.Lab
	host *lab.Host
}

// prepare makes, on the host, a login for each case at a time and another user for it to become, and the big files.
func (f *linkField) prepare(t *testing.T) {
	t.Helper()
	script := fmt.Sprintf(`
for n in $(seq 0 %d); do
	useradd -m -s /bin/bash link$n
	useradd -m -s /bin/bash other$n
	install -d -m 700 -o link$n -g link$n /home/link$n/.ssh
	install -m 600 -o link$n -g link$n ~root/.ssh/authorized_keys /home/link$n/.ssh/
	echo "link$n ALL=(other$n) NOPASSWD: ALL" >>/etc/sudoers.d/link
done
echo MaxStartups 200 >/etc/ssh/sshd_config.d/link.conf # connections that are cut before they log in count
systemctl reload ssh
mkdir /srv/link`, linkAccounts-1)
	if _, err := f.host.Exec(t.Context(), "sh", "-ec", script); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range linkSizes {
		data := make([]byte, size)
		_, _ = random.Read(data)
		if err := os.WriteFile(filepath.Join(f.host.Root(), fmt.Sprintf("srv/link/big-%d", size)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// linkPlace is a place for one run whose link is cut.
type linkPlace struct {
	linkField
	dir, state string
	root       string // on the host
	here       string // the same, from here
	account    int
	size       int64
	links      map[string]*lab.Link // by end
}

// place makes one, for an account and a size of the big file, with links to these ends.
func (f *linkField) place(t *testing.T, account int, size int64, ends ...string) *linkPlace {
	t.Helper()
	dir := t.TempDir()
	here, err := os.MkdirTemp(filepath.Join(f.host.Root(), "srv/link"), "root")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(here, 0o777); err != nil {
		t.Fatal(err)
	}
	c := &linkPlace{linkField: *f, dir: dir, state: filepath.Join(dir, "state"), here: here, root: "/srv/link/" + filepath.Base(here),
		account: account, size: size, links: map[string]*lab.Link{}}
	for _, end := range ends {
		if c.links[end], err = f.Link(f.host); err != nil {
			t.Fatal(err)
		}
	}
	c.write(t, "book.yml", linkBook)
	c.write(t, "link.tmpl", strings.Repeat("a line of a template: {{ number.stdout }}\n", 50))
	c.inventory(t, c.links)
	return c
}

func (c *linkPlace) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// inventory has the one host twice, once for the tasks and once for the big file, by way of links where there are such.
func (c *linkPlace) inventory(t *testing.T, links map[string]*lab.Link) {
	t.Helper()
	text := fmt.Sprintf("groups:\n  all:\n    user: link%d\n    identity_file: %s\n    known_hosts: %s\n    ssh_config: none\n    hosts:\n", c.account, c.Identity(), c.KnownHosts())
	for _, end := range []string{"far", "near"} {
		address := c.host.Address()
		if link := links[end]; link != nil {
			address = link.Address
		}
		text += fmt.Sprintf("      %s: {address: %s}\n", end, address)
	}
	c.write(t, "inv.yml", text)
}

// leave ends what was cut, and forgets the place.
func (c *linkPlace) leave() {
	for _, link := range c.links {
		link.Close()
	}
	_ = os.RemoveAll(c.here)
}

func (c *linkPlace) arguments() []string {
	return []string{"run", "book.yml", "-i", "inv.yml", "-e", "root=" + c.root, "-e", fmt.Sprint("big=/srv/link/big-", c.size), "-e", fmt.Sprint("other=other", c.account)}
}

// linkCall is what a call of the program said.
type linkCall struct {
	code   int
	ended  time.Time
	events []report.Event
	text   string
}

// call calls the program, and tells each event.
func (c *linkPlace) call(t *testing.T, tell func(report.Event), args ...string) (out linkCall) {
	t.Helper()
	cmd := c.Command(t.Context(), program, append(args, "--output", "json", "--state-dir", c.state)...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = c.dir, &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewReader(stdout); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var e report.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("the run says what is no event: %v: %s", err, line)
			continue
		}
		tell(e)
		out.events = append(out.events, e)
		if e.Result != nil && (e.Result.Status == report.Failed || e.Result.Status == report.Unreachable) {
			fmt.Fprintf(&said, "%s: %q %s: %s\n", e.Host, e.Task, e.Result.Status, e.Result.Msg)
		}
	}
	err = cmd.Wait()
	out.ended = time.Now()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	out.code, out.text = cmd.ProcessState.ExitCode(), stderr.String()+said.String()
	return out
}

// suffer runs the book while its link is cut. It returns how long that took to be found, and what was under way.
func (c *linkPlace) suffer(t *testing.T, one linkCase) (took time.Duration, where string) {
	t.Helper()
	link := c.links[one.end]
	armed := one.task == ""
	if armed {
		link.CutAfter(one.after, one.cut)
	}
	out := c.call(t, func(e report.Event) {
		if !armed && e.Kind == report.TaskStart && e.Task == one.task {
			armed = true
			link.CutAfter(one.after, one.cut)
		}
	}, c.arguments()...)
	when, cut := link.WasCut()
	if !cut {
		t.Fatalf("the run was through, with exit code %d, before its link was cut:\n%s", out.code, out.text)
	}
	took = out.ended.Sub(when)
	where = "before the first task"
	unreachable := 0
	for _, e := range out.events {
		switch {
		case e.Kind == report.TaskStart:
			where = "at " + e.Task
		case e.Kind == report.TaskEnd && e.Result.Status == report.Unreachable:
			unreachable++
		case e.Kind == report.TaskEnd && e.Result.Status == report.Failed:
			t.Errorf("cut %s: %q failed: %s", where, e.Task, e.Result.Msg)
		}
	}
	if out.code != 1 || unreachable == 0 {
		t.Errorf("cut %s, the run ends with exit code %d and %d tasks that could not be reached:\n%s", where, out.code, unreachable, out.text)
	}
	if took > time.Minute {
		t.Errorf("cut %s, the run ends after %.1f s:\n%s", where, took.Seconds(), out.text)
	}
	for _, r := range parsed(t, c.state) {
		switch {
		case r.End == nil:
		case r.End.Status == string(report.Failed):
			t.Errorf("cut %s: on record is that %q failed: %s", where, r.End.Name, r.End.Result)
		case r.End.Status == string(report.Changed) && !c.did(t, r.End.Name, r.End.Item):
			t.Errorf("cut %s: on record is that %q was done, which it was not", where, r.End.Name)
		}
	}
	return took, where
}

// resume goes on without the link, and answers what is asked by what is on the host. It returns how often it was asked.
func (c *linkPlace) resume(t *testing.T) (asked int) {
	t.Helper()
	c.inventory(t, nil)
	for args := []string{"resume"}; ; asked++ {
		out := c.call(t, func(report.Event) {}, args...)
		if out.code == 0 {
			return asked
		}
		question := underWay.FindStringSubmatch(out.text)
		if out.code != 4 || question == nil || asked > 0 {
			t.Fatalf("resume ends with exit code %d:\n%s", out.code, out.text)
		}
		if question[1] != "far/bare" {
			t.Errorf("asked about %q, which check can tell", question[1])
		}
		args = []string{"resume", "--rerun", question[1]}
		if c.did(t, strings.TrimPrefix(question[1], "far/"), "") {
			args[1] = "--mark-done"
		}
	}
}

// did is whether a task was done; of a loop, one of its items.
func (c *linkPlace) did(t *testing.T, task, item string) bool {
	t.Helper()
	has := func(file, text string) bool {
		data, err := os.ReadFile(filepath.Join(c.here, file))
		return err == nil && strings.Contains(string(data), text)
	}
	switch task {
	case "folder":
		info, err := os.Stat(filepath.Join(c.here, "d"))
		return err == nil && info.IsDir()
	case "files":
		name := map[string]string{"0": "a", "1": "b", "2": "c"}[item]
		return name != "" && has("d/"+name, name+"\n")
	case "token":
		return has("once", "token\n") && has("d/token", "made\n")
	case "number":
		return true
	case "theirs":
		return has("theirs", "theirs\n") && has("made", "made\n")
	case "detached":
		return has("once", "detached\n") && has("d/detached", "made\n")
	case "big":
		return fileDigest(filepath.Join(c.here, "d/big")) == fileDigest(filepath.Join(c.host.Root(), fmt.Sprint("srv/link/big-", c.size)))
	case "written":
		return has("d/written", "made\n")
	case "bare":
		return has("once", "bare made\n")
	case "last":
		return has("d/a", "number made 0")
	case "restart":
		return has("once", "restarted\n") && has("d/restarted", "")
	}
	t.Fatalf("no task is called %q", task)
	return false
}

// fileDigest is that of a file, or why there is none.
func fileDigest(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// tree is what is under the root.
func (c *linkPlace) tree(t *testing.T) string {
	t.Helper()
	return treeOf(t, c.here, func(name, path string) (string, error) {
		if name == "d/big" {
			return fileDigest(path) + "\n", nil
		}
		data, err := os.ReadFile(path)
		return string(data), err
	})
}
