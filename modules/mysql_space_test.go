package modules

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// What a host says of the disks of its server's folders.
func TestParseDisks(t *testing.T) {
	for _, c := range []struct{ said, want string }{
		{"", ""},
		{"K 999999 /var/lib/mysql\t/\nI 12 /var/lib/mysql\t/\n", ""},
		{"K 0 /var/lib/mysql\t/\nK 0 /var/lib/mysql/\t/\nI 5 /var/lib/mysql\t/\n", "the disk of /var/lib/mysql is full, 0 KB free"},
		{"K 16383 /a b\t/mnt\nI 0 /a b\t/mnt\nK 16384 /tmp\t/tmp\n", "the disk of /a b is full, 16383 KB free; the disk of /a b has no inodes left"},
		{"K x /a\t/\nK 1\nnonsense\n", ""},
	} {
		if got := parseDisks(c.said); got != c.want {
			t.Errorf("%q: %q, want %q", c.said, got, c.want)
		}
	}
	// A real host says it so that it can be read.
	out, err := exec.Command("sh", "-c", mysqlDisks, "runbook", "/", t.TempDir(), "/none").Output()
	if err != nil || !regexp.MustCompile(`(?m)^K [0-9]+ /\t/`).Match(out) || parseDisks(string(out)) != "" {
		t.Errorf("%q, %v: %q", out, err, parseDisks(string(out)))
	}
}

// A dump is whole only if its last line is the trailer, all of it, and stands outside of a routine's body.
func TestDumpTrailer(t *testing.T) {
	const dated, undated = "-- Dump completed on 2026-11-26 10:46:21\n", "-- Dump completed\n"
	file := filepath.Join(t.TempDir(), "dump.sql")
	whole := func(text string) bool {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sh", "-c", dumpInspect+`inspect "$1"`, "runbook", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		facts, err := parseDumpFacts(out)
		if err != nil {
			t.Fatal(err)
		}
		if len(facts.Tables["d"]) != 1 {
			t.Errorf("%q: tables %v", text, facts.Tables)
		}
		return facts.Complete
	}
	const body = "USE `d`;\nCREATE TABLE `t` (\n"
	for _, trailer := range []string{dated, undated, "-- Dump completed on 2026-11-26  4:46:21\n", undated + "\n"} {
		if !whole(body + trailer) {
			t.Errorf("%q does not count as the end of a dump", trailer)
		}
	}
	for at := range len(dated) {
		if whole(body + dated[:at]) {
			t.Errorf("a dump that is cut off at %q counts as whole", dated[:at])
		}
	}
	if whole(body + "DELIMITER ;;\nCREATE PROCEDURE p() BEGIN\n" + undated) {
		t.Error("a dump that is cut off in a procedure, after a line like the trailer, counts as whole")
	}
	if !whole(body + "DELIMITER ;;\nCREATE PROCEDURE p() BEGIN\n" + undated + "END ;;\nDELIMITER ;\n" + dated) {
		t.Error("a dump with a line like the trailer in a procedure does not count as whole")
	}
}
