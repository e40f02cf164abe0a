package modules

import (
	"context"
	"os"
	"strings"
	"testing"

	"runbook/acceptance/lab"
	"runbook/engine/module"
	"runbook/engine/transport"
)

// realHost is a host that tasks are tried on for real.
type realHost struct {
	*module.Host
	t *testing.T
}

func (r realHost) sh(script string) string {
	r.t.Helper()
	out, err := r.Run(r.t.Context(), transport.Cmd{Script: script})
	if err != nil {
		r.t.Fatalf("%s: %v\n%s%s", script, err, out.Stdout, out.Stderr)
	}
	return strings.TrimSpace(string(out.Stdout))
}

// try checks a task, applies it and checks again. It returns what changed, or the error.
func (r realHost) try(name string, args map[string]any) string {
	r.t.Helper()
	text, _ := r.tryValues(name, args)
	return text
}

func (r realHost) tryValues(name string, args map[string]any) (string, module.Values) {
	r.t.Helper()
	decode := func() module.Module {
		m := All()[name]()
		if err := module.Decode(m, args); err != nil {
			r.t.Fatalf("%v: %v", args, err)
		}
		return m
	}
	plan, err := decode().Check(r.t.Context(), r.Host)
	if err != nil {
		return "check: " + err.Error(), nil
	}
	if len(plan.Changes) == 0 && plan.Unknown == "" {
		return "", plan.Values
	}
	var what []string
	for _, c := range plan.Changes {
		what = append(what, c.What)
	}
	values, err := decode().Apply(r.t.Context(), r.Host, plan)
	if err != nil {
		return strings.Join(what, ", ") + ": " + err.Error(), nil
	}
	if !plan.Act && plan.Unknown == "" {
		again, err := decode().Check(r.t.Context(), r.Host)
		if err != nil {
			r.t.Errorf("%v: second check: %v", args, err)
		}
		for _, c := range again.Changes {
			r.t.Errorf("%v: did not converge: %s: %s > %s", args, c.What, c.Before, c.After)
		}
	}
	return strings.Join(what, ", "), values
}

func (r realHost) want(what, got string, parts ...string) {
	r.t.Helper()
	for _, part := range parts {
		if part == "" && got != "" || !strings.Contains(got, part) {
			r.t.Errorf("%s: got %q, want %q", what, got, part)
		}
	}
}

// A small server of the acceptance lab, with systemd.
func TestServiceOnRealHost(t *testing.T) {
	if why := lab.Unavailable(); why != "" {
		if os.Getenv("CI") == "true" || os.Getenv("RUNBOOK_NO_SKIP") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if testing.Short() {
		t.Skip("boots a host, which -short leaves out")
	}
	l, err := lab.New(t.Context(), lab.Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := l.Up(t.Context(), "voms1"); err != nil {
		t.Fatal(err)
	}
	machine := l.Host("voms1")
	h := &module.Host{Name: "voms1", Conn: prefixConn{func(args []string) ([]string, error) { return machine.Argv(args...) }}}
	h.FactsFunc = func(ctx context.Context) (module.Facts, error) { return module.GatherFacts(ctx, h) }
	r := realHost{h, t}
	service := func(args ...any) map[string]any {
		task := map[string]any{"settle": "1s"}
		for i := 0; i < len(args); i += 2 {
			task[args[i].(string)] = args[i+1]
		}
		return task
	}

	// An alias of a unit that is up.
	what, values := r.tryValues("service", service("name", "mysql", "state", "running", "enabled", true))
	r.want("mysql", what, "")
	if values["sub"] != "running" || values["main_pid"].(int) < 2 || values["since"] == "" || values["enabled"] != true {
		t.Errorf("values are %v", values)
	}
	r.want("restart by an alias", r.try("service", service("name", "mysql", "state", "restarted")), "restart mysql")
	r.want("no unit", r.try("service", service("name", "no-such", "state", "started")), "check: no unit no-such.service")

	// A program that dies after it was started, one that is started again and again, and one that does well.
	r.sh(`cd /etc/systemd/system
unit() { printf '[Service]\nExecStart=/bin/sh -c "%s"\n%s\n[Install]\nWantedBy=multi-user.target\n' "$2" "$3" >$1.service; }
unit dies 'sleep 0.3; echo the certificate has expired; exit 3'
unit flaps 'sleep 0.2' 'Restart=always
RestartSec=0.1
StartLimitIntervalSec=0'
unit well 'sleep 1000'
unit never 'exit 1'
printf '[Service]\nExecStart=/bin/sleep 1000\n' >static.service
printf '[Service]\nType=oneshot\nExecStart=/bin/true\n' >once.service
printf 'one\n' >/etc/well.conf`)
	r.want("dies", r.try("service", service("name", "dies", "state", "started")), "start dies: dies did not stay up: it is failed (failed), result exit-code, exit status 3", "the certificate has expired")
	r.want("dies, not watched", r.try("service", map[string]any{"name": "well", "state": "started", "settle": 0}), "start well")
	r.want("flaps", r.try("service", service("name", "flaps", "state", "running")), "flaps did not stay up")
	r.sh("systemctl stop flaps")
	r.want("never", r.try("service", service("name", "never", "state", "started")), "did not stay up: it is failed")
	r.want("well", r.try("service", service("name", "well", "state", "running", "enabled", true)), "enable well")
	r.want("well again", r.try("service", service("name", "well", "state", "running", "enabled", true)), "")
	r.want("static", r.try("service", service("name", "static", "enabled", true)), "check: unit static.service cannot be enabled, and nothing starts it at boot: it is static")
	r.want("static but wanted", r.try("service", service("name", "dbus", "enabled", true)), "")
	r.sh("printf '[Unit]\nConditionPathExists=/nowhere\n[Service]\nExecStart=/bin/sleep 1000\n' >/etc/systemd/system/condition.service")
	r.want("condition", r.try("service", service("name", "condition", "state", "started")), "condition did not start: a condition of its unit does not hold")
	r.want("once", r.try("service", service("name", "once", "state", "started")), "runs once and ends")
	r.want("once as an act", r.try("service", service("name", "once", "state", "restarted")), "restart once")
	r.want("cannot reload", r.try("service", service("name", "well", "state", "reloaded")), "cannot reload")

	// Files that are newer than the process, and than what systemd knows.
	stale := service("name", "well", "state", "running", "restart_if", []any{"/etc/well.conf"})
	r.want("not stale", r.try("service", stale), "")
	r.sh("echo two >/etc/well.conf")
	r.want("stale", r.try("service", stale), "restart well")
	r.sh("echo three >/etc/well.conf && systemctl restart well")
	r.want("restarted since", r.try("service", stale), "")
	// By more after the start than the clocks may differ.
	r.sh("sleep 0.2; cp -p /etc/well.conf /etc/well.old && touch -d 2001-01-01 /etc/well.old && mv /etc/well.old /etc/well.conf")
	r.want("put back with an old time", r.try("service", stale), "restart well")
	r.want("put back and restarted", r.try("service", stale), "")
	r.sh("cp /etc/well.conf /etc/well.one && cp /etc/well.conf /etc/well.two && ln -sf well.one /etc/well.conf && systemctl restart well")
	r.want("a link", r.try("service", stale), "")
	r.sh("sleep 0.2; ln -sf well.two /etc/well.conf")
	r.want("a link to an older file", r.try("service", stale), "restart well")
	r.sh("touch -d '+1 hour' /etc/well.two && systemctl restart well")
	r.want("a time to come", r.try("service", stale), "")
	r.sh("sed -i s/1000/2000/ /etc/systemd/system/well.service")
	r.want("unit file changed", r.try("service", service("name", "well", "state", "running")), "read the unit files again for well")
	r.want("restart with the new unit", r.try("service", service("name", "well", "state", "restarted")), "restart well")
	r.want("the new unit runs", r.sh("systemctl show -p MainPID --value well | xargs -I{} cat /proc/{}/cmdline | tr '\\0' ' '"), "2000")

	// Masked.
	r.want("mask of a unit in /etc", r.try("service", service("name", "dies", "masked", true)), "check: unit dies.service cannot be masked")
	r.want("mask by an alias", r.try("service", service("name", "mysql", "masked", true)), "check: mysql is an alias of mariadb.service")
	r.want("mask", r.try("service", service("name", "mariadb", "state", "stopped", "masked", true)), "mask mariadb, stop mariadb")
	r.want("start what is masked", r.try("service", service("name", "mariadb", "state", "started")), "check: unit mariadb.service is masked")
	r.want("unmask", r.try("service", service("name", "mariadb", "state", "started", "enabled", true, "masked", false)), "unmask mariadb, ")
	r.want("well down", r.try("service", service("name", "well", "state", "stopped", "enabled", false)), "disable well, stop well")

	// A package of a SysV script: installed without being started, then up.
	r.want("stunnel", r.try("package", map[string]any{"names": map[string]any{"debian": "stunnel4", "rhel": "stunnel"}, "no_start": true, "update_cache": true}), "install stunnel4")
	r.want("policy-rc.d is gone", r.sh("ls /usr/sbin/policy-rc.d 2>&1 || true"), "No such file")
	r.want("stunnel again", r.try("package", map[string]any{"name": "stunnel4"}), "")
	r.want("stunnel is not up", r.sh("systemctl is-active stunnel4 || true"), "inactive")
	r.want("latest", r.try("package", map[string]any{"name": "stunnel4", "state": "latest"}), "")
	r.want("no such package", r.try("package", map[string]any{"name": "stunnel5"}), `check: no package "stunnel5" in the repositories`)
	// Without a configuration its script does nothing, successfully; its unit then counts as active.
	r.want("stunnel started", r.try("service", service("name", "stunnel4", "state", "started", "enabled", true)), "start stunnel4")
	r.want("stunnel running", r.try("service", service("name", "stunnel4", "state", "running")), "restart stunnel4: stunnel4 did not stay up: it counts as active, but its processes have ended")
	r.sh("printf 'output = /var/log/stunnel4/x.log\npid = /run/x.pid\n[x]\nclient = yes\naccept = 127.0.0.1:4000\nconnect = 127.0.0.1:3306\n' >/etc/stunnel/x.conf")
	r.want("stunnel running with a configuration", r.try("service", service("name", "stunnel4", "state", "running")), "restart stunnel4")
	r.want("stunnel running again", r.try("service", service("name", "stunnel4", "state", "running", "enabled", true)), "")
	r.want("an instance", r.try("service", service("name", "stunnel@y", "state", "started")), "stunnel@y did not stay up")

	// Looking changes nothing, also where the resolver has to be asked.
	before, err := machine.Fingerprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string]map[string]any{
		"package": {"name": []any{"stunnel4", "less"}, "state": "absent"}, "service": {"name": "mysql", "state": "stopped", "enabled": false},
		"iptables": {"chain": "INPUT", "flush": true, "policy": "DROP"},
	} {
		m := All()[name]()
		if err := module.Decode(m, args); err != nil {
			t.Fatal(err)
		}
		if plan, err := m.Check(t.Context(), h); err != nil || len(plan.Changes) == 0 {
			t.Errorf("%s: plan is %v, %v", name, plan.Changes, err)
		}
	}
	after, err := machine.Fingerprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range before.Diff(after) {
		t.Errorf("checks changed the host: %s", line)
	}

	// MAN06's rule, through a boot.
	rule := map[string]any{"chain": "INPUT", "source": "10.77.0.2", "protocol": "tcp", "destination_port": 3307, "ctstate": "NEW", "jump": "ACCEPT", "comment": "MySQL replication"}
	r.want("rule", r.try("iptables", rule), "add the rule to INPUT at place", "rules kept in /etc/iptables/rules.v4")
	r.want("ahead of the REJECT", r.sh("iptables -S INPUT | tail -n 2 | head -n 1"), "--dport 3307")
	r.want("rule again", r.try("iptables", rule), "")
	r.sh("systemctl enable -q well")
	if err := machine.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want("rule after a boot", r.try("iptables", rule), "")
	r.want("well after a boot", r.try("service", service("name", "well", "state", "running", "enabled", true)), "")
	r.want("rule gone", r.try("iptables", map[string]any{"chain": "INPUT", "rule": r.sh("iptables -S INPUT | sed -n 's/^-A INPUT \\(.*3307.*\\)/\\1/p'"), "state": "absent"}), "remove the rule from INPUT, rules kept in")
}

// A host without systemd: scripts in /etc/init.d.
func TestServiceSysV(t *testing.T) {
	p := newPacketFilter(t) // for its /etc, where writing leaves no trace
	r := realHost{p.Host, t}
	stubs := t.TempDir()
	r.Env = map[string]string{"PATH": stubs + ":" + os.Getenv("PATH")}
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(stubs+"/service", "#!/bin/sh\nexec /etc/init.d/$1 $2\n")
	write(stubs+"/systemctl", "#!/bin/sh\nexit 1\n")
	write(stubs+"/script", `#!/bin/sh
### BEGIN INIT INFO
# Provides: old
# Required-Start:
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
### END INIT INFO
pid=`+stubs+`/old.pid
alive() { grep -q '^State:.[^Z]' "/proc/$(cat $pid 2>/dev/null)/status" 2>/dev/null; }
case $1 in
start) alive || { sh -c "$(cat /etc/old.conf)" & echo $! >$pid; } ;; # the daemon keeps the output open
stop) alive && kill $(cat $pid); rm -f $pid ;;
restart) $0 stop; $0 start ;;
status) alive && exit 0; [ -e $pid ] && exit 1; exit 3 ;;
esac
`)
	r.sh("cp " + stubs + "/script /etc/init.d/old; echo 'exec sleep 100' >/etc/old.conf")
	t.Cleanup(func() { r.sh0("/etc/init.d/old stop") })
	old := func(args ...any) map[string]any {
		task := map[string]any{"name": "old", "use": "sysv", "settle": "500ms"}
		for i := 0; i < len(args); i += 2 {
			task[args[i].(string)] = args[i+1]
		}
		return task
	}
	r.want("start", r.try("service", old("state", "running", "enabled", true)), "enable old, start old")
	r.want("again", r.try("service", old("state", "running", "enabled", true)), "")
	r.want("restart", r.try("service", old("state", "restarted")), "restart old")
	r.want("stop", r.try("service", old("state", "stopped", "enabled", false)), "disable old, stop old")
	r.sh("echo 'sleep 0.2; exit 1' >/etc/old.conf")
	r.want("dies", r.try("service", old("state", "started")), "old did not stay up: /etc/init.d/old status exits 1")
	r.want("no script", r.try("service", map[string]any{"name": "new", "use": "sysv", "state": "started"}), "check: no init script /etc/init.d/new")
	r.want("masked", r.try("service", map[string]any{"name": "old", "use": "auto", "masked": true}), "check: ")
}

// sh0 runs a script when the test is over.
func (r realHost) sh0(script string) {
	_, _ = r.Run(context.Background(), transport.Cmd{Script: script})
}
