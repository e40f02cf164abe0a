package moduletest

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"runbook/engine/module"
	"runbook/engine/secret"
	"runbook/engine/transport"
)

// script is a module that runs sh texts, to break the contract in every way.
type script struct {
	Look     string        `yaml:"check" required:"true"` // runs in Check; a change if it prints something
	Do       string        `yaml:"apply"`
	Password secret.Secret `yaml:"password"`
	Leak     bool          `yaml:"leak"`
}

func (s *script) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	out, err := host.Run(ctx, transport.Cmd{Script: s.Look})
	if err != nil || len(out.Stdout) == 0 {
		return module.Plan{}, err
	}
	return module.Plan{Changes: []module.Change{{What: "print", After: string(out.Stdout)}}}, nil
}

func (s *script) Apply(ctx context.Context, host *module.Host, _ module.Plan) (module.Values, error) {
	cmd := transport.Cmd{Script: cmp.Or(s.Do, ":")}
	if s.Leak {
		cmd.Args, cmd.Script = []string{"echo", s.Password.Reveal()}, ""
	}
	if _, err := host.Run(ctx, cmd); err != nil {
		return nil, errors.New("apply failed")
	}
	return nil, nil
}

// Every breach of the contract fails its case, with these words. The cases run in a process of their own.
func TestBreaches(t *testing.T) {
	factories := map[string]module.Factory{"script": func() module.Module { return &script{} }}
	if dir := os.Getenv("MODULETEST_DIR"); dir != "" {
		Run(t, factories, dir)
		return
	}
	for name, c := range map[string]struct{ archive, want string }{
		"kept":         {"-- task --\n{check: '[ -e f ] || echo x', apply: ': >f'}\n-- after/f --\n-- plan --\nchange print\n  + x\n", ""},
		"writes":       {"-- task --\ncheck: echo >>f\n-- before/f --\n-- plan --\nok\n", "Check changed the tree"},
		"touches":      {"-- task --\ncheck: touch f\n-- before/f --\n-- plan --\nok\n", "Check changed the tree"},
		"other plan":   {"-- task --\ncheck: ':'\n-- plan --\nchange print\n", "plan differs"},
		"no plan":      {"-- task --\ncheck: ':'\n", "plan differs"},
		"not applied":  {"-- task --\n{check: '[ -e f ] || echo x'}\n-- after/f --\n-- plan --\nchange print\n  + x\n", "tree afterwards differs"},
		"wrong mode":   {"-- task --\n{check: '[ -e f ] || echo x', apply: 'umask 077; : >f'}\n-- after/f --\n-- plan --\nchange print\n  + x\n", "tree afterwards differs"},
		"not final":    {"-- task --\n{check: echo x}\n-- plan --\nchange print\n  + x\n", "did not converge"},
		"idle":         {"-- task --\n{check: '[ -e $ROOT.g ] || echo x', apply: ': > $ROOT.g'}\n-- plan --\nchange print\n  + x\n", "Apply changed nothing"},
		"no error":     {"-- task --\n{check: ':'}\n-- plan --\nok\n-- error --\ncheck: x\n", "no error"},
		"other error":  {"-- task --\n{chekc: ':'}\n-- error --\narguments: x\n", "error differs"},
		"leaks":        {"-- task --\n{check: '[ -e f ] || echo x', leak: true, password: $SECRET(hunter2)}\n-- plan --\nchange print\n  + x\n", "a secret is shown in an argument list"},
		"after an err": {"-- task --\n{check: '[ -e f ] || echo x', apply: ': >f; exit 1'}\n-- plan --\nchange print\n  + x\n-- error --\napply: apply failed\n", "tree afterwards differs"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			archive := strings.NewReplacer("touch f", "touch $ROOT/f", ">f", ">$ROOT/f", ">>f", ">>$ROOT/f", "-e f", "-e $ROOT/f").Replace(c.archive)
			if err := os.Mkdir(dir+"/script", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/script/case.txtar", []byte(archive), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestBreaches$")
			cmd.Env = append(os.Environ(), "MODULETEST_DIR="+dir)
			out, err := cmd.CombinedOutput()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(string(out), c.want)) {
				t.Errorf("want %q, got %v:\n%s", c.want, err, out)
			}
		})
	}
}
