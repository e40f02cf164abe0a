package acceptance

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"runbook/acceptance/lab"
	"runbook/engine/report"
)

// insertCuts tries to insert dumps that were cut off, over data that would be lost: with the checksum of the whole one, its size, or neither.
const insertCuts = `runbook: dumps that were cut off
params:
  databases: {type: list, required: true, help: as in secrets.yml}
  replication_password: {secret: true, required: true, help: as in secrets.yml}
plays:
  - hosts: slave
    vars: {replicated: '{{ concat(databases, ["man06_canary"]) }}'}
    tasks:
      - name: with the checksum
        loop: [%[1]s]
        ignore_errors: true
        mysql_import: {src: '/run/cuts/{{ item }}', databases: '{{ replicated }}', sha256: %[2]s, overwrite: true}
      - name: with the size
        loop: [%[1]s]
        ignore_errors: true
        mysql_import: {src: '/run/cuts/{{ item }}', databases: '{{ replicated }}', size: %[3]d, overwrite: true}
      - name: with neither
        loop: [%[1]s]
        ignore_errors: true
        mysql_import: {src: '/run/cuts/{{ item }}', databases: '{{ replicated }}', overwrite: true}
`

// TestDumpCuts guards that no part of a dump is ever inserted, wherever the dump was cut off, and that the server it was meant for stays as it
// is. RUNBOOK_DUMP_CUTS is at how many offsets; from 400 on every boundary of a statement is among them.
func TestDumpCuts(t *testing.T) {
	t.Parallel()
	p := newPair(t, "voms1", "voms2")
	for _, h := range p.Hosts() {
		if err := h.Seed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if v, code := p.runbook(t, "run", "man06/master"); code != 0 {
		t.Fatalf("man06/master ends with exit code %d: %q", code, v.with(report.Failed))
	}
	const dump = "/var/lib/runbook/man06/dump.sql"
	read := func() []byte {
		t.Helper()
		text, err := p.Host("voms1").Exec(t.Context(), "cat", dump)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(text)
	}
	whole := read()
	offsets, boundaries, tried := dumpCuts(t, whole)
	t.Logf("a dump of %d bytes with %d boundaries of statements is cut at %d offsets, %d of them boundaries", len(whole), boundaries, len(offsets), tried)

	slave := p.Host("voms2")
	feed := slave.Command(t.Context(), "sh", "-ec", `mkdir /run/cuts; cat >/run/whole; for at; do head -c "$at" /run/whole >"/run/cuts/$at"; done; wc -c </run/whole`, "cuts")
	for _, at := range offsets {
		feed.Args = append(feed.Args, strconv.Itoa(at))
	}
	feed.Stdin = bytes.NewReader(whole)
	if out, err := feed.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(len(whole)) {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := slave.Fingerprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, at := range offsets {
		list = append(list, strconv.Itoa(at))
	}
	book := fmt.Sprintf(insertCuts, strings.Join(list, ", "), fmt.Sprintf("%x", sha256.Sum256(whole)), len(whole))
	p.write(t, "cuts.yml", book)
	begin := time.Now()
	v, code := p.runbook(t, "run", "cuts.yml")
	took := time.Since(begin)
	refused := 0
	ways := []string{"with the checksum", "with the size", "with neither"}
	for _, at := range offsets {
		good := true
		for _, way := range ways {
			name := fmt.Sprintf("voms2.example.org: %s [%d]", way, at)
			if r := v[name]; r.Status != report.Failed || !strings.Contains(r.Msg, "the dump is not usable, nothing was touched: ") {
				t.Errorf("cut at %d of %d, after %q, %s: %s %s", at, len(whole), whole[max(0, at-60):at], way, r.Status, r.Msg)
				good = false
			}
		}
		if good {
			refused++
		}
	}
	if code != 0 || len(v) != len(ways)*len(offsets) {
		t.Errorf("the run ends with exit code %d after %d tasks", code, len(v))
	}
	after, err := slave.Fingerprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := before.Diff(after); len(diff) > 0 {
		t.Errorf("refused imports changed the host:\n%s", strings.Join(diff[:min(len(diff), 30)], "\n"))
	}
	if left, err := slave.Exec(t.Context(), "find", "/var/lib/runbook", "/tmp", "-mindepth", "1", "(", "-path", "/var/lib/runbook/jobs/*", "-o", "-name", "*runbook*", ")"); left != "" {
		t.Errorf("refused imports left this: %s, %v", left, err)
	}
	t.Logf("%d of %d: cut off, tried with checksum, size and neither, and refused each time; in %.0f s", refused, len(offsets), took.Seconds())

	// The whole one goes in all the same, and so does one whose record was lost or which was cut off on the master: a new one is taken there.
	if out, err := slave.Exec(t.Context(), "sh", "-ec", `rm -r /run/cuts; mkdir /run/cuts; mv /run/whole "/run/cuts/$1"`, "whole", strconv.Itoa(len(whole))); err != nil {
		t.Fatal(out, err)
	}
	head, _, _ := strings.Cut(book, "      - name: ")
	for i, way := range ways {
		task := regexp.MustCompile(`(?s)      - name: ` + way + `\n.*?overwrite: true\}\n`).FindString(book)
		p.write(t, "whole.yml", head+strings.Replace(task, strings.Join(list, ", "), strconv.Itoa(len(whole)), 1))
		want := report.Changed
		if i > 0 {
			want = report.OK // it was inserted the time before
		}
		if v, code := p.runbook(t, "run", "whole.yml"); code != 0 || len(v.with(want)) != 1 {
			t.Errorf("the whole dump, %s: exit code %d: %v", way, code, v)
		}
	}
	for _, spoil := range []string{"rm dump.sql.json", "truncate -s -1 dump.sql.json", "truncate -s -3 dump.sql.json", "touch -r dump.sql /run/then; truncate -s -1 dump.sql; touch -r /run/then dump.sql"} {
		if out, err := p.Host("voms1").Exec(t.Context(), "sh", "-ec", "cd /var/lib/runbook/man06; "+spoil); err != nil {
			t.Fatal(out, err)
		}
		v, code := p.runbook(t, "run", "man06/master")
		whole := spoil == "truncate -s -1 dump.sql.json" // all but its last newline: it says all
		if taken := v["voms1.example.org: Step 8: dump the databases"].Status == report.Changed; code != 0 || taken == whole {
			t.Errorf("after %q man06/master ends with exit code %d, and a new dump is taken: %t", spoil, code, taken)
		}
		if text := read(); !bytes.Contains(text[len(text)-60:], []byte("\n-- Dump completed on ")) || text[len(text)-1] != '\n' {
			t.Errorf("after %q man06/master leaves a dump that ends with %q", spoil, text[len(text)-60:])
		}
	}
}

// dumpCuts chooses where a dump is cut off, in order; it says how many boundaries of statements the dump has, and how many are among the offsets.
func dumpCuts(t *testing.T, dump []byte) (offsets []int, boundaries, tried int) {
	t.Helper()
	wanted := number(t, "RUNBOOK_DUMP_CUTS", 24)
	random := rand.New(rand.NewPCG(uint64(number(t, "RUNBOOK_CHAOS_SEED", 6)), 3))
	trailer := bytes.LastIndex(dump, []byte("-- Dump completed"))
	if trailer < 0 {
		t.Fatal("the dump has no trailer")
	}
	var ends []int
	for _, m := range regexp.MustCompile(`;\n`).FindAllIndex(dump, -1) {
		ends = append(ends, m[1])
	}
	chosen := map[int]bool{}
	choose := func(list ...int) {
		for _, at := range list {
			if at >= 0 && at < len(dump) && len(chosen) < wanted {
				chosen[at] = true
			}
		}
	}
	choose(0, 1, len(dump)-1, len(dump)-2, trailer-1, trailer, trailer+1, trailer+len("-- Dump completed"), trailer+len("-- Dump completed on "), ends[len(ends)-1])
	if wanted >= 400 {
		choose(ends...)
		for at := trailer; at < len(dump); at++ {
			choose(at)
		}
	} else {
		for range wanted / 2 {
			choose(ends[random.IntN(len(ends))])
		}
	}
	for len(chosen) < min(wanted, len(dump)) {
		choose(random.IntN(len(dump)))
	}
	for at := range chosen {
		offsets = append(offsets, at)
		if slices.Contains(ends, at) {
			tried++
		}
	}
	slices.Sort(offsets)
	return offsets, len(ends), tried
}

// fetch fetches a large file from voms1 to voms2.
const fetch = `runbook: a file is fetched
params:
  databases: {type: list, required: true, help: as in secrets.yml}
  replication_password: {secret: true, required: true, help: as in secrets.yml}
plays:
  - hosts: slave
    tasks:
      - name: fetch it
        transfer: {src_host: voms1.example.org, src: %[1]s, dest: %[2]s}
`

// TestTransferCuts guards that a file whose transfer is cut off never appears under its name, nor harms one that is there, and that one resume
// fetches it whole. RUNBOOK_TRANSFER_CUTS is how often.
func TestTransferCuts(t *testing.T) {
	t.Parallel()
	p := newPair(t, "voms1", "voms2")
	const size = 48 << 20
	src, dest := "/srv/"+p.ID+".source", "/srv/"+p.ID+".fetched"
	if out, err := p.Host("voms1").Exec(t.Context(), "sh", "-ec", `head -c "$1" /dev/urandom >"$2"; sha256sum <"$2"`, "make", strconv.Itoa(size), src); err != nil {
		t.Fatal(out, err)
	}
	sums := func(h *lab.Host, file string) string {
		t.Helper()
		out, err := h.Exec(t.Context(), "sh", "-c", `[ ! -e "$1" ] || sha256sum <"$1"`, "sum", file)
		if err != nil {
			t.Fatal(out, err)
		}
		return strings.TrimSpace(out)
	}
	want := sums(p.Host("voms1"), src)
	p.write(t, "fetch.yml", fmt.Sprintf(fetch, src, dest))
	pid, err := p.Host("voms2").PID()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join("/proc", strconv.Itoa(pid), "root")
	part := "/srv/." + filepath.Base(dest) + ".part"

	ways := []struct {
		what, host string
		command    string // how the command lines of those that are killed begin, or what they hold
	}{
		{"what sends", "voms1", "cat\x00--\x00" + src},
		{"what receives", "voms2", part},
		{"the login of the sender", "voms1", "sshd: root"},
		{"the login of the receiver", "voms2", "sshd: root"},
		{"the program", "", ""},
	}
	rounds := number(t, "RUNBOOK_TRANSFER_CUTS", len(ways))
	random := rand.New(rand.NewPCG(uint64(number(t, "RUNBOOK_CHAOS_SEED", 6)), 4))
	good := 0
	for i := range rounds {
		way := ways[i%len(ways)]
		// What is later might be through before it is cut off.
		at := int64(0.8 * size * (float64(i) + random.Float64()) / float64(rounds))
		old := ""
		if i%2 == 1 {
			old = "old"
		}
		ok := t.Run(fmt.Sprintf("%d %s is killed at %d KB", i+1, way.what, at>>10), func(t *testing.T) {
			var said bytes.Buffer
			var before, state string
			var come int64
			var code int
			cut := func(attempt int) bool { // false if it was through before
				if out, err := p.Host("voms2").Exec(t.Context(), "sh", "-ec", `rm -f "$1" "$3"; [ -z "$2" ] || printf %s "$2" >"$1"`, "lay", dest, old, part); err != nil {
					t.Fatal(out, err)
				}
				before = sums(p.Host("voms2"), dest)
				state = filepath.Join(p.dir, fmt.Sprintf("state%d-%d", i, attempt))
				said.Reset()
				cmd := p.Command(t.Context(), program, "run", "-i", "inventory.yml", "-e", "@secrets.yml", "--state-dir", state, "fetch.yml")
				cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, &said, &said
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				come = -1
				for come < at {
					info, err := os.Stat(root + part)
					if err == nil {
						come = info.Size()
					} else if !errors.Is(err, fs.ErrNotExist) {
						t.Fatal(err)
					}
					if info, err := os.Stat(root + dest); err == nil && info.Size() != int64(len(old)) && info.Size() != size {
						t.Fatalf("%d bytes of the file stand under its name", info.Size())
					}
					select {
					case <-ended:
						return false
					default:
					}
				}
				killed := 1
				if way.host == "" {
					_ = cmd.Process.Kill()
				} else {
					killed = kill(t, p.Host(way.host), way.command)
				}
				select {
				case <-ended:
				case <-time.After(2 * time.Minute):
					t.Fatal("two minutes later the run has not ended")
				}
				code = cmd.ProcessState.ExitCode()
				return killed > 0 && code != 0
			}
			for attempt := 1; !cut(attempt); attempt++ {
				if attempt == 5 {
					t.Fatalf("it was through each time before it could be cut off, at last with exit code %d\n%s", code, &said)
				}
			}
			if got := sums(p.Host("voms2"), dest); got != before {
				t.Errorf("a transfer that was cut off leaves %q, want %q", got, before)
			}
			resume := p.Command(t.Context(), program, "resume", "--state-dir", state)
			resume.Dir = p.dir
			if out, err := resume.CombinedOutput(); err != nil {
				t.Errorf("resume: %v\n%s\n%s", err, &said, out)
			}
			if got := sums(p.Host("voms2"), dest); got != want {
				t.Errorf("after resume there is %q, want %q", got, want)
			}
			if _, err := os.Stat(root + part); err == nil {
				t.Error("a part is left after resume")
			}
			t.Logf("cut off at %d KB, exit code %d", come>>10, code)
		})
		if ok {
			good++
		}
	}
	t.Logf("%d of %d transfers that were cut off left nothing under the name, and were fetched whole by one resume", good, rounds)
}

// fullRelayLog guards that a server which waits for room, as MariaDB does for its relay log while it is told where its source is, is not waited
// for without end: the run says which disk is full, verify does not take the pair for a good one, and when there is room one resume ends well. The
// server alone takes a minute to notice.
func fullRelayLog(t *testing.T) {
	t.Parallel()
	p := newPair(t, "voms1", "voms2")
	if err := p.Host("voms1").Seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, code := p.runbook(t, "run", "man06/master"); code != 0 {
		t.Fatalf("man06/master ends with exit code %d: %q", code, v.with(report.Failed))
	}
	slave := p.Host("voms2")
	if out, err := slave.Exec(t.Context(), "sh", "-ec", "mkdir /srv/relay; mount -t tmpfs -o size=4k,mode=0755 tmpfs /srv/relay; chown mysql:mysql /srv/relay"); err != nil {
		t.Fatal(out, err)
	}
	state := filepath.Join(p.dir, "state")
	call := func(args ...string) (string, int, time.Duration) {
		cmd := p.Command(t.Context(), program, append(args, "--state-dir", state)...)
		cmd.Dir = p.dir
		begin := time.Now()
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode(), time.Since(begin)
	}
	out, code, took := call("run", "man06/slave", "-i", "inventory.yml", "-e", "@secrets.yml", "-e", "relay_log=/srv/relay/relay-bin")
	if code != 1 || took > 3*time.Minute || !strings.Contains(out, "cannot point the replica at its source: the server waits for room on a disk: the disk of /srv/relay is full") {
		t.Fatalf("with no room for the relay log man06/slave ends with exit code %d after %v:\n%s", code, took, out)
	}
	t.Logf("given up after %.0f s", took.Seconds())
	if v, code := p.runbook(t, "run", "man06/verify"); code != 1 {
		t.Errorf("man06/verify ends with exit code %d: %v", code, v)
	}
	if out, err := slave.Exec(t.Context(), "mount", "-o", "remount,size=64m", "/srv/relay"); err != nil {
		t.Fatal(out, err)
	}
	out, code, took = call("resume")
	if code != 0 {
		t.Errorf("resume ends with exit code %d:\n%s", code, out)
	}
	t.Logf("resumed in %.0f s", took.Seconds())
	if v, code := p.runbook(t, "run", "man06/verify"); code != 0 {
		t.Errorf("then man06/verify ends with exit code %d: %q", code, v.with(report.Failed))
	}
}

// kill kills the processes of a host whose command lines hold text, and their children.
func kill(t *testing.T, h *lab.Host, text string) (n int) {
	t.Helper()
	init, err := h.PID()
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		command, err := os.ReadFile(line)
		if err != nil || !strings.Contains(string(command), text) {
			continue
		}
		dir := filepath.Dir(line)
		if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || ns != own {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		children, _ := os.ReadFile(filepath.Join(dir, "task", strconv.Itoa(pid), "children"))
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
		for _, child := range strings.Fields(string(children)) {
			if pid, err := strconv.Atoi(child); err == nil && strings.HasPrefix(string(command), "sh\x00") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	return n
}
