package main

import (
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"runbook/engine/module"
	"runbook/modules"
)

// newDocs is for the project itself: `make doc` writes docs/ with it, from the commands and from the source of modules.
func newDocs() *cobra.Command {
	var source string
	cmd := &cobra.Command{
		Use:    "docs DIR",
		Short:  "Write the reference pages of commands and modules",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pages := cliPages(cmd.Root())
			more, err := modulePages(source, modules.All())
			if err != nil {
				return err
			}
			maps.Copy(pages, more)
			return writePages(args[0], pages)
		},
	}
	cmd.Flags().StringVar(&source, "source", "modules", "`DIRECTORY` with the source of the modules")
	return cmd
}

// writePages writes pages by their path below dir and removes pages that are no longer generated.
func writePages(dir string, pages map[string]string) error {
	for _, sub := range []string{"cli", "modules"} {
		old, err := filepath.Glob(filepath.Join(dir, sub, "*.md"))
		if err != nil {
			return err
		}
		for _, path := range old {
			if name, _ := filepath.Rel(dir, path); pages[name] == "" {
				if err := os.Remove(path); err != nil {
					return err
				}
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(pages[name]), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cliPages renders one page for each command that users see.
func cliPages(root *cobra.Command) map[string]string {
	pages := map[string]string{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		pages["cli/"+pageName(cmd)] = cliPage(cmd)
		for _, sub := range visibleCommands(cmd) {
			walk(sub)
		}
	}
	walk(root)
	return pages
}

func visibleCommands(cmd *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(cmd.Commands()), func(c *cobra.Command) bool { return c.Hidden || c.Name() == "help" })
}

func pageName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "_") + ".md"
}

func cliPage(cmd *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s.\n", cmd.CommandPath(), cmd.Short)
	if cmd.Runnable() {
		fmt.Fprintf(&b, "\n```\n%s\n```\n", cmd.UseLine())
	}
	if cmd.Long != "" {
		fmt.Fprintf(&b, "\n```text\n%s\n```\n", strings.TrimSpace(cmd.Long))
	}
	var rows []string
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		if value == "count" {
			value = ""
		}
		name := "`--" + f.Name + after(" ", value) + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if f.DefValue != "" && !slices.Contains([]string{"false", "0", "[]"}, f.DefValue) {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		rows = append(rows, fmt.Sprintf("| %s | %s |\n", name, cell(usage)))
	})
	if cmd.Runnable() && len(rows) > 0 {
		fmt.Fprintf(&b, "\n| Flag | |\n|---|---|\n%s", strings.Join(rows, ""))
	}
	if subs := visibleCommands(cmd); len(subs) > 0 {
		b.WriteString("\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, "- [%s](%s): %s\n", sub.CommandPath(), pageName(sub), sub.Short)
		}
	}
	return b.String()
}

// modulePages renders one page for each module and an index. The texts are the comments in the modules' source.
func modulePages(source string, factories map[string]module.Factory) (map[string]string, error) {
	comments, err := readComments(source)
	if err != nil {
		return nil, err
	}
	pages := map[string]string{}
	var index strings.Builder
	index.WriteString("# Modules\n\nEvery module's result, as `register` binds it, has `changed`, `failed`, `skipped` and `msg`; what it has beyond these is on its page.\n\n")
	for _, name := range slices.Sorted(maps.Keys(factories)) {
		m := factories[name]()
		typeName := reflect.Indirect(reflect.ValueOf(m)).Type().Name()
		text := comments.about[typeName]
		if text == "" {
			return nil, fmt.Errorf("cannot document the module %s: the type %s has no comment", name, typeName)
		}
		page, summary, err := modulePage(name, typeName, text, m, comments)
		if err != nil {
			return nil, err
		}
		pages["modules/"+name+".md"] = page
		fmt.Fprintf(&index, "- [%s](%s.md): %s\n", name, name, summary)
	}
	pages["modules/README.md"] = index.String()
	return pages, nil
}

func modulePage(name, typeName, text string, m module.Module, comments *comments) (page, summary string, err error) {
	var b, example strings.Builder
	fmt.Fprintf(&b, "# %s\n", name)
	text = strings.TrimPrefix(text, typeName+" ")
	text = strings.ToUpper(text[:1]) + text[1:]
	var parser comment.Parser
	var printer comment.Printer
	for _, block := range parser.Parse(text).Content {
		if code, ok := block.(*comment.Code); ok {
			fmt.Fprintf(&example, "\n```yaml\n%s```\n", code.Text)
			continue
		}
		paragraph := string(printer.Markdown(&comment.Doc{Content: []comment.Block{block}}))
		if summary == "" {
			summary = strings.TrimSuffix(firstSentence(paragraph), ".")
		}
		b.WriteString("\n" + paragraph)
	}
	b.WriteString("\n## Arguments\n\n| Argument | Type | Default | |\n|---|---|---|---|\n")
	for _, f := range module.Fields(m) {
		help := comments.field(typeName, f.Name)
		if help == "" {
			return "", "", fmt.Errorf("cannot document the module %s: its argument %s has no comment", name, f.Name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, f.Type, fieldDefault(f), cell(help+fieldNotes(f)))
	}
	if r, ok := m.(module.Returner); ok {
		b.WriteString("\n## Result\n\n| Field | Type | |\n|---|---|---|\n")
		for _, field := range r.Returns() {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", field.Name, field.Type, cell(field.Help))
		}
	}
	if example.Len() > 0 {
		b.WriteString("\n## Example\n" + example.String())
	}
	return b.String(), summary, nil
}

func fieldDefault(f module.Field) string {
	switch {
	case f.Required:
		return "required"
	case f.Default == nil:
		return ""
	}
	return "`" + cell(fmt.Sprint(f.Default)) + "`"
}

func fieldNotes(f module.Field) string {
	var notes string
	if len(f.Choices) > 0 {
		notes += " One of `" + strings.Join(f.Choices, "`, `") + "`."
	}
	if f.Secret {
		notes += " Never shown."
	}
	if f.Short {
		notes += " May be given alone, in place of the mapping of arguments."
	}
	return notes
}

// comments are the comments on types and on their fields, by the names that the fields have in YAML.
type comments struct {
	about  map[string]string
	fields map[string]map[string]string
	embeds map[string][]string
}

// field is the help of an argument of the type, or of a type that it embeds.
func (c *comments) field(typeName, argument string) string {
	if help := c.fields[typeName][argument]; help != "" {
		return help
	}
	for _, embedded := range c.embeds[typeName] {
		if help := c.field(embedded, argument); help != "" {
			return help
		}
	}
	return ""
}

func readComments(dir string) (*comments, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("cannot find the source of the modules in %s", dir)
	}
	c := &comments{about: map[string]string{}, fields: map[string]map[string]string{}, embeds: map[string][]string{}}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range group.Specs {
				if spec, ok := s.(*ast.TypeSpec); ok {
					c.addType(spec, group.Doc)
				}
			}
		}
	}
	return c, nil
}

func (c *comments) addType(spec *ast.TypeSpec, doc *ast.CommentGroup) {
	structure, ok := spec.Type.(*ast.StructType)
	if !ok {
		return
	}
	name := spec.Name.Name
	if spec.Doc != nil {
		doc = spec.Doc
	}
	c.about[name] = doc.Text()
	c.fields[name] = map[string]string{}
	for _, f := range structure.Fields.List {
		if embedded, ok := f.Type.(*ast.Ident); ok && len(f.Names) == 0 {
			c.embeds[name] = append(c.embeds[name], embedded.Name)
		}
		if f.Tag == nil {
			continue
		}
		argument, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml"), ",")
		help := f.Doc.Text()
		if help == "" {
			help = f.Comment.Text()
		}
		c.fields[name][argument] = strings.TrimSpace(help)
	}
}

func firstSentence(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if end := strings.Index(text, ". "); end >= 0 {
		return text[:end]
	}
	return text
}

// cell is text within a cell of a Markdown table.
func cell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

func after(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}
