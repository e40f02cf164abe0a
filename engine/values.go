package engine

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"runbook/engine/journal"
	"runbook/engine/module"
	"runbook/engine/secret"
	"runbook/engine/vars"
)

// leaves is a value with f of all that is no list or map in it.
func leaves(v any, f func(any) any) any {
	switch v := v.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = leaves(v[i], f)
		}
		return list
	case map[string]any:
		m := make(map[string]any, len(v))
		for k := range v {
			m[k] = leaves(v[k], f)
		}
		return m
	}
	return f(v)
}

// public is arguments as a digest may know them: of a secret whether it is the same.
func (p *playRun) public(args map[string]any) (out map[string]any, err error) {
	seal := func(shown, text string) any {
		sealed := ""
		if p.job.Journal != nil && err == nil {
			sealed, err = p.job.Journal.Seal(text)
		}
		return []string{shown, sealed}
	}
	known := leaves(args, func(v any) any {
		switch v := v.(type) {
		case module.Template:
			if v.Secret {
				return seal(v.Shown, v.Text)
			}
		case secret.Secret:
			return seal(v.Shown(), v.Reveal())
		}
		return v
	})
	return known.(map[string]any), err
}

// onRecord is what the record has of the values of a task; the others are unknown.
func onRecord(t *task, end *journal.End) (map[string]any, error) {
	values, err := decodeValues(end.Values)
	if err != nil {
		return nil, fmt.Errorf("cannot read values on record: %w", err)
	}
	if end.Unseen || end.Withheld {
		known := values
		values = unseen(t, end.Unseen)
		maps.Copy(values, known)
	}
	return values, nil
}

// lookedUp completes the values of a task that is done by those that Check finds, if it can tell what was returned.
func (p *playRun) lookedUp(past *outcome, d *doing, plan module.Plan) {
	if !d.look || len(plan.Changes) > 0 || plan.Unknown != "" || plan.Idle {
		return
	}
	values := maps.Clone(past.values)
	for name, v := range plan.Values {
		if _, missing := values[name].(vars.Unknown); !missing {
			continue
		}
		// What rests upon it would not fit another one.
		if seal, err := p.sealed(v); err == nil && seal != "" && seal == d.restore.Seals[name] {
			values[name] = v
		}
	}
	past.values = values
}

// missing is the outcome of a task that needs what nobody knows. What a person took for done may be done anew for it. If the task was under way,
// that is asked in the same breath: what is done anew for it is forgotten again when the run ends.
func (p *playRun) missing(t *task, h *hostRun, because string) outcome {
	var asked []Question
	p.mu.Lock()
	for _, d := range p.unseen {
		if strings.Contains(because, notKnown(d.task)) {
			asked = append(asked, Question{Host: d.host, Task: d.name, Item: d.item, Again: true})
		}
	}
	p.mu.Unlock()
	if len(asked) > 0 {
		p.memo.mu.Lock()
		for key, begin := range p.memo.begun {
			if key.Task == p.taskID(t) && key.Host == h.host.Name {
				asked = append(asked, Question{Host: key.Host, Task: begin.Name, Item: begin.Label})
			}
		}
		p.memo.mu.Unlock()
	}
	for _, q := range asked {
		p.ask(q)
	}
	return fail("cannot go on without what nobody knows: %s", because)
}

// takenForDone is a task on a host that is done, though what it returned is not known.
type takenForDone struct {
	task             *task
	host, name, item string
}

func notKnown(t *task) string {
	return fmt.Sprintf("what %q returned is not known", t.label())
}

// unseen is what a task returned of which nothing is on record; done says that a person took it for done.
func unseen(t *task, done bool) map[string]any {
	why := "what holds secrets is not on record"
	if done {
		why = "it was taken for done"
	}
	values := unknownFields(t.factory(), notKnown(t)+", for "+why)
	if _, has := values["rc"]; has && done {
		values["rc"] = 0 // done is to say that it went well
	}
	return values
}

// mostValues is how many bytes of JSON the values of one doing may have on record: a line of it has room for them.
const mostValues = journal.MaxLine * 3 / 4

// encodeValues puts registered values into an end, less those that hold secrets or are too much, of which their seals must do.
func (p *playRun) encodeValues(end *journal.End, values map[string]any) error {
	public, size := map[string]any{}, 0
	for _, name := range slices.Sorted(maps.Keys(values)) {
		one, err := json.Marshal(exactly(values[name]))
		if err == nil && !p.holdsSecret(values[name]) && size+len(one) <= mostValues && p.job.Masker.Mask(string(one)) == string(one) {
			public[name], size = json.RawMessage(one), size+len(one)
			continue
		}
		seal, err := p.sealed(values[name])
		if err != nil {
			return err
		}
		if end.Withheld = true; end.Seals == nil {
			end.Seals = map[string]string{}
		}
		end.Seals[name] = seal
	}
	text, err := json.Marshal(public)
	if end.Values = text; err != nil || p.job.Masker.Mask(string(text)) != string(text) {
		end.Values, end.Withheld = nil, true
	}
	return nil
}

// sealed tells whether a value with secrets is the same as another, and no more; "" if that cannot be told.
func (p *playRun) sealed(v any) (string, error) {
	clear := leaves(v, func(v any) any {
		if s, is := v.(secret.Secret); is {
			return s.Reveal()
		}
		return v
	})
	text, err := json.Marshal(exactly(clear))
	if err != nil {
		return "", nil // JSON cannot hold it, so it is not compared
	}
	return p.job.Journal.Seal(string(text))
}

// bytesKey is the one key of the map that stands for a string which is no text.
const bytesKey = "$bytes"

// exactly is a value in a form that JSON gives back as it was: strings that are no text, and whole numbers that are floats.
func exactly(v any) any {
	return leaves(v, func(v any) any {
		switch v := v.(type) {
		case string:
			if !utf8.ValidString(v) || strings.Contains(v, "\x00") {
				return map[string]any{bytesKey: base64.StdEncoding.EncodeToString([]byte(v))}
			}
		case float64:
			if v == math.Trunc(v) && math.Abs(v) < 1e15 {
				return json.Number(strconv.FormatFloat(v, 'f', 1, 64))
			}
		}
		return v
	})
}

// decodeValues reads registered values.
func decodeValues(text json.RawMessage) (map[string]any, error) {
	if len(text) == 0 {
		return nil, nil
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	var values map[string]any
	if err := decoder.Decode(&values); err != nil {
		return nil, err
	}
	for name, v := range values {
		values[name] = asItWas(v)
	}
	return values, nil
}

// asItWas undoes exactly.
func asItWas(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = asItWas(v[i])
		}
	case map[string]any:
		if text, ok := v[bytesKey].(string); ok && len(v) == 1 {
			if data, err := base64.StdEncoding.DecodeString(text); err == nil {
				return string(data)
			}
		}
		for k := range v {
			v[k] = asItWas(v[k])
		}
	}
	return v
}

// holdsSecret reports whether a secret is anywhere in a value.
func (p *playRun) holdsSecret(v any) bool {
	switch v := v.(type) {
	case secret.Secret:
		return true
	case string:
		return p.job.Masker.Mask(v) != v // before it is written in another way, in which no mask would know it
	case []any:
		return slices.ContainsFunc(v, p.holdsSecret)
	case map[string]any:
		for key, one := range v {
			if p.holdsSecret(key) || p.holdsSecret(one) {
				return true
			}
		}
	}
	return false
}
