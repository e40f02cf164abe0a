// Package inventory is the hosts of a site: their groups, their variables, and how each is reached.
//
// An inventory is a YAML file, or a directory of them, with group_vars/NAME.yml and host_vars/NAME.yml beside it:
//
//	groups:
//	  all:                          # every host is in it
//	    user: root                  # a connection setting
//	    vars: {databases: [voms]}   # variables
//	  master:
//	    hosts:
//	      voms1.example.org: {address: 10.77.0.1, vars: {server_id: 1}}
//	  slave:
//	    hosts: {"voms[2:3].example.org": {}}
//	  voms:
//	    children: [master, slave]
//
// Connection settings are no variables: nothing that a runbook or a host says can change where we connect. What is
// set twice on the same host or group, to different values, is an error, whatever the files' order. Between levels
// the nearer wins: a host over its groups, a group over its parents, and among groups that are equally far from all
// the later name.
package inventory

import (
	"embed"
	"slices"

	"runbook/engine/spec"
)

// Examples holds inventories to start from, for documentation and tests.
//
//go:embed examples
var Examples embed.FS

// Inventory is the hosts of a site.
type Inventory struct {
	hosts  []*Host
	byName map[string]*Host
	groups map[string][]string
}

// Host is one host with all that its groups give it.
type Host struct {
	Name       string
	Pos        spec.Pos // where it was first named
	Groups     []string // every group that it is in, the farthest ancestor, all, first
	Connection Connection
	Vars       []Var // weakest first
}

// Var is a variable as one group or host sets it.
type Var struct {
	Name  string
	Value *spec.Value
	Group string // "": set on the host
}

// Hosts lists every host in the order of the inventory.
func (inv *Inventory) Hosts() []*Host { return slices.Clone(inv.hosts) }

// Host returns the host of that name, nil if there is none.
func (inv *Inventory) Host(name string) *Host { return inv.byName[name] }

// Groups maps each group, all too, to the names of its hosts in the order of the inventory.
func (inv *Inventory) Groups() map[string][]string {
	groups := make(map[string][]string, len(inv.groups))
	for name, hosts := range inv.groups {
		groups[name] = slices.Clone(hosts)
	}
	return groups
}
