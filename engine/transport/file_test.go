package transport_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"runbook/engine/transport"
)

// counter counts Runs.
type counter struct {
	transport.Conn
	runs int
}

func (c *counter) Run(ctx context.Context, cmd transport.Cmd) (transport.Output, error) {
	c.runs++
	return c.Conn.Run(ctx, cmd)
}

func testFiles(t *testing.T, conn transport.Conn) {
	c := &counter{Conn: conn}
	once := func(what string) {
		t.Helper()
		if c.runs != 1 {
			t.Errorf("%s: %d Runs instead of one", what, c.runs)
		}
		c.runs = 0
	}
	dir := tempDir(t) + "/a dir\nwith 'lines'"
	script(t, conn, "mkdir "+transport.Quote(dir))
	me := strings.TrimSpace(script(t, conn, "id -un"))
	group := strings.TrimSpace(script(t, conn, "id -gn"))
	file := dir + "/-file"
	content := allBytes()

	info, err := transport.Stat(ctx(t), c, file, true)
	if err != nil || info.Exists() {
		t.Errorf("what is not there: %+v, %v", info, err)
	}
	once("Stat")
	if err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: []byte(content)}); err != nil {
		t.Fatal(err)
	}
	once("WriteFile")
	want := transport.FileInfo{Kind: "file", Mode: 0o644, Owner: me, Group: group, Size: int64(len(content)),
		SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(content)))}
	info, err = transport.Stat(ctx(t), c, file, true)
	if diff := cmp.Diff(want, info); err != nil || diff != "" {
		t.Errorf("Stat: %v, %s", err, diff)
	}
	once("Stat")
	want.SHA256 = ""
	info, got, err := transport.ReadFile(ctx(t), c, file, int64(len(content)))
	if diff := cmp.Diff(want, info); err != nil || diff != "" || string(got) != content {
		t.Errorf("ReadFile: %v, %s, %q", err, diff, got)
	}
	once("ReadFile")
	if _, _, err := transport.ReadFile(ctx(t), c, file, int64(len(content))-1); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file over the limit: %v", err)
	}

	script(t, conn, fmt.Sprintf("cd %s; ln -s 'no\nwhere' link; mkfifo pipe; chmod 6751 ./-file", transport.Quote(dir)))
	c.runs = 0
	infos, err := transport.StatMany(ctx(t), c, file, dir+"/link", dir+"/pipe", dir, dir+"/none/below", file+"/below")
	once("StatMany")
	for i := range infos {
		infos[i].Owner, infos[i].Group = "", ""
		if infos[i].Kind == "directory" {
			infos[i].Size = 0
		}
	}
	script(t, conn, "chmod 755 "+transport.Quote(dir))
	if diff := cmp.Diff([]transport.FileInfo{
		{Kind: "file", Mode: 0o6751, Size: int64(len(content))},
		{Kind: "link", Mode: 0o777, Size: 8, Target: "no\nwhere"},
		{Kind: "other", Mode: infos[2].Mode},
		{Kind: "directory", Mode: infos[3].Mode},
		{}, {},
	}, infos); err != nil || diff != "" {
		t.Errorf("StatMany: %v, %s", err, diff)
	}

	// What is replaced keeps its mode, special bits too, and a backup keeps all of it.
	if err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: []byte("new"), Backup: true}); err != nil {
		t.Error(err)
	}
	if err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: []byte("newer"), Backup: true, Mode: 0o600}); err != nil {
		t.Error(err)
	}
	if got := script(t, conn, fmt.Sprintf("cd %s; stat -c '%%a %%s' -- -file*; ls -A | grep -c rb", transport.Quote(dir))+" || :"); got !=
		fmt.Sprintf("600 5\n6751 %d\n6751 3\n0\n", len(content)) && got != fmt.Sprintf("600 5\n6751 3\n6751 %d\n0\n", len(content)) {
		t.Errorf("after two writes with backup: %q", got)
	}

	// A link is replaced, what it points to is not touched.
	script(t, conn, fmt.Sprintf("cd %s; echo target >target; ln -sf target link", transport.Quote(dir)))
	if err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: dir + "/link", Content: []byte("file now")}); err != nil {
		t.Error(err)
	}
	if got := script(t, conn, fmt.Sprintf("cd %s; cat target link; [ -L link ] || echo file", transport.Quote(dir))); got != "target\nfile nowfile\n" {
		t.Errorf("after writing over a link: %q", got)
	}

	// Refusals leave things as they were and nothing behind.
	before := script(t, conn, "cd "+transport.Quote(dir)+"; ls -lA; cat -- -file")
	for _, test := range []struct {
		w    transport.FileWrite
		want string
	}{
		{transport.FileWrite{Path: file, Validate: []string{"sh", "-c", "echo bad >&2; grep -q good \"$1\"", "-", "%s"}}, "bad\nvalidation failed: sh -c"},
		{transport.FileWrite{Path: dir}, "it is a directory"},
		{transport.FileWrite{Path: dir + "/no/such"}, "its directory does not exist"},
		{transport.FileWrite{Path: file, Owner: "no-such-user"}, "no-such-user"},
		{transport.FileWrite{Path: file + "/"}, "names a directory"},
		{transport.FileWrite{Path: ""}, "empty path"},
		{transport.FileWrite{Path: "a\x00"}, "NUL"},
		{transport.FileWrite{Path: file, Mode: 0o10000}, "not a mode"},
	} {
		err := transport.WriteFile(ctx(t), c, test.w)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want one with %q", test.w, err, test.want)
		}
	}
	if after := script(t, conn, "cd "+transport.Quote(dir)+"; ls -lA; cat -- -file"); after != before {
		t.Errorf("refused writes changed something:\n%s%s", before, after)
	}
	err = transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: []byte("good"), Validate: []string{"grep", "-q", "good", "%s"}})
	if err != nil {
		t.Error(err)
	}

	// One that is sent over a session of its own.
	big := bytes.Repeat([]byte(content), 10_000)
	c.runs = 0
	if err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: big}); err != nil {
		t.Error(err)
	}
	once("WriteFile")
	if info, err := transport.Stat(ctx(t), c, file, true); err != nil || info.SHA256 != fmt.Sprintf("%x", sha256.Sum256(big)) {
		t.Errorf("a large file: %+v, %v", info, err)
	}
}

// root is a local Conn as root; tests that need owners or mounts skip without.
func root(t *testing.T) transport.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	return connect(t, transport.Config{Connection: "local"})
}

func TestWriteFileOwners(t *testing.T) {
	c := root(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	for _, test := range []struct {
		w                  transport.FileWrite
		owner, group, mode string
	}{
		{transport.FileWrite{}, "daemon", "mail", "2750"},
		{transport.FileWrite{Mode: 0o640}, "daemon", "mail", "640"},
		{transport.FileWrite{Owner: "root"}, "root", "mail", "2750"},
		{transport.FileWrite{Group: "root"}, "daemon", "root", "2750"},
		{transport.FileWrite{Owner: "nobody", Group: "nogroup", Mode: 0o4711}, "nobody", "nogroup", "4711"},
	} {
		script(t, c, fmt.Sprintf("echo old >%[1]s; chown daemon:mail %[1]s; chmod 2750 %[1]s", file))
		test.w.Path, test.w.Content = file, []byte("new\n")
		if err := transport.WriteFile(ctx(t), c, test.w); err != nil {
			t.Errorf("%+v: %v", test.w, err)
			continue
		}
		want := fmt.Sprintf("%s:%s:%s\nnew\n", test.owner, test.group, test.mode)
		if got := script(t, c, fmt.Sprintf("stat -c %%U:%%G:%%a %[1]s; cat %[1]s", file)); got != want {
			t.Errorf("%+v: %q, want %q", test.w, got, want)
		}
	}
}

// What a user may not see is an error, and not absent.
func TestStatDenied(t *testing.T) {
	c := root(t)
	dir := tempDir(t)
	script(t, c, fmt.Sprintf("mkdir %[1]s/closed; echo x >%[1]s/closed/file; echo y >%[1]s/secret; chmod 700 %[1]s/closed; chmod 600 %[1]s/secret", dir))
	nobody := as{c, "nobody"}
	for _, path := range []string{"/closed/file", "/closed/none", "/closed/none/below"} {
		if info, err := transport.Stat(ctx(t), nobody, dir+path, false); err == nil {
			t.Errorf("%s: %+v without an error", path, info)
		}
		if info, err := transport.StatMany(ctx(t), nobody, dir, dir+path); err == nil {
			t.Errorf("%s among others: %+v without an error", path, info)
		}
	}
	if info, err := transport.Stat(ctx(t), nobody, dir+"/none/below", false); err != nil || info.Exists() {
		t.Errorf("absent in a directory that can be seen: %+v, %v", info, err)
	}
	if info, err := transport.Stat(ctx(t), nobody, dir+"/secret", false); err != nil || info.Size != 2 {
		t.Errorf("without the digest: %+v, %v", info, err)
	}
	if _, err := transport.Stat(ctx(t), nobody, dir+"/secret", true); err == nil {
		t.Error("the digest of a file that cannot be read came without an error")
	}
	if _, _, err := transport.ReadFile(ctx(t), nobody, dir+"/secret", 0); err == nil {
		t.Error("a file that cannot be read was read without an error")
	}
}

// as runs everything as a user.
type as struct {
	transport.Conn
	user string
}

func (a as) Run(ctx context.Context, c transport.Cmd) (transport.Output, error) {
	c.User = a.user
	return a.Conn.Run(ctx, c)
}

// On a full disk a write fails with the reason; the old file is whole and no temporary one is left. When the disk that holds
// the private directory is full, no command is run with half of its input.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "rbtest", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a small disk: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	for _, shell := range []string{"/bin/dash", "/bin/bash"} {
		t.Run(filepath.Base(shell), func(t *testing.T) {
			c := connect(t, localWith(shell)(t))
			file := dir + "/file"
			if err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: []byte("old")}); err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{300 << 10, 2 << 20} {
				err := transport.WriteFile(ctx(t), c, transport.FileWrite{Path: file, Content: bytes.Repeat([]byte("x"), size)})
				if err == nil || !strings.Contains(err.Error(), "No space left") {
					t.Errorf("%d bytes: error %v", size, err)
				}
				if got := script(t, c, "cat "+file+"; ls -A "+dir); got != "oldfile\n" {
					t.Errorf("%d bytes: afterwards %q", size, got)
				}
			}

			t.Setenv("TMPDIR", dir)
			c = connect(t, transport.Config{Connection: "local"})
			if got := script(t, c, "echo fits"); got != "fits\n" {
				t.Errorf("%q", got)
			}
			done := filepath.Join(tempDir(t), "done")
			_, err := c.Run(ctx(t), transport.Cmd{Script: "touch " + done + "; cat", Stdin: bytes.NewReader(bytes.Repeat([]byte("x"), 400<<10))})
			if err == nil || !strings.Contains(err.Error(), "is the disk full") {
				t.Errorf("input that does not fit: %v", err)
			}
			if _, err := os.Stat(done); err == nil {
				t.Error("a command was run with half of its input")
			}
			if got := script(t, c, "rm -f "+dir+"/.runbook-*/*.i; echo goes on"); got != "goes on\n" {
				t.Errorf("%q", got)
			}
			_ = c.Close()
			waitFor(t, "the private directory to go", func() bool { left, _ := filepath.Glob(dir + "/.runbook-*"); return len(left) == 0 })
		})
	}
}
