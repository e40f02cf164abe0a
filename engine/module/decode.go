package module

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"runbook/engine/secret"
)

// Field is one argument of a module.
type Field struct {
	Name     string
	Type     string // for documentation: string, int, duration, mode, "list of string", "map of list of string" …
	Required bool   // it must be given, and not be empty
	Choices  []string
	Secret   bool // its value is never shown
	Short    bool // it takes a scalar or list that is given instead of a mapping
	Late     bool // Check can do without its value where that is not known before a run
	Default  any  // as the constructor sets it; nil where that is the type's zero value
	GoType   reflect.Type

	index []int
}

// Fields lists the arguments of m in the order of its struct; those of embedded structs stand where they are embedded.
func Fields(m Module) []Field {
	v := reflect.Indirect(reflect.ValueOf(m))
	return fieldsOf(v, nil)
}

func fieldsOf(v reflect.Value, index []int) []Field {
	var fields []Field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		at := append(slices.Clone(index), i)
		name, _, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if name == "" {
			if sf.Anonymous && sf.Type.Kind() == reflect.Struct {
				fields = append(fields, fieldsOf(v.Field(i), at)...)
			}
			continue
		}
		f := Field{
			Name:     name,
			Type:     typeWord(sf.Type),
			Required: sf.Tag.Get("required") == "true",
			Secret:   sf.Tag.Get("secret") == "true" || sf.Type == secretType,
			Short:    sf.Tag.Get("short") == "true",
			Late:     sf.Tag.Get("late") == "true",
			GoType:   sf.Type,
			index:    at,
		}
		if c := sf.Tag.Get("choices"); c != "" {
			f.Choices = strings.Split(c, ",")
		}
		if !v.Field(i).IsZero() {
			f.Default = v.Field(i).Interface()
		}
		fields = append(fields, f)
	}
	return fields
}

// Decode sets the fields of m from args by name and validates m. A field is a string, bool, number, time.Duration ("5s", "2m"
// or a number of seconds), Mode, secret.Secret, Template, Content, Condition or any, or a list or map of these.
//
// Nothing is converted but what cannot surprise: a whole number is accepted for a string, a single value for a list of one. A
// secret is accepted only by fields of type secret.Secret and any. The error joins an *ArgError for every mistake.
func Decode(m Module, args map[string]any) error {
	return DecodePartial(m, args, nil)
}

// DecodePartial is Decode while the arguments in deferred are not known yet: they count as given, and m is
// validated as a whole only if there are none.
func DecodePartial(m Module, args map[string]any, deferred map[string]bool) error {
	v := reflect.ValueOf(m)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("cannot decode arguments into %T: not a pointer to a struct", m)
	}
	fields := Fields(m)
	var errs []error
	for _, name := range unknownNames(fields, args, deferred) {
		errs = append(errs, &ArgError{Path: name, Msg: "unknown argument", Hint: suggest(name, fields)})
	}
	for _, f := range fields {
		value, given := args[f.Name]
		if deferred[f.Name] {
			continue
		}
		if !given {
			if f.Required {
				errs = append(errs, &ArgError{Path: f.Name, Msg: "required argument is missing"})
			}
			continue
		}
		at := v.Elem().FieldByIndex(f.index)
		if err := set(at, value, f.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		if f.Required && isEmpty(at) {
			errs = append(errs, &ArgError{Path: f.Name, Msg: "must not be empty"})
		} else if err := checkChoices(at, f); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && len(deferred) == 0 {
		if val, ok := m.(Validator); ok {
			return val.Validate()
		}
	}
	return errors.Join(errs...)
}

func unknownNames(fields []Field, args map[string]any, deferred map[string]bool) []string {
	var names []string
	check := func(name string) {
		if !slices.ContainsFunc(fields, func(f Field) bool { return f.Name == name }) {
			names = append(names, name)
		}
	}
	for name := range args {
		check(name)
	}
	for name := range deferred {
		if _, both := args[name]; !both {
			check(name)
		}
	}
	slices.Sort(names)
	return names
}

func checkChoices(v reflect.Value, f Field) error {
	if len(f.Choices) == 0 {
		return nil
	}
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			one := f
			one.Name = fmt.Sprintf("%s[%d]", f.Name, i)
			if err := checkChoices(v.Index(i), one); err != nil {
				return err
			}
		}
		return nil
	}
	if got := fmt.Sprint(v.Interface()); !slices.Contains(f.Choices, got) {
		return &ArgError{Path: f.Name, Msg: fmt.Sprintf("cannot be %q", got), Hint: "one of " + strings.Join(f.Choices, ", ")}
	}
	return nil
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Interface:
		return v.IsNil() || isEmpty(v.Elem())
	}
	s, ok := v.Interface().(secret.Secret)
	return ok && s.IsZero()
}

var (
	secretType   = reflect.TypeFor[secret.Secret]()
	durationType = reflect.TypeFor[time.Duration]()
	modeType     = reflect.TypeFor[Mode]()
)

// set assigns value to to; path names the place in messages.
func set(to reflect.Value, value any, path string) error {
	if to.Kind() == reflect.Interface {
		if value == nil {
			to.SetZero()
		} else {
			to.Set(reflect.ValueOf(value))
		}
		return nil
	}
	v := reflect.ValueOf(value)
	if v.IsValid() && v.Type() == to.Type() && to.Type() != durationType {
		to.Set(v)
		return nil
	}
	wrong := &ArgError{Path: path, Msg: fmt.Sprintf("expected %s, got %s", article(typeWord(to.Type())), describe(value))}
	if value == nil {
		wrong.Hint = "leave the argument out or give it a value"
		return wrong
	}
	if _, isSecret := value.(secret.Secret); isSecret && to.Kind() != reflect.Slice {
		return &ArgError{Path: path, Msg: "would show a secret", Hint: "give it to an argument that takes secrets"}
	}
	switch to.Type() {
	case secretType:
		s, ok := toString(v)
		if !ok {
			return wrong
		}
		to.Set(reflect.ValueOf(secret.New(s)))
		return nil
	case durationType:
		d, ok := toDuration(value)
		if !ok {
			wrong.Hint = "such as 30s or 5m, or a number of seconds"
			return wrong
		}
		to.SetInt(int64(d))
		return nil
	case modeType:
		mode, err := ParseMode(value)
		if err != nil {
			err.Path = path
			return err
		}
		to.Set(reflect.ValueOf(mode))
		return nil
	}
	switch to.Kind() {
	case reflect.String:
		s, ok := toString(v)
		if !ok {
			if v.Kind() == reflect.Float32 || v.Kind() == reflect.Float64 {
				wrong.Hint = "put it in quotes, else 1.10 becomes 1.1"
			}
			return wrong
		}
		to.SetString(s)
	case reflect.Bool:
		if v.Kind() != reflect.Bool {
			if v.Kind() == reflect.String {
				wrong.Hint = "write true or false, without quotes"
			}
			return wrong
		}
		to.SetBool(v.Bool())
	case reflect.Int, reflect.Int64:
		n, ok := toInt(v)
		if !ok {
			return wrong
		}
		to.SetInt(n)
	case reflect.Float64:
		switch {
		case v.CanFloat():
			to.SetFloat(v.Float())
		case v.CanInt():
			to.SetFloat(float64(v.Int()))
		default:
			return wrong
		}
	case reflect.Slice:
		return setSlice(to, v, path, wrong)
	case reflect.Map:
		return setMap(to, v, path, wrong)
	default:
		return wrong
	}
	return nil
}

func setSlice(to, v reflect.Value, path string, wrong error) error {
	switch v.Kind() {
	case reflect.Slice:
		list := reflect.MakeSlice(to.Type(), v.Len(), v.Len())
		var errs []error
		for i := range v.Len() {
			if err := set(list.Index(i), v.Index(i).Interface(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				errs = append(errs, err)
			}
		}
		to.Set(list)
		return errors.Join(errs...)
	case reflect.Map:
		if to.Type().Elem().Kind() != reflect.Map {
			return wrong
		}
	}
	list := reflect.MakeSlice(to.Type(), 1, 1)
	if err := set(list.Index(0), v.Interface(), path); err != nil {
		if arg, ok := err.(*ArgError); ok && strings.HasPrefix(arg.Msg, "expected") {
			return wrong
		}
		return err
	}
	to.Set(list)
	return nil
}

func setMap(to, v reflect.Value, path string, wrong error) error {
	if v.Kind() != reflect.Map || v.Type().Key().Kind() != reflect.String {
		return wrong
	}
	m := reflect.MakeMapWithSize(to.Type(), v.Len())
	var errs []error
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, key := range keys {
		elem := reflect.New(to.Type().Elem()).Elem()
		if err := set(elem, v.MapIndex(key).Interface(), path+"."+key.String()); err != nil {
			errs = append(errs, err)
			continue
		}
		m.SetMapIndex(key, elem)
	}
	to.Set(m)
	return errors.Join(errs...)
}

func toString(v reflect.Value) (string, bool) {
	switch {
	case v.Kind() == reflect.String:
		return v.String(), true
	case v.CanInt() && v.Type() != durationType:
		return strconv.FormatInt(v.Int(), 10), true
	}
	return "", false
}

func toInt(v reflect.Value) (int64, bool) {
	switch {
	case v.CanInt() && v.Type() != durationType:
		return v.Int(), true
	case v.CanUint() && v.Uint() <= math.MaxInt64:
		return int64(v.Uint()), true
	}
	return 0, false
}

func toDuration(value any) (time.Duration, bool) {
	switch v := reflect.ValueOf(value); {
	case v.Type() == durationType:
		return time.Duration(v.Int()), v.Int() >= 0
	case v.Kind() == reflect.String:
		d, err := time.ParseDuration(v.String())
		return d, err == nil && d >= 0
	case v.CanInt():
		const most = int64(math.MaxInt64 / time.Second)
		return time.Duration(v.Int()) * time.Second, v.Int() >= 0 && v.Int() <= most
	case v.CanFloat():
		d := v.Float() * float64(time.Second)
		return time.Duration(d), d >= 0 && d < math.MaxInt64
	}
	return 0, false
}

// ParseMode reads a file mode: three or four octal digits as a string. A number is refused: it is a mode that lost its
// leading zero, or never had one.
func ParseMode(value any) (Mode, *ArgError) {
	text, isText := value.(string)
	if !isText {
		err := &ArgError{Msg: fmt.Sprintf("expected a file mode, got %s", describe(value)), Hint: "four octal digits, such as 0644"}
		if n, isNumber := toInt(reflect.ValueOf(value)); isNumber {
			err.Msg = fmt.Sprintf("the number %d is not a file mode", n)
			if _, e := strconv.ParseUint(strconv.FormatInt(n, 10), 8, 12); e == nil {
				err.Hint = fmt.Sprintf("write %04d, with the leading zero", n)
			}
		}
		return Mode{}, err
	}
	digits := strings.TrimPrefix(text, "0o")
	bits, err := strconv.ParseUint(digits, 8, 12)
	if err != nil || len(digits) < 3 || len(digits) > 5 {
		return Mode{}, &ArgError{Msg: fmt.Sprintf("%q is not a file mode", text), Hint: "four octal digits, such as 0644"}
	}
	return Mode{Set: true, Bits: uint32(bits)}, nil
}

// typeWord names a field type in documentation and messages.
func typeWord(t reflect.Type) string {
	switch t {
	case secretType:
		return "secret"
	case durationType:
		return "duration"
	case modeType:
		return "mode"
	case reflect.TypeFor[Template]():
		return "template"
	case reflect.TypeFor[Content]():
		return "file"
	case reflect.TypeFor[Condition]():
		return "condition"
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		return "int"
	case reflect.Float64:
		return "float"
	case reflect.Interface:
		return "any"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Interface {
			return "list"
		}
		return "list of " + typeWord(t.Elem())
	case reflect.Map:
		if t.Elem().Kind() == reflect.Interface {
			return "map"
		}
		return "map of " + typeWord(t.Elem())
	}
	return t.Kind().String()
}

func article(word string) string {
	switch word {
	case "int":
		return "a whole number"
	case "float":
		return "a number"
	case "bool":
		return "true or false"
	case "duration":
		return "a duration"
	}
	if strings.ContainsRune("aeiou", rune(word[0])) {
		return "an " + word
	}
	return "a " + word
}

// describe names a value in a message.
func describe(value any) string {
	v := reflect.ValueOf(value)
	switch {
	case value == nil:
		return "nothing"
	case v.Type() == secretType:
		return "a secret"
	case v.Kind() == reflect.String:
		text := v.String()
		if r := []rune(text); len(r) > 40 {
			text = string(r[:40]) + "…"
		}
		return fmt.Sprintf("the string %q", text)
	case v.Kind() == reflect.Slice:
		return "a list"
	case v.Kind() == reflect.Map:
		return "a map"
	case v.Kind() == reflect.Bool, v.CanInt(), v.CanUint(), v.CanFloat():
		return fmt.Sprint(value)
	}
	return "a " + typeWord(v.Type())
}

// suggest names the argument that was probably meant, or else all there are.
func suggest(name string, fields []Field) string {
	best, least := "", max(1, len(name)/3)+1
	var names []string
	for _, f := range fields {
		names = append(names, f.Name)
		if d := distance(name, f.Name); d < least {
			best, least = f.Name, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	return "arguments are " + strings.Join(names, ", ")
}

// distance counts the insertions, deletions, replacements and swaps of neighbours that make b of a.
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
