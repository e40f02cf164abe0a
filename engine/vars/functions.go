package vars

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/vm/runtime"

	"runbook/engine/secret"
)

// Function documents a function that expressions may call. None reads a clock, a file or chance.
type Function struct{ Name, Signature, Help string }

// Functions are the functions that there are, by name.
var Functions []Function

// function is a Function with what it does.
type function struct {
	Function
	call      *builtin.Function
	builtin   bool // expr's own
	overItems bool // has an expression for every item of a list
	shallow   bool // moves values about without looking into them, so that they may hold secrets
	secrets   bool // takes a secret
	lenient   bool // takes what is missing for nil
}

// table is every function by name.
var table = map[string]*function{}

func init() {
	overItems := func(name, signature, help string) {
		table[name] = &function{Function: Function{name, signature, help}, call: builtins[name], builtin: true, overItems: true}
	}
	theirs := func(name, signature, help string) *function {
		f := &function{Function: Function{name, signature, help}, call: builtins[name], builtin: true}
		table[name] = f
		return f
	}
	// The types of ours are those of Go functions; f gets arguments that fit one of them.
	ours := func(name, signature, help string, f func(args ...any) (any, error), types ...any) *function {
		call := &builtin.Function{Name: name, Func: f}
		for _, t := range types {
			call.Types = append(call.Types, reflect.TypeOf(t))
		}
		own := &function{Function: Function{name, signature, help}, call: call}
		table[name] = own
		return own
	}
	textTo := func(f func(string) any) func(...any) (any, error) {
		return func(args ...any) (any, error) { return f(args[0].(string)), nil }
	}

	overItems("all", "all(list, condition) bool", "whether the condition holds for every item; in it, # is the item and .x its field x")
	overItems("any", "any(list, condition) bool", "whether the condition holds for an item")
	overItems("none", "none(list, condition) bool", "whether the condition holds for no item")
	overItems("one", "one(list, condition) bool", "whether the condition holds for exactly one item")
	overItems("count", "count(list, condition) int", "for how many items the condition holds")
	overItems("filter", "filter(list, condition) list", "the items for which the condition holds")
	overItems("map", "map(list, expression) list", "the expression's value for every item; in it, #index counts from 0")
	overItems("find", "find(list, condition)", "the first item for which the condition holds, nil if none")
	overItems("findLast", "findLast(list, condition)", "the last item for which the condition holds, nil if none")
	overItems("findIndex", "findIndex(list, condition) int", "the index of the first such item, nil if none")
	overItems("findLastIndex", "findLastIndex(list, condition) int", "the index of the last such item, nil if none")
	overItems("sortBy", `sortBy(list, expression, order?) list`, `the items in the order of the expression's values; order is "asc" or "desc"`)
	overItems("sum", "sum(list, expression?) number", "the sum of the items, or of the expression's values")

	theirs("len", "len(x) int", "how many items a list or map has, how many characters a string has").shallow = true
	theirs("first", "first(list)", "the first item, nil if there is none").shallow = true
	theirs("last", "last(list)", "the last item, nil if there is none").shallow = true
	theirs("take", "take(list, n) list", "the first n items").shallow = true
	theirs("reverse", "reverse(list) list", "the items backwards").shallow = true
	theirs("concat", "concat(list, list...) list", "the items of all the lists").shallow = true
	theirs("flatten", "flatten(list) list", "the items of the lists in it, at any depth")
	theirs("sort", `sort(list, order?) list`, `the items in order; order is "asc" or "desc"`)
	theirs("min", "min(list) number", "the smallest number")
	theirs("max", "max(list) number", "the largest number")
	theirs("abs", "abs(number) number", "the number without its sign")
	theirs("upper", "upper(text) string", "in capitals")
	theirs("lower", "lower(text) string", "in small letters")
	theirs("trim", "trim(text, characters?) string", "without white space, or the characters, at both ends")
	theirs("trimPrefix", "trimPrefix(text, prefix) string", "without the prefix")
	theirs("trimSuffix", "trimSuffix(text, suffix) string", "without the suffix")
	theirs("split", "split(text, separator, n?) list", "the parts of the text, at most n of them")
	theirs("hasPrefix", "hasPrefix(text, prefix) bool", "whether the text starts so")
	theirs("hasSuffix", "hasSuffix(text, suffix) bool", "whether the text ends so")
	theirs("indexOf", "indexOf(text, part) int", "where the part is in the text, -1 if nowhere")
	theirs("lastIndexOf", "lastIndexOf(text, part) int", "where the part is last in the text, -1 if nowhere")
	theirs("toBase64", "toBase64(text) string", "in base64")
	theirs("fromBase64", "fromBase64(text) string", "what base64 stands for")

	ours("ceil", "ceil(number) int", "the next whole number above", rounded(math.Ceil), func(float64) int { return 0 }, func(int) int { return 0 })
	ours("floor", "floor(number) int", "the next whole number below", rounded(math.Floor), func(float64) int { return 0 }, func(int) int { return 0 })
	ours("round", "round(number) int", "the nearest whole number", rounded(math.Round), func(float64) int { return 0 }, func(int) int { return 0 })
	ours("int", "int(x) int", "a number without its fraction, or the whole number that a string says", toInt, func(any) int { return 0 })
	ours("float", "float(x) float", "the number that a string says", toFloat, func(any) float64 { return 0 })
	ours("string", "string(x) string", "a string, number or boolean as text", func(args ...any) (any, error) { return render(args[0]) }, func(any) string { return "" })
	ours("type", "type(x) string", "string, int, float, bool, list, map, secret or nil", kindOf, func(any) string { return "" }).secrets = true
	ours("empty", "empty(x) bool", "whether x is missing, nil, or an empty string, list, map or secret", isEmpty, func(any) bool { return false })
	table["empty"].secrets, table["empty"].lenient = true, true
	ours("keys", "keys(map) list", "the keys, sorted", keysSorted, func(any) []string { return nil }).shallow = true
	ours("values", "values(map) list", "the values, in the order of the keys", valuesSorted, func(map[string]any) []any { return nil }).shallow = true
	ours("merge", "merge(map, map...) map", "the entries of all the maps; later ones win", merge, func(...map[string]any) map[string]any { return nil }).shallow = true
	ours("unique", "unique(list) list", "the items without repetitions", unique, func([]any) []any { return nil })
	ours("join", "join(list, separator?) string", "the items as text, with the separator between them", join, func([]any, string) string { return "" }, func([]any) string { return "" })
	ours("replace", "replace(text, old, new) string", "with every old replaced by new", replace, func(string, string, string) string { return "" })
	ours("repeat", "repeat(text, n) string", "n times the text", repeat, func(string, int) string { return "" })
	ours("indent", "indent(text, n) string", "with n blanks before every line that is not empty", indent, func(string, int) string { return "" })
	ours("lines", "lines(text) list", "its lines, without their ends", lines, func(string) []string { return nil })
	ours("capture", "capture(text, pattern) string", "what the first group of a regular expression matches (all of the match if it has no group), nil if nothing does",
		capture, func(string, string) any { return nil })
	ours("toJSON", "toJSON(x) string", "as JSON, on one line", toJSON, func(any) string { return "" })
	ours("fromJSON", "fromJSON(text)", "what JSON stands for", fromJSON, func(string) any { return nil })
	ours("basename", "basename(path) string", "the last element of a path", textTo(func(s string) any { return path.Base(s) }), path.Base)
	ours("dirname", "dirname(path) string", "all but the last element of a path", textTo(func(s string) any { return path.Dir(s) }), path.Dir)
	ours("sha256", "sha256(text) string", "the SHA-256 sum in hexadecimal", textTo(func(s string) any {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:])
	}), func(string) string { return "" })
	ours("versionAtLeast", "versionAtLeast(version, least) bool", `compares number by number: "10.11.2" is at least "10.5"`, versionAtLeast, func(string, string) bool { return false })

	for _, name := range functionNames() {
		Functions = append(Functions, table[name].Function)
	}
}

func functionNames() []string {
	names := keysOf(table)
	slices.Sort(names)
	return names
}

// apply calls the function after checking the arguments against its types. Errors name no values.
func (f *function) apply(args []any) (v any, err error) {
	defer func() {
		if recover() != nil {
			v, err = nil, fmt.Errorf("cannot take %s", describe(args))
		}
	}()
	if f.call.Validate == nil {
		fitted := f.fit(args)
		if fitted == nil {
			return nil, fmt.Errorf("cannot take %s", describe(args))
		}
		args = fitted
	}
	switch {
	case f.call.Fast != nil:
		v = f.call.Fast(args[0])
	case f.call.Safe != nil:
		v, _, err = f.call.Safe(args...)
	default:
		v, err = f.call.Func(args...)
	}
	if items, ok := toList(v); ok && err == nil {
		v = items
	}
	return v, err
}

func describe(args []any) string {
	if len(args) == 0 {
		return "nothing"
	}
	words := make([]string, len(args))
	for i, arg := range args {
		words[i] = a(arg)
	}
	return strings.Join(words, " and ")
}

// fit converts the arguments to the first of the function's types that they fit, nil if none.
func (f *function) fit(args []any) []any {
next:
	for _, t := range f.call.Types {
		if len(args) != t.NumIn() && !t.IsVariadic() {
			continue
		}
		fitted := make([]any, len(args))
		for i, arg := range args {
			in := t.In(min(i, t.NumIn()-1))
			if t.IsVariadic() && i >= t.NumIn()-1 {
				in = in.Elem()
			}
			v := reflect.ValueOf(arg)
			items, isList := toList(arg)
			switch {
			case in.Kind() == reflect.Interface:
				fitted[i] = arg
			case in == reflect.TypeFor[[]any]() && isList:
				fitted[i] = items
			case in.Kind() == reflect.Int && isInt(arg):
				fitted[i] = runtime.ToInt(arg)
			case v.IsValid() && v.Type() == in:
				fitted[i] = arg
			default:
				continue next
			}
		}
		return fitted
	}
	return nil
}

func rounded(f func(float64) float64) func(...any) (any, error) {
	return func(args ...any) (any, error) { return int(f(runtime.ToFloat64(args[0]))), nil }
}

func toInt(args ...any) (any, error) {
	if isNumber(args[0]) {
		return runtime.ToInt(args[0]), nil
	}
	text, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("cannot take %s", a(args[0]))
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("the string is not a whole number")
	}
	return n, nil
}

func toFloat(args ...any) (any, error) {
	if isNumber(args[0]) {
		return runtime.ToFloat64(args[0]), nil
	}
	text, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("cannot take %s", a(args[0]))
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return nil, errors.New("the string is not a number")
	}
	return n, nil
}

func kindOf(args ...any) (any, error) {
	if args[0] == nil {
		return "nil", nil
	}
	if _, ok := args[0].(Fetcher); ok {
		return "map", nil
	}
	return TypeOf(args[0]).String(), nil
}

func isEmpty(args ...any) (any, error) {
	switch v := args[0].(type) {
	case nil:
		return true, nil
	case string:
		return v == "", nil
	case secret.Secret:
		return v.IsZero(), nil
	case Keyer:
		return len(v.Keys()) == 0, nil
	}
	switch v := reflect.ValueOf(args[0]); v.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array:
		return v.Len() == 0, nil
	}
	return nil, fmt.Errorf("%s is never empty", a(args[0]))
}

func keysSorted(args ...any) (any, error) {
	keys, ok := keysOfAny(args[0])
	if !ok {
		return nil, fmt.Errorf("cannot take %s", a(args[0]))
	}
	slices.Sort(keys)
	return keys, nil
}

func valuesSorted(args ...any) (any, error) {
	m := args[0].(map[string]any)
	keys := keysOf(m)
	slices.Sort(keys)
	values := make([]any, len(keys))
	for i, k := range keys {
		values[i] = m[k]
	}
	return values, nil
}

func merge(args ...any) (any, error) {
	all := map[string]any{}
	for _, arg := range args {
		for k, v := range arg.(map[string]any) {
			all[k] = v
		}
	}
	return all, nil
}

func unique(args ...any) (any, error) {
	var kept []any
	scalars := map[any]bool{}
	for _, item := range args[0].([]any) {
		if isScalar(item) {
			if scalars[item] {
				continue
			}
			scalars[item] = true
		} else if len(kept)-len(scalars) > 1000 {
			return nil, errors.New("too many lists and maps to compare")
		} else if slices.ContainsFunc(kept, func(k any) bool { return same(k, item) }) {
			continue
		}
		kept = append(kept, item)
	}
	return kept, nil
}

func join(args ...any) (any, error) {
	items, separator := args[0].([]any), ""
	if len(args) == 2 {
		separator = args[1].(string)
	}
	var b strings.Builder
	for i, item := range items {
		if i > 0 {
			b.WriteString(separator)
		}
		text, err := render(item)
		if err != nil {
			return nil, fmt.Errorf("item %d %v", i, err)
		}
		b.WriteString(text)
		if b.Len() > maxBytes {
			return nil, errTooLarge
		}
	}
	return b.String(), nil
}

func replace(args ...any) (any, error) {
	text, old, with := args[0].(string), args[1].(string), args[2].(string)
	if len(text)+strings.Count(text, old)*len(with) > maxBytes {
		return nil, errTooLarge
	}
	return strings.ReplaceAll(text, old, with), nil
}

func repeat(args ...any) (any, error) {
	text, n := args[0].(string), args[1].(int)
	if n < 0 {
		return nil, errors.New("n must not be negative")
	}
	if n > maxBytes || len(text)*n > maxBytes {
		return nil, errTooLarge
	}
	return strings.Repeat(text, n), nil
}

func indent(args ...any) (any, error) {
	text, n := args[0].(string), args[1].(int)
	if n < 0 {
		return nil, errors.New("n must not be negative")
	}
	if n > 1000 || len(text)+n*(1+strings.Count(text, "\n")) > maxBytes {
		return nil, errTooLarge
	}
	all := strings.SplitAfter(text, "\n")
	for i, line := range all {
		if strings.TrimSpace(line) != "" {
			all[i] = strings.Repeat(" ", n) + line
		}
	}
	return strings.Join(all, ""), nil
}

func lines(args ...any) (any, error) {
	text := strings.TrimSuffix(args[0].(string), "\n")
	if text == "" {
		return []any{}, nil
	}
	return strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n"), nil
}

func capture(args ...any) (any, error) {
	p, err := compilePattern(args[1].(string))
	if err != nil {
		return nil, err
	}
	m, err := p.match(args[0].(string))
	if m == nil {
		return nil, err
	}
	return m[min(1, len(m)-1)], nil
}

func toJSON(args ...any) (any, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(args[0]); err != nil {
		return nil, fmt.Errorf("cannot take %s", a(args[0]))
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

func fromJSON(args ...any) (any, error) {
	d := json.NewDecoder(strings.NewReader(args[0].(string)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil || d.More() {
		return nil, errors.New("the text is not JSON")
	}
	return numbers(v)
}

// numbers makes plain numbers of those of decoded JSON.
func numbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			if v[i], err = numbers(v[i]); err != nil {
				return nil, errors.New("a number in the JSON is too large")
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = numbers(v[k]); err != nil {
				return nil, errors.New("a number in the JSON is too large")
			}
		}
	}
	return v, nil
}

func versionAtLeast(args ...any) (any, error) {
	parts := func(version string) []int {
		var numbers []int
		for _, word := range strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' }) {
			n, err := strconv.Atoi(word)
			if err != nil {
				n = math.MaxInt
			}
			numbers = append(numbers, n)
		}
		for len(numbers) > 0 && numbers[len(numbers)-1] == 0 {
			numbers = numbers[:len(numbers)-1]
		}
		return numbers
	}
	version, least := parts(args[0].(string)), parts(args[1].(string))
	if len(version) == 0 || len(least) == 0 {
		return nil, errors.New("a version needs a number")
	}
	return slices.Compare(version, least) >= 0, nil
}
