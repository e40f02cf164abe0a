package module

import "slices"

// Effect is what a change that was found and not made would have made of one thing on its host. In check mode the engine carries
// the effects of earlier tasks to later ones on the same host, so that these are judged by what they will find. A run carries none:
// there the hosts have the things themselves.
type Effect struct {
	Kind  string // path, package, unit, rules, database, account, replication, sql, anything
	Name  string // which one, such as the path
	Value any    // what it will be, in a type that the modules of that kind share
	Sure  bool   // it will be so if the task succeeds, whether or not that is a change
	Maybe bool   // it is not known whether it will be; set by the engine where the task's own verdict is unknown
	Task  string // the name of the task whose change it is; set by the engine
	Order int    // its place among all effects on the host, from 1; set by the engine
}

// Anything is the kind of an effect that nobody can tell.
const Anything = "anything"

// Effects are what earlier changes of this check will have made of a host, in their order. The zero value has none.
type Effects []Effect

// Last returns the last effect on a thing.
func (e Effects) Last(kind, name string) (Effect, bool) {
	return e.Find(func(one Effect) bool { return one.Kind == kind && one.Name == name })
}

// Of returns the last effect of any of these kinds.
func (e Effects) Of(kinds ...string) (Effect, bool) {
	return e.Find(func(one Effect) bool { return slices.Contains(kinds, one.Kind) })
}

// Find returns the last effect that fits.
func (e Effects) Find(fits func(Effect) bool) (Effect, bool) {
	for _, one := range slices.Backward(e) {
		if fits(one) {
			return one, true
		}
	}
	return Effect{}, false
}
