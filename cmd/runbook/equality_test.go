package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"runbook/engine"
	"runbook/engine/report"
	"runbook/engine/secret"
	"runbook/engine/spec"
	"runbook/engine/transport"
	"runbook/inventory"
	"runbook/modules"
)

// A check can be believed: what it says is what a run does. The tests here hold random runbooks to it, each with a random tree below a
// temporary root: check, run, check. What a verdict of a check promises of the run that follows it at once:
//
//	would change   it changes. A command may fail instead: that it would run is certain, not that it succeeds
//	ok             it is ok. A command that reads what is still to be changed, and a wait that is expected to end, may fail instead
//	skipped        it is skipped
//	failed         it fails
//	unknown        anything, except that what only reads changes something
//
// A verdict that hangs on a command which does not declare what it writes (and only that) is provisional: it promises that much if the command
// leaves alone what the task is about. Beyond the verdicts: the check leaves the tree as it was to the last time stamp, the run changes nothing
// that the check has not announced, and a second check finds nothing to do but acts, and what tasks of one book do to each other.

// verdict is one event at the end of a task.
type verdict struct {
	key, task string
	result    report.Result
}

type verdicts struct {
	list    []verdict
	context string // the last task that is no handler: handlers run in its wake
	seen    map[string]int
}

func (v *verdicts) Event(e report.Event) {
	if e.Kind != report.TaskEnd {
		return
	}
	key := fmt.Sprintf("%s [%s]", e.Task, e.Item)
	if e.Handler {
		key += " after " + v.context
	} else {
		v.context = e.Task
	}
	v.seen[key]++
	if n := v.seen[key]; n > 1 {
		key += fmt.Sprintf(" #%d", n)
	}
	v.list = append(v.list, verdict{key, e.Task, *e.Result})
}

func (v *verdicts) find(key string) (verdict, bool) {
	i := slices.IndexFunc(v.list, func(one verdict) bool { return one.key == key })
	if i < 0 {
		return verdict{}, false
	}
	return v.list[i], true
}

func (v verdict) String() string {
	text := fmt.Sprintf("%s: %s", v.key, v.result.Status)
	for _, s := range append([]string{v.result.Because, v.result.Msg}, v.result.Warnings...) {
		if s != "" {
			text += " | " + strings.ReplaceAll(s, "\n", " / ")
		}
	}
	for _, c := range v.result.Changes {
		text += " + " + c.What
	}
	if v.result.HangsOn != "" {
		text += " | hangs on " + v.result.HangsOn
	}
	return text
}

func play(t testing.TB, b *randomBook, root string, check bool) (*verdicts, engine.Summary) {
	t.Helper()
	inv, err := inventory.Load("testdata/equality.yml")
	if err != nil {
		t.Fatal(err)
	}
	seen := &verdicts{seen: map[string]int{}}
	summary, err := engine.Run(t.Context(), engine.Job{
		Books: []engine.Source{{FS: b.files, Path: "book.yml"}}, Inventory: inv, Modules: modules.All(), Reporter: seen, Masker: &secret.Masker{}, Check: check,
		Settings: []engine.Setting{{Name: "root", Value: spec.ParseScalar(root), Origin: "-e"}},
		Dial: func(ctx context.Context, h *inventory.Host) (transport.Conn, error) {
			return transport.Connect(ctx, transport.Config{Name: h.Name, Connection: "local"})
		},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return seen, summary
}

// trial is one runbook, checked, run and checked.
type trial struct {
	*randomBook
	before, run, after *verdicts
	problems           []string
	parted             string // the task at which the run took another way than could be foreseen
}

func (tr *trial) problem(format string, args ...any) {
	tr.problems = append(tr.problems, fmt.Sprintf(format, args...))
}

func newTrial(t testing.TB, seed uint64) *trial {
	t.Helper()
	tr := &trial{randomBook: newRandomBook(seed)}
	root := tr.prepare(t)
	defer os.RemoveAll(root)
	old := photograph(t, root)
	tr.before, _ = play(t, tr.randomBook, root, true)
	for _, p := range differences(old, photograph(t, root), true) {
		tr.problem("the check changed %s", p)
	}
	var summary engine.Summary
	tr.run, summary = play(t, tr.randomBook, root, false)
	tr.compare()
	settled := photograph(t, root)
	tr.announced(differences(old, settled, false))
	tr.after, _ = play(t, tr.randomBook, root, true)
	for _, p := range differences(settled, photograph(t, root), true) {
		tr.problem("the second check changed %s", p)
	}
	if !summary.Failed() {
		tr.settled()
	}
	return tr
}

// compare holds the verdicts of the check against those of the run, up to where these part.
func (tr *trial) compare() {
	loose := map[string]bool{} // checked behind a command that may have done anything
	var open bool
	pending := map[string][]string{} // what tasks before it would, or may, touch
	var touched []string
	doubtful := map[string]bool{} // tasks whose verdict is unknown
	for _, c := range tr.before.list {
		loose[c.key], pending[c.key] = open, touched
		info := tr.tasks[c.task]
		if c.result.Status == report.WouldChange || c.result.Status == report.Unknown {
			open = open || info.opaque
			touched = append(slices.Clip(touched), tr.about(info.touches)...)
		}
		if c.result.Status == report.Unknown {
			doubtful[c.task] = true
		}
	}
	for _, r := range tr.run.list {
		c, found := tr.before.find(r.key)
		info := tr.tasks[r.task]
		if !found && doubtful[r.task] {
			c, found = verdict{key: r.key, task: r.task, result: report.Result{Status: report.Unknown}}, true
		}
		failed := r.result.Status == report.Failed
		switch {
		case !found:
			tr.problem("not in the check: %s", r)
		case c.result.Status == report.Unknown:
			if r.result.Status == report.Changed && info.reading {
				tr.problem("unknown, and what only reads has changed something: %s", r)
			}
		case loose[r.key] && c.result.HangsOn != "":
		case tr.keeps(c, r, info, pending[r.key]):
		default:
			tr.problem("check said %s\n   run said %s", c, r)
		}
		if failed && !r.result.Ignored && c.result.Status != report.Failed || c.result.Status == report.Failed {
			tr.parted = r.key
			break
		}
	}
	if tr.parted != "" {
		return
	}
	for _, c := range tr.before.list {
		_, found := tr.run.find(c.key)
		if !found && c.result.Status != report.Unknown && !loose[c.key] && !tr.tasks[c.task].handler {
			tr.problem("not in the run: %s", c)
		}
		if !found && tr.tasks[c.task].handler && c.result.Status == report.WouldChange && !open && !doubtful[c.task] {
			tr.problem("not in the run: %s", c)
		}
	}
}

// keeps reports whether a run keeps what a check has promised.
func (tr *trial) keeps(c, r verdict, info *randomTask, pending []string) bool {
	failed := r.result.Status == report.Failed
	switch c.result.Status {
	case report.WouldChange:
		return r.result.Status == report.Changed || failed && info.mayFail
	case report.OK:
		hangs := info.reading && c.result.HangsOn != "" && (info.reads == nil || related(info.reads, pending))
		return r.result.Status == report.OK || failed && (hangs || strings.HasSuffix(c.result.Because, "expected"))
	}
	return r.result.Status == c.result.Status
}

// announced finds what a run has changed that no verdict had announced.
func (tr *trial) announced(changed []string) {
	var may []string
	for _, v := range tr.before.list {
		if v.result.Status == report.WouldChange || v.result.Status == report.Unknown {
			may = append(may, tr.tasks[v.task].touches...)
		}
	}
	parted := false
	for _, v := range tr.run.list {
		if parted {
			may = append(may, tr.tasks[v.task].touches...)
		}
		parted = parted || v.key == tr.parted
	}
	may = tr.about(may)
	for _, name := range changed {
		if !related([]string{name}, may) {
			tr.problem("the run changed %s, and nothing said that it would", name)
		}
	}
}

// settled finds what a second check would change although no other task has touched it since.
func (tr *trial) settled() {
	for _, v := range tr.after.list {
		info := tr.tasks[v.task]
		if v.result.Status != report.WouldChange || info.act {
			continue
		}
		if r, ran := tr.run.find(v.key); !ran || r.result.Status == report.Skipped {
			continue
		}
		mine, theirs := tr.about(info.touches), []string(nil)
		for name, other := range tr.tasks {
			if name != v.task || len(info.touches) > 1 {
				theirs = append(theirs, tr.about(other.touches)...)
			}
		}
		if !related(mine, theirs) && !info.dynamic {
			tr.problem("after the run, still: %s", v)
		}
	}
}

// photograph is what is below root, a line for each path.
func photograph(t testing.TB, root string) map[string][2]string {
	t.Helper()
	seen := map[string][2]string{}
	err := filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		text := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			text, err = os.Readlink(full)
		case info.Mode().IsRegular():
			var data []byte
			data, err = os.ReadFile(full)
			text = string(data)
		}
		name, _ := filepath.Rel(root, full)
		seen[path.Clean(name)] = [2]string{fmt.Sprintf("%v %d:%d %q", info.Mode(), st.Uid, st.Gid, text), fmt.Sprint(st.Ino, st.Mtim, st.Ctim)}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// differences are the paths, other than the root, that differ; exactly: in their time stamps too.
func differences(old, now map[string][2]string, exactly bool) []string {
	names := maps.Clone(old)
	maps.Copy(names, now)
	var list []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if old[name][0] != now[name][0] || exactly && old[name] != now[name] {
			list = append(list, name)
		}
	}
	return list
}

func (tr *trial) String() string {
	var b strings.Builder
	for _, p := range tr.problems {
		fmt.Fprintf(&b, "%s\n", p)
	}
	fmt.Fprintf(&b, "\n%s", tr.randomBook)
	for i, v := range []*verdicts{tr.before, tr.run, tr.after} {
		fmt.Fprintf(&b, "\n%s:\n", []string{"check", "run", "check"}[i])
		for _, one := range v.list {
			fmt.Fprintf(&b, "  %s\n", one)
		}
	}
	return b.String()
}

// TestCheckEqualsRun is the equality on a fixed number of seeds.
func TestCheckEqualsRun(t *testing.T) {
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 100
	}
	const shards = 20
	var mu sync.Mutex
	count := map[report.Status]int{}
	t.Run("seeds", func(t *testing.T) {
		for shard := range uint64(shards) {
			t.Run(fmt.Sprint(shard), func(t *testing.T) {
				t.Parallel()
				for seed := shard; seed < seeds; seed += shards {
					tr := newTrial(t, seed)
					if len(tr.problems) > 0 {
						t.Errorf("seed %d: %s", seed, tr)
					}
					mu.Lock()
					for _, v := range tr.before.list {
						count[v.result.Status]++
					}
					mu.Unlock()
				}
			})
		}
	})
	total := 0
	for _, n := range count {
		total += n
	}
	for status, n := range count {
		t.Logf("%-12s %5d of %d, %d %%", status, n, total, 100*n/total)
	}
	// A check that knows nothing keeps every promise.
	if most := 20; 100*count[report.Unknown] > most*total {
		t.Errorf("%d of %d verdicts are unknown: more than %d %%", count[report.Unknown], total, most)
	}
	if least := 25; 100*count[report.WouldChange] < least*total {
		t.Errorf("%d of %d verdicts are would change: the books have too little to do", count[report.WouldChange], total)
	}
}

// FuzzCheckEqualsRun is the equality on whatever seed.
func FuzzCheckEqualsRun(f *testing.F) {
	for seed := range uint64(16) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		if tr := newTrial(t, seed); len(tr.problems) > 0 {
			t.Errorf("seed %d: %s", seed, tr)
		}
	})
}
