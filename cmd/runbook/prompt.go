package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"runbook/engine/secret"
)

// prompter asks a person for a secret.
type prompter func(ctx context.Context, question string) (secret.Secret, error)

// askTerminal asks on the controlling terminal, whatever standard input and output are, without echo.
func askTerminal(ctx context.Context, question string) (secret.Secret, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return secret.Secret{}, errors.New("cannot ask for a password: there is no terminal")
	}
	defer tty.Close()
	fd := int(tty.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return secret.Secret{}, fmt.Errorf("cannot ask for a password: %w", err)
	}
	fmt.Fprint(tty, question)
	type answer struct {
		text []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		answered <- answer{text, err}
	}()
	defer fmt.Fprintln(tty)
	select {
	case a := <-answered:
		if a.err != nil {
			return secret.Secret{}, fmt.Errorf("cannot read the password: %w", a.err)
		}
		return secret.New(string(a.text)), nil
	case <-ctx.Done():
		_ = term.Restore(fd, state) // the read goes on until the program ends; the echo must not stay off
		return secret.Secret{}, ctx.Err()
	}
}
