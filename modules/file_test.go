package modules

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"runbook/engine/module"
)

// The old content is kept under a name with the time of the change.
func TestBackup(t *testing.T) {
	host, dir := localHost(t), t.TempDir()
	file := filepath.Join(dir, "my.cnf")
	if err := os.WriteFile(file, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	m := All()["copy"]()
	if err := module.Decode(m, map[string]any{"dest": file, "content": "new", "backup": true}); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Check(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), host, plan); err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob(file + ".*~")
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if data, _ := os.ReadFile(kept[0]); string(data) != "old" {
		t.Errorf("kept %q", data)
	}
}

// Large content is compared by its digest, and not sent to the diff.
func TestLargeContent(t *testing.T) {
	host, file := localHost(t), filepath.Join(t.TempDir(), "large")
	large := strings.Repeat("0123456789abcdef", 100_000)
	m := All()["copy"]()
	if err := module.Decode(m, map[string]any{"dest": file, "content": large}); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Check(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Changes) != 1 || len(plan.Changes[0].After) > 100 {
		t.Errorf("%d changes, %d bytes shown", len(plan.Changes), len(plan.Changes[0].After))
	}
	if _, err := m.Apply(t.Context(), host, plan); err != nil {
		t.Fatal(err)
	}
	if plan, err := m.Check(t.Context(), host); err != nil || len(plan.Changes) > 0 {
		t.Errorf("second plan has %d changes, %v", len(plan.Changes), err)
	}
	if data, _ := os.ReadFile(file); string(data) != large {
		t.Errorf("wrote %d bytes", len(data))
	}
}
