package modules

import (
	"fmt"
	"strings"
	"time"

	"runbook/engine/module"
)

// unitEffect is what a unit will be; "" leaves a side of it as it is.
type unitEffect struct {
	active  string // active or inactive
	enabled string // enabled or disabled
	load    string // masked or loaded
	started bool   // it was started, and has read its files as they were then
}

// reloadKind is the kind of the effect that systemd has read its unit files again.
const reloadKind = "daemon-reload"

// effects are what the steps of Apply make of the unit.
func (f serviceFacts) effects(name string, ops []string) []module.Effect {
	var e unitEffect
	var list []module.Effect
	for _, op := range ops {
		switch op {
		case "daemon-reload":
			list = append(list, module.Effect{Kind: reloadKind})
		case "mask":
			e.load = "masked"
		case "unmask":
			e.load = "loaded"
		case "enable", "disable":
			e.enabled = op + "d"
		case "stop":
			e.active = "inactive"
		case "start", "restart":
			e.active, e.started = "active", true
		}
	}
	return append(list, module.Effect{Kind: unitKind, Name: f.fullName(name), Value: e})
}

// fullName is the name by which effects know the unit.
func (f serviceFacts) fullName(name string) string {
	name = f.unit(name)
	if !strings.Contains(name, ".") || strings.HasSuffix(name, "@") {
		name += ".service"
	}
	return name
}

// pendingStart is the place among the effects at which the unit will have been started last, 0 if it will not have been.
func (f serviceFacts) pendingStart(host *module.Host, name string) int {
	e, _ := host.Effects.Find(func(one module.Effect) bool {
		return one.Kind == unitKind && one.Name == f.fullName(name) && one.Value.(unitEffect).started
	})
	return e.Order
}

// unitDirs are where units are, those that count more first.
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// foresee makes of the facts what earlier tasks of this check will have made of the service. It returns a task that brings the
// unit, if it may start or enable it by itself.
func (s *service) foresee(host *module.Host, f *serviceFacts) (task string) {
	if len(host.Effects) == 0 || !f.systemd() {
		return ""
	}
	name := f.fullName(s.Name)
	names := []string{name}
	base, _, isInstance := strings.Cut(name, "@")
	if isInstance {
		names = append(names, base+"@.service")
	}
	for _, dir := range unitDirs {
		for _, one := range names {
			e, by, pending := pendingPath(host, dir+"/"+one)
			switch {
			case !pending || by.Name != dir+"/"+one:
			case e.kind == "link" && string(e.content) == "/dev/null":
				f.props["LoadState"], f.props["UnitFileState"] = "masked", "masked"
			case e.kind != "" && f.props["LoadState"] == "not-found":
				f.appear(dir + "/" + one)
			}
		}
	}
	if bringer, pending := mayBring(host); pending && f.props["LoadState"] == "not-found" && f.props["initscript"] != "yes" {
		if !isInstance {
			return bringer
		}
		f.appear("") // no package knows the instances of its units
	}
	f.foreseeReload(host, names)
	for _, one := range host.Effects {
		if one.Kind != unitKind || one.Name != name {
			continue
		}
		e := one.Value.(unitEffect)
		if e.active != "" {
			f.props["ActiveState"], f.props["SubState"] = e.active, map[string]string{"active": "running", "inactive": "dead"}[e.active]
		}
		if e.enabled != "" {
			f.props["UnitFileState"] = e.enabled
			delete(f.props, "isenabled")
		}
		if e.load != "" {
			f.props["LoadState"], f.props["UnitFileState"] = e.load, e.load
		}
	}
	return ""
}

// appear makes the facts those of a unit that is new.
func (f *serviceFacts) appear(file string) {
	f.props["LoadState"], f.props["ActiveState"], f.props["SubState"], f.props["UnitFileState"] = "loaded", "inactive", "dead", "disabled"
	f.props["FragmentPath"], f.props["CanReload"] = file, "yes"
}

// foreseeReload tells whether systemd will have to read the files of a unit that it holds already.
func (f *serviceFacts) foreseeReload(host *module.Host, names []string) {
	last, _ := host.Effects.Of(reloadKind)
	if last.Order > 0 {
		f.props["NeedDaemonReload"] = "no"
	}
	if f.props["ActiveState"] != "active" {
		return
	}
	newer, _ := host.Effects.Find(func(one module.Effect) bool {
		if one.Kind != pathKind {
			return false
		}
		for _, dir := range unitDirs {
			for _, unit := range names {
				if one.Name == dir+"/"+unit || strings.HasPrefix(one.Name, dir+"/"+unit+".d/") {
					return true
				}
			}
		}
		return false
	})
	if newer.Order > last.Order {
		f.props["NeedDaemonReload"] = "yes"
	}
}

// outage says how long a step interrupts a service that answers now, "" if it does not.
func (f serviceFacts) outage(op string) string {
	if active, _ := f.state(); active != "active" || op != "restart" && op != "stop" {
		return ""
	}
	text := "until somebody starts it again"
	if op == "restart" {
		text = "for as long as a restart takes"
		if took := f.number("ActiveEnterTimestampMonotonic") - f.number("InactiveExitTimestampMonotonic"); took > 0 {
			text = fmt.Sprintf("for about %s, which its last start took", time.Duration(took*1000).Round(10*time.Millisecond))
		}
	}
	if others := strings.Join(strings.Fields(f.props["RequiredBy"]), ", "); others != "" {
		text += "; with it " + others
	}
	return text
}
