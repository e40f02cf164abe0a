package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"runbook/engine/journal"
)

// A run is given up for a person who says yes, and for nobody else; nothing is written before.
func TestGiveUpAsks(t *testing.T) {
	dir := t.TempDir()
	id, _ := started(t, dir, journal.Run{Args: []string{"run"}, Hosts: []string{"a"}})
	for _, answer := range []string{"", "y", "no", "eof", "yes"} {
		var out, errs strings.Builder
		g := &givingUp{stateDir: dir, reason: "a  is gone", out: &out, errs: &errs, ask: func(context.Context, string) (string, error) {
			if answer == "eof" {
				return "", errors.New("cannot ask")
			}
			return answer + "\n", nil
		}}
		err := g.giveUp(context.Background(), id)
		records, _, readErr := journal.Read(dir, id)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if answer == "yes" {
			last := records[len(records)-1].Close
			if err != nil || last == nil || last.Status != journal.GivenUp || records[1].Resume == nil || records[1].Resume.GiveUp != "a is gone" {
				t.Errorf("yes: %v, %+v, %s%s", err, records, &out, &errs)
			}
			continue
		}
		var ended *exitError
		if !errors.As(err, &ended) || ended.code != exitFailed || len(records) != 1 || !strings.HasPrefix(out.String(), "Run "+id) {
			t.Errorf("%q: %v, %d records, %s%s", answer, err, len(records), &out, &errs)
		}
	}
}
