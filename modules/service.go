package modules

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("service", func() module.Module {
		return &service{DaemonReload: true, Settle: time.Second, Use: "auto"}
	})
}

// service starts, stops and enables a service, and sees to it that one that it started stays up.
//
// On a host where systemd runs, name is a unit (name.service if it has no suffix; an alias such as mysql is followed); elsewhere
// it is a script in /etc/init.d. A service that does not exist is an error, whatever the state.
//
// A start that succeeds proves little: after each start, restart or reload the module waits for settle, and the service must
// still be active with the same main process and without having been restarted by systemd. If it is not, the error
// holds the last lines of its journal.
//
// States restarted and reloaded are acts: they change something at every run, which is what handlers are for.
//
//	tasks:
//	  - name: the tunnel runs, starts at boot, and serves the certificate that is on disk
//	    service: {name: man06-stunnel, state: running, enabled: true, restart_if: [/etc/grid-security/hostcert.pem]}
//	  - name: the backup registers nobody
//	    service: {name: voms-admin, state: stopped, enabled: false}
type service struct {
	// Unit, or script in /etc/init.d.
	Name string `yaml:"name" required:"true" short:"true"`
	// What the service is to be. Running is started, and moreover a process of it is alive: a unit of the kind that has exited
	// but counts as active (active (exited), as a SysV script's unit does after its daemon died) is started, but not running.
	State string `yaml:"state" choices:"started,running,stopped,restarted,reloaded"`
	// Whether it starts at boot: true or false; left alone by default. A unit that cannot be enabled counts as enabled if another unit
	// that is loaded wants it.
	Enabled any `yaml:"enabled"`
	// Whether the unit is masked, so that nothing can start it: true or false; left alone by default. Only systemd can.
	Masked any `yaml:"masked"`
	// Have systemd read its unit files again if those on disk are newer than what it knows.
	DaemonReload bool `yaml:"daemon_reload"`
	// How long the service has to stay up after it was started, restarted or reloaded; 0 does not look.
	Settle time.Duration `yaml:"settle"`
	// Restart the service, if it is up, when one of these files changed after its main process started: its contents, owner or mode, or a
	// link that was made anew, whatever time the contents carry. For state started or running.
	RestartIf []string `yaml:"restart_if"`
	// What manages services: systemd, sysv (scripts in /etc/init.d), or what the host has.
	Use string `yaml:"use" choices:"auto,systemd,sysv"`
}

var serviceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:_.@\\-]*$`)

// Validate refuses arguments that contradict each other.
func (s *service) Validate() error {
	var errs []error
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	if !serviceName.MatchString(s.Name) {
		refuse("name", fmt.Sprintf("%q is not the name of a service", s.Name), "")
	}
	enabled, enabledSet := s.Enabled.(bool)
	if s.Enabled != nil && !enabledSet {
		refuse("enabled", "expected true or false", "without quotes")
	}
	masked, maskedSet := s.Masked.(bool)
	if s.Masked != nil && !maskedSet {
		refuse("masked", "expected true or false", "without quotes")
	}
	up := s.State != "" && s.State != "stopped"
	switch {
	case s.State == "" && s.Enabled == nil && s.Masked == nil:
		refuse("", "nothing is asked of the service", "give state, enabled or masked")
	case masked && (enabled || up):
		refuse("masked", "a masked service can be neither started nor enabled", "")
	case masked && s.Use == "sysv":
		refuse("masked", "needs systemd", "")
	}
	if len(s.RestartIf) > 0 && s.State != "started" && s.State != "running" {
		refuse("restart_if", "needs state started or running", "")
	}
	for i, file := range s.RestartIf {
		if !strings.HasPrefix(file, "/") {
			refuse(fmt.Sprintf("restart_if[%d]", i), "must be an absolute path", "")
		}
	}
	return errors.Join(errs...)
}

// Returns documents the result.
func (s *service) Returns() []module.Return {
	return []module.Return{
		{Name: "active", Type: "string", Help: "state as systemd has it: active, inactive, failed, activating …"},
		{Name: "sub", Type: "string", Help: "state in more detail: running, exited, dead, auto-restart …"},
		{Name: "enabled", Type: "bool", Help: "whether it starts at boot"},
		{Name: "main_pid", Type: "int", Help: "its main process, 0 if there is none or it is not known"},
		{Name: "since", Type: "string", Help: "when that process started, as 2026-01-31T12:00:00Z, or empty"},
	}
}

// serviceLib is what both scripts begin with. It finds what manages services, and prints what that knows of one.
const serviceLib = `PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
unset SYSTEMD_PAGER SYSTEMD_COLORS
name=$1 use=$2
has() { command -v "$1" >/dev/null 2>&1; }
base=${name%.service}
script=/etc/init.d/$base
if [ "$use" = auto ]; then
	if [ -d /run/systemd/system ] && has systemctl; then use=systemd
	elif [ -d /etc/init.d ] && ! has openrc-run; then use=sysv
	else
		found=$(tr '\000' ' ' </proc/1/cmdline 2>/dev/null)
		has openrc-run && found=openrc
		echo "found=$found"
		exit 0
	fi
fi
printf 'use=%s\nuptime=%s\nnow=%s\n' "$use" "$(cut -d' ' -f1 /proc/uptime)" "$(date +%s.%N)"
init() { if has service; then service "$base" "$@"; else "$script" "$@"; fi </dev/null; }
pid_of() {
	for f in /run/$base.pid /var/run/$base.pid /run/$base/$base.pid /var/run/$base/$base.pid; do
		pid=
		[ -r "$f" ] && read -r pid rest <"$f"
		case $pid in '' | *[!0-9]*) continue ;; esac
		[ -d "/proc/$pid" ] && { echo "$pid"; return; }
	done
	echo 0
}
started() { # of a process, in seconds since boot
	tick=$(getconf CLK_TCK 2>/dev/null || echo 100)
	sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk -v t="$tick" '{printf "%.2f\n", $20 / t}'
}
show() {
	if [ "$use" = systemd ]; then
		systemctl show -p Id,LoadState,LoadError,ActiveState,SubState,UnitFileState,MainPID,NRestarts,NeedDaemonReload,Type,RemainAfterExit,CanReload,ConditionResult,Result,ExecMainStatus,ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic,InactiveExitTimestampMonotonic,FragmentPath,SourcePath,WantedBy,RequiredBy,TriggeredBy -- "$name"
		return
	fi
	[ -x "$script" ] || { echo LoadState=not-found; return; }
	echo LoadState=loaded
	init status >/dev/null 2>&1
	code=$?
	echo "status=$code"
	pid=$(pid_of)
	echo "MainPID=$pid"
	[ "$pid" = 0 ] || echo "pidstart=$(started "$pid")"
	for link in /etc/rc[2345].d/S[0-9]*"$base" /etc/rc.d/rc[2345].d/S[0-9]*"$base"; do
		case ${link##*/S} in [0-9]"$base" | [0-9][0-9]"$base" | [0-9][0-9][0-9]"$base")
			[ -e "$link" ] && { echo rcenabled=yes; break; } ;;
		esac
	done
}
`

const serviceCheckScript = serviceLib + `shift 2
facts=$(show) || exit 1
printf '%s\n' "$facts"
if [ "$use" = systemd ]; then
	case $facts in
	*LoadState=not-found*) [ -x "$script" ] && echo initscript=yes ;;
	*SourcePath=/etc/*init.d/*) echo "isenabled=$(systemctl is-enabled -- "$name" 2>/dev/null | tail -n 1)" ;;
	esac
fi
# When a file, or the link to it, became what it is. Not by the time of its contents: a file that is put back from elsewhere brings an old one along.
changed() { { find -L "$1" -prune -printf '%C@\n' && find "$1" -prune -printf '%C@\n'; } 2>/dev/null || stat -L -c %Z "$1"; }
for file; do
	if [ -e "$file" ]; then echo "file=$(changed "$file" | sort -n | tail -n 1) $file"
	else echo "nofile=$file"; fi
done
`

// serviceFacts is what a host says of a service.
type serviceFacts struct {
	props map[string]string
	files map[string]float64 // change times, in seconds
	gone  []string           // files that are not there
}

func parseServiceFacts(text string) serviceFacts {
	f := serviceFacts{props: map[string]string{}, files: map[string]float64{}}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "file":
			when, file, _ := strings.Cut(value, " ")
			f.files[file], _ = strconv.ParseFloat(when, 64)
		case "nofile":
			f.gone = append(f.gone, value)
		default:
			f.props[key] = value
		}
	}
	return f
}

func (f serviceFacts) number(key string) float64 {
	n, _ := strconv.ParseFloat(f.props[key], 64)
	return n
}

func (f serviceFacts) systemd() bool { return f.props["use"] == "systemd" }

// state is the state in the words of systemd.
func (f serviceFacts) state() (active, sub string) {
	if f.systemd() {
		return f.props["ActiveState"], f.props["SubState"]
	}
	switch f.props["status"] {
	case "0":
		return "active", "running"
	case "1", "2":
		return "failed", "dead"
	}
	return "inactive", "dead"
}

// describe is the state for people, such as active (running).
func (f serviceFacts) describe() string {
	active, sub := f.state()
	return active + " (" + sub + ")"
}

// up reports whether the service is what started or running asks for.
func (f serviceFacts) up(running bool) bool {
	active, sub := f.state()
	if running && sub == "exited" {
		return false
	}
	return active == "active" || active == "reloading"
}

// startTime is when the main process started, in seconds since 1970; 0 if there is none or it is not known.
func (f serviceFacts) startTime() float64 {
	boot := f.number("now") - f.number("uptime")
	switch {
	case f.number("MainPID") > 0 && f.number("ExecMainStartTimestampMonotonic") > 0:
		return boot + f.number("ExecMainStartTimestampMonotonic")/1e6
	case f.systemd() && f.up(false) && f.number("ActiveEnterTimestampMonotonic") > 0:
		return boot + f.number("ActiveEnterTimestampMonotonic")/1e6
	case f.number("pidstart") > 0:
		return boot + f.number("pidstart")
	}
	return 0
}

// enabled is whether the service starts at boot, and whether that is a matter of enabling it.
func (f serviceFacts) enabled() (enabled, canChange bool) {
	if !f.systemd() {
		return f.props["rcenabled"] == "yes", true
	}
	state := f.props["UnitFileState"]
	if f.props["isenabled"] != "" {
		return f.props["isenabled"] == "enabled", true
	}
	switch state {
	case "enabled", "alias", "linked":
		return state != "linked", true
	case "disabled", "enabled-runtime", "linked-runtime", "masked", "masked-runtime":
		return false, true
	}
	// static, indirect, generated, transient: there is nothing to enable, but other units may start it.
	return f.props["WantedBy"]+f.props["RequiredBy"]+f.props["TriggeredBy"] != "", false
}

func (f serviceFacts) masked() bool {
	return f.props["LoadState"] == "masked" || strings.HasPrefix(f.props["UnitFileState"], "masked")
}

func (f serviceFacts) values() module.Values {
	active, sub := f.state()
	enabled, _ := f.enabled()
	since := ""
	if t := f.startTime(); t > 0 {
		since = time.UnixMilli(int64(t * 1000)).UTC().Format(time.RFC3339)
	}
	return module.Values{"active": active, "sub": sub, "enabled": enabled, "main_pid": int(f.number("MainPID")), "since": since}
}

// serviceOps are the steps of Apply, in their order.
var serviceOps = []string{"daemon-reload", "unmask", "enable", "disable", "stop", "start", "restart", "reload", "mask"}

// Check asks what manages the services for the state of this one.
func (s *service) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	out, err := hostScript(ctx, host, serviceCheckScript, append([]string{s.Name, s.Use}, s.RestartIf...)...)
	if err != nil {
		return module.Plan{}, fmt.Errorf("cannot read the state of %s: %w", s.Name, err)
	}
	f := parseServiceFacts(string(out.Stdout))
	if found, none := f.props["found"]; none {
		return module.Plan{}, fmt.Errorf("neither systemd nor scripts in /etc/init.d manage services here: found %s", strings.TrimSpace(found))
	}
	if doubt := inDoubt(host, unitKind, f.fullName(s.Name)); doubt != nil {
		return *doubt, nil
	}
	plan := module.Plan{}
	if task := s.foresee(host, &f); task != "" {
		return module.Plan{Unknown: yetToRun(task) + ", which may start it, or not", Hangs: task, Pending: true}, nil
	}
	var ops []string
	add := func(op, what, before, after string) {
		ops = append(ops, op)
		plan.Changes = append(plan.Changes, module.Change{What: what + " " + s.Name, Before: before, After: after, Outage: f.outage(op)})
	}
	known := true
	switch load := f.props["LoadState"]; {
	case load == "not-found" && f.props["initscript"] == "yes" && s.DaemonReload:
		known = false
		add("daemon-reload", "read the unit files again for", "no unit", "the unit of /etc/init.d/"+strings.TrimSuffix(s.Name, ".service"))
	case load == "not-found" && f.systemd() && s.Masked == true:
	case load == "not-found" && f.systemd():
		return plan, fmt.Errorf("no unit %s", f.unit(s.Name))
	case load == "not-found":
		return plan, fmt.Errorf("no init script /etc/init.d/%s", strings.TrimSuffix(s.Name, ".service"))
	case load == "error" || load == "bad-setting":
		return plan, fmt.Errorf("systemd cannot use the unit %s: %s", f.unit(s.Name), strings.Trim(f.props["LoadError"], `"`))
	case f.props["NeedDaemonReload"] == "yes" && s.DaemonReload:
		add("daemon-reload", "read the unit files again for", "older than the files", "as the files")
	}
	if err := s.checkBoot(f, known, add); err != nil {
		return plan, err
	}
	if err := s.checkState(host, f, add); err != nil {
		return plan, err
	}
	plan.Values = f.values()
	plan.Act = s.State == "restarted" || s.State == "reloaded"
	plan.Again = plan.Act
	plan.Pending = len(plan.Changes) > 0
	slices.SortFunc(ops, func(a, b string) int { return slices.Index(serviceOps, a) - slices.Index(serviceOps, b) })
	plan.Effects = f.effects(s.Name, ops)
	plan.State = ops
	return plan, nil
}

// unit is the full name of a unit, through aliases.
func (f serviceFacts) unit(name string) string {
	if id := f.props["Id"]; id != "" {
		return id
	}
	return name
}

// checkBoot compares what was declared about the boot: enabled and masked.
func (s *service) checkBoot(f serviceFacts, known bool, add func(op, what, before, after string)) error {
	masked, maskedSet := s.Masked.(bool)
	switch {
	case maskedSet && !f.systemd() && masked:
		return errors.New("masked needs systemd")
	case maskedSet && masked && f.unit(s.Name) != s.Name && f.unit(s.Name) != s.Name+".service":
		return fmt.Errorf("%s is an alias of %s: mask it by that name, or systemd can no longer read the alias", s.Name, f.unit(s.Name))
	case maskedSet && masked && !f.masked() && strings.HasPrefix(f.props["FragmentPath"], "/etc/systemd/system/"):
		return fmt.Errorf("unit %s cannot be masked: the mask would take the place of its file %s", f.unit(s.Name), f.props["FragmentPath"])
	case maskedSet && masked && !f.masked():
		add("mask", "mask", "not masked", "masked")
	case maskedSet && !masked && f.masked():
		add("unmask", "unmask", "masked", "not masked")
	}
	want, wanted := s.Enabled.(bool)
	isMasked := f.masked() && !(maskedSet && !masked)
	if isMasked && (want || s.State != "" && s.State != "stopped") {
		return fmt.Errorf("unit %s is masked: nothing can start it (masked: false unmasks it)", f.unit(s.Name))
	}
	if !wanted || isMasked {
		return nil
	}
	is, canChange := f.enabled()
	if !known {
		is, canChange = !want, true // whatever it is, it is made what it is to be
	}
	switch {
	case is == want:
	case canChange && want:
		add("enable", "enable", "disabled", "enabled")
	case canChange:
		add("disable", "disable", "enabled", "disabled")
	case want:
		return fmt.Errorf("unit %s cannot be enabled, and nothing starts it at boot: it is %s (no [Install] section)", f.unit(s.Name), f.props["UnitFileState"])
	default:
		return fmt.Errorf("unit %s cannot be disabled: it is %s and wanted by %s (masked: true keeps it down)", f.unit(s.Name), f.props["UnitFileState"],
			strings.Join(strings.Fields(f.props["WantedBy"]+" "+f.props["RequiredBy"]+" "+f.props["TriggeredBy"]), ", "))
	}
	return nil
}

// checkState compares what was declared about now.
func (s *service) checkState(host *module.Host, f serviceFacts, add func(op, what, before, after string)) error {
	active, _ := f.state()
	switch s.State {
	case "started", "running":
		if f.props["Type"] == "oneshot" && f.props["RemainAfterExit"] == "no" {
			return fmt.Errorf("unit %s runs once and ends: it is never %s (restarted, in a handler, runs it again)", f.unit(s.Name), s.State)
		}
		if !f.up(s.State == "running") {
			op := "start"
			if active == "active" {
				op = "restart" // starting what has exited but counts as active does nothing
			}
			add(op, op, f.describe(), s.State)
			return nil
		}
		stale, err := s.stale(host, f)
		if err != nil {
			return err
		}
		if stale != "" {
			add("restart", "restart", "started before "+stale+" changed", s.State)
		}
	case "stopped":
		if active != "inactive" && active != "failed" && active != "" {
			add("stop", "stop", f.describe(), "stopped")
		}
	case "restarted":
		add("restart", "restart", f.describe(), "restarted")
	case "reloaded":
		switch {
		case !f.up(false):
			add("start", "start", f.describe(), "started")
		case f.systemd() && f.props["CanReload"] == "no":
			return fmt.Errorf("unit %s cannot reload: use restarted", f.unit(s.Name))
		default:
			add("reload", "reload", f.describe(), "reloaded")
		}
	}
	return nil
}

// stale is a file that changed after the main process started, "" if there is none.
func (s *service) stale(host *module.Host, f serviceFacts) (string, error) {
	if len(s.RestartIf) == 0 {
		return "", nil
	}
	started := f.pendingStart(host, s.Name)
	for _, file := range s.RestartIf {
		if _, by, pending := pendingPath(host, file); pending && by.Order > started {
			return file, nil
		}
	}
	for _, file := range f.gone {
		if e, _, pending := pendingPath(host, file); !pending || e.kind == "" {
			return "", fmt.Errorf("restart_if: no file %s", file)
		}
	}
	if started > 0 {
		return "", nil
	}
	start := f.startTime()
	if start == 0 {
		return "", fmt.Errorf("restart_if: cannot tell when %s was started", s.Name)
	}
	const slack = 0.05 // the clocks are read one after the other
	for _, file := range s.RestartIf {
		if f.files[file] > start+slack {
			return file, nil
		}
	}
	return "", nil
}

const serviceApplyScript = serviceLib + `settle=$3 want=$4
shift 4
unit=$name
log=$(mktemp) || exit 1 # not a pipe: a daemon may keep it open
trap 'rm -f "$log"' EXIT
trap 'exit 130' HUP INT TERM
if [ "$use" = systemd ]; then
	case " $* " in *" daemon-reload "*) systemctl daemon-reload || exit 1 ;; esac
	unit=$(systemctl show -p Id -- "$name" | sed 's/^Id=//')
fi
evidence() {
	echo "$1" >&2
	if [ "$use" = systemd ] && has journalctl; then
		lines=$(journalctl -u "$unit" -n 20 --no-pager -q -o short-iso 2>/dev/null)
		if [ -n "$lines" ]; then printf 'its journal ends with:\n%s\n' "$lines" >&2; fi
	fi
	exit 1
}
fact() { printf '%s\n' "$1" | sed -n "s/^$2=//p" | head -n 1; }
enable() {
	if [ "$use" = systemd ]; then systemctl "$1" -- "$unit"; return; fi
	if has chkconfig; then
		if [ "$1" = enable ]; then chkconfig --add "$base" && chkconfig "$base" on; else chkconfig "$base" off; fi
	elif has update-rc.d; then
		if [ "$1" = enable ]; then update-rc.d "$base" defaults >/dev/null && update-rc.d "$base" enable; else update-rc.d "$base" disable; fi
	else
		echo "neither chkconfig nor update-rc.d is there" >&2
		return 1
	fi
}
operate() {
	if [ "$use" = systemd ]; then
		# A unit that failed too often in a row is not started until that is forgotten.
		if [ "$1" = start ] || [ "$1" = restart ]; then systemctl reset-failed -- "$unit" 2>/dev/null; fi
		systemctl "$1" -- "$unit"
	else init "$1"; fi
}
for op; do
	case $op in
	daemon-reload) ;;
	mask | unmask) systemctl "$op" -- "$unit" || exit 1 ;;
	enable | disable) enable "$op" >"$log" 2>&1 || { echo "cannot $op $name: $(cat "$log")" >&2; exit 1; } ;;
	stop) operate stop >"$log" 2>&1 || evidence "cannot stop $name: $(cat "$log")" ;;
	*)
		operate "$op" >"$log" 2>&1 || evidence "cannot $op $name: $(cat "$log")"
		[ "$settle" = 0 ] && continue
		first=$(show)
		sleep "$settle"
		last=$(show)
		if [ "$use" = systemd ]; then
			state="$(fact "$last" ActiveState) ($(fact "$last" SubState))"
			case $(fact "$last" ActiveState) in
			active | reloading)
				[ "$want" != running ] || [ "$(fact "$last" SubState)" != exited ] || evidence "$name did not stay up: it counts as active, but its processes have ended" ;;
			inactive) # a unit that runs once has done so
				[ "$(fact "$last" ConditionResult)" = no ] && evidence "$name did not start: a condition of its unit does not hold"
				[ "$(fact "$last" Type)" = oneshot ] && [ "$(fact "$last" Result)" = success ] && continue
				evidence "$name did not stay up: it is $state, exit status $(fact "$last" ExecMainStatus)" ;;
			*) evidence "$name did not stay up: it is $state, result $(fact "$last" Result), exit status $(fact "$last" ExecMainStatus)" ;;
			esac
			[ "$(fact "$first" NRestarts)" = "$(fact "$last" NRestarts)" ] || evidence "$name did not stay up: systemd had to start it again"
			[ "$(fact "$first" MainPID)" = "$(fact "$last" MainPID)" ] || evidence "$name did not stay up: its main process changed from $(fact "$first" MainPID) to $(fact "$last" MainPID)"
		else
			[ "$(fact "$last" status)" = 0 ] || evidence "$name did not stay up: $script status exits $(fact "$last" status)"
			[ "$(fact "$first" MainPID)" = "$(fact "$last" MainPID)" ] || evidence "$name did not stay up: its process changed from $(fact "$first" MainPID) to $(fact "$last" MainPID)"
		fi ;;
	esac
done
show
if [ "$use" = systemd ]; then
	case $(systemctl show -p SourcePath -- "$unit") in *init.d/*) echo "isenabled=$(systemctl is-enabled -- "$unit" 2>/dev/null | tail -n 1)" ;; esac
fi
exit 0
`

// Apply does what Check found, and watches the service for a while.
func (s *service) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	ops, _ := plan.State.([]string)
	settle := strconv.FormatFloat(s.Settle.Seconds(), 'f', -1, 64)
	out, err := hostScript(ctx, host, serviceApplyScript, append([]string{s.Name, s.Use, settle, s.State}, ops...)...)
	var exit *transport.ExitError
	if errors.As(err, &exit) {
		return nil, errors.New(strings.TrimSpace(string(exit.Output.Stderr)))
	}
	if err != nil {
		return nil, err
	}
	return parseServiceFacts(string(out.Stdout)).values(), nil
}
