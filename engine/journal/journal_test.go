package journal

import (
	"testing"
)

func TestRound(t *testing.T) {
	dir := t.TempDir() + "/state"
	w, err := Create(dir, Run{Version: "1", User: "ann", Hosts: []string{"voms1"}, Books: []Book{{Path: "a.yml", Tasks: []Task{{ID: "t1"}, {ID: "h1", Name: "restart", Play: "p"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	k := Key{Task: "t1", Host: "voms1", Nth: 1}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.Append(Record{Kind: KindNote, Note: &Note{Text: "<é>"}}))
	must(w.Commit(Record{Kind: KindBegin, Begin: &Begin{Key: k}}))
	if _, _, err := Open(dir, w.ID()); err == nil {
		t.Fatal("opened twice")
	} else {
		t.Log(err)
	}
	must(w.Commit(Record{Kind: KindEnd, End: &End{Key: k, Status: "changed", Notified: []string{"h1"}}}))
	must(w.Close())
	d, err := Debts(dir, nil)
	must(err)
	t.Logf("%+v", d)
	w, recs, err := Open(dir, w.ID())
	must(err)
	if len(recs) != 4 {
		t.Fatalf("%+v", recs)
	}
	must(w.Commit(Record{Kind: KindClose, Close: &Close{Status: Done}}))
	l, err := List(dir)
	must(err)
	t.Logf("%+v", l)
	must(w.Close())
}
