package modules

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"runbook/engine/module"
)

func init() { register("assert", func() module.Module { return &assert{Severity: "fail"} }) }

// assert fails unless conditions hold. It changes nothing and asks the host nothing.
//
//	tasks:
//	  - name: the host's certificate names the host
//	    command: {argv: [openssl, x509, -in, /etc/grid-security/hostcert.pem, -noout, -checkhost, '{{ inventory_hostname }}'], read: true, ok_codes: [0, 1]}
//	    register: cert
//	  - name: nothing goes on with another host's certificate
//	    assert:
//	      that: cert.stdout contains "does match"
//	      msg: "/etc/grid-security/hostcert.pem is not a certificate for {{ inventory_hostname }}: ask the CA for one"
type assert struct {
	// Conditions that must all hold: bare expressions, without {{ }}, in order. One that cannot be computed is no mistake behind one that
	// is false.
	That []module.Condition `yaml:"that" required:"true" short:"true"`
	// Sentence for when one does not hold: what is wrong, and what to do about it.
	Msg string `yaml:"msg"`
	// Sentence for when all hold.
	SuccessMsg string `yaml:"success_msg"`
	// fail: the task fails. warn: it only warns, and the run goes on.
	Severity string `yaml:"severity" choices:"fail,warn"`
}

// Check tells every condition that does not hold, with the values it was computed from.
func (a *assert) Check(context.Context, *module.Host) (module.Plan, error) {
	var failed []error
	for _, c := range a.That {
		if c.Value {
			continue
		}
		text := "not true: " + c.Source
		if c.Operands != "" {
			text += " (" + c.Operands + ")"
		}
		failed = append(failed, errors.New(text))
	}
	switch err := errors.Join(failed...); {
	case err == nil:
		return module.Plan{Values: module.Values{"msg": a.SuccessMsg}}, nil
	case a.Severity == "warn":
		return module.Plan{Values: module.Values{"msg": "", "warnings": []string{cmp.Or(a.Msg, err.Error())}}}, nil
	case a.Msg != "":
		return module.Plan{}, fmt.Errorf("%s\n%w", a.Msg, err)
	default:
		return module.Plan{}, err
	}
}

// Apply has nothing to do.
func (a *assert) Apply(_ context.Context, _ *module.Host, plan module.Plan) (module.Values, error) {
	return plan.Values, nil
}

// Returns documents the result.
func (*assert) Returns() []module.Return {
	return []module.Return{{Name: "msg", Type: "string", Help: "success_msg"}}
}

// ReadsOnly tells the engine that it changes nothing.
func (*assert) ReadsOnly() bool { return true }
