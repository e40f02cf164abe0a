package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"runbook/engine/journal"
)

// wholeTable is longest by the rule itself: with a table of all lengths, of lists that are not cut.
func wholeTable(m, n int, same func(i, j int) bool) func(i, j int) bool {
	length := make([][]int, m+1)
	for i := range length {
		length[i] = make([]int, n+1)
	}
	for i := m - 1; i >= 0; i-- {
		for j := n - 1; j >= 0; j-- {
			if same(i, j) {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	return func(i, j int) bool { return length[i+1][j] >= length[i][j+1] }
}

// TestLongest: wherever a comparison of two lists can come to, it goes on as it would by the whole table.
func TestLongest(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	asked, cut := 0, 0
	for range 20000 {
		letters := 1 + random.IntN(4)
		list := func(most int) []int {
			l := make([]int, random.IntN(most+1))
			for i := range l {
				l[i] = random.IntN(letters)
			}
			return l
		}
		head, tail := list(4), list(4)
		a, b := slices.Concat(head, list(7), tail), slices.Concat(head, list(7), tail)
		same := func(i, j int) bool { return a[i] == b[j] }
		got, want := longest(len(a), len(b), same), wholeTable(len(a), len(b), same)
		for i, j := 0, 0; i < len(a) && j < len(b); {
			if same(i, j) {
				i, j = i+1, j+1
				continue
			}
			asked++
			if got(i, j) != want(i, j) {
				t.Fatalf("%v and %v, at %d and %d: %v, want %v", a, b, i, j, got(i, j), want(i, j))
			}
			if i >= len(a)-len(tail) || j >= len(b)-len(tail) {
				cut++
			}
			if want(i, j) {
				i++
			} else {
				j++
			}
		}
	}
	if asked < 10000 || cut < 1000 {
		t.Errorf("asked %d times, %d of them in what was cut off: that is no test", asked, cut)
	}
}

// TestAlignLarge: what a comparison of long books needs hangs on how much of them differs, and stays small.
func TestAlignLarge(t *testing.T) {
	const n = 10000
	book := func(edited int) []journal.Task {
		tasks := make([]journal.Task, n)
		for i := range tasks {
			tasks[i] = journal.Task{ID: fmt.Sprintf("1:1/%d", i+1), Name: fmt.Sprintf("task %d", i), Digest: "as it was"}
			if i >= 100 && i < 100+edited {
				tasks[i].Digest = "edited"
			}
		}
		return tasks
	}
	old := book(0)
	for edited, most := range map[int]uint64{0: 4 << 20, 1: 4 << 20, 5000: 8 << 20} {
		now := book(edited)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		pairs := align(old, now)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > most {
			t.Errorf("%d of %d tasks were edited: it took %d MB", edited, n, took>>20)
		}
		differ := 0
		for i, p := range pairs {
			if p.old == nil || p.now == nil || p.old.ID != p.now.ID {
				t.Fatalf("pair %d: %v", i, p)
			}
			if p.old.Digest != p.now.Digest {
				differ++
			}
		}
		if len(pairs) != n || differ != edited {
			t.Errorf("%d pairs, %d of which differ, want %d", len(pairs), differ, edited)
		}
	}
}
