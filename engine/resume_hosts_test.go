package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"runbook/engine"
	"runbook/engine/journal"
)

// says adds to the record, behind its end, what a host is to have said of itself in the last part of the run.
func (r *resumable) says(t *testing.T, f journal.Facts) {
	t.Helper()
	w, _, err := journal.Open(r.state, r.id)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, rec := range []journal.Record{{Kind: journal.KindResume, Resume: &journal.Resume{}}, {Kind: journal.KindFacts, Facts: &f}} {
		if err := w.Commit(rec); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnotherMachine guards that what is on record of a host is not taken for done on a machine that has its name since, and that nothing is done
// there before somebody has said that it is meant.
func TestAnotherMachine(t *testing.T) {
	r := newResumable(t, resumeHead+says("bare", "")+gate+"      - name: behind\n        command: {shell: 'echo {{ inventory_hostname }} >>{{ root }}/behind'}\n")
	r.run(t, nil)
	r.touch(t, "open")
	r.says(t, journal.Facts{Host: "a", Machine: "another"})
	out, s := r.run(t, nil)
	if len(s.Questions) != 1 || !s.Questions[0].Accept || r.read("behind") != "b\n" || !strings.Contains(out, "another machine") {
		t.Errorf("asked %v, ran on %q:\n%s", s.Questions, r.read("behind"), out)
	}
	if out, s = r.run(t, func(job *engine.Job) { job.AcceptChanges = true }); s.Failed() || s.Asked() || r.read("behind") != "b\na\n" {
		t.Errorf("accepted, asked %v, ran on %q:\n%s", s.Questions, r.read("behind"), out)
	}
	r.log(t, "bare ")
}

// TestStartedAnew guards that, on a host that has started anew, what was as declared is looked at again like what was changed, and that what was asked
// of the host is not.
func TestStartedAnew(t *testing.T) {
	r := newResumable(t, resumeHead+`      - name: in memory
        copy: {dest: '{{ root }}/{{ inventory_hostname }}', content: "x\n"}
      - name: look
        command: {shell: 'echo look >>{{ root }}/looks.{{ inventory_hostname }}; cat {{ root }}/{{ inventory_hostname }}', read: true}
        register: found
`+says("bare", "")+gate+`      - name: behind
        copy: {dest: '{{ root }}/behind.{{ inventory_hostname }}', content: "{{ found.stdout }}\n"}
`)
	for _, host := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(r.root, host), []byte("x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.run(t, nil)
	r.touch(t, "open")
	for _, host := range []string{"a", "b"} {
		if err := os.Remove(filepath.Join(r.root, host)); err != nil {
			t.Fatal(err)
		}
	}
	r.says(t, journal.Facts{Host: "a", BootID: "another"})
	out, s := r.run(t, nil)
	if s.Failed() || s.Asked() || r.read("a") != "x\n" || r.read("looks.a") != "look\n" || r.read("behind.a") != "x\n" {
		t.Errorf("started anew, left %q, looked %q, %q:\n%s", r.read("a"), r.read("looks.a"), r.read("behind.a"), out)
	}
	r.log(t, "bare ")
}

// TestDebtsElsewhere guards that a debt is paid on the machine that it is owed to, and once by runs that overlap.
func TestDebtsElsewhere(t *testing.T) {
	r := newResumable(t, resumeHead+"      - name: file\n"+onA+"        copy: {dest: '{{ root }}/file', content: \"x\\n\"}\n        notify: restart\n"+gate+restarts)
	r.run(t, nil)
	r.touch(t, "open")
	debts := r.owes(t)
	pay := func(machine string) string {
		t.Helper()
		r.id = ""
		out, s := r.run(t, func(job *engine.Job) {
			for _, d := range debts {
				if machine != "" {
					d.Machine = machine
				}
				job.Debts = append(job.Debts, d)
			}
		})
		if s.Failed() {
			t.Errorf("not through:\n%s", out)
		}
		return out
	}
	if out := pay("another"); r.read("log") != "" || !strings.Contains(out, "another machine of this name") || len(r.owes(t)) != 1 {
		t.Errorf("paid on another machine: %q, owed %v\n%s", r.read("log"), r.owes(t), out)
	}
	pay("")
	r.log(t, "restarted ")
	if out := pay(""); len(r.owes(t)) != 0 || !strings.Contains(out, "another run has done it meanwhile") { // which did not know of the one before
		t.Errorf("owed %v\n%s", r.owes(t), out)
	}
	r.log(t, "restarted ")
}
