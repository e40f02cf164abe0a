package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// With this in its environment the test program is an operator: it opens the runs that it is told, and says how that went.
const operatorEnv = "JOURNAL_TEST_OPERATOR"

type verdict struct {
	Won    bool
	Locked *LockedError
	Err    string
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(operatorEnv); dir != "" {
		operate(dir)
		return
	}
	os.Exit(m.Run())
}

func operate(dir string) {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	var w *Writer
	for in.Scan() {
		var v verdict
		var err error
		if in.Text() == "close" {
			if w != nil {
				err, w = w.Close(), nil
			}
		} else if w, _, err = Open(dir, in.Text()); err == nil {
			v.Won = true
			err = w.Commit(Record{Kind: KindResume, Resume: &Resume{PID: os.Getpid()}})
		}
		if !errors.As(err, &v.Locked) && err != nil {
			v.Err = err.Error()
		}
		out.Encode(v)
	}
}

type operator struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func newOperator(t *testing.T, dir string) *operator {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	o := &operator{cmd: exec.Command(self)}
	o.cmd.Env = append(os.Environ(), operatorEnv+"="+dir)
	o.in, err = o.cmd.StdinPipe()
	must(t, err)
	out, err := o.cmd.StdoutPipe()
	must(t, err)
	o.out = json.NewDecoder(out)
	must(t, o.cmd.Start())
	t.Cleanup(func() { o.in.Close(); o.cmd.Wait() })
	return o
}

func (o *operator) tell(what string) { fmt.Fprintln(o.in, what) }

func (o *operator) answer(t *testing.T) verdict {
	t.Helper()
	var v verdict
	must(t, o.out.Decode(&v))
	if v.Err != "" {
		t.Fatal(v.Err)
	}
	return v
}

// Two processes go for one run: one has it, and the other is told who, even at the instant of the change.
func TestRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	w, err := Create(dir, testRun)
	must(t, err)
	must(t, w.Close())
	two := []*operator{newOperator(t, dir), newOperator(t, dir)}
	// A third lists all the time, which must not get in anybody's way.
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				if _, err := List(dir); err != nil {
					stopped <- err
					return
				}
			}
		}
	}()
	wins := [2]int{}
	for round := range 100 {
		two[round%2].tell(w.ID())
		two[1-round%2].tell(w.ID())
		v := []verdict{two[0].answer(t), two[1].answer(t)}
		if v[0].Won == v[1].Won {
			t.Fatalf("round %d: %+v", round, v)
		}
		winner := 0
		if v[1].Won {
			winner = 1
		}
		wins[winner]++
		l := v[1-winner].Locked
		if l == nil || l.PID != two[winner].cmd.Process.Pid || l.User == "" || l.Controller == "" || time.Since(l.Since) > time.Minute || l.ID != w.ID() {
			t.Fatalf("round %d: the loser was told %+v of %d", round, l, two[winner].cmd.Process.Pid)
		}
		for _, o := range two {
			o.tell("close")
			o.answer(t)
		}
	}
	close(stop)
	must(t, <-stopped)
	t.Log("won:", wins)
	recs, torn, err := Read(dir, w.ID())
	if err != nil || torn != 0 || len(recs) != 101 {
		t.Error(len(recs), torn, err)
	}
}

// A lock goes with its process, however that ends, and a name that is left beside it means nothing.
func TestLockDiesWithProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	w, err := Create(dir, testRun)
	must(t, err)
	id := w.ID()
	must(t, w.Close())
	for range 5 {
		o := newOperator(t, dir)
		o.tell(id)
		if v := o.answer(t); !v.Won {
			t.Fatal(v)
		}
		var locked *LockedError
		if _, _, err := Open(dir, id); !errors.As(err, &locked) || locked.PID != o.cmd.Process.Pid {
			t.Fatal(err)
		}
		if l, err := List(dir); err != nil || l[0].Status != Running || l[0].Resumable || !l[0].Ended.IsZero() {
			t.Fatal(l, err)
		}
		if gone, err := Prune(dir, 0, time.Now().Add(time.Hour)); err != nil || len(gone) != 0 {
			t.Fatal("pruned while it lives:", gone, err)
		}
		must(t, o.cmd.Process.Kill())
		o.cmd.Wait()
		if l, err := List(dir); err != nil || l[0].Status != Dead || !l[0].Resumable || l[0].Ended.IsZero() {
			t.Fatal(l, err)
		}
		w, _, err := Open(dir, id)
		if err != nil {
			t.Fatal("the lock outlived its process:", err)
		}
		must(t, w.Close())
	}
	// A process that has the number of a dead holder is not taken for it.
	s, err := at(dir)
	must(t, err)
	h := self()
	if !h.lives() {
		t.Error("this process does not live")
	}
	h.Start = "1"
	if h.lives() {
		t.Error("another process with the same number is taken for the holder")
	}
	b, _ := json.Marshal(h)
	must(t, os.WriteFile(s.holder(id), b, 0o600))
	w, _, err = Open(dir, id)
	must(t, err)
	must(t, w.Close())
}

// debts is what a run owes, in short.
func debts(t *testing.T, dir string) (out []string) {
	t.Helper()
	all, err := Debts(dir, nil)
	must(t, err)
	for _, d := range all {
		s := fmt.Sprintf("%s@%s %d", d.Handler, d.Host, d.N)
		if d.Unsure {
			s += " unsure"
		}
		out = append(out, s)
	}
	return out
}

func TestDebts(t *testing.T) {
	const a, b = "voms1.example.org", "voms2.example.org"
	begin := func(task, host string, notify ...string) Record {
		return Record{Kind: KindBegin, Begin: &Begin{Key: Key{Task: task, Host: host, Nth: 1}, Notify: notify}}
	}
	end := func(task, host, status string, notified ...string) Record {
		turn := strings.HasPrefix(task, "h") && (status == "ok" || status == "changed" || status == "skipped")
		return Record{Kind: KindEnd, End: &End{Key: Key{Task: task, Host: host, Nth: 1}, Status: status, Notified: notified, Turn: turn}}
	}
	closed := func(status string, owed ...Owed) Record {
		return Record{Kind: KindClose, Close: &Close{Status: status, Owed: owed}}
	}
	for name, c := range map[string]struct {
		recs []Record
		want []string
	}{
		"nothing":                       {nil, nil},
		"notified":                      {[]Record{end("t1", a, "changed", "h1")}, []string{"h1@" + a + " 2"}},
		"done":                          {[]Record{end("t1", a, "changed", "h1"), end("h1", a, "changed")}, nil},
		"skipped by its condition":      {[]Record{end("t1", a, "changed", "h1"), end("h1", a, "skipped")}, nil},
		"failed":                        {[]Record{end("t1", a, "changed", "h1"), end("h1", a, "failed")}, []string{"h1@" + a + " 2"}},
		"lost on the way":               {[]Record{end("t1", a, "changed", "h1"), end("h1", a, "unreachable")}, []string{"h1@" + a + " 2"}},
		"under way":                     {[]Record{end("t1", a, "changed", "h1"), begin("h1", a)}, []string{"h1@" + a + " 2"}},
		"done elsewhere":                {[]Record{end("t1", a, "changed", "h1"), end("h1", b, "changed")}, []string{"h1@" + a + " 2"}},
		"done before":                   {[]Record{end("h1", a, "changed"), end("t1", a, "changed", "h1")}, []string{"h1@" + a + " 3"}},
		"twice":                         {[]Record{end("t1", a, "changed", "h1"), end("t2", a, "changed", "h1")}, []string{"h1@" + a + " 3"}},
		"in the order of the book":      {[]Record{end("t1", a, "changed", "h2"), end("t2", a, "changed", "h1")}, []string{"h1@" + a + " 3", "h2@" + a + " 2"}},
		"by a handler":                  {[]Record{end("t1", a, "changed", "h1"), end("h1", a, "changed", "h2")}, []string{"h2@" + a + " 3"}},
		"perhaps":                       {[]Record{begin("t1", a, "h1")}, []string{"h1@" + a + " 2 unsure"}},
		"perhaps, but it ended":         {[]Record{begin("t1", a, "h1"), end("t1", a, "ok")}, nil},
		"perhaps, and it failed":        {[]Record{begin("t1", a, "h1"), end("t1", a, "failed"), end("t1", a, "failed")}, []string{"h1@" + a + " 2 unsure"}},
		"perhaps, and it has run since": {[]Record{begin("t1", a, "h1"), end("t1", a, "failed"), end("h1", a, "changed")}, nil},
		"perhaps, and surely":           {[]Record{end("t2", a, "changed", "h1"), begin("t1", a, "h1")}, []string{"h1@" + a + " 2"}},
		"closed, owing":                 {[]Record{closed(Failed, Owed{Host: b, Handler: "h2", N: 2})}, []string{"h2@" + b + " 2"}},
		"closed, owing nothing":         {[]Record{end("t1", a, "changed", "h1"), closed(Done)}, nil},
		"closed, resumed, and dead":     {[]Record{end("t1", a, "changed", "h1"), closed(Failed), {Kind: KindResume, Resume: &Resume{}}}, []string{"h1@" + a + " 2"}},
	} {
		dir := filepath.Join(t.TempDir(), "state")
		w, err := Create(dir, testRun)
		must(t, err)
		for _, r := range c.recs {
			must(t, w.Commit(r))
		}
		if got := debts(t, dir); len(c.recs) > 0 && c.recs[len(c.recs)-1].Kind != KindClose && got != nil {
			t.Errorf("%s: a run that lives owes %v", name, got)
		}
		must(t, w.Close())
		if d := cmp.Diff(c.want, debts(t, dir)); d != "" {
			t.Error(name, d)
		}
	}

	// It is paid once, up to where the one who paid had looked.
	dir := filepath.Join(t.TempDir(), "state")
	w, err := Create(dir, testRun)
	must(t, err)
	owes := w.ID()
	must(t, w.Append(end("t1", a, "changed", "h1")))
	must(t, w.Append(end("t1", b, "changed", "h1", "h2")))
	must(t, w.Close())
	all, err := Debts(dir, []string{a})
	must(t, err)
	if d := cmp.Diff([]Debt{{Run: owes, Owed: Owed{Host: a, Book: "a.yml", Play: "p", Handler: "h1", Name: "Restart stunnel", N: 2}}}, all); d != "" {
		t.Error(d)
	}
	if none, err := Debts(dir, []string{}); err != nil || len(none) != 0 {
		t.Error(none, err)
	}
	w, err = Create(dir, testRun)
	must(t, err)
	paid := w.ID()
	turn := end("h1", a, "ok")
	turn.End.Turn, turn.End.Settles = true, []Settled{{Run: owes, Host: a, Handler: "h1", N: 2}}
	must(t, w.Commit(turn))
	want := []string{"h1@" + b + " 3", "h2@" + b + " 3"}
	if d := cmp.Diff(want, debts(t, dir)); d != "" {
		t.Error("while the one who pays lives:", d)
	}
	must(t, w.Commit(closed(Done)))
	must(t, w.Close())
	if d := cmp.Diff(want, debts(t, dir)); d != "" {
		t.Error(d)
	}
	w, _, err = Open(dir, owes)
	must(t, err)
	must(t, w.Append(end("t2", a, "changed", "h1")))
	must(t, w.Close())
	if d := cmp.Diff(append([]string{"h1@" + a + " 4"}, want...), debts(t, dir)); d != "" {
		t.Error("notified again:", d)
	}

	// Who owes is not pruned, nor who paid for somebody who is still there; both go when nothing is owed.
	late := time.Now().Add(48 * time.Hour)
	if gone, err := Prune(dir, 24*time.Hour, late); err != nil || len(gone) != 0 {
		t.Error(gone, err)
	}
	w, _, err = Open(dir, owes)
	must(t, err)
	must(t, w.Commit(closed(Done)))
	must(t, w.Close())
	if gone, err := Prune(dir, 72*time.Hour, late); err != nil || len(gone) != 0 {
		t.Error("pruned too early:", gone, err)
	}
	gone, err := Prune(dir, 24*time.Hour, late)
	both := []string{owes, paid}
	slices.Sort(both)
	if err != nil || !slices.Equal(gone, both) {
		t.Error(gone, err)
	}
	if left, _ := filepath.Glob(dir + "/runs/*"); len(left) != 0 {
		t.Error(left)
	}
}

// If Prune is cut off between two runs, no debt that was paid comes back.
func TestPruneCutOff(t *testing.T) {
	for n := 1; ; n++ {
		s, d := scratch(t)
		owes, err := s.create(testRun)
		must(t, err)
		must(t, owes.Commit(Record{Kind: KindClose, Close: &Close{Status: Failed, Owed: []Owed{{Host: "h", Handler: "h1"}}}}))
		must(t, owes.Close())
		pays, err := s.create(testRun)
		must(t, err)
		must(t, pays.Commit(Record{Kind: KindSettled, Settled: &Settled{Run: owes.ID(), Host: "h", Handler: "h1", N: 2}}))
		must(t, pays.Close())
		d.failAt, d.off = d.calls+n, true
		gone, err := s.prune(0, time.Now().Add(time.Hour))
		if d.failAt > d.calls {
			if err != nil || len(gone) != 2 {
				t.Error(gone, err)
			}
			if n < 5 {
				t.Error("it ended after", n)
			}
			return
		}
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
		if back := debts(t, s.dir); len(back) != 0 {
			t.Fatalf("cut off at call %d, %v is owed again", n, back)
		}
	}
}

// A damaged record is told, what it owes before the damage is still owed, and it is kept.
func TestDamagedDebts(t *testing.T) {
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	must(t, w.Commit(Record{Kind: KindEnd, End: &End{Key: Key{Task: "t1", Host: "h", Nth: 1}, Notified: []string{"h1"}}}))
	must(t, w.Commit(note("x")))
	must(t, w.Close())
	b, err := os.ReadFile(w.Path())
	must(t, err)
	b[len(b)-5] ^= 1
	must(t, os.WriteFile(w.Path(), b, 0o600))
	owed, err := Debts(s.dir, nil)
	var c *CorruptError
	if !errors.As(err, &c) || c.N != 3 || len(owed) != 1 || strings.Count(err.Error(), "damaged") != 1 {
		t.Error(owed, err)
	}
	l, err := s.list()
	if err != nil || l[0].Status != Corrupt || !errors.As(l[0].Err, &c) || c.Offset == 0 {
		t.Errorf("%+v %v", l, err)
	}
	if gone, err := Prune(s.dir, 0, time.Now().Add(time.Hour)); len(gone) != 0 || !errors.As(err, &c) {
		t.Error(gone, err)
	}
}

func TestList(t *testing.T) {
	s, _ := scratch(t)
	for i, status := range []string{Done, Failed, Interrupted} {
		r := testRun
		r.ID = fmt.Sprintf("20261126-10153%d-aaaa", i)
		w, err := s.create(r)
		must(t, err)
		must(t, w.Commit(Record{Kind: KindClose, Close: &Close{Status: status, Text: status}}))
		must(t, w.Close())
	}
	l, err := s.list()
	must(t, err)
	got := ""
	for _, i := range l {
		got += fmt.Sprintf("%s %s %v %s %d %s; ", i.ID, i.Status, i.Resumable, i.Close.Text, i.Records, i.Run.User)
		if st, err := os.Stat(i.Path); err != nil || st.Size() != i.Size || i.Started.IsZero() || i.Ended.Before(i.Started) {
			t.Errorf("%+v", i)
		}
	}
	if want := "20261126-101532-aaaa interrupted true interrupted 2 ann; 20261126-101531-aaaa failed true failed 2 ann; 20261126-101530-aaaa done false done 2 ann; "; got != want {
		t.Error(got)
	}
	// What a crash leaves of a run that was never begun is no run, and is swept away in time.
	left := s.temporary("20261126-101530-bbbb")
	must(t, os.WriteFile(left, nil, 0o600))
	if l, err := s.list(); err != nil || len(l) != 3 {
		t.Error(l, err)
	}
	_, err = s.prune(1000*time.Hour, time.Now())
	must(t, err)
	if _, err := os.Stat(left); err != nil {
		t.Error("swept away too early")
	}
	_, err = s.prune(0, time.Now().Add(2*time.Hour))
	must(t, err)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Error("not swept away")
	}
}

// A bit that flipped anywhere makes a listed run a damaged one, of which the end is not believed, nor what it says is owed.
func TestListDamaged(t *testing.T) {
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	must(t, w.Commit(note("x")))
	must(t, w.Commit(Record{Kind: KindClose, Close: &Close{Status: Failed, Owed: []Owed{{Host: "h", Handler: "h1"}}}}))
	must(t, w.Close())
	whole, err := os.ReadFile(w.Path())
	must(t, err)
	for at := range whole {
		b := bytes.Clone(whole)
		b[at] ^= 1
		must(t, os.WriteFile(w.Path(), b, 0o600))
		l, err := s.list()
		var c *CorruptError
		if err != nil || l[0].Status != Corrupt || l[0].Resumable || l[0].Close != nil || !l[0].Ended.IsZero() || !errors.As(l[0].Err, &c) {
			t.Fatalf("byte %d: %+v %v", at, l, err)
		}
		if at > bytes.IndexByte(whole, '\n') && l[0].Run.User != testRun.User {
			t.Fatalf("byte %d: how it began is not told: %+v", at, l[0])
		}
		if owed, err := Debts(s.dir, nil); len(owed) != 0 || !errors.As(err, &c) {
			t.Fatalf("byte %d: owed %v, %v", at, owed, err)
		}
	}
}

// Who works on a run is in the list for as long as he does.
func TestListWriter(t *testing.T) {
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	l, err := s.list()
	if err != nil || l[0].Writer == nil || l[0].Writer.PID != os.Getpid() || l[0].Writer.Since.IsZero() || l[0].Resumable {
		t.Errorf("%+v, %v", l, err)
	}
	must(t, w.Close())
	if l, err := s.list(); err != nil || l[0].Writer != nil || !l[0].Resumable {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestExportImport(t *testing.T) {
	s, _ := scratch(t)
	id, recs := whole(t, s)
	var b bytes.Buffer
	must(t, Export(s.dir, id, &b))
	if _, err := Import(s.dir, bytes.NewReader(b.Bytes())); !errors.Is(err, fs.ErrExist) {
		t.Error("imported where it ran:", err)
	}
	there, _ := scratch(t)
	got, err := Import(there.dir, bytes.NewReader(b.Bytes()))
	if err != nil || got != id {
		t.Fatal(got, err)
	}
	back, torn, err := Read(there.dir, id)
	if err != nil || torn != 0 || !cmp.Equal(recs, back) {
		t.Error(torn, err)
	}
	var again bytes.Buffer
	must(t, Export(there.dir, id, &again))
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("an export of an import is another one")
	}
	if _, err := Import(there.dir, bytes.NewReader(b.Bytes())); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if _, _, err := Open(there.dir, id); err == nil || !strings.Contains(err.Error(), "imported") {
		t.Error(err)
	}
	if _, err := Create(there.dir, Run{ID: id}); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if l, err := there.list(); err != nil || len(l) != 1 || !l[0].Imported || l[0].Resumable {
		t.Errorf("%+v %v", l, err)
	}
	if gone, err := Prune(there.dir, 0, time.Now().Add(time.Hour)); err != nil || !slices.Equal(gone, []string{id}) {
		t.Error(gone, err)
	}
	// What was cut short or damaged on its way, anywhere, is not taken, and leaves nothing.
	for cut := range b.Len() {
		if _, err := Import(there.dir, bytes.NewReader(b.Bytes()[:cut])); !errors.As(err, new(*CorruptError)) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		bad := slices.Clone(b.Bytes())
		bad[cut] ^= 1 << (cut % 8)
		if _, err := Import(there.dir, bytes.NewReader(bad)); !errors.As(err, new(*CorruptError)) {
			t.Fatalf("flipped at %d: %v", cut, err)
		}
	}
	if _, err := Import(there.dir, strings.NewReader(b.String()+"x")); err == nil {
		t.Error("something follows after the end")
	}
	if left, _ := os.ReadDir(there.imported()); len(left) != 0 {
		t.Error(left)
	}
	// A name from elsewhere makes no path.
	evil, _, err := appendLine(nil, "", 1, time.Now(), []byte(`"kind":"run","run":{"format":1,"id":"../../x"}`))
	must(t, err)
	if _, err := Import(there.dir, bytes.NewReader(evil)); err == nil || !strings.Contains(err.Error(), "not called") {
		t.Error(err)
	}
	// What this one owes there is not owed here.
	w, err := s.create(testRun)
	must(t, err)
	must(t, w.Commit(Record{Kind: KindClose, Close: &Close{Status: Failed, Owed: []Owed{{Host: "h", Handler: "h1", N: 2}}}}))
	must(t, w.Close())
	b.Reset()
	must(t, Export(s.dir, w.ID(), &b))
	_, err = Import(there.dir, &b)
	must(t, err)
	if len(debts(t, s.dir)) == 0 || len(debts(t, there.dir)) != 0 {
		t.Error("owed in the wrong place")
	}
}

// A run that somebody takes up between its listing and its removal is left to him.
func TestPruneTakenUp(t *testing.T) {
	s, _ := scratch(t)
	id, _ := whole(t, s)
	info, err := look(id, s.path(id), false)
	must(t, err)
	w, _, err := s.open(id)
	must(t, err)
	if gone, err := s.removeRun(info); gone || err != nil {
		t.Error("removed under its writer:", gone, err)
	}
	must(t, w.Commit(Record{Kind: KindResume, Resume: &Resume{}}))
	must(t, w.Close())
	if gone, err := s.removeRun(info); gone || err != nil {
		t.Error("removed although it has changed:", gone, err)
	}
	info, err = look(id, s.path(id), false)
	must(t, err)
	// And who has opened the file but not locked it yet finds out.
	f, err := s.disk.open(info.Path, os.O_RDWR)
	must(t, err)
	defer f.Close()
	if gone, err := s.removeRun(info); !gone || err != nil {
		t.Error(gone, err)
	}
	if err := sameFile(f, info.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if gone, err := s.removeRun(info); gone || err != nil {
		t.Error("removed twice:", gone, err)
	}
}

// TestOrder guards that the order of runs is that in which they were made, whatever the clock said; one of which not even the number can be read
// stands where its id puts it.
func TestOrder(t *testing.T) {
	s, _ := scratch(t)
	var want []string
	for _, id := range []string{"20261127-101530-aaaa", "20261126-101530-bbbb", "20261125-101530-cccc"} { // a day back each time
		r := testRun
		r.ID = id
		w, err := s.create(r)
		must(t, err)
		must(t, w.Close())
		want = append([]string{id}, want...)
	}
	garbled := "20991231-101530-dddd"
	must(t, os.WriteFile(s.path(garbled), []byte("garbage\n"), 0o600))
	want = append([]string{garbled}, want...)
	all, err := s.list()
	must(t, err)
	var got []string
	for _, info := range all {
		got = append(got, info.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What bears a record's name and is none, or may not be read, keeps nobody waiting and hides none of the others; of what it owes nobody knows.
func TestNotARecord(t *testing.T) {
	for what, lay := range map[string]func(path string) error{
		"a named pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory":       func(path string) error { return os.Mkdir(path, 0o700) },
		"a symbolic link":   func(path string) error { return os.Symlink("/dev/zero", path) },
		"a socket":          func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
		"permission denied": func(path string) error { return os.WriteFile(path, nil, 0) },
	} {
		if what == "permission denied" && os.Getuid() == 0 {
			continue // root may
		}
		s, _ := scratch(t)
		good, err := s.create(testRun)
		must(t, err)
		must(t, good.Commit(Record{Kind: KindClose, Close: &Close{Status: Failed, Owed: []Owed{{Host: "h", Handler: "h1"}}}}))
		must(t, good.Close())
		const id = "20261126-101530-odd2"
		must(t, lay(s.path(id)))
		told := func(doing string, err error) {
			t.Helper()
			var u *UnreadableError
			if !errors.As(err, &u) || u.Path != s.path(id) || !strings.Contains(err.Error(), what) {
				t.Errorf("%s, %s: %v", what, doing, err)
			}
		}
		l, err := s.list()
		if err != nil || len(l) != 2 {
			t.Fatalf("%s: listed %v, %v", what, l, err)
		}
		for _, info := range l {
			if info.ID == id {
				told("listed", info.Err)
			}
			if info.Resumable != (info.ID == good.ID()) || (info.Status == Corrupt) != (info.ID == id) {
				t.Errorf("%s: listed as %+v", what, info)
			}
		}
		owed, err := Debts(s.dir, nil)
		told("asked for debts", err)
		if len(owed) != 1 || owed[0].Run != good.ID() {
			t.Errorf("%s: owed are %v", what, owed)
		}
		_, _, err = Read(s.dir, id)
		told("read", err)
		told("exported", Export(s.dir, id, io.Discard))
		if _, _, err := s.open(id); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s, opened: %v", what, err)
		}
		_, err = s.prune(0, time.Now().Add(time.Hour))
		told("pruned", err)
		if _, err := os.Lstat(s.path(id)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A run that is given up owes nothing, from the one record on that ends it; not even to a version of the program that would go on with it.
func TestGivenUp(t *testing.T) {
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	must(t, w.Commit(Record{Kind: KindEnd, End: &End{Key: Key{Task: "t1", Host: "h", Nth: 1}, Notified: []string{"h1"}}}))
	must(t, w.Commit(Record{Kind: KindResume, Resume: &Resume{GiveUp: "h is gone"}}))
	must(t, w.Close())
	if l, err := s.list(); err != nil || !l[0].Resumable || len(debts(t, s.dir)) != 1 {
		t.Errorf("killed before the end: %+v, %v", l, err)
	}
	w, _, err = s.open(w.ID())
	must(t, err)
	must(t, w.Commit(Record{Kind: KindClose, Close: &Close{Status: GivenUp, Settles: []Settled{{Run: w.ID(), Host: "h", Handler: "h1", N: 2}}}}))
	must(t, w.Close())
	if l, err := s.list(); err != nil || l[0].Resumable || l[0].Status != GivenUp || len(debts(t, s.dir)) != 0 {
		t.Errorf("given up: %+v, %v", l, err)
	}
	w, _, err = s.open(w.ID())
	must(t, err)
	must(t, w.Commit(Record{Kind: KindResume, Resume: &Resume{}}))
	if owed, err := w.Owed(); err != nil || len(owed) != 0 {
		t.Errorf("gone on with: owed %v, %v", owed, err)
	}
	must(t, w.Commit(Record{Kind: KindClose, Close: &Close{Status: GivenUp}}))
	must(t, w.Close())
	if gone, err := s.prune(0, time.Now().Add(time.Hour)); err != nil || len(gone) != 1 {
		t.Errorf("pruned: %v, %v", gone, err)
	}
}

// TestOwedOld guards that what a run owes is known where an earlier version has resumed it with edited books, and did not say what became of its tasks.
func TestOwedOld(t *testing.T) {
	dir := t.TempDir() + "/state"
	book := func(digest string) []Book {
		return []Book{{Path: "a.yml", File: "/a.yml", Tasks: []Task{{ID: "1:1/1", Play: "p", Name: "Change", Digest: digest}, {ID: "1:1/handlers/1", Play: "p", Name: "restart", Digest: "h"}}}}
	}
	w, err := Create(dir, Run{Version: "v", Dir: "/", Args: []string{"run"}, User: "u", Controller: "c", Books: book("1"), Hosts: []string{"h"}})
	if err != nil {
		t.Fatal(err)
	}
	key := Key{Task: "1:1/1", Host: "h", Item: "0", Nth: 1}
	for _, r := range []Record{
		{Kind: KindBegin, Begin: &Begin{Key: key, Name: "Change", Digest: "d", Notify: []string{"1:1/handlers/1"}}},
		{Kind: KindEnd, End: &End{Key: key, Name: "Change", Digest: "d", Status: "changed", Notified: []string{"1:1/handlers/1"}, Effect: true}},
		{Kind: KindClose, Close: &Close{Status: Failed}},
		{Kind: KindResume, Resume: &Resume{Version: "old", Books: book("2")}},
	} {
		if err := w.Commit(r); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close()
	debts, err := Debts(dir, nil)
	if err != nil || len(debts) != 1 {
		t.Fatalf("debts %v, %v: want the handler restart", debts, err)
	}
}
