package modules

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"runbook/engine/module"
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
		if got := parseDisks(c.said, mysqlExtentKB); got != c.want {
			t.Errorf("%q: %q, want %q", c.said, got, c.want)
		}
	}
	// A real host says it so that it can be read.
	out, err := exec.Command("sh", "-c", mysqlDisks, "runbook", "/", t.TempDir(), "/none").Output()
	if err != nil || !regexp.MustCompile(`(?m)^K [0-9]+ /\t/`).Match(out) || parseDisks(string(out), mysqlExtentKB) != "" {
		t.Errorf("%q, %v: %q", out, err, parseDisks(string(out), mysqlExtentKB))
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

// A statement that waits for room is given up, though not ended, and so is one that waits for it; what is only slow is not.
func TestNoRoom(t *testing.T) {
	s, _ := startPair(t)
	defer func(before struct{ look, full, room time.Duration }) { mysqlPatience = before }(mysqlPatience)
	mysqlPatience.look, mysqlPatience.full, mysqlPatience.room = 100*time.Millisecond, time.Second, time.Second

	disk := filepath.Join(s.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("SKIPPED: needs a disk that is full, and cannot mount one: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	s.sql("CREATE DATABASE room", "CREATE TABLE room.t (a LONGBLOB) ENGINE=MyISAM DATA DIRECTORY='"+disk+"'")
	const fills = "INSERT INTO room.t VALUES (REPEAT('x', 200000))"

	login := mysqlLogin{LoginUser: "root", LoginSocket: s.socket}
	looks, err := login.open(t.Context(), s.host)
	if err != nil {
		t.Fatal(err)
	}
	defer looks.close()
	if err := looks.exec(t.Context(), "DO SLEEP(2.5)"); err != nil {
		t.Errorf("a statement that is only slow: %v", err)
	}
	for _, query := range []string{fills, "DROP TABLE room.t"} {
		begin := time.Now()
		_, _, err := s.apply("sql", map[string]any{"login_socket": s.socket, "query": query})
		if under := (*module.UnderWayError)(nil); !errors.As(err, &under) || !strings.Contains(err.Error(), "the server waits for room on a disk") {
			t.Errorf("%q: %v", query, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%q is given up after %v", query, took)
		}
	}
	// It was not ended: it goes on when there is room. That the server notices once a minute only is not waited for.
	if waits, _, err := looks.waitsForRoom(t.Context()); err != nil || !waits {
		t.Errorf("the statement that was given up: waits %t, %v", waits, err)
	}
}
