package modules

import (
	"context"

	"runbook/engine/module"
)

func init() { register("template", func() module.Module { return &template{Force: true} }) }

// template writes a file from a template beside the runbook, rendered for each host.
//
// The file is replaced as a whole and at once: no one ever sees half of it. A symbolic link at dest is followed.
//
//	tasks:
//	  - name: configure stunnel
//	    template: {src: templates/stunnel.conf, dest: /etc/stunnel/stunnel.conf, mode: "0644"}
//	    notify: restart stunnel
//	handlers:
//	  - name: restart stunnel
//	    service: {name: stunnel, state: restarted}
type template struct {
	// Template beside the runbook. It is compiled when the runbook is loaded; secrets in it are masked in a diff, and lines that go are not shown then.
	Src module.Template `yaml:"src" required:"true" late:"true"`
	// Path of the file on the host.
	Dest string `yaml:"dest" required:"true"`
	// Replace a file that is there with other content. With false, only a missing file is written.
	Force bool `yaml:"force"`
	written
}

// Validate refuses what cannot be meant.
func (m *template) Validate() error { return m.written.validate(m.Dest, "dest") }

func (m *template) content() content {
	return content{path: m.Dest, attrs: m.written, whole: []byte(m.Src.Text), secret: m.Src.Secret, shows: m.Src.Shown, keep: !m.Force, late: []string{"src"}}
}

// Check compares the content, mode and owner.
func (m *template) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	return m.content().check(ctx, host)
}

// Apply writes what differs.
func (m *template) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	return m.content().apply(ctx, host, plan)
}

// Returns documents the result.
func (*template) Returns() []module.Return { return contentReturns() }
