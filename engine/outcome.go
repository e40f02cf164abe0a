package engine

import (
	"fmt"
	"maps"
	"strings"

	"runbook/engine/module"
	"runbook/engine/report"
	"runbook/engine/vars"
)

// outcome is how one task, or one item of its loop, ended on a host.
type outcome struct {
	result  report.Result
	values  map[string]any // what register binds
	lost    bool           // the host could not be reached
	away    string         // the host that could not be reached
	on      string         // the host that it was delegated to, "" for the play's
	planned bool           // check mode: Check returned a plan, so the values are what is known
	// check mode: it is known what the task will make of the host if it runs
	foreseen bool
	certain  bool    // check mode: it fails after all pending changes too
	restored bool    // it comes from the record of an earlier part of the run
	notified []*task // the handlers that it notified
	doing    *doing
	open     bool     // it is not settled whether it was done, so it has no end on record, and nothing follows from it
	owes     []string // handlers that it notified in an earlier part of the run, where it is passed over now
	owedAt   int
	item     string // label of the loop's item
	more     bool   // items of its loop follow
	found    bool   // it was under way in an earlier part of the run, and is done
	unseen   bool   // a person took it for done, so what it returned is not known
	ended    bool   // the run was ended while it waited: it is on record, and nothing follows from it
	notRun   bool   // check mode: declared to change nothing, so there is nothing to judge
}

func (o *outcome) changed() bool {
	return o.result.Status == report.Changed || o.result.Status == report.WouldChange
}

// had reports whether a handler that ended so has had its turn.
func (o *outcome) had() bool {
	switch o.result.Status {
	case report.OK, report.Changed, report.Skipped:
		return true
	}
	return o.result.Ignored || o.result.Rescued
}

// final reports whether its host takes no further part, whatever the book says of failures.
func (o *outcome) final() bool { return o.open || o.ended || o.lost }

// paid are the handlers of what was done in an earlier part of the run that another run has run since.
func (o *outcome) paid() []string {
	if o.found {
		return o.doing.halfway.Paid
	}
	return nil
}

func fail(format string, args ...any) outcome {
	return outcome{result: report.Result{Status: report.Failed, Msg: fmt.Sprintf(format, args...)}}
}

func skipped(because string) outcome {
	out := outcome{result: report.Result{Status: report.Skipped, Because: because}}
	out.values = common(out.result, nil)
	return out
}

func unknown(because string) outcome {
	return outcome{result: report.Result{Status: report.Unknown, Because: because}}
}

// rank orders outcomes by how much they say of the whole task.
func rank(o outcome) int {
	switch o.result.Status {
	case report.Unreachable:
		return 6
	case report.Failed:
		if o.final() {
			return 6
		}
		if o.result.Ignored {
			return 2
		}
		return 5
	case report.Unknown:
		return 4
	case report.Changed, report.WouldChange:
		return 3
	case report.OK:
		return 1
	}
	return 0
}

// combine makes what register binds of the outcomes of a task.
func combine(all []outcome, looped bool) map[string]any {
	if !looped {
		if len(all) == 1 && all[0].values != nil {
			return all[0].values
		}
		var o outcome
		if len(all) == 1 {
			o = all[0]
		}
		return common(o.result, nil)
	}
	results := []any{}
	for _, o := range all {
		values := o.values
		if values == nil {
			values = common(o.result, nil)
		}
		results = append(results, values)
	}
	return map[string]any{
		"changed": foldResults(results, "changed", true),
		"failed":  foldResults(results, "failed", true),
		"skipped": foldResults(results, "skipped", false),
		"msg":     "", "results": results,
	}
}

// foldResults is what a field of all items says of the loop: decides if one item has that value, unknown if one may have it.
func foldResults(results []any, field string, decides bool) any {
	var fold any = !decides
	for _, values := range results {
		switch v := values.(map[string]any)[field].(type) {
		case bool:
			if v == decides {
				return decides
			}
		case vars.Unknown:
			fold = v
		}
	}
	return fold
}

// common adds the fields that every result has to those of the module.
func common(res report.Result, values map[string]any) map[string]any {
	out := map[string]any{}
	maps.Copy(out, values)
	delete(out, "warnings")
	out["changed"] = res.Status == report.Changed || res.Status == report.WouldChange
	failed := res.Status == report.Failed || res.Status == report.Unreachable
	if _, notKnown := out["failed"].(vars.Unknown); failed || !notKnown {
		out["failed"] = failed
	}
	out["skipped"] = res.Status == report.Skipped
	if _, has := out["msg"]; !has || res.Msg != "" {
		out["msg"] = res.Msg
	}
	return out
}

// unknownFields is what a module returns, none of it known yet.
func unknownFields(m module.Module, because string) map[string]any {
	values := map[string]any{}
	if r, ok := m.(module.Returner); ok {
		for _, f := range r.Returns() {
			values[f.Name] = vars.Unknown{Because: because}
		}
	}
	return values
}

// hangingFields are the values of a plan, those unknown that hang on a task which has yet to run.
func hangingFields(m module.Module, plan module.Plan) map[string]any {
	unknown := unknownFields(m, hasYetToRun(plan.Hangs))
	if len(plan.Hanging) == 0 {
		return unknown
	}
	values := maps.Clone(map[string]any(plan.Values))
	for _, name := range plan.Hanging {
		values[name] = unknown[name]
	}
	return values
}

// unknownResult is what register binds when it is not known what a task will do.
func unknownResult(t *task, because string) map[string]any {
	values := unknownFields(t.factory(), because)
	for _, name := range []string{"changed", "failed", "skipped", "msg"} {
		values[name] = vars.Unknown{Because: because}
	}
	return values
}

// stderrTail is what a command said beyond its first line, which is in the error already.
func stderrTail(stderr []byte) string {
	lines := strings.Split(strings.TrimRight(string(stderr), "\n"), "\n")
	if len(lines) < 2 {
		return ""
	}
	if lines = lines[1:]; len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return "\n" + strings.Join(lines, "\n")
}

func changes(list []module.Change) []report.Change {
	var out []report.Change
	for _, c := range list {
		out = append(out, report.Change(c))
	}
	return out
}

func warnings(values module.Values) []string {
	var out []string
	switch list := values["warnings"].(type) {
	case []string:
		out = list
	case []any:
		for _, w := range list {
			out = append(out, fmt.Sprint(w))
		}
	}
	return out
}
