package modules

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"runbook/engine/module"
	"runbook/engine/secret"
	"runbook/engine/transport"
)

func init() { register("command", func() module.Module { return &command{OKCodes: []int{0}} }) }

// command runs a command.
//
// What a command changes cannot be predicted: without a probe (creates, removes, unless, onlyif) or read the verdict of a check is
// unknown. Probes run in check mode too, so they must change nothing; they run in chdir, in the task's environment.
//
// With detach: true on the task, a command outlives the connection and the controller, and is found again.
//
//	tasks:
//	  - name: stunnel has Diffie-Hellman parameters of its own
//	    command: {argv: [openssl, dhparam, -out, /etc/stunnel/dh.pem, "2048"], creates: /etc/stunnel/dh.pem}
//	  - name: when the host's certificate ends
//	    command: {argv: [openssl, x509, -in, /etc/grid-security/hostcert.pem, -noout, -enddate], read: true}
//	    register: ends
type command struct {
	// Program and arguments, as a list of words. No shell sees them.
	Argv []string `yaml:"argv" short:"true"`
	// Text for sh, instead of argv.
	Shell string `yaml:"shell"`
	// Run only if this path does not exist.
	Creates string `yaml:"creates"`
	// Run only if this path exists.
	Removes string `yaml:"removes"`
	// Text for sh. Run only if it fails; it must succeed afterwards.
	Unless string `yaml:"unless"`
	// Text for sh. Run only if it succeeds.
	OnlyIf string `yaml:"onlyif"`
	// Directory to run in, an absolute path.
	Chdir string `yaml:"chdir"`
	// What the command reads on its standard input: a text, or a secret.
	Stdin any `yaml:"stdin"`
	// Exit statuses that mean success.
	OKCodes []int `yaml:"ok_codes"`
	// The command only reads: it runs in check mode too, and counts as no change.
	Read bool `yaml:"read"`
	// Absolute paths of the files and directories that decide what a reading command, or unless and onlyif, find. What a check finds is
	// certain then where earlier tasks leave these alone. By default it hangs on everything on the host.
	Reads []string `yaml:"reads"`
	// Absolute paths of the files and directories that the command changes. A check takes everything else on the host for unchanged
	// then. By default it may have changed anything.
	Writes []string `yaml:"writes"`

	detached bool
}

// Detach makes the command a job of the host.
func (c *command) Detach(on bool) { c.detached = on }

// Long says whether it is one.
func (c *command) Long() bool { return c.detached }

// Validate refuses arguments that contradict each other.
func (c *command) Validate() error {
	errs := []error{absolute("chdir", c.Chdir)}
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	switch {
	case len(c.Argv) == 0 && c.Shell == "":
		refuse("", "nothing to run", "give argv or shell")
	case len(c.Argv) > 0 && c.Shell != "":
		refuse("shell", "cannot be given together with argv", "")
	case len(c.Argv) > 0 && c.Argv[0] == "":
		refuse("argv[0]", "must not be empty", "")
	case len(c.Argv) == 1 && strings.ContainsAny(c.Argv[0], " \t\n"):
		refuse("argv", fmt.Sprintf("%q is one word, with blanks in it", c.Argv[0]), "write a list such as [ls, -l], or use shell")
	}
	switch c.Stdin.(type) {
	case nil, string, secret.Secret:
	default:
		refuse("stdin", fmt.Sprintf("expected a text or a secret, got %v", c.Stdin), "put it in quotes")
	}
	if len(c.OKCodes) == 0 {
		refuse("ok_codes", "must not be empty", "")
	}
	for arg, list := range map[string][]string{"reads": c.Reads, "writes": c.Writes} {
		for i, file := range list {
			if !strings.HasPrefix(file, "/") {
				refuse(fmt.Sprintf("%s[%d]", arg, i), "must be an absolute path", "")
			}
		}
	}
	if c.Read && c.detached {
		refuse("read", "a command that only reads cannot be detached", "remove detach: what reads can be done again")
	}
	if c.Read && len(c.Writes) > 0 {
		refuse("writes", "a command that reads writes nothing", "")
	}
	return errors.Join(errs...)
}

// text is the command as it is shown.
func (c *command) text() string {
	if c.Shell != "" {
		return c.Shell
	}
	words := make([]string, len(c.Argv))
	for i, w := range c.Argv {
		if words[i] = w; w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-") != "" {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// probeScript exits 0 if the command is to run, and says on standard output why not if it is not.
const probeScript = `cd -- "${RB_CHDIR:-.}" 2>/dev/null || { echo "there is no directory $RB_CHDIR" >&2; exit 1; }
no() { printf '%s\n' "$1"; exit 0; }
if [ -n "$RB_CREATES" ] && { [ -e "$RB_CREATES" ] || [ -L "$RB_CREATES" ]; }; then no "$RB_CREATES exists"; fi
if [ -n "$RB_REMOVES" ] && [ ! -e "$RB_REMOVES" ] && [ ! -L "$RB_REMOVES" ]; then no "$RB_REMOVES does not exist"; fi
if [ -n "$RB_UNLESS" ] && sh -c "$RB_UNLESS" </dev/null >/dev/null 2>&1; then no "unless succeeds"; fi
if [ -n "$RB_ONLYIF" ] && ! sh -c "$RB_ONLYIF" </dev/null >/dev/null 2>&1; then no "onlyif fails"; fi
exit 0
`

// Check runs the probes; with read, the command itself.
func (c *command) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	verifiable := c.Creates+c.Removes+c.Unless != ""
	if verifiable || c.OnlyIf != "" {
		plan, needed, err := c.probe(ctx, host)
		if err != nil || !needed {
			return plan, err
		}
	}
	if c.Read {
		values, err := c.run(ctx, host.Run)
		task := hangs(host, c.Reads)
		return module.Plan{Values: values, Hangs: task, Foreseen: task == ""}, err
	}
	plan := module.Plan{Values: commandValues(transport.Output{}, false), Pending: true, Effects: c.effects()}
	if !verifiable && c.OnlyIf == "" {
		plan.Unknown = "what a command does cannot be predicted"
		return plan, nil
	}
	plan.Changes = []module.Change{{What: "run", After: c.text()}}
	plan.Act = !verifiable
	return plan, nil
}

// probe finds whether the command is to run.
func (c *command) probe(ctx context.Context, host *module.Host) (plan module.Plan, needed bool, err error) {
	for _, file := range []string{c.Creates, c.Removes} {
		if p := foresee(host, file, transport.FileInfo{}); file != "" && p.doubt != "" {
			return doubtful(p.doubt, c.effects()...), false, nil
		}
	}
	creates, removes := c.Creates, c.Removes
	idle := module.Plan{Values: commandValues(transport.Output{}, false), Idle: true}
	// What earlier tasks of this check will have made counts, not what is there now.
	if e, _, pending := pendingPath(host, creates); pending {
		if e.kind != "" {
			return idle, false, nil
		}
		creates = ""
	}
	if e, _, pending := pendingPath(host, removes); pending {
		if e.kind == "" {
			return idle, false, nil
		}
		removes = ""
	}
	script, chdir := probeScript, c.Chdir
	if e, _, pending := pendingPath(host, chdir); pending && e.kind == "directory" {
		chdir = ""
	}
	out, err := host.Run(ctx, transport.Cmd{Script: script, Env: map[string]string{
		"RB_CHDIR": chdir, "RB_CREATES": creates, "RB_REMOVES": removes, "RB_UNLESS": c.Unless, "RB_ONLYIF": c.OnlyIf,
	}})
	if err != nil {
		return module.Plan{}, false, fmt.Errorf("cannot probe: %w", err)
	}
	// creates and removes that a command or a package may yet decide, and scripts that read what is still to be changed.
	task, pending := "", false
	if c.Creates+c.Removes != "" {
		task, pending = mayBring(host)
	}
	if c.Unless+c.OnlyIf != "" && !pending {
		task = hangs(host, c.Reads)
	}
	if task != "" {
		return module.Plan{Unknown: "it hangs on what " + yetToRun(task), Hangs: task, Pending: true, Effects: c.effects()}, false, nil
	}
	return idle, len(out.Stdout) == 0, nil
}

// effects are what is known of what the command changes; none if it may be anything.
func (c *command) effects() []module.Effect {
	var list []module.Effect
	for _, file := range c.Writes {
		kind := "file"
		if strings.HasSuffix(file, "/") {
			kind = "directory"
		}
		list = append(list, fileEffect(file, pathEffect{kind: kind, any: true}))
	}
	return list
}

// Apply runs the command.
func (c *command) Apply(ctx context.Context, host *module.Host, _ module.Plan) (module.Values, error) {
	if c.detached {
		return c.run(ctx, host.RunLong)
	}
	return c.run(ctx, host.Run)
}

func (c *command) run(ctx context.Context, run func(context.Context, transport.Cmd) (transport.Output, error)) (module.Values, error) {
	out, err := run(ctx, transport.Cmd{Args: c.Argv, Script: c.Shell, Dir: c.Chdir, Stdin: c.stdin()})
	if exit := (*transport.ExitError)(nil); errors.As(err, &exit) {
		out, err = exit.Output, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", c.text(), err)
	}
	values := commandValues(out, true)
	if !slices.Contains(c.OKCodes, out.Code) {
		text := fmt.Sprintf("exit status %d from %s", out.Code, c.text())
		for _, said := range [][]byte{out.Stderr, out.Stdout} {
			if said := strings.TrimSpace(string(said)); said != "" {
				text += "\n" + lastLines(said, 20)
			}
		}
		return values, errors.New(text)
	}
	if out.Dropped > 0 {
		return values, fmt.Errorf("output over the limit: %d bytes were dropped", out.Dropped)
	}
	return values, nil
}

func (c *command) stdin() io.Reader {
	switch v := c.Stdin.(type) {
	case string:
		return strings.NewReader(v)
	case secret.Secret:
		return strings.NewReader(v.Reveal())
	}
	return nil
}

// lastLines is the end of text, n lines at most.
func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	if len(lines) > n {
		lines = append([]string{fmt.Sprintf("(%d lines before these)", len(lines)-n)}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}

func commandValues(out transport.Output, ran bool) module.Values {
	stdout := strings.TrimRight(string(out.Stdout), "\r\n")
	lines := []any{}
	if stdout != "" {
		for line := range strings.SplitSeq(stdout, "\n") {
			lines = append(lines, strings.TrimSuffix(line, "\r"))
		}
	}
	return module.Values{
		"ran": ran, "rc": out.Code, "stdout": stdout, "stdout_lines": lines, "stderr": strings.TrimRight(string(out.Stderr), "\r\n"),
	}
}

// Returns documents the result.
func (*command) Returns() []module.Return {
	return []module.Return{
		{Name: "ran", Type: "bool", Help: "whether the command ran, or a probe said that it need not"},
		{Name: "rc", Type: "int", Help: "its exit status"},
		{Name: "stdout", Type: "string", Help: "what it wrote on standard output, without the final newlines"},
		{Name: "stdout_lines", Type: "list", Help: "the same, line by line"},
		{Name: "stderr", Type: "string", Help: "what it wrote on standard error, without the final newlines"},
	}
}

// ReadsOnly tells the engine that it changes nothing if it was told so.
func (c *command) ReadsOnly() bool { return c.Read }
