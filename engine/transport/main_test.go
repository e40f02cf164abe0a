package transport_test

import (
	"flag"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain fails the run if it leaves goroutines of ours or private directories behind. Shells that are killed cannot
// remove theirs: the tests that do that remove it themselves.
func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	tmp, err := os.MkdirTemp("", "rbtest-tmp-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // for all the users of the suite
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Setenv("TMPDIR", tmp); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Most of the tests' time is waiting.
	flag.Parse()
	if err := flag.Set("test.parallel", "24"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	for what, find := range map[string]func() string{
		"goroutines":          ourGoroutines,
		"private directories": func() string { return ourDirectories(tmp) },
	} {
		if left := leftovers(find); left != "" {
			fmt.Fprintf(os.Stderr, "%s are left:\n%s\n", what, left)
			code = 1
		}
	}
	if sshd != nil {
		sshd.stop()
	}
	return code
}

// begun keeps apart what runs that were killed have left.
var begun = time.Now()

// ourDirectories finds the private directories of local shells, and of the users of our sshd.
func ourDirectories(tmp string) string {
	list, _ := filepath.Glob(tmp + "/.runbook-*")
	shared, _ := filepath.Glob("/tmp/.runbook-*")
	for _, dir := range shared {
		info, err := os.Lstat(dir)
		if err != nil || info.ModTime().Before(begun) {
			continue
		}
		u, err := user.LookupId(fmt.Sprint(info.Sys().(*syscall.Stat_t).Uid))
		if err == nil && strings.HasPrefix(u.Username, fmt.Sprintf("rbtest-%d-", os.Getpid())) {
			list = append(list, dir)
		}
	}
	return strings.Join(list, "\n")
}

// leftovers gives find some time to return "".
func leftovers(find func() string) string {
	var left string
	for range 50 {
		if left = find(); left == "" {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
	}
	return left
}

// ourGoroutines returns the stacks of goroutines that run code of this package.
func ourGoroutines() string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var list []string
	for i, stack := range strings.Split(string(buf), "\n\n") {
		if i > 0 && strings.Contains(stack, "runbook/engine/transport") {
			list = append(list, stack)
		}
	}
	return strings.Join(list, "\n\n")
}
