package modules

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"runbook/engine/module"
	"runbook/engine/secret"
)

func init() { register("copy", func() module.Module { return &copyFile{Force: true} }) }

// copyFile writes a file with the content of a file beside the runbook, or with a text given in it.
//
// The file is replaced as a whole and at once: no one ever sees half of it. A symbolic link at dest is followed.
//
//	tasks:
//	  - name: user interfaces know both servers of the VO
//	    copy: {src: files/vomses, dest: /etc/vomses/myvo, mode: "0644"}
//	  - name: the VOMS server knows the password of its query account
//	    copy: {content: '{{ query_password }}', dest: /etc/voms/myvo/voms.pass, group: voms, mode: "0640"}
type copyFile struct {
	// File beside the runbook whose content is written.
	Src module.Content `yaml:"src"`
	// Text to write, instead of src. A secret is never shown.
	Content any `yaml:"content" late:"true"`
	// Path of the file on the host. With a final / it is a directory, and the file in it is named like src.
	Dest string `yaml:"dest" required:"true"`
	// Replace a file that is there with other content. With false, only a missing file is written.
	Force bool `yaml:"force"`
	// SHA-256 that the content must have, hexadecimal: a guard against the wrong file in a checkout.
	Checksum string `yaml:"checksum"`
	written
}

func (c *copyFile) dest() string {
	if strings.HasSuffix(c.Dest, "/") && c.Src.Path != "" {
		return c.Dest + path.Base(c.Src.Path)
	}
	return c.Dest
}

func (c *copyFile) data() (data []byte, isSecret bool, err error) {
	switch v := c.Content.(type) {
	case nil:
		return c.Src.Data, false, nil
	case string:
		return []byte(v), false, nil
	case secret.Secret:
		return []byte(v.Reveal()), true, nil
	}
	return nil, false, &module.ArgError{Path: "content", Msg: fmt.Sprintf("expected a text or a secret, got %v", c.Content), Hint: "put it in quotes"}
}

// Validate refuses arguments that contradict each other.
func (c *copyFile) Validate() error {
	errs := []error{c.written.validate(c.Dest, "dest")}
	data, _, err := c.data()
	errs = append(errs, err)
	switch {
	case c.Src.Path == "" && c.Content == nil:
		errs = append(errs, &module.ArgError{Msg: "nothing to write", Hint: "give src or content"})
	case c.Src.Path != "" && c.Content != nil:
		errs = append(errs, &module.ArgError{Path: "content", Msg: "cannot be given together with src"})
	case err == nil && c.Checksum != "" && !strings.EqualFold(c.Checksum, digest(data)):
		errs = append(errs, &module.ArgError{Path: "checksum", Msg: "is not that of the content, " + digest(data)})
	}
	if strings.HasSuffix(c.Dest, "/") && c.Content != nil {
		errs = append(errs, &module.ArgError{Path: "dest", Msg: "must name a file when content is given"})
	}
	return errors.Join(errs...)
}

func (c *copyFile) content() content {
	data, isSecret, _ := c.data()
	if data == nil {
		data = []byte{}
	}
	hidden, _ := c.Content.(secret.Secret)
	return content{path: c.dest(), attrs: c.written, whole: data, secret: isSecret, shows: hidden.Shown(), keep: !c.Force, late: []string{"content"}}
}

// Check compares the content, mode and owner.
func (c *copyFile) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	return c.content().check(ctx, host)
}

// Apply writes what differs.
func (c *copyFile) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	return c.content().apply(ctx, host, plan)
}

// Returns documents the result.
func (*copyFile) Returns() []module.Return { return contentReturns() }
