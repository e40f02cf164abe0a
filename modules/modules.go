// Package modules holds the modules that runbook ships, one file each. A module registers itself in its file's init;
// adding one touches its file, its contract cases under testdata/ and its generated page under docs/modules/.
package modules

import (
	"maps"

	"runbook/engine/module"
)

var registry = map[string]module.Factory{}

func register(name string, f module.Factory) {
	if _, twice := registry[name]; twice {
		panic("module " + name + " is registered twice")
	}
	registry[name] = f
}

// All returns the factories of all modules by name.
func All() map[string]module.Factory { return maps.Clone(registry) }
