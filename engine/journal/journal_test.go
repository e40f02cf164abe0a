package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func itoa(n int) string { return strconv.Itoa(n) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func note(text string) Record { return Record{Kind: KindNote, Note: &Note{Text: text}} }

var testRun = Run{Version: "1.0", Dir: "/srv", Args: []string{"run", "man06/master"}, User: "ann", Controller: "ctl.example.org", PID: 7,
	Books: []Book{{Path: "a.yml", Title: "A", Digest: "d", Tasks: []Task{{ID: "t1", Play: "p", Name: "Configure", Digest: "d1"}, {ID: "t2", Play: "p", Name: "Load"},
		{ID: "h1", Play: "p", Name: "Restart stunnel"}, {ID: "h2", Play: "p", Name: "Reload"}}}},
	Inventory: "i", Hosts: []string{"voms1.example.org", "voms2.example.org"}}

// all is a record of every kind but run, with what JSON makes difficult.
func all() []Record {
	k := Key{Task: "t1", Host: "voms1.example.org", Item: "<é\u2028\n\"\\", Nth: 1}
	return []Record{
		{Kind: KindFacts, Facts: &Facts{Host: "voms1.example.org", BootID: "b", Values: json.RawMessage(`{"n":12345678901234567890}`)}},
		{Kind: KindBegin, Begin: &Begin{Key: k, Name: "Configure", Digest: "d1", Job: "j", Notify: []string{"h1"}}},
		{Kind: KindEnd, End: &End{Key: k, Name: "Configure", Digest: "d1", Status: "changed", Result: json.RawMessage(`{"x":"<a>\n"}`),
			Values: json.RawMessage(`[1.10]`), Withheld: true, Notified: []string{"h1"}, Effect: true}},
		note(""), note("a line\nanother\x00"),
		{Kind: KindSettled, Settled: &Settled{Run: "20261126-101530-k3f9", Host: "voms1.example.org", Handler: "h1", N: 3}},
		{Kind: KindClose, Close: &Close{Status: Failed, Totals: json.RawMessage(`{"ok":1}`), Owed: []Owed{{Host: "voms1.example.org", Handler: "h1", Unsure: true}}, Text: "page"}},
		{Kind: KindResume, Resume: &Resume{Version: "1.1", PID: 8, User: "bob", Controller: "c", Rerun: []string{"t1"}, MarkDone: []string{"t2"}}},
		{Kind: KindClose, Close: &Close{Status: Done}},
	}
}

// whole writes all into a new record, and returns its run, its path and its records.
func whole(t testing.TB, s state) (id string, recs []Record) {
	t.Helper()
	w, err := s.create(testRun)
	must(t, err)
	for i, r := range all() {
		if i%2 == 0 {
			must(t, w.Append(r))
		} else {
			must(t, w.Commit(r))
		}
	}
	must(t, w.Close())
	recs, torn, err := Read(s.dir, w.ID())
	must(t, err)
	if torn != 0 {
		t.Fatal("torn by", torn)
	}
	return w.ID(), recs
}

func scratch(t testing.TB) (state, *faults) {
	d := &faults{lazy: true, errno: syscall.EIO}
	return state{dir: filepath.Join(t.TempDir(), "state"), disk: d}, d
}

func TestRoundTrip(t *testing.T) {
	s, _ := scratch(t)
	id, recs := whole(t, s)
	run := testRun
	run.ID, run.Format, run.Seq = id, Format, 1
	want := append([]Record{{Kind: KindRun, Run: &run}}, all()...)
	for i := range want {
		if recs[i].Time.IsZero() || time.Since(recs[i].Time) > time.Minute {
			t.Errorf("record %d has the time %v", i+1, recs[i].Time)
		}
		want[i].N, want[i].Time = i+1, recs[i].Time
	}
	if d := cmp.Diff(want, recs); d != "" {
		t.Error(d)
	}
	// The file is what the documentation says: lines of JSON, whose sum anybody can compute.
	b, err := os.ReadFile(s.path(id))
	must(t, err)
	for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		var x struct {
			N   int
			Sum string
		}
		must(t, json.Unmarshal([]byte(line), &x))
		if x.N != i+1 || len(x.Sum) != 16 {
			t.Errorf("line %d: %s", i+1, line)
		}
	}
}

// A journal cut at any byte keeps every whole record, says how much it drops, and can be gone on with.
func TestCutAtEveryByte(t *testing.T) {
	s, _ := scratch(t)
	id, recs := whole(t, s)
	full, err := os.ReadFile(s.path(id))
	must(t, err)
	for cut := range len(full) + 1 {
		must(t, os.WriteFile(s.path(id), full[:cut], 0o600))
		kept := bytes.Count(full[:cut], []byte("\n"))
		got, torn, err := Read(s.dir, id)
		if kept == 0 {
			var c *CorruptError
			if !errors.As(err, &c) || c.Offset != 0 || c.N != 1 || len(got) != 0 {
				t.Fatalf("cut at %d: %v, %d records", cut, err, len(got))
			}
			if _, _, err := s.open(id); !errors.As(err, &c) {
				t.Fatalf("cut at %d: opened: %v", cut, err)
			}
			continue
		}
		wantTorn := cut - 1 - bytes.LastIndexByte(full[:cut], '\n')
		if err != nil || torn != wantTorn || !cmp.Equal(got, recs[:kept]) {
			t.Fatalf("cut at %d: %v, torn by %d, want %d; %d records, want %d", cut, err, torn, wantTorn, len(got), kept)
		}
		if info, err := look(id, s.path(id), false); err != nil || info.Err != nil || info.Records != kept {
			t.Fatalf("cut at %d: the list shows %+v, %v", cut, info, err)
		}
		w, got, err := s.open(id)
		if err != nil || w.Torn != wantTorn || len(got) != kept {
			t.Fatalf("cut at %d: opened: %v", cut, err)
		}
		next := note("on")
		if recs[kept-1].Kind == KindClose {
			next = Record{Kind: KindResume, Resume: &Resume{}}
		}
		must(t, w.Commit(next))
		must(t, w.Close())
		if got, torn, err := Read(s.dir, id); err != nil || torn != 0 || len(got) != kept+1 || !cmp.Equal(got[:kept], recs[:kept]) {
			t.Fatalf("cut at %d and gone on with: %v, torn by %d, %d records", cut, err, torn, len(got))
		}
	}
	t.Logf("%d cuts", len(full)+1)
}

// One bit that is wrong is found with its place, unless it is in a torn line, which is dropped anyway.
func TestBitFlips(t *testing.T) {
	s, _ := scratch(t)
	id, recs := whole(t, s)
	full, err := os.ReadFile(s.path(id))
	must(t, err)
	torn := append(slices.Clone(full), full[:100]...)
	random := rand.New(rand.NewPCG(1, 2))
	found, dropped := 0, 0
	flip := func(file []byte, bit int) {
		t.Helper()
		b := slices.Clone(file)
		b[bit/8] ^= 1 << (bit % 8)
		var got []Record
		err := newReader(bytes.NewReader(b), "x").each(func(r Record) error { got = append(got, r); return nil })
		var c *CorruptError
		switch {
		case errors.As(err, &c):
			found++
			line := bytes.LastIndexByte(file[:bit/8], '\n') + 1
			n := bytes.Count(file[:bit/8], []byte("\n"))
			if c.Offset != int64(line) || c.N != n+1 || len(got) != n || n > 0 && !cmp.Equal(got[n-1], recs[n-1]) {
				t.Fatalf("bit %d: %v, want offset %d, record %d", bit, err, line, n+1)
			}
			if found%20 == 0 {
				must(t, os.WriteFile(s.path(id), b, 0o600))
				if _, _, err := s.open(id); !errors.As(err, &c) {
					t.Fatalf("bit %d: found by Read, but Open says %v", bit, err)
				}
			}
		case err == nil && bit/8 >= len(full) && cmp.Equal(got, recs):
			dropped++
		default:
			t.Fatalf("bit %d of byte %d (%q): %v, %d records", bit, bit/8, file[bit/8], err, len(got))
		}
	}
	for bit := range 8 { // of the last newline, which looks like a torn line
		flip(full, (len(full)-1)*8+bit)
		flip(full, (bytes.IndexByte(full, '\n'))*8+bit)
	}
	for range 10_000 {
		file := full
		if random.IntN(4) == 0 {
			file = torn
		}
		flip(file, random.IntN(len(file)*8))
	}
	t.Logf("%d found, %d in the torn line", found, dropped)
	if dropped == 0 || found < 9_000 {
		t.Error("the flips did not go where they should")
	}
}

// Whole lines that go missing, come twice or change places are found, and so is the middle of a file that is cut out.
func TestMovedLines(t *testing.T) {
	s, _ := scratch(t)
	id, _ := whole(t, s)
	other, _ := whole(t, s)
	full, err := os.ReadFile(s.path(id))
	must(t, err)
	foreign, err := os.ReadFile(s.path(other))
	must(t, err)
	lines, alien := bytes.SplitAfter(full, []byte("\n")), bytes.SplitAfter(foreign, []byte("\n"))
	lines, alien = lines[:len(lines)-1], alien[:len(alien)-1]
	wrong := func(what string, n int, lines ...[]byte) {
		t.Helper()
		must(t, os.WriteFile(s.path(id), slices.Concat(lines...), 0o600))
		_, _, err := Read(s.dir, id)
		var c *CorruptError
		if !errors.As(err, &c) || c.N != n {
			t.Errorf("%s %d: %v", what, n, err)
		}
	}
	for i := range lines {
		if i < len(lines)-1 {
			wrong("without line", i+1, slices.Concat(lines[:i], lines[i+1:])...)
			wrong("changed places", i+1, slices.Concat(lines[:i], lines[i+1:i+2], lines[i:i+1], lines[i+2:])...)
		}
		wrong("twice", i+2, slices.Concat(lines[:i+1], lines[i:])...)
		wrong("zeros before line", i+1, slices.Concat(lines[:i], [][]byte{make([]byte, 4096)}, lines[i:])...)
		if i > 0 {
			wrong("of another run", i+1, slices.Concat(lines[:i], alien[i:i+1], lines[i+1:])...)
		}
	}
	must(t, os.WriteFile(s.path(id), foreign, 0o600))
	if _, _, err := Read(s.dir, id); err == nil {
		t.Error("the record of another run was read")
	}
	if _, _, err := s.open(id); err == nil {
		t.Error("the record of another run was opened")
	}
	// What a file system leaves of a write that never ended: zeros.
	must(t, os.WriteFile(s.path(id), append(slices.Clone(full), make([]byte, 5000)...), 0o600))
	if recs, torn, err := Read(s.dir, id); err != nil || torn != 5000 || len(recs) != len(lines) {
		t.Error(err, torn, len(recs))
	}
}

// filled commits notes until an error, and returns how many were accepted. Nothing may be accepted behind the error.
func filled(t *testing.T, w *Writer) int {
	t.Helper()
	pad := strings.Repeat("x", 2000)
	for n := 0; n < 1000; n++ {
		err := w.Commit(note(pad))
		if err == nil {
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), w.Path()) {
			t.Fatalf("the error does not tell that the disk is full, or where: %v", err)
		}
		before, _ := os.Stat(w.Path())
		for _, again := range []error{w.Commit(note("after")), w.Append(note("after")), w.Close(), w.Close()} {
			if again == nil || again.Error() != err.Error() {
				t.Fatalf("after %v came %v", err, again)
			}
		}
		if after, _ := os.Stat(w.Path()); after.Size() != before.Size() {
			t.Fatal("something was written after the error")
		}
		return n
	}
	t.Fatal("the disk was never full")
	return 0
}

// goesOn opens a record after its disk was full, and checks that all that was accepted is there.
func goesOn(t *testing.T, s state, id string, accepted int) {
	t.Helper()
	w, recs, err := s.open(id)
	must(t, err)
	if len(recs) < 1+accepted || len(recs) > 2+accepted {
		t.Fatalf("%d records of %d accepted", len(recs)-1, accepted)
	}
	must(t, w.Commit(note("on")))
	must(t, w.Close())
	if got, torn, err := Read(s.dir, id); err != nil || torn != 0 || len(got) != len(recs)+1 {
		t.Fatal(err, torn, len(got))
	}
}

func TestDiskFull(t *testing.T) {
	begun := 0
	for size := range int64(64) {
		s, d := scratch(t)
		d.room, d.full = size*613, true
		w, err := s.create(testRun)
		if err != nil {
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), s.dir) {
				t.Fatal(err)
			}
			if l, err := s.list(); err != nil || len(l) != 0 {
				t.Fatal("a run that was not begun is listed", l, err)
			}
			continue
		}
		begun++
		n := filled(t, w)
		d.full = false
		goesOn(t, s, w.ID(), n)
	}
	if begun < 32 || begun == 64 {
		t.Error("of 64 runs began", begun)
	}
}

func TestDiskFullTmpfs(t *testing.T) {
	dir, resize := tmpfs(t, 1<<20)
	begun := 0
	for size := range 64 {
		s := state{dir: filepath.Join(dir, itoa(size)), disk: osDisk{}}
		resize((size + 1) * 4096) // 0 would be without a limit
		w, err := s.create(testRun)
		if err == nil {
			begun++
			n := filled(t, w)
			resize(1 << 20)
			goesOn(t, s, w.ID(), n)
		} else if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), s.dir) {
			t.Fatal(err)
		}
		resize(1 << 20)
		must(t, os.RemoveAll(s.dir))
	}
	if begun < 32 || begun == 64 {
		t.Error("of 64 runs began", begun)
	}
}

// life is a run that is begun, dies and is gone on with. It returns what was accepted (how many records of which run) and the first error.
func life(s state) (id string, accepted int, err error) {
	w, err := s.create(testRun)
	if err != nil {
		return "", 0, err
	}
	id, accepted = w.ID(), 1
	step := func(r Record, write func(Record) error, counts int) {
		if e := write(r); e == nil && err == nil {
			accepted += counts
		} else if e == nil {
			err = fmt.Errorf("accepted after %w", errors.Join(err, errAccepted))
		} else if err == nil {
			err = e
		}
	}
	for range 3 {
		step(note("a"), w.Append, 0)
		step(note("b"), w.Commit, 2)
	}
	if e := w.Close(); err == nil {
		err = e
	}
	if err != nil {
		return id, accepted, err
	}
	f, err := os.OpenFile(s.path(id), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return id, accepted, err
	}
	f.WriteString(`{"n":8`)
	f.Close()
	w, recs, err := s.open(id)
	if err != nil {
		return id, accepted, err
	}
	if len(recs) != accepted || w.Torn == 0 {
		return id, accepted, fmt.Errorf("%d records, torn by %d", len(recs), w.Torn)
	}
	step(note("c"), w.Commit, 1)
	if e := w.Close(); err == nil {
		err = e
	}
	return id, accepted, err
}

var errAccepted = errors.New("a record was accepted after an error")

// Every single call that can fail does, alone or with the power: all that was accepted is on disk, and a failed sync is not tried again.
func TestEveryCallFails(t *testing.T) {
	for _, off := range []bool{false, true} {
		told, silent, n := 0, 0, 1
		for ; ; n++ {
			s, d := scratch(t)
			must(t, os.Mkdir(s.dir, 0o700)) // t.TempDir's own directories do not count
			d.failAt, d.off = n, off
			id, accepted, err := life(s)
			calls := d.calls
			d.failAt = 0
			if calls < n {
				must(t, err)
				break
			}
			if err == nil {
				silent++
			} else if told++; !errors.Is(err, syscall.EIO) || errors.Is(err, errAccepted) || !strings.Contains(err.Error(), s.dir) {
				t.Fatalf("call %d: %v", n, err)
			}
			if d.after > 0 && !off {
				t.Fatalf("call %d: %s was written or synced again after its error", n, d.failed)
			}
			if id == "" {
				l, err := s.list()
				if !off && len(l) != 0 || err != nil {
					t.Fatalf("call %d: a run that was not begun is listed: %+v, %v", n, l, err)
				}
				continue
			}
			if off { // what was not synced is gone
				st, err := os.Stat(s.path(id))
				must(t, err)
				must(t, os.Truncate(s.path(id), min(st.Size(), d.synced[s.path(id)])))
			}
			if recs, _, err := Read(s.dir, id); err != nil || len(recs) < accepted {
				t.Fatalf("call %d: %d records of %d accepted: %v", n, len(recs), accepted, err)
			}
			w, _, err := s.open(id)
			if err != nil {
				t.Fatalf("call %d: cannot go on: %v", n, err)
			}
			must(t, w.Commit(note("on")))
			must(t, w.Close())
		}
		// What nobody needs is that the name beside the lock is removed, when the run dies and when it ends.
		t.Logf("power off %v: %d calls, %d errors told, %d without effect", off, n-1, told, silent)
		if told < 20 || silent > 2 {
			t.Error("too few errors were told")
		}
	}
}

// 200 hosts that end a task at once cost two syncs: one that is under way when they come, and one for all.
func TestGroupCommit(t *testing.T) {
	const hosts, tasks = 200, 5
	s, d := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	for task := range tasks {
		var once sync.Once
		want := 1 + (task+1)*hosts
		d.gate = func() {
			once.Do(func() {
				for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					w.mu.Lock()
					n := w.n
					w.mu.Unlock()
					if n == want {
						return
					}
				}
			})
		}
		before := d.syncsNow()
		var all sync.WaitGroup
		for host := range hosts {
			all.Go(func() {
				if err := w.Commit(note(itoa(host))); err != nil {
					t.Error(err)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				if w.safe == 0 {
					t.Error("committed before a sync")
				}
			})
		}
		all.Wait()
		if n := d.syncsNow() - before; n != 2 {
			t.Errorf("%d commits cost %d syncs", hosts, n)
		}
	}
	must(t, w.Close())
	recs, _, err := Read(s.dir, w.ID())
	must(t, err)
	if len(recs) != 1+hosts*tasks {
		t.Errorf("%d records", len(recs))
	}
}

// An error reaches everybody who waits for the same sync.
func TestGroupFails(t *testing.T) {
	s, d := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	d.failAt, d.off = d.calls+2, false // its sync
	var all sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		all.Go(func() { errs[i] = w.Commit(note("x")) })
	}
	all.Wait()
	for _, err := range errs {
		if !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	if err := w.Close(); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

func TestAppend(t *testing.T) {
	s, d := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	defer w.Close()
	before := d.syncsNow()
	must(t, w.Append(note("soon")))
	if d.syncsNow() != before {
		t.Error("Append synced")
	}
	for deadline := time.Now().Add(5 * lag); ; time.Sleep(10 * time.Millisecond) {
		if recs, _, err := Read(s.dir, w.ID()); err == nil && len(recs) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what was appended never reached the file")
		}
	}
	for range 3 { // a backlog does not grow without end
		must(t, w.Append(note(strings.Repeat("x", backlog))))
	}
	if recs, _, err := Read(s.dir, w.ID()); err != nil || len(recs) != 5 {
		t.Error(len(recs), err)
	}
}

// A record that may not stand where it would is refused, and so is all after it: the caller has lost count of itself.
func TestRefused(t *testing.T) {
	for name, r := range map[string]Record{
		"nothing":     {},
		"unknown":     {Kind: "x", Note: &Note{}},
		"empty":       {Kind: KindBegin},
		"two":         {Kind: KindNote, Note: &Note{}, End: &End{}},
		"run":         {Kind: KindRun, Run: &Run{}},
		"bad JSON":    {Kind: KindFacts, Facts: &Facts{Values: json.RawMessage(`{`)}},
		"unnumbered":  {Kind: KindSettled, Settled: &Settled{Run: "20261126-101530-k3f9"}},
		"a turn":      {Kind: KindEnd, End: &End{Turn: true, Settles: []Settled{{Run: "20261126-101530-k3f9"}}}},
		"year 10,000": {Kind: KindNote, Note: &Note{}, Time: time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)},
		"too long":    {Kind: KindFacts, Facts: &Facts{Values: json.RawMessage(`"` + strings.Repeat("x", MaxLine) + `"`)}},
	} {
		s, _ := scratch(t)
		w, err := s.create(testRun)
		must(t, err)
		must(t, w.Append(note("before")))
		first := w.Commit(r)
		if first == nil || w.Append(note("after")) == nil || w.Close() == nil {
			t.Errorf("%s: %v, then not", name, first)
		}
		if recs, torn, err := Read(s.dir, w.ID()); err != nil || torn != 0 || len(recs) > 2 {
			t.Errorf("%s: %d records, %v", name, len(recs), err)
		}
	}
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	must(t, w.Commit(Record{Kind: KindClose, Close: &Close{Status: Done}}))
	if err := w.Commit(note("after the end")); err == nil {
		t.Error("a note follows after the end")
	}
	w.Close()
	if err := w.Commit(note("closed")); err == nil {
		t.Error("written after Close")
	}
}

func TestLongLines(t *testing.T) {
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	long := strings.Repeat("x", 3<<20)
	must(t, w.Commit(note(long)))
	for range 2 { // the last line is long, and then the one before the last
		info, err := look(w.ID(), w.Path(), false)
		if err != nil || info.Err != nil || info.Status != Running {
			t.Fatal(info.Status, info.Err, err)
		}
		must(t, w.Commit(note("short")))
	}
	recs, _, err := Read(s.dir, w.ID())
	must(t, err)
	if len(recs) != 4 || recs[1].Note.Text != long {
		t.Error(len(recs))
	}
	must(t, w.Close())
	// The longest line is written and read, and one more byte is refused on both sides.
	at := time.Unix(0, 0)
	line, _, err := appendLine(nil, "", 2, at, nil)
	must(t, err)
	content := bytes.Repeat([]byte("x"), MaxLine-len(line))
	line, sum, err := appendLine(nil, "", 2, at, content)
	if err != nil || len(line) != MaxLine {
		t.Fatal(err, len(line))
	}
	r := newReader(bytes.NewReader(line), "x")
	if got, err := r.next(); err != nil || len(got) != MaxLine-1 || r.sum != sum {
		t.Error(err, len(got))
	}
	before := []byte("before")
	if b, _, err := appendLine(before, "", 2, at, append(content, 'x')); err == nil || string(b) != "before" {
		t.Error(err, len(b))
	}
	// Of a line without end no more than that is kept in memory.
	r = newReader(io.LimitReader(zeros{}, 1<<40), "x")
	if _, err := r.next(); !errors.As(err, new(*CorruptError)) || cap(r.line) > 2*MaxLine {
		t.Error(err, cap(r.line))
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// What was written but never synced may be read as long as the machine is up: whoever builds upon it syncs it first.
func TestOpenSyncs(t *testing.T) {
	s, d := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	d.failAt = d.calls + 2
	if err := w.Commit(note("in the file, perhaps not on disk")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	w.Close()
	st, err := os.Stat(w.Path())
	must(t, err)
	if d.synced[w.Path()] >= st.Size() {
		t.Fatal("nothing is left to sync")
	}
	w, recs, err := s.open(w.ID())
	must(t, err)
	if len(recs) != 2 || d.synced[w.Path()] != st.Size() {
		t.Errorf("%d records, %d of %d bytes synced", len(recs), d.synced[w.Path()], st.Size())
	}
	must(t, w.Close())
}

// A sum that holds does not make a record of what is none.
func TestWellSummed(t *testing.T) {
	const run = `"kind":"run","run":{"format":1}`
	for name, c := range map[string]struct {
		n    []int
		line []string
		bad  int
	}{
		"a gap":           {[]int{1, 3}, []string{run, `"kind":"note","note":{}`}, 2},
		"begins late":     {[]int{2}, []string{run}, 1},
		"without run":     {[]int{1}, []string{`"kind":"note","note":{}`}, 1},
		"two runs":        {[]int{1, 2}, []string{run, run}, 2},
		"after its end":   {[]int{1, 2, 3}, []string{run, `"kind":"close","close":{}`, `"kind":"note","note":{}`}, 3},
		"an empty field":  {[]int{1, 2}, []string{run, `"kind":"note","note":null`}, 2},
		"no JSON":         {[]int{1, 2}, []string{run, `"kind":"note","note":{]`}, 2},
		"of a wrong type": {[]int{1, 2}, []string{run, `"kind":"note","note":{"text":1}`}, 2},
	} {
		var b []byte
		var sum string
		var starts []int
		for i := range c.n {
			starts = append(starts, len(b))
			var err error
			b, sum, err = appendLine(b, sum, c.n[i], time.Now(), []byte(c.line[i]))
			must(t, err)
		}
		n := 0
		err := newReader(bytes.NewReader(b), "x").each(func(Record) error { n++; return nil })
		var e *CorruptError
		if !errors.As(err, &e) || e.N != c.bad || n != c.bad-1 || e.Offset != int64(starts[c.bad-1]) {
			t.Errorf("%s: %v, %d records", name, err, n)
		}
	}
}

// A record of a later format is refused by name, not called damaged.
func TestFormat(t *testing.T) {
	s, _ := scratch(t)
	must(t, s.make())
	const id = "20261126-101530-k3f9"
	b, _, err := appendLine(nil, "", 1, time.Now(), []byte(`"kind":"run","run":{"format":2,"id":"`+id+`","version":"9.0"},"new":1`))
	must(t, err)
	must(t, os.WriteFile(s.path(id), b, 0o600))
	_, _, err = Read(s.dir, id)
	var f *FormatError
	if !errors.As(err, &f) || f.Format != 2 || f.Version != "9.0" {
		t.Error(err)
	}
	if _, _, err := s.open(id); !errors.As(err, &f) {
		t.Error(err)
	}
	l, err := s.list()
	if err != nil || l[0].Status != Corrupt || !errors.As(l[0].Err, &f) {
		t.Error(l, err)
	}
}

// The order is that of the numbers, whatever the clock does, and names stay unique.
func TestClockJumps(t *testing.T) {
	s, _ := scratch(t)
	w, err := s.create(testRun)
	must(t, err)
	now := time.Now()
	for i := range 20 {
		r := note(itoa(i))
		r.Time = now.Add(time.Duration(i%3-1) * 24 * time.Hour)
		must(t, w.Commit(r))
	}
	must(t, w.Close())
	w, recs, err := s.open(w.ID())
	must(t, err)
	for i, r := range recs[1:] {
		if r.N != i+2 || r.Note.Text != itoa(i) {
			t.Fatalf("record %d: %+v", i+2, r)
		}
	}
	must(t, w.Close())
	seen := map[string]bool{}
	for range 100 {
		w, err := s.create(testRun)
		must(t, err)
		if seen[w.ID()] {
			t.Fatal("two runs are called", w.ID())
		}
		seen[w.ID()] = true
		must(t, w.Close())
	}
	// A name that is taken is refused, and who holds it is left alone.
	r := testRun
	r.ID = "20261126-101530-k3f9"
	w, err = s.create(r)
	must(t, err)
	defer w.Close()
	must(t, w.Commit(note("mine")))
	if _, err := s.create(r); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if _, ok := s.readHolder(r.ID); !ok {
		t.Error("the name beside the lock is gone")
	}
	must(t, w.Commit(note("still mine")))
	if recs, _, err := Read(s.dir, r.ID); err != nil || len(recs) != 3 {
		t.Error(len(recs), err)
	}
}

func TestStateDir(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	base := t.TempDir()
	mode := func(path string) os.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		must(t, err)
		return info.Mode().Perm()
	}
	t.Setenv("HOME", base)
	t.Setenv("XDG_STATE_HOME", "relative")
	if got, err := Dir(""); err != nil || got != base+"/.local/state/runbook" {
		t.Error(got, err)
	}
	t.Setenv("XDG_STATE_HOME", base+"/xdg")
	dir, err := Dir("")
	if err != nil || dir != base+"/xdg/runbook" {
		t.Fatal(dir, err)
	}
	w, err := Create("", testRun)
	must(t, err)
	for path, want := range map[string]os.FileMode{base + "/xdg": 0o700, dir: 0o700, dir + "/runs": 0o700, w.Path(): 0o600,
		strings.TrimSuffix(w.Path(), ".jsonl") + ".holder": 0o600} {
		if got := mode(path); got != want {
			t.Errorf("%s has the mode %o", path, got)
		}
	}
	must(t, w.Close())
	if left, _ := filepath.Glob(dir + "/runs/*"); len(left) != 1 {
		t.Error("left behind:", left)
	}
	refused := func(what, word string) {
		t.Helper()
		for name, f := range map[string]func() error{
			"Dir":    func() error { _, err := Dir(dir); return err },
			"Create": func() error { _, err := Create(dir, testRun); return err },
			"Open":   func() error { _, _, err := Open(dir, w.ID()); return err },
			"Prune":  func() error { _, err := Prune(dir, 0, time.Now()); return err },
			"Import": func() error { _, err := Import(dir, strings.NewReader("")); return err },
			"Debts":  func() error { _, err := Debts(dir, nil); return err },
		} {
			if err := f(); err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: %s says %v", what, name, err)
			}
		}
	}
	for _, path := range []string{dir, dir + "/runs"} {
		for _, bad := range []os.FileMode{0o720, 0o702, 0o777} {
			must(t, os.Chmod(path, bad))
			refused(fmt.Sprintf("%s with %o", path, bad), "others may write")
		}
		must(t, os.Chmod(path, 0o755))
		if _, err := Dir(dir); err != nil {
			t.Error(err)
		}
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, 65534, 65534))
		refused("of another user", "belongs to user 65534")
		must(t, os.Chown(dir, 0, 0))
	}
	// To read needs no directory, and makes none.
	none := base + "/none"
	if l, err := List(none); err != nil || len(l) != 0 {
		t.Error(l, err)
	}
	if d, err := Debts(none, nil); err != nil || len(d) != 0 {
		t.Error(d, err)
	}
	if _, _, err := Read(none, "20261126-101530-k3f9"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("reading made a directory")
	}
	for _, id := range []string{"", "..", "../../etc/passwd", "20261126-101530-k3f9/../x", "20261126-101530-K3F9"} {
		if _, _, err := Read(dir, id); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := Create(dir, Run{ID: id}); id != "" && err == nil {
			t.Errorf("%q was begun", id)
		}
	}
	// A link that somebody put in the place of a record is not followed.
	must(t, os.Symlink(w.Path(), dir+"/runs/20261126-101530-k3f9.jsonl"))
	if _, _, err := Open(dir, "20261126-101530-k3f9"); err == nil || !strings.Contains(err.Error(), "it is a symbolic link") {
		t.Error(err)
	}
}
