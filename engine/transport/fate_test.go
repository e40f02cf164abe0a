package transport

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestFate is what one machine can know of another controller: it must not think a process gone that may be alive.
func TestFate(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	me := Self("a")
	part := func(i int, text string) func(*Holder) {
		return func(h *Holder) {
			parts := strings.Split(h.Mark, ":")
			parts[i] = text
			h.Mark = strings.Join(parts, ":")
		}
	}
	silent := func(h *Holder) { h.Renewed = h.Now.Add(-2 * time.Minute) }
	pid := func(n int) func(*Holder) { return func(h *Holder) { h.PID = n } }
	name := func(h *Holder) { h.Controller = "ctl.example.org" }
	for _, test := range []struct {
		what        string
		change      []func(*Holder)
		gone, lives bool
	}{
		{"this process", nil, false, true},
		{"one that has ended", []func(*Holder){pid(dead.Process.Pid)}, true, false},
		{"one whose number another one has", []func(*Holder){part(3, "1")}, true, false},
		{"one whose start is not known", []func(*Holder){part(3, "")}, false, false},
		{"one of another machine", []func(*Holder){name, pid(dead.Process.Pid)}, false, false},
		{"one of another space of processes", []func(*Holder){part(2, "1"), pid(dead.Process.Pid)}, false, false},
		{"one before a restart", []func(*Holder){part(1, "x"), silent}, true, false},
		{"one of a clone that was heard of", []func(*Holder){part(1, "x")}, false, false},
		{"one of another machine by that name", []func(*Holder){part(0, "x"), part(1, "x"), silent}, false, false},
		{"one of a machine that has no id", []func(*Holder){part(0, ""), part(1, "x"), silent}, false, false},
		{"one that says nothing", []func(*Holder){func(h *Holder) { h.Mark = "" }}, false, false},
		{"one with a number that is none", []func(*Holder){pid(0)}, false, false},
		{"a group of processes", []func(*Holder){pid(-os.Getpid())}, false, false},
	} {
		h := me
		h.Now = time.Now()
		h.Renewed = h.Now
		for _, change := range test.change {
			change(&h)
		}
		if parts := strings.Split(me.Mark, ":"); parts[0] == "" && test.what == "one before a restart" {
			continue // no machine id here
		}
		if gone, lives := h.fate(); gone != test.gone || lives != test.lives {
			t.Errorf("%s: gone %v, lives %v", test.what, gone, lives)
		}
	}
}

// Who runs the program is the person, under sudo too.
func TestOperator(t *testing.T) {
	t.Setenv("SUDO_USER", "")
	own, controller := Operator()
	if here, _ := os.Hostname(); own == "" || controller != here {
		t.Errorf("%q on %q", own, controller)
	}
	t.Setenv("SUDO_USER", "alice")
	want := own
	if os.Geteuid() == 0 {
		want = "alice"
	}
	if name, _ := Operator(); name != want || Self("a").User != want {
		t.Errorf("under sudo: %q, a holder is %q, want %q", name, Self("a").User, want)
	}
}
