package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// FuzzReader: any bytes are records in their order, or a clean error with its place. sealed gives each line of the bytes the sum that it
// must have, or no chance would ever come behind the sums.
func FuzzReader(f *testing.F) {
	s, _ := scratch(f)
	id, _ := whole(f, s)
	b, err := os.ReadFile(s.path(id))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, false)
	f.Add(b[:len(b)-10], false)
	var bare []byte
	for line := range bytes.Lines(b) {
		bare = append(append(bare, line[:len(line)-1-endLen]...), '\n')
	}
	f.Add(bare, true)
	f.Add([]byte(`{"n":1,"kind":"run","run":{"format":1}`+"\n"+`{"n":2,"kind":"note","note":null`+"\n"), true)
	f.Add([]byte(`{"n":1,"n":2,"KIND":"run","run":{},"facts":{}`+"\n"), true)
	f.Add([]byte("\x00\n\n{}\n"), false)
	f.Fuzz(func(t *testing.T, in []byte, sealed bool) {
		if sealed {
			var out []byte
			sum := ""
			for line := range bytes.Lines(in) {
				body, whole := bytes.CutSuffix(line, []byte("\n"))
				out = append(out, body...)
				if whole {
					sum = chain(sum, body)
					out = append(out, sumHead+sum+sumTail+"\n"...)
				}
			}
			in = out
		}
		var recs []Record
		r := newReader(bytes.NewReader(in), "x")
		err := r.each(func(rec Record) error { recs = append(recs, rec); return nil })
		for i, rec := range recs {
			if rec.N != i+1 || (rec.Kind == KindRun) != (i == 0) {
				t.Fatalf("record %d: %+v", i+1, rec)
			}
		}
		var c *CorruptError
		var format *FormatError
		switch {
		case err == nil:
			if len(recs) == 0 || len(recs) != bytes.Count(in, []byte("\n")) || int(r.offset)+r.torn != len(in) {
				t.Fatalf("%d records, up to %d, torn by %d, of %d bytes", len(recs), r.offset, r.torn, len(in))
			}
			// What was read can be written.
			for _, rec := range recs {
				if _, err := content(rec); err != nil && rec.Time.Year() < 10000 {
					t.Fatal(err)
				}
			}
		case errors.As(err, &c):
			if c.Offset < 0 || c.Offset > int64(len(in)) || c.Offset > 0 && in[c.Offset-1] != '\n' || c.N != len(recs)+1 {
				t.Fatalf("%v; %d records", err, len(recs))
			}
		case !errors.As(err, &format):
			t.Fatal(err)
		}
		if cap(r.line) > 2*len(in)+128<<10 {
			t.Fatalf("%d bytes of memory for a line of %d", cap(r.line), len(in))
		}
		// The same without decoding what is between the ends, as the list does it.
		list := newReader(bytes.NewReader(in), "x")
		if line, firstErr := list.next(); firstErr == nil {
			last, lastErr := lastRecord(list, line)
			if err == nil && (lastErr != nil || last.N != len(recs)) {
				t.Fatalf("the last record: %v, record %d of %d", lastErr, last.N, len(recs))
			}
			if lastErr == nil && list.n != bytes.Count(in, []byte("\n")) {
				t.Fatalf("the last record is the %d., of %d lines", list.n, bytes.Count(in, []byte("\n")))
			}
		}
	})
}

func value(n int) json.RawMessage { return json.RawMessage(`"` + strings.Repeat("x", n) + `"`) }

// BenchmarkCommit is what one host pays for a record of a usual size to be on disk.
func BenchmarkCommit(b *testing.B) {
	w, err := Create(b.TempDir(), testRun)
	must(b, err)
	for b.Loop() {
		must(b, w.Commit(Record{Kind: KindEnd, End: &End{Key: Key{Task: "t", Host: "h", Nth: 1}, Values: value(500)}}))
	}
	must(b, w.Close())
}

// BenchmarkCommit200 is a task on 200 hosts: a begin and an end of each, all at once.
func BenchmarkCommit200(b *testing.B) {
	d := &faults{}
	s := state{dir: b.TempDir(), disk: d}
	w, err := s.create(testRun)
	must(b, err)
	syncs, tasks := d.syncs, 0
	for b.Loop() {
		tasks++
		done := make(chan error)
		for range 200 {
			go func() {
				k := Key{Task: "t", Host: "h", Nth: 1}
				done <- errors.Join(w.Commit(Record{Kind: KindBegin, Begin: &Begin{Key: k}}),
					w.Commit(Record{Kind: KindEnd, End: &End{Key: k, Values: value(500)}}))
			}()
		}
		for range 200 {
			must(b, <-done)
		}
	}
	b.ReportMetric(float64(d.syncs-syncs)/float64(tasks), "syncs/task")
	must(b, w.Close())
}

// BenchmarkRead reads 10,000 records.
func BenchmarkRead(b *testing.B) {
	s, _ := scratch(b)
	w, err := s.create(testRun)
	must(b, err)
	for range 10_000 {
		must(b, w.Append(Record{Kind: KindEnd, Time: time.Now(), End: &End{Key: Key{Task: "t", Host: "h", Nth: 1}, Values: value(500)}}))
	}
	must(b, w.Close())
	st, err := os.Stat(w.Path())
	must(b, err)
	b.SetBytes(st.Size())
	for b.Loop() {
		if _, err := Each(s.dir, w.ID(), func(Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDebts asks what 100 runs of 1,000 records owe, of which one died and another has paid.
func BenchmarkDebts(b *testing.B) {
	s, _ := scratch(b)
	owes := ""
	for i := range 100 {
		w, err := s.create(testRun)
		must(b, err)
		for range 998 {
			must(b, w.Append(Record{Kind: KindEnd, End: &End{Key: Key{Task: "t1", Host: "h", Nth: 1}, Notified: []string{"h1"}, Values: value(500)}}))
		}
		if owes == "" {
			owes = w.ID()
		} else {
			if i == 50 {
				must(b, w.Append(Record{Kind: KindSettled, Settled: &Settled{Run: owes, Host: "h", Handler: "h1", N: 999}}))
			}
			must(b, w.Append(Record{Kind: KindClose, Close: &Close{Status: Done}}))
		}
		must(b, w.Close())
	}
	for b.Loop() {
		if d, err := Debts(s.dir, nil); err != nil || len(d) != 0 {
			b.Fatal(d, err)
		}
	}
}
