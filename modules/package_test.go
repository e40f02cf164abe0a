package modules

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func TestParseAptPreview(t *testing.T) {
	const text = `Reading package lists...
The following packages will be DOWNGRADED:
  alpha
0 upgraded, 2 newly installed, 1 downgraded, 1 to remove and 3 not upgraded.
Remv old [1.0-1]
Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []
Inst alpha [2.0] (1.0 localhost [all])
Inst stunnel4 [3:5.68-2] (3:5.68-2+deb12u1 Debian:12.15/oldstable [amd64])
Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])
Conf half (1 localhost [all])
Conf alpha (1.0 localhost [all])
`
	want := []module.Change{
		{What: "remove old", Before: "1.0-1"},
		{What: "install libc6", After: "2.36-9+deb12u14"},
		{What: "downgrade alpha", Before: "2.0", After: "1.0"},
		{What: "upgrade stunnel4", Before: "3:5.68-2", After: "3:5.68-2+deb12u1"},
		{What: "configure half", After: "1"},
	}
	if got := parseAptPreview(text); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// The tables of dnf (EL8 and later) and of yum (EL5 to EL7).
func TestParseDnfPreview(t *testing.T) {
	const dnf = `Last metadata expiration check: 0:00:43 ago on Wed Nov 25 22:20:14 2026.
Dependencies resolved.
================================================================================
 Package                                                 Arch   Version
                                                                    Repo   Size
================================================================================
Installing:
 virt-impl-with-a-very-long-name-that-wraps-in-the-table noarch 1-1 local 5.5 k
 another-package-with-a-name-that-is-much-too-long-for-it
                                                         x86_64 1:2.0-1.el9
                                                                    appstream
                                                                          12 M
     replacing  old-name.noarch 0.9-1
Upgrading:
 alpha            noarch            1:2.0-1              local            5.5 k
Removing unused dependencies:
 rec              noarch            1-1                  @local             0  

Transaction Summary
================================================================================
Install  2 Packages
`
	want := []module.Change{
		{What: "install virt-impl-with-a-very-long-name-that-wraps-in-the-table", After: "1-1"},
		{What: "install another-package-with-a-name-that-is-much-too-long-for-it", After: "1:2.0-1.el9"},
		{What: "remove old-name", Before: "0.9-1"},
		{What: "upgrade alpha", Before: "1.0-1", After: "1:2.0-1"},
		{What: "remove rec", Before: "1-1"},
	}
	if got := parseDnfPreview(dnf, map[string]any{"alpha": "1.0-1"}); !slices.Equal(got, want) {
		t.Errorf("dnf: got  %v\nwant %v", got, want)
	}
	const yum = `Loaded plugins: fastestmirror
Setting up Install Process
Resolving Dependencies
--> Running transaction check
---> Package stunnel.x86_64 0:4.29-3.el6_6.1 will be installed
--> Finished Dependency Resolution

Dependencies Resolved

================================================================================
 Package          Arch            Version                  Repository      Size
================================================================================
Installing:
 stunnel          x86_64          4.29-3.el6_6.1           base           136 k
Installing for dependencies:
 tcp_wrappers     x86_64          7.6-58.el6               base            61 k

Transaction Summary
================================================================================
Install       2 Package(s)

Total download size: 197 k
Is this ok [y/N]: Exiting on user Command
`
	want = []module.Change{{What: "install stunnel", After: "4.29-3.el6_6.1"}, {What: "install tcp_wrappers", After: "7.6-58.el6"}}
	if got := parseDnfPreview(yum, nil); !slices.Equal(got, want) {
		t.Errorf("yum: got  %v\nwant %v", got, want)
	}
	for text, problem := range map[string]string{
		"No package nosuch available.\nError: Nothing to do\n":                                                              `no package "nosuch" in the repositories`,
		"No match for argument: \x1b[1mnosuch\x1b[m\nError: Unable to find a match: nosuch\n":                               `no package "nosuch" in the repositories`,
		"Error: \n Problem: conflicting requests\n  - nothing provides x\n(try to add '--skip-broken' to go on)\nOperation": "Problem: conflicting requests\n  - nothing provides x",
		yum: "",
	} {
		if got := dnfProblem(terminalCodes.ReplaceAllString(text, "")); got != problem {
			t.Errorf("problem %q, want %q", got, problem)
		}
	}
}

// packageRoot is a root directory of its own with a real package manager working in it.
type packageRoot struct {
	t    *testing.T
	host *module.Host
	root string
	repo string
}

func (p packageRoot) write(path, text string, mode fs.FileMode) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p packageRoot) command(name string, args ...string) string {
	p.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = os.Environ()
	for k, v := range p.host.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// digest is of all files below the root but those that a resolver writes to whenever it looks: logs and shared memory.
func (p packageRoot) digest() string {
	p.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(p.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() || strings.Contains(path, "/var/log/") || strings.Contains(path, ".sqlite") || strings.HasSuffix(path, "expired_repos.json") {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(data))
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return b.String()
}

func (p packageRoot) check(args map[string]any) (module.Plan, error) {
	p.t.Helper()
	m := All()["package"]()
	if err := module.Decode(m, args); err != nil {
		p.t.Fatalf("%v: %v", args, err)
	}
	before := p.digest()
	plan, err := m.Check(p.t.Context(), p.host)
	if after := p.digest(); after != before {
		p.t.Errorf("%v: check changed files:\n%s\n---\n%s", args, before, after)
	}
	return plan, err
}

// apply carries out a task, sees that a second check finds nothing, and returns what changed.
func (p packageRoot) apply(args map[string]any) string {
	p.t.Helper()
	plan, err := p.check(args)
	if err != nil {
		p.t.Fatalf("%v: check: %v", args, err)
	}
	if len(plan.Changes) == 0 && plan.Unknown == "" {
		return ""
	}
	m := All()["package"]()
	if err := module.Decode(m, args); err != nil {
		p.t.Fatal(err)
	}
	if _, err := m.Apply(p.t.Context(), p.host, plan); err != nil {
		p.t.Fatalf("%v: apply: %v", args, err)
	}
	again, err := p.check(args)
	if err != nil {
		p.t.Fatalf("%v: second check: %v", args, err)
	}
	if len(again.Changes) > 0 || again.Unknown != "" {
		p.t.Errorf("%v: did not converge: %v %s", args, again.Changes, again.Unknown)
	}
	return planLine(plan)
}

func planLine(plan module.Plan) string {
	var parts []string
	for _, c := range plan.Changes {
		parts = append(parts, strings.TrimSpace(c.What+" "+strings.Trim(c.Before+">"+c.After, ">")))
	}
	return strings.Join(parts, ", ")
}

func (p packageRoot) want(what, got, want string) {
	p.t.Helper()
	if got != want {
		p.t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

func (p packageRoot) wantError(args map[string]any, want string) {
	p.t.Helper()
	if _, err := p.check(args); err == nil || !strings.Contains(err.Error(), want) {
		p.t.Errorf("%v: error is %v, want %s", args, err, want)
	}
}

func packageHost(t *testing.T, env map[string]string) *module.Host {
	t.Helper()
	conn, err := transport.Connect(t.Context(), transport.Config{Connection: "local", Name: "local"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h := &module.Host{Name: "local", Conn: conn, Env: env}
	h.FactsFunc = func(context.Context) (module.Facts, error) {
		return module.Facts{Family: "debian", Distribution: "debian"}, nil
	}
	return h
}

// newAptRoot makes a root with apt and a repository of small packages.
func newAptRoot(t *testing.T) packageRoot {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, as dpkg does")
	}
	for _, program := range []string{"apt-get", "dpkg-deb", "dpkg-query"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	top := t.TempDir()
	p := packageRoot{t: t, root: filepath.Join(top, "root"), repo: filepath.Join(top, "repo")}
	for _, dir := range []string{
		"etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/trusted.gpg.d", "etc/apt/sources.list.d", "var/lib/dpkg/info", "var/lib/dpkg/updates",
		"var/lib/dpkg/triggers", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt", "usr/sbin",
	} {
		if err := os.MkdirAll(filepath.Join(p.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.write(p.root+"/var/lib/dpkg/status", "", 0o644)
	p.write(p.root+"/etc/apt/sources.list", "deb [trusted=yes] file:"+p.repo+" ./\n", 0o644)
	p.write(top+"/apt.conf", fmt.Sprintf(`Dir %[1]q;
Dir::State::status "%[2]s/var/lib/dpkg/status";
DPkg::Options { "--root=%[2]s"; "--force-script-chrootless"; "--force-not-root"; };
APT::Sandbox::User "root";
`, p.root, p.root), 0o644)
	p.host = packageHost(t, map[string]string{
		"APT_CONFIG": top + "/apt.conf", "DPKG_ROOT": p.root, "DPKG_ADMINDIR": p.root + "/var/lib/dpkg", "LC_ALL": "C",
	})
	p.deb("alpha", "1.0", "Depends: gamma\nRecommends: rec\n", "")
	p.deb("alpha", "2.0", "Depends: gamma\nRecommends: rec\n", "")
	p.deb("gamma", "1", "", "")
	p.deb("rec", "1", "", "")
	p.deb("beta", "1", "Conflicts: gamma\n", "")
	p.deb("impl", "1", "Provides: virt\n", "")
	p.deb("daemon", "1", "", "#!/bin/sh\n$DPKG_ROOT/usr/sbin/policy-rc.d daemon start; echo $? >$DPKG_ROOT/policy-said\n")
	p.deb("broken", "1", "", "#!/bin/sh\necho 'it hurts' >&2; exit 7\n")
	p.index()
	return p
}

func (p packageRoot) deb(name, version, fields, postinst string) {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), name)
	p.write(dir+"/DEBIAN/control", fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Test <test@example.org>\n%sDescription: test\n", name, version, fields), 0o644)
	if postinst != "" {
		p.write(dir+"/DEBIAN/postinst", postinst, 0o755)
	}
	if err := os.MkdirAll(p.repo, 0o755); err != nil {
		p.t.Fatal(err)
	}
	p.command("dpkg-deb", "-Zgzip", "-b", dir, filepath.Join(p.repo, name+"_"+version+".deb"))
}

// index writes the repository's list of packages.
func (p packageRoot) index() {
	p.t.Helper()
	debs, err := filepath.Glob(p.repo + "/*.deb")
	if err != nil {
		p.t.Fatal(err)
	}
	var list strings.Builder
	for _, deb := range debs {
		data, err := os.ReadFile(deb)
		if err != nil {
			p.t.Fatal(err)
		}
		fmt.Fprintf(&list, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", p.command("dpkg-deb", "-f", deb), filepath.Base(deb), len(data), sha256.Sum256(data))
	}
	p.write(p.repo+"/Packages", list.String(), 0o644)
}

func TestPackageApt(t *testing.T) {
	p := newAptRoot(t)
	p.wantError(map[string]any{"name": "alpha"}, `no package "alpha" in the repositories (there are no package lists yet; update_cache: true fetches them)`)
	plan, err := p.check(map[string]any{"name": "alpha", "update_cache": true})
	if err != nil {
		t.Fatal(err)
	}
	p.want("before the lists are there", planLine(plan), "install alpha whatever version the lists then have")
	if !strings.Contains(plan.Unknown, "there are no package lists yet") {
		t.Errorf("unknown because %q", plan.Unknown)
	}
	p.apply(map[string]any{"name": []any{"alpha=1.0", "virt"}, "update_cache": true})
	p.want("installed", p.installed(), "alpha 1.0, gamma 1, impl 1, rec 1")
	p.want("again", p.apply(map[string]any{"name": []any{"alpha", "gamma", "virt"}}), "")
	p.want("a pin with a star", p.apply(map[string]any{"name": "alpha=1.*"}), "")
	p.want("latest", p.apply(map[string]any{"name": []any{"alpha", "gamma"}, "state": "latest"}), "upgrade alpha 1.0>2.0")
	p.wantError(map[string]any{"name": "alpha=1.0"}, "allow_downgrade")
	p.want("downgrade", p.apply(map[string]any{"name": "alpha=1.0", "allow_downgrade": true}), "downgrade alpha 2.0>1.0")
	p.wantError(map[string]any{"name": []any{"nosuch", "alpha", "neither"}}, `no package "neither", "nosuch" in the repositories`)
	p.wantError(map[string]any{"name": "alpha=9"}, `no version 9 of package "alpha" in the repositories`)
	p.wantError(map[string]any{"name": "alpha", "enablerepo": "x"}, "the host has apt")
	p.want("a conflict says what it removes", planLine(p.mustCheck(map[string]any{"name": "beta"})), "remove alpha 1.0, remove gamma 1, install beta 1")
	p.want("absent", p.apply(map[string]any{"name": []any{"gamma", "nosuch"}, "state": "absent"}), "remove alpha 1.0, remove gamma 1")
	p.want("without recommended packages", p.apply(map[string]any{"names": map[string]any{"debian": "alpha", "rhel": "other"}, "install_recommends": false}), "install gamma 1, install alpha 2.0")

	// A newer version shows up once the lists are fetched; until then check cannot know.
	p.deb("alpha", "3.0", "Depends: gamma\n", "")
	p.index()
	past := time.Now().Add(-72 * time.Hour)
	if err := os.Chtimes(p.root+"/var/lib/apt/lists", past, past); err != nil {
		t.Fatal(err)
	}
	plan = p.mustCheck(map[string]any{"name": "alpha", "state": "latest", "update_cache": true})
	p.want("unknown", plan.Unknown, "the package lists are 3 days old: a run fetches them first, and they may have newer versions")
	p.apply(map[string]any{"name": "alpha", "state": "latest", "update_cache": true})
	p.want("upgraded", p.installed(), "alpha 3.0, gamma 1, impl 1, rec 1")
}

func (p packageRoot) mustCheck(args map[string]any) module.Plan {
	p.t.Helper()
	plan, err := p.check(args)
	if err != nil {
		p.t.Fatalf("%v: %v", args, err)
	}
	return plan
}

func (p packageRoot) installed() string {
	var list []string
	for line := range strings.Lines(p.command("dpkg-query", "-W", "-f=${Status} ${Package} ${Version}\n")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "install ok installed "); ok {
			list = append(list, name)
		}
	}
	return strings.Join(list, ", ")
}

// Services are not started while packages are installed, and policy-rc.d is as it was afterwards, whatever happens.
func TestPackageNoStart(t *testing.T) {
	p := newAptRoot(t)
	policy := p.root + "/usr/sbin/policy-rc.d"
	said := func() string {
		data, _ := os.ReadFile(p.root + "/policy-said")
		os.Remove(p.root + "/policy-said")
		return strings.TrimSpace(string(data))
	}
	p.apply(map[string]any{"name": "daemon", "no_start": true, "update_cache": true})
	p.want("the policy said", said(), "101")
	if _, err := os.Lstat(policy); err == nil {
		t.Error("policy-rc.d was left behind")
	}

	p.apply(map[string]any{"name": "daemon", "state": "absent"})
	const own = "#!/bin/sh\nexit 104\n"
	p.write(policy, own, 0o755)
	p.apply(map[string]any{"name": "daemon"})
	p.want("the host's own policy said", said(), "104")
	p.apply(map[string]any{"name": "daemon", "state": "absent"})
	p.apply(map[string]any{"name": "daemon", "no_start": true})
	p.want("the policy said", said(), "101")
	data, _ := os.ReadFile(policy)
	p.want("policy-rc.d", string(data), own)

	// An installation that fails.
	m := All()["package"]()
	args := map[string]any{"name": "broken", "no_start": true}
	if err := module.Decode(m, args); err != nil {
		t.Fatal(err)
	}
	plan := p.mustCheck(args)
	_, err := m.Apply(t.Context(), p.host, plan)
	if err == nil || !strings.Contains(err.Error(), "cannot install: ") || !strings.Contains(err.Error(), "it hurts") {
		t.Errorf("error is %v", err)
	}
	data, _ = os.ReadFile(policy)
	p.want("policy-rc.d after a failure", string(data), own)
	p.want("half configured is not installed", planLine(p.mustCheck(args)), "configure broken 1")
	p.want("absent", p.apply(map[string]any{"name": "broken", "state": "absent"}), "")

	// A run that was killed: its policy lets everything pass, and the next run puts the host's own back.
	p.write(policy+".runbook", own, 0o755)
	p.write(policy, "#!/bin/sh\n# runbook: left behind\nexit 0\n", 0o755)
	p.want("after a killed run", p.apply(map[string]any{"name": "daemon"}), "remove the policy-rc.d that an interrupted run left")
	data, _ = os.ReadFile(policy)
	p.want("policy-rc.d after a killed run", string(data), own)
}

// While another program holds the lock, a run waits; it does not wait for ever.
func TestPackageAptLock(t *testing.T) {
	p := newAptRoot(t)
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip("needs perl, to hold a lock")
	}
	p.apply(map[string]any{"name": "gamma", "update_cache": true})
	hold := func(seconds string) *exec.Cmd {
		cmd := exec.Command("perl", "-e", `use Fcntl; open(F, "+>", $ARGV[0]) or die; my $l = pack("s s l! l! i", F_WRLCK, 0, 0, 0, 0); fcntl(F, F_SETLK, $l) or die; $| = 1; print "x"; sleep $ARGV[1]`,
			p.root+"/var/lib/dpkg/lock-frontend", seconds)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	holder := hold("2")
	p.want("after a wait", p.apply(map[string]any{"name": "rec"}), "install rec 1")
	_ = holder.Wait()
	holder = hold("60")
	m := All()["package"]()
	if err := module.Decode(m, map[string]any{"name": "impl", "lock_timeout": 1}); err != nil {
		t.Fatal(err)
	}
	plan, err := m.Check(t.Context(), p.host)
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Apply(t.Context(), p.host, plan)
	_ = holder.Process.Kill()
	_ = holder.Wait()
	if err == nil || !strings.Contains(err.Error(), "another program holds the lock") || !strings.Contains(err.Error(), fmt.Sprintf("process %d", holder.Process.Pid)) {
		t.Errorf("error is %v", err)
	}
}

// newDnfRoot makes a root with rpm and dnf and a repository of small packages.
func newDnfRoot(t *testing.T) packageRoot {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, as rpm does")
	}
	tools := map[string]string{}
	for program, from := range map[string]string{"dnf": "dnf", "rpm": "rpm", "rpmbuild": "rpm", "createrepo_c": "createrepo-c"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("needs %s (Debian package %s)", program, from)
		}
		tools[program] = path
	}
	top := t.TempDir()
	p := packageRoot{t: t, root: filepath.Join(top, "root"), repo: filepath.Join(top, "repo")}
	p.host = packageHost(t, map[string]string{"PATH": top + "/bin:" + os.Getenv("PATH"), "LC_ALL": "C"})
	p.write(top+"/bin/dnf", fmt.Sprintf("#!/bin/sh\nexec %s --installroot=%s --setopt=reposdir=%s/repos --releasever=1 \"$@\"\n", tools["dnf"], p.root, top), 0o755)
	p.write(top+"/bin/rpm", fmt.Sprintf("#!/bin/sh\nexec %s --root=%s \"$@\"\n", tools["rpm"], p.root), 0o755)
	p.write(top+"/repos/local.repo", fmt.Sprintf("[local]\nname=local\nbaseurl=file://%s\ngpgcheck=0\n", p.repo), 0o644)
	if err := os.MkdirAll(p.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{
		"alpha 1.0 Requires: gamma\nRecommends: rec", "alpha 2.0 Epoch: 1\nRequires: gamma\nRecommends: rec", "gamma 1 ", "rec 1 ", "beta 1 Conflicts: gamma",
		"impl-with-a-name-that-is-too-long-for-the-table-of-dnf-in-a-pipe 1 Provides: virt",
	} {
		p.rpm(top, tools["rpmbuild"], spec)
	}
	p.command(tools["createrepo_c"], "-q", p.repo)
	return p
}

func (p packageRoot) rpm(top, rpmbuild, spec string) {
	p.t.Helper()
	words := strings.SplitN(spec, " ", 3)
	file := fmt.Sprintf("%s/%s-%s.spec", top, words[0], words[1])
	p.write(file, fmt.Sprintf("Name: %s\nVersion: %s\nRelease: 1\nSummary: test\nLicense: test\nBuildArch: noarch\n%s\n%%description\ntest\n%%files\n", words[0], words[1], words[2]), 0o644)
	p.command(rpmbuild, "-bb", "--quiet", "--define", "_topdir "+top+"/build", "--define", "_rpmdir "+p.repo, file)
}

func TestPackageDnf(t *testing.T) {
	p := newDnfRoot(t)
	task := func(name any, more ...any) map[string]any {
		args := map[string]any{"name": name, "use": "dnf"}
		for i := 0; i < len(more); i += 2 {
			args[more[i].(string)] = more[i+1]
		}
		return args
	}
	plan := p.mustCheck(task("alpha"))
	if !strings.Contains(plan.Unknown, "there are no package lists yet") || planLine(plan) != "install alpha whatever version the lists then have" {
		t.Errorf("without metadata: %s, unknown because %q", planLine(plan), plan.Unknown)
	}
	p.apply(task([]any{"alpha=1.0", "virt"}))
	versions := func() string {
		list := strings.Fields(p.command("rpm", "--root="+p.root, "-qa"))
		slices.Sort(list)
		return strings.Join(list, " ")
	}
	p.want("installed", versions(), "alpha-1.0-1.noarch gamma-1-1.noarch impl-with-a-name-that-is-too-long-for-the-table-of-dnf-in-a-pipe-1-1.noarch rec-1-1.noarch")
	p.want("again", p.apply(task([]any{"alpha", "virt", "gamma"})), "")
	for _, pin := range []string{"alpha=1.0", "alpha=1.0-1", "alpha=0:1.0-1", "alpha=1.*"} {
		p.want(pin, p.apply(task(pin)), "")
	}
	p.want("absent", p.apply(task([]any{"virt", "rec"}, "state", "absent")), "remove impl-with-a-name-that-is-too-long-for-the-table-of-dnf-in-a-pipe 1-1, remove rec 1-1")
	p.want("latest, of one that is there and one that is not", p.apply(task([]any{"alpha", "rec"}, "state", "latest")), "install rec 1-1, upgrade alpha 1.0-1>1:2.0-1")
	p.want("pin with epoch", p.apply(task("alpha=1:2.0-1")), "")
	p.wantError(task("alpha=1.0"), "allow_downgrade")
	p.want("downgrade", p.apply(task("alpha=1.0", "allow_downgrade", true)), "downgrade alpha 1:2.0-1>1.0-1")
	p.wantError(task([]any{"nosuch", "rec"}), `no package "nosuch" in the repositories`)
	p.wantError(task("beta"), "conflicts with gamma")
	p.want("removal says what goes with it", p.apply(task("gamma", "state", "absent")), "remove gamma 1-1, remove alpha 1.0-1")
	p.apply(task("rec", "state", "absent"))
	p.want("without recommended packages", p.apply(task("alpha", "install_recommends", false)), "install alpha 1:2.0-1, install gamma 1-1")
	p.wantError(task("rec", "disablerepo", "*"), "no enabled repositories")

	// The lock of dnf is a file with the number of its process.
	holder := exec.Command("sleep", "60")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	lock := p.root + "/var/lib/dnf/rpmdb_lock.pid"
	p.write(lock, strconv.Itoa(holder.Process.Pid), 0o644)
	m := All()["package"]()
	if err := module.Decode(m, task("rec", "lock_timeout", 0)); err != nil {
		t.Fatal(err)
	}
	_, err := m.Apply(t.Context(), p.host, p.mustCheck(task("rec")))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another program holds the lock of the package manager, and still did after 0 s:\nRPMDB already locked by %d", holder.Process.Pid)) {
		t.Errorf("error is %v", err)
	}
	patient := All()["package"]()
	if err := module.Decode(patient, task("rec")); err != nil {
		t.Fatal(err)
	}
	plan = p.mustCheck(task("rec"))
	time.AfterFunc(time.Second, func() { os.Remove(lock) })
	if _, err := patient.Apply(t.Context(), p.host, plan); err != nil {
		t.Errorf("after a wait: %v", err)
	}
	if plan := p.mustCheck(task("rec")); len(plan.Changes) > 0 {
		t.Errorf("after a wait there is still to do: %v", plan.Changes)
	}
}
